"""Who the client is when a relay stands in front: X-Forwarded-For, Forwarded (RFC 7239) and the PROXY protocol.

Functions of bytes and text alone. A PROXY header is to be read from trusted relays only; its caller sees to that.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

from wsgate.addr import Address, Network, canonical_ip, in_networks
from wsgate.errors import ProtocolError
from wsgate.ws.handshake import tokens, values

PROXY_START_BYTES = 8
"""So many bytes tell version 1 from version 2; no header is shorter."""

PROXY_V1_MAX_BYTES = 107
"""Of a version 1 header, CRLF included."""

PROXY_V2_HEAD_BYTES = 16

PROXY_V2_MAX_BODY_BYTES = 2048
"""Addresses and additional values (TLV) of a version 2 header."""

PROXY_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

_PORT = r"(?::[0-9]{1,5})?"
_NODE = re.compile(rf"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]{_PORT}|(?P<v4>[0-9.]+){_PORT}|(?P<bare>[0-9A-Fa-f:.]+))")
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR = re.compile(rf'[ \t]*({_TOKEN})=(?:"((?:[^"\\]|\\.)*)"|([^",; \t]*))[ \t]*(?:;|\Z)')


class Relayed(NamedTuple):
    """The client's address, and how many trusted relays stand between it and us."""

    remote: Address
    relays: int


def client_address(peer: Address, fields: Iterable[tuple[str, str]], trusted: tuple[Network, ...]) -> Relayed:
    """The client behind `peer`, read from the right: the first entry that is not itself trusted is the client.

    Nothing left of it is believed; an unreadable entry, or none, means `peer` itself; where both fields stand only
    X-Forwarded-For counts. All entries trusted: the leftmost. The client's port is 0 where a relay speaks for it.
    """
    if not in_networks(peer.host, trusted):
        return Relayed(peer, 0)
    fields = tuple(fields)
    if values(fields, "x-forwarded-for"):
        entries = [entry.strip(" \t") for value in values(fields, "x-forwarded-for") for entry in value.split(",")]
    elif values(fields, "forwarded"):
        entries = _forwarded_for(",".join(values(fields, "forwarded")))
    else:
        return Relayed(peer, 1)
    host, relays = "", 0
    for entry in reversed(entries):
        host = _node(entry)
        if not host:
            return Relayed(peer, 1)
        relays += 1
        if not in_networks(host, trusted):
            break
    return Relayed(Address(host, 0), relays)


def asked_host(fields: Iterable[tuple[str, str]], relays: int) -> str:
    """The Host that the browser asked for, lower case: X-Forwarded-Host of the outermost trusted relay, else Host.

    `relays` as client_address counted them; 0: X-Forwarded-Host is a stranger's and not believed.
    """
    fields = tuple(fields)
    forwarded = tokens(fields, "x-forwarded-host")
    if relays and forwarded:
        return forwarded[max(0, len(forwarded) - relays)].lower()
    return next(iter(values(fields, "host")), "").lower()


def _node(text: str) -> str:
    """The IP address of one entry, canonical; empty when there is none to read (RFC 7239 §6)."""
    match = _NODE.fullmatch(text)
    if match is None:
        return ""
    try:
        return str(canonical_ip(ipaddress.ip_address(match["v6"] or match["v4"] or match["bare"])))
    except ValueError:
        return ""


def _forwarded_for(text: str) -> list[str]:
    """The value of `for` in each element of Forwarded; empty where it does not stand there once.

    Cut from the right, where a relay of ours wrote: a quote that a stranger left open hides nothing behind it. What
    begins inside a quoted string is no element, because its quote is never closed. Where nothing more can be read the
    list begins with an empty entry.
    """
    found: list[str] = []
    end = at = len(text)
    while at >= 0:
        at = text.rfind(",", 0, at)
        value = _element(text, at + 1, end)
        if value is not None:
            found.append(value)
            end = at
    return ["", *reversed(found)] if end >= 0 else found[::-1]


def _element(text: str, start: int, end: int) -> str | None:
    """The value of `for` in one element (RFC 7239 §4), unquoted, empty when it is not there once; None: no element."""
    values_of_for = []
    while True:
        pair = _PAIR.match(text, start, end)
        if pair is None:
            return None
        if pair[1].lower() == "for":
            values_of_for.append(re.sub(r"\\(.)", r"\1", pair[2]) if pair[2] is not None else pair[3])
        start = pair.end()
        if start == end and text[start - 1] != ";":
            return values_of_for[0] if len(values_of_for) == 1 else ""


def proxy_v1(line: bytes) -> Address | None:
    """The source of a PROXY version 1 header (its line with CRLF); None for UNKNOWN. Raises ProtocolError."""
    words = line.removesuffix(b"\r\n").decode("latin-1").split(" ")
    if not line.endswith(b"\r\n") or words[0] != "PROXY":
        raise ProtocolError("malformed PROXY header")
    if words[1:2] == ["UNKNOWN"]:
        return None
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise ProtocolError("malformed PROXY header")
    version = 4 if words[1] == "TCP4" else 6
    try:
        source, destination = (ipaddress.ip_address(word) for word in words[2:4])
    except ValueError:
        raise ProtocolError("malformed address in a PROXY header") from None
    if source.version != version or destination.version != version:
        raise ProtocolError("wrong family in a PROXY header")
    if not all(re.fullmatch("0|[1-9][0-9]{0,4}", word) and int(word) <= 65535 for word in words[4:]):
        raise ProtocolError("malformed port in a PROXY header")
    return Address(str(canonical_ip(source)), int(words[4]))


def proxy_v2_body_bytes(head: bytes) -> int:
    """How many bytes follow the 16 of a PROXY version 2 head. Raises ProtocolError."""
    if len(head) != PROXY_V2_HEAD_BYTES or not head.startswith(PROXY_V2_SIGNATURE) or head[12] >> 4 != 2:
        raise ProtocolError("malformed PROXY header")
    length = int.from_bytes(head[14:16], "big")
    if length > PROXY_V2_MAX_BODY_BYTES:
        raise ProtocolError("PROXY header is too long")
    return length


def proxy_v2(head: bytes, body: bytes) -> Address | None:
    """The source of a PROXY version 2 header; None for LOCAL and for families that are no TCP. Raises ProtocolError."""
    command, family = head[12] & 0x0F, head[13]
    if command > 1:
        raise ProtocolError("unknown command in a PROXY header")
    if command == 0:
        return None
    size = {0x11: 4, 0x21: 16}.get(family)
    if size is None:
        return None
    if len(body) < 2 * size + 4:
        raise ProtocolError("PROXY header is too short")
    source = canonical_ip(ipaddress.ip_address(body[:size]))
    return Address(str(source), int.from_bytes(body[2 * size : 2 * size + 2], "big"))
