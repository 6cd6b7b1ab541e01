"""The backend side over real sockets on 127.0.0.1: UDP, TCP, TLS, and WebSocket in the client role."""

from __future__ import annotations

import datetime
import itertools
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket as gevent_socket
from gevent import ssl
from gevent.pywsgi import WSGIServer
from gevent.server import StreamServer
from geventwebsocket.handler import WebSocketHandler

from tests.certificates import Authority
from wsgate.addr import Address, Hop, Transport
from wsgate.certificate import self_signed
from wsgate.metrics import Counters
from wsgate.net import backend_codec, backend_stream
from wsgate.net.backend import BackendLimits, BackendSockets
from wsgate.net.backend_codec import StreamLimits
from wsgate.net.datagram import DATAGRAMS_PER_TURN
from wsgate.net.tls import ClientContexts, client_context, server_context
from wsgate.sip.targets import BackendSettings, Target
from wsgate.ws.connection import WebSocketSettings

REQUEST = b"OPTIONS sip:x SIP/2.0\r\nVia: SIP/2.0/TCP x\r\nl: 4\r\n\r\nbody"
NAME = "pbx.example.com"


def until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        gevent.sleep(0.005)


def bound(kind: socket.SocketKind, host: str = "127.0.0.1") -> socket.socket:
    one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    one.bind((host, 0))
    if kind == socket.SOCK_STREAM:
        one.listen(64)
    return one


def address(one: Any) -> Address:
    return Address(*one.getsockname()[:2])


class World:
    """A BackendSockets on loopback, and what it told."""

    def __init__(self, **settings: Any) -> None:
        udp = settings.pop("udp", None) or [bound(socket.SOCK_DGRAM)]
        listeners = [bound(socket.SOCK_STREAM), bound(socket.SOCK_STREAM)]
        self.udp, self.tcp, self.tls = address(udp[0]), *map(address, listeners)
        self.received: list[tuple[Hop, bytes, Address]] = []
        self.connected: list[tuple[Hop, Address]] = []
        self.failed: list[tuple[Hop, str]] = []
        self.heads: list[tuple[bytes, str]] = []
        self.targets: dict[tuple[Transport, Address], BackendSettings] = {}
        self.allowed = True
        self.counters = Counters()
        self.sockets = BackendSockets(
            udp,
            listeners[:1],
            self.receive,
            lambda *told: self.connected.append(told),
            lambda *told: self.failed.append(told),
            self.find,
            lambda host: self.allowed,
            self.counters,
            self.unframed,
            tls_listeners=listeners[1:],
            **settings,
        )
        self.sockets.start()

    def receive(self, hop: Hop, data: bytes, local: Address) -> None:
        self.received.append((hop, data, local))
        if data.startswith(b"RAISE"):
            raise ValueError("a bug")

    def unframed(self, hop: Hop, head: bytes, reason: str) -> None:
        self.heads.append((head, reason))
        self.sockets.send(hop, b"last words")

    def find(self, transport: Transport, where: Address) -> tuple[BackendSettings, Target] | None:
        settings = self.targets.get((transport, where))
        return None if settings is None else (settings, Target(transport, where, NAME))

    def datas(self) -> list[bytes]:
        return [data for _, data, _ in self.received]


Make = Callable[..., World]


@pytest.fixture
def make() -> Iterator[Make]:
    made = []

    def new(**settings: Any) -> World:
        made.append(World(**settings))
        return made[-1]

    yield new
    for world in made:
        world.sockets.close()
        assert len(world.sockets) == 0


class Server:
    """A TCP or TLS server of the test; `connections` are those it took, `data` what came."""

    def __init__(self, **tls_files: Any) -> None:
        self.connections: list[Any] = []
        self.data = b""
        self._server = StreamServer(("127.0.0.1", 0), self._serve, **tls_files)
        self._server.start()
        self.address = Address(*self._server.address)

    def _serve(self, connection: Any, _: Any) -> None:
        self.connections.append(connection)
        while piece := connection.recv(65536):
            self.data += piece

    def close(self) -> None:
        self._server.stop(timeout=1)


