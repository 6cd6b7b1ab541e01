"""A client comes back to its calls when its registration is over already (rules D3, D4)."""

from __future__ import annotations

import pytest

from tests.edge_world import BOB, PBX, Call, World, register, request, response
from wsgate.sip.flow import Flow

CONTACTS = [
    "Contact: <sip:alice@abc.invalid;transport=ws>;expires={}",
    'Contact: <sip:{}@abc.invalid;transport=ws>;+sip.instance="<urn:uuid:1>";reg-id=1;expires={}',
]
"""A client without instance keeps its Contact; one with it may choose another."""


def established(world: World, contact: str) -> Call:
    flow = world.browser()
    register(world, flow, contact)
    call = Call(world, flow)
    world.from_browser(flow, call.request("ACK", cseq="1"))
    world.take()
    return call


def written(contact: str, user: str, expires: int) -> str:
    return contact.format(*([user, expires] if contact.count("{}") == 2 else [expires]))


def lose(world: World, flow: Flow) -> None:
    world.apply(world.edge.flow_closed(flow.id, world.now))


def passes_both_ways(world: World, call: Call, flow: Flow) -> None:
    world.from_backend(call.backend_request("INFO", cseq="20"))
    info = world.one(flow)
    assert info.method == b"INFO"
    world.from_browser(flow, response(info, 200, "OK"))
    assert world.one(PBX).status == 200
    world.from_browser(flow, call.request("INFO", cseq="20"))
    info = world.one(PBX)
    assert info.method == b"INFO"
    world.from_backend(response(info, 200, "OK"))
    assert world.one(flow).status == 200


@pytest.mark.parametrize("contact", CONTACTS)
@pytest.mark.parametrize("open_for", [30, 100], ids=["ran out while it was away", "ran out before"])
def test_d3_a_call_is_its_clients_though_the_registration_ran_out(contact: str, open_for: int) -> None:
    """A page in the background or a laptop asleep misses a refresh. D4: nobody hangs up on who is back."""
    world = World()
    call = established(world, written(contact, "alice", 60))
    world.move(open_for)
    lose(world, call.flow)
    world.move(50)
    assert world.edge.counts()["registrations"] == 0
    new = world.browser(port=40001)
    register(world, new, written(contact, "a2", 600), call_id="again")
    passes_both_ways(world, call, new)
    world.move(100)
    assert world.take() == []


def test_d3_who_takes_all_back_and_registers_anew_on_the_new_flow_has_its_calls() -> None:
    """Some pages clear away what they left with `Contact: *` first."""
    world = World()
    call = established(world, CONTACTS[0].format(600))
    lose(world, call.flow)
    new = world.browser(port=40001)
    register(world, new, "Contact: *", "Expires: 0", call_id="again")
    assert world.edge.counts()["registrations"] == 0
    register(world, new, call_id="again", cseq="2")
    passes_both_ways(world, call, new)


def test_d3_nobody_else_inherits_what_is_over() -> None:
    """Another instance of the user, and another user with the same Contact and instance."""
    contact = written(CONTACTS[1], "alice", 60)
    world = World()
    call = established(world, contact)
    world.move(50)
    lose(world, call.flow)
    world.move(20)
    for user, line in (("alice", contact.replace("uuid:1", "uuid:2")), ("mallory", contact)):
        other = world.browser(port=40001)
        register(world, other, line, user=user, call_id=user)
        world.from_browser(other, call.request("BYE"))
        assert world.one(other).status == 403
        world.from_backend(call.backend_request("INFO", call_id=call.call_id))
        assert world.one(PBX).status == 480
    world.move(41)
    assert world.take(PBX)[0].method == b"BYE"


def test_d3_after_the_grace_nothing_is_known_of_the_flow() -> None:
    world = World()
    call = established(world, written(CONTACTS[1], "alice", 60))
    world.move(50)
    lose(world, call.flow)
    assert world.directory.is_registered_through(call.flow.id)
    world.move(59)
    assert world.directory.is_registered_through(call.flow.id)
    world.move(3)
    assert not world.directory.is_registered_through(call.flow.id)
    assert world.directory.gone_since(call.flow.id) is None


def test_r4_a_registration_that_is_over_is_none() -> None:
    """Its flow stays open, and its calls go on; but nobody is called by it."""
    world = World()
    call = established(world, CONTACTS[0].format(60))
    world.move(62)
    assert world.edge.registered(call.flow.id) == []
    assert world.edge.counts()["registrations"] == 0
    passes_both_ways(world, call, call.flow)
    world.from_browser(call.flow, request("INVITE", "sip:bob@example.com", BOB, call_id="another"))
    assert world.one(PBX).method == b"INVITE"
