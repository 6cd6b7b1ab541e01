"""A restart takes up registrations and calls (rule D3, `state_file`), and what holds without it (rule T2)."""

from __future__ import annotations

import json
import zlib

import pytest

from tests.edge_world import GATE, PBX, World, request, response
from wsgate.sip.flow import Flow
from wsgate.sip.journal import HEAD, JournalError

OWN = "sip:k3x@df7jal23ls0d.invalid;transport=ws"
CONTACT = f'<{OWN}>;+sip.instance="<urn:uuid:1>";reg-id=1;expires=600'
ALICE = "<sip:alice@example.com>"
WALL_OFFSET = 1.7e9


def register(w: World, flow: Flow) -> None:
    fields = {"to": ALICE, "call_id": f"r{flow.id.hex()}"}
    w.from_browser(flow, request("REGISTER", "sip:example.com", f"Contact: {CONTACT}", **fields))
    message = w.one(PBX)
    w.from_backend(response(message, 200, "OK", f"Contact: {(message.header(b'contact') or b'').decode()}"))
    w.take()


def call(w: World, flow: Flow) -> list[str]:
    """A call to a phone behind the backend, which record-routes when asked to; returns the browser's route set."""
    w.from_browser(flow, request("INVITE", "sip:bob@example.com", f"Contact: <{OWN}>", call_id="c1"))
    answer = response(w.take(PBX)[0], 200, "OK", f"Contact: <sip:bob@{PBX}>", to_tag="b1")
    w.from_backend(answer)
    routes = [value.decode() for value in w.take(flow)[-1].values(b"record-route")]
    w.take()
    return routes[::-1]


def goodbye(routes: list[str], uri: str, cseq: str) -> bytes:
    """The browser's BYE with its old route set."""
    route = "Route: " + ", ".join(routes)
    return request("BYE", uri, route, call_id="c1", cseq=cseq, to="<sip:bob@example.com>;tag=b1")


def journalled() -> tuple[World, Flow, list[str], bytes]:
    """A world with a registered browser in a call, and the journal of it as changes were written."""
    w = World()
    w.edge.continuity.load_state(b"", w.now, WALL_OFFSET)
    flow = w.browser()
    register(w, flow)
    written = HEAD + w.edge.continuity.state_changes(w.now)[0]
    routes = call(w, flow)
    written += w.edge.continuity.state_changes(w.now)[0]
    return w, flow, routes, written


def restarted(data: bytes) -> World:
    """A new process: other connection ids, another monotonic clock, the same keys."""
    w = World(first_number=5000)
    w.now = 77.0
    w.edge.continuity.load_state(data, w.now, WALL_OFFSET + 1000.0 - 77.0)
    return w


@pytest.mark.parametrize("whole", [False, True])
def test_d3_after_a_restart_in_dialog_requests_pass_both_ways(whole: bool) -> None:
    before, old, routes, written = journalled()
    after = restarted(before.edge.continuity.state(before.now) if whole else written)
    assert after.edge.counts()["dialogs"] == 1
    new = after.browser(port=2)
    register(after, new)
    token = old.token.decode()
    to_browser = f"Route: <sip:{token}@{GATE};r2=on;lr>, <sip:{token}@gate.example.org:443;transport=ws;r2=on;lr>"
    in_dialog = {"call_id": "c1", "to": f"{ALICE};tag=a1", "from": "<sip:bob@example.com>;tag=b1"}
    after.from_backend(request("INFO", OWN, to_browser, via=f"SIP/2.0/UDP {PBX};branch=z9hG4bKr1", **in_dialog))
    assert after.one(new).method == b"INFO"
    bye = goodbye(routes, f"sip:bob@{PBX}", "2")
    after.from_browser(new, bye)
    assert after.one(PBX).method == b"BYE"


def test_d4_a_browser_that_does_not_come_back_after_a_restart_is_hung_up() -> None:
    after = restarted(journalled()[3])
    after.move(60.2)
    assert after.one(PBX).method == b"BYE"


