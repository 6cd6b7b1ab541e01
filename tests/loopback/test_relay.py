"""The relay engine on real sockets: what is relayed, what is dropped (P3), a pass and its bounds (F1, F2, F4, Q1)."""

from __future__ import annotations

import errno
import gc
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from tests.interop.process import free_port
from tests.loopback.turn_site import PEER_HOST, Phone, Site, eventually, silent, udp
from tests.turn_process import RELAYS, make_server
from wsgate.addr import Address
from wsgate.net import relay_sockets
from wsgate.net.packet_loop import PACKETS_PER_PASS, PACKETS_PER_READ
from wsgate.turn import stun
from wsgate.turn.stun import MessageClass, Method


@pytest.fixture
def make_site() -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(**options: Any) -> Site:
        sites.append(Site(**options))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 171, b"x" * 1400, b"x" * 65000], ids=len)
def test_channel_data_both_ways_whole(site: Site, payload: bytes) -> None:
    """Rule P3: an empty payload too."""
    phone, peer = Phone(site), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    phone.channel(0x4001, payload)
    assert peer.recvfrom(70000) == (payload, relayed)
    peer.sendto(payload, relayed)
    assert phone.socket.recv(70000) == struct.pack("!HH", 0x4001, len(payload)) + payload
    eventually(lambda: site.counters["turn_packets_to_clients"] == site.counters["turn_packets_to_peers"] == 1)


def test_what_other_workers_have_told_is_heard_before_a_request_is_judged(site: Site) -> None:
    """A5, P6: the browser may come here before the inbox was looked at."""
    users = site.server.credentials.users
    told = dict(users)
    users.clear()
    site.relay.hear = lambda: users.update(told)
    phone, peer = Phone(site), udp(PEER_HOST)
    phone.allocate()
    site.relay.hear = lambda: pytest.fail("nobody waits for the answer to an indication")
    phone.send(peer.getsockname(), b"x")
    phone.channel(0x4001, b"x")
    assert silent(peer)


def test_padding_never_reaches_the_peer_and_a_wrong_length_drops(site: Site) -> None:
    """Rule P3."""
    phone, peer = Phone(site), udp(PEER_HOST)
    phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    phone.channel(0x4001, b"abc", padding=b"\0")
    assert peer.recv(100) == b"abc"
    phone.channel(0x4001, b"abc", length=4)
    phone.channel(0x4001, b"abc", length=0xFFFF)
    phone.channel(0x4002, b"other channel")
    phone.channel(0x5000, b"not a channel")
    phone.channel(0x7FFE, b"not a channel")
    phone.socket.sendto(b"\x40", phone.to)
    phone.socket.sendto(b"", phone.to)
    phone.socket.sendto(b"\x16\xfe\xfd not STUN", phone.to)
    phone.socket.sendto(b"\x80 RTP", phone.to)
    Phone(site).channel(0x4001, b"nobody's")
    assert silent(peer)
    assert site.counters["turn_channel_data_dropped"] == 4
    assert site.counters["turn_garbage_dropped"] == 6
    phone.channel(0x4001, b"goes on")
    assert peer.recv(100) == b"goes on"


def test_old_channel_numbers_when_they_are_allowed(make_site: Callable[..., Site]) -> None:
    """Rule P2, `channel_range = rfc5766`."""
    site = make_site(channel_range="rfc5766")
    phone, peer = Phone(site), udp(PEER_HOST)
    phone.allocate()
    phone.bind(0x7FFE, peer.getsockname())
    phone.channel(0x7FFE, b"old")
    assert peer.recv(100) == b"old"


@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 171, b"x" * 1200], ids=len)
def test_send_and_data_indications(site: Site, payload: bytes) -> None:
    """Rule P3: without a channel, Data indications, padded with zeros."""
    phone, peer = Phone(site), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.permit(peer.getsockname())
    phone.send(peer.getsockname(), payload)
    assert peer.recvfrom(2000) == (payload, relayed)
    phone.send(peer.getsockname(), payload, stun.DONT_FRAGMENT(True))
    assert peer.recvfrom(2000) == (payload, relayed)
    peer.sendto(b"\xff" * 1400, relayed)
    phone.socket.recv(2000)
    peer.sendto(payload, relayed)
    raw = phone.socket.recv(2000)
    message = stun.parse(raw)
    assert message.method == Method.DATA
    assert message.get(stun.DATA) == payload
    assert message.get(stun.XOR_PEER_ADDRESS) == peer.getsockname()
    assert raw[len(raw) - (-len(payload) % 4) :].strip(b"\0") == b""


