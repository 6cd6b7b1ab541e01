"""Calls to a browser: B1 to B6, C2, C3, D5, T2, V2, and CANCEL both ways."""

from __future__ import annotations

import pytest

from tests.edge_world import (
    BOB,
    CONTACT,
    PBX,
    TOKENS,
    Call,
    World,
    ack_of,
    backend_request,
    register,
    request,
    response,
    udp,
)
from wsgate.addr import Address, Hop, Transport
from wsgate.keys import Key
from wsgate.sip.flow import FlowTokens
from wsgate.sip.framing import Broken, StreamFramer
from wsgate.sip.message import Message

URI = "sip:alice@abc.invalid;transport=ws"
GONE = TOKENS.make(b"\xffunknown").decode()
FORGED = FlowTokens([Key(1, b"?" * 32)]).make(b"\xffunknown").decode()


def reached(world: World, *headers: str, **options):
    """An INVITE of the PBX at a registered browser: the flow, the INVITE it sent and how it arrived."""
    flow = world.browser(**options)
    path = register(world, flow).header(b"path").decode()
    sent = backend_request("INVITE", URI, f"Route: {path}", *headers)
    world.from_backend(sent)
    assert world.one(PBX).status == 100
    return flow, Message.parse(sent), world.one(flow)


@pytest.mark.parametrize(
    ("route", "status"),
    [
        (f"<sip:{FORGED}@192.0.2.1;lr>", 403),
        (f"<sip:{FORGED}@192.0.2.1;lr;ob>", 403),
        (f"<sip:{GONE}@192.0.2.1;lr>", 480),
        (f"<sip:{GONE}@192.0.2.1;lr;ob>", 430),
        (f"<sip:{GONE}@192.0.2.1;lr;OB>", 430),
        (f"<sip:{GONE}@203.0.113.77:9;transport=tcp;lr>", 480),
        ("<sip:192.0.2.1;lr>", 404),
        ("<sip:203.0.113.77;lr>", 404),
    ],
)
def test_a_forged_token_is_403_and_a_flow_that_is_gone_430_with_ob_else_480_at_once(route, status):
    """B1, T2, table A. A token with a right MAC counts whatever stands beside it (Ours)."""
    world = World()
    world.from_backend(backend_request("INVITE", URI, f"Route: {route}"))
    assert world.one(PBX).status == status
    assert world.asked == []


@pytest.mark.parametrize(
    ("length", "status"),
    [(b"", 400), (b"Content-Length: x\r\n", 400), (b"l: 1\r\nl: 2\r\n", 400), (b"Content-Length: 999999999\r\n", 513)],
)
def test_what_a_stream_cannot_frame_is_answered(length: bytes, status: int):
    """Table A; RFC 3261 §18.3, §20.14, §21.5.7: statelessly, and never an ACK, an answer, or a stranger twice."""
    world = World()
    framer = StreamFramer(16384, 262144)
    via = "SIP/2.0/TCP 198.51.100.7:5060;branch=z9hG4bKt"
    data = backend_request("MESSAGE", "sip:alice@example.com", via=via)
    [broken] = framer.receive(data.replace(b"Content-Length: 0\r\n", length))
    assert isinstance(broken, Broken)

    def unframed(head: bytes, address: Address = PBX) -> list[Message]:
        world.apply(world.edge.from_backend(Hop(Transport.TCP, address, b"c" * 8), head, world.now, broken.reason))
        assert all(hop.connection == b"c" * 8 for hop, _ in world.sent)
        return world.take()

    [answer] = unframed(broken.head)
    assert answer.status == status
    assert broken.reason.encode() in answer.header(b"warning") or status == 513
    assert unframed(broken.head.replace(b"MESSAGE", b"ACK")) == []
    assert unframed(b"SIP/2.0 200 OK\r\n" + broken.head.partition(b"\r\n")[2]) == []
    assert unframed(b"MESSAGE sip:alice@example.com SIP/2.0\r\n\r\n") == []
    stranger = Address("203.0.113.99", 40000)
    assert [message.status for message in unframed(broken.head, stranger) + unframed(broken.head, stranger)] == [403]


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE", "OPTIONS", "NOTIFY", "BYE"])
def test_a_request_without_token_for_a_served_domain_with_a_real_backend_is_404(method):
    """G1, D1: the flow its token names and nowhere else."""
    world = World()
    for uri in ("sip:alice@example.com", URI, "sip:x@203.0.113.9", "sip:x@elsewhere.example"):
        world.from_backend(backend_request(method, uri))
        assert world.one(PBX).status == 404
    assert world.asked == []


