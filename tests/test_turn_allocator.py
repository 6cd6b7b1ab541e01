"""Allocations by bytes: how they begin, last and end (rules L1 to L4, Q1)."""

from __future__ import annotations

import pytest

from tests.turn_world import PEER, RELAY, Phone, World, code
from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.effects import Client, CloseRelay, Join, RelayAddress, Revoke, SendToPeer, Unbind
from wsgate.turn.stun import MessageClass, Method
from wsgate.turn.values import EvenPort, Family

# Allocate


def test_an_allocation_is_made_and_joined() -> None:
    phone = Phone(World(relay_addresses=(RelayAddress(RELAY, "203.0.113.99"),)))
    answer = phone.allocate()
    relayed = answer.get(stun.XOR_RELAYED_ADDRESS)
    assert relayed is not None
    assert relayed.host == "203.0.113.99"
    assert 50000 <= relayed.port <= 50999
    assert answer.get(stun.XOR_MAPPED_ADDRESS) == phone.client.address
    assert answer.get(stun.LIFETIME) == 600
    assert answer.get(stun.RESERVATION_TOKEN) is None
    assert phone.effects == [Join(Address(RELAY, relayed.port), phone.client)]
    assert phone.world.server.allocations == 1
    assert phone.world.server.users() == {"alice": 1}


@pytest.mark.parametrize(
    ("asked", "granted"), [(None, 600), (0, 600), (1, 600), (700, 700), (3600, 3600), (2**32 - 1, 3600)]
)
def test_lifetimes_lie_between_min_and_max(asked: int | None, granted: int) -> None:
    """Rule L2."""
    fields = [] if asked is None else [stun.LIFETIME(asked)]
    assert Phone(World()).allocate(*fields).get(stun.LIFETIME) == granted


def test_the_same_transaction_gets_the_same_answer_and_another_437() -> None:
    """Rule L1."""
    phone = Phone(World())
    phone.allocate()
    first = phone.bytes
    phone.allocate(fresh=False)
    assert phone.bytes == first
    assert phone.world.server.allocations == 1
    assert code(phone.allocate()) == 437
    stranger = Phone(phone.world, user="bob")
    stranger.transaction = phone.transaction
    stranger.allocate(fresh=False)
    assert stranger.bytes != first


def test_the_order_of_checks() -> None:
    """Rule L1: each request is wrong in everything that comes later as well."""
    world = World(user_quota=1)
    first = Phone(world, port=1)
    first.relayed()
    wrong_families = [stun.REQUESTED_ADDRESS_FAMILY(2)]
    token = [stun.RESERVATION_TOKEN(bytes(8)), stun.EVEN_PORT(EvenPort(False))]
    assert code(first.ask(Method.ALLOCATE, *wrong_families, *token)) == 437
    phone = Phone(world, port=2)
    assert code(phone.raw(Method.ALLOCATE)) == 401
    assert code(phone.ask(Method.ALLOCATE, *wrong_families, *token)) == 400
    assert code(phone.ask(Method.ALLOCATE, stun.REQUESTED_TRANSPORT(99), *wrong_families, *token)) == 442
    assert code(phone.allocate(*wrong_families, *token)) == 400
    assert code(phone.allocate(*wrong_families, stun.RESERVATION_TOKEN(bytes(8)))) == 400
    assert code(phone.allocate(*wrong_families)) == 440
    assert code(phone.allocate()) == 486
    world.exhausted = True
    assert code(Phone(world, port=3, user="bob").allocate()) == 508


def test_dont_fragment_is_honoured() -> None:
    phone = Phone(World())
    assert code(phone.allocate(stun.DONT_FRAGMENT(True))) == 0
    phone.permit(PEER)
    (sent,) = phone.send(PEER, b"x", stun.DONT_FRAGMENT(True))
    assert isinstance(sent, SendToPeer)
    assert sent.dont_fragment


