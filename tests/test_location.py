"""RFC 3263 without a socket: which questions, in which order, and what the answers mean (rules N1, N2)."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from wsgate.addr import Address, Transport
from wsgate.sip.location import (
    MAX_ADDRESSES_PER_HOST,
    MAX_HOSTS,
    Answer,
    Kind,
    Naptr,
    Outcome,
    Question,
    Record,
    Resolution,
    Srv,
    TargetResolution,
)
from wsgate.sip.targets import Target, parse_target

UDP, TCP, TLS, WS, WSS = Transport
ALL = tuple(Transport)
FAILED = Answer(Outcome.FAILED, (), (), 5.0)

Zone = dict[tuple[str, str], "Sequence[Record] | Answer"]


def run(
    text: str,
    zone: Zone,
    transports: Sequence[Transport] = ALL,
    own: Sequence[Address] = (),
    kinds: Sequence[Kind] = (Kind.A, Kind.AAAA),
) -> tuple[Resolution, list[str]]:
    """The resolution, and the questions that were asked, in order."""
    machine = TargetResolution(parse_target(text), transports, kinds, own)
    asked = []
    while questions := machine.questions():
        for question in questions:
            asked.append(f"{question.name} {question.kind.value}")
            found = zone.get((question.name, question.kind.value), ())
            if not isinstance(found, Answer):
                found = Answer(Outcome.RECORDS if found else Outcome.NONE, tuple(found), (), 60.0)
            machine.answered(question, found)
    return machine.resolution(), asked


def tried(resolution: Resolution) -> list[str]:
    return [f"{target.transport.value} {target.address}" for target in resolution.ordered(random.Random(1).random)]


@pytest.mark.parametrize(
    ("text", "transports", "expected"),
    [
        ("sip:10.0.0.1", ALL, "UDP 10.0.0.1:5060"),
        ("sip:10.0.0.1", (TCP, UDP), "TCP 10.0.0.1:5060"),
        ("sip:10.0.0.1:5070", ALL, "UDP 10.0.0.1:5070"),
        ("sip:10.0.0.1;transport=ws", ALL, "WS 10.0.0.1:80"),
        ("sip:10.0.0.1;transport=tls", ALL, "TLS 10.0.0.1:5061"),
        ("sips:10.0.0.1", ALL, "TLS 10.0.0.1:5061"),
        ("sips:10.0.0.1", (UDP, WSS, TLS), "WSS 10.0.0.1:443"),
        ("sip:[2001:db8::1]", ALL, "UDP [2001:db8::1]:5060"),
    ],
)
def test_n1_numeric_targets_ask_nothing(text: str, transports: Sequence[Transport], expected: str) -> None:
    resolution, asked = run(text, {}, transports)
    assert asked == []
    assert tried(resolution) == [expected]
    assert resolution.expires == math.inf


def test_n1_a_port_asks_for_addresses_only() -> None:
    zone: Zone = {("a.example", "A"): ["10.0.0.1", "10.0.0.2"], ("a.example", "AAAA"): ["2001:db8::1"]}
    resolution, asked = run("sip:a.example:5070", zone)
    assert asked == ["a.example A", "a.example AAAA"]
    assert tried(resolution) == ["UDP 10.0.0.1:5070", "UDP 10.0.0.2:5070", "UDP [2001:db8::1]:5070"]
    assert resolution.expires == 60.0
    resolution, asked = run("sip:a.example:5070;transport=tcp", zone, kinds=(Kind.AAAA,))
    assert asked == ["a.example AAAA"]
    assert tried(resolution) == ["TCP [2001:db8::1]:5070"]


def test_n1_a_transport_asks_srv_and_then_addresses() -> None:
    zone: Zone = {("_sip._tcp.a.example", "SRV"): [Srv(0, 0, 5071, "h.example")], ("h.example", "A"): ["10.0.0.1"]}
    resolution, asked = run("sip:a.example;transport=tcp", zone)
    assert asked == ["_sip._tcp.a.example SRV", "h.example A", "h.example AAAA"]
    assert tried(resolution) == ["TCP 10.0.0.1:5071"]
    resolution, asked = run("sips:a.example;transport=ws", {("a.example", "A"): ["10.0.0.1"]})
    assert asked == ["_sips._ws.a.example SRV", "a.example A", "a.example AAAA"]
    assert tried(resolution) == ["WSS 10.0.0.1:443"]


NAPTR = [
    Naptr(50, 50, "s", "SIPS+D2T", "_sips._tcp.a.example"),
    Naptr(90, 50, "S", "sip+d2t", "_sip._tcp.a.example"),
    Naptr(100, 20, "s", "SIP+D2U", "_sip._udp.b.example"),
    Naptr(100, 10, "s", "SIP+D2W", "_sip._ws.a.example"),
    Naptr(110, 10, "s", "SIPS+D2W", "_sips._ws.a.example"),
    Naptr(1, 1, "u", "E2U+sip", ""),
    Naptr(1, 1, "a", "SIP+D2U", "x.example"),
    Naptr(1, 1, "s", "SIP+D2S", "_sip._sctp.a.example"),
]
FULL: Zone = {
    ("a.example", "NAPTR"): NAPTR,
    ("_sips._tcp.a.example", "SRV"): [Srv(0, 1, 5061, "tls.example")],
    ("_sip._tcp.a.example", "SRV"): [Srv(0, 1, 5060, "tcp.example")],
    ("_sip._udp.b.example", "SRV"): [Srv(0, 1, 5060, "udp.example")],
    ("_sip._ws.a.example", "SRV"): [Srv(0, 1, 80, "ws.example")],
    ("_sips._ws.a.example", "SRV"): [Srv(0, 1, 443, "wss.example")],
    **{(f"{name}.example", "A"): [f"10.0.0.{n}"] for n, name in enumerate(["tls", "tcp", "udp", "ws", "wss"])},
}


def test_n1_naptr_by_order_and_preference() -> None:
    resolution, asked = run("sip:a.example", FULL)
    assert asked[:6] == [
        "a.example NAPTR",
        "_sips._tcp.a.example SRV",
        "_sip._tcp.a.example SRV",
        "_sip._ws.a.example SRV",
        "_sip._udp.b.example SRV",
        "_sips._ws.a.example SRV",
    ]
    assert tried(resolution) == [
        "TLS 10.0.0.0:5061",
        "TCP 10.0.0.1:5060",
        "WS 10.0.0.3:80",
        "UDP 10.0.0.2:5060",
        "WSS 10.0.0.4:443",
    ]
    assert all(target.host == "a.example" for target in resolution.ordered(random.random))


def test_n1_transports_filter_naptr_and_break_ties() -> None:
    assert tried(run("sip:a.example", FULL, (UDP,))[0]) == ["UDP 10.0.0.2:5060"]
    tie = [Naptr(1, 1, "s", f"SIP+D2{letter}", f"_sip._{name}.a.example") for letter, name in ("Tt", "Uu")]
    zone: Zone = {
        ("a.example", "NAPTR"): tie,
        ("_sip._t.a.example", "SRV"): [Srv(0, 0, 1, "h.example")],
        ("_sip._u.a.example", "SRV"): [Srv(0, 0, 2, "h.example")],
        ("h.example", "A"): ["10.0.0.1"],
    }
    assert tried(run("sip:a.example", zone, (UDP, TCP))[0]) == ["UDP 10.0.0.1:2", "TCP 10.0.0.1:1"]
    assert tried(run("sip:a.example", zone, (TCP, UDP))[0]) == ["TCP 10.0.0.1:1", "UDP 10.0.0.1:2"]


def test_n1_sips_goes_by_tls_and_wss_only() -> None:
    assert tried(run("sips:a.example", FULL)[0]) == ["TLS 10.0.0.0:5061", "WSS 10.0.0.4:443"]
    resolution, asked = run("sips:a.example", FULL, (UDP, TCP, WS))
    assert asked == []
    assert resolution.problem
    assert tried(resolution) == []
    assert run("sip:a.example;transport=tcp", FULL, (UDP,))[0].problem


@pytest.mark.parametrize("naptr", [(), FAILED, [Naptr(1, 1, "u", "E2U+sip", "")]])
def test_n1_where_no_naptr_speaks_every_srv_is_asked(naptr: Sequence[Record] | Answer) -> None:
    zone: Zone = {
        ("a.example", "NAPTR"): naptr,
        ("_sips._ws.a.example", "SRV"): [Srv(0, 0, 443, "h.example")],
        ("_sip._ws.a.example", "SRV"): [Srv(0, 0, 80, "h.example")],
        ("h.example", "A"): ["10.0.0.1"],
    }
    resolution, asked = run("sip:a.example", zone, (WS, TCP, UDP, TLS, WSS))
    assert asked[1:6] == [
        "_sip._ws.a.example SRV",
        "_sip._tcp.a.example SRV",
        "_sip._udp.a.example SRV",
        "_sips._tcp.a.example SRV",
        "_sips._ws.a.example SRV",
    ]
    assert tried(resolution) == ["WS 10.0.0.1:80", "WSS 10.0.0.1:443"]
    _, asked = run("sips:a.example", zone)
    assert asked[1:3] == ["_sips._tcp.a.example SRV", "_sips._ws.a.example SRV"]


def test_n1_without_any_srv_the_host_itself_by_the_first_transport() -> None:
    zone: Zone = {("a.example", "A"): ["10.0.0.1"]}
    assert tried(run("sip:a.example", zone)[0]) == ["UDP 10.0.0.1:5060"]
    assert tried(run("sip:a.example", zone, (WSS, UDP))[0]) == ["WSS 10.0.0.1:443"]
    assert tried(run("sips:a.example", zone)[0]) == ["TLS 10.0.0.1:5061"]


def test_srv_with_a_dot_or_unanswered_srv_never_falls_back_to_the_host() -> None:
    host: Zone = {("a.example", "A"): ["10.0.0.1"]}
    resolution, asked = run("sip:a.example", {**host, ("_sip._udp.a.example", "SRV"): [Srv(0, 0, 0, "")]})
    assert tried(resolution) == []
    assert "a.example A" not in asked
    assert "name no server" in resolution.problem
    resolution, asked = run("sip:a.example", {**host, ("_sip._udp.a.example", "SRV"): FAILED})
    assert tried(resolution) == []
    assert "no answer" in resolution.problem
    assert resolution.expires == FAILED.expires


def test_problems_are_named() -> None:
    assert "has no address" in run("sip:a.example:5060", {})[0].problem
    assert "no answer" in run("sip:a.example:5060", {("a.example", "A"): FAILED})[0].problem
    own = [Address("10.0.0.1", 5060)]
    assert "itself" in run("sip:a.example:5060", {("a.example", "A"): ["10.0.0.1"]}, own=own)[0].problem
    assert "itself" in run("sip:10.0.0.1", {}, own=own)[0].problem


def test_n1_a_target_that_is_ourselves_is_skipped() -> None:
    own = [Address("10.0.0.1", 443), Address("gate.example", 443)]
    zone: Zone = {
        ("_sips._ws.a.example", "SRV"): [
            Srv(0, 0, 443, "gate.example"),
            Srv(1, 0, 443, "byip.example"),
            Srv(2, 0, 443, "other.example"),
        ],
        ("gate.example", "A"): ["10.9.9.9"],
        ("byip.example", "A"): ["10.0.0.1"],
        ("other.example", "A"): ["10.0.0.2"],
    }
    resolution, asked = run("sip:a.example;transport=wss", zone, own=own)
    assert tried(resolution) == ["WSS 10.0.0.2:443"]
    assert "gate.example A" not in asked


def test_d1_names_met_lead_to_their_targets() -> None:
    zone: Zone = {
        ("_sip._udp.a.example", "SRV"): [Srv(0, 0, 5060, "one.example"), Srv(1, 0, 5061, "two.example")],
        ("one.example", "A"): Answer(Outcome.RECORDS, ("10.0.0.1",), ("real.example",), 30.0),
        ("two.example", "A"): ["10.0.0.2"],
    }
    resolution, _ = run("sip:a.example;transport=udp", zone)
    one, two = (Target(UDP, Address(f"10.0.0.{n}", 5059 + n), "a.example") for n in (1, 2))
    assert resolution.named == {
        "a.example": (one, two),
        "one.example": (one,),
        "real.example": (one,),
        "two.example": (two,),
    }
    assert resolution.expires == 30.0


def test_n2_priorities_in_order_and_weights_drawn() -> None:
    records = [Srv(10, 70, 1, "h.example"), Srv(10, 30, 2, "h.example"), Srv(10, 0, 3, "h.example")]
    records += [Srv(20, 100, 4, "h.example"), Srv(5, 0, 5, "h.example")]
    zone: Zone = {("_sip._udp.a.example", "SRV"): records, ("h.example", "A"): ["10.0.0.1"]}
    resolution, _ = run("sip:a.example;transport=udp", zone)
    source = random.Random(7).random
    draws = [[target.address.port for target in resolution.ordered(source)] for _ in range(5000)]
    assert all(ports[0] == 5 and ports[4] == 4 and sorted(ports) == [1, 2, 3, 4, 5] for ports in draws)
    assert not resolution.is_fixed
    assert run("sip:a.example", FULL)[0].is_fixed
    second = Counter(ports[1] for ports in draws)
    assert 0.65 < second[1] / 5000 < 0.75
    assert 0.25 < second[2] / 5000 < 0.35
    assert 0 < second[3] / 5000 < 0.03


def test_two_services_on_one_server_are_tried_once_each() -> None:
    zone: Zone = {
        ("_sip._udp.a.example", "SRV"): [Srv(0, 0, 5060, "x.example"), Srv(0, 0, 5060, "y.example")],
        ("x.example", "A"): ["10.0.0.1"],
        ("y.example", "A"): ["10.0.0.1"],
    }
    assert tried(run("sip:a.example;transport=udp", zone)[0]) == ["UDP 10.0.0.1:5060"]


def test_what_a_zone_can_grow_is_bounded() -> None:
    records = [Srv(n, 0, 5060, f"h{n}.example") for n in range(1000)]
    zone: Zone = {("_sip._udp.a.example", "SRV"): records}
    for n in range(1000):
        zone[f"h{n}.example", "A"] = [f"10.{n // 250}.{n % 250}.{m}" for m in range(50)]
    resolution, asked = run("sip:a.example;transport=udp", zone)
    assert len(asked) == 1 + 2 * MAX_HOSTS
    assert len(tried(resolution)) == MAX_HOSTS * MAX_ADDRESSES_PER_HOST


def test_an_unasked_answer_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="not in list"):
        TargetResolution(parse_target("sip:10.0.0.1"), ALL).answered(Question("x", Kind.A), FAILED)