class WebSocketApp:
    """A SIP server over WebSocket by gevent-websocket."""

    def __init__(self, subprotocol: str = "sip", **tls_files: Any) -> None:
        self.subprotocol = subprotocol
        self.messages: list[Any] = []
        self.environs: list[dict[str, Any]] = []
        self.sockets: list[Any] = []
        self._server = WSGIServer(("127.0.0.1", 0), self, handler_class=WebSocketHandler, log=None, **tls_files)
        self._server.start()
        self.address = Address(*self._server.address)

    def app_protocol(self, path: str) -> str:
        return self.subprotocol

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        websocket = environ["wsgi.websocket"]
        self.environs.append(environ)
        self.sockets.append(websocket)
        while (message := websocket.receive()) is not None:
            self.messages.append(message)
            if message.startswith("OPTIONS"):
                websocket.send(message.replace("OPTIONS", "ANSWER"))
        return []

    def close(self) -> None:
        self._server.stop(timeout=1)


Start = Callable[..., Any]


@pytest.fixture
def start() -> Iterator[Start]:
    started = []

    def new(kind: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        started.append(kind(*arguments, **settings))
        return started[-1]

    yield new
    for one in started:
        one.close()


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    made = self_signed([NAME], datetime.datetime.now(datetime.timezone.utc))
    (folder / "cert.pem").write_bytes(made.certificate)
    (folder / "key.pem").write_bytes(made.private_key)
    return {"certfile": str(folder / "cert.pem"), "keyfile": str(folder / "key.pem")}


# UDP


def test_udp_both_ways(make: Make) -> None:
    world = make()
    with bound(socket.SOCK_DGRAM) as peer:
        peer.sendto(REQUEST, world.udp)
        for keep_alive in (b"\r\n\r\n", b"\0\0", b"", b"\r\n"):
            peer.sendto(keep_alive, world.udp)
        peer.sendto(b"x", world.udp)
        until(lambda: len(world.received) == 2)
        hop = Hop(Transport.UDP, address(peer))
        assert world.received[0] == (hop, REQUEST, world.udp)
        world.sockets.send(hop, b"answer")
        peer.settimeout(20)
        assert peer.recvfrom(100) == (b"answer", tuple(world.udp))
    assert world.counters.values["sip_udp_keep_alives"] == 4


def test_udp_icmp_says_failed_at_once_and_hurts_no_other(make: Make) -> None:
    """Rule N2: a target whose port is closed is noticed by its ICMP error, not by Timer B."""
    world = make()
    with bound(socket.SOCK_DGRAM) as closed:
        dead = Hop(Transport.UDP, address(closed))
    with bound(socket.SOCK_DGRAM) as peer:
        begin = time.monotonic()
        for _ in range(20):
            world.sockets.send(dead, REQUEST)
            world.sockets.send(Hop(Transport.UDP, address(peer)), b"alive")
        assert world.failed == []  # never from inside send
        until(lambda: world.failed)
        assert time.monotonic() - begin < 10  # Timer B has 32
        assert world.failed[0] == (dead, "Connection refused")
        assert {hop for hop, _ in world.failed} == {dead}
        peer.settimeout(20)
        assert [peer.recv(100) for _ in range(20)] == [b"alive"] * 20
        peer.sendto(REQUEST, world.udp)
        until(lambda: world.received)


def test_udp_too_large_or_without_a_socket_fails(make: Make) -> None:
    world = make()
    hop = Hop(Transport.UDP, world.udp)
    world.sockets.send(hop, b"x" * 65508)
    until(lambda: world.failed == [(hop, "Message too long")])
    world.sockets.send(Hop(Transport.UDP, Address("::1", 5060)), b"x")
    until(lambda: len(world.failed) == 2)


def test_udp_a_burst_is_taken_in_turns(make: Make) -> None:
    world = make()
    with bound(socket.SOCK_DGRAM) as peer:
        for n in range(3 * DATAGRAMS_PER_TURN):
            peer.sendto(b"%d" % n, world.udp)
    turns = []
    while len(world.received) < 3 * DATAGRAMS_PER_TURN:
        gevent.sleep(0)
        turns.append(len(world.received))
        assert len(turns) < 1_000_000
    steps = {later - earlier for earlier, later in itertools.pairwise(turns)}
    assert max(steps) <= DATAGRAMS_PER_TURN
    assert world.datas() == [b"%d" % n for n in range(3 * DATAGRAMS_PER_TURN)]


def test_udp_ipv6_and_a_dual_socket(make: Make) -> None:
    dual = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    dual.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    dual.bind(("::", 0))
    world = make(udp=[dual])
    for host in ("127.0.0.1", "::1"):
        with bound(socket.SOCK_DGRAM, host) as peer:
            peer.settimeout(20)
            world.sockets.send(Hop(Transport.UDP, address(peer)), host.encode())
            data, _ = peer.recvfrom(100)
            assert data == host.encode()
            peer.sendto(data, (host, world.udp.port))
            until(lambda host=host: world.received and world.received[-1][0].address.host == host)
            assert world.received[-1][0] == Hop(Transport.UDP, address(peer))
        world.sockets.send(Hop(Transport.UDP, world.received[-1][0].address), b"gone")
        until(lambda: world.failed and world.failed[-1][0] == world.received[-1][0])


def test_udp_the_answer_leaves_by_the_socket_that_heard_the_request(make: Make) -> None:
    first, second = bound(socket.SOCK_DGRAM), bound(socket.SOCK_DGRAM)
    at = address(second)
    world = make(udp=[first, second])
    with bound(socket.SOCK_DGRAM) as peer:
        peer.settimeout(20)
        peer.sendto(b"x", at)
        until(lambda: world.received)
        assert world.received[0][2] == at
        world.sockets.send(world.received[0][0], b"y")
        assert peer.recvfrom(10) == (b"y", tuple(at))


def test_a_bug_in_a_handler_costs_one_message(make: Make) -> None:
    world = make()
    with bound(socket.SOCK_DGRAM) as peer:
        peer.sendto(b"RAISE", world.udp)
        peer.sendto(b"next", world.udp)
        until(lambda: world.datas() == [b"RAISE", b"next"])
    with socket.create_connection(world.tcp) as peer:
        peer.sendall(REQUEST.replace(b"OPTIONS", b"RAISE") + REQUEST)
        until(lambda: world.datas()[-1] == REQUEST)
    assert world.counters.values["internal_errors"] == 2


# TCP


def test_tcp_in_and_the_answer_down_the_same_connection(make: Make) -> None:
    world = make()
    with socket.create_connection(world.tcp) as peer, socket.create_connection(world.tcp) as other:
        peer.sendall(REQUEST[:20])
        other.sendall(b"\r\n\r\n")
        gevent.sleep(0.01)
        peer.sendall(REQUEST[20:] + REQUEST)
        until(lambda: len(world.received) == 2 and select.select([other], [], [], 0)[0])
        hop, data, local = world.received[0]
        assert (hop.transport, hop.address, data, local) == (Transport.TCP, address(peer), REQUEST, world.tcp)
        assert len(hop.connection) == 8
        world.sockets.send(hop, b"answer")
        for one, expected in ((peer, b"answer"), (other, b"\r\n")):
            one.settimeout(20)
            assert one.recv(100) == expected
    until(lambda: any(told == (hop, "closed by the peer") for told in world.failed))
    world.failed.clear()
    world.sockets.send(hop, b"late")  # to a stranger's port nobody connects
    until(lambda: world.failed == [(hop, "the connection is gone")])


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"X sip:x SIP/2.0\r\nl: 1073741824\r\n\r\n"]
)
def test_tcp_garbage_ends_the_stream_and_nothing_else(make: Make, garbage: bytes) -> None:
    world = make()
    with socket.create_connection(world.tcp) as bad, socket.create_connection(world.tcp) as good:
        bad.sendall(REQUEST + garbage)
        bad.setblocking(False)
        until(lambda: _ended(bad))
        good.sendall(REQUEST)
        until(lambda: len(world.received) == 2)


