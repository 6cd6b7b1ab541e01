"""What the proxy decides: the checks before routing and the way on (RFC 3261 §16.3 to §16.6, R1, B1, D1, G1, N4)."""

from __future__ import annotations

import pytest

from tests.edge_world import CONTACT, EXAMPLE, PBX, World, request, response, udp
from wsgate.addr import parse_network
from wsgate.sip.message import Message, warning
from wsgate.sip.proxy import METADATA
from wsgate.sip.settings import DIRECT_TARGETS
from wsgate.sip.targets import BackendSettings

VIA = "SIP/2.0/WSS abc.invalid;branch=z9hG4bKfix"
ODD = [
    ("OPTIONS sip:bob@example.com?Subject=x SIP/2.0", 400),
    ("OPTIONS sip:bob@example.com? SIP/2.0", 400),
    ("OPTIONS tel:+1555 SIP/2.0", 416),
    ("OPTIONS mailto:bob@example.com SIP/2.0", 416),
    ("OPTIONS sip: SIP/2.0", 400),
    ("OPTIONS sip:bob@ex ample.com SIP/2.0", 400),
    ("OPTIONS sip:bob@example.com:99999 SIP/2.0", 400),
    ("OPTIONS sip:bob@example.com SIP/3.0", 505),
    ("OPTIONS sip:bob@example.com", 400),
    ("OPTIONS  sip:bob@example.com SIP/2.0", 400),
]
BROKEN = [
    (b"Max-Forwards: 70", b"Max-Forwards: 0", 483),
    (b"Max-Forwards: 70", b"Max-Forwards: 256", 400),
    (b"Max-Forwards: 70", b"Max-Forwards: x", 400),
    (b"Max-Forwards: 70", b"Max-Forwards: 7\rX: y", 400),
    (b"Max-Forwards: 70", b"Max-Forwards: 7\nX: y", 400),
    (b"Max-Forwards: 70", b"Max-Forwards 70", 400),
    (b"Max-Forwards: 70", b"Max-Forwards: 70\r\nMax-Forwards: 70", 400),
    (b"CSeq: 1 OPTIONS", b"CSeq: 1 INVITE", 400),
    (b"CSeq: 1 OPTIONS", b"CSeq: OPTIONS", 400),
    (b"CSeq: 1 OPTIONS", b"CSeq: 4294967296 OPTIONS", 400),
    (b"From: <sip:alice@example.com>;tag=a1", b"From: <sip:alice", 400),
    (b"From: <sip:alice@example.com>;tag=a1", b'From: "', 400),
    (b"Call-ID: call-1@test", b"Call-ID: ", 400),
    (b"Content-Length: 0", b"Content-Length: 1", 400),
    (b"Content-Length: 0", b"Content-Length: -1", 400),
    (b"Content-Length: 0", b"Content-Length: 0\r\nl: 0", 400),
    (b"Content-Length: 0", b"Route: <sip:", 400),
    (b"Content-Length: 0", b"Route: <sip:a@b:99999;lr>", 400),
    (b"Content-Length: 0", b'Route: "', 400),
    (b"Content-Length: 0", b"Proxy-Require: x", 420),
    (b"Content-Length: 0", b'Proxy-Require: "', 420),
]


@pytest.mark.parametrize(("line", "status"), ODD)
def test_an_odd_request_line_is_refused(line, status):
    """Table A: Request-URI with ?headers 400; other schemes 416; malformed 400."""
    world = World()
    flow = world.browser()
    data = request("OPTIONS", "sip:bob@example.com")
    world.from_browser(flow, line.encode() + data[data.index(b"\r\n") :])
    assert world.one(flow).status == status


@pytest.mark.parametrize(("old", "new", "status"), BROKEN)
def test_what_is_malformed_but_answerable_gets_400_with_a_phrase_that_says_what(old, new, status):
    """Table A, H4: bare CR or LF in a header, a body shorter than Content-Length, and so on."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, request("OPTIONS", "sip:bob@example.com").replace(old, new))
    answer = world.one(flow)
    assert answer.status == status
    if status == 400:
        assert answer.reason.startswith(b"Bad Request: ")
        assert len(answer.reason) > len(b"Bad Request: ")


@pytest.mark.parametrize("name", ["Via", "From", "To", "Call-ID", "CSeq"])
def test_what_is_malformed_and_not_answerable_is_dropped_and_counted(name):
    """Table A."""
    world = World()
    flow = world.browser()
    data = request("OPTIONS", "sip:bob@example.com")
    kept = [line for line in data.split(b"\r\n") if not line.startswith(name.encode() + b":")]
    world.from_browser(flow, b"\r\n".join(kept))
    world.from_backend(b"\r\n".join(kept))
    assert world.sent == []
    assert world.counters.values["sip_malformed_dropped"] == 2


@pytest.mark.parametrize(
    "data", [b"", b"\r\n", b"\r\n\r\n", b"x", b"\0" * 99, b"SIP/2.0 200 OK\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_what_is_no_message_is_dropped(data):
    world = World()
    flow = world.browser()
    world.from_browser(flow, data)
    world.from_backend(data)
    assert world.sent == []


def test_a_response_whose_body_is_shorter_than_its_content_length_is_dropped_and_counted():
    """H4."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, request("OPTIONS", "sip:bob@example.com"))
    sent = world.one(PBX)
    world.from_backend(response(sent, 200, "OK").replace(b"Content-Length: 0", b"Content-Length: 5"))
    assert world.sent == []
    assert world.counters.values["sip_malformed_dropped"] == 1


