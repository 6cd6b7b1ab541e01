"""Which addresses signalling opens for whose TURN credentials, and for how long (rule P6)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.edge_world import (
    BOB,
    CONTACT,
    PBX,
    Call,
    World,
    backend_request,
    register,
    request,
    response,
    routes_of,
)
from tests.test_edge_embedded import Office
from wsgate.call_peers import CallPeers
from wsgate.sip.calls import GENERATIONS_MAX
from wsgate.sip.flow import Flow
from wsgate.sip.message import Message

SDP = "Content-Type: application/sdp"
FRAGMENT = "Content-Type: application/trickle-ice-sdpfrag"
ALICE_HOST, BOB_HOST, NEW_HOST = "198.51.100.11", "198.51.100.22", "198.51.100.33"


def sdp(host: str, ufrag: str = "u1") -> bytes:
    return (
        f"v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\nc=IN IP4 {host}\r\nt=0 0\r\nm=audio 4000 RTP/SAVPF 0\r\n"
        f"a=ice-ufrag:{ufrag}\r\n"
    ).encode()


def fragment(host: str, ufrag: str = "u1") -> bytes:
    return f"a=ice-ufrag:{ufrag}\r\na=candidate:1 1 udp 1 {host} 4010 typ host\r\na=end-of-candidates\r\n".encode()


class Backed(World):
    """Alice behind a browser, bob behind the PBX; `open` tells what alice's credentials may reach."""

    def __init__(self, **options: Any) -> None:
        self.peers = CallPeers()
        super().__init__(call_peers=self.peers, **options)
        self.flow = self.browser()
        register(self, self.flow)

    def open(self, user: str = "alice") -> set[str]:
        return hosts(self, self.peers, user)

    def invite(self, body: bytes = sdp(ALICE_HOST)) -> Message:
        self.from_browser(self.flow, request("INVITE", "sip:bob@example.com", CONTACT, SDP, body=body))
        assert self.one(self.flow).status == 100
        return self.one(PBX)

    def answer(self, asked: Message, status: int, body: bytes = b"", tag: str = "b1") -> Message:
        self.from_backend(response(asked, status, "Reason", BOB, *([SDP] if body else []), to_tag=tag, body=body))
        return self.one(self.flow)


def hosts(world: World, peers: CallPeers, user: str) -> set[str]:
    """What is open for the one registration of a user."""
    (registration,) = world.directory.registrations_for(f"{user}@example.com".encode())
    everywhere = (ALICE_HOST, BOB_HOST, NEW_HOST, "198.51.100.44")
    found = {host for host in everywhere if peers.allows_host(registration.id, host)}
    assert found == {
        host
        for host in everywhere
        if peers.allows(registration.id, host, 4000) or peers.allows(registration.id, host, 4010)
    }
    return found


class Up(Backed):
    """A call that is up; alice may reach BOB_HOST."""

    def __init__(self) -> None:
        super().__init__()
        asked = self.invite()
        ok = self.answer(asked, 200, sdp(BOB_HOST))
        self.call = Call.__new__(Call)
        self.call.world, self.call.flow, self.call.call_id = self, self.flow, "call-1@test"
        self.call.invite, self.call.ok, self.call.routes = asked, ok, routes_of(ok, is_caller=True)

    def from_bob(self, method: str, body: bytes, cseq: str, *headers: str) -> Message:
        """A request of bob inside the call, as alice's browser gets it."""
        self.take()
        self.from_backend(self.call.backend_request(method, *(headers or (SDP,)), BOB, body=body, cseq=cseq))
        (arrived,) = (message for message in self.take(self.flow) if message.is_request)
        return arrived

    def alice_answers(self, arrived: Message, status: int, body: bytes = b"") -> None:
        self.take()
        data = response(arrived, status, "Reason", CONTACT, *([SDP] if body else []), to_tag="a1", body=body)
        self.from_browser(self.flow, data)
        assert [message.status for message in self.take(PBX)] == [status]


