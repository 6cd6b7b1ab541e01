"""Contact rewriting for registrars that do not know Path (rule R5): a handle in the URI leads back to the flow. Pure.

The registrar gets `sip:USER@HOST:PORT;transport=BACKEND'S;wsg=HANDLE` in place of the browser's own Contact URI. The
handle is the same after every reconnect and restart, so a registrar replaces its binding instead of collecting them.
What comes back is recognised by `wsg` alone, never by comparing URIs, and the browser sees its own spelling again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from wsgate.addr import Address, Transport
from wsgate.errors import ProtocolError
from wsgate.sip.headers import host_port, parse_name_addr, parse_uri
from wsgate.sip.message import Message

Changes = list[tuple[int, bytes]]
"""Values of a list header by their number from the top, with what takes their place."""

HANDLE_PARAMETER = b"wsg"


def handle_in(uri: bytes) -> bytes:
    """The handle that a URI carries; empty where there is none."""
    if HANDLE_PARAMETER not in uri.lower():
        return b""
    try:
        return parse_uri(uri).parameters.get(HANDLE_PARAMETER) or b""
    except ProtocolError:
        return b""


def rewritten(message: Message, handle_of: Callable[[bytes], bytes], address: Address, transport: Transport) -> Changes:
    """What the Contacts of a REGISTER become towards a registrar: `address` is ours, header parameters stay.

    `*` and what is no SIP URI stay as they are. Raises ProtocolError.
    """
    word = {Transport.WSS: b"ws"}.get(transport, transport.value.lower().encode())
    changes = []
    for number, value in enumerate(message.values(b"contact")):
        uri = _sip_uri(value)
        if uri is None:
            continue
        user = parse_uri(uri).user
        prefix = b"" if user is None else user + b"@"
        place = host_port(address.host, address.port)
        text = b"sip:%b%b;transport=%b;%b=%b" % (prefix, place, word, HANDLE_PARAMETER, handle_of(uri))
        changes.append((number, _with_uri(value, uri, text)))
    return changes


def restored(contacts: Iterable[bytes], original: Callable[[bytes], bytes | None]) -> Changes:
    """What the Contacts of a 2xx become towards the browser: `original` gives the URI behind a handle, or None."""
    changes = []
    for number, value in enumerate(contacts):
        uri = _sip_uri(value)
        handle = handle_in(uri) if uri is not None else b""
        own = original(handle) if handle else None
        if uri is not None and own is not None:
            changes.append((number, _with_uri(value, uri, own)))
    return changes


def contact_uri(value: bytes) -> bytes:
    """The URI of a Contact value as it stands there. Raises ProtocolError."""
    return parse_name_addr(value).uri


def _sip_uri(value: bytes) -> bytes | None:
    """The URI of a Contact value, None where it is not sip or sips."""
    try:
        uri = parse_name_addr(value).uri
        parse_uri(uri)
    except ProtocolError:
        return None
    return uri


def _with_uri(value: bytes, uri: bytes, text: bytes) -> bytes:
    """`value` with `text` in place of its URI, in angle brackets: everything else stays to the byte."""
    start = value.index(uri)
    if value[start - 1 : start] == b"<":
        return value[:start] + text + value[start + len(uri) :]
    return b"<" + text + b">" + value[start + len(uri) :]
