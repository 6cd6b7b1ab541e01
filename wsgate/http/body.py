"""The bodies of HTTP/1.x messages in any cut of bytes: where they end, and chunked by the letter of RFC 9112 §7.1.

A chunked body is taken apart and chunked anew, so that nothing of the sender's own framing, extensions included,
reaches the receiver.
"""

from __future__ import annotations

import enum
import re

from wsgate.errors import ProtocolError
from wsgate.http.head import MAX_FIELDS, Body, BodyKind, Fields, HeadError, field_line

MAX_CHUNK_LINE_BYTES = 256
"""Of the line before a chunk: its size, and extensions, which are thrown away."""

MAX_EXTENSION_BYTES = 16384
"""Of all chunk extensions of one body together."""

MAX_TRAILER_BYTES = 8192
"""Of all trailer fields together."""

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})(;[\t\x20-\x7e\x80-\xff]*)?")


class _Part(enum.Enum):
    """What comes next of a chunked body."""

    SIZE = "the line with the size of a chunk"
    DATA = "the bytes of a chunk"
    DATA_END = "CRLF behind them"
    TRAILER = "trailer fields and the blank line"
    COMPLETE = "nothing"


class BodyReader:
    """One body: give it bytes, take the payload. `complete` when the last byte was there; `rest` came behind it."""

    __slots__ = ("_buffer", "_extension_bytes", "_kind", "_left", "_part", "_trailer_bytes", "_trailers", "rest")

    def __init__(self, body: Body) -> None:
        self.rest = b""
        self._kind = body.kind
        self._left = body.length
        self._buffer = b""
        self._part = _Part.SIZE if body.kind is BodyKind.CHUNKED else _Part.DATA
        if body.kind is BodyKind.NONE:
            self._part = _Part.COMPLETE
        self._extension_bytes = self._trailer_bytes = 0
        self._trailers: list[tuple[str, str]] = []

    @property
    def complete(self) -> bool:
        """True when the body has ended."""
        return self._part is _Part.COMPLETE

    @property
    def trailers(self) -> Fields:
        """The trailer fields of a chunked body that is complete."""
        return tuple(self._trailers)

    def receive(self, data: bytes) -> bytes:
        """The payload in `data`. Raises ProtocolError when the framing is broken."""
        if self._part is _Part.COMPLETE:
            self.rest += data
            return b""
        if self._kind is BodyKind.UNTIL_END:
            return data
        if self._kind is BodyKind.CHUNKED:
            return self._receive_chunked(data)
        payload, self.rest = data[: self._left], data[self._left :]
        self._left -= len(payload)
        if not self._left:
            self._part = _Part.COMPLETE
        return payload

    def receive_eof(self) -> None:
        """TCP has ended. Raises ProtocolError when the body had not."""
        if self._kind is BodyKind.UNTIL_END:
            self._part = _Part.COMPLETE
        elif self._part is not _Part.COMPLETE:
            raise ProtocolError("the body ends early")

    def _receive_chunked(self, data: bytes) -> bytes:
        data, at, pieces = self._buffer + data, 0, []
        self._buffer = b""
        while self._part is not _Part.COMPLETE:
            if self._part is _Part.DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
                self._part = _Part.DATA_END
            end = self._line_end(data, at)
            if end < 0:
                self._buffer = data[at:]
                break
            self._line(data[at:end])
            at = end + 2
        if self._part is _Part.COMPLETE:
            self.rest = data[at:]
        return b"".join(pieces)

    def _line_end(self, data: bytes, at: int) -> int:
        """Where the CRLF of the next line stands; -1 when it is still to come."""
        limit = {_Part.DATA_END: 0, _Part.SIZE: MAX_CHUNK_LINE_BYTES}.get(self._part, MAX_TRAILER_BYTES)
        end = data.find(b"\r\n", at, at + limit + 2)
        if end < 0 and (len(data) - at > limit + 1 or (limit == 0 and data[at : at + 1] not in (b"", b"\r"))):
            raise ProtocolError("a line of a chunked body is too long or does not end with CRLF")
        if b"\n" in data[at : end if end >= 0 else len(data)]:
            raise ProtocolError("a lone LF in the framing of a chunked body")
        return end

    def _line(self, line: bytes) -> None:
        """One whole line of the framing, without CRLF."""
        if self._part is _Part.DATA_END:
            self._part = _Part.SIZE
        elif self._part is _Part.SIZE:
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                raise ProtocolError("malformed size of a chunk")
            self._extension_bytes += len(match[2] or b"")
            if self._extension_bytes > MAX_EXTENSION_BYTES:
                raise ProtocolError("too many chunk extensions")
            self._left = int(match[1], 16)
            self._part = _Part.DATA if self._left else _Part.TRAILER
        elif line:
            self._trailer_bytes += len(line) + 2
            if self._trailer_bytes > MAX_TRAILER_BYTES or len(self._trailers) >= MAX_FIELDS:
                raise ProtocolError("too many trailer fields")
            try:
                self._trailers.append(field_line(line + b"\r\n"))
            except HeadError as error:
                raise ProtocolError(f"in the trailer: {error}") from None
        else:
            self._part = _Part.COMPLETE


def chunk(payload: bytes) -> bytes:
    """One chunk of at least one byte."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def last_chunk(trailers: Fields = ()) -> bytes:
    """The end of a chunked body."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in trailers)
    return f"0\r\n{lines}\r\n".encode("latin-1")
