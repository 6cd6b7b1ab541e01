"""A listener of ours on an ephemeral port, and bytes for it: what the loopback tests of net/ share."""

from __future__ import annotations

import dataclasses
import datetime
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
from gevent import socket as gevent_socket
from gevent import ssl

from wsgate.addr import parse_network
from wsgate.certificate import self_signed
from wsgate.guard import Guard, LimitSettings
from wsgate.metrics import Counters
from wsgate.net.clock import now
from wsgate.net.listener import Listener, ListenerSettings
from wsgate.net.stream import Upgrade, WebSocketStream
from wsgate.net.tls import ServerContext
from wsgate.settings import Switch
from wsgate.ws.connection import WebSocketSettings
from wsgate.ws.frames import Opcode, parse_header, serialize

LOOPBACK = (parse_network("127.0.0.0/8"),)
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
MASK = b"\x01\x02\x03\x04"

FIELDS = {
    "Host": "phone.test",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "sip",
}


class Recorder:
    """A flow handler that remembers what it was told; `act` may do something with a message."""

    def __init__(self, act: Callable[[WebSocketStream, bytes], Any] | None = None) -> None:
        self.act = act
        self.upgrades: list[Upgrade] = []
        self.streams: list[WebSocketStream] = []
        self.messages: list[bytes] = []
        self.refusals: list[bytes] = []
        self.ended: list[WebSocketStream] = []

    def opened(self, stream: WebSocketStream, upgrade: Upgrade) -> None:
        self.streams.append(stream)
        self.upgrades.append(upgrade)

    def message(self, stream: WebSocketStream, data: bytes) -> None:
        self.messages.append(data)
        if self.act is not None:
            self.act(stream, data)

    def refused(self, stream: WebSocketStream, data: bytes) -> None:
        self.refusals.append(data)

    def closed(self, stream: WebSocketStream) -> None:
        self.ended.append(stream)


def echo(stream: WebSocketStream, data: bytes) -> None:
    """Send it back."""
    stream.send(data)


def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The WSGI application: who asks, and how."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REMOTE_ADDR']} {environ['wsgate.remote'].host} {environ['wsgate.secure']}".encode()]


@dataclasses.dataclass
class Running:
    """A listener that listens."""

    listener: Listener
    handler: Recorder
    guard: Guard
    counters: Counters
    port: int
    host: str

    def connect(self) -> Any:
        """A TCP connection to it."""
        return gevent_socket.create_connection((self.host, self.port), timeout=20)

    def connect_tls(self) -> Any:
        """A TLS connection to it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(self.connect())

    def browser(self, tls: bool = False, **fields: str | None) -> Browser:
        """An open WebSocket."""
        browser = Browser(self.connect_tls() if tls else self.connect())
        status, _ = browser.ask(head(**fields))
        assert status == 101
        return browser


@contextmanager
def running(
    handler: Recorder | None = None,
    websocket: WebSocketSettings | None = None,
    limits: LimitSettings | None = None,
    context: ServerContext | None = None,
    host: str = "127.0.0.1",
    application: Callable[..., Any] = page,
    owns: Callable[[str], bool] = lambda _path: False,
    **settings: Any,
) -> Iterator[Running]:
    """A listener for the time of a test; `settings` are those of [listener NAME], tls off unless given."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, 0), family=family)
    handler = handler or Recorder()
    guard, counters = Guard(limits or LimitSettings()), Counters()
    listener = Listener(
        "test",
        ListenerSettings(**{"tls": Switch.OFF, **settings}),
        websocket or WebSocketSettings(),
        [listening],
        context,
        guard,
        handler,
        application,
        counters,
        owns=owns,
    )
    listener.start()
    try:
        yield Running(listener, handler, guard, counters, listening.getsockname()[1], host)
    finally:
        listener.stop()
    assert guard.connections == 0
    assert len(handler.ended) == len(handler.streams)


def server_context(directory: Path, name: str = "phone.test") -> ServerContext:
    """TLS with a self-signed certificate."""
    pair = self_signed([name, "127.0.0.1"], datetime.datetime.now(datetime.timezone.utc))
    certificate, private_key = directory / f"{name}.pem", directory / f"{name}.key"
    certificate.write_bytes(pair.certificate)
    private_key.write_bytes(pair.private_key)
    return ServerContext(str(certificate), str(private_key))


def head(method: str = "GET", path: str = "/ws", version: str = "HTTP/1.1", **changes: str | None) -> bytes:
    """An upgrade request; `changes` replace fields (underscores for hyphens), None leaves one out."""
    fields = dict(FIELDS) | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return ("\r\n".join([f"{method} {path} {version}", *lines]) + "\r\n\r\n").encode("latin-1")


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Let the others run until `condition` holds."""
    deadline = now() + seconds
    while not condition():
        assert now() < deadline, "it did not happen"
        gevent.sleep(0.002)


class Browser:
    """A peer that says exactly the bytes it is told, and reads frames."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_frame(self, opcode: Opcode, payload: bytes = b"", final: bool = True) -> None:
        self.send(serialize(opcode, payload, MASK, final))

    def ask(self, request: bytes) -> tuple[int, dict[str, str]]:
        """Send an HTTP request and read the head of the answer."""
        self.send(request)
        return self.read_head()

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Status, and fields by lower-case name."""
        self._fill(lambda: b"\r\n\r\n" in self.buffer)
        text, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        status, *lines = text.decode("latin-1").split("\r\n")
        return int(status.split(" ")[1]), {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }

    def read_body(self, size: int) -> bytes:
        self._fill(lambda: len(self.buffer) >= size)
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return body

    def read_frame(self) -> tuple[Opcode, bytes]:
        """The next frame; servers never mask."""
        self._fill(lambda: parse_header(self.buffer, 0, False) is not None)
        header = parse_header(self.buffer, 0, False)
        assert header is not None
        end = header.size + header.length
        self._fill(lambda: len(self.buffer) >= end)
        payload, self.buffer = self.buffer[header.size : end], self.buffer[end:]
        return Opcode(header.opcode), payload

    def read_close(self) -> int:
        """The code of the close frame, which comes next, and after which TCP ends."""
        opcode, payload = self.read_frame()
        assert opcode is Opcode.CLOSE
        assert self.read_to_end() == b""
        return int.from_bytes(payload[:2], "big")

    def read_to_end(self) -> bytes:
        """Everything until TCP ends in an orderly way."""
        while data := self.sock.recv(65536):
            self.buffer += data
        return self.buffer

    def is_cut(self) -> bool:
        """True when TCP ends, in whatever way, without another byte."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.sock.close()

    def _fill(self, enough: Callable[[], bool]) -> None:
        while not enough():
            data = self.sock.recv(65536)
            assert data, f"TCP ended after {self.buffer!r}"
            self.buffer += data
