"""REGISTER, MESSAGE and calls of many browsers through a server to a SIP server over UDP, all in this process."""

from __future__ import annotations

import base64
import itertools
import os
import struct
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket
from gevent.event import AsyncResult

from tests.bench.servers import DOMAIN

SDP = (
    "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"
    + "".join(
        f"a=candidate:{number} 1 udp 2122260223 192.0.2.1 {50000 + number} typ host generation 0\r\n"
        for number in range(20)
    )
)
MASK = os.urandom(4)


class Backend:
    """A SIP server that says yes to everything, at once."""

    def __init__(self, port: int = 0) -> None:
        self.socket: Any = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", port))
        self.port = self.socket.getsockname()[1]
        self._greenlet = gevent.spawn(self._serve)

    def _serve(self) -> None:
        while True:
            data, source = self.socket.recvfrom(65536)
            if not data.startswith((b"ACK ", b"SIP/2.0")):
                self.socket.sendto(self._answer(data), source)

    def _answer(self, request: bytes) -> bytes:
        method = request.partition(b" ")[0]
        lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        kept = [line for line in lines if line.startswith((b"Via:", b"From:", b"Call-ID:", b"CSeq:", b"Record-Route:"))]
        to = next(line for line in lines if line.startswith(b"To:"))
        kept.append(to if b";tag=" in to else to + b";tag=far")
        body = b""
        if method == b"REGISTER":
            kept += [line + b";expires=600" for line in lines if line.startswith(b"Contact:")]
            kept += [line for line in lines if line.startswith(b"Path:")]
            kept += [b"Require: outbound", b"Supported: path, outbound"]
        elif method == b"INVITE":
            body = SDP.encode()
            kept += [b"Contact: <sip:far@127.0.0.1:%d>" % self.port, b"Content-Type: application/sdp"]
        return b"\r\n".join([b"SIP/2.0 200 OK", *kept, b"Content-Length: %d" % len(body), b"", body])

    def close(self) -> None:
        """Stop answering."""
        self._greenlet.kill()
        self.socket.close()