def test_the_request_uri_stays_untouched_and_under_invalid_nothing_is_resolved():
    """B3, B6, C2."""
    world = World()
    flow, _, arrived = reached(world)
    assert arrived.uri == URI.encode()
    assert world.asked == []
    assert arrived.lines(b"route") == []
    assert arrived.values(b"record-route") == [
        b"<sip:%b@gate.example.org:443;transport=ws;r2=on;lr>" % flow.token,
        b"<sip:%b@192.0.2.1:5060;r2=on;lr>" % flow.token,
    ]


@pytest.mark.parametrize(("secure", "word"), [(True, b"WSS"), (False, b"WS")])
def test_our_via_says_ws_or_wss_as_the_browser_sees_it(secure, word):
    """B3, V1."""
    _, _, arrived = reached(World(), secure=secure)
    assert arrived.values(b"via")[0].startswith(b"SIP/2.0/%b gate.example.org:443;branch=z9hG4bK" % word)


def test_a_request_that_comes_back_unchanged_is_a_loop():
    """B3, table A; 3261 §16.3 step 4."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT))
    looped = world.one(PBX).data.replace(b"Via:", b"Via: SIP/2.0/UDP 198.51.100.7;branch=z9hG4bKloop\r\nVia:", 1)
    world.from_backend(looped)
    assert world.one(PBX).status == 482


def test_a_backend_that_sends_a_call_on_to_a_browser_makes_a_spiral_and_no_loop():
    world = World()
    alice, bob = world.browser(), world.browser(port=40001)
    path = register(world, bob, user="bob").header(b"path")
    world.from_browser(alice, request("INVITE", "sip:bob@example.com", CONTACT))
    passed = world.one(PBX).data.replace(b"sip:bob@example.com SIP", b"sip:bob@abc.invalid;transport=ws SIP")
    via = b"Via: SIP/2.0/UDP 198.51.100.7;branch=z9hG4bKspiral\r\nRoute: %b\r\nVia:" % path
    world.from_backend(passed.replace(b"Via:", via, 1))
    assert world.one(bob).method == b"INVITE"


def test_a_retransmission_never_reaches_the_browser_and_gets_the_last_answer_again():
    """B4, C3."""
    world = World()
    flow, sent, arrived = reached(world)
    world.from_backend(sent.data)
    assert world.one().status == 100
    world.from_browser(flow, response(arrived, 180, "Ringing", CONTACT, to_tag="a1"))
    world.take(PBX)
    world.from_backend(sent.data)
    assert world.one().status == 180
    world.move(30)
    assert world.take(flow) == []


def test_sips_in_request_uri_or_to_is_416_here():
    """C2, table A: JsSIP would answer so."""
    world = World()
    flow = world.browser()
    path = register(world, flow).header(b"path").decode()
    for uri, to in [("sips:alice@abc.invalid", "<sip:alice@example.com>"), (URI, "<SIPS:alice@example.com>")]:
        world.from_backend(backend_request("MESSAGE", uri, f"Route: {path}", to=to))
        assert world.one().status == 416
    world.from_backend(
        backend_request("MESSAGE", URI, f"Route: {path}", "Contact: <sips:b@c>", to="<sip:a@example.com>")
    )
    assert world.one(flow).header(b"contact") == b"<sips:b@c>"


def test_a_2xx_of_the_browser_is_retransmitted_as_often_as_it_comes_and_its_ack_reaches_it():
    """I6, I7 the other way."""
    world = World()
    flow, _sent, arrived = reached(world)
    world.from_browser(flow, response(arrived, 200, "OK", CONTACT, to_tag="a1"))
    ok = world.one(PBX)
    routes = ", ".join(value.decode() for value in ok.values(b"record-route")[::-1])
    world.from_backend(backend_request("ACK", URI, f"Route: {routes}", to="<sip:alice@example.com>;tag=a1"))
    assert world.one(flow).method == b"ACK"
    assert world.sent == []


def test_a_lost_browser_ends_an_invite_in_480_at_once():
    """D5."""
    world = World()
    flow, sent, _ = reached(world)
    world.apply(world.edge.flow_closed(flow.id, world.now))
    answer = world.one()
    assert (answer.status, answer.cseq) == (480, sent.cseq)


@pytest.mark.parametrize("status", [486, 503, 603])
def test_a_failure_of_the_browser_passes_but_503_becomes_500(status):
    """N3, 3261 §16.7."""
    world = World()
    flow, _sent, arrived = reached(world)
    world.from_browser(flow, response(arrived, status, "No", to_tag="a1"))
    assert world.one(PBX).status == (500 if status == 503 else status)
    assert world.one(flow).method == b"ACK"


# CANCEL (B5)


def test_cancel_is_answered_200_at_once_and_forwarded_only_after_the_first_provisional():
    """B5: to the backend."""
    world = World()
    flow = world.browser()
    invite_data = request("INVITE", "sip:bob@example.com", CONTACT)
    world.from_browser(flow, invite_data)
    invite = world.one(PBX)
    world.take(flow)
    world.from_browser(flow, cancel_of(invite_data, "Reason: SIP;cause=600"))
    assert [(answer.status, answer.cseq[1]) for answer in world.take(flow)] == [(200, b"CANCEL")]
    assert world.take(PBX) == []
    world.from_backend(response(invite, 180, "Ringing", BOB, to_tag="b1"))
    cancel = world.one(PBX)
    assert (cancel.method, cancel.branch, cancel.uri) == (b"CANCEL", invite.branch, invite.uri)
    assert cancel.header(b"reason") == b"SIP;cause=600"
    world.from_backend(response(cancel, 200, "OK"))
    world.from_backend(response(invite, 487, "Request Terminated", to_tag="b1"))
    assert [answer.status for answer in world.take(flow)] == [180, 487]


def test_cancel_reaches_the_browser_and_its_487_comes_back():
    """B5: to the browser."""
    world = World()
    flow, sent, arrived = reached(world)
    world.from_browser(flow, response(arrived, 180, "Ringing", CONTACT, to_tag="a1"))
    world.take(PBX)
    world.from_backend(cancel_of(sent.data))
    assert world.one(PBX).status == 200
    cancel = world.one(flow)
    assert (cancel.method, cancel.branch) == (b"CANCEL", arrived.branch)
    world.from_browser(flow, response(arrived, 487, "Request Terminated", to_tag="a1"))
    ended = world.one(PBX)
    assert ended.status == 487
    world.from_backend(ack_of(ended, sent))
    world.move(40)
    assert [message.method for message in world.take(flow)] == [b"ACK"]


def test_487_is_made_here_when_the_other_side_does_not_answer_within_64_t1():
    """B5."""
    world = World()
    flow, sent, arrived = reached(world)
    world.from_browser(flow, response(arrived, 180, "Ringing", CONTACT, to_tag="a1"))
    world.from_backend(cancel_of(sent.data))
    world.take()
    world.move(31.9)
    assert world.take(PBX) == []
    world.move(0.2)
    assert world.one(PBX).status == 487


def test_a_2xx_that_crosses_the_cancel_wins():
    """B5; 3261 §9.1: the call stands, the caller ends it by BYE."""
    world = World()
    flow, sent, arrived = reached(world)
    world.from_browser(flow, response(arrived, 180, "Ringing", CONTACT, to_tag="a1"))
    world.from_backend(cancel_of(sent.data))
    world.take()
    world.from_browser(flow, response(arrived, 200, "OK", CONTACT, to_tag="a1"))
    assert world.one(PBX).status == 200
    world.from_backend(cancel_of(sent.data))
    assert [message.cseq[1] for message in world.take(PBX)] == [b"CANCEL"], "absorbed as a retransmission"


def test_a_cancel_after_the_final_answer_is_200_and_does_nothing():
    """B5; 3261 §9.2."""
    world = World()
    flow, sent, arrived = reached(world)
    world.from_browser(flow, response(arrived, 486, "Busy", to_tag="a1"))
    world.take()
    world.from_backend(cancel_of(sent.data))
    assert world.one().status == 200


def test_a_cancel_that_matches_nothing_is_481():
    """B5. Also one of another connection."""
    world = World()
    flow, other = world.browser(), world.browser(port=40001)
    data = request("INVITE", "sip:bob@example.com", CONTACT)
    world.from_browser(flow, data)
    world.take()
    world.from_browser(other, cancel_of(data))
    assert world.one(other).status == 481
    world.from_backend(backend_request("CANCEL", URI))
    assert world.one(PBX).status == 481


def test_a_cancel_before_the_backend_is_found_is_487_and_nothing_ever_leaves():
    """B5, N5."""
    world = World({"example.com": None})
    flow = world.browser()
    data = request("INVITE", "sip:bob@example.com", CONTACT)
    world.from_browser(flow, data)
    world.from_browser(flow, cancel_of(data))
    assert [answer.status for answer in world.take(flow)] == [100, 200, 487]
    world.targets.by_name["example.com"] = [udp()]
    world.apply(world.edge.resolved("example.com", world.now))
    assert world.sent == []


def cancel_of(invite: bytes, *headers: str) -> bytes:
    """The CANCEL of an INVITE as its sender makes it (RFC 3261 §9.1)."""
    message = Message.parse(invite)
    lines = [b"CANCEL %b SIP/2.0" % message.uri, b"Via: " + message.via_bytes]
    lines += [b"%b: %b" % (name.title(), message.header(name) or b"") for name in (b"from", b"to", b"call-id")]
    lines += [b"CSeq: %d CANCEL" % message.cseq[0], *map(str.encode, headers), b"Content-Length: 0", b"", b""]
    return b"\r\n".join(lines)


# Via of what comes in (V2)


@pytest.mark.parametrize(
    ("via", "source", "answered_to", "expected"),
    [
        ("198.51.100.7:5060;branch=z9hG4bKa", PBX, PBX, "198.51.100.7:5060;branch=z9hG4bKa"),
        ("198.51.100.7;branch=z9hG4bKa", Address(PBX.host, 9), PBX, "198.51.100.7;branch=z9hG4bKa"),
        (
            "198.51.100.7;rport;branch=z9hG4bKa",
            Address(PBX.host, 9),
            Address(PBX.host, 9),
            "198.51.100.7;rport=9;branch=z9hG4bKa;received=198.51.100.7",
        ),
        (
            "pbx.local:5080;branch=z9hG4bKa;maddr=203.0.113.6",
            PBX,
            Address(PBX.host, 5080),
            "pbx.local:5080;branch=z9hG4bKa;maddr=203.0.113.6;received=198.51.100.7",
        ),
        (
            "pbx.local;received=203.0.113.6;rport=1;branch=z9hG4bKa",
            Address(PBX.host, 9),
            Address(PBX.host, 9),
            "pbx.local;received=198.51.100.7;rport=9;branch=z9hG4bKa",
        ),
    ],
)
def test_from_the_backend_received_is_set_where_sent_by_differs_and_rport_filled_in(via, source, answered_to, expected):
    """V2, 3581 §4, V3: maddr is never followed."""
    world = World()
    world.from_backend(backend_request("INVITE", URI, via=f"SIP/2.0/UDP {via}"), source)
    assert world.one(answered_to).lines(b"via") == [f"SIP/2.0/UDP {expected}".encode()]
    assert world.sent == []


def test_from_a_stream_the_answer_goes_down_the_same_connection():
    """V2; 3261 §18.2.2."""
    world = World()
    source = Address(PBX.host, 41234)
    data = backend_request("INVITE", URI, via="SIP/2.0/TCP 198.51.100.7:5060;branch=z9hG4bKt")
    world.from_backend(data, source, Transport.TCP)
    ((hop, _),) = world.sent
    assert (hop.transport, hop.address) == (Transport.TCP, source)


@pytest.mark.parametrize("add_received", [False, True])
def test_a_browsers_via_gets_no_received_unless_it_is_wanted(add_received):
    """V2; 7118 §5.2.3: hides the topology."""
    world = World(add_received=add_received)
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com"))
    below = world.one(PBX).values(b"via")[1]
    assert below.endswith(b";received=203.0.113.5") is add_received


@pytest.mark.parametrize("broken", ['\r\nVia: "', ";x=<", ";x=a<b\r\nVia: <", "\r\n ;y=<"])
def test_received_harms_no_message_whose_vias_are_odd(broken):
    """V2, H4: bad input gets its answer and nothing else is lost; what could be read can be edited."""
    world = World(add_received=True)
    flow = world.browser()
    world.from_browser(
        flow, request("MESSAGE", "sip:bob@example.com", via="SIP/2.0/WSS abc.invalid;branch=z9hG4bKl" + broken)
    )
    assert world.one(PBX).via.transport == b"UDP"
    world.from_backend(backend_request("MESSAGE", URI, via="SIP/2.0/UDP pbx.local;branch=z9hG4bKl;rport" + broken))
    assert world.one(PBX).via.parameters[b"received"] == b"198.51.100.7"


def test_a_call_of_the_browser_gets_a_bye_from_the_backend_by_the_token_of_its_route():
    """D1, D2."""
    world = World()
    call = Call(world, world.browser())
    world.from_backend(call.backend_request("BYE"))
    bye = world.one(call.flow)
    world.from_browser(call.flow, response(bye, 200, "OK"))
    assert world.one(PBX).status == 200
    assert world.edge.counts()["dialogs"] == 0


def test_the_answer_to_a_call_reaches_a_server_that_has_closed_its_connection():
    """B4; RFC 3261 §18.2.2."""
    world = World()
    flow = world.browser()
    path = register(world, flow).values(b"path")[0].decode()
    stream = Hop(Transport.TCP, Address(PBX.host, 33333), b"stream-1")
    via = "SIP/2.0/TCP 198.51.100.7:5060;branch=z9hG4bKtcp1"
    invite = backend_request("INVITE", "sip:alice@abc.invalid;transport=ws", f"Route: {path}", BOB, via=via)
    world.apply(world.edge.from_backend(stream, invite, world.now))
    arrived = world.one(flow)
    world.sent = []
    world.apply(world.edge.failed(stream, "closed by the peer", world.now))
    assert world.sent == []
    world.from_browser(flow, response(arrived, 200, "OK", CONTACT, to_tag="a1"))
    ((hop, data),) = world.sent
    assert (hop.transport, hop.address) == (Transport.TCP, PBX)
    assert Message.parse(data).status == 200
