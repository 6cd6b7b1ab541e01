"""Mobility by bytes: tickets, moves, and who is refused (RFC 8016; rules E4, L4, A1)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.turn_world import PEER, SECRET, Phone, World, code
from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.auth import SecretHash, time_limited_password
from wsgate.turn.effects import Client, CloseRelay, Join, Part, Revoke, SendToPeer, Unbind
from wsgate.turn.stun import Method
from wsgate.turn.values import Family

ASK = stun.MOBILITY_TICKET(b"")


def mobile(world: World, **options: Any) -> tuple[Phone, Address, bytes]:
    """A phone with an allocation that may move, its relayed address, its ticket."""
    phone = Phone(world, **options)
    answer = phone.allocate(ASK)
    assert code(answer) == 0
    relayed, ticket = answer.get(stun.XOR_RELAYED_ADDRESS), answer.get(stun.MOBILITY_TICKET)
    assert relayed is not None
    assert ticket
    return phone, relayed, ticket


def elsewhere(phone: Phone, port: int = 41000, path: int = 0) -> None:
    """The phone has another address now; its nonce was for the old one."""
    phone.client = Client(path, Address("198.51.100.7", port))
    phone.nonce = b""


def move(phone: Phone, ticket: bytes, *fields: Any, **options: Any) -> stun.Message:
    return phone.ask(Method.REFRESH, stun.MOBILITY_TICKET(ticket), *fields, **options)


def test_off_it_is_405_in_both_requests() -> None:
    """Rule E4; RFC 8016 §3.4."""
    phone = Phone(World())
    assert code(phone.allocate(ASK)) == 405
    assert code(phone.ask(Method.REFRESH, stun.MOBILITY_TICKET(b"x" * 32))) == 405
    phone.relayed()
    assert code(phone.refresh()) == 0


def test_who_does_not_ask_gets_no_ticket() -> None:
    answer = Phone(World(mobility=True)).allocate()
    assert code(answer) == 0
    assert answer.get(stun.MOBILITY_TICKET) is None


def test_a_ticket_in_an_allocate_request_is_400() -> None:
    """RFC 8016 §3.1: it is empty there."""
    assert code(Phone(World(mobility=True)).allocate(stun.MOBILITY_TICKET(b"x"))) == 400


def test_tickets_are_opaque_short_text_and_never_the_same() -> None:
    """turnutils_uclient keeps 32 characters, up to the first zero byte."""
    world = World(mobility=True)
    tickets = [mobile(world, port=port)[2] for port in range(40000, 40020)]
    assert len(set(tickets)) == 20
    assert all(len(ticket) == 32 and ticket.isascii() and b"\0" not in ticket for ticket in tickets)


def test_the_allocation_comes_along_with_permissions_and_channels() -> None:
    """RFC 8016 §3.2.2: nothing of it is closed, its relayed address is joined to the new 5-tuple."""
    world = World(mobility=True)
    phone, relayed, ticket = mobile(world)
    phone.permit(PEER)
    phone.bind(0x4001, Address("9.9.9.9", 9))
    old = phone.client
    elsewhere(phone)
    answer = move(phone, ticket)
    assert code(answer) == 0
    assert answer.get(stun.LIFETIME) == 600
    assert phone.effects == [Join(relayed, phone.client)]
    assert phone.send(PEER, b"x") == [SendToPeer(relayed, PEER, b"x", False)]
    assert code(phone.bind(0x4002, Address("9.9.9.9", 9))) == 400, "it has its channel already"
    assert world.server.users() == {"alice": 1}
    assert world.server.allocations == 1
    assert world.server.has_allocation(phone.client)
    assert not world.server.has_allocation(old)


def test_the_old_5_tuple_has_nothing_left() -> None:
    world = World(mobility=True)
    phone, _, ticket = mobile(world)
    phone.permit(PEER)
    old, nonce = phone.client, phone.nonce
    elsewhere(phone)
    assert code(move(phone, ticket)) == 0
    phone.client, phone.nonce = old, nonce
    assert code(phone.refresh()) == 437
    assert phone.send(PEER, b"x") == []
    phone.relayed()
    assert world.server.allocations == 2


def test_a_ticket_is_good_for_one_move_and_the_answer_brings_the_next() -> None:
    world = World(mobility=True)
    phone, relayed, first = mobile(world)
    elsewhere(phone, 41000)
    second = move(phone, first).get(stun.MOBILITY_TICKET)
    assert second not in (None, first)
    assert second is not None
    elsewhere(phone, 42000)
    assert code(move(phone, first)) == 437
    assert phone.effects == []
    assert code(move(phone, second)) == 0
    assert phone.effects == [Join(relayed, phone.client)]


def test_a_retransmission_gets_the_same_answer() -> None:
    """Rule L1 for the request that moved; the ticket is spent, the move is not repeated."""
    world = World(mobility=True)
    phone, _, ticket = mobile(world)
    elsewhere(phone)
    move(phone, ticket)
    first = phone.bytes
    assert code(move(phone, ticket, fresh=False)) == 0
    assert phone.bytes == first
    assert phone.effects == []


def test_where_an_allocation_stands_a_ticket_is_400() -> None:
    """RFC 8016 §3.2.2: its own 5-tuple, or that of another."""
    world = World(mobility=True)
    phone, _, ticket = mobile(world)
    assert code(move(phone, ticket)) == 400
    other = Phone(world, port=43000)
    other.relayed()
    assert code(move(other, ticket)) == 400
    elsewhere(phone)
    assert code(move(phone, ticket)) == 0, "it is not spent by that"


@pytest.mark.parametrize("forged", [b"", b"x", b"A" * 32, b"\xff" * 32, bytes(400)])
def test_a_forged_ticket_is_400(forged: bytes) -> None:
    """Rule E4: it is authenticated."""
    world = World(mobility=True)
    phone, _, ticket = mobile(world)
    elsewhere(phone)
    assert code(move(phone, forged)) == 400
    assert code(move(phone, ticket[:-1] + b"!")) == 400
    assert code(move(phone, ticket[:16] + mobile(world, port=44000)[2][16:])) == 400
    assert world.counters.values["turn_tickets_forged"] == 3
    assert code(move(phone, ticket)) == 0


def test_another_user_is_441_and_the_ticket_stays_good() -> None:
    world = World(mobility=True)
    phone, _, ticket = mobile(world)
    thief = Phone(world, port=45000, user="bob")
    assert code(move(thief, ticket)) == 441
    assert code(phone.refresh()) == 0
    elsewhere(phone)
    assert code(move(phone, ticket)) == 0


def test_without_credentials_a_ticket_is_worth_a_401() -> None:
    """Rule A1."""
    world = World(mobility=True)
    phone, _, ticket = mobile(world)
    elsewhere(phone)
    assert code(phone.raw(Method.REFRESH, stun.MOBILITY_TICKET(ticket))) == 401
    assert phone.effects == []


def test_lifetime_0_frees_from_elsewhere_and_a_wrong_family_is_443() -> None:
    """Rule L3."""
    world = World(mobility=True)
    phone, relayed, ticket = mobile(world)
    elsewhere(phone)
    assert code(move(phone, ticket, stun.REQUESTED_ADDRESS_FAMILY(Family.IPV6))) == 443
    answer = move(phone, ticket, stun.LIFETIME(0))
    assert code(answer) == 0
    assert phone.effects == [CloseRelay(relayed)]
    assert world.server.allocations == 0
    assert code(move(phone, ticket)) == 437


def test_who_moves_may_have_credentials_that_expired_during_the_call() -> None:
    """Rules A4, E4: what was begun goes on elsewhere too; nothing new begins, and others' tickets are others'."""
    world = World(mobility=True)
    name = f"{int(world.now) + 100}:phone7"
    phone, relayed, ticket = mobile(world, user=name, password=time_limited_password(SECRET, name, SecretHash.SHA1))
    world.wait(200)
    elsewhere(phone)
    assert code(phone.allocate()) == 401
    assert code(phone.refresh()) == 401
    assert code(move(phone, b"x" * 32)) == 401
    other = f"{int(world.now) - 1}:phone8"
    thief = Phone(world, 42000, other, time_limited_password(SECRET, other, SecretHash.SHA1))
    assert code(move(thief, ticket)) == 401
    assert code(move(phone, ticket)) == 0
    assert phone.effects == [Join(relayed, phone.client)]


def test_a_lost_stream_keeps_the_allocation_until_its_lifetime() -> None:
    """Rules E4, L4: others end with their stream."""
    world = World(mobility=True)
    phone, relayed, _ = mobile(world)
    assert world.settle(world.server.client_closed(phone.client, world.now)) == [Part(relayed)]
    assert world.server.allocations == 1
    assert world.wait(599) == []
    assert world.wait(2) == [CloseRelay(relayed)]
    fixed = Phone(world, port=46000)
    at = fixed.relayed()
    assert world.settle(world.server.client_closed(fixed.client, world.now)) == [CloseRelay(at)]


def test_after_a_lost_stream_it_goes_on_elsewhere() -> None:
    world = World(mobility=True)
    phone, relayed, ticket = mobile(world)
    phone.bind(0x4001, PEER)
    world.server.client_closed(phone.client, world.now)
    world.wait(100)
    elsewhere(phone, path=7)
    assert code(move(phone, ticket)) == 0
    assert phone.effects == [Join(relayed, Client(7, Address("198.51.100.7", 41000)))]
    effects = world.wait(250)
    assert effects == [Revoke(relayed, PEER.host)], "permissions keep their times"
    assert world.wait(300) == [Unbind(relayed, 0x4001, PEER)]
    assert world.server.allocations == 1


def test_tickets_do_not_outlive_allocations() -> None:
    """Rule Q1: as many as there are allocations."""
    world = World(mobility=True, user_quota=1000, unauthenticated_rate=10**6)
    for port in range(40000, 40100):
        phone, _, ticket = mobile(world, port=port)
        elsewhere(phone, port)
        move(phone, ticket)
    tickets = world.server._allocator._tickets
    assert tickets is not None
    assert len(tickets) == 100
    world.wait(601)
    assert world.server.allocations == len(tickets) == 0