class Browser:
    """One WebSocket; `ask` sends a request and gives its final answer."""

    _numbers = itertools.count(1)

    def __init__(self, port: int) -> None:
        self.number = next(self._numbers)
        self.host = f"b{self.number:x}.invalid"
        self.cseq = 0
        self._waiting: dict[bytes, AsyncResult] = {}
        self.socket: Any = socket.create_connection(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: sip\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(4096)
        if not head.startswith(b"HTTP/1.1 101"):
            raise AssertionError(head[:200])
        self._buffer = head.partition(b"\r\n\r\n")[2]
        self._reader = gevent.spawn(self._read)

    def _read(self) -> None:
        while True:
            data = self.socket.recv(65536)
            if not data:
                return
            self._buffer += data
            while (frame := self._frame()) is not None:
                self._received(frame)

    def _frame(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        size, start = buffer[1] & 127, 2
        if size == 126:
            size, start = struct.unpack_from("!H", buffer, 2)[0], 4
        if len(buffer) < start + size:
            return None
        self._buffer = buffer[start + size :]
        return buffer[start : start + size]

    def _received(self, message: bytes) -> None:
        if message.startswith(b"SIP/2.0 1") or not message.startswith(b"SIP/2.0 "):
            return
        branch = message.partition(b"branch=")[2].partition(b"\r\n")[0].partition(b";")[0]
        waiting = self._waiting.pop(branch, None)
        if waiting is not None:
            waiting.set(message)

    def send(self, message: str) -> None:
        """One masked text frame."""
        data = message.encode()
        size = len(data)
        head = struct.pack("!BB", 0x81, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x81, 0xFE, size)
        repeated = (MASK * (size // 4 + 1))[:size]
        masked = (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
        self.socket.sendall(head + MASK + masked)

    def ask(self, method: str, uri: str, *more: str, call: str, to_tag: str = "", body: str = "") -> bytes:
        """Send a request as JsSIP writes it; returns the final answer. Raises AssertionError when none comes."""
        self.cseq += 1
        branch = f"z9hG4bK{self.number}x{self.cseq}"
        waiting = self._waiting[branch.encode()] = AsyncResult()
        self.send(self.request(method, uri, branch, self.cseq, *more, call=call, to_tag=to_tag, body=body))
        answer: bytes | None = waiting.wait(30)
        if answer is None or not answer.startswith(b"SIP/2.0 200"):
            raise AssertionError(f"{method}: {(answer or b'no answer')[:300]!r}")
        return answer

    def request(
        self, method: str, uri: str, branch: str, cseq: int, *more: str, call: str, to_tag: str = "", body: str = ""
    ) -> str:
        """The bytes of a request."""
        to = f"<sip:u{self.number}@{DOMAIN}>" if method == "REGISTER" else f"<sip:far@{DOMAIN}>{to_tag}"
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/WS {self.host};branch={branch}",
            "Max-Forwards: 69",
            f"To: {to}",
            f"From: <sip:u{self.number}@{DOMAIN}>;tag=t{self.number}",
            f"Call-ID: {call}",
            f"CSeq: {cseq} {method}",
            *more,
            "Allow: INVITE,ACK,CANCEL,BYE,UPDATE,MESSAGE,OPTIONS,REFER,INFO,NOTIFY",
            "Supported: path,gruu,outbound",
            "User-Agent: JsSIP 3.13.8",
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join([*lines, "", body])

    @property
    def contact(self) -> str:
        """As JsSIP writes it in calls."""
        return f"Contact: <sip:u{self.number}@{self.host};transport=ws;ob>"

    def register(self) -> None:
        """REGISTER, or its refresh."""
        instance = f'+sip.instance="<urn:uuid:6a1d0a64-8a5c-4c8e-a9c7-{self.number:012x}>"'
        contact = f"Contact: <sip:u{self.number}@{self.host};transport=ws>;+sip.ice;reg-id=1;{instance};expires=600"
        self.ask("REGISTER", f"sip:{DOMAIN}", contact, "Expires: 600", call=f"reg-{self.number}")

    def message(self) -> None:
        """One MESSAGE."""
        call = f"m{self.number}-{self.cseq}"
        self.ask("MESSAGE", f"sip:far@{DOMAIN}", "Content-Type: text/plain", call=call, body="x" * 100)

    def call(self) -> None:
        """INVITE, ACK, BYE."""
        call = f"c{self.number}-{self.cseq}"
        kind = "Content-Type: application/sdp"
        answer = self.ask("INVITE", f"sip:far@{DOMAIN}", self.contact, kind, call=call, body=SDP).decode()
        lines = answer.partition("\r\n\r\n")[0].split("\r\n")
        routes = [line.partition(":")[2].strip() for line in lines if line.startswith("Record-Route:")]
        routes = [part.strip() for value in routes for part in value.split(",")]
        route = tuple(f"Route: {value}" for value in reversed(routes))
        target = next(line for line in lines if line.startswith("Contact:")).partition("<")[2].partition(">")[0]
        branch = f"z9hG4bKa{self.number}x{self.cseq}"
        self.send(self.request("ACK", target, branch, self.cseq, *route, call=call, to_tag=";tag=far"))
        self.ask("BYE", target, *route, call=call, to_tag=";tag=far")

    def close(self) -> None:
        """Close the socket."""
        self._reader.kill()
        self.socket.close()


OPERATIONS: dict[str, Callable[[Browser], None]] = {
    "REGISTER": Browser.register,
    "MESSAGE": Browser.message,
    "call": Browser.call,
}


def run(browsers: list[Browser], operation: Callable[[Browser], None], total: int, at_once: int) -> float:
    """Do `total` operations, `at_once` open at a time, the browsers in turn; the seconds it took. Raises on failure."""
    numbers = iter(range(total))
    began = time.monotonic()

    def work() -> None:
        for number in numbers:
            operation(browsers[number % len(browsers)])

    gevent.joinall([gevent.spawn(work) for _ in range(at_once)], raise_error=True)
    return time.monotonic() - began
