"""The embedded registrar (RFC 3261 §10.3, RFC 5626 §6, RFC 5627 §5, RFC 3327 §5.3; rules G2, G3, G5). Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wsgate.addr import Hop
from wsgate.bindings import Binding
from wsgate.directory import Directory
from wsgate.errors import ProtocolError
from wsgate.metrics import Counters
from wsgate.registrations import Registration, registration_key
from wsgate.settings import TEXT, choice, integer, listed, option
from wsgate.sip.accounts import Accounts, Challenge, HeaderLines, owns, phrase
from wsgate.sip.contacts import (
    MALFORMED_EXPIRES_SECONDS,
    BindingChange,
    ContactRequest,
    OutOfOrder,
    Unreachable,
    check_sequence,
    contact_value,
    parse_contact,
    parse_seconds,
)
from wsgate.sip.digest import Digest, DigestAlgorithm
from wsgate.sip.gruu import TemporaryGruus, public_gruu
from wsgate.sip.headers import date_value, parse_name_addr, parse_uri
from wsgate.sip.location_service import LocationService
from wsgate.sip.message import Message, warning

MAX_CONTACTS_PER_REQUEST = 16
"""Contact values of one REGISTER, where max_contacts allows no more."""
MAX_AOR_BYTES = 1024
"""Length of an AOR that can be registered."""
MAX_PATH_BYTES = 4096
"""Length of all Path values together; every binding of the request keeps them."""
MAX_CALL_ID_BYTES = 512
"""Length of a Call-ID; the binding keeps it."""
MEMORY = "memory"
"""The `store` that is none."""

_SUPPORTED = (b"path", b"outbound", b"gruu")


def _store(text: str) -> str:
    if not text:
        raise ValueError("it must not be empty")
    return MEMORY if text.lower() == MEMORY else text


@dataclasses.dataclass(frozen=True)
class RegistrarSettings:
    """[registrar]"""

    realm: str = option("example.com", TEXT)
    users: str = option("users.htdigest", TEXT)
    digest_algorithms: tuple[DigestAlgorithm, ...] = option(tuple(DigestAlgorithm), listed(choice(DigestAlgorithm)))
    store: str = option(MEMORY, (_store, "memory, or a file name"))
    min_expires: int = option(60, integer(1, 86400))
    max_expires: int = option(3600, integer(1, 2592000))
    max_contacts: int = option(10, integer(1, 1000))


class RegistrarAnswer(NamedTuple):
    """How a REGISTER is answered, which bindings it made or refreshed, and which it took away."""

    status: int
    reason: str
    headers: HeaderLines = ()
    registered: tuple[Binding, ...] = ()
    removed: tuple[Binding, ...] = ()
    user: str = ""


class _Refused(Exception):
    """Ends the processing of one request with this answer; nothing was changed."""

    def __init__(self, status: int, reason: str, why: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """`why` tells an administrator which rule spoke."""
        super().__init__(reason)
        self.answer = RegistrarAnswer(status, reason, (*headers, warning(why)))


class Registrar:
    """Registers for domains with `target = embedded`; `location` looks up, `accounts` knows who is who.

    The users of `digest` may be replaced on a reload. `flow_timer` is of [sip], in seconds (R4). Without
    `temporary_gruus` only public GRUUs are given out.
    """

    def __init__(
        self,
        settings: RegistrarSettings,
        directory: Directory,
        digest: Digest,
        counters: Counters,
        *,
        flow_timer: int = 120,
        temporary_gruus: TemporaryGruus | None = None,
    ) -> None:
        self._settings = settings
        self._flow_timer = flow_timer
        self.accounts = Accounts(settings.realm, directory, digest, counters)
        self.location = LocationService(directory, self.accounts.is_user, temporary_gruus)
        self._temporary_gruus = temporary_gruus
        self._directory = directory
        self._wall_offset = digest.wall_offset
        self._counters = counters
        self._date = (0, b"")

    def register(self, message: Message, flow: bytes, source: Hop | None, now: float) -> RegistrarAnswer:
        """Answer a REGISTER whose Request-URI names a domain served here (RFC 3261 §10.3, in its order; G2).

        `flow` is the browser's flow, or empty for a phone that is reached at `source` (G5). All Contacts take effect
        or none. The directory is told of bindings and registrations.
        """
        try:
            answer = self._register(message, flow, source, now)
        except _Refused as refused:
            answer = refused.answer
        except OutOfOrder as error:
            # RFC 3261 §12.2.2 has the status for a CSeq that does not rise.
            answer = RegistrarAnswer(
                500, phrase(error.reason), (warning("this CSeq does not rise within its Call-ID"),)
            )
        except Unreachable as error:
            # Nothing is wrong with it (RFC 3261 §10.2.1), so it is no 400; but a binding of it would be a promise to
            # callers that nobody keeps.
            text = "wsgate calls sip and sips Contacts alone, no tel, mailto or other URI"
            answer = RegistrarAnswer(403, phrase(error.reason), (warning(text),))
        except ProtocolError as error:
            answer = RegistrarAnswer(400, phrase(error.reason), (warning(error.reason),))
        self._counters.count("registrar_accepted" if answer.status == 200 else "registrar_refused")
        return answer

    # REGISTER, step by step (RFC 3261 §10.3)

    def _register(self, message: Message, flow: bytes, source: Hop | None, now: float) -> RegistrarAnswer:
        _check_require(message)
        user = self._authenticate(message, now)
        aor = self._authorize(message, user)
        requests = self._contact_requests(message)
        _check_no_gruu(requests or (), aor)
        path = _path(message)
        outbound = any(request.reg_id and request.seconds for request in requests or ())
        if outbound:
            _check_first_hop(message, path)

        def make(request: ContactRequest) -> Binding:
            return _binding(request, message, aor, flow, source, path, now)

        old = tuple(binding for binding in self._directory.bindings(aor) if self._directory.ends_at(binding) > now)
        change = BindingChange(old, message, make)
        for request in requests or ():
            change.apply(request)
        registered = change.registered
        if requests is None:
            for binding in old:
                check_sequence(message, binding)
        new = () if requests is None else self._make_room(old, change.bindings, registered)
        removed = self._commit(aor, old, new, registered, now)
        headers = self._success_headers(message, new, path if registered else (), outbound, now)
        return RegistrarAnswer(200, "OK", headers, registered, removed, user)

    def _authenticate(self, message: Message, now: float) -> str:
        """Step 3."""
        user = self.accounts.authenticate(message, now, is_proxy=False)
        if isinstance(user, Challenge):
            raise _Refused(401, "Unauthorized", user.why, user.headers)
        return user

    def _authorize(self, message: Message, user: str) -> bytes:
        """Steps 4 and 5: the AOR, which belongs to this user and to the domain of the Request-URI."""
        to = message.to.parsed_uri()
        if not owns(user, to):
            raise _Refused(403, "Forbidden", "this user may not register this address of record")
        if to.host != parse_uri(message.uri).host:
            raise _Refused(404, "Not Found", "the domain of To is not that of the Request-URI")
        aor = to.address_of_record
        if len(aor) > MAX_AOR_BYTES or len(message.call_id) > MAX_CALL_ID_BYTES:
            raise ProtocolError("To or Call-ID too long")
        return aor

    def _contact_requests(self, message: Message) -> list[ContactRequest] | None:
        """Steps 6 and 7: what each Contact asks for; None for `*`, empty for a query."""
        values = message.values(b"contact")
        expires = message.header(b"expires")
        if b"*" in values:
            if len(values) > 1 or expires is None or parse_seconds(expires) != 0:
                raise ProtocolError("Contact * must stand alone and with Expires 0")
            return None
        if len(values) > max(MAX_CONTACTS_PER_REQUEST, self._settings.max_contacts):
            raise ProtocolError("too many Contacts in one request")
        outbound = message.has_token(b"supported", b"outbound")
        default = self._settings.max_expires if expires is None else parse_seconds(expires)
        requests = [parse_contact(value, outbound, default) for value in values]
        for request in requests:
            if 0 < request.seconds < min(self._settings.min_expires, MALFORMED_EXPIRES_SECONDS):
                shortest = b"%d" % self._settings.min_expires
                why = f"[registrar] min_expires is {self._settings.min_expires}"
                raise _Refused(423, "Interval Too Brief", why, [(b"Min-Expires", shortest)])
        if sum(1 for request in requests if request.reg_id and request.seconds) > 1:
            raise ProtocolError("more than one Contact with reg-id")
        return [request._replace(seconds=min(request.seconds, self._settings.max_expires)) for request in requests]

    def _make_room(
        self, old: Sequence[Binding], new: tuple[Binding, ...], registered: Sequence[Binding]
    ) -> tuple[Binding, ...]:
        """Keep to max_contacts: bindings of closed flows go first, oldest first (G2)."""
        excess = len(new) - self._settings.max_contacts
        if excess <= 0 or len(new) <= len(old):
            return new
        fresh = {id(binding) for binding in registered}
        dead = [
            binding
            for binding in new
            if binding.flow and not self._directory.has_flow(binding.flow) and id(binding) not in fresh
        ]
        if len(dead) < excess:
            raise _Refused(403, "Too Many Contacts", f"[registrar] max_contacts is {self._settings.max_contacts}")
        dead.sort(key=lambda binding: binding.registered_at)
        leaving = {id(binding) for binding in dead[:excess]}
        return tuple(binding for binding in new if id(binding) not in leaving)

    def _commit(
        self,
        aor: bytes,
        old: Sequence[Binding],
        new: Sequence[Binding],
        registered: Sequence[Binding],
        now: float,
    ) -> tuple[Binding, ...]:
        """Tell the directory; returns the bindings that are no more."""
        directory = self._directory
        if not directory.replace_bindings(aor, new, now):
            self._counters.count("registrar_full")
            raise _Refused(503, "Service Unavailable", "the location table is full", [(b"Retry-After", b"60")])
        kept = {_key(binding) for binding in new}
        removed = tuple(binding for binding in old if _key(binding) not in kept)
        for binding in removed:
            directory.forget(aor, binding.instance, binding.reg_id, binding.contact, now)
        for binding in registered:
            if binding.flow:
                registration = Registration(
                    aor, binding.instance, binding.reg_id, binding.contact, binding.flow, binding.expires_at
                )
                if not directory.remember(registration, now):
                    self._counters.count("directory_full")
        return removed

    def _success_headers(
        self, message: Message, bindings: Sequence[Binding], path: tuple[bytes, ...], outbound: bool, now: float
    ) -> HeaderLines:
        """Step 8: every binding with its expiry; the client's own Contact as it wrote it (C6)."""
        gruu = message.has_token(b"supported", b"gruu")
        lines = [(b"Contact", contact_value(one, now) + (self._gruus(one) if gruu else b"")) for one in bindings]
        if path and message.has_token(b"supported", b"path"):
            lines += [(b"Path", value) for value in path]
        if outbound:
            lines += [(b"Require", b"outbound"), (b"Flow-Timer", b"%d" % self._flow_timer)]
        lines.append((b"Supported", b", ".join(_SUPPORTED)))
        lines.append((b"Date", self._date_at(int(now + self._wall_offset))))
        return tuple(lines)

    def _gruus(self, binding: Binding) -> bytes:
        """The GRUUs of a binding as parameters of its Contact (RFC 5627 §5.2)."""
        if not binding.instance:
            return b""
        value = b';pub-gruu="%b"' % public_gruu(binding.aor, binding.instance)
        if self._temporary_gruus is not None:
            made = self._temporary_gruus.make(binding.aor, binding.instance, binding.call_id)
            value += b';temp-gruu="%b"' % made
        return value

    def _date_at(self, wall_second: int) -> bytes:
        if self._date[0] != wall_second:
            self._date = (wall_second, date_value(wall_second))
        return self._date[1]


