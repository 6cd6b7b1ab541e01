"""A NOTIFY before the 200 to its SUBSCRIBE, or from a fork without one (RFC 6665 §4.1.2.4, §4.4.1; D1, W2, T3)."""

from __future__ import annotations

import pytest

from tests.edge_world import BOB, CONTACT, PBX, World, backend_request, register, request, response, routes_of
from tests.test_edge_embedded import PHONE
from tests.test_edge_embedded import Office as WithPhones
from tests.test_edge_registrar import INSTANCE, Office
from tests.test_edge_workers import ALICE, CALLEE, Crew, forwarded, header
from wsgate.sip import subscriptions
from wsgate.sip.flow import Flow
from wsgate.sip.message import Message

OWN = "Contact: <sip:alice40000@alice.invalid;transport=ws>"


def notify(subscribe: Message, tag: str, state: str = "active", uri: str = "", **fields: str) -> bytes:
    """What a browser sends that got `subscribe`."""
    name = (subscribe.header(b"to") or b"").decode().partition(";")[0]
    values = {
        "from": f"{name};tag={tag}",
        "to": (subscribe.header(b"from") or b"").decode(),
        "call_id": subscribe.call_id.decode(),
    } | fields
    contact = f"Contact: <sip:bob-{tag}@bob.invalid;transport=ws>"
    route = f"Route: {routes_of(subscribe, is_caller=False)}"
    lines = (route, contact, "Event: presence", f"Subscription-State: {state}")
    return request("NOTIFY", uri or "sip:alice40000@alice.invalid;transport=ws", *lines, **values)


def subscribed(method: str = "SUBSCRIBE", **options: object) -> tuple[Office, Flow, Flow, Message]:
    """Alice's SUBSCRIBE stands at bob's browser, without an answer."""
    world = Office(**options)
    alice, bob = world.phone("alice"), world.phone("bob", port=40001)
    world.call(alice, method, "Event: presence")
    return world, alice, bob, world.one(bob)


@pytest.mark.parametrize("method", ["SUBSCRIBE", "REFER"])
def test_a_notify_that_outruns_the_200_passes_and_begins_the_dialog(method: str):
    """RFC 6665 §4.4.1, RFC 3515 §2.4.4; W2: the table knows the dialog for both."""
    world, alice, bob, arrived = subscribed(method)
    world.from_browser(bob, notify(arrived, "b1"))
    early = world.one(alice)
    assert early.method == b"NOTIFY"
    world.from_browser(alice, response(early, 200, "OK"))
    assert world.one(bob).status == 200
    world.from_browser(bob, response(arrived, 200, "OK", "Contact: <sip:bob@bob.invalid;transport=ws>", to_tag="b1"))
    assert world.one(alice).status == 200
    assert world.edge.counts()["dialogs"] == 1
    route = f"Route: {routes_of(early, is_caller=False)}"
    again = request("SUBSCRIBE", "sip:bob@bob.invalid", route, to="<sip:bob@example.com>;tag=b1", cseq="2")
    world.from_browser(alice, again)
    assert world.one(bob).method == b"SUBSCRIBE", "by the Record-Route of the NOTIFY"


def test_a_last_notify_before_the_200_leaves_no_dialog():
    """RFC 6665 §4.4.1: the answer to a fetch (Expires: 0) begins nothing that its NOTIFY has ended."""
    world, alice, bob, arrived = subscribed()
    world.from_browser(bob, notify(arrived, "b1", "terminated;reason=timeout"))
    world.from_browser(alice, response(world.one(alice), 200, "OK"))
    world.from_browser(bob, response(arrived, 200, "OK", "Contact: <sip:bob@bob.invalid>", to_tag="b1"))
    assert world.one(alice).status == 200
    assert world.edge.counts()["dialogs"] == 0


def test_every_fork_of_a_subscribe_may_notify_within_timer_n():
    """RFC 6665 §4.1.2.4: only one 2xx passes, the other subscriptions begin with their NOTIFY."""
    world = Office()
    alice = world.phone("alice")
    bobs = [world.phone("bob", INSTANCE.format(n), port=40001 + n) for n in range(3)]
    world.call(alice, "SUBSCRIBE", "Event: presence")
    arrived = [world.one(bob) for bob in bobs]
    for number, bob in enumerate(bobs):
        world.from_browser(bob, response(arrived[number], 200, "OK", "Contact: <sip:b@b.invalid>", to_tag=f"b{number}"))
    assert world.one(alice).status == 200
    world.take()
    world.now += 31
    world.from_browser(bobs[1], notify(arrived[1], "b1"))
    assert world.one(alice).method == b"NOTIFY"
    world.move(2)
    world.take()
    world.from_browser(bobs[2], notify(arrived[2], "b2"))
    assert world.one(bobs[2]).status == 481
    world.from_browser(bobs[1], notify(arrived[1], "b1", cseq="2"))
    assert world.one(alice).method == b"NOTIFY", "its dialog lives on"


