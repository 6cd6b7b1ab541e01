"""TURN over TCP and TLS on real sockets (rules E1, E3, L4, P3), on ports of its own and beside HTTP."""

from __future__ import annotations

import os
import socket
import ssl as blocking_ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket as green
from gevent import ssl

from tests.loopback.turn_site import PATIENCE_SECONDS, PEER_HOST, StreamPhone, eventually, udp
from tests.loopback.websocket_peer import server_context
from tests.turn_process import listening_socket, make_server
from wsgate.addr import Address
from wsgate.guard import ANSWERED_ABOVE_LIMIT, Guard, LimitSettings
from wsgate.net import turn_stream
from wsgate.net.clock import now
from wsgate.net.port import Port, PortSettings, Speech
from wsgate.net.relay import Relay
from wsgate.net.tls import ALPN_HTTP, ALPN_TURN, ServerContext
from wsgate.net.turn_stream import MEDIA_QUEUE_BYTES, TurnStreams
from wsgate.net.upgrade import Accepted
from wsgate.settings import Switch
from wsgate.turn import stun
from wsgate.turn.stun import MessageClass, Method


class Site:
    """A TURN server with one TCP port, in this process. `heard` are connections that spoke HTTP."""

    def __init__(
        self,
        context: ServerContext | None,
        tls: Switch,
        limits: LimitSettings,
        clock: Callable[[], float] = now,
        **options: Any,
    ) -> None:
        _, self.server = make_server(("127.0.0.0/8",), 1.0, {"unauthenticated_rate": 10**8, **options})
        self.counters = self.server.counters.values
        self.guard = Guard(limits)
        self.udp = listening_socket()
        self.relay = Relay(self.server, [self.udp], clock=clock)
        self.relay.start()
        self.streams = TurnStreams(self.relay, self.guard, self.server.counters)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = self.listening.getsockname()
        self.heard = 0
        rows = {Speech.STUN: self.streams.speak, Speech.HTTP: self._http}
        settings = PortSettings(tls, handshake_timeout=PATIENCE_SECONDS)
        self.port = Port(
            "test",
            [self.listening],
            lambda: settings,
            context,
            self.guard,
            self.server.counters,
            rows,
            stun_in_clear=True,
        )
        self.port.start()

    def _http(self, _accepted: Accepted) -> None:
        self.heard += 1

    def close(self) -> None:
        self.port.stop_accepting()
        self.port.serving.kill()
        self.streams.stop()
        self.relay.stop()
        self.udp.close()

    def connect(self, tls: bool = False, alpn: tuple[str, ...] = ()) -> Any:
        sock: Any = green.create_connection(self.address, timeout=PATIENCE_SECONDS)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if alpn:
                context.set_alpn_protocols(list(alpn))
            sock = context.wrap_socket(sock)
        return sock


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(tls: Switch = Switch.OFF, limits: LimitSettings | None = None, **options: Any) -> Site:
        context = None
        if tls is not Switch.OFF:
            server_context(tmp_path, "turn.test")
            files = str(tmp_path / "turn.test.pem"), str(tmp_path / "turn.test.key")
            context = ServerContext(*files, alpn_protocols=(*ALPN_TURN, ALPN_HTTP))
        sites.append(Site(context, tls, limits or LimitSettings(connections_per_address=5000), **options))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


