"""Response contexts: failover, dead targets, TCP for what is large, timers, the best answer (N1 to N3, I4, I5, B5)."""

from __future__ import annotations

import gc
import itertools

import pytest

from tests.edge_world import (
    BOB,
    CONTACT,
    EXAMPLE,
    GATE,
    PBX,
    Call,
    World,
    register,
    request,
    response,
    udp,
)
from wsgate.addr import Address, Hop, Transport
from wsgate.sip.attempts import MAX_WAITING
from wsgate.sip.contexts import Connect, Resolve
from wsgate.sip.message import Message
from wsgate.sip.targets import BackendSettings, Target

SECOND, THIRD = Address("198.51.100.8", 5060), Address("198.51.100.9", 5060)
WEB = Target(Transport.WSS, Address("198.51.100.10", 443), "ws.example.com")
LOCAL = Address("192.0.2.1", 51234)


def two() -> World:
    return World({"example.com": [udp(), udp(SECOND)]})


def invite(world: World, *headers: str, body: bytes = b"", **fields: str):
    flow = world.browser()
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT, *headers, body=body, **fields))
    assert world.one(flow).status == 100
    return flow


def refusal(world: World, body: bytes = b"") -> int:
    """The status of the final answer that an INVITE gets at once."""
    flow = world.browser()
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT, body=body))
    trying, answer = world.take(flow)
    assert trying.status == 100
    return answer.status


def gone(world: World, hop: Hop) -> None:
    world.apply(world.edge.failed(hop, "refused", world.now))


# Failover (N2)


def test_a_transport_error_moves_on_to_the_next_target_with_a_new_branch():
    """N2: ICMP, connect failure."""
    world = two()
    flow = invite(world)
    first = world.one(PBX)
    gone(world, Hop(Transport.UDP, PBX))
    second = world.one(SECOND)
    assert second.branch != first.branch
    world.from_backend(response(second, 200, "OK", BOB, to_tag="b1"), SECOND)
    assert world.one(flow).status == 200


def test_a_503_moves_on_and_never_passes():
    """N2, N3; 3261 §16.7 step 6."""
    world = two()
    flow = invite(world)
    world.from_backend(response(world.one(PBX), 503, "Full", "Retry-After: 3600", to_tag="x"))
    assert world.one(PBX).method == b"ACK"
    world.from_backend(response(world.one(SECOND), 503, "Full", to_tag="x"), SECOND)
    answer = world.one(flow)
    assert answer.status == 500
    assert answer.header(b"retry-after") is None


def test_timer_b_moves_on_and_a_target_that_was_silent_is_left_alone_then():
    """N2, N3: the next request goes to the living one at once; a dead one backs off."""
    world = two()
    flow = invite(world)
    world.move(32.1)
    world.take(PBX)
    late = world.take(SECOND)
    assert late
    world.from_backend(response(late[0], 486, "Busy", to_tag="x"), SECOND)
    world.take()
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com"))
    assert [hop.address for hop, _ in world.sent] == [SECOND]


def test_timer_f_moves_on_too():
    """N2: and the browser is never answered 408 (4320)."""
    world = two()
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com"))
    world.move(33)
    assert [message.status for message in world.take(flow)] in ([], [100])
    assert world.take(SECOND)


def test_all_dead_the_least_bad_is_tried_once_then_a_browser_gets_503_with_retry_after():
    """N3."""
    world = two()
    flow = invite(world)
    for target in (PBX, SECOND):
        assert world.one(target).method == b"INVITE"
        gone(world, Hop(Transport.UDP, target))
    answer = world.one(flow)
    assert (answer.status, answer.header(b"retry-after")) == (503, b"10")
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT, call_id="c2"))
    assert [hop.address for hop, data in world.sent if data.startswith(b"INVITE")] == [PBX]
    world.take()
    gone(world, Hop(Transport.UDP, PBX))
    assert world.one(flow).status == 503
    world.move(3600)
    world.take()
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT, call_id="c3"))
    assert [hop.address for hop, data in world.sent if data.startswith(b"INVITE")] == [PBX]