def _key(binding: Binding) -> tuple[bytes, bytes, int]:
    return registration_key(binding.aor, binding.instance, binding.reg_id, binding.contact)


def _binding(
    request: ContactRequest,
    message: Message,
    aor: bytes,
    flow: bytes,
    source: Hop | None,
    path: tuple[bytes, ...],
    now: float,
) -> Binding:
    return Binding(
        aor=aor,
        contact=request.name.uri,
        parameters=request.parameters,
        instance=request.instance,
        reg_id=request.reg_id,
        path=path,
        flow=flow,
        source=source,
        call_id=message.call_id,
        cseq=message.cseq[0],
        expires_at=now + request.seconds,
        registered_at=now,
        display=request.name.display,
        q=request.q,
    )


def _check_require(message: Message) -> None:
    """Step 2 (RFC 3261 §8.2.2.3): 420 names what we do not know."""
    unknown = [token for token in message.values(b"require") if token.lower() not in _SUPPORTED]
    if unknown:
        why = "Require names what this registrar does not know"
        raise _Refused(420, "Bad Extension", why, [(b"Unsupported", b", ".join(unknown))])


def _check_no_gruu(requests: Sequence[ContactRequest], aor: bytes) -> None:
    """A GRUU of the domain leads back to its own binding: it is no Contact (RFC 5627 §5.1)."""
    domain = aor.rpartition(b"@")[2].decode()
    if any(b"gr" in request.parsed.parameters and request.parsed.host == domain for request in requests):
        raise _Refused(403, "Forbidden", "a GRUU of this domain cannot be registered as Contact")


def _path(message: Message) -> tuple[bytes, ...]:
    """The Path values (RFC 3327 §5.3); 421 where the client does not know Path."""
    values = tuple(message.values(b"path"))
    if not values:
        return ()
    if not message.has_token(b"supported", b"path"):
        why = "a Path was added for a client that does not support path (RFC 3327)"
        raise _Refused(421, "Extension Required", why, [(b"Require", b"path")])
    if sum(map(len, values)) > MAX_PATH_BYTES:
        raise ProtocolError("Path too long")
    for value in values:
        parse_name_addr(value).parsed_uri()
    return values


def _check_first_hop(message: Message, path: tuple[bytes, ...]) -> None:
    """439 where a proxy that knows no outbound stands before us (RFC 5626 §6); a single Via means that we are first."""
    if len(message.values(b"via")) <= 1:
        return
    if not path or b"ob" not in parse_name_addr(path[-1]).parsed_uri().parameters:
        raise _Refused(439, "First Hop Lacks Outbound Support", "the first proxy left no ob in its Path (RFC 5626)")
