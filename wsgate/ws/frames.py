"""WebSocket frames (RFC 6455 §5): one header in, one header out, masking, close bodies. No state, no sockets.

Every check of rule H3 that one header or one close body can decide is made here, on as few bytes as possible.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from wsgate.errors import ProtocolError


class Opcode(enum.IntEnum):
    """RFC 6455 §5.2; 8 and above are control frames."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(enum.IntEnum):
    """RFC 6455 §7.4.1 and the IANA registry. 1005 and 1006 are never on the wire."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012


class FrameError(ProtocolError):
    """The peer broke RFC 6455: the connection ends with `code` (rule H3)."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Header(NamedTuple):
    """A frame header as read: `length` payload bytes follow after the `size` bytes of the header."""

    final: bool
    opcode: int
    length: int
    mask: bytes
    size: int


MAX_CONTROL_BYTES = 125
"""Payload of a control frame (RFC 6455 §5.5)."""

MAX_REASON_BYTES = MAX_CONTROL_BYTES - 2

_OPCODES = frozenset(int(opcode) for opcode in Opcode)
_RECEIVABLE_CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})


def parse_header(data: bytes | bytearray, offset: int, masked: bool) -> Header | None:
    """The frame header at `offset`, or None while it is not whole.

    `masked` says what the peer must do: True from clients, False from servers (RFC 6455 §5.1).
    Raises FrameError 1002 (rule H3) as soon as the bytes that are there decide it; no length is ever waited for.
    """
    available = len(data) - offset
    if available < 2:
        if available == 1:
            _check_first(data[offset])
        return None
    first, second = data[offset], data[offset + 1]
    _check_first(first)
    length = second & 0x7F
    if bool(second & 0x80) is not masked:
        raise FrameError(CloseCode.PROTOCOL_ERROR, "frame is not masked" if masked else "frame is masked")
    if first & 0x08 and length > MAX_CONTROL_BYTES:
        raise FrameError(CloseCode.PROTOCOL_ERROR, "control frame is too long")
    size = 2
    if length == 126:
        size = 4
        if available < size:
            return None
        length = int.from_bytes(data[offset + 2 : offset + 4], "big")
        if length < 126:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "length is not in its shortest form")
    elif length == 127:
        size = 10
        if available < size:
            return None
        length = int.from_bytes(data[offset + 2 : offset + 10], "big")
        if length < 0x10000 or length >> 63:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "length is not in its shortest form or out of range")
    if not masked:
        return Header(first > 0x7F, first & 0x0F, length, b"", size)
    # The mask is not waited for: what the length decides (rule H3, 1009) is decided on the header without it.
    mask = bytes(data[offset + size : offset + size + 4])
    return Header(first > 0x7F, first & 0x0F, length, mask, size + 4)


def _check_first(first: int) -> None:
    if first & 0x70:
        raise FrameError(CloseCode.PROTOCOL_ERROR, "reserved bit is set")
    if first & 0x0F not in _OPCODES:
        raise FrameError(CloseCode.PROTOCOL_ERROR, "unknown opcode")
    if first & 0x88 == 0x08:
        raise FrameError(CloseCode.PROTOCOL_ERROR, "control frame is fragmented")


def apply_mask(data: bytes | bytearray, mask: bytes) -> bytes:
    """`data` XOR `mask` (4 bytes, repeated): masks and unmasks (RFC 6455 §5.3), as one operation on long integers."""
    length = len(data)
    if not length:
        return b""
    pad = mask * (length // 4) + mask[: length % 4]
    return (int.from_bytes(data, "little") ^ int.from_bytes(pad, "little")).to_bytes(length, "little")


def serialize(opcode: Opcode, payload: bytes, mask: bytes = b"", final: bool = True) -> bytes:
    """One frame; `mask` is 4 bytes in the client role, empty in the server role (RFC 6455 §5.2)."""
    first = opcode | 0x80 if final else int(opcode)
    length = len(payload)
    bit = 0x80 if mask else 0
    if length < 126:
        head = bytes((first, bit | length))
    elif length < 0x10000:
        head = bytes((first, bit | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((first, bit | 127)) + length.to_bytes(8, "big")
    return head + mask + apply_mask(payload, mask) if mask else head + payload


def parse_close(body: bytes) -> tuple[int, str]:
    """Code and reason of a close frame; 1005 where the body is empty (RFC 6455 §5.5.1, §7.4).

    Raises FrameError 1002 for a one-byte body or a bad code, 1007 for a reason that is not UTF-8 (rule H3).
    """
    if not body:
        return CloseCode.NO_STATUS, ""
    if len(body) == 1:
        raise FrameError(CloseCode.PROTOCOL_ERROR, "close body of one byte")
    code = int.from_bytes(body[:2], "big")
    if code not in _RECEIVABLE_CLOSE_CODES and not 3000 <= code <= 4999:
        raise FrameError(CloseCode.PROTOCOL_ERROR, "bad close code")
    try:
        return code, body[2:].decode()
    except UnicodeDecodeError:
        raise FrameError(CloseCode.INVALID_DATA, "close reason is not UTF-8") from None


def close_body(code: int, reason: str = "") -> bytes:
    """The body of a close frame; a reason that is too long is cut at a character (RFC 6455 §5.5.1)."""
    if code == CloseCode.NO_STATUS:
        return b""
    text = reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
    return code.to_bytes(2, "big") + text.encode()
