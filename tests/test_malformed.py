"""Malformed requests from both sides: what is answered 400, what is dropped, and that each is counted (table A, H4)."""

from __future__ import annotations

import re

import pytest

from tests.edge_world import CONTACT, PBX, World, backend_request, request, response
from wsgate.addr import Transport
from wsgate.sip.message import Message

VIA = b"Via: SIP/2.0/WSS abc.invalid;branch=z9hG4bKcut"
SIDES = ["browser", "backend over UDP", "backend over TCP"]
EVIL = b"X-Evil: 1"

# The line as it came, and as the answer holds it.
CUT = [
    (VIA + b"\n" + EVIL, VIA),
    (VIA + b"\r" + EVIL, VIA),
    (VIA + b"\r\r", VIA),
    (VIA + b"\nVia: SIP/2.0/UDP evil.example;branch=z9hG4bKx", VIA),
    (VIA.replace(b"Via:", b"v  :") + b"\n" + EVIL, VIA.replace(b"Via:", b"v  :")),
    (VIA.replace(b";", b"\r\n ;") + b"\n" + EVIL, VIA.replace(b";", b"\r\n ;")),
    (b"From: <sip:alice@example.com>;tag=a1\n" + EVIL, b"From: <sip:alice@example.com>;tag=a1"),
    (b"From: <sip:alice@example.com>;tag=a1\r" + EVIL, b"From: <sip:alice@example.com>;tag=a1"),
    (
        b"f: <sip:alice@example.com>;tag=a1\n\n\nFrom: <sip:mallory@example.com>",
        b"f: <sip:alice@example.com>;tag=a1",
    ),
    (b'From: "A\nl\rice" <sip:alice@example.com>;tag=a1', b'From: "A l ice" <sip:alice@example.com>;tag=a1'),
    (b"To: <sip:bob@example.com>\n" + EVIL, b"To: <sip:bob@example.com>"),
    (b"To: sip:bob@example.com\n" + EVIL, b"To: sip:bob@example.com"),
    (b"Call-ID: call-1@test\n" + EVIL, b"Call-ID: call-1@test"),
    (b"i: call-1@test\r" + EVIL, b"i: call-1@test"),
    (b"CSeq: 1 OPTIONS\n" + EVIL, b"CSeq: 1 OPTIONS"),
    (b"CSeq: 1\nOPTIONS", b"CSeq: 1 OPTIONS"),
    (b"Subject: x\n" + EVIL, b""),
    (b"Subject: x\nVia: SIP/2.0/UDP evil.example;branch=z9hG4bKx", b""),
    (b"Sub\nject: x", b""),
    (b"Subject: x\r\n y\r" + EVIL, b""),
]
# Nothing whole is left of a header without which there is no answer.
LOST = [
    b"Via: SIP/2.0/UDP\nabc;branch=z9hG4bKx y",
    b"Via: \n" + EVIL,
    b'From: "Alice\n<sip:alice@example.com>;tag=a1',
    b"To: \r" + EVIL,
    b"From: \n<sip:alice@example.com>;tag=a1",
    b"To: <\nsip:bob@example.com",
    b"Call-ID: \n" + EVIL,
    b"CSeq: 1\n" + EVIL,
    b"C\nSeq: 1 OPTIONS",
]


def field(line: bytes) -> bytes:
    """The long name of a header line, in lower case."""
    name = line.partition(b":")[0].strip().lower().replace(b"\n", b"")
    return {b"v": b"via", b"f": b"from", b"i": b"call-id"}.get(name, name)


def with_line(line: bytes) -> bytes:
    """An OPTIONS with `line` in the place of the header of its name, or one more."""
    lines = request("OPTIONS", "sip:bob@example.com", via=VIA[5:].decode()).split(b"\r\n")
    kept = [one for one in lines[1:-2] if one.partition(b":")[0].lower() != field(line)]
    return b"\r\n".join([lines[0], *kept, line, b"", b""])