def closed(sock: Any) -> bool:
    """True when the other side closed the connection."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return True


@pytest.mark.parametrize("tls", [False, True], ids=["TCP", "TLS"])
@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 171, b"x" * 1400, b"x" * 65000], ids=len)
def test_channel_data_both_ways(make_site: Callable[..., Site], tls: bool, payload: bytes) -> None:
    """Rules E1, P3: padded on the stream, the padding zero and never at the peer."""
    site = make_site(Switch.ON if tls else Switch.OFF)
    phone, peer = StreamPhone(site.connect(tls)), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    phone.channel(0x4001, payload)
    assert peer.recvfrom(70000) == (payload, relayed)
    peer.sendto(payload, relayed)
    peer.sendto(b"next", relayed)
    assert phone.frame() == struct.pack("!HH", 0x4001, len(payload)) + payload
    assert phone.frame() == b"\x40\x01\0\x04next"


def test_padding_that_is_written_is_zero(make_site: Callable[..., Site]) -> None:
    """Rule P3."""
    site = make_site()
    phone, peer = StreamPhone(site.connect()), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    peer.sendto(b"\xff" * 9, relayed)
    phone.socket.recv(100)
    peer.sendto(b"abc", relayed)
    assert phone.socket.recv(100) == b"\x40\x01\0\x03abc\0"


def test_data_indications_and_send(make_site: Callable[..., Site]) -> None:
    site = make_site()
    phone, peer = StreamPhone(site.connect()), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.permit(peer.getsockname())
    indication = [stun.XOR_PEER_ADDRESS(Address(*peer.getsockname())), stun.DATA(b"x" * 3001)]
    phone.socket.sendall(stun.encode(Method.SEND, MessageClass.INDICATION, os.urandom(12), indication))
    assert peer.recvfrom(4000) == (b"x" * 3001, relayed)
    peer.sendto(b"back!", relayed)
    assert stun.parse(phone.frame()).get(stun.DATA) == b"back!"


def test_any_cut_of_the_stream(make_site: Callable[..., Site]) -> None:
    """Rule E3: byte by byte, and several frames in one read."""
    site = make_site()
    phone, peer = StreamPhone(site.connect()), udp(PEER_HOST)
    phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    binding = stun.encode(Method.BINDING, MessageClass.REQUEST, b"t" * 12, [])
    for byte in binding + b"\x40\x01\0\x02hi\0\0":
        phone.socket.sendall(bytes([byte]))
        gevent.sleep(0)
    assert stun.parse(phone.frame()).get(stun.XOR_MAPPED_ADDRESS) == phone.socket.getsockname()
    assert peer.recv(10) == b"hi"
    phone.socket.sendall((binding + b"\x40\x01\0\x02hi\0\0") * 3)
    assert [stun.parse(phone.frame()).method for _ in range(3)] == [Method.BINDING] * 3
    assert [peer.recv(10) for _ in range(3)] == [b"hi"] * 3


@pytest.mark.parametrize("tls", [False, True], ids=["TCP", "TLS"])
def test_an_allocation_ends_with_its_stream(make_site: Callable[..., Site], tls: bool) -> None:
    """Rule L4: at once, and everything comes back."""
    site = make_site(Switch.ON if tls else Switch.OFF)
    phones = [StreamPhone(site.connect(tls)) for _ in range(5)]
    for phone in phones:
        phone.allocate()
    assert site.relay.relay_sockets == site.server.allocations == len(site.streams) == 5
    for phone in phones:
        phone.socket.close()
    eventually(lambda: site.relay.relay_sockets == site.server.allocations == len(site.streams) == 0)
    assert site.guard.connections == site.guard.claimed("127.0.0.1") == 0
    assert len(site.relay._paths) == 1


@pytest.mark.parametrize("data", [b"\x00\x01\x00\x02!!!!", b"\x00\x01\x00\x00!!!!", b"\x40\x00\xff\xff"])
def test_what_is_no_frame_closes(make_site: Callable[..., Site], data: bytes) -> None:
    """Rule S1; and who is not known keeps little (Q2)."""
    site = make_site()
    sock = site.connect()
    sock.sendall(stun.encode(Method.BINDING, MessageClass.REQUEST, b"t" * 12, []) + data)
    assert closed(sock)
    eventually(lambda: site.counters["turn_stream_malformed"] == 1)


def test_half_a_frame_closes_after_its_time(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule E3, with a shorter time; an allocation does not help."""
    monkeypatch.setattr(turn_stream, "PARTIAL_SECONDS", 0.2)
    monkeypatch.setattr(turn_stream, "IDLE_SECONDS", 1.0)
    site = make_site()
    phone = StreamPhone(site.connect())
    phone.allocate()
    began = time.monotonic()
    phone.socket.sendall(b"\x00")
    assert closed(phone.socket)
    assert time.monotonic() - began > 0.2
    assert site.counters["turn_stream_timeouts"] == 1
    assert site.server.allocations == 0


