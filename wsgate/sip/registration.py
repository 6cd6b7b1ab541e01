"""What a REGISTER that a backend answered with 2xx leaves behind (rule R4): registrations of a flow. Pure."""

from __future__ import annotations

from collections.abc import Callable

from wsgate.registrations import Registration
from wsgate.sip.contacts import parse_seconds
from wsgate.sip.headers import NameAddr, Parameters, parse_name_addr, parse_uri, same_uri, unquote
from wsgate.sip.message import Message
from wsgate.sip.rewriting import handle_in

DEFAULT_EXPIRES_SECONDS = 3600
"""What a registrar grants where neither request nor answer says anything (RFC 3261 §10.2.1.1)."""


def registrations(
    flow: bytes, request: Message, response: Message, now: float, handle: Callable[[bytes, bytes], bytes]
) -> list[Registration] | None:
    """What the Contacts of `request` now mean, an `expires_at` of `now` for those taken back; None for `Contact: *`.

    `handle` makes the handle of an AOR and a Contact URI (rule R5). The expiry is what the 2xx says of the same
    Contact, else its Expires, else what the request says; a 2xx without any Contact confirms the request. Raises
    ProtocolError.
    """
    aor = parse_uri(request.to_uri).address_of_record
    contacts = request.values(b"contact")
    if contacts == [b"*"]:
        return None
    granted = [parse_name_addr(value) for value in response.values(b"contact")]
    asked = _seconds(request.header(b"expires"), DEFAULT_EXPIRES_SECONDS)
    told = response.header(b"expires")
    found = []
    for value in contacts:
        contact = parse_name_addr(value)
        own_handle = handle(aor, contact.uri)
        seconds = _expires(contact, asked)
        binding = _granted(contact, own_handle, granted)
        if binding is not None:
            seconds = _expires(binding, _seconds(told, seconds))
        elif granted:
            seconds = 0  # the registrar lists every binding it holds (RFC 3261 §10.3 step 8): this one is not there
        found.append(
            Registration(
                aor,
                unquote(contact.parameters.get(b"+sip.instance")),
                _number(contact.parameters.get(b"reg-id")) or 0,
                contact.uri,
                flow,
                now + seconds,
                own_handle,
            )
        )
    return found


def _granted(contact: NameAddr, handle: bytes, granted: list[NameAddr]) -> NameAddr | None:
    """What the 2xx lists of this Contact."""
    for candidate in granted:
        if (
            handle_in(candidate.uri) == handle
            or same_uri(candidate.uri, contact.uri)
            or _same_instance(candidate.parameters, contact.parameters)
        ):
            return candidate
    return None


def _expires(contact: NameAddr, otherwise: int) -> int:
    return parse_seconds(contact.parameters[b"expires"]) if b"expires" in contact.parameters else otherwise


def _seconds(header: bytes | None, otherwise: int) -> int:
    return otherwise if header is None else parse_seconds(header)


def _same_instance(left: Parameters, right: Parameters) -> bool:
    instance = left.get(b"+sip.instance")
    same = bool(instance) and instance == right.get(b"+sip.instance")
    return same and left.get(b"reg-id") == right.get(b"reg-id")


def _number(text: bytes | None) -> int | None:
    if text is None or not text.strip().isdigit() or len(text) > 10:
        return None
    return int(text)