def test_headers_over_max_header_bytes_are_refused_from_both_sides():
    world = World(max_header_bytes=1024)
    flow = world.browser()
    data = request("OPTIONS", "sip:bob@example.com", "X: " + "x" * 1024, via=VIA)
    world.from_browser(flow, data)
    assert world.one(flow).status == 400
    world.from_backend(data.replace(b"WSS abc.invalid", b"UDP pbx.local:5060;rport"), PBX)
    assert world.one(PBX).status == 400, "also where rport had to be filled in"


def test_more_header_lines_than_are_indexed_are_refused_with_room_for_our_own():
    """H4: what leaves can still be read by ourselves, for its ACK and CANCEL."""
    world = World(max_header_bytes=60000)
    flow = world.browser()
    for number, status in [(520, 400), (505, 400), (470, 0)]:
        data = request("INVITE", "sip:bob@example.com", CONTACT, call_id=f"c{number}")
        world.from_browser(flow, data.replace(b"Content-Length", b"X: y\r\n" * number + b"Content-Length"))
        assert [answer.status for answer in world.take(flow)] == [status or 100]
    invite = world.one(PBX)
    world.from_backend(response(invite, 486, "Busy", to_tag="x"))
    assert world.one(PBX).method == b"ACK"


def test_more_messages_than_the_rate_allows_get_503_with_retry_after():
    """Table A."""
    world = World()
    flow = world.browser()
    world.apply(world.edge.refused(flow.id, request("INVITE", "sip:bob@example.com")))
    answer = world.one(flow)
    assert (answer.status, answer.header(b"retry-after")) == (503, b"10")
    for data in (request("ACK", "sip:bob@example.com"), b"SIP/2.0 200 OK\r\n\r\n", b"?"):
        world.apply(world.edge.refused(flow.id, data))
    assert world.sent == []


@pytest.mark.parametrize("uri", ["sip:gate.example.org:443", "sip:192.0.2.1", "sip:gate.alias", "sip:192.0.2.1:443"])
@pytest.mark.parametrize("from_backend", [True, False])
def test_options_for_us_is_answered_200_with_allow_accept_supported(uri, from_backend):
    """G1."""
    world = World()
    flow = world.browser()
    if from_backend:
        world.from_backend(request("OPTIONS", uri, via="SIP/2.0/UDP 198.51.100.7;branch=z9hG4bKo"))
    else:
        world.from_browser(flow, request("OPTIONS", uri))
    answer = world.one()
    assert answer.status == 200
    assert b"INVITE" in answer.values(b"allow")
    assert answer.header(b"accept") is not None
    assert answer.has_token(b"supported", b"path")
    assert world.counters.values["sip_answers_200"] == 1


def test_options_for_a_user_is_not_for_us():
    """G1: Request-URI ours, no user."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, request("OPTIONS", "sip:bob@192.0.2.1"))
    assert world.one(flow).status == 403


def test_a_star_backend_serves_every_domain_but_what_is_ours():
    """N4: by configuration only."""
    world = World({"*": [udp()]}, {"*": EXAMPLE})
    flow = world.browser()
    world.from_browser(flow, request("INVITE", "sip:bob@any.example", CONTACT))
    assert world.one(PBX).uri == b"sip:bob@any.example"
    world.take()
    world.from_browser(flow, request("OPTIONS", "sip:gate.example.org:443"))
    assert world.one(flow).status == 200
    world.from_browser(flow, request("MESSAGE", "sip:bob@any.example", "Route: <sip:other.example;lr>"))
    assert world.one(flow).status == 403


def test_a_domain_of_its_own_comes_before_the_star():
    other = udp(PBX._replace(host="198.51.100.9"))
    backends = {"*": BackendSettings(target="sip:a"), "example.com": EXAMPLE}
    world = World({"*": [other], "example.com": [udp()]}, backends)
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", "sip:bob@EXAMPLE.com"))
    assert world.one(PBX).method == b"MESSAGE"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("198.51.100.0/24", ((parse_network("198.51.100.0/24"), None),)),
        ("198.51.100.7:5060", ((parse_network("198.51.100.7"), 5060),)),
        (
            "[2001:db8::/32]:5060, 2001:db8::/32",
            ((parse_network("2001:db8::/32"), 5060), (parse_network("2001:db8::/32"), None)),
        ),
    ],
)
def test_direct_targets_are_networks_with_or_without_port(text, expected):
    """D1: CIDR[:port]."""
    parse, _ = DIRECT_TARGETS
    assert parse(text) == expected


def test_metadata_addresses_are_networks():
    assert all(network.num_addresses == 1 for network in METADATA)


def test_a_warning_is_a_quoted_string_whatever_its_text():
    name, value = warning('a "quoted\\" \u00e9 text')
    assert name == b"Warning"
    assert value == b"399 wsgate \"a 'quoted' ? text\""


def test_a_refusal_names_what_was_refused_only_so_far():
    """Bounded: a stranger's long host is not sent back whole."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", f"sip:x@{'a' * 9000}.example"))
    answer = world.one(flow)
    assert answer.status == 404
    assert len(answer.data) < 1000
    assert Message.parse(answer.data).header(b"warning") is not None
