"""Who takes over a call whose flow nothing is known of any more (rules D3, T2). Pure.

After a restart without `state_file` the token of a call is still ours and its flow is nobody's. What the other party
writes then still names the client: the AOR in To, and in the Request-URI the Contact or public GRUU (RFC 5627 §3.1)
that the browser gave for the call. A client that has registered just these again is the same one.
"""

from __future__ import annotations

from wsgate.directory import Directory
from wsgate.registrations import Registration
from wsgate.sip.gruu import is_named
from wsgate.sip.headers import parse_uri, same_uri
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