# To and from a phone behind a backend


@pytest.mark.parametrize("status", [183, 200])
def test_the_answer_opens_for_the_caller_and_its_own_offer_never_does(status: int) -> None:
    world = Backed()
    asked = world.invite()
    assert world.open() == set()
    world.answer(asked, status, sdp(BOB_HOST))
    assert world.open() == {BOB_HOST}


def test_without_a_to_tag_or_with_a_body_of_another_kind_nothing_opens() -> None:
    world = Backed()
    asked = world.invite()
    world.from_backend(response(asked, 183, "Progress", BOB, SDP, body=sdp(BOB_HOST)))
    world.from_backend(response(asked, 183, "Progress", BOB, "Content-Type: x/y", to_tag="b1", body=sdp(BOB_HOST)))
    encoded = (SDP, "Content-Encoding: gzip")
    world.from_backend(response(asked, 183, "Progress", BOB, *encoded, to_tag="b1", body=sdp(NEW_HOST)))
    assert len(world.take(world.flow)) == 3, "none of them was taken for a retransmission"
    assert world.open() == set()


def test_bye_ends_it() -> None:
    world = Up()
    assert world.peers.take_narrowed() == set()
    world.from_browser(world.flow, world.call.request("BYE"))
    assert world.open() == {BOB_HOST}
    world.from_backend(response(world.one(PBX), 200, "OK"))
    assert world.open() == set()
    assert len(world.peers.take_narrowed()) == 1
    assert len(world.peers) == 0


def test_of_a_subscription_nothing_is_taken() -> None:
    """Calls alone count, whatever other dialogs say."""
    world = Backed()
    world.from_browser(world.flow, request("SUBSCRIBE", "sip:bob@example.com", CONTACT, "Event: presence"))
    asked = world.one(PBX)
    ok = world.answer(asked, 200)
    assert ok.status == 200
    routes = f"Route: {routes_of(asked, is_caller=False)}"
    uri = "sip:alice@abc.invalid;transport=ws"
    to = "<sip:alice@example.com>;tag=a1"
    world.from_backend(backend_request("INFO", uri, routes, FRAGMENT, body=fragment(NEW_HOST), to=to))
    assert world.one(world.flow).method == b"INFO"
    assert world.open() == set()


def test_a_final_failure_ends_early_media() -> None:
    world = Backed()
    asked = world.invite()
    world.answer(asked, 183, sdp(BOB_HOST))
    assert world.open() == {BOB_HOST}
    world.from_backend(response(asked, 486, "Busy", to_tag="b1"))
    assert world.open() == set()


def test_forked_early_dialogs_are_all_open_until_one_wins() -> None:
    """RFC 3261 §13.2.2.4: the early dialogs of the others are over."""
    world = Backed()
    asked = world.invite()
    world.answer(asked, 183, sdp(BOB_HOST), "b1")
    world.answer(asked, 183, sdp(NEW_HOST), "b2")
    assert world.open() == {BOB_HOST, NEW_HOST}
    world.answer(asked, 200, sdp(NEW_HOST), "b2")
    assert world.open() == {NEW_HOST}


def test_the_answer_may_stand_in_the_provisional_response_alone() -> None:
    """RFC 3262 §5: an answer in a reliable 183 is not repeated in the 200."""
    world = Backed()
    asked = world.invite()
    world.answer(asked, 183, sdp(BOB_HOST))
    world.answer(asked, 200)
    assert world.open() == {BOB_HOST}


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
def test_an_offer_of_the_other_party_counts_at_once_and_takes_the_place_of_the_old_one_when_accepted(
    method: str,
) -> None:
    world = Up()
    arrived = world.from_bob(method, sdp(NEW_HOST), "1")
    assert world.open() == {BOB_HOST, NEW_HOST}
    world.alice_answers(arrived, 200, sdp(ALICE_HOST))
    assert world.open() == {NEW_HOST}


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
def test_an_offer_that_is_refused_leaves_what_was(method: str) -> None:
    world = Up()
    for cseq in ("1", "2"):
        arrived = world.from_bob(method, sdp(NEW_HOST), cseq)
        world.alice_answers(arrived, 488)
        assert world.open() == {BOB_HOST}


