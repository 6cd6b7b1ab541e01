"""Pieces of SIP header values: lists, URIs, name-addr, Via, CSeq (RFC 3261 §20, §25). Pure functions on bytes."""

from __future__ import annotations

import datetime
import re
from typing import NamedTuple

from wsgate.addr import Transport, canonical_host, uri_host
from wsgate.errors import ProtocolError

Parameters = dict[bytes, bytes | None]

_VALUE = re.compile(rb'(?:[^,"<]+|"(?:[^"\\]|\\.)*"|<[^>]*>)*', re.DOTALL)
_PARAMETER = re.compile(rb';[ \t]*([^\s;=,"<>]+)(?:[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s;,"]*))?[ \t]*', re.DOTALL)
# Without white space and backslashes, as nearly always: told by one look, taken apart by the next.
_PLAIN_PARAMETERS = re.compile(rb'(?:;[^\s;=,"<>]+(?:=(?:"[^"\\]*"|[^\s;,"]*))?)*\Z')
_PLAIN_PARAMETER = re.compile(rb';([^;=]+)(=?)("[^"]*"|[^;"]*)')
_PLAIN_PARTY = re.compile(rb'(?:"[^"\\]*"[ ]?|[A-Za-z0-9 ._-]*)<([^\s<>"]+)>(?:;tag=([A-Za-z0-9.!%*_+`\'~-]+))?\Z')
_CSEQ = re.compile(rb"([0-9]{1,10})[ \t]+([A-Za-z0-9.!%*_+`'~-]+)\Z")
_URI = re.compile(
    rb"(sips?|SIPS?|[sS][iI][pP][sS]?):"
    rb"(?:([^@\s<>\"]*)@)?"
    rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
    rb"(?::([0-9]{1,5}))?"
    rb"((?:;[^;?\s<>\"]*)*)"
    rb"(?:\?([^\s<>\"]*))?\Z"
)
_NAME_ADDR = re.compile(rb'(?:("(?:[^"\\]|\\.)*")[ \t]*|([^<";]*))<([^<>]*)>(.*)\Z', re.DOTALL)
_VIA = re.compile(
    rb"[ \t]*SIP[ \t]*/[ \t]*2\.0[ \t]*/[ \t]*([A-Za-z0-9.!%*_+`'~-]+)[ \t]+"
    rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)[ \t]*(?::[ \t]*([0-9]{1,5})[ \t]*)?((?:;.*)?)\Z",
    re.DOTALL | re.IGNORECASE,
)
# Whatever this takes is a Via by _VIA too; its port is below 60000.
_PLAIN_VIA = re.compile(
    rb"SIP/2\.0/[A-Za-z]+ ([A-Za-z0-9._-]+)(?::([1-5]?[0-9]{1,4}))?;branch=([^\s;,\"]+)"
    rb"(?:;[^\s;=,\"<>]+(?:=[^\s;,\"]*)?)*\Z"
)
_TOKEN = re.compile(rb"[A-Za-z0-9.!%*_+`'~-]+\Z")
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

SEQUENCE_LIMIT = 2**31
"""A CSeq number is less than this (RFC 3261 §8.1.1.5)."""


class Uri(NamedTuple):
    """A sip: or sips: URI. `user` keeps its escapes; `host` is canonical; parameter names are lower case."""

    scheme: bytes
    user: bytes | None
    host: str
    port: int | None
    parameters: Parameters
    headers: bytes | None

    @property
    def transport(self) -> Transport | None:
        """The transport parameter, or None where it is absent or unknown (RFC 3261 §19.1.1)."""
        value = self.parameters.get(b"transport")
        if value is None:
            return None
        return _TRANSPORTS.get(value.lower())

    @property
    def address_of_record(self) -> bytes:
        """`user@host`: escapes resolved, host in lower case, no port or parameters (RFC 3261 §10.3 step 5)."""
        user = unescape(self.user.partition(b":")[0]) if self.user is not None else b""
        return user + b"@" + self.host.encode()


class NameAddr(NamedTuple):
    """What From, To, Contact, Route, Record-Route and Path hold: display name, URI bytes, header parameters."""

    display: bytes
    uri: bytes
    parameters: Parameters

    def parsed_uri(self) -> Uri:
        """The URI in parts. Raises ProtocolError."""
        return parse_uri(self.uri)


class Via(NamedTuple):
    """One Via value (RFC 3261 §20.42); `transport` is the word as sent, upper case."""

    transport: bytes
    host: str
    port: int | None
    parameters: Parameters

    @property
    def branch(self) -> bytes:
        """The branch parameter, empty when absent."""
        return self.parameters.get(b"branch") or b""


