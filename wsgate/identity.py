"""Who a browser is, read from its upgrade: forwarded headers, reSIProcate's cookies, bearer tokens (rule H1). Pure.

`Admission.judge` reads the header fields and the query of one upgrade. What comes out is bound to the connection: the
identity, which says whose requests may come through it, and the SIP header lines that go to backends with them. The
secrets themselves, Cookie and Authorization, are kept nowhere.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from wsgate.bearer import TokenError, VerificationKey, verify
from wsgate.errors import ProtocolError
from wsgate.settings import STRINGS, TEXT, Parser, choice, items, listed, option
from wsgate.sip.header_names import COMPACT_FORMS
from wsgate.sip.headers import Uri, is_token, parse_uri, unescape
from wsgate.ws.handshake import Refusal, values

TOKEN_NAME = "access_token"
"""How a cookie or a query parameter with a token is called (RFC 6750 §2.3)."""

MAX_FORWARDED_BYTES = 4096
"""All forwarded headers of one upgrade together; every connection keeps its own."""

MAX_FORWARDED_HEADERS = 16

MAX_QUERY_FIELDS = 100

SESSION_INFO, SESSION_EXTRA, SESSION_MAC = "WSSessionInfo", "WSSessionExtra", "WSSessionMAC"

RESERVED_HEADERS = frozenset(COMPACT_FORMS.values()) | frozenset(
    b"accept accept-encoding accept-language alert-info allow authentication-info authorization call-info"
    b" content-disposition content-language cseq date error-info event expires flow-timer history-info in-reply-to join"
    b" max-breadth max-forwards mime-version min-expires min-se organization p-asserted-identity p-preferred-identity"
    b" path priority privacy proxy-authenticate proxy-authorization proxy-require rack reason record-route"
    b" remote-party-id replaces reply-to require retry-after route rseq server service-route subscription-state"
    b" target-dialog timestamp unsupported user-agent warning www-authenticate".split()
)
"""SIP needs these for itself: a forwarded header would be taken off every message under its name."""

# version 1 : created : expires : From : destination. No part holds a colon, but for a scheme in front of a URI.
_SESSION_INFO = re.compile(r"1:[0-9]{1,15}:([0-9]{1,15}):((?:sips?:)?[^:]+):((?:sips?:)?[^:]+)")
_FORWARDABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f]*")


class TokenPlace(enum.Enum):
    """Where an upgrade may carry its token (RFC 6750 §2; a cookie is what browsers can send besides)."""

    HEADER = "header"
    QUERY = "query"
    COOKIE = "cookie"


class ForwardedHeader(NamedTuple):
    """A field of the GET, in lower case, and the SIP header that it becomes, as written."""

    field: str
    header: bytes


def _forwarded(text: str) -> tuple[ForwardedHeader, ...]:
    """`Field: SIP-Header, ...`. Raises ValueError."""
    found: list[ForwardedHeader] = []
    for part in items(text):
        field, colon, header = (word.strip() for word in part.partition(":"))
        name = header.encode("ascii", "replace")
        if not colon or not is_token(field.encode("ascii", "replace")) or not is_token(name):
            raise ValueError(f"{part!r} is not of the form Field: SIP-Header")
        if len(name) == 1 or name.lower() in RESERVED_HEADERS:
            raise ValueError(f"SIP needs {header} for itself")
        if any(name.lower() == other.header.lower() for other in found):
            raise ValueError(f"{header} stands twice")
        found.append(ForwardedHeader(field.lower(), name))
    if len(found) > MAX_FORWARDED_HEADERS:
        raise ValueError(f"more than {MAX_FORWARDED_HEADERS} headers")
    return tuple(found)


FORWARD_HEADERS: Parser[tuple[ForwardedHeader, ...]] = (
    _forwarded,
    "a list of Field: SIP-Header, with headers that SIP does not need for itself, e.g. Cookie: X-WS-Cookie",
)


@dataclasses.dataclass(frozen=True)
class IdentitySettings:
    """[identity]"""

    forward_headers: tuple[ForwardedHeader, ...] = option((), FORWARD_HEADERS)
    cookie_secret: str = option("", TEXT)
    jwt_keys: str = option("", TEXT)
    jwt_from: tuple[TokenPlace, ...] = option(tuple(TokenPlace), listed(choice(TokenPlace)))
    jwt_audience: tuple[str, ...] = option((), STRINGS)

    @property
    def protected_headers(self) -> frozenset[bytes]:
        """The names, in lower case, that no message may bring along: only wsgate writes them."""
        return frozenset(entry.header.lower() for entry in self.forward_headers)

    @property
    def cookie_option(self) -> str:
        """The option by which a cookie counts for something; empty when none does."""
        if self.cookie_secret:
            return "cookie_secret"
        if any(entry.field == "cookie" for entry in self.forward_headers):
            return "forward_headers"
        return "jwt_from" if self.jwt_keys and TokenPlace.COOKIE in self.jwt_from else ""


class AddressPattern(NamedTuple):
    """An address of record, unescaped; None stands for any user, any host."""

    user: bytes | None
    host: str | None

    def matches(self, uri: Uri) -> bool:
        """True for a URI of this user at this host, whatever its scheme, port and parameters (RFC 3261 §10.3)."""
        user, _, host = uri.address_of_record.rpartition(b"@")
        return self.user in (None, user) and self.host in (None, host.decode())


class Identity(NamedTuple):
    """Whose requests may come through a connection, whereto (None: anywhere), and until when by the loop's clock."""

    addresses: tuple[AddressPattern, ...]
    destination: AddressPattern | None
    expires_at: float

    def is_own(self, uri: Uri) -> bool:
        """True for an address of record that this identity may speak as."""
        return any(pattern.matches(uri) for pattern in self.addresses)

    def addresses_of_record(self) -> list[bytes]:
        """Those of its addresses that stand for one user, in the spelling of an address of record."""
        return [
            pattern.user + b"@" + pattern.host.encode()
            for pattern in self.addresses
            if pattern.user is not None and pattern.host is not None
        ]

    def may_reach(self, uri: Uri) -> bool:
        """True for a destination that this identity may call."""
        return self.destination is None or self.destination.matches(uri)