def test_a_503_makes_the_back_off_grow_and_an_answer_forgives_all():
    """N3: exponentially."""
    world = two()
    flow = world.browser()

    def asks_the_first(answer: int) -> bool:
        """Send a request; True when the first target was asked, which then answers so."""
        world.from_browser(flow, request("OPTIONS", "sip:bob@example.com", call_id=f"o{world.now}"))
        asked = world.take(PBX)
        if asked:
            world.from_backend(response(asked[0], answer, "x", to_tag="x"))
        for second in world.take(SECOND):
            world.from_backend(response(second, 200, "OK", to_tag="x"), SECOND)
        return bool(asked)

    asked_at = []
    while len(asked_at) < 4:
        if asks_the_first(503):
            asked_at.append(world.now)
        world.move(1)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked_at)]
    assert gaps[0] < gaps[1] < gaps[2]
    while not asks_the_first(200):
        world.move(1)
    world.move(1)
    assert asks_the_first(200)


def test_a_target_that_is_ourselves_is_skipped():
    """N1: a company's D2W record points at its gateway."""
    own = Target(Transport.WSS, Address("192.0.2.1", 443), "gate.example.org")
    world = World({"example.com": [own, udp(GATE), udp()]})
    invite(world)
    assert world.one(PBX).method == b"INVITE"
    world = World({"example.com": [own]})
    assert refusal(world) == 503
    assert world.asked == []


def test_an_ack_skips_ourselves_too():
    """N1: the ACK of a 2xx has no transaction that would try the next target."""
    world = World({"example.com": [udp(GATE), udp()]})
    flow = world.browser()
    world.from_browser(flow, request("ACK", "sip:bob@example.com", to="<sip:bob@example.com>;tag=b1"))
    assert world.one(PBX).method == b"ACK"


def test_a_sips_request_uri_goes_to_secure_targets_only():
    """3261 §26.2.2."""
    secure = Target(Transport.TLS, SECOND, "tls.example.com")
    world = World({"example.com": [udp(), secure]})
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", "sips:bob@example.com"))
    assert [hop for hop, _ in world.sent] == [Hop(Transport.TLS, SECOND)]


