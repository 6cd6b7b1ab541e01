"""Contacts of a REGISTER and what they do to the bindings of an AOR (RFC 3261 §10.3, RFC 5626 §6). Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from wsgate.bindings import Binding
from wsgate.errors import ProtocolError
from wsgate.sip.headers import NameAddr, Uri, parse_name_addr, parse_uri, same_uri, unescape, unquote
from wsgate.sip.message import Message

MAX_CONTACT_BYTES = 2048
"""Length of one Contact value; the binding keeps it."""
MAX_REG_ID = 2**31 - 1
"""RFC 5626 §4.2."""
MALFORMED_EXPIRES_SECONDS = 3600
"""What an Expires that cannot be read means (RFC 3261 §10.2.1.1)."""

# A quoted string is stepped over, so that what looks like a parameter inside it stays.
_REGISTRARS_OWN = re.compile(
    rb';[ \t]*(?:expires|pub-gruu|temp-gruu)[ \t]*(?:=[ \t]*(?:"(?:[^"\\]|\\.)*"|[^\s;,"]*))?(?=[ \t]*(?:;|\Z))'
    rb'|("(?:[^"\\]|\\.)*")',
    re.I | re.S,
)
"""Parameters that the answer gives anew; a client may echo those of an older one."""
_SCHEME = re.compile(rb"[a-z][a-z0-9+.-]*\Z")
_Q = re.compile(rb"0(?:\.[0-9]{0,3})?\Z|1(?:\.0{0,3})?\Z")


class OutOfOrder(ProtocolError):
    """A later REGISTER of the same Call-ID came before this one (RFC 3261 §10.3 steps 6 and 7)."""


class Unreachable(ProtocolError):
    """A Contact that may well be registered (RFC 3261 §10.2.1), but that no request of ours could ever reach."""


class ContactRequest(NamedTuple):
    """One Contact of a REGISTER; `seconds` 0 takes the binding away, `reg_id` is 0 where outbound is not used.

    `parameters` are the header parameters as they were written, without `expires` and GRUUs.
    """

    name: NameAddr
    parsed: Uri
    parameters: bytes
    instance: bytes
    reg_id: int
    seconds: int
    q: float


def parse_contact(value: bytes, outbound: bool, default_seconds: int) -> ContactRequest:
    """One Contact value; `outbound`: the client supports it (RFC 5626 §6). Raises ProtocolError, Unreachable."""
    if len(value) > MAX_CONTACT_BYTES:
        raise ProtocolError("Contact too long")
    name = parse_name_addr(value)
    try:
        parsed = name.parsed_uri()
    except ProtocolError:
        scheme = name.uri.partition(b":")[0].lower()
        if _SCHEME.match(scheme) and scheme not in (b"sip", b"sips"):
            raise Unreachable("only sip Contacts can be reached") from None
        raise ProtocolError("Contact is not a sip URI") from None
    given = name.parameters
    seconds = parse_seconds(given[b"expires"]) if b"expires" in given else default_seconds
    instance = unquote(given.get(b"+sip.instance"))
    # A reg-id without instance, or from a client without outbound, is passed over.
    reg_id = _reg_id(given.get(b"reg-id")) if outbound and instance else 0
    return ContactRequest(
        name, parsed, _raw_parameters(value, name), instance, reg_id, seconds, _preference(given.get(b"q"))
    )


def contact_value(binding: Binding, now: float) -> bytes:
    """The Contact of a 200: as the client wrote it, with the seconds that are left (C6)."""
    left = max(1, round(binding.expires_at - now))
    display = binding.display + b" " if binding.display else b""
    return b"%b<%b>%b;expires=%d" % (display, binding.contact, binding.parameters, left)


def parse_seconds(value: bytes | None) -> int:
    """delta-seconds, cut to 32 bits; what cannot be read means an hour (RFC 3261 §10.2.1.1)."""
    value = (value or b"").strip()
    if not value.isdigit():
        return MALFORMED_EXPIRES_SECONDS
    return min(int(value[:11]), 2**32 - 1)


def check_sequence(message: Message, binding: Binding) -> None:
    """Within one Call-ID the CSeq must rise. Raises OutOfOrder."""
    if binding.call_id == message.call_id and message.cseq[0] <= binding.cseq:
        raise OutOfOrder("CSeq out of order")


class BindingChange:
    """The bindings of one AOR while a REGISTER is applied to them; nothing is final until the caller commits.

    `make` makes the binding of a Contact.
    """

    def __init__(self, old: Sequence[Binding], message: Message, make: Callable[[ContactRequest], Binding]) -> None:
        self._message = message
        self._make = make
        self._bindings: dict[int, Binding] = {}
        self._fresh: set[int] = set()
        self._next_number = 0
        self._by_target: dict[tuple[bytes, str, int | None], list[int]] = {}
        self._by_client: dict[tuple[bytes, int], list[int]] = {}
        for binding in old:
            self._add(binding, parse_uri(binding.contact))

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """All bindings as they stand, oldest first."""
        return tuple(self._bindings.values())

    @property
    def registered(self) -> tuple[Binding, ...]:
        """Those that this request made or refreshed."""
        return tuple(self._bindings[number] for number in self._bindings if number in self._fresh)

    def apply(self, request: ContactRequest) -> None:
        """Step 7 for one Contact. Raises OutOfOrder."""
        numbers = self._by_target.get(_target(request.parsed), []) + self._by_client.get(_client(request), [])
        for number in numbers:
            binding = self._bindings.get(number)
            if binding is not None and _means(request, binding):
                # Of two Contacts of one request that mean the same the last one counts.
                if number not in self._fresh:
                    check_sequence(self._message, binding)
                del self._bindings[number]
        if request.seconds:
            self._fresh.add(self._add(self._make(request), request.parsed))

    def _add(self, binding: Binding, uri: Uri) -> int:
        number = self._next_number
        self._next_number += 1
        self._bindings[number] = binding
        self._by_target.setdefault(_target(uri), []).append(number)
        if binding.reg_id:
            self._by_client.setdefault((binding.instance, binding.reg_id), []).append(number)
        return number


def _client(request: ContactRequest) -> tuple[bytes, int]:
    return request.instance, request.reg_id


def _target(uri: Uri) -> tuple[bytes, str, int | None]:
    return unescape(uri.user or b""), uri.host, uri.port


def _means(request: ContactRequest, binding: Binding) -> bool:
    """By instance and reg-id where both used outbound (RFC 5626 §6), else by URI (RFC 3261 §10.3 step 7)."""
    if request.reg_id and binding.reg_id:
        return _client(request) == (binding.instance, binding.reg_id)
    return same_uri(request.name.uri, binding.contact)


def _raw_parameters(value: bytes, name: NameAddr) -> bytes:
    if value[:1] == b'"' or b"<" in value.partition(b";")[0]:
        raw = value[value.index(b">", value.index(b"<", len(name.display))) + 1 :]
    else:
        raw = value[len(name.uri) :]
    return _REGISTRARS_OWN.sub(lambda found: found[1] or b"", raw).strip()


def _reg_id(value: bytes | None) -> int:
    if value is None or not value.isdigit() or len(value) > 10 or int(value) > MAX_REG_ID:
        return 0
    return int(value)


def _preference(value: bytes | None) -> float:
    """q from 0 to 1, 1 where absent or unreadable (RFC 3261 §10.2.1.2)."""
    return float(value) if value is not None and _Q.match(value) else 1.0
