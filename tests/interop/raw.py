"""A WebSocket client and a UDP SIP peer that send what a test says, byte for byte, and show what comes back."""

from __future__ import annotations

import base64
import hashlib
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable

from tests.interop.process import PATIENCE_SECONDS

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class HandshakeRefused(Exception):
    """The server answered the upgrade with something else than 101; `status` and `head` say what."""

    def __init__(self, status: int, head: bytes) -> None:
        super().__init__(head.decode("latin-1"))
        self.status, self.head = status, head


class RawWebSocket:
    """A WebSocket connection on a blocking socket. `source` is the local address to come from."""

    def __init__(
        self,
        address: tuple[str, int],
        path: str = "/ws",
        *,
        host: str = "",
        headers: tuple[tuple[str, str], ...] = (),
        tls: ssl.SSLContext | None = None,
        source: str = "",
        protocol: str = "sip",
        seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.seconds = seconds
        self.close_code: int | None = None
        self._buffer = b""
        host = host or f"{address[0]}:{address[1]}"
        connection = socket.create_connection(address, seconds, (source, 0) if source else None)
        self.socket = tls.wrap_socket(connection, server_hostname=host.partition(":")[0]) if tls else connection
        self.local = self.socket.getsockname()
        self._upgrade(path, host, protocol, headers)

    def _upgrade(self, path: str, host: str, protocol: str, headers: tuple[tuple[str, str], ...]) -> None:
        key = base64.b64encode(os.urandom(16))
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key.decode()}"]
        lines += [f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []
        lines += [f"{name}: {value}" for name, value in headers]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        deadline = time.monotonic() + self.seconds
        while b"\r\n\r\n" not in self._buffer:
            self._fill(deadline)
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status != 101:
            raise HandshakeRefused(status, head)
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        assert b"sec-websocket-accept: " + accept.lower() in head.lower()
        self.head = head

    def _fill(self, deadline: float) -> None:
        self.socket.settimeout(max(0.001, deadline - time.monotonic()))
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._buffer += data

    def send_frame(self, opcode: int, payload: bytes, final: bool = True) -> None:
        """One masked frame."""
        size = len(payload)
        first = (0x80 if final else 0) | opcode
        if size < 126:
            head = struct.pack("!BB", first, 0x80 | size)
        elif size < 65536:
            head = struct.pack("!BBH", first, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", first, 0x80 | 127, size)
        mask = os.urandom(4)
        repeated = (mask * (size // 4 + 1))[:size]
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
        self.socket.sendall(head + mask + masked)

    def send(self, message: bytes | str) -> None:
        """One SIP message as a text frame, or a binary one where it is not UTF-8."""
        data = message.encode() if isinstance(message, str) else message
        try:
            data.decode()
        except UnicodeDecodeError:
            self.send_frame(BINARY, data)
        else:
            self.send_frame(TEXT, data)

    def _frame(self, deadline: float) -> tuple[int, bytes]:
        def need(count: int) -> None:
            while len(self._buffer) < count:
                self._fill(deadline)

        need(2)
        opcode, size, start = self._buffer[0] & 0x0F, self._buffer[1] & 0x7F, 2
        if size == 126:
            need(4)
            size, start = struct.unpack_from("!H", self._buffer, 2)[0], 4
        elif size == 127:
            need(10)
            size, start = struct.unpack_from("!Q", self._buffer, 2)[0], 10
        need(start + size)
        payload, self._buffer = self._buffer[start : start + size], self._buffer[start + size :]
        return opcode, payload

    def receive(self, seconds: float | None = None) -> bytes | None:
        """The next message; pings are answered. None when nothing came in time or the server closed."""
        deadline = time.monotonic() + (self.seconds if seconds is None else seconds)
        while True:
            try:
                opcode, payload = self._frame(deadline)
            except (TimeoutError, ConnectionError, ssl.SSLError):
                return None
            if opcode == PING:
                self.send_frame(PONG, payload)
            elif opcode == CLOSE:
                self.close_code = struct.unpack_from("!H", payload)[0] if payload else 1005
                return None
            elif opcode in (TEXT, BINARY):
                return payload

    def receive_until(self, pleases: Callable[[bytes], bool], seconds: float = PATIENCE_SECONDS) -> bytes:
        """The next message that `pleases`; others are dropped. Raises AssertionError with those."""
        deadline = time.monotonic() + seconds
        others: list[bytes] = []
        while time.monotonic() < deadline:
            message = self.receive(max(0.01, deadline - time.monotonic()))
            if message is None:
                break
            if pleases(message):
                return message
            others.append(message)
        raise AssertionError(f"not received; close code {self.close_code}; instead: {others}")

    def close(self) -> None:
        """Close the socket without a close frame."""
        self.socket.close()


class UdpPeer:
    """A SIP server or phone over UDP that only does what a test says.

    A message that comes again (RFC 3261 §17: a request whose answer is late, a failure whose ACK is) is passed over:
    when that happens is the machine's affair. An ACK is never late for anybody, and is shown each time.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.bind((host, port))
        self.host, self.port = self.socket.getsockname()[:2]
        self._seen: set[bytes] = set()

    def receive(self, seconds: float = PATIENCE_SECONDS) -> tuple[bytes, tuple[str, int]] | None:
        """The next datagram and its source; None when none came."""
        deadline = time.monotonic() + seconds
        while select.select([self.socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
            data, source = self.socket.recvfrom(65536)
            if data not in self._seen or not data.strip() or data.startswith(b"ACK "):
                self._seen.add(data)
                return data, source[:2]
        return None

    def receive_until(self, start: bytes, seconds: float = PATIENCE_SECONDS) -> tuple[bytes, tuple[str, int]]:
        """The next datagram that begins with `start`; others are dropped. Raises AssertionError with those."""
        deadline = time.monotonic() + seconds
        others = []
        while time.monotonic() < deadline:
            got = self.receive(max(0.01, deadline - time.monotonic()))
            if got is None:
                break
            if got[0].startswith(start):
                return got
            others.append(got[0])
        raise AssertionError(f"no datagram {start!r} in {seconds} s; instead: {others}")

    def send(self, data: bytes, address: tuple[str, int]) -> None:
        """One datagram to `address`."""
        self.socket.sendto(data, address)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def sip(first_line: str, *headers: str, body: str = "") -> bytes:
    """A SIP message of a first line and headers, with its Content-Length."""
    encoded = body.encode()
    return "\r\n".join([first_line, *headers, f"Content-Length: {len(encoded)}", "", ""]).encode() + encoded


def header(message: bytes, name: str) -> str:
    """The first value of header `name` as it stands. Raises LookupError."""
    return headers(message, name)[0]


def headers(message: bytes, name: str) -> list[str]:
    """The values of all header lines `name`, in order."""
    lines = (line.partition(":") for line in message.partition(b"\r\n\r\n")[0].decode("utf-8").split("\r\n")[1:])
    return [value.strip() for field, _, value in lines if field.strip().lower() == name.lower()]


def answer(request: bytes, status: str, *extra: str, tag: str = "", body: str = "") -> bytes:
    """A response to `request` as a server makes it: Via, Record-Route, From, To, Call-ID and CSeq go back."""
    lines = [f"Via: {value}" for value in headers(request, "Via")]
    lines += [f"Record-Route: {value}" for value in headers(request, "Record-Route")]
    to = header(request, "To")
    lines += [f"From: {header(request, 'From')}", f"To: {to};tag={tag}" if tag and ";tag=" not in to else f"To: {to}"]
    lines += [f"Call-ID: {header(request, 'Call-ID')}", f"CSeq: {header(request, 'CSeq')}", *extra]
    return sip(f"SIP/2.0 {status}", *lines, body=body)