def test_only_where_the_subscribe_went_a_notify_begins_anything():
    """W2, D1: another browser that knows Call-ID and tag, or another tag or Call-ID, gets 481."""
    world, alice, bob, arrived = subscribed()
    mallory = world.phone("carol", port=40002)
    world.from_browser(mallory, notify(arrived, "m1"))
    assert world.one(mallory).status == 481
    tag = "<sip:alice@example.com>;tag=other"
    for fields in ({"to": tag}, {"call_id": "other"}):
        world.from_browser(bob, notify(arrived, "b1", **fields))
        assert world.one(bob).status == 481
    assert world.take(alice) == []
    assert world.edge.counts()["dialogs"] == 0


def test_an_early_notify_is_taken_for_subscriptions_alone():
    """RFC 6665 §4.1.2.4: no INVITE waits for one."""
    world = Office()
    alice, bob = world.phone("alice"), world.phone("bob", port=40001)
    world.call(alice)
    world.take(alice)
    world.from_browser(bob, notify(world.one(bob), "b1"))
    assert world.one(bob).status == 481


def test_what_waits_for_notifies_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """The oldest subscription goes; one SUBSCRIBE begins no more dialogs than it may have branches."""
    monkeypatch.setattr(subscriptions, "PENDING_MAX", 2)
    monkeypatch.setattr(subscriptions, "NOTIFIERS_MAX", 2)
    world = Office()
    alice, bob = world.phone("alice"), world.phone("bob", port=40001)
    arrived = []
    for number in range(3):
        world.call(alice, "SUBSCRIBE", "Event: presence", call_id=f"s{number}")
        arrived.append(world.one(bob))
    world.from_browser(bob, notify(arrived[0], "b1"))
    assert world.one(bob).status == 481
    for number in range(3):
        world.from_browser(bob, notify(arrived[1], f"b{number}"))
    assert [answer.status for answer in world.take(bob)] == [481]
    assert world.edge.counts()["dialogs"] == 2
    assert world.counters.values["sip_subscriptions_forgotten"] == 1


def test_a_browser_notifies_a_phone_of_ours_before_its_200():
    """D1 b, G5: the phone's Contact is reached as in any dialog."""
    world = WithPhones()
    bob = world.browser(port=40001)
    world.register_browser(bob, "bob")
    world.register_phone("alice", "<sip:alice@192.168.7.7:5060>")
    via = "SIP/2.0/UDP 192.168.7.7:5060;rport;branch=z9hG4bKsub"
    contact = "Contact: <sip:alice@192.168.7.7:5060>"
    world.from_backend(request("SUBSCRIBE", "sip:bob@example.com", contact, "Event: x", via=via), PHONE)
    world.take(PHONE)
    arrived = world.one(bob)
    world.from_browser(bob, notify(arrived, "b1", uri="sip:alice@192.168.7.7:5060"))
    assert world.one(PHONE).method == b"NOTIFY"


def test_a_fork_behind_a_backend_begins_its_dialog_by_its_notify():
    """RFC 6665 §4.1.2.4: the far end of a NOTIFY without 200 is a dialog that identities and D1 know."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, request("SUBSCRIBE", "sip:bob@example.com", CONTACT, "Event: presence"))
    arrived = world.one(PBX)
    world.from_backend(response(arrived, 200, "OK", BOB, to_tag="b1"))
    names = {"from": "<sip:bob@example.com>;tag=b2", "to": "<sip:alice@example.com>;tag=a1", "call_id": "call-1@test"}
    route = f"Route: {routes_of(arrived, is_caller=False)}"
    world.from_backend(backend_request("NOTIFY", "sip:alice@abc.invalid;transport=ws", route, BOB, **names))
    assert world.take(flow)[-1].method == b"NOTIFY"
    assert world.edge.counts()["dialogs"] == 2


def test_a_notify_to_a_browser_of_another_worker():
    """T3, W2: both workers know the dialog from then on."""
    crew = Crew()
    first, second = crew.worlds
    alice, bob = first.browser(), second.browser("203.0.113.6")
    register(first, alice)
    path = header(register(second, bob, f"Contact: <{CALLEE}>;expires=600", user="bob"), b"path")
    crew.settle()
    first.from_browser(alice, request("SUBSCRIBE", "sip:bob@example.com", CONTACT, "Event: presence"))
    second.from_backend(forwarded(first.one(PBX), CALLEE, path))
    second.take(PBX)
    second.from_browser(bob, notify(second.one(bob), "b1", uri=ALICE))
    crew.settle()
    early = first.one(alice)
    assert early.method == b"NOTIFY"
    first.from_browser(alice, response(early, 200, "OK"))
    crew.settle()
    assert second.one(bob).status == 200
    assert [world.edge.counts()["dialogs"] for world in crew.worlds] == [1, 1]
