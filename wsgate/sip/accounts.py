"""Who is who at the embedded registrar: who has authenticated, whose an AOR is, who may call as whom (G3, G4). Pure."""

from __future__ import annotations

from typing import NamedTuple

from wsgate.directory import Directory
from wsgate.errors import ProtocolError
from wsgate.metrics import Counters
from wsgate.sip.digest import Digest, parse_credentials
from wsgate.sip.edit import Edit
from wsgate.sip.headers import Uri, parse_uri
from wsgate.sip.message import Message, warning

ANONYMOUS = b"anonymous@anonymous.invalid"
"""The From of a caller who wants to stay unnamed (RFC 3323 §4.1, G4)."""

HeaderLines = tuple[tuple[bytes, bytes], ...]


class Challenge(NamedTuple):
    """Nobody has authenticated: `why` tells an administrator the reason, `headers` are those of the 401 or 407."""

    why: str
    headers: HeaderLines


class Judgement(NamedTuple):
    """Whether a browser may say this From (G4), or the answer it gets."""

    allowed: bool
    status: int = 0
    reason: str = ""
    headers: HeaderLines = ()


class Accounts:
    """The users of one realm; those of `digest` may be replaced on a reload."""

    def __init__(self, realm: str, directory: Directory, digest: Digest, counters: Counters) -> None:
        self._realm = realm
        self._directory = directory
        self._digest = digest
        self._counters = counters

    def authenticate(self, message: Message, now: float, *, is_proxy: bool) -> str | Challenge:
        """The user whose credentials the request carries for a registrar or, `is_proxy`, for a proxy (G3)."""
        lines = message.lines(b"proxy-authorization" if is_proxy else b"authorization")
        user, stale = self._digest.verify(lines, message.method, message.uri, self._realm, now)
        if user is not None:
            return user
        self._counters.count("digest_stale" if stale else "digest_failed" if lines else "digest_challenged")
        if stale:
            why = "the nonce has been used up; the new one is to be used"
        else:
            # The same text for an unknown user, a wrong password, and none at all (rule G3).
            why = f"digest credentials of the realm {self._realm} are needed ([registrar] users)"
        return Challenge(why, tuple(self._digest.challenge(self._realm, is_proxy, stale, now)))

    def judge_from(self, message: Message, flow: bytes, now: float) -> Judgement:
        """Whether this flow may send this request without To tag with its From (G4)."""
        try:
            aor = message.from_.parsed_uri().address_of_record
        except ProtocolError as error:
            return Judgement(False, 400, phrase(error.reason + " in From"), (warning(error.reason + " in From"),))
        registered = {own for own in self._directory.aors_of(flow) if self._is_registered(own, flow, now)}
        if aor in registered or (registered and aor == ANONYMOUS):
            return Judgement(True)
        user = self.authenticate(message, now, is_proxy=True)
        if isinstance(user, Challenge):
            return Judgement(False, 407, "Proxy Authentication Required", (*user.headers, warning(user.why)))
        if aor == ANONYMOUS or _may_call_as(user, aor, message):
            return Judgement(True)
        text = "From is neither registered on this connection nor the AOR of the user who authenticated"
        return Judgement(False, 403, "From belongs to another user", (warning(text),))

    def without_credentials(self, message: Message) -> Message:
        """The request without those that were for us: the far end could try passwords against them (RFC 3261 §22.3)."""
        if not message.has(b"proxy-authorization"):
            return message
        edit = Edit(message)
        edit.remove_lines(b"proxy-authorization", self._is_for_us)
        return Message.parse(edit.build())

    def _is_for_us(self, credentials: bytes) -> bool:
        try:
            return parse_credentials(credentials).realm == self._realm.encode()
        except ProtocolError:
            return False

    def is_user(self, aor: bytes) -> bool:
        """True when the AOR belongs to somebody in the user file."""
        user = aor.rpartition(b"@")[0].decode("utf-8", "replace")
        users = self._digest.users
        return (user, self._realm) in users or (aor.decode("utf-8", "replace"), self._realm) in users

    def _is_registered(self, aor: bytes, flow: bytes, now: float) -> bool:
        return any(found.flow == flow and found.expires_at > now for found in self._directory.bindings(aor))


def owns(user: str, uri: Uri) -> bool:
    """A user owns the AOR of the same name; the user name may also be the whole AOR."""
    aor = uri.address_of_record
    return user.encode() in (aor.rpartition(b"@")[0], aor)


def _may_call_as(user: str, aor: bytes, message: Message) -> bool:
    try:
        own = owns(user, message.from_.parsed_uri())
        return own and aor.rpartition(b"@")[2].decode() == parse_uri(message.uri).host
    except ProtocolError:
        return False


def phrase(reason: str) -> str:
    """What is wrong as a reason phrase."""
    return reason[:1].upper() + reason[1:]