_TRANSPORTS = {transport.value.lower().encode(): transport for transport in Transport}
_TRANSPORTS[b"wss"] = Transport.WSS


def split_spans(value: bytes) -> list[tuple[int, int]]:
    """Start and end of each comma-separated part, white space outside. Raises ProtocolError (RFC 3261 §7.3.1).

    The same parts as those of `split_values`, so that what was read can be edited.
    """
    if b"," not in value:
        start = len(value) - len(value.lstrip())
        end = len(value.rstrip())
        return [(start, end)] if start < end else []
    spans = []
    position = 0
    length = len(value)
    while True:
        found = _VALUE.match(value, position)
        end = found.end() if found else position
        if end < length and value[end] != 0x2C:
            raise ProtocolError("unbalanced quotes or angle brackets")
        part = value[position:end]
        stripped = part.strip()
        if stripped:
            start = position + part.index(stripped)
            spans.append((start, start + len(stripped)))
        if end >= length:
            return spans
        position = end + 1


def split_values(value: bytes) -> list[bytes]:
    """The parts of a comma-separated header value. Raises ProtocolError."""
    if b"," not in value:
        stripped = value.strip()
        return [stripped] if stripped else []
    if b'"' not in value and b"<" not in value:
        return [part for part in map(bytes.strip, value.split(b",")) if part]
    return [value[start:end] for start, end in split_spans(value)]


def parse_parameters(raw: bytes) -> Parameters:
    """`;name=value` pairs; names in lower case, the first of a name counts. Raises ProtocolError."""
    parameters: Parameters = {}
    if not raw:
        return parameters
    raw = raw.strip()
    if _PLAIN_PARAMETERS.match(raw):
        for name, equals, value in _PLAIN_PARAMETER.findall(raw):
            parameters.setdefault(name.lower(), value if equals else None)
        return parameters
    position = 0
    while position < len(raw):
        found = _PARAMETER.match(raw, position)
        if found is None:
            raise ProtocolError("malformed header parameter")
        parameters.setdefault(found[1].lower(), found[2])
        position = found.end()
    return parameters


def unescape(value: bytes) -> bytes:
    """Replace %HH (RFC 3261 §19.1.2)."""
    if b"%" not in value:
        return value
    return _ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), value)


def unquote(value: bytes | None) -> bytes:
    """A quoted-string without its quotes and backslashes; a token as it is; None as nothing."""
    if value is None:
        return b""
    if len(value) >= 2 and value[:1] == b'"' and value[-1:] == b'"':
        if b"\\" not in value:
            return value[1:-1]
        return re.sub(rb"\\(.)", rb"\1", value[1:-1], flags=re.DOTALL)
    return value


def parse_uri(raw: bytes) -> Uri:
    """A sip: or sips: URI in parts. Raises ProtocolError (RFC 3261 §19.1)."""
    found = _URI.match(raw)
    if found is None:
        raise ProtocolError("malformed or unsupported URI")
    port = int(found[4]) if found[4] else None
    if port is not None and port > 65535:
        raise ProtocolError("port out of range in URI")
    parameters: Parameters = {}
    if found[5]:
        is_escaped = b"%" in found[5]
        for piece in found[5].split(b";")[1:]:
            name, equals, value = piece.partition(b"=")
            if is_escaped:
                name, value = unescape(name), unescape(value)
            if name:
                parameters.setdefault(name.lower(), value if equals else None)
    host = canonical_host(found[3].decode("ascii"))
    if not host:
        raise ProtocolError("no host in URI")
    return Uri(found[1].lower(), found[2], host, port, parameters, found[6])


def in_request_line(uri: bytes) -> bytes:
    """The URI of a Contact or Route without what a Request-URI may not hold: `method` and headers.

    The rest stays byte for byte (RFC 3261 §16.6 step 2, §19.1.1).
    """
    found = _URI.match(uri)
    if found is None:
        return uri
    pieces = (found[5] or b"").split(b";")
    kept = [piece for piece in pieces if unescape(piece.partition(b"=")[0]).lower() != b"method"]
    if found[6] is None and len(kept) == len(pieces):
        return uri
    return uri[: found.end(4) if found[4] else found.end(3)] + b";".join(kept)


def parse_name_addr(raw: bytes) -> NameAddr:
    """name-addr or addr-spec with header parameters. Raises ProtocolError (RFC 3261 §20.10)."""
    raw = raw.strip()
    found = _NAME_ADDR.match(raw)
    if found is not None:
        return NameAddr((found[1] or found[2] or b"").strip(), found[3].strip(), parse_parameters(found[4]))
    uri, semicolon, rest = raw.partition(b";")
    if b"<" in uri or b">" in uri or b'"' in uri:
        raise ProtocolError("malformed name-addr")
    # Without angle brackets every parameter belongs to the header, not to the URI (RFC 3261 §20); one that is quoted
    # may well hold brackets of its own.
    return NameAddr(b"", uri.strip(), parse_parameters(semicolon + rest))


