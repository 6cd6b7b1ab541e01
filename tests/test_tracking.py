"""What passing requests and answers write into the dialog table (dialog table, D1, N6, W2)."""

from __future__ import annotations

import pytest

from tests.edge_world import TOKENS, request, response
from wsgate.sip.dialogs import DialogState, DialogTable, Found
from wsgate.sip.message import Message
from wsgate.sip.tracking import Party, Tracker, is_at

TOKEN = TOKENS.make(b"browser1").decode()
OWN = f"<sip:{TOKEN}@192.0.2.1:5060;r2=on;lr>, <sip:{TOKEN}@gate.example.org:443;transport=ws;r2=on;lr>"
BROWSER, BACKEND = Party(b"browser1", ""), Party(b"", "example.com")
ALICE = "Contact: <sip:alice@abc.invalid;transport=ws>"
BOB = "Contact: <sip:bob@198.51.100.50>"


class Watched:
    """A tracker and its table."""

    def __init__(self, limit: int = 10) -> None:
        self.table = DialogTable(limit, 1000)
        self.tracker = Tracker(self.table, TOKENS)

    def pass_response(self, data: bytes, status: int, *headers: str, caller=BROWSER, callee=BACKEND, tag="b1", now=0.0):
        message = Message.parse(data)
        answer = Message.parse(response(message, status, "x", *headers, to_tag=tag))
        return self.tracker.response(message, caller, callee, answer, now)

    def begin(self, status: int = 200, method: str = "INVITE", *answer_headers: str, before: str = "") -> Found:
        data = request(method, "sip:bob@example.com", ALICE, *([f"Record-Route: {before}"] if before else []))
        assert self.pass_response(data, status, *(answer_headers or (BOB,))) is not None
        return self.find()

    def find(self) -> Found:
        found = self.table.find(b"call-1@test", b"a1", b"b1")
        assert found is not None
        return found


def inside(method: str, *headers: str, from_callee: bool = False, cseq: str = "7") -> Message:
    tags = {"from": "<sip:alice@example.com>;tag=a1", "to": "<sip:bob@example.com>;tag=b1"}
    if from_callee:
        tags = {"from": tags["to"], "to": tags["from"]}
    return Message.parse(request(method, "sip:x@y", *headers, cseq=cseq, **tags))


def test_each_side_is_kept_as_it_wrote_itself():
    """From and To with tags, the remote target and the highest CSeq of each side."""
    found = Watched().begin()
    caller, callee = found.sender, found.receiver
    assert (caller.flow, caller.backend, callee.flow, callee.backend) == (b"browser1", "", b"", "example.com")
    assert (caller.name, callee.name) == (b"<sip:alice@example.com>;tag=a1", b"<sip:bob@example.com>;tag=b1")
    assert (caller.target, callee.target) == (b"sip:alice@abc.invalid;transport=ws", b"sip:bob@198.51.100.50")
    assert (caller.cseq, callee.cseq) == (1, 0)


def test_the_route_set_towards_the_caller_is_its_record_route_from_the_top():
    """3261 §12.1.1, seen from here: the nearest first."""
    found = Watched().begin(before="<sip:before.example;lr>, <sip:first;lr>")
    assert found.sender.routes == [b"sip:before.example;lr", b"sip:first;lr"]


def test_the_route_set_towards_the_callee_is_what_stands_above_us_from_the_bottom():
    """3261 §12.1.2, seen from here: the nearest first; what is ours or below is not its."""
    header = f"Record-Route: <sip:far;lr>,<sip:near;lr>, {OWN}, <sip:caller.side;lr>"
    assert Watched().begin(200, "INVITE", BOB, header).receiver.routes == [b"sip:near;lr", b"sip:far;lr"]


@pytest.mark.parametrize("method", ["INVITE", "SUBSCRIBE", "REFER"])
def test_what_begins_a_dialog_does(method):
    assert Watched().begin(200, method).dialog.state is DialogState.CONFIRMED


@pytest.mark.parametrize(
    ("method", "status", "tag"),
    [
        ("MESSAGE", 200, "b1"),
        ("REGISTER", 200, "b1"),
        ("INVITE", 100, "b1"),
        ("INVITE", 180, ""),
        ("INVITE", 404, "b1"),
    ],
)
def test_anything_else_begins_none(method, status, tag):
    watched = Watched()
    data = request(method, "sip:bob@example.com", ALICE)
    assert watched.pass_response(data, status, BOB, tag=tag) is None
    assert len(watched.table) == 0


def test_the_first_2xx_confirms_and_brings_the_final_target():
    watched = Watched()
    assert watched.begin(183).dialog.state is DialogState.EARLY
    data = request("INVITE", "sip:bob@example.com", ALICE)
    watched.pass_response(data, 200, "Contact: <sip:bob@198.51.100.51>")
    assert watched.find().dialog.state is DialogState.CONFIRMED
    assert watched.find().receiver.target == b"sip:bob@198.51.100.51"


