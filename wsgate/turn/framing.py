"""STUN messages and ChannelData in a stream, however it is cut (RFC 8489 §6.2.2, RFC 8656 §12.4; rules S1, P3, E3)."""

from __future__ import annotations

from wsgate.errors import ProtocolError
from wsgate.turn.stun import HEADER_BYTES
from wsgate.turn.values import MAGIC_COOKIE

FRAME_BYTES_MAX = HEADER_BYTES + 65532
"""The longest frame that a length field can announce."""

PARTIAL_SECONDS = 30.0
"""Half a frame for so long closes the stream (rule E3)."""

_CHANNEL_HEAD_BYTES = 4
_STUN_HEAD_BYTES = 8  # length and cookie are judged before a body is waited for (rule S1)
_CONNECTION_BIND = b"\x00\x0b"
_COOKIE = MAGIC_COOKIE.to_bytes(4, "big")


class Frames:
    """Cuts a stream into frames. `bytes_max` bounds what is kept of one that has not come whole; it may be changed."""

    __slots__ = ("_buffer", "_needed", "bytes_max", "is_held", "partial_since")

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.partial_since: float | None = None
        """When the frame began that has not come whole."""
        self.is_held = False
        """A ConnectionBind was given out: what follows may be a peer's, and is cut by the next `receive` or taken."""
        self._buffer = bytearray()
        self._needed = _CHANNEL_HEAD_BYTES

    def receive(self, data: bytes | memoryview, now: float) -> list[bytes]:
        """The frames that are whole now: STUN messages, and ChannelData without its padding (rule P3).

        Raises ProtocolError where the stream must be closed: neither kind, a wrong cookie or length (rule S1), or a
        frame over `bytes_max`. Ends behind a ConnectionBind (RFC 6062 §4.3), see `is_held`.
        """
        self.is_held = False
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        start, end = 0, len(buffer)
        while end - start >= self._needed:
            size = self._frame_bytes(start)
            if size is None:
                continue
            whole = size + 3 & ~3
            if end - start < whole:
                self._needed = whole
                break
            frames.append(bytes(buffer[start : start + size]))
            start += whole
            self._needed = _CHANNEL_HEAD_BYTES
            if frames[-1][:2] == _CONNECTION_BIND:
                self.is_held = True
                break
        del buffer[:start]
        if not buffer:
            self.partial_since = None
        elif start or self.partial_since is None:
            self.partial_since = now
        return frames

    def take(self) -> bytes:
        """The bytes that are no frames; they are no longer here."""
        data = bytes(self._buffer)
        self._buffer.clear()
        self.partial_since = None
        return data

    def _frame_bytes(self, start: int) -> int | None:
        """The length of the frame that begins at `start`, padding apart; None: more of its head is needed."""
        buffer = self._buffer
        first, length = buffer[start], buffer[start + 2] << 8 | buffer[start + 3]
        if 0x40 <= first <= 0x7F:
            size = _CHANNEL_HEAD_BYTES + length
        elif first > 3 or length % 4:
            raise ProtocolError("neither STUN nor ChannelData")
        elif self._needed < _STUN_HEAD_BYTES:
            self._needed = _STUN_HEAD_BYTES
            return None
        elif buffer[start + 4 : start + 8] != _COOKIE:
            raise ProtocolError("not the magic cookie")
        else:
            size = HEADER_BYTES + length
        if size > self.bytes_max:
            raise ProtocolError("a frame longer than is allowed")
        return size