Lines = tuple[tuple[bytes, bytes], ...]


class Admitted(NamedTuple):
    """An upgrade that may go on: its identity where one is asked for, and the header lines for backends."""

    identity: Identity | None = None
    forwarded: Lines = ()


class _Refused(Exception):
    """Ends the judgement of one upgrade with this answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


class Admission:
    """Judges upgrades by [identity]. `wall_clock` tells the seconds since 1970; `keys` are those of jwt_keys."""

    def __init__(
        self, settings: IdentitySettings, keys: Sequence[VerificationKey], wall_clock: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._keys = tuple(keys)
        self._wall_clock = wall_clock

    def judge(self, fields: Iterable[tuple[str, str]], query: str, now: float) -> Admitted | Refusal:
        """What comes of an upgrade with these header fields and this query, at `now` of the loop's clock.

        401 where an identity is asked for and none is shown, 403 where it is wrong or over (rule H1). With both kinds
        configured one is enough, and a token counts before the cookies.
        """
        fields = tuple(fields)
        try:
            return Admitted(self._identity(fields, query, now), _forwarded_lines(self._settings, fields))
        except _Refused as refused:
            return refused.refusal

    def _identity(self, fields: tuple[tuple[str, str], ...], query: str, now: float) -> Identity | None:
        settings = self._settings
        if not settings.cookie_secret and not settings.jwt_keys:
            return None
        wall = self._wall_clock()
        cookies = read_cookies(fields)
        token = find_token(settings.jwt_from, fields, query, cookies) if settings.jwt_keys else ""
        try:
            if token:
                claims = verify(token, self._keys, settings.jwt_audience, wall)
                own = tuple(parse_pattern(text, wildcards=False) for text in claims.addresses)
                return Identity(own, None, now + claims.expires_at - wall)
            if settings.cookie_secret and SESSION_INFO in cookies:
                session = read_session(cookies, settings.cookie_secret.encode(), wall)
                return session._replace(expires_at=now + session.expires_at - wall)
        except TokenError as error:
            raise _Refused(Refusal("403 Forbidden", error.reason)) from None
        raise _Refused(_missing(settings))


def _missing(settings: IdentitySettings) -> Refusal:
    if not settings.jwt_keys:
        return Refusal("401 Unauthorized", "the cookies WSSessionInfo and WSSessionMAC are missing")
    wanted = " or the WSSession cookies are" if settings.cookie_secret else " is"
    challenge = (("WWW-Authenticate", 'Bearer realm="wsgate"'),)
    return Refusal("401 Unauthorized", f"a bearer token{wanted} missing", challenge)


# Forwarded headers


def _forwarded_lines(settings: IdentitySettings, fields: tuple[tuple[str, str], ...]) -> Lines:
    lines = []
    for entry in settings.forward_headers:
        joint = "; " if entry.field == "cookie" else ", "
        text = joint.join(found for found in values(fields, entry.field) if found)
        if not text:
            continue
        raw = text.encode("latin-1")
        try:
            readable = _FORWARDABLE.fullmatch(raw.decode()) is not None
        except UnicodeDecodeError:
            readable = False
        if not readable:
            raise _Refused(Refusal("400 Bad Request", f"{entry.field} is not printable text in UTF-8"))
        lines.append((entry.header, raw))
    if sum(len(name) + len(value) + 4 for name, value in lines) > MAX_FORWARDED_BYTES:
        reason = f"the headers to forward are longer than {MAX_FORWARDED_BYTES} bytes"
        raise _Refused(Refusal("431 Request Header Fields Too Large", reason))
    return tuple(lines)


# What an upgrade carries


def read_cookies(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The cookies of a request, as written but for the quotes around a value; the first of a name counts."""
    cookies: dict[str, str] = {}
    for line in values(fields, "cookie"):
        for pair in line.split(";"):
            name, equals, value = pair.partition("=")
            if equals:
                cookies.setdefault(name.strip(" \t"), value.strip(" \t").removeprefix('"').removesuffix('"'))
    return cookies