def arrive(world: World, side: str, data: bytes) -> list[Message]:
    """Let `data` come in on one side; what goes back to where it came from. Nothing may go elsewhere."""
    flow = world.browser()
    if side == "browser":
        world.from_browser(flow, data)
    else:
        world.from_backend(data, PBX, Transport.UDP if side.endswith("UDP") else Transport.TCP)
    back = world.take(flow if side == "browser" else PBX)
    assert world.sent == []
    return back


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("line", "copied"), CUT)
def test_bare_cr_or_lf_in_any_header_is_answered_400_and_injects_nothing(line: bytes, copied: bytes, side: str):
    """Table A: the answer holds the headers that it copies, whole, and no line that was injected."""
    world = World()
    (answer,) = arrive(world, side, with_line(line))
    assert answer.status == 400
    assert answer.reason == b"Bad Request: bare CR or LF in a header line"
    assert answer.flaw == "", "what we send can be read"
    assert answer.call_id == b"call-1@test"
    assert (answer.cseq, answer.branch) == ((1, b"OPTIONS"), b"z9hG4bKcut")
    assert (answer.from_.uri, answer.from_tag) == (b"sip:alice@example.com", b"a1")
    assert answer.to.uri == b"sip:bob@example.com"
    assert not re.search(rb"[\r\n]", answer.data.replace(b"\r\n", b""))
    assert not re.search(rb"evil|mallory", answer.data, re.IGNORECASE)
    if copied and not (copied.lower().startswith(b"v") and side != "browser"):
        # Towards the backend side V2 adds `received` to the Via.
        assert b"\r\n" + copied + (b";tag=" if copied.startswith(b"To") else b"\r\n") in answer.data
    assert world.counters.values["sip_malformed_requests"] == 1
    assert world.counters.values["sip_bytes_behind_body"] == 0


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("line", LOST)
def test_where_no_whole_value_is_left_nothing_is_answered(line: bytes, side: str):
    """Table A: dropped and counted."""
    world = World()
    assert arrive(world, side, with_line(line)) == []
    assert world.counters.values["sip_malformed_dropped"] == 1


def test_a_start_line_with_bare_lf_injects_nothing():
    for spoil in (b"OPTIONS sip:bob@example.com SIP/2.0\n" + EVIL, b"OPTIONS sip:bob@example.com\n" + EVIL):
        data = with_line(b"no header line").replace(b"OPTIONS sip:bob@example.com SIP/2.0", spoil)
        (answer,) = arrive(World(), "browser", data)
        assert answer.reason == b"Bad Request: malformed request line"
        assert b"Evil" not in answer.data
    data = with_line(b"Subject: x\n" + EVIL).replace(b" SIP/2.0\r\n", b" SIP/3.0\r\n", 1)
    (answer,) = arrive(World(), "browser", data)
    assert answer.status == 505, "the first fault speaks"
    assert b"Evil" not in answer.data


def test_a_response_with_bare_lf_is_dropped_and_counted():
    world = World()
    flow = world.browser()
    world.from_browser(flow, request("OPTIONS", "sip:bob@example.com"))
    sent = world.one(PBX)
    good = response(sent, 200, "OK", to_tag="b1")
    for spoilt in (good.replace(b";tag=b1", b";tag=b1\n" + EVIL), good.replace(b"200 OK", b"200 OK\n" + EVIL)):
        world.from_backend(spoilt)
    assert world.sent == []
    assert world.counters.values["sip_malformed_dropped"] == 2
    world.from_backend(good)
    assert world.one(flow).status == 200, "the transaction still waits for a good one"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "line",
    [
        b"Subject: a\0b",
        b'Subject: "a\0b"',
        b'Subject: "a\\\\\0b"',
        b"Subject: a\\\0b",
        b'Subject: "a\\\0b\0',
        b"From: <sip:alice\0@example.com>;tag=a1",
        b"Sub\0ject: x",
        b"Route: <sip:pbx.example.com\0;lr>",
    ],
)
def test_a_nul_in_the_head_is_refused(line: bytes, side: str):
    """RFC 3261 §25.1 knows it only as a quoted-pair; a server that reads C strings would see another value than we."""
    world = World()
    (answer,) = arrive(world, side, with_line(line))
    assert answer.reason == b"Bad Request: NUL in a header line"
    assert world.counters.values["sip_malformed_requests"] == 1