def test_tcp_what_has_no_border_is_answered_before_the_stream_ends(make: Make) -> None:
    """Table A; RFC 3261 §18.3: also where the peer still writes, which a close with bytes unread would reset."""
    world = make()
    head = b"X sip:x SIP/2.0\r\nl: 1073741824\r\n\r\n"
    with gevent_socket.create_connection(world.tcp, timeout=20) as peer:
        peer.sendall(REQUEST + head + b"x" * 300_000)
        peer.sendall(b"x" * 100_000)
        assert peer.recv(100) == b"last words"
        assert peer.recv(100) == b""
    assert world.heads == [(head, "message too large")]
    assert world.datas() == [REQUEST]
    assert world.counters.values["sip_malformed_streams"] == 1


def test_tcp_what_has_no_head_is_not_answered(make: Make) -> None:
    world = make()
    with gevent_socket.create_connection(world.tcp, timeout=20) as peer:
        peer.sendall(b"\x16\x03\x01")
        assert peer.recv(100) == b""
    assert world.heads == []
    assert world.counters.values["sip_malformed_streams"] == 1


def _ended(one: socket.socket) -> bool:
    try:
        return one.recv(100) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_tcp_out_one_connection_for_all(make: Make, start: Start) -> None:
    world, server = make(), start(Server)
    hop = Hop(Transport.TCP, server.address)
    assert world.sockets.connection(hop) is None
    for n in range(100):
        world.sockets.send(hop, b"%03d" % n)
    until(lambda: len(server.data) == 300)
    assert server.data == b"".join(b"%03d" % n for n in range(100))
    assert len(server.connections) == 1
    until(lambda: world.connected)
    opened, local = world.connected[0]
    assert local == Address(*server.connections[0].getpeername())
    assert world.sockets.connection(hop) == (opened, local)
    world.sockets.connect(hop)
    until(lambda: len(world.connected) == 2)
    assert world.connected[1] == (opened, local)
    server.connections[0].sendall(REQUEST)
    until(lambda: world.received)
    assert world.received[0] == (opened, REQUEST, local)
    server.connections[0].shutdown(socket.SHUT_RDWR)
    until(lambda: world.failed == [(opened, "closed by the peer")])
    world.sockets.send(hop, b"again")
    until(lambda: len(server.connections) == 2)


