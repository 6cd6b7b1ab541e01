"""How a forwarded request looks: Via, Max-Forwards, Path, Record-Route, Content-Length (R2, R3, I2, I3, V1)."""

from __future__ import annotations

import pytest

from tests.edge_world import GATE, PBX, PUBLIC, TOKENS, request
from wsgate.addr import Address, Hop, Transport
from wsgate.sip.compose import Composer, Leg, LoopDetection, max_forwards, record_routes, shows_outbound
from wsgate.sip.flow import Flow
from wsgate.sip.message import Message
from wsgate.sip.names import Names

NAMES = Names(advertise=[GATE], public=PUBLIC)
INSTANCE = 'Contact: <sip:x@abc.invalid;transport=ws>;+sip.instance="<urn:uuid:1>";reg-id=1'
PLAIN = "Contact: <sip:x@abc.invalid;transport=ws>"


def flow(number: int, secure: bool = True) -> Flow:
    connection = number.to_bytes(8, "big")
    return Flow(connection, TOKENS.make(connection), Address("203.0.113.5", 40000 + number), secure, PUBLIC)


ALICE, BOB = flow(1), flow(2)


def browser_leg(own: Flow) -> Leg:
    return Leg(own, own.hop, NAMES.sent_by(own.hop))


def backend_leg(transport: Transport = Transport.UDP, local: Address | None = None) -> Leg:
    hop = Hop(transport, PBX)
    return Leg(None, hop, NAMES.sent_by(hop, local))


def compose(data: bytes, arrival: Leg, departure: Leg, **options) -> Message:
    message = Message.parse(data)
    return Message.parse(
        Composer(NAMES).request(message, b"z9hG4bKx", arrival, departure, **({"drop_routes": 0} | options))
    )


@pytest.mark.parametrize(
    ("transport", "word"),
    [(Transport.UDP, b""), (Transport.TCP, b";transport=tcp"), (Transport.TLS, b";transport=tls")],
)
def test_a_register_gets_one_path_on_top_with_the_token_and_the_backend_facing_address(transport, word):
    """R2, V1."""
    data = request("REGISTER", "sip:example.com", PLAIN, "Path: <sip:edge.invalid;lr>", "Supported: path")
    sent = compose(data, browser_leg(ALICE), backend_leg(transport))
    own = b"<sip:%b@192.0.2.1:5060%b;lr>" % (ALICE.token, word)
    assert sent.values(b"path") == [own, b"<sip:edge.invalid;lr>"]


@pytest.mark.parametrize("transport", [Transport.WS, Transport.WSS])
def test_towards_a_ws_backend_path_names_the_near_end_of_the_connection_with_transport_ws(transport):
    """V1: never wss."""
    local = Address("192.0.2.1", 51234)
    data = request("REGISTER", "sip:example.com", PLAIN)
    sent = compose(data, browser_leg(ALICE), backend_leg(transport, local))
    assert sent.values(b"path") == [b"<sip:%b@192.0.2.1:51234;transport=ws;lr>" % ALICE.token]
    assert sent.values(b"via")[0] == b"SIP/2.0/%b 192.0.2.1:51234;branch=z9hG4bKx" % transport.value.encode()


def test_path_has_ob_only_for_a_client_that_showed_outbound():
    """R2, C5: SIP.js sends no reg-id or +sip.instance, and still gets a token."""
    shown = flow(3)
    shown.outbound = shows_outbound(Message.parse(request("REGISTER", "sip:example.com", INSTANCE)))
    sent = compose(request("REGISTER", "sip:example.com", INSTANCE), browser_leg(shown), backend_leg())
    assert sent.header(b"path") == b"<sip:%b@192.0.2.1:5060;lr;ob>" % shown.token
    sent = compose(request("REGISTER", "sip:example.com", PLAIN), browser_leg(ALICE), backend_leg())
    assert sent.header(b"path") == b"<sip:%b@192.0.2.1:5060;lr>" % ALICE.token