def test_d3_what_was_forgotten_or_has_expired_is_not_taken_up() -> None:
    before, flow, routes, written = journalled()
    bye = goodbye(routes, f"sip:bob@{PBX}", "2")
    before.from_browser(flow, bye)
    before.from_backend(response(before.one(PBX), 200, "OK"))
    written += before.edge.continuity.state_changes(before.now)[0]
    assert restarted(written).edge.counts()["dialogs"] == 0
    late = World(first_number=5000)
    late.edge.continuity.load_state(written, late.now, WALL_OFFSET + 601.0)
    late.move(1.0)
    assert late.edge.counts()["registrations"] == 0


def test_d3_a_call_is_its_clients_though_the_registration_ran_out_during_the_restart() -> None:
    _, _, routes, written = journalled()
    after = World(first_number=5000)
    after.edge.continuity.load_state(written, after.now, WALL_OFFSET + 601.0)
    after.move(30)
    assert after.edge.counts()["registrations"] == 0
    new = after.browser(port=2)
    register(after, new)
    after.from_browser(new, goodbye(routes, f"sip:bob@{PBX}", "2"))
    assert after.one(PBX).method == b"BYE"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-10],
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"confirmed", b"confirmeD"),
        lambda data: b"SQLite format 3\x00" + data,
        lambda data: b"\n" * 40,
        lambda data: HEAD + b"not a line\n",
    ],
)
def test_d3_a_torn_or_foreign_file_is_refused_whole(spoil: object) -> None:
    data = spoil(journalled()[3])  # type: ignore[operator]
    w = World()
    with pytest.raises(JournalError):
        w.edge.continuity.load_state(data, w.now, WALL_OFFSET)
    assert w.edge.counts()["registrations"] == w.edge.counts()["dialogs"] == 0
    assert w.edge.continuity.state_changes(w.now) == (b"", False), (
        "the file is somebody else's: nothing is written into it"
    )


def changed(key: str, value: object) -> object:
    """Makes of a file one in which `key` has this value wherever it stands, with the checksums that belong to it."""

    def change(part: object) -> object:
        if isinstance(part, dict):
            return {name: value if name == key else change(inner) for name, inner in part.items()}
        return [change(inner) for inner in part] if isinstance(part, list) else part

    def spoil(data: bytes) -> bytes:
        texts = [json.dumps(change(json.loads(line[9:]))).encode() for line in data[len(HEAD) :].splitlines()]
        return HEAD + b"".join(b"%08x %b\n" % (zlib.crc32(text), text) for text in texts)

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        changed("contact", 7),
        changed("handle", None),
        changed("target", ["sip:x"]),
        changed("expires", float("nan")),
        changed("expires", 10**400),
        changed("touched", float("inf")),
        changed("cseq", float("inf")),
        changed("reg_id", "1"),
        changed("flows", ["00"]),
        changed("flow", "00" * 1000),
        changed("source", ["UDP", "192.0.2.1", 1e300]),
        lambda data: HEAD + b"%08x %b\n" % (zlib.crc32(b"[" * 100000), b"[" * 100000),
    ],
)
def test_d3_a_file_with_values_that_nobody_wrote_is_refused_whole(spoil: object) -> None:
    test_d3_a_torn_or_foreign_file_is_refused_whole(spoil)


def test_d3_the_journal_is_written_anew_before_it_grows_without_bound() -> None:
    w, flow, _, _ = journalled()
    sizes = []
    for number in range(1500):
        fields = {"to": ALICE, "call_id": f"n{number}"}
        w.from_browser(flow, request("REGISTER", "sip:example.com", f"Contact: {CONTACT}", **fields))
        message = w.one(PBX)
        w.from_backend(response(message, 200, "OK", f"Contact: {(message.header(b'contact') or b'').decode()}"))
        w.take()
        sizes.append(w.edge.continuity.state_changes(w.now)[1])
    assert any(sizes)
    assert sum(sizes) <= 2


def test_t2_without_a_state_file_what_goes_through_the_backend_passes_and_the_rest_is_481() -> None:
    _, _, routes, _ = journalled()
    w = World(first_number=5000)
    new = w.browser(port=2)
    register(w, new)
    through_backend = goodbye(routes, f"sip:bob@{PBX}", "2")
    w.from_browser(new, through_backend)
    assert w.one(PBX).method == b"BYE"
    straight = goodbye(routes, "sip:bob@203.0.113.99", "3")
    w.from_browser(new, straight)
    assert w.one(new).status == 481


