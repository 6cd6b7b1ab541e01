"""A SIP server over TCP or TLS that only does what a test says."""

from __future__ import annotations

import re
import select
import socket
import ssl
import time

from tests.interop.process import PATIENCE_SECONDS

LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)


class Line:
    """One connection; `source` is its far end."""

    def __init__(self, connection: socket.socket, source: tuple[str, int]) -> None:
        self.socket, self.source = connection, source
        self._buffer = b""

    def receive(self, seconds: float = PATIENCE_SECONDS) -> bytes:
        """The next message, keep-alives passed over. Raises AssertionError when none comes."""
        deadline = time.monotonic() + seconds
        while True:
            self._buffer = self._buffer.lstrip(b"\r\n")
            head, blank, _ = self._buffer.partition(b"\r\n\r\n")
            if blank:
                found = LENGTH.search(head)
                size = len(head) + 4 + (int(found[1]) if found else 0)
                if len(self._buffer) >= size:
                    message, self._buffer = self._buffer[:size], self._buffer[size:]
                    return message
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self.socket.recv(1 << 20)
            except TimeoutError:
                data = b""
            assert data, f"no message came; so far {len(self._buffer)} bytes: {self._buffer[:2000]!r}"
            self._buffer += data

    def receive_until(self, start: bytes) -> bytes:
        """The next message that begins with `start`; others are dropped."""
        while True:
            message = self.receive()
            if message.startswith(start):
                return message

    def send(self, data: bytes) -> None:
        """Send, however long it takes."""
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.sendall(data)

    def close(self) -> None:
        """Close it."""
        self.socket.close()


class StreamServer:
    """Listens on `port` of `host`; with `context` it speaks TLS."""

    def __init__(self, port: int = 0, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._context = context
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self.port: int = self._listener.getsockname()[1]
        self.lines: list[Line] = []

    def accept(self, seconds: float = PATIENCE_SECONDS) -> Line:
        """The next connection. Raises ssl.SSLError where its client does not shake hands."""
        assert self.is_wanted(seconds), "nobody connected"
        connection, source = self._listener.accept()
        if self._context is not None:
            connection.settimeout(seconds)
            connection = self._context.wrap_socket(connection, server_side=True)
        self.lines.append(Line(connection, source))
        return self.lines[-1]

    def is_wanted(self, seconds: float = 0.0) -> bool:
        """True when somebody waits to be accepted."""
        return bool(select.select([self._listener], [], [], seconds)[0])

    def close(self) -> None:
        """Close everything."""
        for line in self.lines:
            line.close()
        self._listener.close()
