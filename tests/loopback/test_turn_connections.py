"""TCP allocations on real sockets (RFC 6062; rule C1): both directions, back-pressure, half-close, ends, limits."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket as green
from gevent.server import StreamServer

from tests.loopback.test_turn_stream import Site, closed
from tests.loopback.test_turn_stream import make_site as make_site  # noqa: PLC0414 - a fixture
from tests.loopback.turn_site import PATIENCE_SECONDS, StreamPhone, eventually, udp
from tests.turn_process import REALM, USER
from wsgate.addr import Address
from wsgate.net import turn_connections
from wsgate.net.turn_connections import READ_BYTES
from wsgate.settings import Switch
from wsgate.turn import stun
from wsgate.turn.stun import Integrity, MessageClass, Method

PEER_HOST = "127.0.0.2"
MEGABYTE = 1 << 20
SEVERAL_MEGABYTES = 16 * MEGABYTE


class Peer:
    """A TCP server; `accepted` are the connections that came."""

    def __init__(self) -> None:
        self.accepted: list[Any] = []
        self._server = StreamServer((PEER_HOST, 0), self._handle)
        self._server.start()
        self.address = Address(PEER_HOST, self._server.server_port)

    def _handle(self, sock: Any, _source: Any) -> None:
        sock.settimeout(PATIENCE_SECONDS)
        self.accepted.append(sock)
        gevent.sleep(3600)

    def connection(self) -> Any:
        """The one that came last."""
        eventually(lambda: self.accepted)
        return self.accepted.pop()

    def close(self) -> None:
        self._server.stop(timeout=0)


@pytest.fixture
def peer() -> Iterator[Peer]:
    found = Peer()
    yield found
    found.close()


@pytest.fixture(params=[False, True], ids=["TCP", "TLS"])
def tls(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def site(make_site: Callable[..., Site], tls: bool) -> Site:
    return make_site(Switch.ON if tls else Switch.OFF)


class Control(StreamPhone):
    """A client with a TCP allocation."""

    def __init__(self, site: Site, tls: bool) -> None:
        super().__init__(site.connect(tls))
        self.site, self.tls = site, tls
        answer = self.ask(Method.ALLOCATE, stun.REQUESTED_TRANSPORT(6))
        relayed = answer.get(stun.XOR_RELAYED_ADDRESS)
        assert relayed is not None, answer.get(stun.ERROR_CODE)
        self.relayed = relayed

    def connect(self, peer: Address) -> int:
        """Connect; the CONNECTION-ID, or the negative error code."""
        answer = self.ask(Method.CONNECT, stun.XOR_PEER_ADDRESS(peer))
        error = answer.get(stun.ERROR_CODE)
        return answer.get(stun.CONNECTION_ID) or (-error.code if error else 0)

    def attempt(self) -> tuple[Address | None, int]:
        """The next ConnectionAttempt: peer and CONNECTION-ID."""
        message = stun.parse(self.frame())
        assert (message.method, message.message_class) == (Method.CONNECTION_ATTEMPT, MessageClass.INDICATION)
        return message.get(stun.XOR_PEER_ADDRESS), message.get(stun.CONNECTION_ID) or 0

    def request(self, number: int) -> bytes:
        """The bytes of a ConnectionBind."""
        login = (stun.USERNAME(USER), stun.REALM(REALM), stun.NONCE(self.nonce))
        fields = (*login, stun.CONNECTION_ID(number))
        integrity = (Integrity.SHA1, self.key)
        return stun.encode(Method.CONNECTION_BIND, MessageClass.REQUEST, os.urandom(12), fields, integrity=integrity)

    def claim(self, number: int, behind: bytes = b"") -> Any:
        """A stream of its own that carries the connection from now on; `behind` is sent in the same write."""
        sock = self.site.connect(self.tls)
        # A nonce is made for an address and port (A2): this stream needs its own.
        other = StreamPhone(sock)
        other.ask(Method.REFRESH)
        self.nonce, mine = other.nonce, self.nonce
        sock.sendall(self.request(number) + behind)
        self.nonce = mine
        head = b""
        while len(head) < 20 or len(head) < 20 + int.from_bytes(head[2:4], "big"):
            head += sock.recv(20 - len(head) if len(head) < 20 else 20 + int.from_bytes(head[2:4], "big") - len(head))
        answer = stun.parse(head)
        assert answer.message_class is MessageClass.SUCCESS, answer.get(stun.ERROR_CODE)
        return sock


def exactly(sock: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(65536)
        assert more, f"{len(data)} of {size} bytes"
        data += more
    return data


def test_connect_and_bytes_both_ways(site: Site, peer: Peer, tls: bool) -> None:
    control = Control(site, tls)
    data = control.claim(control.connect(peer.address), b"behind the request")
    far = peer.connection()
    assert far.getpeername()[:2] == control.relayed, "the peer sees the relayed address (RFC 6062 §5.2)"
    assert exactly(far, 18) == b"behind the request"
    far.sendall(b"\0\x0bnot STUN at all")
    assert exactly(data, 17) == b"\0\x0bnot STUN at all"
    data.close()
    assert closed(far)
    far.close()
    eventually(lambda: len(site.relay.connections) == 0)
    assert control.connect(peer.address) > 0, "the same peer again"


def test_what_the_peer_said_before_the_claim_is_not_lost(site: Site, peer: Peer, tls: bool) -> None:
    control = Control(site, tls)
    number = control.connect(peer.address)
    far = peer.connection()
    far.sendall(b"early")
    far.shutdown(socket.SHUT_WR)
    data = control.claim(number)
    assert exactly(data, 5) == b"early"
    assert data.recv(10) == b""


def test_a_peer_connects(site: Site, tls: bool) -> None:
    control = Control(site, tls)
    assert closed(green.create_connection(control.relayed, PATIENCE_SECONDS)), "it has no permission"
    control.permit((PEER_HOST, 1))
    far = green.create_connection(control.relayed, PATIENCE_SECONDS, (PEER_HOST, 0))
    source, number = control.attempt()
    assert source == far.getsockname()[:2]
    data = control.claim(number)
    data.sendall(b"to the peer")
    assert exactly(far, 11) == b"to the peer"
    far.close()
    assert closed(data)


def test_the_request_cut_at_every_byte(make_site: Callable[..., Site], peer: Peer) -> None:
    """Rule E3."""
    site = make_site(Switch.OFF, connects_per_second=10000)
    control = Control(site, False)
    size = len(control.request(1))
    for cut in range(1, size):
        number = control.connect(peer.address)
        far = peer.connection()
        sock = site.connect()
        other = StreamPhone(sock)
        other.ask(Method.REFRESH)
        control.nonce, mine = other.nonce, control.nonce
        request = control.request(number)
        control.nonce = mine
        sock.sendall(request[:cut])
        gevent.sleep(0)
        sock.sendall(request[cut:] + b"tail")
        assert exactly(far, 4) == b"tail"
        sock.close()
        assert closed(far)
        far.close()
        eventually(lambda: len(site.relay.connections) == 0)


def test_a_slow_reader_stops_the_other_side_and_loses_nothing(site: Site, peer: Peer, tls: bool) -> None:
    """Back-pressure both ways: what waits here is one read at most."""
    control = Control(site, tls)
    data = control.claim(control.connect(peer.address))
    far = peer.connection()
    blob = os.urandom(MEGABYTE)
    expected = hashlib.sha256(blob * 16).hexdigest()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for source, sink in ((far, data), (data, far)):
        done = gevent.spawn(lambda source=source: [source.sendall(blob) for _ in range(16)])
        [connection] = site.relay.connections._peers.values()
        gevent.sleep(0.3)
        assert not done.ready(), "nobody reads: the sender has to wait"
        assert all(len(side._waiting) <= READ_BYTES for side in connection._sides or ())
        found = hashlib.sha256()
        left = SEVERAL_MEGABYTES
        while left:
            piece = sink.recv(min(left, 65536))
            found.update(piece)
            left -= len(piece)
        assert found.hexdigest() == expected
        done.join(PATIENCE_SECONDS)
        assert done.successful()
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 6 * 1024


def test_half_close_passes(make_site: Callable[..., Site], peer: Peer) -> None:
    site = make_site(Switch.OFF)
    control = Control(site, False)
    data = control.claim(control.connect(peer.address))
    far = peer.connection()
    data.sendall(b"question")
    data.shutdown(socket.SHUT_WR)
    assert exactly(far, 8) == b"question"
    assert far.recv(10) == b""
    far.sendall(b"answer")
    assert exactly(data, 6) == b"answer"
    far.close()
    assert data.recv(10) == b""
    eventually(lambda: len(site.relay.connections) == 0)


def test_a_side_that_ended_gives_the_other_a_time(
    make_site: Callable[..., Site], peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is gone looks like one that only sends no more; no connection stays for that."""
    monkeypatch.setattr(turn_connections, "HALF_CLOSED_SECONDS", 0.2)
    site = make_site(Switch.OFF)
    control = Control(site, False)
    data = control.claim(control.connect(peer.address))
    far = peer.connection()
    data.close()
    assert closed(far)
    eventually(lambda: len(site.relay.connections) == 0)