@pytest.mark.parametrize("side", SIDES)
def test_a_nul_in_the_start_line_is_refused(side: str):
    """A request is answered, a response dropped."""
    world = World()
    data = with_line(b"Subject: x").replace(b" sip:bob@", b" sip:bob\0@")
    (answer,) = arrive(world, side, data)
    assert answer.reason == b"Bad Request: malformed request line"
    assert arrive(world, side, response(answer, 200, "O\0K")) == []
    assert world.counters.values["sip_malformed_dropped"] == 1


def test_a_nul_as_a_quoted_pair_or_in_the_body_passes():
    """RFC 4475 §3.1.1.2."""
    world = World()
    quoted = (b'From: "a\\\0b\\"" <sip:alice@example.com>;tag=a1', b'Subject: "\\\\" "\\\0')
    for number, line in enumerate(quoted):
        world.from_browser(world.browser(), with_line(line).replace(b"z9hG4bKcut", b"z9hG4bK%d" % number))
        assert world.one(PBX).flaw == ""
    world.from_browser(world.browser(), request("MESSAGE", "sip:bob@example.com", body=b"a\0b"))
    assert world.one(PBX).body == b"a\0b"


LENGTHS = [
    (b"Content-Length: 5", 400, b"body shorter than Content-Length"),
    (b"Content-Length: -1", 400, b"malformed Content-Length"),
    (b"Content-Length: +4", 400, b"malformed Content-Length"),
    (b"Content-Length: four", 400, b"malformed Content-Length"),
    (b"Content-Length: 0x4", 400, b"malformed Content-Length"),
    (b"Content-Length: 4, 4", 400, b"malformed Content-Length"),
    (b"Content-Length:", 400, b"malformed Content-Length"),
    (b"Content-Length: " + b"9" * 400, 400, b"malformed Content-Length"),
    (b"Content-Length: 9999999999", 400, b"body shorter than Content-Length"),
    (b"Content-Length: 4\r\nl: 3", 400, b"more than one content-length"),
    (b"Content-Length: 4\r\nContent-Length: 4", 400, b"more than one content-length"),
]


@pytest.mark.parametrize("side", SIDES[:2])
@pytest.mark.parametrize(("length", "status", "says"), LENGTHS)
def test_a_wrong_content_length_is_answered_400(length: bytes, status: int, says: bytes, side: str):
    """H4, table A: in one WebSocket message and in one datagram."""
    world = World()
    data = request("MESSAGE", "sip:bob@example.com", body=b"text").replace(b"Content-Length: 4", length)
    (answer,) = arrive(world, side, data)
    assert (answer.status, answer.reason) == (status, b"Bad Request: " + says)
    assert world.counters.values["sip_malformed_requests"] == 1


@pytest.mark.parametrize(("length", "status", "says"), LENGTHS)
def test_a_response_with_a_wrong_content_length_is_dropped_and_counted(length: bytes, status: int, says: bytes):
    """H4, and so is any other malformed response, from both sides."""
    world = World()
    caller, callee = world.browser(), world.browser()
    world.from_browser(caller, request("MESSAGE", "sip:bob@example.com"))
    world.from_backend(response(world.one(PBX), 200, "OK", body=b"text").replace(b"Content-Length: 4", length))
    world.from_browser(
        callee, response(Message.parse(request("MESSAGE", "sip:a@b")), 200, "OK").replace(b"0\r", b"9\r")
    )
    assert world.sent == []
    assert world.counters.values["sip_malformed_dropped"] == 2
    assert status == 400
    assert says


@pytest.mark.parametrize("length", [b"Content-Length: 2", b"l:2", b"Content-Length:\r\n 2", b"content-length: 0002"])
def test_bytes_behind_content_length_go_nowhere(length: bytes):
    """H4: discarded and counted, whether they are a message of their own or the rest of a body."""
    world = World()
    flow = world.browser()
    second = request("BYE", "sip:bob@example.com", call_id="second")
    data = request("MESSAGE", "sip:bob@example.com", body=b"te" + second)
    place = data.index(b"Content-Length")
    end = data.index(b"\r\n", place)
    world.from_browser(flow, data[:place] + length + data[end:])
    assert world.one(PBX).body == b"te"
    assert world.sent == []
    assert world.counters.values["sip_bytes_behind_body"] == 1