def test_a_sips_request_uri_without_a_secure_target_is_told_why():
    """RFC 3261 §26.2.2, table A: the server is there, only not by TLS."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", "sips:bob@example.com"))
    answer = world.one(flow)
    assert answer.status == 503
    assert b"by TLS or WSS, which sips: asks for" in answer.header(b"warning")
    assert world.take(PBX) == []


# TCP for what is large (I4)


def test_a_large_request_goes_by_tcp_with_a_via_that_says_so():
    """I4; 3261 §18.1.1."""
    world = World()
    invite(world, body=b"x" * 1300)
    ((hop, data),) = world.sent
    assert hop.transport is Transport.TCP
    assert Message.parse(data).values(b"via")[0].startswith(b"SIP/2.0/TCP ")
    assert b";transport=tcp;r2=on" in Message.parse(data).values(b"record-route")[0]


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE", "REGISTER"])
def test_the_limit_counts_the_request_as_it_leaves(method: str):
    """I4: up to 1300 bytes by UDP, one more goes by TCP."""

    def sent(padding: int) -> tuple[Transport, int]:
        world = World()
        flow = world.browser()
        world.from_browser(flow, request(method, "sip:example.com", CONTACT, "X-Padding: " + "x" * padding))
        hop, data = next(entry for entry in world.sent if entry[0].address == PBX)
        return hop.transport, len(data)

    padding = 1300 - sent(1)[1] + 1
    assert sent(padding) == (Transport.UDP, 1300)
    assert sent(padding + 1)[0] is Transport.TCP


@pytest.mark.parametrize(("padding", "transport"), [(600, Transport.UDP), (1200, Transport.TCP)])
def test_the_limit_counts_for_an_acknowledgement_too(padding: int, transport: Transport):
    """I4, I7."""
    world = World()
    call = Call(world, world.browser())
    world.from_browser(call.flow, call.request("ACK", "sip:bob@198.51.100.7", "X-Padding: " + "x" * padding))
    ((hop, data),) = world.sent
    assert hop.transport is transport
    assert Message.parse(data).values(b"via")[0].startswith(b"SIP/2.0/%b " % transport.value.encode())


def test_refused_tcp_goes_back_to_udp_and_is_remembered_for_that_backend():
    """I4."""
    world = World()
    flow = invite(world, body=b"x" * 1300)
    world.take(PBX)
    gone(world, Hop(Transport.TCP, PBX))
    ((hop, data),) = world.sent
    assert hop.transport is Transport.UDP
    assert Message.parse(data).values(b"via")[0].startswith(b"SIP/2.0/UDP ")
    world.sent = []
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", body=b"x" * 1300))
    assert [hop.transport for hop, _ in world.sent] == [Transport.UDP]
    world.sent = []
    world.move(601)
    world.sent = []
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", body=b"x" * 1300))
    assert [hop.transport for hop, _ in world.sent] == [Transport.TCP]


@pytest.mark.parametrize(
    ("settings", "backend"),
    [
        ({"udp_max_bytes": 0}, EXAMPLE),
        ({}, BackendSettings(target="sip:pbx.example.com", transports=(Transport.UDP,))),
    ],
)
def test_a_large_request_stays_with_udp_where_tcp_is_not_wanted(settings, backend):
    """I4: by option, or because the backend speaks no TCP."""
    world = World(None, {"example.com": backend}, **settings)
    invite(world, body=b"x" * 5000)
    assert [hop.transport for hop, _ in world.sent] == [Transport.UDP]


def test_what_is_too_big_for_any_transport_is_513():
    """I4, table A."""
    backend = BackendSettings(target="sip:pbx.example.com", transports=(Transport.UDP,))
    world = World(None, {"example.com": backend})
    assert refusal(world, body=b"x" * 65507) == 513
    world = World()
    flow = invite(world, body=b"x" * 65507)
    gone(world, Hop(Transport.TCP, PBX))
    assert world.one(flow).status == 513, "no way back to a datagram"
    assert world.edge.dead_targets() == [], "small requests still go there"


# Backends that are not found or connected yet


def test_requests_wait_for_one_resolution_and_all_leave_when_it_is_over():
    """N5."""
    world = World({"example.com": None})
    flows = [invite(world, call_id=f"c{number}") for number in range(3)]
    assert world.asked == [Resolve("example.com")]
    world.targets.by_name["example.com"] = [udp()]
    world.apply(world.edge.resolved("example.com", world.now))
    assert [message.call_id for message in world.take(PBX)] == [b"c0", b"c1", b"c2"]
    assert all(world.take(flow) == [] for flow in flows)


def test_a_resolution_that_finds_nothing_costs_those_that_asked_503():
    """N5, table A."""
    world = World({"example.com": None})
    flow = invite(world)
    world.apply(world.edge.resolved("example.com", world.now))
    assert world.one(flow).status == 503


def test_an_ack_waits_for_the_resolution_too():
    """I7."""
    world = World({"example.com": None})
    flow = world.browser()
    world.from_browser(flow, request("ACK", "sip:bob@example.com", to="<sip:bob@example.com>"))
    world.targets.by_name["example.com"] = [udp()]
    world.apply(world.edge.resolved("example.com", world.now))
    assert world.one(PBX).method == b"ACK"


def test_what_waits_for_a_resolution_or_a_connection_is_bounded():
    """N5: the backend that is not there costs no memory without limit."""
    for world, asked in [
        (World({"example.com": None}, transactions_per_connection=2000), Resolve("example.com")),
        (
            World({"example.com": [WEB]}, transactions_per_connection=2000),
            Connect(Hop(WEB.transport, WEB.address), "example.com"),
        ),
    ]:
        flow = world.browser()
        for number in range(MAX_WAITING + 2):
            world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", call_id=f"c{number}"))
        assert [message.status for message in world.take(flow)] == [503, 503]
        assert world.asked == [asked]
        assert world.counters.values["sip_waiting_full"] == 2


def test_a_ws_backend_is_connected_first_and_its_near_end_names_us():
    """V1: one connection per backend; requests of the backend come back on it."""
    world = World({"example.com": [WEB]})
    flow = invite(world)
    assert world.asked == [Connect(Hop(Transport.WSS, WEB.address), "example.com")]
    assert world.sent == []
    hop = Hop(Transport.WSS, WEB.address, b"stream01")
    world.apply(world.edge.connected(hop, LOCAL, world.now))
    ((sent_to, data),) = world.sent
    message = Message.parse(data)
    assert sent_to == hop
    assert message.values(b"via")[0].startswith(b"SIP/2.0/WSS 192.0.2.1:51234;branch=")
    assert b"@192.0.2.1:51234;transport=ws;r2=on;lr>" in message.values(b"record-route")[0]
    answer = response(message, 200, "OK", BOB, to_tag="b1")
    world.apply(world.edge.from_backend(hop._replace(connection=b"another1"), answer, world.now))
    assert world.take(flow) == [], "V3: only down the same connection"
    world.apply(world.edge.from_backend(hop, answer, world.now))
    ok = world.one(flow)
    routes = ", ".join(value.decode() for value in ok.values(b"record-route")[::-1])
    world.sent = []
    to = "<sip:bob@example.com>;tag=b1"
    world.from_browser(flow, request("BYE", "sip:bob@198.51.100.10:443;transport=ws", f"Route: {routes}", to=to))
    assert [sent for sent, _ in world.sent] == [hop], "the near end of that connection is ours"


def test_a_ws_backend_that_cannot_be_connected_moves_on():
    """N2: connect failure."""
    world = World({"example.com": [WEB, udp()]})
    invite(world)
    gone(world, Hop(WEB.transport, WEB.address))
    assert world.one(PBX).method == b"INVITE"


def test_the_end_of_an_older_connection_leaves_the_newer_one():
    """V1: where it had to be replaced."""
    world = World({"example.com": [WEB]})
    flow = world.browser()
    for name in (b"stream01", b"stream02"):
        world.apply(world.edge.connected(Hop(WEB.transport, WEB.address, name), LOCAL, world.now))
    gone(world, Hop(WEB.transport, WEB.address, b"stream01"))
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com"))
    assert [hop.connection for hop, _ in world.sent] == [b"stream02"]


def test_a_caller_who_left_while_the_backend_was_sought_is_not_called_for():
    """D5: nothing is sent for a flow that is gone."""
    world = World({"example.com": None})
    flow = invite(world)
    world.apply(world.edge.flow_closed(flow.id, world.now))
    world.targets.by_name["example.com"] = [udp()]
    world.apply(world.edge.resolved("example.com", world.now))
    assert world.sent == []


def test_nothing_is_kept_of_a_request_after_its_time():
    """Memory: contexts, timers and dialogs all end."""
    world = two()
    flow = world.browser()
    for number in range(20):
        world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT, call_id=f"c{number}"))
        sent = world.one(PBX)
        for status in (180, 486) if number % 2 else (180, 183):
            world.from_backend(response(sent, status, "x", BOB, to_tag="b1"))
        if number % 4 == 0:
            world.apply(world.edge.from_browser(flow.id, b"\r\n\r\n", world.now))
        world.take()
    world.move(600)
    assert world.edge.counts()["transactions"] == 0
    assert world.edge.counts()["dialogs"] == 0
    assert world.edge.next_timer() is None


def test_a_request_that_is_over_is_freed_without_the_garbage_collector():
    """Memory: contexts, branches and transactions let go of each other when they end."""
    world = two()
    flow = world.browser()
    register(world, flow)
    Call(world, flow)
    world.move(100)
    gc.collect()
    gc.disable()
    try:
        for number in range(20):
            register(world, flow, call_id=f"r{number}")
            call = Call(world, flow, call_id=f"c{number}")
            world.from_browser(flow, call.request("BYE"))
            world.from_backend(response(world.one(PBX), 200, "OK"))
            world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT, call_id=f"d{number}"))
            world.from_backend(response(world.one(PBX), 486, "Busy", to_tag="x"))
            world.sent = []
            world.move(100)
        assert world.edge.counts()["transactions"] == 0
        assert gc.collect() < 20
    finally:
        gc.enable()