def test_who_does_nothing_is_closed_but_not_who_holds_an_allocation(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_stream, "IDLE_SECONDS", 1.0)
    site = make_site()
    phone, idle = StreamPhone(site.connect()), StreamPhone(site.connect())
    phone.allocate()
    assert idle.ask(Method.REFRESH).get(stun.ERROR_CODE) is not None
    assert closed(idle.socket)
    assert phone.ask(Method.REFRESH).message_class is MessageClass.SUCCESS
    assert phone.ask(Method.REFRESH, stun.LIFETIME(0)).message_class is MessageClass.SUCCESS
    assert closed(phone.socket)


def test_a_client_that_does_not_read_loses_media_not_memory(make_site: Callable[..., Site]) -> None:
    """Rule E3; others are served meanwhile."""
    site = make_site()
    lazy, other, peer = StreamPhone(site.connect()), StreamPhone(site.connect()), udp(PEER_HOST)
    lazy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    relayed = lazy.allocate()
    lazy.bind(0x4001, peer.getsockname())
    stream = next(one for one in site.streams._open if one.client.address == lazy.socket.getsockname())

    def flooded() -> bool:
        for _ in range(50):
            peer.sendto(b"x" * 1200, relayed)
        return site.counters["turn_stream_media_dropped"] > 1000

    eventually(flooded)
    assert len(stream._queue) <= MEDIA_QUEUE_BYTES + 1300
    assert other.allocate()
    received = bytearray()
    while len(received) < 10 * 1204:
        received += lazy.socket.recv(65536)
    assert received[:4] == b"\x40\x01\x04\xb0"
    # What was dropped was dropped whole: the frames still follow each other.
    assert received[1204 * 9 : 1204 * 9 + 4] == b"\x40\x01\x04\xb0"


def test_a_client_that_leaves_answers_unread_is_cut_off(make_site: Callable[..., Site]) -> None:
    site = make_site()
    lazy = StreamPhone(site.connect())
    lazy.allocate()
    binding = stun.encode(Method.BINDING, MessageClass.REQUEST, b"t" * 12, [])

    def cut() -> bool:
        try:
            lazy.socket.sendall(binding * 500)
        except OSError:
            return True
        return site.counters["turn_stream_queue_cut"] == 1

    # By amount and not by time: what the kernel holds of the answers is some megabytes.
    rounds = 0
    while not cut():
        rounds += 1
        assert rounds < 500
        gevent.sleep(0)
    eventually(lambda: len(site.streams) == 0)
    assert site.counters["turn_stream_queue_cut"] == 1


def test_streams_of_an_address_are_limited(make_site: Callable[..., Site]) -> None:
    """Rule Q1, by the guard."""
    site = make_site(limits=LimitSettings(connections_per_address=2))
    binding = stun.encode(Method.BINDING, MessageClass.REQUEST, b"t" * 12, [])
    phones = [StreamPhone(site.connect()) for _ in range(2)]
    for phone in phones:
        phone.socket.sendall(binding)
        assert stun.parse(phone.frame()).method == Method.BINDING
    third = site.connect()
    third.sendall(binding)
    assert closed(third)
    assert site.counters["turn_streams_refused"] == 1
    assert ANSWERED_ABOVE_LIMIT > 1


@pytest.mark.parametrize("alpn", ["stun.turn", "stun.nat-discovery"])
def test_alpn_of_turn_is_taken_and_means_turn_alone(make_site: Callable[..., Site], alpn: str) -> None:
    """Rule E1 (RFC 7443)."""
    site = make_site(Switch.ON)
    sock = site.connect(True, (alpn,))
    assert sock.selected_alpn_protocol() == alpn
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert closed(sock)
    assert site.heard == 0
    phone = StreamPhone(site.connect(True, (alpn,)))
    assert phone.allocate()