def test_the_answer_to_an_offer_of_ours_may_move_the_media() -> None:
    world = Up()
    world.from_browser(
        world.flow, world.call.request("INVITE", "sip:bob@198.51.100.7", CONTACT, SDP, body=sdp(ALICE_HOST))
    )
    again = world.one(PBX)
    world.from_backend(response(again, 200, "OK", BOB, SDP, body=sdp(NEW_HOST)))
    assert world.open() == {NEW_HOST}


def test_what_a_refused_offer_of_ours_showed_before_is_over() -> None:
    world = Up()
    data = world.call.request("INVITE", "sip:bob@198.51.100.7", CONTACT, SDP, body=sdp(ALICE_HOST))
    world.from_browser(world.flow, data)
    again = world.one(PBX)
    world.from_backend(response(again, 183, "Progress", BOB, SDP, body=sdp(NEW_HOST)))
    assert world.open() == {BOB_HOST, NEW_HOST}
    world.from_backend(response(again, 488, "Not Acceptable"))
    assert world.open() == {BOB_HOST}


def test_an_answer_may_come_in_the_ack() -> None:
    """RFC 3264 §4: an INVITE without an offer; the 2xx offers, the ACK answers."""
    world = Up()
    arrived = world.from_bob("INVITE", b"", "1")
    world.alice_answers(arrived, 200, sdp(ALICE_HOST))
    assert world.open() == {BOB_HOST}
    world.from_backend(world.call.backend_request("ACK", SDP, body=sdp(NEW_HOST), cseq="1"))
    assert world.one(world.flow).method == b"ACK"
    assert world.open() == {NEW_HOST}


def test_trickled_candidates_count_until_ice_begins_anew() -> None:
    """RFC 8840: INFO with a fragment; RFC 8445 §9: a restart has another user fragment."""
    world = Up()
    world.from_bob("INFO", fragment("198.51.100.44"), "1", FRAGMENT)
    assert world.open() == {BOB_HOST, "198.51.100.44"}
    world.alice_answers(world.from_bob("INVITE", sdp(BOB_HOST, "u1"), "2"), 200, sdp(ALICE_HOST))
    assert world.open() == {BOB_HOST, "198.51.100.44"}
    arrived = world.from_bob("INVITE", sdp(BOB_HOST, "u2"), "3")
    world.from_bob("INFO", fragment(NEW_HOST, "u2"), "4", FRAGMENT)
    world.alice_answers(arrived, 200, sdp(ALICE_HOST))
    assert world.open() == {BOB_HOST, NEW_HOST}


def test_generations_and_candidates_that_are_trickled_have_a_limit() -> None:
    world = Up()
    (registration,) = world.directory.registrations_for(b"alice@example.com")
    for number in range(GENERATIONS_MAX + 1):
        many = b"".join(fragment(f"203.0.{number}.{host}", f"g{number}") for host in range(1, 101))
        world.from_bob("INFO", many, str(2 * number + 1), FRAGMENT)
        world.from_bob("INFO", many.replace(b"203.0.", b"203.9."), str(2 * number + 2), FRAGMENT)
    is_open = {
        (second, number): world.peers.allows_host(registration.id, f"203.{second}.{number}.7")
        for second in (0, 9)
        for number in range(GENERATIONS_MAX + 1)
    }
    # Of each generation the fragment that would be too many replaces those before it; the oldest generation is over.
    assert is_open == {(second, number): second == 9 and number > 0 for second, number in is_open}


def test_candidates_of_ones_own_never_count() -> None:
    world = Up()
    world.from_browser(
        world.flow, world.call.request("INFO", "sip:bob@198.51.100.7", FRAGMENT, body=fragment(ALICE_HOST))
    )
    assert world.one(PBX).method == b"INFO"
    assert world.open() == {BOB_HOST}


