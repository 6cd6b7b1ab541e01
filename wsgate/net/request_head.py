"""The head of an HTTP request off its socket, line by line: what pywsgi reads from, and its message class."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from wsgate.http.head import MAX_FIELDS, HeadError, field_line
from wsgate.ws.handshake import MAX_HEAD_BYTES, values


class HeadBuffer:
    """What pywsgi reads from, in place of a buffered file: bounded, and what is left over can be taken."""

    __slots__ = ("_buffer", "_head_bytes", "_socket", "closed")

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self._buffer = b""
        self._head_bytes = 0
        self.closed = False

    def begin(self) -> None:
        """The next head may be MAX_HEAD_BYTES long."""
        self._head_bytes = 0

    def peek(self) -> bytes:
        """What is buffered, at least one byte; empty at the end of TCP."""
        if not self._buffer:
            self._buffer = self._socket.recv(4096)
        return self._buffer

    def take(self) -> bytes:
        """The bytes behind the head; they are no longer here."""
        data, self._buffer = self._buffer, b""
        return data

    def put_back(self, data: bytes) -> None:
        """What was taken and belongs to the next request."""
        self._buffer = data + self._buffer

    def receive(self, size: int) -> bytes:
        """What is there of a body, up to `size` bytes where nothing is buffered; empty at the end of TCP."""
        return self.take() or self._socket.recv(size)

    def readline(self, limit: int = MAX_HEAD_BYTES) -> bytes:
        """One line with its end, or what there is at the end of TCP. Raises HeadError 431."""
        while (end := self._buffer.find(b"\n")) < 0 and len(self._buffer) < limit:
            data = self._socket.recv(4096)
            if not data:
                break
            self._buffer += data
        size = min(limit, end + 1 if end >= 0 else len(self._buffer))
        line, self._buffer = self._buffer[:size], self._buffer[size:]
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise HeadError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head is too long")
        return line

    def read(self, size: int) -> bytes:
        """`size` bytes of a body, fewer at the end of TCP."""
        while len(self._buffer) < size:
            data = self._socket.recv(4096)
            if not data:
                break
            self._buffer += data
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def close(self) -> None:
        """No more requests on this connection."""
        self.closed = True


class HeaderFields:
    """The header fields of a request, read strictly (RFC 9112 §5); what pywsgi asks of its message class."""

    __slots__ = ("fields", "status")

    def __init__(self, buffer: HeadBuffer) -> None:
        """Raises HeadError."""
        self.status = ""
        read: list[tuple[str, str]] = []
        while (line := buffer.readline()) != b"\r\n":
            read.append(field_line(line))
            if len(read) > MAX_FIELDS:
                raise HeadError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields")
        self.fields = tuple(read)

    def get(self, name: str, default: str | None = None) -> str | None:
        """The first value of `name`."""
        return next(iter(values(self.fields, name.lower())), default)

    getheader = get

    @property
    def typeheader(self) -> str | None:
        """Content-Type."""
        return self.get("content-type")

    @property
    def headers(self) -> Iterator[str]:
        """The fields as lines."""
        return (f"{name}: {value}\r\n" for name, value in self.fields)
