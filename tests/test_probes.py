"""Dead targets are probed by OPTIONS and come back (rule N3), over every kind of transport (V1)."""

from __future__ import annotations

import pytest

from tests.edge_world import (
    BOB,
    CONTACT,
    PBX,
    World,
    backend_request,
    is_probe,
    request,
    response,
    udp,
)
from wsgate.addr import Address, Hop, Transport
from wsgate.sip.contexts import Connect
from wsgate.sip.dead_targets import FIRST_BACK_OFF_SECONDS
from wsgate.sip.message import Message
from wsgate.sip.probes import LOG_INTERVAL_SECONDS
from wsgate.sip.targets import BackendSettings, Target

SECOND = Address("198.51.100.8", 5060)
LOCAL = Address("192.0.2.1", 51234)
INTERVAL = 10.0
"""The default of probe_interval."""


def two(*targets: Target, **settings: object) -> World:
    return World({"example.com": list(targets) or [udp(), udp(SECOND)]}, **settings)  # type: ignore[arg-type]


def asked(world: World) -> list[Address]:
    """To whom a request of a browser goes, which is answered."""
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", CONTACT))
    places = [hop.address for hop, _ in world.sent]
    for place in places:
        world.from_backend(response(world.one(place), 200, "OK", to_tag="x"), place)
    world.take()
    return places


def kill(world: World, target: Target | None = None) -> None:
    """A request finds the first target unreachable and goes to the second."""
    target = target or udp()
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", CONTACT))
    world.apply(world.edge.failed(Hop(target.transport, target.address), "refused", world.now))
    for message in world.take(SECOND):
        world.from_backend(response(message, 200, "OK", to_tag="x"), SECOND)
    assert (target.transport, target.address) in world.edge.dead_targets()
    world.take()
    world.asked = []


def probe_of(world: World) -> tuple[Hop, Message]:
    """The one probe that went out."""
    [(hop, data)] = world.probes
    world.probes = []
    return hop, Message.parse(data)


@pytest.mark.parametrize("status", [200, 302, 403, 404, 483, 500, 604])
def test_n3_any_answer_but_408_and_503_revives(status: int) -> None:
    world = two()
    kill(world)
    world.move(INTERVAL - 0.1)
    assert world.probes == []
    world.move(0.1)
    hop, probe = probe_of(world)
    assert hop == Hop(Transport.UDP, PBX)
    assert asked(world) == [SECOND], "nobody is risked while the probe is out"
    world.from_backend(response(probe, status, "x", to_tag="x"))
    assert world.edge.dead_targets() == []
    assert asked(world) == [PBX]
    world.probes = []
    world.move(1000)
    assert world.probes == []
    assert world.counters.values["sip_targets_revived"] == 1


@pytest.mark.parametrize("status", [408, 503])
def test_n3_408_and_503_say_no_more_than_silence(status: int) -> None:
    world = two()
    kill(world)
    world.move(INTERVAL)
    world.from_backend(response(probe_of(world)[1], status, "x", to_tag="x"))
    assert world.edge.dead_targets() == [(Transport.UDP, PBX)]
    world.move(INTERVAL)
    world.from_backend(response(probe_of(world)[1], 200, "OK", to_tag="x"))
    assert world.edge.dead_targets() == []


def test_n3_the_probe_is_a_whole_request_of_ours() -> None:
    world = two()
    kill(world)
    world.move(INTERVAL)
    _, probe = probe_of(world)
    assert is_probe(probe.data)
    assert probe.flaw == ""
    assert probe.uri == b"sip:example.com"
    assert probe.via_bytes.startswith(b"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK")
    assert probe.via_bytes.endswith(b";rport")
    assert probe.header(b"max-forwards") == b"70"
    assert probe.cseq == (1, b"OPTIONS")
    assert probe.from_tag
    assert probe.header(b"content-length") == b"0"
    answer = response(probe, 200, "OK", to_tag="x")
    world.from_backend(answer, Address("203.0.113.66", 5060))
    assert world.edge.dead_targets(), "V3: an answer from elsewhere says nothing"
    world.from_backend(answer, SECOND)
    assert world.edge.dead_targets() == [], "a cluster may answer from another member"


def test_n3_probe_interval_is_obeyed_and_a_silent_target_is_asked_again_after_it() -> None:
    world = two(backends={"example.com": BackendSettings(target="sip:pbx.example.com", probe_interval=3.0)})
    kill(world)
    world.move(2.9)
    assert world.probes == []
    world.move(0.1)
    assert len(world.probes) == 1
    world.move(32)
    assert len({Message.parse(data).branch for _, data in world.probes}) == 1, "Timer F ends one before the next begins"
    world.move(3)
    assert len({Message.parse(data).branch for _, data in world.probes}) == 2