def test_path_is_added_to_supported_only_where_it_is_missing():
    """R2; 3327 §5.2."""
    for header, expected in [
        ("Supported: outbound", [b"outbound", b"path"]),
        ("Supported: gruu, PATH", [b"gruu", b"PATH"]),
        ("Subject: x", [b"path"]),
    ]:
        sent = compose(request("REGISTER", "sip:example.com", PLAIN, header), browser_leg(ALICE), backend_leg())
        assert sent.values(b"supported") == expected


def test_a_register_has_no_record_route_and_its_contact_is_untouched():
    """R3."""
    sent = compose(request("REGISTER", "sip:example.com", INSTANCE), browser_leg(ALICE), backend_leg())
    assert sent.lines(b"record-route") == []
    assert INSTANCE.encode() in sent.data


def test_double_record_route_has_the_backend_side_on_top_towards_the_backend():
    """I2; 5658."""
    assert record_routes(browser_leg(ALICE), backend_leg(Transport.TCP)) == [
        b"<sip:%b@192.0.2.1:5060;transport=tcp;r2=on;lr>" % ALICE.token,
        b"<sip:%b@gate.example.org:443;transport=ws;r2=on;lr>" % ALICE.token,
    ]


def test_double_record_route_is_reversed_towards_a_browser():
    """I2: same token on both."""
    assert record_routes(backend_leg(), browser_leg(ALICE)) == [
        b"<sip:%b@gate.example.org:443;transport=ws;r2=on;lr>" % ALICE.token,
        b"<sip:%b@192.0.2.1:5060;r2=on;lr>" % ALICE.token,
    ]


def test_between_two_browsers_the_token_of_the_callee_stands_above_that_of_the_caller():
    """W1: both with transport=ws."""
    assert record_routes(browser_leg(ALICE), browser_leg(BOB)) == [
        b"<sip:%b@gate.example.org:443;transport=ws;r2=on;lr>" % BOB.token,
        b"<sip:%b@gate.example.org:443;transport=ws;r2=on;lr>" % ALICE.token,
    ]


@pytest.mark.parametrize("method", ["INVITE", "SUBSCRIBE", "REFER", "NOTIFY"])
def test_what_makes_a_dialog_is_record_routed_above_what_stands_there(method):
    data = request(method, "sip:bob@example.com", "Record-Route: <sip:before.invalid;lr>")
    sent = compose(data, browser_leg(ALICE), backend_leg())
    assert len(sent.values(b"record-route")) == 3
    assert sent.values(b"record-route")[2] == b"<sip:before.invalid;lr>"


@pytest.mark.parametrize("method", ["MESSAGE", "OPTIONS", "BYE", "ACK", "INFO"])
def test_what_makes_no_dialog_is_not_record_routed(method):
    sent = compose(request(method, "sip:bob@example.com"), browser_leg(ALICE), backend_leg())
    assert sent.lines(b"record-route") == []


def test_content_length_is_written_where_it_is_missing():
    """I3: towards a stream it must be there."""
    data = request("MESSAGE", "sip:bob@example.com", body=b"hi\xff").replace(b"Content-Length: 3\r\n", b"")
    sent = compose(data, browser_leg(ALICE), backend_leg())
    assert sent.header(b"content-length") == b"3"
    assert sent.body == b"hi\xff"


def test_max_forwards_is_70_where_absent_and_one_less_where_present():
    """I3; 3261 §16.6 step 3."""
    for there, expected in [("", b"70"), ("70", b"69"), ("1", b"0"), ("255", b"254")]:
        sent = compose(request("OPTIONS", "sip:bob@example.com", max_forwards=there), browser_leg(ALICE), backend_leg())
        assert sent.lines(b"max-forwards") == [expected]


@pytest.mark.parametrize("value", ["256", "1000", "-1", "x", "1.5"])
def test_a_max_forwards_beyond_255_or_no_number_is_refused(value):
    message = Message.parse(request("OPTIONS", "sip:bob@example.com", max_forwards=value))
    with pytest.raises(ValueError, match="Max-Forwards"):
        max_forwards(message)