def find_token(
    places: Iterable[TokenPlace], fields: Iterable[tuple[str, str]], query: str, cookies: dict[str, str]
) -> str:
    """The token of an upgrade, empty where there is none: what was sent on purpose counts before a cookie."""
    allowed = set(places)
    if TokenPlace.HEADER in allowed:
        for line in values(fields, "authorization"):
            scheme, _, token = line.partition(" ")
            if scheme.lower() == "bearer" and token.strip(" "):
                return token.strip(" ")
    if TokenPlace.QUERY in allowed and TOKEN_NAME in query:
        try:
            found = [value for name, value in parse_qsl(query, max_num_fields=MAX_QUERY_FIELDS) if name == TOKEN_NAME]
        except ValueError:
            found = []
        if found:
            return found[0]
    return cookies.get(TOKEN_NAME, "") if TokenPlace.COOKIE in allowed else ""


def read_session(cookies: dict[str, str], secret: bytes, wall: float) -> Identity:
    """The identity in reSIProcate's cookies; `expires_at` is in seconds since 1970. Raises TokenError.

    WSSessionInfo is `1:created:expires:From:destination`, the addresses without `sip:`, `*` for any user or any host;
    WSSessionMAC is the HMAC-SHA1 in hex of it, a colon, and WSSessionExtra. All are URL-encoded in the cookie.
    """
    given = cookies.get(SESSION_MAC, "").lower().encode("latin-1")
    info = None
    # A `+` is a blank where the site wrote the cookie as a form would, else itself: the MAC tells which.
    for plus in (" ", "+"):
        text, extra = (
            unquote_to_bytes(cookies.get(name, "").replace("+", plus).encode("latin-1"))
            for name in (SESSION_INFO, SESSION_EXTRA)
        )
        expected = hmac.new(secret, text + b":" + extra, hashlib.sha1).hexdigest().encode()
        if hmac.compare_digest(expected, given):
            info = text
    if info is None:
        raise TokenError("WSSessionMAC does not fit the cookies and cookie_secret")
    found = _SESSION_INFO.fullmatch(info.decode("utf-8", "replace"))
    if found is None:
        raise TokenError("WSSessionInfo is malformed or of another version than 1")
    expires_at = float(found[1])
    if expires_at <= wall:
        raise TokenError("WSSessionInfo has expired")
    own, destination = (parse_pattern(text, wildcards=True) for text in found.group(2, 3))
    return Identity((own,), destination, expires_at)


def parse_pattern(text: str, *, wildcards: bool) -> AddressPattern:
    """`[sip:]user@host` as a pattern. Raises TokenError."""
    user, at, host = text.removeprefix("sips:").removeprefix("sip:").rpartition("@")
    any_user, any_host = wildcards and user == "*", wildcards and host == "*"
    try:
        uri = parse_uri(f"sip:{'x' if any_user else user}@{'x' if any_host else host}".encode())
        if not at or not user or uri.headers is not None:
            raise ProtocolError("no address of record")
    except ProtocolError:
        raise TokenError("an address in it is not of the form user@host") from None
    name = unescape((uri.user or b"").partition(b":")[0])
    return AddressPattern(None if any_user else name, None if any_host else uri.host)