def test_n3_who_serves_requests_but_swallows_options_comes_back_too() -> None:
    """One request tries it when its back-off is over and no probe is out; those at its side are not risked."""
    world = two()
    kill(world)
    world.move(FIRST_BACK_OFF_SECONDS)
    flow = world.browser()
    for number in range(3):
        world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", CONTACT, call_id=f"c{number}"))
    assert [hop.address for hop, _ in world.sent] == [PBX, SECOND, SECOND]
    world.from_backend(response(world.one(PBX), 200, "OK", to_tag="x"))
    assert world.edge.dead_targets() == []
    world.move(INTERVAL)
    assert world.probes == [], "what came back by itself is not probed"


def test_n3_a_silent_target_is_asked_at_once() -> None:
    """RFC 4320: a proxy is silent about a phone that is; it is not dead for that."""
    world = two()
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", CONTACT))
    world.move(31.9)
    assert world.probes == []
    world.move(0.2)
    _, probe = probe_of(world)
    assert world.edge.dead_targets() == [(Transport.UDP, PBX)]
    world.from_backend(response(probe, 200, "OK", to_tag="x"))
    assert world.edge.dead_targets() == []


def test_n3_a_callee_that_rings_for_ever_kills_no_target() -> None:
    world = two()
    flow = world.browser()
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT))
    invite = world.one(PBX)
    world.from_backend(response(invite, 180, "Ringing", BOB, to_tag="b1"))
    world.take(flow)
    world.move(300)
    assert world.counters.values["sip_targets_dead"] == 0


def test_n3_retry_after_of_a_503_is_obeyed() -> None:
    """RFC 3261 §21.5.4; a probe that is answered ends it sooner, silence does not."""
    world = two()
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", CONTACT))
    world.from_backend(response(world.one(PBX), 503, "Full", "Retry-After: 120 (in a while)", to_tag="x"))
    world.from_backend(response(world.one(SECOND), 200, "OK", to_tag="x"), SECOND)
    world.take()
    world.move(9)
    assert asked(world) == [SECOND]
    world.move(110)
    assert asked(world) == [SECOND]


def test_n4_what_is_no_target_of_a_backend_is_not_probed() -> None:
    """A target that left the DNS, a backend that left the configuration: forgotten."""
    backends = {"example.com": BackendSettings(target="sip:pbx.example.com")}
    world = two(backends=backends)
    kill(world)
    world.targets.by_name["example.com"] = [udp(SECOND)]
    world.move(1000)
    assert world.probes == []
    world = two(backends=backends)
    kill(world)
    world.targets.by_name["example.com"] = None
    world.move(INTERVAL)
    assert world.probes, "not known to be elsewhere"
    world = two(backends=backends)
    kill(world)
    del backends["example.com"]
    world.move(1000)
    assert world.probes == []


@pytest.mark.parametrize("transport", [Transport.WS, Transport.WSS, Transport.TLS])
def test_v1_a_probe_opens_the_connection_that_it_needs(transport: Transport) -> None:
    """Where only our own connection leads back to us its near end names us, in a probe too."""
    target = Target(transport, PBX, "pbx.example.com")
    world = two(target, udp(SECOND), tls_port=False)
    kill(world, target)
    world.move(INTERVAL)
    assert world.asked == [Connect(Hop(transport, PBX), "example.com")]
    world.apply(world.edge.failed(Hop(transport, PBX), "refused", world.now))
    world.asked = []
    world.move(INTERVAL)
    assert world.asked == [Connect(Hop(transport, PBX), "example.com")]
    hop = Hop(transport, PBX, b"number-1")
    world.apply(world.edge.connected(hop, LOCAL, world.now))
    went, probe = probe_of(world)
    assert went == hop
    assert probe.via_bytes.startswith(f"SIP/2.0/{transport.value} 192.0.2.1:51234;".encode())
    answer = response(probe, 200, "OK", to_tag="x")
    world.apply(world.edge.from_backend(hop._replace(connection=b"number-2"), answer, world.now))
    assert world.edge.dead_targets(), "V3: only the same connection answers"
    world.apply(world.edge.from_backend(hop, answer, world.now))
    assert world.edge.dead_targets() == []


def test_n3_a_stream_that_broke_does_not_hold_up_its_probes() -> None:
    target = Target(Transport.TCP, PBX, "pbx.example.com")
    world = two(target, udp(SECOND))
    kill(world, target)
    for _ in range(3):
        world.move(INTERVAL)
        hop, _ = probe_of(world)
        assert hop == Hop(Transport.TCP, PBX)
        world.apply(world.edge.failed(hop, "refused", world.now))
        assert world.edge.counts()["probes"] == 0


# TLS: how we are named there


def test_v1_a_tls_backend_sees_the_tls_port() -> None:
    world = two(Target(Transport.TLS, PBX, "pbx.example.com"))
    flow = world.browser()
    world.from_browser(flow, request("REGISTER", "sip:example.com", CONTACT))
    arrived = world.one(PBX)
    assert b"@192.0.2.1:5061;transport=tls;lr" in arrived.values(b"path")[0]
    assert arrived.via_bytes.startswith(b"SIP/2.0/TLS 192.0.2.1:5061;")
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT))
    assert b"@192.0.2.1:5061;transport=tls;r2=on" in world.one(PBX).values(b"record-route")[0]