def test_everything_ends_with_the_control_stream(site: Site, peer: Peer, tls: bool) -> None:
    """Rule L4."""
    control = Control(site, tls)
    data = control.claim(control.connect(peer.address))
    far = peer.connection()
    control.connect(Address(PEER_HOST, peer.address.port))
    control.socket.close()
    assert closed(far)
    assert closed(data)
    eventually(lambda: site.server.allocations == 0)
    with pytest.raises(OSError, match="refused"):
        green.create_connection(control.relayed, PATIENCE_SECONDS)


def test_nobody_there_is_447_and_forbidden_is_403(site: Site, tls: bool) -> None:
    control = Control(site, tls)
    with socket.socket() as reserved:
        reserved.bind((PEER_HOST, 0))
        nobody = Address(*reserved.getsockname())
        assert control.connect(nobody) == -447
    for host in ("10.0.0.1", "169.254.169.254", "0.0.0.0"):
        assert control.connect(Address(host, 80)) == -403


def test_two_clients_of_one_server_connect_to_each_other(site: Site, tls: bool) -> None:
    """By their relayed addresses (rule P5)."""
    alice, bob = Control(site, tls), Control(site, tls)
    bob.permit(alice.relayed)
    number = alice.connect(bob.relayed)
    source, other = bob.attempt()
    assert source == alice.relayed
    left, right = alice.claim(number), bob.claim(other)
    left.sendall(b"hello")
    assert exactly(right, 5) == b"hello"