def stale_bye(old: Flow, uri: str = OWN, to: str = f"{ALICE};tag=a1") -> bytes:
    """A BYE of the other party to a token of before the restart."""
    via = f"SIP/2.0/UDP {PBX};branch=z9hG4bKz{len(uri)}{len(to)}"
    return request("BYE", uri, f"Route: <sip:{old.token.decode()}@{GATE};lr>", via=via, to=to)


GRUU = "sip:alice@example.com;gr=urn:uuid:1"


@pytest.mark.parametrize("uri", [OWN, f"{OWN};ob", GRUU, GRUU.replace("urn:uuid:1", "URN:UUID%3a1")])
def test_t2_without_a_state_file_the_other_party_reaches_who_registered_the_same_contact_again(uri: str) -> None:
    """D3: AOR in To, and Contact or public GRUU in the Request-URI, name the client whose token nobody knows."""
    _, old, _, _ = journalled()
    w = World(first_number=5000)
    new = w.browser(port=2)
    w.from_backend(stale_bye(old, uri))
    assert w.one(PBX).status == 480, "not registered yet"
    register(w, new)
    w.from_backend(stale_bye(old, uri).replace(b"z9hG4bKz", b"z9hG4bKy"))
    assert (w.one(new).method, w.take(PBX)) == (b"BYE", [])


@pytest.mark.parametrize(
    ("uri", "to", "flow_rebind"),
    [
        (OWN, "<sip:mallory@example.com>;tag=a1", True),
        ("sip:other@df7jal23ls0d.invalid;transport=ws", f"{ALICE};tag=a1", True),
        (GRUU.replace("uuid:1", "uuid:2"), f"{ALICE};tag=a1", True),
        (GRUU.replace("alice", "mallory"), f"{ALICE};tag=a1", True),
        (OWN, ALICE, True),
        (OWN, f"{ALICE};tag=a1", False),
    ],
)
def test_t2_nobody_else_inherits_a_token_of_another_process(uri: str, to: str, flow_rebind: bool) -> None:
    """Nor does a new call, and without flow_rebind nothing."""
    _, old, _, _ = journalled()
    w = World(first_number=5000, flow_rebind=flow_rebind)
    register(w, w.browser(port=2))
    w.from_backend(stale_bye(old, uri, to))
    assert w.one().status == 480


def test_t2_a_token_whose_client_is_known_goes_to_that_client_alone() -> None:
    """Another instance that registers the same Contact for the same user is another client (D3)."""
    w = World()
    old = w.browser()
    register(w, old)
    w.edge.flow_closed(old.id, w.now)
    new = w.browser(port=2)
    other = CONTACT.replace("uuid:1", "uuid:2")
    w.from_browser(new, request("REGISTER", "sip:example.com", f"Contact: {other}", to=ALICE, call_id="r9"))
    w.from_backend(response(w.one(PBX), 200, "OK", f"Contact: {other}"))
    w.take()
    w.from_backend(stale_bye(old))
    assert w.one().status == 480


def signed(data: bytes) -> bytes:
    """Journal lines with the checksums that they should have."""
    lines = [line.partition(b" ")[2] for line in data[len(HEAD) :].splitlines()]
    return HEAD + b"".join(b"%08x %b\n" % (zlib.crc32(line), line) for line in lines)


def test_d3_a_line_end_inside_a_value_is_no_state_file() -> None:
    """What stands in the file is written into our BYE: it may hold no line of its own."""
    *_, written = journalled()
    name = b"<sip:alice@example.com>;tag=a1"
    assert name in written
    with pytest.raises(JournalError):
        restarted(signed(written.replace(name, name + b"\\r\\nX-Injected: 1")))


def test_d4_a_name_of_the_state_file_that_is_none_stops_no_timer() -> None:
    """Its checksum is right, so the file is taken; what cannot be said to the other party is left."""
    *_, written = journalled()
    after = restarted(signed(written.replace(b"<sip:alice@example.com>;tag=a1", b"<sip:alice@example.com>;;")))
    after.move(600)
    assert (after.take(), after.edge.counts()["dialogs"]) == ([], 0)