def test_tcp_refused_says_failed(make: Make) -> None:
    world = make()
    with bound(socket.SOCK_DGRAM) as closed:
        hop = Hop(Transport.TCP, address(closed))
    world.sockets.send(hop, REQUEST)
    world.sockets.send(hop, REQUEST)
    assert world.failed == []
    until(lambda: world.failed)
    gevent.sleep(0.05)
    assert world.failed == [(hop, "Connection refused")]


def test_a_connect_that_gets_no_answer_ends_in_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_stream, "CONNECT_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(backend_stream, "HANDSHAKE_TIMEOUT_SECONDS", 0.5)
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    fillers = [socket.socket() for _ in range(4)]
    for one in fillers:
        one.setblocking(False)
        one.connect_ex(full.getsockname())
    world = make()
    silent = bound(socket.SOCK_STREAM)
    hops = [Hop(Transport.TCP, address(full)), Hop(Transport.WS, address(silent))]
    world.targets[Transport.WS, hops[1].address] = BackendSettings()
    for hop in hops:
        world.sockets.send(hop, REQUEST)
    until(lambda: len(world.failed) == 2)
    assert set(world.failed) == {(hops[0], "connect timed out"), (hops[1], "handshake timed out")}
    for one in (*fillers, full, silent):
        one.close()


def test_a_peer_that_does_not_read_is_cut_off(make: Make, start: Start) -> None:
    """Before the connection is open, and after."""
    world = make(limits=BackendLimits(stream=StreamLimits(queue_bytes=100_000)))
    listener = bound(socket.SOCK_STREAM)
    hop = Hop(Transport.TCP, address(listener))
    world.sockets.send(hop, b"x" * 100_001)
    until(lambda: world.failed == [(hop, "send queue is full")])
    world.failed.clear()
    world.sockets.connect(hop)
    until(lambda: world.connected)
    for _ in range(1000):
        world.sockets.send(hop, b"x" * 50_000)
        gevent.sleep(0)
        if world.failed:
            break
    assert world.failed == [(world.connected[0][0], "send queue is full")]
    listener.close()


