"""What an allocation holds, and the ports it comes from (rules L2, L4, P1, P2)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from wsgate.addr import Address
from wsgate.turn.allocation import CHANNEL_SECONDS, PERMISSION_SECONDS, TRANSITIONS, Allocation, Event, State
from wsgate.turn.effects import Bind, Client, CloseRelay, Permit, Revoke, Unbind
from wsgate.turn.ports import PORT_REST_SECONDS, PORTS_RESTING_PER_USER, Ports
from wsgate.turn.values import Family

RELAY = Address("198.51.100.1", 50000)
RELAY6 = Address("2001:db8::1", 50000)
PEER = Address("8.8.8.8", 4000)
PEER6 = Address("2a00::8", 4000)


def allocation() -> Allocation:
    made = Allocation(Client(0, Address("192.0.2.1", 1000)), "alice", bytes(12), 600)
    made.relays = {Family.IPV4: RELAY, Family.IPV6: RELAY6}
    made.extend(600.0)
    made.advance(Event.OPENED)
    return made


def seeded(seed: int = 1) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def test_states_go_only_where_the_table_says() -> None:
    for state, event in itertools.product(State, Event):
        one = allocation()
        one.state = state
        if (state, event) in TRANSITIONS:
            one.advance(event)
            assert one.state is TRANSITIONS[state, event]
        else:
            with pytest.raises(KeyError):
                one.advance(event)
    assert not [state for state, _ in TRANSITIONS if state is State.FREED]


def test_a_permission_is_told_once_and_lasts_300_seconds_from_its_last_refresh() -> None:
    one = allocation()
    assert one.permit(PEER.host, 0.0) == [Permit(RELAY, PEER.host)]
    assert one.permit(PEER.host, 100.0) == []
    assert one.deadline() == 100.0 + PERMISSION_SECONDS
    assert one.expire(399.9) == []
    assert one.expire(400.0) == [Revoke(RELAY, PEER.host)]
    assert one.permissions == {}


def test_a_channel_lasts_600_seconds_and_its_permission_300() -> None:
    one = allocation()
    assert one.bind(0x4000, PEER, 0.0) == [Permit(RELAY, PEER.host), Bind(RELAY, 0x4000, PEER)]
    assert one.bind(0x4000, PEER, 10.0) == []
    assert one.expire(310.0) == [Revoke(RELAY, PEER.host)]
    assert one.bind(0x4000, PEER, 310.0) == [Permit(RELAY, PEER.host)]
    assert one.expire(310.0 + CHANNEL_SECONDS) == [Revoke(RELAY, PEER.host), Unbind(RELAY, 0x4000, PEER)]
    assert (one.channels, one.numbers) == ({}, {})


def test_the_deadline_is_the_earliest_of_all() -> None:
    one = allocation()
    assert one.deadline() == 600.0
    one.bind(0x4000, PEER, 0.0)
    one.permit("9.9.9.9", 5.0)
    assert one.deadline() == 300.0
    one.permit(PEER.host, 50.0)
    assert one.deadline() == 305.0
    one.reserved, one.reserved_until = RELAY, 30.0
    assert one.deadline() == 30.0


def test_peers_are_served_by_the_address_of_their_family() -> None:
    one = allocation()
    assert one.bind(0x4001, PEER6, 0.0) == [Permit(RELAY6, PEER6.host), Bind(RELAY6, 0x4001, PEER6)]
    one.bind(0x4000, PEER, 0.0)
    left = one.leave(Family.IPV6)
    assert left == [Revoke(RELAY6, PEER6.host), Unbind(RELAY6, 0x4001, PEER6), CloseRelay(RELAY6)]
    assert one.relay_for(PEER6.host) is None
    assert one.relay_for(PEER.host) == RELAY
    assert list(one.channels) == [0x4000]


def test_new_lists_of_peers_take_away_what_they_refuse() -> None:
    """Rule P5: asked again when they were reloaded."""
    one = allocation()
    one.bind(0x4000, PEER, 0.0)
    one.bind(0x4001, Address("8.8.8.8", 5060), 0.0)
    one.permit("9.9.9.9", 0.0)
    effects = one.reconsider(lambda host: host != "9.9.9.9", lambda peer: peer.port != 5060)
    assert effects == [Revoke(RELAY, "9.9.9.9"), Unbind(RELAY, 0x4001, Address("8.8.8.8", 5060))]
    assert list(one.permissions) == ["8.8.8.8"]


def test_ports_are_drawn_from_the_whole_range_at_random_and_once() -> None:
    """Rule L2."""
    ports = Ports(50000, 50099, seeded())
    drawn = [ports.draw("alice", 0.0) for _ in range(100)]
    assert sorted(drawn) == list(range(50000, 50100))
    assert drawn != sorted(drawn)
    assert ports.draw("alice", 0.0) is None
    assert drawn[:10] != [Ports(50000, 50099, seeded(2)).draw("alice", 0.0)] * 10


def test_a_freed_port_rests_two_minutes_for_others_but_not_for_its_user() -> None:
    """Rule L4."""
    ports = Ports(50000, 50000, seeded())
    assert ports.draw("alice", 0.0) == 50000
    ports.rest(50000, "alice", 10.0)
    assert ports.draw("bob", 10.0) is None
    assert ports.draw("bob", 10.0 + PORT_REST_SECONDS - 0.1) is None
    assert ports.draw("alice", 20.0) == 50000
    ports.rest(50000, "alice", 30.0)
    assert ports.draw("bob", 30.0 + PORT_REST_SECONDS) == 50000


def test_opening_and_freeing_does_not_use_up_the_ports_of_others() -> None:
    ports = Ports(50000, 50999, seeded())
    for step in range(5000):
        port = ports.draw("mallory", step / 1000)
        assert port is not None
        ports.rest(port, "mallory", step / 1000)
    assert len(ports) == 1000 - PORTS_RESTING_PER_USER
    assert ports.draw("alice", 5.0) is not None


def test_even_ports_come_from_ones_own_resting_ports_as_well() -> None:
    ports = Ports(50000, 50999, seeded())
    for step in range(2000):
        port = ports.draw_even("mallory", step / 1000, pair=True)
        assert port is not None
        ports.rest(port, "mallory", step / 1000)
        ports.rest(port + 1, "mallory", step / 1000)
    assert len(ports) == 1000 - PORTS_RESTING_PER_USER


def test_a_port_that_another_program_holds_rests_for_everybody() -> None:
    ports = Ports(50000, 50001, seeded())
    first = ports.draw("alice", 0.0)
    assert first is not None
    ports.rest(first, "", 0.0)
    assert ports.draw("alice", 0.0) == 100001 - first
    assert ports.draw("alice", 1.0) is None
    assert ports.draw("alice", PORT_REST_SECONDS) == first


def test_even_ports_alone_and_in_pairs() -> None:
    ports = Ports(50001, 50006, seeded())
    assert {ports.draw_even("alice", 0.0, pair=True), ports.draw_even("alice", 0.0, pair=True)} == {50002, 50004}
    assert ports.draw_even("alice", 0.0, pair=True) is None
    assert ports.draw_even("alice", 0.0, pair=False) == 50006
    assert ports.draw_even("alice", 0.0, pair=False) is None
    assert ports.draw("alice", 0.0) == 50001
    assert ports.draw_even("alice", 0.0, pair=False) is None


def test_ports_stay_consistent_under_random_use() -> None:
    source = random.Random(5)
    ports, held, now = Ports(50000, 50063, seeded()), set(), 0.0
    for _ in range(3000):
        now += source.random() * 10
        if held and source.random() < 0.5:
            port = source.choice(sorted(held))
            held.remove(port)
            ports.rest(port, source.choice(["a", "b", ""]), now)
        else:
            port = ports.draw("a", now) if source.random() < 0.7 else ports.draw_even("a", now, pair=False)
            assert port is None or port not in held
            held |= {port} - {None}
    assert all(50000 <= port <= 50063 for port in held)