@pytest.mark.parametrize(
    ("client", "peer", "is_stream", "heeded"),
    [
        ("192.0.2.1", PEER.host, False, True),
        ("::ffff:192.0.2.1", PEER.host, False, True),
        ("192.0.2.1", "2a00:1450::1", False, False),
        ("2001:db8::7", "2a00:1450::1", False, False),
        ("2001:db8::7", PEER.host, False, False),
        ("2001:db8::7", "2a00:1450::1", True, True),
        ("192.0.2.1", "2a00:1450::1", True, True),
    ],
)
def test_dont_fragment_is_ignored_between_datagrams_where_ipv6_is_on_a_side(
    client: str, peer: str, is_stream: bool, heeded: bool
) -> None:
    """RFC 8656 §13.1 to §13.3 (MUST be ignored), §15 (a stream relies on it)."""
    six = "2001:db8::9"
    world = World(relay_addresses=(RelayAddress(RELAY, RELAY), RelayAddress(six, six)))
    phone = Phone(world)
    phone.client = Client(0, Address(client, 40000))
    phone.allocate(stun.ADDITIONAL_ADDRESS_FAMILY(2))
    to = Address(peer, 4000)
    phone.permit(to)
    fields = (stun.XOR_PEER_ADDRESS(to), stun.DATA(b"x"), stun.DONT_FRAGMENT(True))
    data = stun.encode(Method.SEND, MessageClass.INDICATION, bytes(12), fields)
    [sent] = world.server.receive(data, phone.client, world.now, is_stream=is_stream)
    assert isinstance(sent, SendToPeer)
    assert sent.dont_fragment is heeded


def test_quotas_of_a_user_and_in_total() -> None:
    """Rules L1, Q1."""
    world = World(user_quota=2, total_quota=3)
    phones = [Phone(world, port=port) for port in range(1, 5)]
    assert [code(phone.allocate()) for phone in phones] == [0, 0, 486, 486]
    others = [Phone(world, port=port, user="bob") for port in range(10, 12)]
    assert [code(phone.allocate()) for phone in others] == [0, 486]
    assert code(phones[0].refresh(stun.LIFETIME(0))) == 0
    assert code(others[1].allocate()) == 0
    assert world.server.users() == {"alice": 1, "bob": 2}


def test_a_busy_port_makes_another_be_tried_and_exhaustion_508() -> None:
    """Rules L1, Q1: the server goes on."""
    world = World(relay_ports=(50000, 50019))
    world.busy = {Address(RELAY, port) for port in range(50000, 50010)}
    relayed = Phone(world).relayed()
    assert relayed.port >= 50010
    world.exhausted = True
    assert code(Phone(world, port=2).allocate()) == 508
    world.exhausted = False
    assert code(Phone(world, port=2).allocate()) == 0
    world.busy = {Address(RELAY, port) for port in range(50000, 50020)}
    assert code(Phone(world, port=3).allocate()) == 508
    assert world.server.allocations == 2


def test_ports_used_up_are_508() -> None:
    world = World(relay_ports=(50000, 50001))
    assert [code(Phone(world, port=port).allocate()) for port in range(1, 5)] == [0, 0, 508, 508]


def test_a_freed_port_is_not_given_to_another_user_for_two_minutes() -> None:
    """Rule L4."""
    world = World(relay_ports=(50000, 50000))
    alice, bob = Phone(world, port=1), Phone(world, port=2, user="bob")
    alice.relayed()
    alice.refresh(stun.LIFETIME(0))
    assert code(bob.allocate()) == 508
    assert code(alice.allocate()) == 0
    alice.refresh(stun.LIFETIME(0))
    world.now += 119
    assert code(bob.allocate()) == 508
    world.now += 1
    assert code(bob.allocate()) == 0


def test_even_port_with_and_without_reservation() -> None:
    """Rules L2, L3: without the R bit nothing is reserved; a token is 8 bytes and good for 30 s."""
    world = World()
    plain = Phone(world, port=1)
    answer = plain.allocate(stun.EVEN_PORT(EvenPort(False)))
    assert answer.get(stun.RESERVATION_TOKEN) is None
    assert len(world.open) == 1
    assert next(iter(world.open)).port % 2 == 0

    first = Phone(world, port=2)
    answer = first.allocate(stun.EVEN_PORT(EvenPort(True)))
    token, relayed = answer.get(stun.RESERVATION_TOKEN), answer.get(stun.XOR_RELAYED_ADDRESS)
    assert token is not None
    assert relayed is not None
    assert relayed.port % 2 == 0
    assert Address(RELAY, relayed.port + 1) in world.open

    assert code(Phone(world, port=3, user="bob").allocate(stun.RESERVATION_TOKEN(token))) == 508
    second = Phone(world, port=4).allocate(stun.RESERVATION_TOKEN(token))
    assert second.get(stun.XOR_RELAYED_ADDRESS) == Address(relayed.host, relayed.port + 1)
    assert code(Phone(world, port=5).allocate(stun.RESERVATION_TOKEN(token))) == 508

    late = Phone(world, port=6)
    token = late.allocate(stun.EVEN_PORT(EvenPort(True))).get(stun.RESERVATION_TOKEN)
    assert len(world.open) == 5
    effects = world.wait(30)
    assert [type(effect) for effect in effects] == [CloseRelay]
    assert len(world.open) == 4
    assert code(Phone(world, port=7).allocate(stun.RESERVATION_TOKEN(token or b""))) == 508
    reserving = Phone(world, port=8)
    reserving.allocate(stun.EVEN_PORT(EvenPort(True)))
    reserving.refresh(stun.LIFETIME(0))
    assert len(world.open) == 4