def test_a_queue_is_sent_on_when_the_peer_reads_again(make: Make) -> None:
    world = make(limits=BackendLimits(stream=StreamLimits(queue_bytes=50_000_000)))
    with bound(socket.SOCK_STREAM) as listener:
        hop = Hop(Transport.TCP, address(listener))
        pieces = [bytes([n]) * 100_000 for n in range(200)]
        world.sockets.connect(hop)
        until(lambda: world.connected)
        for piece in pieces:
            world.sockets.send(hop, piece)
        peer, _ = listener.accept()
        peer.setblocking(False)
        data = bytearray()

        def read() -> bool:
            try:
                data.extend(peer.recv(1_000_000))
            except BlockingIOError:
                pass
            return len(data) == 20_000_000

        until(read)
        assert bytes(data) == b"".join(pieces)
        peer.close()


def test_keep_alive_on_outgoing_connections(make: Make, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_codec, "KEEP_ALIVE_SECONDS", (0.1, 0.2))
    world, server = make(), start(Server)
    world.sockets.connect(Hop(Transport.TCP, server.address))
    with socket.create_connection(world.tcp) as incoming:
        until(lambda: server.data.startswith(b"\r\n\r\n"))
        seen = len(server.data)
        server.connections[0].sendall(b"\r\n")
        until(lambda: len(server.data) >= seen + 4)
        assert server.data == b"\r\n\r\n" * (len(server.data) // 4)
        server.connections[0].sendall(b"\r\n" + REQUEST)
        until(lambda: world.datas() == [REQUEST])
        incoming.setblocking(False)
        with pytest.raises(BlockingIOError):
            incoming.recv(10)
    assert world.failed == []


def test_n6_connections_are_bounded_by_source_and_strangers_by_less(make: Make) -> None:
    world = make(limits=BackendLimits(incoming_per_source=3, incoming_per_stranger=1, idle_seconds_stranger=0.5))
    peers = [socket.create_connection(world.tcp) for _ in range(4)]
    until(lambda: world.counters.values["sip_connections_refused"] == 1)
    assert len(world.sockets) == 3
    for one in peers:
        one.close()
    until(lambda: len(world.sockets) == 0)
    world.allowed = False
    peers = [socket.create_connection(world.tcp) for _ in range(2)]
    until(lambda: world.counters.values["sip_connections_refused"] == 2)
    assert len(world.sockets) == 1
    until(lambda: len(world.sockets) == 0)
    until(lambda: "idle" in [reason for _, reason in world.failed])
    world.allowed = True
    peers.append(socket.create_connection(world.tcp))
    until(lambda: len(world.sockets) == 1)
    for one in peers:
        one.close()


def test_outgoing_connections_are_bounded(make: Make, start: Start) -> None:
    world = make(limits=BackendLimits(outgoing=1))
    first, second = start(Server), start(Server)
    world.sockets.connect(Hop(Transport.TCP, first.address))
    world.sockets.connect(Hop(Transport.TCP, second.address))
    until(lambda: world.failed == [(Hop(Transport.TCP, second.address), "too many connections")])


# TLS


def test_tls_verifies_and_names_the_domain(make: Make, start: Start, tls_files: dict[str, str]) -> None:
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(**tls_files)
    context.sni_callback = lambda connection, name, _: names.append(name)
    server = start(Server, ssl_context=context)
    world = make()
    hop = Hop(Transport.TLS, server.address)
    world.targets[hop[:2]] = BackendSettings(ca_file=tls_files["certfile"])
    world.sockets.send(hop, REQUEST * 2000)
    until(lambda: server.data == REQUEST * 2000)
    assert names == [NAME]
    server.connections[0].sendall(REQUEST * 50)
    until(lambda: len(world.received) == 50)
    assert world.received[0][0].transport is Transport.TLS
    assert world.received[0][0] == world.connected[0][0]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "certificate refused"),
        (
            {"server_name": "other.example.com"},
            "certificate refused: it is for pbx.example.com, not for other.example.com",
        ),
        ({"ca_file": "/nonexistent.pem"}, "cannot read the CA file"),
    ],
)
def test_tls_refuses_what_it_cannot_verify(
    make: Make, start: Start, tls_files: dict[str, str], settings: dict[str, str], reason: str
) -> None:
    server = start(Server, **tls_files)
    world = make()
    hop = Hop(Transport.TLS, server.address)
    if "server_name" in settings:
        settings = {**settings, "ca_file": tls_files["certfile"]}
    world.targets[hop[:2]] = BackendSettings(**settings)
    world.sockets.send(hop, REQUEST)
    until(lambda: world.failed)
    assert world.failed[0][0] == hop
    assert reason in world.failed[0][1]
    assert server.data == b""