def read_party(raw: bytes) -> tuple[bytes, bytes]:
    """The URI and the tag of a From or To, each empty when absent, as `parse_name_addr` gives them.

    Raises ProtocolError.
    """
    found = _PLAIN_PARTY.match(raw)
    if found is not None:
        return found[1], found[2] or b""
    name_addr = parse_name_addr(raw)
    return name_addr.uri, name_addr.parameters.get(b"tag") or b""


def parse_via(raw: bytes) -> Via:
    """One Via value in parts. Raises ProtocolError (RFC 3261 §20.42)."""
    found = _VIA.match(raw)
    if found is None:
        raise ProtocolError("malformed Via")
    port = int(found[3]) if found[3] else None
    if port is not None and port > 65535:
        raise ProtocolError("port out of range in Via")
    return Via(found[1].upper(), canonical_host(found[2].decode("ascii")), port, parse_parameters(found[4]))


def plain_branch(raw: bytes) -> bytes | None:
    """The branch of a Via in its usual form, as `parse_via` gives it; None of any other."""
    found = _PLAIN_VIA.match(raw)
    return None if found is None else found[3]


def read_via(raw: bytes) -> tuple[bytes, str, int | None]:
    """Branch, host and port of a Via, as `parse_via` gives them. Raises ProtocolError."""
    found = _PLAIN_VIA.match(raw)
    if found is None:
        via = parse_via(raw)
        return via.branch, via.host, via.port
    host, port, branch = found.groups()
    return branch, canonical_host(host.decode("ascii")), int(port) if port else None


def with_parameters(via: bytes, name: bytes, value: bytes) -> bytes:
    """A Via value with parameter `name` set to `value`, in place where it stands, else added at the end."""
    text = b";" + name + b"=" + value
    position = via.find(b";")
    while position >= 0 and (found := _PARAMETER.match(via, position)):
        if found[1].lower() == name.lower():
            return via[: found.start()] + text + via[found.end() :]
        position = found.end()
    return via + text


def parse_cseq(raw: bytes) -> tuple[int, bytes]:
    """CSeq as number and method. Raises ProtocolError (RFC 3261 §20.16)."""
    found = _CSEQ.match(raw.strip())
    if found is None or int(found[1]) >= SEQUENCE_LIMIT:
        raise ProtocolError("malformed CSeq")
    return int(found[1]), found[2]


def date_value(wall: float) -> bytes:
    """Date (RFC 3261 §20.17): always GMT, English whatever the locale."""
    at = datetime.datetime.fromtimestamp(wall, datetime.timezone.utc)
    day, month = _DAYS[at.weekday()], _MONTHS[at.month - 1]
    return f"{day}, {at.day:02d} {month} {at.year} {at:%H:%M:%S} GMT".encode()


def is_token(value: bytes) -> bool:
    """True when `value` is a token (RFC 3261 §25.1)."""
    return _TOKEN.match(value) is not None


def host_port(host: str, port: int | None) -> bytes:
    """`host[:port]` as it stands in a URI or Via, IPv6 in brackets."""
    text = uri_host(host)
    return (text if port is None else f"{text}:{port}").encode()


def same_uri(left: bytes, right: bytes) -> bool:
    """URI equality of RFC 3261 §19.1.4; anything but sip and sips compares by its bytes."""
    if left == right:
        return True
    try:
        first, second = parse_uri(left), parse_uri(right)
    except ProtocolError:
        return False
    if (first.scheme, first.host, first.port) != (second.scheme, second.host, second.port):
        return False
    if (first.user is None) != (second.user is None):
        return False
    if first.user is not None and second.user is not None and unescape(first.user) != unescape(second.user):
        return False
    return _same_parameters(first.parameters, second.parameters) and _same_headers(first.headers, second.headers)


_ALWAYS_COMPARED = (b"user", b"ttl", b"method", b"maddr", b"transport")


def _same_parameters(left: Parameters, right: Parameters) -> bool:
    for name in left.keys() & right.keys():
        if (left[name] or b"").lower() != (right[name] or b"").lower():
            return False
    return all((name in left) == (name in right) for name in _ALWAYS_COMPARED)


def _same_headers(left: bytes | None, right: bytes | None) -> bool:
    return sorted((left or b"").split(b"&")) == sorted((right or b"").split(b"&"))