def test_families() -> None:
    """Rules L1, L2 with one and with two relay addresses."""
    one = World()
    assert code(Phone(one, port=1).allocate(stun.REQUESTED_ADDRESS_FAMILY(1))) == 0
    assert code(Phone(one, port=2).allocate(stun.REQUESTED_ADDRESS_FAMILY(2))) == 440
    assert code(Phone(one, port=2).allocate(stun.REQUESTED_ADDRESS_FAMILY(3))) == 440
    answer = Phone(one, port=2).allocate(stun.ADDITIONAL_ADDRESS_FAMILY(2))
    assert answer.get(stun.ADDRESS_ERROR_CODE) == (2, (440, "Address Family not Supported"))
    assert len(answer.all(stun.XOR_RELAYED_ADDRESS)) == 1
    assert code(Phone(one, port=3).allocate(stun.ADDITIONAL_ADDRESS_FAMILY(1))) == 400

    six = World(relay_addresses=(RelayAddress("2001:db8::9", "2001:db8::9"),))
    assert code(Phone(six, port=1).allocate()) == 440
    answer = Phone(six, port=1).allocate(stun.ADDITIONAL_ADDRESS_FAMILY(2))
    assert answer.get(stun.ADDRESS_ERROR_CODE) == (1, (440, "Address Family not Supported"))
    assert [relayed.host for relayed in answer.all(stun.XOR_RELAYED_ADDRESS)] == ["2001:db8::9"]

    two = World(relay_addresses=(RelayAddress(RELAY, RELAY), RelayAddress("2001:db8::9", "2001:db8::9")))
    phone = Phone(two, port=1)
    hosts = [
        address.host for address in phone.allocate(stun.ADDITIONAL_ADDRESS_FAMILY(2)).all(stun.XOR_RELAYED_ADDRESS)
    ]
    assert hosts == [RELAY, "2001:db8::9"]
    assert code(phone.permit(PEER, Address("2a00:1450::1", 1))) == 0
    assert code(phone.refresh(stun.REQUESTED_ADDRESS_FAMILY(2), stun.LIFETIME(0))) == 0
    assert {address.host for address in two.open} == {RELAY}
    assert code(phone.permit(Address("2a00:1450::1", 1))) == 443
    assert code(phone.refresh(stun.REQUESTED_ADDRESS_FAMILY(2))) == 443
    assert code(phone.refresh()) == 0


@pytest.mark.parametrize("trouble", ["no port left", "all ports busy"])
def test_one_of_two_families_without_a_port(trouble: str) -> None:
    """Rule L2: ADDRESS-ERROR-CODE 508 for that one, the other is allocated (RFC 8656 §7.2)."""
    six = "2001:db8::9"
    both = (RelayAddress(RELAY, RELAY), RelayAddress(six, six))
    world = World(relay_addresses=both, relay_ports=(50000, 50039), unauthenticated_rate=10**6)
    if trouble == "no port left":
        for port in range(40):
            assert code(Phone(world, port=port).allocate(stun.REQUESTED_ADDRESS_FAMILY(2))) == 0
    else:
        world.busy = {Address(six, port) for port in range(50000, 50040)}
    answer = Phone(world, port=90).allocate(stun.ADDITIONAL_ADDRESS_FAMILY(2))
    assert [address.host for address in answer.all(stun.XOR_RELAYED_ADDRESS)] == [RELAY]
    assert answer.get(stun.ADDRESS_ERROR_CODE) == (2, (508, "Insufficient Capacity"))
    world.exhausted = True
    assert code(Phone(world, port=91).allocate(stun.ADDITIONAL_ADDRESS_FAMILY(2))) == 508


# Refresh and the end