def test_a_call_that_passes_twice_is_one_dialog_with_both_flows():
    """W1: two browsers through a backend; the inner pass is answered first."""
    watched = Watched()
    data = request("INVITE", "sip:bob@example.com", ALICE)
    watched.pass_response(data, 180, BOB, caller=Party(b"", ""), callee=Party(b"browser2", ""))
    watched.pass_response(data, 180, BOB)
    assert len(watched.table) == 1
    assert watched.find().dialog.holds_flow(b"browser1")
    assert watched.find().dialog.holds_flow(b"browser2")


def test_a_full_table_lets_the_answer_pass_without_an_entry():
    watched = Watched(limit=0)
    assert watched.pass_response(request("INVITE", "sip:bob@example.com", ALICE), 200, BOB) is None


@pytest.mark.parametrize(
    ("method", "may", "moves"),
    [
        ("INVITE", True, True),
        ("UPDATE", True, True),
        ("NOTIFY", True, True),
        ("INVITE", False, False),
        ("INFO", True, False),
        ("BYE", True, False),
    ],
)
def test_a_request_moves_its_senders_target_where_it_may(method, may, moves):
    """N6; 3261 §12.2.1.1 for the CSeq."""
    watched = Watched()
    watched.begin()
    watched.tracker.request(inside(method, "Contact: <sip:bob@192.0.2.9>", from_callee=True), 5.0, may)
    callee = watched.find().receiver
    assert (callee.target == b"sip:bob@192.0.2.9") is moves
    assert callee.cseq == 7
    watched.tracker.request(inside("INFO", from_callee=True, cseq="6"), 6.0, may)
    assert callee.cseq == 7, "the highest stays"


def test_an_answer_inside_a_dialog_moves_the_answerers_target():
    """3261 §12.2.1.2."""
    watched = Watched()
    watched.begin()
    message = inside("INVITE")
    answer = Message.parse(response(message, 200, "OK", "Contact: <sip:bob@192.0.2.9>"))
    assert watched.tracker.response(message, BROWSER, BACKEND, answer, 5.0) is None
    assert watched.find().receiver.target == b"sip:bob@192.0.2.9"


@pytest.mark.parametrize(
    ("begun_by", "method", "headers", "ends"),
    [
        ("INVITE", "BYE", (), True),
        ("SUBSCRIBE", "BYE", (), False),
        ("INVITE", "INFO", (), False),
        ("SUBSCRIBE", "NOTIFY", ("Subscription-State: TERMINATED;reason=timeout",), True),
        ("SUBSCRIBE", "NOTIFY", ("Subscription-State: active",), False),
        ("SUBSCRIBE", "NOTIFY", (), False),
        ("INVITE", "NOTIFY", ("Subscription-State: terminated",), False),
        ("REFER", "NOTIFY", ("Subscription-State: terminated",), True),
    ],
)
def test_what_ends_a_dialog(begun_by, method, headers, ends):
    """Dialog table: the final answer to BYE, or to NOTIFY `terminated`."""
    watched = Watched()
    watched.begin(200, begun_by)
    message = inside(method, *headers, from_callee=True)
    watched.tracker.answered(message, 100)
    assert len(watched.table) == 1
    watched.tracker.answered(message, 403)
    assert len(watched.table) == (0 if ends else 1)


@pytest.mark.parametrize(("begun_by", "ends"), [("SUBSCRIBE", True), ("REFER", True), ("INVITE", False)])
def test_a_481_to_notify_ends_the_subscription(begun_by, ends):
    """RFC 6665 §4.2.2: its subscriber knows nothing of it."""
    watched = Watched()
    watched.begin(200, begun_by)
    watched.tracker.answered(inside("NOTIFY", from_callee=True), 481)
    assert len(watched.table) == (0 if ends else 1)


def test_a_failure_ends_early_dialogs_only():
    watched = Watched()
    watched.begin(180)
    watched.tracker.refused([(b"call-1@test", b"a1", b"b1"), (b"gone", b"x", b"y")])
    assert len(watched.table) == 0
    watched.begin(200)
    watched.tracker.refused([(b"call-1@test", b"a1", b"b1")])
    assert len(watched.table) == 1


@pytest.mark.parametrize(
    "broken", ['Contact: "', "Contact: <sip:x", "Contact: ;;", "Record-Route: <", 'Record-Route: a"b']
)
def test_what_cannot_be_read_is_no_target_and_no_route(broken):
    found = Watched().begin(200, "INVITE", broken)
    assert (found.receiver.target, found.receiver.routes) == (b"", [])


@pytest.mark.parametrize(
    ("target", "same"),
    [(b"sip:bob@198.51.100.50:5070;x", True), (b"sip:bob@198.51.100.51", False), (b"", False), (b"tel:1", False)],
)
def test_a_target_stands_at_an_address(target, same):
    """N6."""
    assert is_at(target, "198.51.100.50") is same
