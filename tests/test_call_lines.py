"""What the log says of calls at the level info: one line at the end of each, bounded, with nothing raw of a peer."""

from __future__ import annotations

import pytest

from tests.edge_world import BOB, CONTACT, PBX, Call, World, request, response
from tests.test_edge_registrar import Office
from tests.test_edge_workers import Call as CrewCall
from tests.test_edge_workers import Crew
from wsgate.sip.call_lines import FAILED_LINES, LOST_ACK_LINES

WHO = "call call-1@test from alice@example.com to bob@example.com"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of each record at info and above, as it comes."""
    caplog.set_level("INFO", "wsgate")
    found: list[str] = []

    def emit(record) -> None:
        found.append(record.getMessage())

    monkeypatch.setattr(caplog.handler, "emit", emit)
    return found


@pytest.mark.parametrize(("from_backend", "by"), [(False, "the caller"), (True, "the callee")])
def test_an_answered_call_ends_in_one_line_with_its_seconds_and_who_ended_it(lines, from_backend: bool, by: str):
    world = World()
    call = Call(world, world.browser())
    world.now += 35
    if from_backend:
        world.from_backend(call.backend_request("BYE"))
        world.from_browser(call.flow, response(world.one(call.flow), 200, "OK"))
    else:
        world.from_browser(call.flow, call.request("BYE"))
        world.from_backend(response(world.one(PBX), 200, "OK"))
    assert lines == [f"{WHO} through backend example.com: answered, 35 s, ended by {by}"]


def test_a_vanished_browser_and_a_silent_call_are_told_too(lines):
    """D4; dialog_lifetime."""
    world = World(dialog_lifetime=500.0)
    call = Call(world, world.browser())
    world.apply(world.edge.flow_closed(call.flow.id, world.now))
    world.move(60)
    world.from_backend(response(world.one(PBX), 200, "OK"))
    Call(world, world.browser(), call_id="other")
    world.move(600)
    assert [line.partition(": ")[2] for line in lines] == [
        "answered, 60 s, ended by wsgate: the browser is gone (reconnect_grace)",
        "answered, 500 s, ended by dialog_lifetime",
    ]


def test_a_call_that_is_not_answered_says_what_came_and_from_whom(lines):
    world = World()
    flow = world.browser()
    data = request("INVITE", "sip:bob@example.com", CONTACT)
    for status in (407, 486):
        world.from_browser(flow, data.replace(b"z9hG4bK", b"z9hG4bK%d" % status))
        world.now += 3
        world.from_backend(response(world.take(PBX)[-1], status, "x", to_tag="t"))
    world.from_browser(flow, request("INVITE", "sip:bob@nowhere.test", CONTACT, to="<sip:bob@nowhere.test>"))
    world.from_browser(flow, data.replace(b"z9hG4bK", b"z9hG4bKx"))
    world.move(40)
    assert lines == [
        f"{WHO} through backend example.com: 486 by the far end after 3 s",
        "call call-1@test from alice@example.com to bob@nowhere.test: 404 by wsgate (the domain nowhere.test is not"
        " served here: no [backend])",
        "backend example.com: UDP 198.51.100.7:5060 does not serve",
        f"{WHO} through backend example.com: 408 by wsgate (the next hop did not answer) after 32 s",
    ], "407 is no end"


def test_a_cancelled_call_is_one_line(lines):
    """B5."""
    world = Office()
    alice, bob = world.phone("alice"), world.phone("bob", port=40001)
    sent = world.call(alice)
    arrived = world.one(bob)
    world.from_browser(bob, response(arrived, 180, "Ringing", to_tag="b1"))
    world.now += 12
    cancel = sent.data.replace(b"INVITE", b"CANCEL")
    world.from_browser(alice, cancel)
    world.from_browser(bob, response(arrived, 487, "Request Terminated", to_tag="b1"))
    assert lines == [f"{WHO}: cancelled by the caller after 12 s"]


def test_a_503_of_the_far_end_is_told_once_as_what_the_caller_got(lines):
    """N3."""
    world = Office()
    alice, bob = world.phone("alice"), world.phone("bob", port=40001)
    world.call(alice)
    world.from_browser(bob, response(world.one(bob), 503, "x", to_tag="b1"))
    assert lines == [f"{WHO}: 500 by wsgate (the next hop answered 503) after 0 s"]


def test_of_two_workers_the_one_with_the_caller_tells(lines):
    """T3."""
    crew = Crew()
    call = CrewCall(crew)
    crew.worlds[1].from_browser(call.bob, call.of_bob())
    crew.settle()
    crew.worlds[0].from_browser(call.alice, response(crew.worlds[0].one(call.alice), 200, "OK"))
    crew.settle()
    assert [line.partition(": ")[2] for line in lines] == ["answered, 0 s, ended by the callee"]


def test_a_call_of_before_a_restart_has_no_seconds(lines):
    """D3, D4: the journal keeps the dialog, not when it was answered."""
    before, after = World(), World()
    before.edge.continuity.load_state(b"", before.now, 0.0)
    Call(before, before.browser())
    after.edge.continuity.load_state(before.edge.continuity.state(before.now), after.now, 0.0)
    after.move(60)
    after.from_backend(response(after.one(PBX), 200, "OK"))
    [line] = lines
    assert line.startswith(f"{WHO} through backend example.com: answered, for longer than this worker knows, ended by")


def test_what_peers_write_is_escaped_and_cut(lines):
    world = World()
    name = '"\x1b[31m\u00e9" <sip:%s@nowhere.test>' % ("a\u00e9" * 300)
    data = request("INVITE", "sip:bob@nowhere.test", CONTACT, to=name, call_id="\u00e9" * 500)
    world.from_browser(world.browser(), data)
    [line] = lines
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 1000


def test_a_stranger_cannot_fill_the_disk(lines):
    """So many lines a minute; the first of the next one says how many were left out."""
    world = World()
    flow = world.browser()
    for number in range(FAILED_LINES + 40):
        world.from_browser(flow, request("INVITE", "sip:bob@nowhere.test", CONTACT, call_id=f"c{number}"))
    assert len(lines) == FAILED_LINES
    world.now += 60
    for number in range(2):
        world.from_browser(flow, request("INVITE", "sip:bob@nowhere.test", CONTACT, call_id=f"d{number}"))
    assert len(lines) == FAILED_LINES + 2
    assert lines[-2].endswith("(40 lines like this were left out before)")
    assert world.counters.values["log_lines_left_out"] == 40


@pytest.mark.parametrize(
    ("route", "says"),
    [
        ("sip:198.51.100.99;lr", "198.51.100.99 is no address of a configured backend and not in direct_targets"),
        (
            "sip:edge.elsewhere.test;lr",
            "edge.elsewhere.test is no name in the DNS of a configured backend,"
            " and direct_targets takes addresses alone",
        ),
    ],
)
def test_an_ack_that_goes_nowhere_is_a_warning_with_the_address_and_the_option(lines, route: str, says: str):
    """D1, I7: nothing is ever answered to an ACK, so only the log can tell."""
    world = World()
    call = Call(world, world.browser(), record_route=f"<{route}>")
    ack = call.request("ACK", cseq="1")
    for _ in range(LOST_ACK_LINES + 3):
        world.from_browser(call.flow, ack)
    assert world.take(PBX) == []
    assert lines == [f"call call-1@test: an ACK is dropped ({says}); the call will break"] * LOST_ACK_LINES
    world.now += 60
    world.from_browser(call.flow, ack)
    assert "(3 lines like this were left out before)" in lines[-1]


def test_at_the_level_warning_calls_are_not_told(caplog: pytest.LogCaptureFixture):
    caplog.set_level("WARNING", "wsgate")
    world = World()
    call = Call(world, world.browser())
    world.from_browser(call.flow, call.request("BYE"))
    world.from_backend(response(world.one(PBX), 200, "OK", BOB))
    assert caplog.records == []
