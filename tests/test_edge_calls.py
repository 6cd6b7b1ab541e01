"""Calls out of a browser: I1 to I7, C3, C4, V1, V3, and the answers that belong to them."""

from __future__ import annotations

import pytest

from tests.edge_world import (
    BOB,
    CONTACT,
    PBX,
    Call,
    World,
    ack_of,
    backend_request,
    register,
    request,
    response,
    routes_of,
    udp,
)
from wsgate.addr import Address, Transport
from wsgate.sip.message import Message
from wsgate.sip.targets import Target

INVITE = ("INVITE", "sip:bob@example.com", CONTACT)


def called(world: World, **fields: str):
    """A browser's INVITE on its way: the flow and the INVITE as the PBX got it."""
    flow = world.browser()
    world.from_browser(flow, request(*INVITE, **fields))
    invite = world.one(PBX)
    assert world.one(flow).status == 100
    return flow, invite


def test_100_trying_comes_at_once_even_before_the_backend_is_found():
    """I1, N5: one waiting resolution holds nobody up."""
    world = World({"example.com": None})
    flow = world.browser()
    world.from_browser(flow, request(*INVITE))
    assert world.one().status == 100
    assert [effect.backend for effect in world.asked] == ["example.com"]


def test_the_record_routes_stand_as_a_pair_with_the_flow_token_on_both():
    """I2, T2: backend side on top."""
    world = World()
    flow, invite = called(world)
    assert invite.values(b"record-route") == [
        b"<sip:%b@192.0.2.1:5060;r2=on;lr>" % flow.token,
        b"<sip:%b@gate.example.org:443;transport=ws;r2=on;lr>" % flow.token,
    ]


def test_the_way_to_the_backend_is_retransmitted_by_timer_a_until_an_answer():
    """I1: UDP legs use T1 = 500 ms; C3, I6: the browser's leg never retransmits."""
    world = World()
    flow, invite = called(world)
    world.move(3.6)
    assert [message.data for message in world.take(PBX)] == [invite.data] * 3
    world.from_backend(response(invite, 180, "Ringing", BOB, to_tag="b1"))
    world.move(20)
    assert world.take(PBX) == []
    assert [message.status for message in world.take(flow)] == [180]


def test_every_provisional_but_100_passes_and_its_retransmission_does_not():
    """I5, I6."""
    world = World()
    flow, invite = called(world)
    for status, tag in [(100, ""), (180, "b1"), (180, "b1"), (183, "b1"), (180, "b2"), (183, "b1")]:
        world.from_backend(response(invite, status, "Progress", BOB, to_tag=tag))
    passed = world.take(flow)
    assert [(message.status, message.to_tag) for message in passed] == [(180, b"b1"), (183, b"b1"), (180, b"b2")]
    assert all(len(message.values(b"via")) == 1 for message in passed), "C1"


@pytest.mark.parametrize("status", [302, 401, 404, 407, 486, 488, 500, 603])
def test_a_failure_passes_once_and_is_acknowledged_hop_by_hop(status):
    """I6; 3261 §17.1.1.3."""
    world = World()
    flow, invite = called(world)
    for _ in range(3):
        world.from_backend(response(invite, status, "No", to_tag="b1"))
    assert [message.status for message in world.take(flow)] == [status]
    acks = world.take(PBX)
    assert [ack.method for ack in acks] == [b"ACK"] * 3
    assert {ack.branch for ack in acks} == {invite.branch}
    world.from_browser(flow, b"")
    assert world.sent == []