@pytest.mark.parametrize("transport", [Transport.TLS, Transport.WS, Transport.WSS])
def test_only_targets_of_backends_get_tls_and_websockets(make: Make, transport: Transport) -> None:
    world = make()
    hop = Hop(transport, Address("127.0.0.1", 9))
    world.sockets.send(hop, REQUEST)
    until(lambda: world.failed == [(hop, "not a target of a backend")])


@pytest.mark.parametrize(
    ("names", "domain", "accepted"),
    [
        (["sip:pbx.example.com"], NAME, True),
        (["host.example.com", "sip:PBX.example.com"], NAME, True),
        (["PBX.Example.Com"], NAME, True),
        (["*.example.com"], NAME, False),
        (["sip:bob@pbx.example.com"], NAME, False),
        (["sips:pbx.example.com"], NAME, False),
        (["https://pbx.example.com/"], NAME, False),
        (["127.0.0.1"], "127.0.0.1", True),
        (["sip:127.0.0.1"], "127.0.0.1", False),
    ],
)
def test_n1_a_certificate_must_be_that_of_the_sip_domain(
    make: Make, start: Start, tmp_path: Path, names: list[str], domain: str, accepted: bool
) -> None:
    """RFC 5922 §7: SIP URIs and DNS names, no wildcard; `server_name` stands for another domain."""
    authority = Authority(tmp_path)
    server = start(Server, **authority.issue(*names)._asdict())
    world = make()
    hop = Hop(Transport.TLS, server.address)
    world.targets[hop[:2]] = BackendSettings(ca_file=authority.ca_file, server_name=domain)
    world.sockets.send(hop, REQUEST)
    until(lambda: world.failed or server.data)
    if accepted:
        assert (world.failed, server.data) == ([], REQUEST)
    else:
        assert "certificate refused: it is for " in world.failed[0][1]
        assert server.data == b""


def test_wss_names_are_judged_as_https_does(make: Make, start: Start, tmp_path: Path) -> None:
    """RFC 7118 §9.1: a wildcard counts for a WebSocket server."""
    authority = Authority(tmp_path)
    app = start(WebSocketApp, **authority.issue("*.example.com")._asdict())
    world = make()
    hop = Hop(Transport.WSS, app.address)
    world.targets[hop[:2]] = BackendSettings(ca_file=authority.ca_file)
    world.sockets.connect(hop)
    until(lambda: world.connected)
    world.targets[hop[:2]] = BackendSettings(ca_file=authority.ca_file, server_name="other.example.org")
    app.sockets[0].close()
    until(lambda: world.failed)
    world.sockets.send(hop, REQUEST)
    until(lambda: len(world.failed) == 2)
    assert "Hostname mismatch" in world.failed[1][1]


def test_a_client_certificate_is_shown_to_the_backend_that_asks(make: Make, start: Start, tmp_path: Path) -> None:
    """client_certificate, client_private_key; the name in the ini file is found where the supervisor put the file."""
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(*authority.issue(NAME))
    server = start(Server, ssl_context=context)
    certificate, key = authority.issue("gate.example.com")
    places = {"ca.pem": authority.ca_file, "gate.pem": certificate, "gate.key": key}
    world = make(contexts=ClientContexts(places.__getitem__))
    hop = Hop(Transport.TLS, server.address)
    world.targets[hop[:2]] = BackendSettings(ca_file="ca.pem")
    world.sockets.send(hop, REQUEST)
    until(lambda: world.failed)
    world.targets[hop[:2]] = BackendSettings(
        ca_file="ca.pem", client_certificate="gate.pem", client_private_key="gate.key"
    )
    world.sockets.send(hop, REQUEST)
    until(lambda: server.data == REQUEST)
    shown = server.connections[-1].getpeercert()
    assert ("DNS", "gate.example.com") in shown["subjectAltName"]