def test_refresh_codes() -> None:
    """Rule L3."""
    world = World()
    phone = Phone(world)
    assert code(phone.refresh()) == 437
    phone.relayed()
    assert code(Phone(world, user="bob").refresh()) == 441
    assert code(Phone(world, user="bob").permit(PEER)) == 441
    assert code(Phone(world, user="bob").bind(0x4000, PEER)) == 441
    assert code(phone.refresh(stun.REQUESTED_ADDRESS_FAMILY(Family.IPV6))) == 443
    assert phone.refresh(stun.LIFETIME(1200)).get(stun.LIFETIME) == 1200
    ended = phone.refresh(stun.LIFETIME(0))
    assert ended.get(stun.LIFETIME) == 0
    assert [type(effect) for effect in phone.effects] == [CloseRelay]
    assert world.open == set()
    for answer in (phone.refresh(), phone.permit(PEER), phone.bind(0x4000, PEER)):
        assert code(answer) == 437
    assert phone.send(PEER, b"x") == []


def test_an_allocation_ends_with_its_lifetime_and_everything_is_freed() -> None:
    """Rule L4."""
    world = World()
    phone = Phone(world)
    phone.relayed()
    phone.bind(0x4000, PEER)
    world.wait(599)
    assert world.server.allocations == 1
    assert [type(effect) for effect in world.wait(1)] == [CloseRelay]
    assert (world.server.allocations, world.server.users(), world.open) == (0, {}, set())
    assert world.server.next_timer() is None or world.wait(10000) == []
    assert world.server.next_timer() is None


def test_a_refresh_moves_the_end() -> None:
    world = World()
    phone = Phone(world)
    phone.relayed()
    world.wait(500)
    phone.refresh(stun.LIFETIME(1000))
    assert world.wait(999) == []
    assert [type(effect) for effect in world.wait(1)] == [CloseRelay]


def test_of_two_families_each_has_its_own_end() -> None:
    """RFC 8656 §6, §8.1; rule L3: a Refresh that names a family is for that one alone."""
    six, peer6 = "2001:db8::9", Address("2a00:1450::1", 1)
    world = World(relay_addresses=(RelayAddress(RELAY, RELAY), RelayAddress(six, six)))
    phone = Phone(world)
    four, other = phone.allocate(stun.ADDITIONAL_ADDRESS_FAMILY(2)).all(stun.XOR_RELAYED_ADDRESS)
    world.wait(500)
    assert phone.refresh(stun.REQUESTED_ADDRESS_FAMILY(1), stun.LIFETIME(1200)).get(stun.LIFETIME) == 1200
    phone.bind(0x4000, PEER)
    phone.bind(0x4001, peer6)
    assert world.wait(99.5) == []
    assert world.wait(0.5) == [Revoke(other, peer6.host), Unbind(other, 0x4001, peer6), CloseRelay(other)]
    phone.nonce = b""
    assert code(phone.refresh(stun.REQUESTED_ADDRESS_FAMILY(2))) == 443
    assert code(phone.bind(0x4001, peer6)) == 443
    assert phone.send(PEER, b"x") == [SendToPeer(four, PEER, b"x", False)]
    assert code(phone.refresh()) == 0
    world.wait(599)
    assert world.open == {four}
    world.wait(1)
    assert (world.open, world.server.allocations) == (set(), 0)


def test_a_refresh_without_a_family_is_for_both() -> None:
    """RFC 8656 §8.1."""
    six = "2001:db8::9"
    world = World(relay_addresses=(RelayAddress(RELAY, RELAY), RelayAddress(six, six)))
    phone = Phone(world)
    phone.allocate(stun.ADDITIONAL_ADDRESS_FAMILY(2))
    world.wait(500)
    phone.refresh(stun.LIFETIME(1000))
    world.wait(999)
    assert len(world.open) == 2
    world.wait(1)
    assert world.open == set()


def test_an_allocation_ends_with_its_stream() -> None:
    """Rule L4."""
    world = World()
    phone = Phone(world)
    phone.relayed()
    assert [type(effect) for effect in world.settle(world.server.client_closed(phone.client, world.now))] == [
        CloseRelay
    ]
    assert world.server.client_closed(phone.client, world.now) == []


def test_what_expired_is_gone_for_the_next_message_even_before_the_timer() -> None:
    world = World()
    phone = Phone(world)
    phone.relayed()
    phone.permit(PEER)
    world.now += 300
    assert phone.send(PEER, b"x") == [Revoke(next(iter(world.open)), PEER.host)]


def test_timers_stay_bounded_when_allocations_come_and_go() -> None:
    world = World()
    phone = Phone(world)
    for _ in range(200):
        phone.allocate()
        phone.permit(PEER)
        phone.refresh(stun.LIFETIME(0))
    assert world.server.allocations == 0
    assert len(world.server._allocator._timers) < 100