def test_a_fragment_for_no_call_and_sdp_in_other_methods_open_nothing() -> None:
    world = Up()
    world.from_bob("MESSAGE", sdp(NEW_HOST), "1")
    world.from_bob("INFO", sdp(NEW_HOST), "2")
    assert world.open() == {BOB_HOST}
    alone = Backed()
    uri = alone.directory.registrations_for(b"alice@example.com")[0].contact.decode()
    alone.from_backend(backend_request("MESSAGE", uri, SDP, body=sdp(NEW_HOST)))
    assert alone.open() == set()


def test_nothing_is_kept_of_calls_that_are_over() -> None:
    world = Up()
    arrived = world.from_bob("INVITE", sdp(NEW_HOST), "1")
    world.take()
    world.from_browser(world.flow, world.call.request("BYE", cseq="3"))
    world.from_backend(response(world.one(PBX), 200, "OK"))
    assert world.open() == set()
    world.alice_answers(arrived, 487)
    world.move(64)
    assert len(world.peers) == 0


# Two browsers of the embedded registrar


class Two(Office):
    """Alice and bob in browsers; bob has two of them."""

    def __init__(self) -> None:
        self.peers = CallPeers()
        super().__init__(call_peers=self.peers)
        self.alice, self.bob = self.browser(port=40000), self.browser(port=41000)
        self.register_browser(self.alice, "alice", ';+sip.instance="<urn:uuid:a>";reg-id=1')
        self.register_browser(self.bob, "bob", ';+sip.instance="<urn:uuid:b>";reg-id=1')

    def open(self, user: str) -> set[str]:
        return hosts(self, self.peers, user)

    def open_through(self, flow: Flow) -> set[str]:
        (registration,) = self.directory.registrations_of(flow.id)
        return {host for host in (ALICE_HOST, BOB_HOST, NEW_HOST) if self.peers.allows_host(registration.id, host)}

    def call(self, user: str = "bob", caller: str = "alice", body: bytes = sdp(ALICE_HOST)) -> None:
        contact = f"Contact: <sip:{caller}-{self.alice.remote.port}@abc.invalid;transport=ws>"
        uri = f"sip:{user}@example.com"
        fields = {"from": f"<sip:{caller}@example.com>;tag=a1", "to": f"<{uri}>"}
        self.from_browser(self.alice, request("INVITE", uri, contact, SDP, body=body, **fields))

    def ring(self, flow: Flow) -> Message:
        (arrived,) = (message for message in self.take(flow) if message.is_request)
        return arrived

    def answers(self, flow: Flow, arrived: Message, status: int, body: bytes = b"", tag: str = "b1") -> None:
        headers = [CONTACT, *([SDP] if body else [])]
        self.from_browser(flow, response(arrived, status, "Reason", *headers, to_tag=tag, body=body))


def test_an_offer_opens_for_the_callee_before_there_is_a_dialog() -> None:
    world = Two()
    world.call()
    arrived = world.ring(world.bob)
    assert (world.open("alice"), world.open("bob")) == (set(), {ALICE_HOST})
    world.answers(world.bob, arrived, 180)
    assert (world.open("alice"), world.open("bob")) == (set(), {ALICE_HOST})
    world.answers(world.bob, arrived, 200, sdp(BOB_HOST))
    assert (world.open("alice"), world.open("bob")) == ({BOB_HOST}, {ALICE_HOST})
    assert world.peers.take_narrowed() == set()