def test_tls_in_and_the_answer_down_the_same_connection(make: Make, tmp_path: Path) -> None:
    """[sip] tls_bind: a backend connects to us by TLS, whatever it says before the handshake is no SIP."""
    authority = Authority(tmp_path)
    context = server_context(*authority.issue("gate.example.com"))
    world = make(server_context=lambda: context)
    trusting = client_context(authority.ca_file)
    with socket.create_connection(world.tls) as clear:
        clear.sendall(REQUEST)
        clear.setblocking(False)
        until(lambda: _ended(clear))
    plain = gevent_socket.create_connection(world.tls)
    with trusting.wrap_socket(plain, server_hostname="gate.example.com") as peer:
        peer.sendall(REQUEST * 1000)
        until(lambda: len(world.received) == 1000)
        hop, data, local = world.received[-1]
        assert (hop.transport, data, local) == (Transport.TLS, REQUEST, world.tls)
        world.sockets.send(hop, b"answer")
        assert peer.recv(100) == b"answer"
    until(lambda: world.failed == [(hop, "closed by the peer")])


def test_tls_that_never_shakes_hands_ends_in_time(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backend_stream, "HANDSHAKE_TIMEOUT_SECONDS", 0.2)
    context = server_context(*Authority(tmp_path).issue("gate.example.com"))
    world = make(server_context=lambda: context)
    with socket.create_connection(world.tls) as silent:
        silent.setblocking(False)
        until(lambda: _ended(silent))
    until(lambda: len(world.sockets) == 0)
    assert world.failed == []


# Reuse of connections


def test_a_connection_that_a_server_opened_serves_both_ways_where_it_says_alias(make: Make, start: Start) -> None:
    """RFC 5923: what goes to the server's own port takes the connection that came from it."""
    world, server = make(), start(Server)
    said = b"OPTIONS sip:x SIP/2.0\r\nVia: SIP/2.0/TCP pbx:%d;branch=z9hG4bK1%s\r\nl: 0\r\n\r\n"
    hop = Hop(Transport.TCP, server.address)
    with socket.create_connection(world.tcp) as peer, socket.create_connection(world.tcp) as other:
        other.sendall(said % (server.address.port, b""))
        until(lambda: len(world.received) == 1)
        peer.sendall(said % (server.address.port, b";alias"))
        until(lambda: len(world.received) == 2)
        world.sockets.send(hop, REQUEST)
        peer.settimeout(20)
        assert peer.recv(1000) == REQUEST
        assert server.connections == []
        assert world.sockets.connection(hop) == (world.received[1][0], world.tcp)
    until(lambda: len(world.sockets) == 0)
    world.sockets.send(hop, REQUEST)  # the alias ended with its connection
    until(lambda: server.data == REQUEST)