def test_without_content_length_all_behind_the_blank_line_is_the_body():
    """RFC 3261 §18.3 for datagrams, and one WebSocket message is one SIP message (H4)."""
    world = World()
    data = request("MESSAGE", "sip:bob@example.com", body=b"text").replace(b"Content-Length: 4\r\n", b"")
    world.from_browser(world.browser(), data + request("BYE", "sip:bob@example.com"))
    (sent,) = world.take(PBX)
    assert sent.body.startswith(b"textBYE ")
    assert sent.header(b"content-length") == b"%d" % len(sent.body), "I3"
    assert world.sent == []


@pytest.mark.parametrize("side", SIDES)
def test_ten_thousand_header_lines_are_refused(side: str):
    """Table A: answered where the headers of an answer stand among those that are read, else dropped; both counted."""
    world = World(max_header_bytes=262144)
    data = with_line(b"Subject: x")
    many = b"X: y\r\n" * 10000
    (answer,) = arrive(world, side, data.replace(b"Subject: x\r\n", many))
    assert answer.reason == b"Bad Request: too many header lines"
    assert arrive(world, side, data.replace(b"SIP/2.0\r\n", b"SIP/2.0\r\n" + many, 1)) == []
    (answer,) = arrive(world, side, data.replace(b"Subject: x\r\n", b"X\n: y\r\n" * 10000))
    assert answer.status == 400
    assert world.counters.values["sip_malformed_requests"] == 3
    assert world.counters.values["sip_malformed_dropped"] == 1


@pytest.mark.parametrize("side", SIDES)
def test_headers_over_max_header_bytes_are_refused_however_they_are_made(side: str):
    for line in (b"Subject: " + b"x" * 2000, b"Subject: x" + b"\r\n y" * 800, b"X: y\r\n" * 300 + b"Subject: x"):
        world = World(max_header_bytes=1024)
        (answer,) = arrive(world, side, with_line(line))
        assert answer.reason == b"Bad Request: headers too large"
        assert world.counters.values["sip_malformed_requests"] == 1


def test_folded_headers_are_understood_and_leave_as_they_came():
    """RFC 3261 §7.3.1; a fold without a header in front of it is 400."""
    world = World()
    flow = world.browser()
    data = request(
        "INVITE", "sip:bob@example.com", CONTACT, "Subject: a\r\n\tb\r\n  c", to="\r\n <sip:bob@example.com>"
    )
    world.from_browser(flow, data)
    sent = world.one(PBX)
    assert b"Subject: a\r\n\tb\r\n  c\r\n" in sent.data
    assert b"To: \r\n <sip:bob@example.com>\r\n" in sent.data
    assert world.one(flow).status == 100
    world.from_browser(flow, data.replace(b" SIP/2.0\r\n", b" SIP/2.0\r\n folded\r\n", 1))
    assert world.one(flow).reason == b"Bad Request: malformed header line"


@pytest.mark.parametrize("method", ["INVITE", "REGISTER", "OPTIONS", "BYE", "CANCEL"])
def test_headers_in_the_request_uri_are_refused(method: str):
    """Table A."""
    world = World()
    flow = world.browser()
    uri = "sip:bob@example.com?Subject=x&Route=%3Csip:evil%3E"
    world.from_browser(flow, request(method, uri, CONTACT))
    world.from_backend(backend_request(method, uri, CONTACT))
    for side in (flow, PBX):
        answer = [one for one in world.take(side) if one.status >= 200]
        expected = (
            b"Call/Transaction Does Not Exist" if method == "CANCEL" else b"Bad Request: headers in the Request-URI"
        )
        assert [one.reason for one in answer] == [expected]


@pytest.mark.parametrize("side", SIDES)
def test_nothing_is_ever_answered_to_a_malformed_ack(side: str):
    """I7."""
    world = World()
    data = with_line(b"Subject: x\n" + EVIL).replace(b"OPTIONS", b"ACK")
    assert arrive(world, side, data) == []
    assert world.counters.values["sip_malformed_dropped"] == 1