def test_the_browsers_ack_of_a_failure_ends_at_the_gate():
    """I6, I7."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, invite := request(*INVITE))
    world.take(flow)
    world.from_backend(response(world.one(PBX), 486, "Busy Here", to_tag="b1"))
    world.take(PBX)
    busy = world.one(flow)
    world.from_browser(flow, ack_of(busy, Message.parse(invite)))
    assert world.sent == []


def test_every_2xx_passes_each_retransmission_too_and_each_ack_goes_out_again():
    """I6, I7: the ACK is its own request without transaction."""
    world = World()
    call = Call(world, world.browser())
    again = response(call.invite, 200, "OK", BOB, to_tag="b1")
    for _ in range(3):
        world.from_backend(again)
        assert world.one(call.flow).status == 200
        world.from_browser(call.flow, call.request("ACK", cseq="1"))
        ack = world.one(PBX)
        assert (ack.method, ack.uri, ack.lines(b"route")) == (b"ACK", b"sip:bob@198.51.100.7", [])
    world.move(33)
    world.from_backend(again)
    assert world.sent == [], "V3: after Timer M (6026) it matches nothing"
    assert world.counters.values["sip_responses_unmatched"] == 1


def test_each_forked_2xx_passes():
    """I6, G6."""
    world = World()
    flow, invite = called(world)
    for tag in ("b1", "b2"):
        world.from_backend(response(invite, 200, "OK", BOB, to_tag=tag))
    assert [message.to_tag for message in world.take(flow)] == [b"b1", b"b2"]


def test_an_ack_is_never_answered():
    """I7, table A: whatever is wrong with it."""
    world = World()
    flow = world.browser()
    for data in (
        request("ACK", "sip:bob@nowhere.example", to="<sip:b@x>;tag=1"),
        request("ACK", "sip:bob@203.0.113.9"),
        request("ACK", "sip:bob@example.com", max_forwards="0"),
        request("ACK", "tel:1"),
        request("ACK", "sip:bob@example.com?x=y"),
        request("ACK", "sip:bob@example.com", "Route: <sip:"),
        request("ACK", "sip:bob@example.com", "Content-Length: 99"),
    ):
        world.from_browser(flow, data)
        world.apply(world.edge.refused(flow.id, data))
    assert world.sent == []
    assert world.asked == []


def test_an_invite_timeout_is_408_and_a_branch_that_rang_is_cancelled_by_timer_c():
    """N3, I5; 3261 §16.8."""
    world = World()
    flow, invite = called(world)
    world.move(33)
    world.take(PBX)
    assert world.one(flow).status == 408
    flow, invite = called(world, call_id="c2")
    world.from_backend(response(invite, 180, "Ringing", BOB, to_tag="b1"))
    world.move(199)
    assert world.take(PBX) == []
    world.move(1.2)
    cancel = world.one(PBX)
    assert (cancel.method, cancel.branch) == (b"CANCEL", invite.branch)
    world.from_backend(response(cancel, 200, "OK"))
    world.from_backend(response(invite, 487, "Request Terminated", to_tag="b1"))
    assert [message.status for message in world.take(flow)] == [180, 487]


def test_each_provisional_restarts_timer_c():
    """I5; 3261 §16.7 step 2."""
    world = World()
    _, invite = called(world)
    for number in range(4):
        world.from_backend(response(invite, 180 + number, "Progress", BOB, to_tag="b1"))
        world.move(150)
    assert [message.method for message in world.take(PBX)] == []
    world.move(50.2)
    assert world.one(PBX).method == b"CANCEL"


def test_what_timer_c_ended_tries_no_further_target():
    """I5, N2: a call that rang for minutes does not ring somewhere else then."""
    second = Address("198.51.100.8", 5060)
    world = World({"example.com": [udp(), udp(second)]})
    flow, invite = called(world)
    world.from_backend(response(invite, 180, "Ringing", BOB, to_tag="b1"))
    world.move(240)
    assert world.take(second) == []
    assert [message.status for message in world.take(flow)] == [180, 408]


@pytest.mark.parametrize("method", ["OPTIONS", "MESSAGE", "REGISTER", "SUBSCRIBE", "PUBLISH", "BYE"])
def test_a_timeout_of_another_request_than_invite_is_never_answered(method):
    """N3; 4320 §4.2: only the 100 that says it is being worked on."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, request(method, "sip:bob@example.com", CONTACT))
    world.move(120)
    assert {message.status for message in world.take(flow)} <= {100}
    counts = world.edge.counts()
    assert counts["transactions"] == counts["probes"]