def test_no_alias_for_a_stranger_nor_over_tls(make: Make, start: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = server_context(*authority.issue("gate.example.com"))
    world, server = make(server_context=lambda: context), start(Server)
    said = b"OPTIONS sip:x SIP/2.0\r\nVia: SIP/2.0/TCP pbx:%d;branch=z9hG4bK1;alias\r\nl: 0\r\n\r\n"
    trusting = client_context(authority.ca_file)
    plain = gevent_socket.create_connection(world.tls)
    with trusting.wrap_socket(plain, server_hostname="gate.example.com") as peer:
        peer.sendall(said % server.address.port)
        until(lambda: len(world.received) == 1)
        assert world.sockets.connection(Hop(Transport.TLS, server.address)) is None
        source = Hop(Transport.TLS, world.received[0][0].address)
        assert world.sockets.connection(source) is not None, "a phone is reached by the connection it opened"
        world.targets[source[:2]] = BackendSettings()
        assert world.sockets.connection(source) is None, "a backend is not: it has shown no certificate"
    world.allowed = False
    with socket.create_connection(world.tcp) as peer:
        peer.sendall(said % server.address.port)
        until(lambda: len(world.received) == 2)
        assert world.sockets.connection(Hop(Transport.TCP, server.address)) is None


def test_a_connection_to_what_is_no_backend_any_more_ends_when_idle(make: Make, start: Start) -> None:
    """Changing answers of the DNS leave no connection behind, and none that is in use is taken away."""
    world, kept, left = make(limits=BackendLimits(idle_seconds=0.1)), start(Server), start(Server)
    for server in (kept, left):
        world.targets[Transport.TCP, server.address] = BackendSettings()
        world.sockets.connect(Hop(Transport.TCP, server.address))
    until(lambda: len(world.connected) == 2)
    del world.targets[Transport.TCP, left.address]
    until(lambda: world.failed)
    assert [(hop.address, reason) for hop, reason in world.failed] == [(left.address, "idle")]
    assert world.sockets.connection(Hop(Transport.TCP, kept.address)) is not None


# WebSocket in the client role


@pytest.mark.parametrize("transport", [Transport.WS, Transport.WSS])
def test_websocket_client_role(make: Make, start: Start, tls_files: dict[str, str], transport: Transport) -> None:
    """Rule V1: one connection, its local address told, requests of the server come back on it."""
    app = start(WebSocketApp, **(tls_files if transport.secure else {}))
    world = make()
    hop = Hop(transport, app.address)
    world.targets[hop[:2]] = BackendSettings(ws_path="/sip?x=1", ca_file=tls_files["certfile"])
    world.sockets.connect(hop)
    until(lambda: world.connected)
    opened, local = world.connected[0]
    assert opened[:2] == hop[:2]
    environ = app.environs[0]
    assert local == Address("127.0.0.1", int(environ["REMOTE_PORT"]))
    assert environ["HTTP_HOST"] == f"{NAME}:{app.address.port}"
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/sip", "x=1")
    assert environ["HTTP_SEC_WEBSOCKET_PROTOCOL"] == "sip"
    for _ in range(50):
        world.sockets.send(hop, REQUEST)
    until(lambda: len(world.received) == 50)
    assert set(app.messages) == {REQUEST.decode()}
    assert world.received[0] == (opened, REQUEST.replace(b"OPTIONS", b"ANSWER"), local)
    assert len(app.environs) == 1
    app.sockets[0].send(b"INVITE \xff", binary=True)
    until(lambda: world.datas()[-1] == b"INVITE \xff")
    app.sockets[0].close()  # gevent-websocket sends no code
    until(lambda: world.failed)
    assert world.failed == [(opened, "WebSocket closed with 1005")]
    world.sockets.send(hop, REQUEST)  # reconnects
    until(lambda: len(app.environs) == 2)
    until(lambda: len(world.received) == 52)


def test_websocket_without_the_subprotocol_is_refused(make: Make, start: Start) -> None:
    app = start(WebSocketApp, subprotocol="chat")
    world = make()
    hop = Hop(Transport.WS, app.address)
    world.targets[hop[:2]] = BackendSettings()
    world.sockets.send(hop, REQUEST)
    until(lambda: world.failed)
    assert world.failed == [(hop, "the server did not choose the subprotocol sip")]
    assert app.messages == []


def test_a_websocket_backend_that_answers_no_ping_is_given_up(make: Make, start: Start) -> None:
    server = start(WebSocketApp)
    world = make(websocket=WebSocketSettings(ping_interval=0.1, ping_misses=1))
    hop = Hop(Transport.WS, server.address)
    world.targets[hop[:2]] = BackendSettings()
    server.sockets = _Deaf()
    world.sockets.connect(hop)
    until(lambda: world.connected)
    until(lambda: world.failed)
    assert world.failed == [(world.connected[0][0], "WebSocket closed with 1006")]


class _Deaf(list[Any]):
    """Stops the application before it reads its first frame."""

    def append(self, websocket: Any) -> None:
        gevent.sleep(5)


def test_close_says_goodbye_and_leaves_nothing(start: Start) -> None:
    app = start(WebSocketApp)
    world = World()
    hop = Hop(Transport.WS, app.address)
    world.targets[hop[:2]] = BackendSettings()
    world.sockets.connect(hop)
    until(lambda: world.connected)
    with socket.create_connection(world.tcp):
        until(lambda: len(world.sockets) == 2)
        world.sockets.close()
        until(lambda: app.sockets[0].closed)
    assert world.failed == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(world.tcp)