def test_descriptors_used_up_refuse_and_heal(make_site: Callable[..., Site], peer: Peer) -> None:
    """Rule Q1: 508 for a Connect, and the daemon goes on."""
    site = make_site(Switch.OFF)
    control = Control(site, False)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, limits[1]))
    try:
        fillers = []
        try:
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        assert control.connect(peer.address) == -508
        for descriptor in fillers:
            os.close(descriptor)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert control.connect(peer.address) > 0


def test_a_port_that_another_program_shares_is_not_taken(site: Site, tls: bool) -> None:
    """A listener of the same user with SO_REUSEPORT would get every other connection."""
    with socket.socket() as other:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        relay = Address(*other.getsockname())
        with pytest.raises(OSError, match="in use"):
            site.relay.connections.listen([relay])
    site.relay.connections.listen([relay])
    assert site.relay.connections.close_listener(relay)


def test_of_two_addresses_both_are_listened_on_or_none(make_site: Callable[..., Site]) -> None:
    """Rule L2: what was bound before the second failed is closed."""
    site = make_site(Switch.OFF)
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as probe:
        free, busy = Address(*probe.getsockname()), Address(*taken.getsockname())
        probe.close()
        with pytest.raises(OSError, match="in use"):
            site.relay.connections.listen([free, busy])
    with socket.create_server(free) as again:
        assert again.getsockname() == free
    assert not site.relay.connections.close_listener(free)


def test_a_tls_client_hears_that_it_was_all(make_site: Callable[..., Site], peer: Peer) -> None:
    """And what it had sent by then is still delivered to a peer that has shut its own direction."""
    site = make_site(Switch.ON)
    control = Control(site, True)
    data = control.claim(control.connect(peer.address))
    data.suppress_ragged_eofs = False
    far = peer.connection()
    far.sendall(b"x" * 100000)
    far.shutdown(socket.SHUT_WR)
    assert exactly(data, 100000) == b"x" * 100000
    assert data.recv(10) == b""


def test_the_bandwidth_of_a_user_slows_tcp_down_and_loses_nothing(make_site: Callable[..., Site], peer: Peer) -> None:
    """Rule Q1: 300,000 bytes at 200,000 a second, of which the first 200,000 come at once."""
    site = make_site(Switch.OFF, user_bandwidth=200000)
    control = Control(site, False)
    data = control.claim(control.connect(peer.address))
    far = peer.connection()
    blob = os.urandom(150000)
    began = time.monotonic()
    upward, downward = gevent.spawn(data.sendall, blob), gevent.spawn(far.sendall, blob)
    assert exactly(far, len(blob)) == exactly(data, len(blob)) == blob
    assert time.monotonic() - began >= 0.45
    assert site.counters["turn_bandwidth_waits"] > 0
    gevent.joinall([upward, downward], PATIENCE_SECONDS, raise_error=True)
    assert len(site.relay.connections._waiting) <= 2


def test_udp_over_the_bandwidth_of_a_user_is_dropped_and_counted(make_site: Callable[..., Site]) -> None:
    """Rule Q1: both ways, channels and indications; another user is not concerned."""
    at = [time.monotonic()]
    site = make_site(Switch.OFF, user_bandwidth=1500, clock=lambda: at[0])
    phone, far = StreamPhone(site.connect()), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.bind(0x4001, far.getsockname())
    for _ in range(5):
        phone.channel(0x4001, b"x" * 500)
    eventually(lambda: site.counters.get("turn_bandwidth_dropped", 0) >= 2)
    assert [len(far.recv(1000)) for _ in range(3)] == [500] * 3
    far.sendto(b"y" * 1400, relayed)
    indication = [stun.XOR_PEER_ADDRESS(Address(*far.getsockname())), stun.DATA(b"z" * 1400)]
    phone.socket.sendall(stun.encode(Method.SEND, MessageClass.INDICATION, os.urandom(12), indication))
    eventually(lambda: site.counters.get("turn_bandwidth_dropped", 0) >= 4)
    bucket = site.server.bandwidth_of(USER)
    assert bucket is not None
    assert bucket.available(at[0]) < 100
    at[0] += 1
    phone.channel(0x4001, b"again")
    assert far.recv(100) == b"again"


def test_without_a_bound_nothing_stands_in_the_way_of_a_packet(make_site: Callable[..., Site]) -> None:
    """Rule Q1: no cost when it is 0."""
    site = make_site(Switch.OFF)
    phone = StreamPhone(site.connect())
    phone.allocate()
    [relay] = site.relay._relays.values()
    assert relay.sendto == relay.socket.sendto
    [stream] = site.streams._open
    assert relay.reply == stream.sendto