@pytest.mark.parametrize(
    ("headers", "status", "shown"),
    [
        (["Proxy-Require: foo"], 420, b"foo"),
        (["Proxy-Require: foo, bar"], 420, b"foo, bar"),
        (["Require: foo"], 0, b""),
    ],
)
def test_an_unknown_proxy_require_is_420(headers, status, shown):
    """I3; 3261 §16.3 step 5. Require is the far end's."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, request(*INVITE, *headers))
    if status:
        answer = world.one()
        assert (answer.status, answer.header(b"unsupported")) == (status, shown)
    else:
        assert world.one(PBX).header(b"require") == b"foo"


def test_a_response_goes_only_down_the_connection_of_its_request():
    """V3: Via, maddr and received of a browser lead nowhere."""
    world = World()
    flow = world.browser()
    via = "SIP/2.0/WSS 198.51.100.66:5060;branch=z9hG4bKv;maddr=198.51.100.67;received=198.51.100.68;rport=9"
    world.from_browser(flow, request(*INVITE, via=via))
    world.from_backend(response(world.one(PBX), 486, "Busy Here", to_tag="b"))
    world.take(PBX)
    assert [message.status for message in world.take(flow)] == [100, 486]
    assert world.sent == []


def test_a_response_must_come_from_an_address_of_the_backend_any_port():
    """V3: from another member of the cluster and another port too; from anywhere else it is dropped and counted."""
    member = Address("198.51.100.8", 5060)
    world = World({"example.com": [udp(), udp(member)]})
    flow, invite = called(world)
    ringing = response(invite, 180, "Ringing", BOB, to_tag="b1")
    world.from_backend(ringing, Address("203.0.113.66", 5060))
    other = world.browser(host=PBX.host)
    world.from_browser(other, ringing)
    assert world.take() == []
    assert world.counters.values["sip_responses_from_elsewhere"] == 2
    world.from_backend(ringing, Address(member.host, 61000))
    assert world.one(flow).status == 180


def test_a_response_that_matches_no_branch_or_method_is_dropped_and_counted():
    """V3."""
    world = World()
    _, invite = called(world)
    good = response(invite, 200, "OK", BOB, to_tag="b1")
    world.from_backend(good.replace(b"branch=z9hG4bKwsg", b"branch=z9hG4bKxyz", 1))
    world.from_backend(good.replace(b"CSeq: 1 INVITE", b"CSeq: 1 BYE"))
    assert world.sent == []
    assert world.counters.values["sip_responses_unmatched"] == 2


def test_a_response_of_a_browser_gets_a_content_length_towards_the_backend():
    """I3: always towards the backend side."""
    world = World()
    flow = world.browser()
    path = register(world, flow).header(b"path").decode()
    world.from_backend(backend_request("INVITE", "sip:alice@abc.invalid;transport=ws", f"Route: {path}"))
    world.take(PBX)
    answer = response(world.one(flow), 200, "OK", CONTACT, to_tag="a1", body=b"v=0\r\n")
    world.from_browser(flow, answer.replace(b"Content-Length: 5\r\n", b""))
    assert world.one(PBX).header(b"content-length") == b"5"


def test_the_route_set_of_the_browser_leads_back_through_both_of_our_entries():
    """I2, W2: what it took from Record-Route is popped whole."""
    world = World()
    call = Call(world, world.browser())
    assert call.routes == routes_of(call.ok, is_caller=True)
    world.from_browser(call.flow, call.request("BYE"))
    bye = world.one(PBX)
    assert bye.lines(b"route") == []
    assert bye.uri == b"sip:bob@198.51.100.7"


def test_a_tcp_backend_gets_via_tcp_and_record_route_with_transport_tcp():
    """V1, I2."""
    world = World({"example.com": [Target(Transport.TCP, PBX, "pbx.example.com")]})
    flow = world.browser()
    world.from_browser(flow, request(*INVITE))
    hop, _ = world.sent[-1]
    invite = world.one(PBX)
    assert hop.transport is Transport.TCP
    assert invite.values(b"via")[0].startswith(b"SIP/2.0/TCP 192.0.2.1:5060;branch=z9hG4bK")
    assert invite.values(b"record-route")[0].endswith(b"@192.0.2.1:5060;transport=tcp;r2=on;lr>")
    world.move(31)
    assert world.take(PBX) == [], "I1: no retransmission over a stream"


def test_one_browser_holds_its_share_of_the_transactions_and_no_more() -> None:
    """Limits: the others go on, and it has room again when what it asked has ended."""
    world = World(transactions_per_connection=3)
    greedy, other = world.browser(), world.browser()
    for number in range(5):
        world.from_browser(greedy, request("MESSAGE", "sip:bob@example.com", CONTACT, call_id=f"c{number}"))
    answers = world.take(greedy)
    assert [answer.status for answer in answers] == [503, 503]
    assert all(b"transactions_per_connection" in (answer.header(b"warning") or b"") for answer in answers)
    assert len(world.take(PBX)) == 3
    world.from_browser(other, request("MESSAGE", "sip:bob@example.com", CONTACT, call_id="other"))
    assert len(world.take(PBX)) == 1
    world.move(40)
    world.take(greedy)
    world.from_browser(greedy, request("MESSAGE", "sip:bob@example.com", CONTACT, call_id="again"))
    assert world.take(greedy) == []


@pytest.mark.parametrize("status", [180, 200, 486])
@pytest.mark.parametrize("kept", [b"", b"Via: \r\n"])
def test_a_response_that_lost_the_via_of_the_browser_is_not_shown_to_it(status: int, kept: bytes):
    """C1, V3; RFC 3261 §16.7 step 3: it was meant for us alone."""
    world = World()
    flow, invite = called(world)
    answer = response(invite, status, "Any", BOB, to_tag="b1")
    own = b"Via: %b\r\n" % invite.values(b"via")[1]
    world.from_backend(answer.replace(own, kept))
    assert world.take() == []
    assert world.counters.values["sip_responses_without_next_via"] == 1
    joined = b", ".join(invite.values(b"via"))
    world.from_backend(answer.replace(own, b"").replace(invite.values(b"via")[0], joined))
    assert world.one(flow).values(b"via") == [own[5:-2]]


# OPTIONS for wsgate itself


@pytest.mark.parametrize("from_backend", [True, False])
def test_g1_options_for_us_needs_no_hop_and_is_refused_what_we_do_not_know(from_backend: bool) -> None:
    """RFC 3261 §8.1.1.6, §8.2.2.3, §11.2: servers ask so whether we live, with Max-Forwards 0."""
    world = World()
    flow = world.browser()

    def asked(*headers: str, uri: str = "sip:192.0.2.1:5060", **fields: str) -> Message:
        data = (backend_request if from_backend else request)("OPTIONS", uri, *headers, **fields)
        if from_backend:
            world.from_backend(data)
            return world.one(PBX)
        world.from_browser(flow, data)
        return world.one(flow)

    answer = asked(max_forwards="0")
    assert answer.status == 200
    assert answer.header(b"supported") == b"path, outbound"
    assert asked("Require: path, Outbound").status == 200
    answer = asked("Require: foo, path", "Require: bar")
    assert (answer.status, answer.header(b"unsupported")) == (420, b"foo, bar")
    for uri in ("sip:bob@192.0.2.1:5060", "sip:example.com", "sip:192.0.2.9"):
        assert asked(uri=uri, max_forwards="0").status == 483, uri
    assert asked("Route: <sip:198.51.100.7;lr>", max_forwards="0").status == 483