def test_otherwise_header_order_and_bytes_stay_as_they_came():
    """I3."""
    odd = ["sUbJeCt :  two   spaces ", "X-Folded: a\r\n\tb", 'm: "Quo, ted" <sip:a@b>;x="<>"', "k: a,b"]
    data = request("MESSAGE", "sip:bob@example.com;weird=%41", *odd, body=b"\0\x01\r\n")
    sent = compose(data, browser_leg(ALICE), backend_leg())
    expected = data.replace(b"Max-Forwards: 70", b"Max-Forwards: 69")
    own = b"Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKx;rport\r\n"
    assert sent.data == expected.replace(b"Via:", own + b"Via:", 1)


def test_routes_are_dropped_from_the_top_also_within_one_line_and_others_put_above():
    data = request("BYE", "sip:bob@192.0.2.9", "Route: <sip:1;lr>, <sip:2;lr>", "X: y", "Route: <sip:3;lr>,<sip:4;lr>")
    legs = browser_leg(ALICE), backend_leg()
    assert compose(data, *legs, drop_routes=1).values(b"route") == [b"<sip:2;lr>", b"<sip:3;lr>", b"<sip:4;lr>"]
    assert compose(data, *legs, drop_routes=3).values(b"route") == [b"<sip:4;lr>"]
    assert compose(data, *legs, drop_routes=4).lines(b"route") == []
    sent = compose(data, *legs, drop_routes=3, routes=(b"<sip:5;lr>",), uri=b"sip:new@192.0.2.9")
    assert sent.values(b"route") == [b"<sip:5;lr>", b"<sip:4;lr>"]
    assert sent.uri == b"sip:new@192.0.2.9"


def detection(first: int = 1) -> LoopDetection:
    numbers = iter(range(first, 1000))
    return LoopDetection(lambda size: next(numbers).to_bytes(size, "big"))


def test_the_branch_carries_a_hash_by_which_the_same_request_is_known_as_a_loop():
    """B3; 3261 §16.3 step 4, §16.6 step 8."""
    loops = detection()
    data = request("INVITE", "sip:bob@example.com")
    branch = loops.new_branch(Message.parse(data))
    assert branch.startswith(b"z9hG4bK")
    looped = data.replace(b"Via:", b"Via: SIP/2.0/UDP 192.0.2.1;branch=%b\r\nVia:" % branch, 1)
    assert loops.is_looped(Message.parse(looped))
    assert loops.new_branch(Message.parse(data)) != branch, "each is unique"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"sip:bob@example.com SIP", b"sip:carol@example.com SIP"),
        (b"CSeq: 1 ", b"CSeq: 2 "),
        (b"Call-ID: call-1", b"Call-ID: call-2"),
        (b";tag=a1", b";tag=a2"),
        (b"Max-Forwards", b"Route: <sip:p.invalid;lr>\r\nMax-Forwards"),
    ],
)
def test_a_request_that_comes_back_changed_is_a_spiral_and_no_loop(old, new):
    loops = detection()
    data = request("INVITE", "sip:bob@example.com")
    branch = loops.new_branch(Message.parse(data))
    spiral = data.replace(b"Via:", b"Via: SIP/2.0/UDP 192.0.2.1;branch=%b\r\nVia:" % branch, 1).replace(old, new)
    assert not loops.is_looped(Message.parse(spiral))


def test_a_request_that_another_gateway_passed_on_unchanged_is_no_loop():
    """The hash is keyed: a chain of two gateways is no loop."""
    data = request("INVITE", "sip:bob@example.com")
    branch = detection().new_branch(Message.parse(data))
    passed = data.replace(b"Via:", b"Via: SIP/2.0/WSS other.example;branch=%b\r\nVia:" % branch, 1)
    assert not detection(500).is_looped(Message.parse(passed))


@pytest.mark.parametrize(
    ("contact", "shown"),
    [(INSTANCE, True), (INSTANCE.replace("reg-id", "REG-ID"), True), (PLAIN, False), (PLAIN + ";reg-id=1", False)],
)
def test_outbound_is_shown_by_instance_and_reg_id_together(contact, shown):
    """C5; 5626 §4.2.1."""
    assert shows_outbound(Message.parse(request("REGISTER", "sip:example.com", contact))) is shown