def test_v1_without_a_tls_port_our_connection_is_the_way_back() -> None:
    """Requests of the backend come back on the connection that our Path names."""
    world = two(Target(Transport.TLS, PBX, "pbx.example.com"), tls_port=False)
    flow = world.browser()
    hop = Hop(Transport.TLS, PBX, b"number-1")
    world.from_browser(flow, request("REGISTER", "sip:example.com", CONTACT))
    assert world.asked == [Connect(hop._replace(connection=b""), "example.com")]
    world.apply(world.edge.connected(hop, LOCAL, world.now))
    [(went, data)] = world.sent
    world.sent = []
    assert went == hop
    path = Message.parse(data).values(b"path")[0].decode()
    assert "@192.0.2.1:51234;transport=tls;lr" in path
    answer = response(Message.parse(data), 200, "OK", CONTACT + ";expires=60", to_tag="x")
    world.apply(world.edge.from_backend(Hop(Transport.UDP, PBX), answer, world.now))
    assert world.take(flow) == [], "V3: TLS is answered by TLS"
    world.apply(world.edge.from_backend(hop, answer, world.now))
    assert world.one(flow).status == 200
    call = backend_request("INVITE", "sip:alice@abc.invalid;transport=ws", f"Route: {path}", BOB)
    world.apply(world.edge.from_backend(hop, call, world.now))
    assert world.one(flow).method == b"INVITE"
    [(went, _)] = world.sent
    assert went == hop, "the answer goes down the connection"


# The memory of refused TCP (I4)


def test_i4_a_connection_that_breaks_is_no_refusal() -> None:
    """The server was restarted: the request goes once more by TCP, and by UDP only where no connection can be made."""
    world = two(udp())
    flow = world.browser()
    large = b"x" * 1300
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", body=large))
    world.sent = []
    for transport in (Transport.TCP, Transport.UDP):
        world.apply(world.edge.failed(Hop(Transport.TCP, PBX, b"number-1"), "closed by the peer", world.now))
        assert [hop.transport for hop, _ in world.sent] == [transport], "once, not for ever"
        world.sent = []
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", body=large, call_id="c2"))
    assert [hop.transport for hop, _ in world.sent] == [Transport.TCP]
    assert world.edge.dead_targets() == []


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS, Transport.WS])
def test_a_request_on_a_connection_that_broke_is_sent_once_more_on_a_new_one(transport: Transport) -> None:
    """With a branch of its own; a call that rings is not: it would ring twice. Then N2."""
    target = Target(transport, PBX, "pbx.example.com")
    world = two(target, udp(SECOND))
    hop, new = (Hop(transport, PBX, name) for name in (b"number-1", b"number-2"))
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", CONTACT))
    world.apply(world.edge.connected(hop, LOCAL, world.now))
    first = world.one(PBX)
    world.apply(world.edge.failed(hop, "closed by the peer", world.now))
    world.apply(world.edge.connected(new, LOCAL, world.now))
    again = world.one(PBX)
    assert again.branch != first.branch
    assert again.call_id == first.call_id
    world.apply(world.edge.failed(new, "closed by the peer", world.now))
    assert world.one(SECOND).call_id == first.call_id, "once"


def test_a_call_that_rings_is_not_sent_again_when_its_connection_breaks() -> None:
    """It would ring twice."""
    world = two(Target(Transport.TCP, PBX, "pbx.example.com"))
    hop = Hop(Transport.TCP, PBX, b"number-1")
    flow = world.browser()
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT))
    ringing = response(world.one(PBX), 180, "Ringing", BOB, to_tag="b1")
    world.apply(world.edge.from_backend(hop, ringing, world.now))
    world.take(flow)
    world.apply(world.edge.failed(hop, "closed by the peer", world.now))
    assert world.take(PBX) == []
    assert world.one(flow).status == 503


def test_n3_a_target_that_comes_and_goes_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wsgate")
    world = two()
    for _ in range(4):
        kill(world)
        world.move(INTERVAL)
        _, probe = probe_of(world)
        world.from_backend(response(probe, 200, "OK", to_tag="x"))
    assert world.edge.dead_targets() == []
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"backend example.com: UDP {PBX} does not serve", f"backend example.com: UDP {PBX} serves again"]
    caplog.clear()
    kill(world)
    assert caplog.records == [], "a minute has not passed"
    world.move(2 * LOG_INTERVAL_SECONDS)
    assert [record.getMessage() for record in caplog.records] == lines[:1], "it lasts, so it is told"
    world.move(2 * LOG_INTERVAL_SECONDS)
    assert len(caplog.records) == 1
