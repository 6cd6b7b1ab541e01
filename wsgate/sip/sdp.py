"""Which addresses a session description names for media, and nothing else of it (RFC 8866, RFC 8839). Pure.

Read are connection lines, the ports of media and of their RTCP (RFC 3605), and ICE candidates; also those that are
trickled in a fragment (RFC 8840). Names are passed over, those of mDNS included: nobody's SDP makes wsgate look
anything up (rule N4). Nothing here raises; what cannot be read opens nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from wsgate.addr import ANY_PORT, Address, canonical_ip, is_numeric

BODY_BYTES_MAX = 65536
"""A longer body is not read."""
LINES_MAX = 1024
"""Lines with an address, a port or a user fragment that one description may have; later ones are not read."""
ADDRESSES_MAX = 128
"""Addresses with port that are taken from one description."""
UFRAGS_MAX = 64
"""User fragments that are kept of one description."""
UFRAG_BYTES_MAX = 256
"""The length of a user fragment (RFC 8839 §5.4)."""
PARTS_MAX = 16
"""Parts of a multipart body, nested ones included, that are looked at."""
PORTS_PER_MEDIA_MAX = 8
"""Port pairs that one media line may ask for (`m=audio 49170/4`)."""

SESSION_TYPE = b"application/sdp"
FRAGMENT_TYPE = b"application/trickle-ice-sdpfrag"

_LINE = re.compile(rb"^(c=|m=|a=candidate:|a=rtcp:|a=ice-ufrag:)([^\r\n]*)", re.MULTILINE)
_BOUNDARY = re.compile(rb';\s*boundary\s*=\s*(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_PART_TYPE = re.compile(rb"^content-type[ \t]*:[ \t]*([^\r\n]*(?:\r?\n[ \t][^\r\n]*)*)", re.IGNORECASE | re.MULTILINE)
_PART_ENCODED = re.compile(rb"^(?:content-encoding|content-transfer-encoding)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_MAPPED_TYPES = frozenset((b"srflx", b"prflx"))
"""Candidates behind a NAT that may show another port to every peer (RFC 8445 §5.1.1.2, §7.3.1.3)."""


class Description(NamedTuple):
    """Where media may be sent to: numeric hosts in canonical form, with ANY_PORT where the port is not known
    beforehand; and the ICE user name fragments that candidates belong to."""

    addresses: frozenset[Address]
    ufrags: frozenset[bytes]


class Content(NamedTuple):
    """What a body holds: a session description, trickled candidates, both or neither."""

    session: Description | None = None
    trickled: Description | None = None


NOTHING = Content()


def read_body(content_type: bytes, body: bytes) -> Content:
    """The descriptions of a SIP body with this Content-Type, those of a multipart body together (RFC 5621 §3)."""
    if not body or len(body) > BODY_BYTES_MAX:
        return NOTHING
    sessions: list[Description] = []
    fragments: list[Description] = []
    bodies = [(content_type, body)]
    for _ in range(PARTS_MAX):
        if not bodies:
            break
        of_type, data = bodies.pop(0)
        media_type = of_type.partition(b";")[0].strip().lower()
        if media_type == SESSION_TYPE:
            sessions.append(read(data))
        elif media_type == FRAGMENT_TYPE:
            fragments.append(read(data))
        elif media_type.startswith(b"multipart/"):
            bodies += _parts(of_type, data)
    return Content(_together(sessions), _together(fragments))


def read(data: bytes) -> Description:
    """The addresses of one description or fragment, at most ADDRESSES_MAX."""
    reader = _Reader()
    for match in islice(_LINE.finditer(data[:BODY_BYTES_MAX]), LINES_MAX):
        _READ[match[1]](reader, match[2])
    reader.end_media()
    return Description(frozenset(reader.addresses), frozenset(reader.ufrags))


def _parts(content_type: bytes, data: bytes) -> list[tuple[bytes, bytes]]:
    """The parts of a multipart body with their types (RFC 2046 §5.1); an encoded one is left out."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        return []
    parts: list[tuple[bytes, bytes]] = []
    delimiter = b"\n--" + (found[1] or found[2])
    for part in (b"\n" + data).split(delimiter, PARTS_MAX + 1)[1 : PARTS_MAX + 1]:
        if part.startswith(b"--"):
            break
        head, body = _split(part)
        of_type = _PART_TYPE.search(head)
        if of_type is not None and _PART_ENCODED.search(head) is None:
            parts.append((of_type[1], body))
    return parts


def _split(part: bytes) -> tuple[bytes, bytes]:
    blank = _BLANK_LINE.search(part)
    return (part, b"") if blank is None else (part[: blank.start()], part[blank.end() :])


