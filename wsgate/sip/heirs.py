"""Where a client is now that was elsewhere when its call began (rules D3, G5, T2). Pure.

After a restart without `state_file` the token of a call is still ours and its flow is nobody's. What the other party
writes then still names the client: the AOR in To, and in the Request-URI the Contact or public GRUU (RFC 5627 §3.1)
that the browser gave for the call. A client that has registered just these again is the same one.
"""

from __future__ import annotations

from wsgate.addr import Hop
from wsgate.bindings import Binding
from wsgate.directory import Directory
from wsgate.errors import ProtocolError
from wsgate.registrations import Registration
from wsgate.sip.dialogs import Side
from wsgate.sip.gruu import is_named
from wsgate.sip.headers import parse_name_addr, parse_uri, same_uri
from wsgate.sip.message import Message


def heir_by_contact(message: Message, flow: bytes, directory: Directory) -> bytes | None:
    """The open flow that a request inside a dialog means; None where `flow`, its token's, is known, or nobody is meant.

    Raises ProtocolError for a To or Request-URI that cannot be read.
    """
    if directory.has_flow(flow) or directory.is_registered_through(flow):
        return None
    aor = message.to.parsed_uri().address_of_record
    for registration in directory.registrations_for(aor):
        if directory.has_flow(registration.flow) and _is_meant(registration, message.uri):
            return registration.flow
    return None


def _is_meant(registration: Registration, uri: bytes) -> bool:
    if same_uri(registration.contact, uri):
        return True
    parsed = parse_uri(uri)
    return parsed.address_of_record == registration.aor and is_named(
        registration.instance, parsed.parameters.get(b"gr") or b""
    )


def place_of_phone(side: Side, directory: Directory) -> Hop | None:
    """Where this side of a dialog is when it is a phone of ours (rule G5): it is where it registered from last.

    A new connection, or a NAT that forgot the old port, moves it while its Contact stays.
    """
    if side.source is None or directory.has_source(side.source):
        return side.source
    same = [binding for binding in _phones_of(side, directory) if same_uri(binding.contact, side.target)]
    return max(same, key=lambda binding: binding.registered_at).source if same else None


def is_phone_at(side: Side, hop: Hop, directory: Directory) -> bool:
    """True when this side of a dialog is a phone of ours and its user has one registered from there (rules G5, N6)."""
    if side.source is None:
        return False
    places = [binding.source for binding in _phones_of(side, directory)]
    return any(place is not None and place[:2] == hop[:2] for place in places)


def _phones_of(side: Side, directory: Directory) -> list[Binding]:
    try:
        aor = parse_name_addr(side.name).parsed_uri().address_of_record
    except ProtocolError:
        return []
    return [binding for binding in directory.bindings(aor) if not binding.flow and binding.source is not None]