def test_every_dialog_of_one_branch_holds_the_offer() -> None:
    """P6; RFC 3261 §13.2.2.4: forks behind one flow answer 200 each; the end of one takes nothing from the other."""
    world = Two()
    world.call()
    arrived = world.ring(world.bob)
    for tag in ("b1", "b2"):
        world.answers(world.bob, arrived, 200, sdp(BOB_HOST), tag)
    assert (world.open("alice"), world.open("bob")) == ({BOB_HOST}, {ALICE_HOST})
    ok = world.take(world.alice)[-1]
    for tag, left in (("b1", ({BOB_HOST}, {ALICE_HOST})), ("b2", (set(), set()))):
        route = f"Route: {routes_of(ok, is_caller=True)}"
        to = f"<sip:bob@example.com>;tag={tag}"
        world.from_browser(
            world.alice, request("BYE", "sip:bob-41000@abc.invalid;transport=ws", route, to=to, cseq="2")
        )
        world.from_browser(world.bob, response(world.ring(world.bob), 200, "OK"))
        world.answers(world.bob, arrived, 200, sdp(BOB_HOST), tag)
        assert (world.open("alice"), world.open("bob")) == left


@pytest.mark.parametrize("status", [486, 603])
def test_an_offer_that_is_declined_is_over(status: int) -> None:
    world = Two()
    world.call()
    world.answers(world.bob, world.ring(world.bob), status)
    assert world.open("bob") == set()
    assert len(world.peers) == 0


def test_an_offer_that_is_cancelled_or_never_answered_is_over() -> None:
    world = Two()
    world.call()
    world.ring(world.bob)
    world.move(200)
    assert world.open("bob") == set()


def test_an_offer_to_a_browser_that_leaves_is_over() -> None:
    world = Two()
    world.call()
    world.ring(world.bob)
    world.apply(world.edge.flow_closed(world.bob.id, world.now))
    assert world.open("bob") == set()


def test_who_lost_a_forked_call_may_reach_nobody() -> None:
    world = Two()
    second = world.browser(port=42000)
    world.register_browser(second, "bob", ';+sip.instance="<urn:uuid:c>";reg-id=1')
    world.call()
    first_ring, second_ring = world.ring(world.bob), world.ring(second)
    assert world.open_through(world.bob) == world.open_through(second) == {ALICE_HOST}
    world.answers(world.bob, first_ring, 180)
    world.answers(second, second_ring, 200, sdp(NEW_HOST), "b2")
    cancel = world.ring(world.bob)
    assert cancel.method == b"CANCEL"
    world.answers(world.bob, first_ring, 487)
    assert (world.open_through(world.bob), world.open_through(second)) == (set(), {ALICE_HOST})
    assert world.open("alice") == {NEW_HOST}


def test_the_same_user_twice_is_two_parties() -> None:
    world = Two()
    second = world.browser(port=42000)
    world.register_browser(second, "alice", ';+sip.instance="<urn:uuid:c>";reg-id=1')
    world.call("alice")
    arrived = world.ring(second)
    world.answers(second, arrived, 200, sdp(BOB_HOST))
    assert (world.open_through(world.alice), world.open_through(second)) == ({BOB_HOST}, {ALICE_HOST})


def test_two_accounts_of_one_connection_are_told_apart() -> None:
    """Another edge in front: many share a flow (W2); the Contact says who is meant, or else the AOR."""
    world = Two()
    contact = "<sip:carol-40000@abc.invalid;transport=ws>"
    world.register_browser(world.alice, "carol", ';+sip.instance="<urn:uuid:d>";reg-id=1')
    assert contact.encode()[1:-1] == world.directory.registrations_for(b"carol@example.com")[0].contact
    world.call(caller="alice")
    world.answers(world.bob, world.ring(world.bob), 200, sdp(BOB_HOST))
    assert (world.open("alice"), world.open("carol")) == ({BOB_HOST}, set())