def test_alpn_of_http_or_none_leaves_it_to_the_first_byte(make_site: Callable[..., Site]) -> None:
    site = make_site(Switch.ON)
    assert StreamPhone(site.connect(True, ("h2", "http/1.1"))).allocate()
    assert StreamPhone(site.connect(True)).allocate()
    sock = site.connect(True, ("h2", "http/1.1"))
    assert sock.selected_alpn_protocol() == "http/1.1"
    sock.sendall(b"GET")
    eventually(lambda: site.heard == 1)


def expected(byte: int, tls: Switch, *, within_tls: bool) -> str:
    """What a first byte leads to (RFC 7983; RFC 8446; the initials of HTTP methods)."""
    if byte <= 3:
        return "STUN"
    if byte == 0x16 and not within_tls:
        return "TLS"
    http = 0x41 <= byte <= 0x5A and (within_tls or tls is Switch.AUTO)
    return "HTTP" if http else "closed"


@pytest.mark.parametrize("within_tls", [False, True], ids=["TCP", "within TLS"])
@pytest.mark.parametrize("tls", [Switch.AUTO, Switch.ON])
def test_all_256_first_bytes(make_site: Callable[..., Site], tls: Switch, within_tls: bool) -> None:
    """DESIGN, Ports; E1: on TCP and on the decrypted bytes. With `tls = on` TURN alone is served in the clear."""
    site = make_site(tls)
    names = {
        "turn_streams_opened": "STUN",
        "listener_tls_failed": "TLS",
        "listener_unknown_first_byte": "closed",
    }
    for byte in range(256):
        before, heard = dict(site.counters), site.heard
        sock = site.connect(within_tls)
        sock.sendall(bytes([byte]) + b"\xff\xff\xff\xff\xff\xff\xff")

        def outcome(before: dict[str, int] = before, heard: int = heard) -> list[str]:
            found = [name for key, name in names.items() if site.counters[key] > before.get(key, 0)]
            return [*found, *(["HTTP"] if site.heard > heard else [])]

        eventually(outcome)
        assert outcome() == [expected(byte, tls, within_tls=within_tls)], hex(byte)
        sock.close()


def test_the_blocking_client_of_the_standard_library(make_site: Callable[..., Site]) -> None:
    """TLS 1.3 tickets and the like do not stand in the way of a client that is not gevent's."""
    site = make_site(Switch.ON)
    context = blocking_ssl.SSLContext(blocking_ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, blocking_ssl.CERT_NONE

    def ask() -> bytes:
        with socket.create_connection(site.address, PATIENCE_SECONDS) as raw, context.wrap_socket(raw) as sock:
            sock.sendall(stun.encode(Method.BINDING, MessageClass.REQUEST, b"t" * 12, []))
            return sock.recv(100)

    answer = gevent.get_hub().threadpool.apply(ask)
    assert stun.parse(answer).method == Method.BINDING


@pytest.mark.parametrize("tls", [False, True], ids=["TCP", "TLS"])
def test_an_office_behind_one_address_gets_through(make_site: Callable[..., Site], tls: bool) -> None:
    """Rule S4: over a stream nothing is lost by the bucket, which holds a fifth of these challenges."""
    site = make_site(Switch.ON if tls else Switch.OFF, unauthenticated_rate=512)
    phones = [StreamPhone(site.connect(tls)) for _ in range(20)]
    done = gevent.joinall([gevent.spawn(phone.allocate) for phone in phones], timeout=2 * PATIENCE_SECONDS)
    assert [one.exception for one in done] == [None] * 20
    assert site.server.allocations == 20
    assert site.server.counters.values["turn_unauthenticated_limited"] > 0
