"""DTLS 1.2 records in datagrams: whether they are whole, where they end, how they are put together (RFC 6347 §4.1)."""

from __future__ import annotations

from collections.abc import Iterator

DATAGRAM_BYTES = 1200
"""Of a datagram of the handshake; what clients send arrives as it was sent."""

_HEADER_BYTES = 13
_HANDSHAKE, _CLIENT_HELLO = 22, 1


def records(data: bytes) -> Iterator[bytes]:
    """The records one after the other; the last may be cut short, and less than a head is left out."""
    position = 0
    while position + _HEADER_BYTES <= len(data):
        end = position + _HEADER_BYTES + int.from_bytes(data[position + 11 : position + 13], "big")
        yield data[position:end]
        position = end


def is_whole(data: bytes) -> bool:
    """True for a datagram of DTLS records and nothing else: a memory BIO does not know where one ends."""
    if len(data) <= _HEADER_BYTES:
        return False
    return sum(map(len, records(data))) == len(data) and all(
        len(record) == _HEADER_BYTES + int.from_bytes(record[11:13], "big") and record[1] == 0xFE
        for record in records(data)
    )


def begins_with_hello(data: bytes) -> bool:
    """True when a datagram that `is_whole` begins with a ClientHello in clear."""
    return data[0] == _HANDSHAKE and data[3:5] == b"\0\0" and data[_HEADER_BYTES] == _CLIENT_HELLO


def datagrams(data: bytes) -> Iterator[bytes]:
    """The records of `data` in datagrams of at most DATAGRAM_BYTES; a larger record alone."""
    gathered = b""
    for record in records(data):
        if gathered and len(gathered) + len(record) > DATAGRAM_BYTES:
            yield gathered
            gathered = b""
        gathered += record
    if gathered:
        yield gathered