def test_df_is_set_for_who_asks_and_nobody_else(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 8656 §14, §18.9: else a path with a small MTU and no ICMP swallows what would go through in fragments."""
    site = make_site()
    phone, peer = Phone(site), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.permit(peer.getsockname())
    relay = site.relay._relays[relayed]
    modes = []

    def noting(*arguments: Any) -> int:
        modes.append(df(relay.socket))
        return relay.socket.sendto(*arguments)

    def df(sock: socket.socket) -> int:
        return sock.getsockopt(socket.IPPROTO_IP, relay_sockets.IP_MTU_DISCOVER)

    monkeypatch.setattr(relay, "sendto", noting)
    for fields in ((), (stun.DONT_FRAGMENT(True),), ()):
        phone.send(peer.getsockname(), b"x", *fields)
        assert peer.recv(10) == b"x"
    never, always = relay_sockets.IP_PMTUDISC_DONT, relay_sockets.IP_PMTUDISC_DO
    assert modes == [never, always, never]
    assert df(site.listeners[0]) == never


def test_a_datagram_that_does_not_fit_is_dropped_whole(site: Site) -> None:
    """Rule P3: relayed whole or not at all."""
    phone, peer = Phone(site), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    peer.sendto(b"x" * 65507, relayed)
    eventually(lambda: site.counters["turn_send_failed"] == 1)
    assert silent(phone.socket)


def test_peers_without_permission_are_dropped(site: Site) -> None:
    """Rule P3; the permission is by address (P1)."""
    phone, stranger, peer, same_host = Phone(site), udp("127.0.0.3"), udp(PEER_HOST), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    stranger.sendto(b"hello", relayed)
    assert silent(phone.socket)
    assert site.counters["turn_peer_data_dropped"] == 1
    same_host.sendto(b"hello", relayed)
    assert stun.parse(phone.socket.recv(100)).get(stun.XOR_PEER_ADDRESS) == same_host.getsockname()


def test_a_forbidden_port_of_a_permitted_peer_is_dropped_both_ways(site: Site) -> None:
    """Rule P5: address and port, on each Send and on what arrives."""
    phone, peer, backend = Phone(site), udp(PEER_HOST), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.permit(peer.getsockname())
    site.server.peers.forbid([Address(*backend.getsockname())])
    backend.sendto(b"SIP", relayed)
    assert silent(phone.socket)
    phone.send(backend.getsockname(), b"SIP")
    assert silent(backend)
    peer.sendto(b"RTP", relayed)
    assert stun.parse(phone.socket.recv(100)).get(stun.DATA) == b"RTP"


def test_a_channel_ends_when_lists_changed(site: Site) -> None:
    """Rule P5."""
    phone, peer = Phone(site), udp(PEER_HOST)
    phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    site.server.peers.forbid([Address(*peer.getsockname())])
    site.relay.apply(site.server.reconsider())
    phone.channel(0x4001, b"x")
    assert silent(peer)


def test_permissions_channels_and_allocations_end_by_the_timer(site: Site) -> None:
    """Rules P1, P2, L4: nobody has to send anything."""
    phone, peer = Phone(site), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    site.clock.ahead = 299.95
    site.relay._timer_at = None
    site.relay._set_timer()
    eventually(lambda: not site.relay._relays[relayed].permitted)
    peer.sendto(b"late", relayed)
    assert silent(phone.socket)
    phone.channel(0x4001, b"the channel stands")
    assert peer.recv(100) == b"the channel stands"
    site.clock.ahead = 601.0
    site.relay._expired()
    assert site.relay.relay_sockets == 0
    assert site.server.allocations == 0
    phone.channel(0x4001, b"gone")
    assert silent(peer)


def test_lifetime_zero_closes_the_socket_at_once(site: Site) -> None:
    """Rule L3."""
    phone, peer = Phone(site), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    assert phone.ask(Method.REFRESH, stun.LIFETIME(0)).message_class is MessageClass.SUCCESS
    phone.channel(0x4001, b"x")
    assert silent(peer)
    assert site.relay.relay_sockets == 0
    assert site.relay._listeners[0].routes == {}
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with probe:
        probe.bind(relayed)


def test_two_clients_of_one_server_talk(site: Site) -> None:
    """Rule P5: the relay range of the same server."""
    first, second = Phone(site), Phone(site)
    one, two = first.allocate(), second.allocate()
    first.bind(0x4001, two)
    second.bind(0x4002, one)
    first.channel(0x4001, b"hello")
    assert second.socket.recv(100) == struct.pack("!HH", 0x4002, 5) + b"hello"
    second.channel(0x4002, b"hello yourself")
    assert first.socket.recv(100) == struct.pack("!HH", 0x4001, 14) + b"hello yourself"


def test_two_clients_behind_one_external_address_talk(make_site: Callable[..., Site]) -> None:
    """Rule P5 with `external_address`: what goes to the other's public address stays on this machine."""
    site = make_site(relays=(("127.0.0.1", "198.51.100.77"),))
    first, second = Phone(site), Phone(site)
    one, two = first.allocate(), second.allocate()
    assert {one.host, two.host} == {"198.51.100.77"}
    first.bind(0x4001, two)
    second.permit(one)
    first.channel(0x4001, b"hello")
    heard = stun.parse(second.socket.recv(100))
    assert (heard.get(stun.XOR_PEER_ADDRESS), heard.get(stun.DATA)) == (one, b"hello")
    second.send(one, b"hello yourself")
    assert first.socket.recv(100) == struct.pack("!HH", 0x4001, 14) + b"hello yourself"


def test_clients_and_peers_of_ipv6(make_site: Callable[..., Site]) -> None:
    site = make_site(listeners=("::1",), relays=(*RELAYS, ("::1", "::1")))
    phone, peer, other = Phone(site, sock=udp("::1")), udp(PEER_HOST), Phone(site, sock=udp("::1"))
    phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    phone.channel(0x4001, b"to IPv4")
    data, relayed = peer.recvfrom(100)
    assert data == b"to IPv4"
    peer.sendto(b"back", relayed)
    assert phone.socket.recv(100) == b"\x40\x01\0\x04back"
    six = other.allocate(stun.REQUESTED_ADDRESS_FAMILY(2))
    assert six.host == "::1"
    third = Phone(site, sock=udp("::1"))
    peer_of_six = third.allocate(stun.REQUESTED_ADDRESS_FAMILY(2))
    other.permit(peer_of_six)
    third.bind(0x4002, six)
    third.channel(0x4002, b"over IPv6")
    heard = stun.parse(other.socket.recv(200))
    assert (heard.get(stun.XOR_PEER_ADDRESS), heard.get(stun.DATA)) == (peer_of_six, b"over IPv6")


def test_a_five_tuple_has_the_listener_in_it(make_site: Callable[..., Site]) -> None:
    site = make_site(listeners=("127.0.0.1", "127.0.0.1"))
    phone = Phone(site)
    other = Phone(site, 1, phone.socket)
    peer = udp(PEER_HOST)
    one, two = phone.allocate(), other.allocate()
    assert one != two
    phone.bind(0x4001, peer.getsockname())
    other.bind(0x4001, peer.getsockname())
    phone.channel(0x4001, b"a")
    assert peer.recvfrom(9) == (b"a", one)
    other.channel(0x4001, b"b")
    assert peer.recvfrom(9) == (b"b", two)
    peer.sendto(b"c", two)
    assert phone.socket.recvfrom(9) == (b"\x40\x01\0\x01c", other.to)


def test_a_busy_port_is_passed_over(make_site: Callable[..., Site]) -> None:
    """Rule L1: another port is tried."""
    low = free_port(count=2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", low + 1))
        site = make_site(relay_ports=[low, low + 1])
        for _ in range(10):
            phone = Phone(site)
            assert phone.allocate().port == low
            assert phone.ask(Method.REFRESH, stun.LIFETIME(0)).message_class is MessageClass.SUCCESS


def test_an_address_that_is_not_ours_is_508_and_told_once(
    make_site: Callable[..., Site], caplog: pytest.LogCaptureFixture
) -> None:
    """Rule L1; the administrator learns why nobody gets an allocation."""
    site = make_site(relays=(("198.51.100.77", "198.51.100.77"),))
    phone = Phone(site)
    for _ in range(2):
        answer = phone.ask(Method.ALLOCATE, stun.REQUESTED_TRANSPORT(17))
        assert (answer.get(stun.ERROR_CODE) or (0,))[0] == 508
    assert [record.message for record in caplog.records] == [
        "turn: no relay socket at 198.51.100.77: Cannot assign requested address"
    ]


def test_descriptors_used_up_are_508_and_the_server_goes_on(site: Site) -> None:
    """Rule Q1."""
    phone, peer, late = Phone(site), udp(PEER_HOST), Phone(site)
    phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            fillers.extend(iter(lambda: os.dup(0), None))
        answer = late.ask(Method.ALLOCATE, stun.REQUESTED_TRANSPORT(17))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in fillers:
            os.close(descriptor)
    assert (answer.get(stun.ERROR_CODE) or (0,))[0] == 508
    phone.channel(0x4001, b"goes on")
    assert peer.recv(100) == b"goes on"
    assert late.allocate()


@pytest.mark.parametrize("size", [65505, 65527])
def test_a_datagram_that_no_data_indication_can_hold_ends_no_pass(make_site: Callable[..., Site], size: int) -> None:
    """Rules P3, F4: over IPv6 a peer's datagram can be longer than the length field of STUN says."""
    site = make_site(listeners=("::1",), relays=(("::1", "::1"),), allow=("::1/128",))
    phone, peer = Phone(site, sock=udp("::1")), udp("::1")
    relayed = phone.allocate(stun.REQUESTED_ADDRESS_FAMILY(2))
    phone.permit(peer.getsockname()[:2])
    peer.sendto(bytes(size), relayed)
    eventually(lambda: site.counters.get("turn_peer_data_dropped") == 1)
    peer.sendto(b"next", relayed)
    assert stun.parse(phone.socket.recv(200)).get(stun.DATA) == b"next"


def test_an_internal_error_costs_one_packet_and_one_line(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Rule F4: gevent would stop the watcher of all sockets."""

    def broken(*_: Any) -> None:
        raise ArithmeticError

    site.relay.secured = broken
    phone = Phone(site)
    for _ in range(5):
        phone.socket.sendto(b"\x16 begins like DTLS", phone.to)
    eventually(lambda: site.counters.get("internal_errors") == 5)
    assert phone.allocate()
    assert [record.message for record in caplog.records] == ["turn: internal error on a packet"]


def test_an_icmp_error_on_one_socket_ends_no_pass(site: Site) -> None:
    """Rule F4: ECONNREFUSED is told; the packets of all other sockets are relayed in the same pass."""
    peer, closed = udp(PEER_HOST), udp(PEER_HOST)
    nobody = closed.getsockname()
    closed.close()
    phones = [Phone(site) for _ in range(6)]
    relayed = []
    for number, phone in enumerate(phones):
        relayed.append(phone.allocate())
        phone.bind(0x4001, peer.getsockname())
        if number % 2:
            phone.bind(0x4002, nobody)
    for phone in phones[1::2]:
        phone.channel(0x4002, b"into the void")
    for address in relayed:
        peer.sendto(b"media", address)
    for number, phone in enumerate(phones):
        heard = {phone.socket.recv(100)[:2] for _ in range(1 + number % 2)}
        assert heard == {b"\x40\x01", b"\x00\x17"} if number % 2 else {b"\x40\x01"}
    assert site.counters["turn_icmp_told"] == 3
    for phone in phones:
        phone.channel(0x4001, b"back")
    assert [peer.recv(100) for _ in phones] == [b"back"] * 6


def nobody_at(host: str) -> Address:
    """An address that answers with ICMP port unreachable."""
    sock = udp(host)
    address = Address(*sock.getsockname()[:2])
    sock.close()
    return address


@pytest.mark.parametrize(("host", "told"), [(PEER_HOST, (3, 3, 0)), ("::1", (1, 4, 0))], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("way", ["channel", "send"])
def test_icmp_is_told_to_the_client(
    make_site: Callable[..., Site], host: str, told: tuple[int, int, int], way: str
) -> None:
    """Rule P4 (RFC 8656 §11.5): peer and ICMP, no DATA; and what is sent after it is not lost."""
    site = make_site(relays=(*RELAYS, ("::1", "::1")), relay_ports=[40000, 60999])
    site.server.peers = make_server(("127.0.0.0/8", "::1/128"), 1.0, {"relay_ports": [1024, 65535]})[1].peers
    phone, nobody, peer = Phone(site), nobody_at(host), udp(host)
    phone.allocate(stun.REQUESTED_ADDRESS_FAMILY(2 if ":" in host else 1))
    phone.bind(0x4002, peer.getsockname()[:2])
    if way == "channel":
        phone.bind(0x4001, nobody)
        phone.channel(0x4001, b"into the void")
    else:
        phone.permit(nobody)
        phone.send(nobody, b"into the void")
    phone.channel(0x4002, b"not lost")
    message = stun.parse(phone.socket.recv(200))
    assert (message.method, message.message_class) == (Method.DATA, MessageClass.INDICATION)
    assert message.get(stun.XOR_PEER_ADDRESS) == nobody
    assert message.get(stun.ICMP) == told
    assert message.get(stun.DATA) is None
    assert peer.recv(100) == b"not lost"


def test_a_send_that_tells_of_an_earlier_packet_is_done_again(site: Site) -> None:
    """Rule P4: the error of one peer costs no packet to another."""
    phone, peer = Phone(site), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    phone.permit(peer.getsockname())
    relay = site.relay._relays[relayed]
    relay.socket.sendto(b"into the void", nobody_at(PEER_HOST))
    phone.channel(0x4001, b"not lost")
    assert peer.recv(100) == b"not lost"
    assert site.counters["turn_send_failed"] == 0


def test_icmp_of_a_peer_without_permission_is_not_told(site: Site) -> None:
    """Rules P3, P4."""
    phone = Phone(site)
    relayed = phone.allocate()
    site.relay._relays[relayed].socket.sendto(b"into the void", nobody_at(PEER_HOST))
    assert silent(phone.socket)
    eventually(lambda: not site.relay._relays[relayed].socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def test_a_pass_is_bounded_so_that_others_get_their_turn(site: Site) -> None:
    """Rule F1."""
    phone, peer = Phone(site), udp(PEER_HOST)
    phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    flood = socket.socket(fileno=os.dup(phone.socket.fileno()))
    total = 4 * PACKETS_PER_PASS
    with flood:
        for _ in range(total):
            flood.sendto(struct.pack("!HH", 0x4001, 1) + b"x", phone.to)
    seen = []
    while not seen or seen[-1] < total:
        gevent.sleep(0)
        seen.append(site.counters["turn_packets_to_peers"])
    steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    assert max(steps) <= PACKETS_PER_PASS + PACKETS_PER_READ[-1]
    assert len([step for step in steps if step]) >= 4


def test_no_greenlet_and_no_object_stays_behind_a_packet(site: Site) -> None:
    """Rule F1: the engine runs in the hub; relaying leaves no more objects than before."""
    phone, peer = Phone(site), udp(PEER_HOST)
    relayed = phone.allocate()
    phone.bind(0x4001, peer.getsockname())

    def exchange(times: int) -> None:
        for _ in range(times):
            phone.channel(0x4001, b"ping")
            peer.recv(100)
            peer.sendto(b"pong", relayed)
            phone.socket.recv(100)

    def greenlets() -> int:
        return sum(isinstance(one, gevent.Greenlet) and bool(one) for one in gc.get_objects())

    exchange(10)
    gc.collect()
    before, running = len(gc.get_objects()), greenlets()
    exchange(200)
    gc.collect()
    assert len(gc.get_objects()) - before < 50
    assert greenlets() <= running


def test_under_load_packets_are_gathered_by_ticks_and_then_waited_for_again(make_site: Callable[..., Site]) -> None:
    """Rule F2."""
    site = make_site(tick=0.02)
    phone, peer = Phone(site), udp(PEER_HOST)
    phone.allocate()
    phone.bind(0x4001, peer.getsockname())
    gathered = False
    for number in range(50):
        phone.channel(0x4001, str(number).encode())
        assert peer.recv(100) == str(number).encode()
        gathered = gathered or site.relay.loop.is_gathering
    assert gathered
    eventually(lambda: not site.relay.loop.is_gathering)
    phone.channel(0x4001, b"after the pause")
    assert peer.recv(100) == b"after the pause"


def test_stop_closes_what_was_opened_and_not_what_was_handed_in(site: Site) -> None:
    phone = Phone(site)
    relayed = phone.allocate()
    gc.collect()  # sockets of other tests end now or not until the second look
    before = len(os.listdir("/proc/self/fd"))
    site.relay.stop()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    assert site.listeners[0].fileno() >= 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(relayed)