def test_two_clients_of_one_user_on_one_connection_are_told_apart_by_their_contacts() -> None:
    world = Two()
    edge = world.browser(port=43000)
    ids = []
    for device in ("d1", "d2"):
        contact = f'<sip:{device}@abc.invalid;transport=ws>;+sip.instance="<urn:uuid:{device}>";reg-id=1'
        via = f"SIP/2.0/WSS abc.invalid;branch=z9hG4bKreg{device}"
        world.from_browser(edge, world.registering("carol", contact, via=via))
        assert world.one(edge).status == 200
        known = world.directory.registrations_of(edge.id)
        ids += [one.id for one in known if one.id not in ids]
    contact = "Contact: <sip:d2@abc.invalid;transport=ws;ob>"
    fields = {"from": "<sip:carol@example.com>;tag=a1", "to": "<sip:bob@example.com>"}
    world.from_browser(edge, request("INVITE", "sip:bob@example.com", contact, SDP, body=sdp(ALICE_HOST), **fields))
    world.answers(world.bob, world.ring(world.bob), 200, sdp(BOB_HOST))
    assert [world.peers.allows_host(one, BOB_HOST) for one in ids] == [False, True]


def test_the_aor_tells_who_is_meant_where_the_contact_does_not() -> None:
    world = Two()
    world.register_browser(world.alice, "carol", ';+sip.instance="<urn:uuid:d>";reg-id=1')
    fields = {"from": "<sip:carol@example.com>;tag=a1", "to": "<sip:bob@example.com>"}
    contact = "Contact: <sip:other@abc.invalid;transport=ws>"
    data = request("INVITE", "sip:bob@example.com", contact, SDP, body=sdp(ALICE_HOST), **fields)
    world.from_browser(world.alice, data)
    world.answers(world.bob, world.ring(world.bob), 200, sdp(BOB_HOST))
    assert (world.open("alice"), world.open("carol")) == (set(), {BOB_HOST})


def test_an_update_before_the_answer_is_newer_than_the_invite() -> None:
    """RFC 3311 §5.1."""
    world = Two()
    world.call()
    arrived = world.ring(world.bob)
    world.answers(world.bob, arrived, 183, sdp(BOB_HOST))
    (progress,) = (message for message in world.take(world.alice) if message.status == 183)
    fields = {"to": "<sip:bob@example.com>;tag=b1", "cseq": "2"}
    route = f"Route: {routes_of(progress, is_caller=True)}"
    contact = "Contact: <sip:alice-40000@abc.invalid;transport=ws>"
    uri = "sip:alice@abc.invalid;transport=ws"
    world.from_browser(world.alice, request("UPDATE", uri, route, contact, SDP, body=sdp(NEW_HOST), **fields))
    world.answers(world.bob, world.ring(world.bob), 200, sdp(BOB_HOST))
    assert world.open("bob") == {ALICE_HOST, NEW_HOST}
    world.answers(world.bob, arrived, 200, sdp(BOB_HOST))
    assert world.open("bob") == {NEW_HOST}


def test_the_next_client_of_an_instance_has_the_offer_and_the_former_has_not() -> None:
    """RFC 5626 §7: 430 from one flow, and the request goes to the next; here a registration with another reg-id."""
    world = Two()
    second = world.browser(port=42000)
    world.register_browser(second, "bob", ';+sip.instance="<urn:uuid:b>";reg-id=2')
    world.call()
    arrived = world.ring(second)
    assert world.open_through(second) == {ALICE_HOST}
    world.answers(second, arrived, 430)
    world.ring(world.bob)
    assert (world.open_through(second), world.open_through(world.bob)) == (set(), {ALICE_HOST})


def test_who_calls_himself_is_no_other_party() -> None:
    world = Two()
    world.call("alice")
    asked = [message for message in world.take(world.alice) if message.is_request]
    assert len(asked) == 1
    assert world.open("alice") == set()
    world.answers(world.alice, asked[0], 200, sdp(NEW_HOST))
    assert world.open("alice") == set()


def test_without_somebody_who_asks_nothing_is_kept() -> None:
    world = World()
    flow = world.browser()
    register(world, flow)
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT, SDP, body=sdp(ALICE_HOST)))
    world.from_backend(response(world.one(PBX), 200, "OK", BOB, SDP, to_tag="b1", body=sdp(BOB_HOST)))
    assert [message.status for message in world.take(flow)] == [100, 200]