def _together(descriptions: Iterable[Description]) -> Description | None:
    found = list(descriptions)
    if not found:
        return None
    addresses = (address for description in found for address in description.addresses)
    ufrags = (ufrag for description in found for ufrag in description.ufrags)
    return Description(frozenset(islice(addresses, ADDRESSES_MAX)), frozenset(ufrags))


class _Reader:
    """What has been read so far: the connection of the session, and the media line that is being read."""

    def __init__(self) -> None:
        self.addresses: set[Address] = set()
        self.ufrags: set[bytes] = set()
        self._session_host = ""
        self._is_in_media = False
        self._media_host = ""
        self._ports: list[int] = []
        self._rtcp: Address | None = None
        self._is_rtp = False

    def connection(self, value: bytes) -> None:
        """`c=IN IP4 192.0.2.1` (RFC 8866 §5.7)."""
        host = _connection_host(value)
        if self._is_in_media:
            self._media_host = host
        else:
            self._session_host = host

    def media(self, value: bytes) -> None:
        """`m=audio 49170/2 RTP/AVP 0` (RFC 8866 §5.14); port 0 is no media at all (RFC 3264 §6)."""
        self.end_media()
        fields = value.split(None, 3)
        port, _, count = fields[1].partition(b"/") if len(fields) > 2 else (b"", b"", b"")
        self._is_in_media = True
        self._is_rtp = len(fields) > 2 and b"RTP" in fields[2]
        first = _port(port)
        pairs = min(_port(count) or 1, PORTS_PER_MEDIA_MAX)
        step = 2 if self._is_rtp else 1
        self._ports = [first + step * number for number in range(pairs)] if first else []

    def rtcp(self, value: bytes) -> None:
        """`a=rtcp:53020 IN IP4 192.0.2.1`, or the port alone (RFC 3605 §2.1)."""
        port, _, connection = value.strip().partition(b" ")
        self._rtcp = Address(_connection_host(connection), _port(port))

    def candidate(self, value: bytes) -> None:
        """`a=candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host` (RFC 8839 §5.1); raddr is nobody's peer."""
        fields = value.split(None, 32)
        if len(fields) < 8 or fields[6] != b"typ":
            return
        host, port = _host(fields[4]), _port(fields[5])
        extensions = dict(zip(fields[8::2], fields[9::2], strict=False))
        if fields[7] in _MAPPED_TYPES or extensions.get(b"tcptype") == b"active":
            # The port that a peer will see is not this one (RFC 8445 §7.3.1.3, RFC 6544 §4.5).
            port = ANY_PORT
        elif not port:
            return
        self._add(host, port)

    def ufrag(self, value: bytes) -> None:
        """`a=ice-ufrag:8hhY` (RFC 8839 §5.4)."""
        if len(self.ufrags) < UFRAGS_MAX:
            self.ufrags.add(value.strip()[:UFRAG_BYTES_MAX])

    def end_media(self) -> None:
        """A media line with all its attributes is read: its own address or else the session's counts."""
        host = self._media_host or self._session_host
        for port in self._ports:
            self._add(host, port)
            if self._is_rtp and self._rtcp is None:
                self._add(host, port + 1)
        if self._ports and self._rtcp is not None and self._rtcp.port:
            self._add(self._rtcp.host or host, self._rtcp.port)
        self._media_host, self._ports, self._rtcp = "", [], None

    def _add(self, host: str, port: int) -> None:
        if host and port < 65536 and len(self.addresses) < ADDRESSES_MAX:
            self.addresses.add(Address(host, port))


_READ = {
    b"c=": _Reader.connection,
    b"m=": _Reader.media,
    b"a=candidate:": _Reader.candidate,
    b"a=rtcp:": _Reader.rtcp,
    b"a=ice-ufrag:": _Reader.ufrag,
}


def _connection_host(value: bytes) -> str:
    fields = value.split(None, 3)
    if len(fields) != 3 or fields[0].upper() != b"IN" or fields[1].upper() not in (b"IP4", b"IP6"):
        return ""
    return _host(fields[2].partition(b"/")[0])


def _host(text: bytes) -> str:
    """A numeric host in canonical form; empty for a name, a scoped address and the unspecified one."""
    if len(text) > 45 or b"%" in text:
        return ""
    try:
        host = text.decode("ascii")
        if b":" not in text:
            # In brackets is_numeric would let it pass.
            return host if host[-1:].isdigit() and host[:1].isdigit() and is_numeric(host) and host != "0.0.0.0" else ""
        address = canonical_ip(ipaddress.IPv6Address(host))
    except ValueError:
        return ""
    return "" if address.is_unspecified else str(address)


def _port(text: bytes) -> int:
    """A port; 0 for what is none."""
    number = int(text) if text.isdigit() and len(text) < 6 else 0
    return number if number < 65536 else 0
