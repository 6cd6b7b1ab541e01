"""TURN over DTLS on the port of TURN over UDP (rules E1, E2), with a client of pyOpenSSL's."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL

from tests.loopback.turn_site import PATIENCE_SECONDS, Phone, Site, eventually, silent, udp
from tests.turn_process import write_certificate
from wsgate.guard import Guard, LimitSettings
from wsgate.net import dtls
from wsgate.net.dtls import Associations
from wsgate.net.dtls_records import datagrams
from wsgate.turn.stun import MessageClass, Method

PEER_HOST = "127.0.0.2"


class SecureSite(Site):
    """A relay whose UDP port speaks DTLS too."""

    def __init__(self, directory: Path, limits: LimitSettings, **options: Any) -> None:
        super().__init__(**options)
        self.guard = Guard(limits)
        files = write_certificate(directory)
        self.dtls = Associations(self.relay, self.guard, self.server.counters, os.urandom, *files)
        self.relay.secured = self.dtls.receive

    def close(self) -> None:
        self.dtls.stop()
        super().close()


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., SecureSite]]:
    sites: list[SecureSite] = []

    def make(limits: LimitSettings | None = None, **options: Any) -> SecureSite:
        sites.append(SecureSite(tmp_path, limits or LimitSettings(), **options))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


class Secured:
    """A DTLS client that looks like a socket: `sendto` and `recv` of what is inside. `lose` datagrams are not sent."""

    def __init__(
        self,
        site: Site,
        sock: Any = None,
        alpn: tuple[bytes, ...] = (),
        lose: tuple[int, ...] = (),
        ciphers: bytes = b"",
    ) -> None:
        self.socket = sock or udp()
        self.to = site.listeners[0].getsockname()
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        if alpn:
            context.set_alpn_protos(list(alpn))
        if ciphers:
            context.set_cipher_list(ciphers)
        self.connection = SSL.Connection(context, None)
        self.connection.set_ciphertext_mtu(1200)
        self.connection.set_connect_state()
        self.flights: list[bytes] = []
        self._lose = set(lose)

    def handshake(self, seconds: float = PATIENCE_SECONDS) -> Secured:
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.connection.do_handshake()
            except SSL.WantReadError:
                self.flush()
                self._feed()
            else:
                self.flush()
                return self
            assert time.monotonic() < deadline

    def _feed(self) -> None:
        self.socket.settimeout(0.3)
        try:
            self.connection.bio_write(self.socket.recv(70000))
        except TimeoutError:
            self.connection.DTLSv1_handle_timeout()
        finally:
            self.socket.settimeout(PATIENCE_SECONDS)

    def flush(self) -> None:
        data = dtls._pending(self.connection)
        for datagram in datagrams(data):
            self.flights.append(datagram)
            if len(self.flights) not in self._lose:
                self.socket.sendto(datagram, self.to)

    def sendto(self, data: bytes, _to: Any) -> None:
        self.connection.send(data)
        self.flush()

    def recv(self, size: int) -> bytes:
        while True:
            try:
                return bytes(self.connection.recv(size))
            except SSL.WantReadError:
                self.connection.bio_write(self.socket.recv(70000))

    def settimeout(self, seconds: float) -> None:
        self.socket.settimeout(seconds)


@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 171, b"x" * 1400, b"x" * 16000], ids=len)
def test_relays_both_ways(make_site: Callable[..., SecureSite], payload: bytes) -> None:
    """Rule E1."""
    site = make_site()
    phone, peer = Phone(site, sock=Secured(site).handshake()), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    phone.channel(0x4001, payload)
    assert peer.recvfrom(70000) == (payload, relayed)
    peer.sendto(payload, relayed)
    assert phone.socket.recv(70000) == b"\x40\x01" + len(payload).to_bytes(2, "big") + payload
    phone.permit(peer.getsockname())
    phone.send(peer.getsockname(), b"indication")
    assert peer.recv(100) == b"indication"


def test_plain_stun_and_turn_go_on_on_the_same_port(make_site: Callable[..., SecureSite]) -> None:
    """RFC 7983: by the first byte."""
    site = make_site()
    assert Phone(site, sock=Secured(site).handshake()).allocate()
    assert Phone(site).allocate()


def test_nothing_is_kept_before_the_cookie(make_site: Callable[..., SecureSite]) -> None:
    """Rule E2: a hundred hellos, and from two addresses by turns, leave nothing behind; no answer is larger than its
    question."""
    site = make_site(unauthenticated_rate=10**6)
    clients = [Secured(site) for _ in range(100)]
    for client in clients:
        with pytest.raises(SSL.WantReadError):
            client.connection.do_handshake()
        client.flush()
    for client in clients:
        answer = client.socket.recv(2000)
        assert answer[13] == 3  # HelloVerifyRequest (RFC 6347 §4.2.1)
        assert len(answer) <= len(client.flights[0])
    assert len(site.dtls) == site.guard.connections == 0
    assert len(site.relay._paths) == 1
    assert len(site.dtls._listening) == 1
    assert Secured(site).handshake()


def test_a_cookie_is_good_for_its_address_alone(make_site: Callable[..., SecureSite]) -> None:
    """Rule E2."""
    site = make_site()
    client = Secured(site)
    with pytest.raises(SSL.WantReadError):
        client.connection.do_handshake()
    client.flush()
    client.connection.bio_write(client.socket.recv(2000))
    with pytest.raises(SSL.WantReadError):
        client.connection.do_handshake()
    hello = dtls._pending(client.connection)
    other = udp()
    other.sendto(hello, client.to)
    assert other.recv(2000)[13] == 3
    assert len(site.dtls) == 0
    client.socket.sendto(hello, client.to)
    eventually(lambda: len(site.dtls) == 1)


def test_the_answers_to_hellos_are_limited(make_site: Callable[..., SecureSite]) -> None:
    """Rules E2, S4."""
    site = make_site(unauthenticated_rate=200)
    for _ in range(20):
        client = Secured(site)
        with pytest.raises(SSL.WantReadError):
            client.connection.do_handshake()
        client.flush()
    eventually(lambda: site.counters["turn_unauthenticated_limited"] >= 10)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16" * 60,
        b"\x17\xfe\xfd" + bytes(8) + b"\0\x10" + bytes(16),
        b"\x16\xfe\xfd" + bytes(8) + b"\0\x10" + b"\x02" + bytes(15),
        b"\x16\xfe\xfd" + bytes(8) + b"\xff\xff" + b"\x01" + bytes(15),
        b"\x14",
        b"\x3f" * 13,
    ],
    ids=["garbage", "application data", "no hello", "wrong length", "one byte", "head alone"],
)
def test_only_a_hello_is_answered(make_site: Callable[..., SecureSite], data: bytes) -> None:
    """Rule E2."""
    site, sock = make_site(), udp()
    sock.sendto(data, site.listeners[0].getsockname())
    assert silent(sock)
    assert site.counters["turn_garbage_dropped"] == 1
    assert Secured(site).handshake()


def test_a_malformed_hello_harms_no_other(make_site: Callable[..., SecureSite]) -> None:
    site, sock = make_site(), udp()
    for size in (1, 12, 30, 100):
        body = b"\x01" + os.urandom(size)
        sock.sendto(b"\x16\xfe\xfd" + bytes(8) + len(body).to_bytes(2, "big") + body, site.listeners[0].getsockname())
    assert Secured(site).handshake()
    assert len(site.dtls) == 1


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_flight_is_sent_again(make_site: Callable[..., SecureSite], lost: int) -> None:
    site = make_site()
    client = Secured(site, lose=(lost,)).handshake()
    assert Phone(site, sock=client).allocate()


def test_alpn(make_site: Callable[..., SecureSite]) -> None:
    """Rule E1 (RFC 7443)."""
    site = make_site()
    assert (
        Secured(site, alpn=(b"webrtc", b"stun.turn")).handshake().connection.get_alpn_proto_negotiated() == b"stun.turn"
    )
    assert Secured(site, alpn=(b"webrtc",)).handshake().connection.get_alpn_proto_negotiated() == b""


def test_a_client_that_leaves_frees_its_allocation(make_site: Callable[..., SecureSite]) -> None:
    """Rule L4: close_notify; and everything comes back."""
    site = make_site()
    client = Secured(site).handshake()
    Phone(site, sock=client).allocate()
    assert site.server.allocations == 1
    client.connection.shutdown()
    client.flush()
    eventually(lambda: site.server.allocations == len(site.dtls) == site.guard.connections == 0)
    assert len(site.relay._paths) == 1


def test_a_client_that_starts_anew_from_its_port(make_site: Callable[..., SecureSite]) -> None:
    """RFC 6347 §4.2.8: the cookie first, then the old association ends."""
    site = make_site()
    first = Secured(site).handshake()
    Phone(site, sock=first).allocate()
    hello = Secured(site, first.socket)
    with pytest.raises(SSL.WantReadError):
        hello.connection.do_handshake()
    hello.flush()
    hello.socket.recv(2000)
    assert site.server.allocations == 1
    again = Secured(site, first.socket).handshake()
    eventually(lambda: site.server.allocations == 0)
    assert len(site.dtls) == 1
    assert Phone(site, sock=again).allocate()


def test_who_does_nothing_is_forgotten(make_site: Callable[..., SecureSite], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtls, "IDLE_SECONDS", 1.0)
    site = make_site()
    busy = Phone(site, sock=Secured(site).handshake())
    busy.allocate()
    Secured(site).handshake()
    eventually(lambda: len(site.dtls) == 1)
    assert busy.ask(Method.REFRESH).message_class is MessageClass.SUCCESS


def test_a_handshake_that_does_not_end_is_forgotten(
    make_site: Callable[..., SecureSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtls, "IDLE_SECONDS", 1.0)
    monkeypatch.setattr(dtls, "CHECK_SECONDS", 0.1)
    site = make_site()
    client = Secured(site)
    for _ in range(2):
        with pytest.raises(SSL.WantReadError):
            client.connection.do_handshake()
        client.flush()
        client.connection.bio_write(client.socket.recv(2000))
    eventually(lambda: len(site.dtls) == 1)
    eventually(lambda: len(site.dtls) == 0)
    assert site.counters["turn_dtls_timeouts"] == 1


def test_associations_of_an_address_are_limited(make_site: Callable[..., SecureSite]) -> None:
    """Rule Q1, by the guard."""
    site = make_site(LimitSettings(connections_per_address=2))
    for _ in range(2):
        Secured(site).handshake()
    third = Secured(site)
    with pytest.raises((SSL.Error, AssertionError)):
        third.handshake(3)
    assert len(site.dtls) == 2
    assert site.counters["turn_streams_refused"] > 0


def kind(first: int) -> str:
    """What a first byte leads to on UDP (RFC 7983 §7)."""
    if first <= 3:
        return "turn_malformed_dropped"
    if 0x40 <= first <= 0x4F:
        return "turn_channel_data_dropped"
    return "turn_dtls" if 20 <= first <= 63 else "turn_garbage_dropped"


def test_all_256_first_bytes_on_udp(make_site: Callable[..., SecureSite]) -> None:
    """DESIGN, Ports; rule P3 for 0x50 to 0x7F."""
    site, sock = make_site(), udp()
    reached: list[int] = []

    def receive(listening: socket.socket, data: bytes, source: tuple[str, int]) -> None:
        reached.append(data[0])
        site.server.counters.count("turn_dtls")

    site.relay.secured = receive
    for first in range(256):
        before = dict(site.counters)
        sock.sendto(bytes([first]) + bytes(19), site.listeners[0].getsockname())

        def outcome(before: dict[str, int] = before) -> list[str]:
            return [name for name in site.counters if site.counters[name] > before.get(name, 0)]

        eventually(outcome)
        assert outcome() == [kind(first)], hex(first)
    assert reached == list(range(20, 64))


def test_large_datagrams_before_the_cookie_leave_nothing_behind(make_site: Callable[..., SecureSite]) -> None:
    """Rule E2: OpenSSL would read only the first 16 KiB of each, and the rest before the hello of the next client."""
    site, sock = make_site(), udp()
    record = b"\x16\xfe\xfd" + bytes(8) + b"\x3e\x81\x01" + bytes(16000)
    for _ in range(3):
        sock.sendto(4 * record, site.listeners[0].getsockname())
    eventually(lambda: site.counters["turn_garbage_dropped"] == 3)
    assert Secured(site).handshake()


@pytest.mark.parametrize("cipher", [b"ECDHE-ECDSA-AES128-SHA", b"ECDHE-ECDSA-AES128-CCM"])
def test_weak_ciphers_are_refused(make_site: Callable[..., SecureSite], cipher: bytes) -> None:
    """Rule E2, RFC 9325 §4.2: what TLS on streams does not take is not taken here either."""
    site = make_site()
    client = Secured(site, ciphers=cipher + b":@SECLEVEL=0")
    with pytest.raises(SSL.Error, match="alert handshake failure"):
        client.handshake()
    eventually(lambda: not len(site.dtls))
    strong = Secured(site).handshake()
    assert "GCM" in (strong.connection.get_cipher_name() or "")


def test_renegotiation_is_refused_and_harms_nothing(make_site: Callable[..., SecureSite]) -> None:
    """Rule E2: a client may not make the server do one handshake after the other (RFC 9325 §3.5)."""
    site = make_site()
    secured = Secured(site).handshake()
    phone = Phone(site, sock=secured)
    phone.allocate()
    assert secured.connection.renegotiate()
    with pytest.raises(SSL.Error, match="no renegotiation"):
        secured.handshake()
    assert site.server.counters.values["turn_dtls_opened"] == 1
