"""Browsers that vanish: CANCEL and BYE for the party that still hears (rule D4, D5)."""

from __future__ import annotations

import pytest

from tests.edge_world import PBX, World, request, response
from wsgate.sip.flow import Flow
from wsgate.sip.message import Message

OWN = "sip:k3x@df7jal23ls0d.invalid;transport=ws"
CONTACT = f'<{OWN}>;+sip.instance="<urn:uuid:1>";reg-id=1;expires=600'


def register(w: World, flow: Flow, cseq: str = "1", contact: str = CONTACT) -> None:
    headers = (f"Contact: {contact}",)
    fields = {"to": "<sip:alice@example.com>", "call_id": f"r{flow.id.hex()}", "cseq": cseq}
    w.from_browser(flow, request("REGISTER", "sip:example.com", *headers, **fields))
    message = w.one(PBX)
    w.from_backend(response(message, 200, "OK", f"Contact: {(message.header(b'contact') or b'').decode()}"))
    w.take()


def invite(w: World, flow: Flow) -> Message:
    w.from_browser(flow, request("INVITE", "sip:bob@example.com", f"Contact: <{OWN}>", call_id="c1", cseq="7"))
    message = w.take(PBX)[0]
    w.take()
    return message


def answered_call(w: World, flow: Flow) -> Message:
    message = invite(w, flow)
    record_route = "Record-Route: <sip:198.51.100.7;lr>"
    answer = response(message, 200, "OK", f"Contact: <sip:bob@{PBX}>", to_tag="b1")
    w.from_backend(answer.replace(b"Record-Route:", record_route.encode() + b"\r\nRecord-Route:", 1))
    w.take()
    return message


def test_d4_a_caller_that_vanishes_while_it_rings_is_cancelled_after_orphan_grace() -> None:
    w = World(orphan_grace=2.0)
    flow = w.browser()
    message = invite(w, flow)
    w.from_backend(response(message, 180, "Ringing", to_tag="b1"))
    w.apply(w.edge.flow_closed(flow.id, w.now))
    w.take()
    w.move(1.9)
    assert w.take() == []
    w.move(0.2)
    cancel = w.one(PBX)
    assert (cancel.method, cancel.uri, cancel.cseq, cancel.branch) == (
        b"CANCEL",
        message.uri,
        (7, b"CANCEL"),
        message.branch,
    )
    assert cancel.header(b"reason") is not None


@pytest.mark.parametrize("cleanup", [True, False])
def test_d4_what_rings_is_cancelled_when_the_process_ends(cleanup: bool) -> None:
    """Nobody else would know of it afterwards; with `orphan_cleanup = off` the far side's own timers end it."""
    w = World(orphan_cleanup=cleanup)
    flow = w.browser()
    message = invite(w, flow)
    w.from_backend(response(message, 180, "Ringing", to_tag="b1"))
    w.take()
    w.apply(w.edge.stopping(w.now))
    assert [sent.method for sent in w.take(PBX)] == [b"CANCEL"] * cleanup


def test_d4_no_bye_before_the_call_is_taken() -> None:
    """D4: BYE is for an established dialog, however short its grace; what rings is cancelled."""
    w = World(orphan_grace=2.0, reconnect_grace=1.0)
    flow = w.browser()
    message = invite(w, flow)
    w.from_backend(response(message, 180, "Ringing", f"Contact: <sip:bob@{PBX}>", to_tag="b1"))
    assert w.edge.counts()["dialogs"] == 1
    w.apply(w.edge.flow_closed(flow.id, w.now))
    w.take()
    w.move(1.5)
    assert w.take() == []
    w.move(0.6)
    assert w.one(PBX).method == b"CANCEL"


def test_d4_a_2xx_that_still_comes_is_acknowledged_each_time_and_hung_up_once() -> None:
    w = World()
    flow = w.browser()
    message = invite(w, flow)
    w.apply(w.edge.flow_closed(flow.id, w.now))
    answer = response(message, 200, "OK", f"Contact: <sip:bob@{PBX};x=1>", to_tag="b1")
    w.from_backend(answer)
    ack, bye = w.take(PBX)
    assert (ack.method, ack.uri, ack.cseq) == (b"ACK", f"sip:bob@{PBX};x=1".encode(), (7, b"ACK"))
    assert (bye.method, bye.uri, bye.cseq) == (b"BYE", f"sip:bob@{PBX};x=1".encode(), (8, b"BYE"))
    assert (bye.from_tag, bye.to_tag) == (b"a1", b"b1")
    w.from_backend(answer)
    assert [again.method for again in w.take(PBX)] == [b"ACK"]
    w.from_backend(response(bye, 200, "OK"))
    assert w.edge.counts()["dialogs"] == 0


def test_d4_a_2xx_to_a_reinvite_of_a_lost_browser_is_acknowledged_and_the_call_stays_up() -> None:
    """Without an ACK the other side would end the call (RFC 3261 §14.2) within the time of grace."""
    w = World(orphan_grace=2.0, reconnect_grace=60.0)
    flow = w.browser()
    register(w, flow)
    answered_call(w, flow)
    fields = {"to": "<sip:bob@example.com>;tag=b1", "call_id": "c1", "cseq": "9"}
    w.from_browser(
        flow, request("INVITE", f"sip:bob@{PBX}", "Route: <sip:198.51.100.7;lr>", f"Contact: <{OWN}>", **fields)
    )
    again = w.take(PBX)[0]
    w.apply(w.edge.flow_closed(flow.id, w.now))
    w.take()
    for _ in range(2):
        w.from_backend(response(again, 200, "OK", f"Contact: <sip:bob@{PBX}>"))
        ack = w.one(PBX)
        assert (ack.method, ack.cseq, ack.uri) == (b"ACK", (9, b"ACK"), f"sip:bob@{PBX}".encode())
        assert (ack.from_tag, ack.to_tag) == (b"a1", b"b1")
        assert ack.values(b"route") == [b"<sip:198.51.100.7;lr>"]
    register(w, w.browser(port=2))
    w.take()
    w.move(100.0)
    assert w.take(PBX) == []
    assert w.edge.counts()["dialogs"] == 1


@pytest.mark.parametrize("status", [200, 401, 407, 481, 500])
def test_d4_an_established_call_gets_bye_after_reconnect_grace_and_any_answer_ends_our_part(status: int) -> None:
    w = World(reconnect_grace=60.0)
    flow = w.browser()
    register(w, flow)
    answered_call(w, flow)
    w.apply(w.edge.flow_closed(flow.id, w.now))
    w.move(59.0)
    assert w.take() == []
    w.move(1.2)
    bye = w.one(PBX)
    assert (bye.method, bye.cseq, bye.uri) == (b"BYE", (8, b"BYE"), f"sip:bob@{PBX}".encode())
    assert bye.values(b"route") == [b"<sip:198.51.100.7;lr>"]
    assert (bye.from_tag, bye.to_tag) == (b"a1", b"b1")
    w.from_backend(response(bye, status, "Any"))
    assert w.edge.counts()["dialogs"] == 0
    assert w.take() == []


def test_d4_no_bye_when_the_client_came_back_and_bye_when_it_goes_again() -> None:
    """C7: JsSIP keeps its call and may need 30 s."""
    w = World()
    flow = w.browser(port=1)
    register(w, flow)
    answered_call(w, flow)
    w.apply(w.edge.flow_closed(flow.id, w.now))
    w.move(30.0)
    new = w.browser(port=2)
    register(w, new)
    w.move(100.0)
    assert w.take(PBX) == []
    assert w.edge.counts()["dialogs"] == 1
    w.apply(w.edge.flow_closed(new.id, w.now))
    w.move(60.2)
    assert w.one(PBX).method == b"BYE"


def test_d4_who_comes_back_and_goes_again_has_the_whole_grace_again() -> None:
    w = World(reconnect_grace=60.0)
    flow = w.browser(port=1)
    register(w, flow)
    answered_call(w, flow)
    w.apply(w.edge.flow_closed(flow.id, w.now))
    w.move(50.0)
    new = w.browser(port=2)
    register(w, new)
    w.move(5.0)
    w.apply(w.edge.flow_closed(new.id, w.now))
    w.move(59.0)
    assert w.take(PBX) == []
    w.move(1.2)
    assert w.one(PBX).method == b"BYE"


@pytest.mark.parametrize("comes_back", [True, False])
def test_d4_a_subscription_whose_browser_stays_away_takes_no_room_in_the_dialog_table(comes_back: bool) -> None:
    w = World(reconnect_grace=60.0)
    flow = w.browser(port=1)
    register(w, flow)
    w.from_browser(flow, request("SUBSCRIBE", "sip:bob@example.com", f"Contact: <{OWN}>", "Event: presence"))
    w.from_backend(response(w.one(PBX), 200, "OK", f"Contact: <sip:bob@{PBX}>", to_tag="b1"))
    assert w.edge.counts()["dialogs"] == 1
    w.apply(w.edge.flow_closed(flow.id, w.now))
    if comes_back:
        w.move(10.0)
        register(w, w.browser(port=2))
    w.move(60.2)
    w.take()
    assert w.edge.counts()["dialogs"] == int(comes_back)


def test_d4_a_callee_that_vanishes_gets_the_caller_at_the_backend_a_bye() -> None:
    w = World()
    flow = w.browser()
    register(w, flow)
    route = f"Route: <sip:{flow.token.decode()}@192.0.2.1:5060;lr>"
    incoming = request(
        "INVITE",
        OWN,
        route,
        f"Contact: <sip:bob@{PBX}>",
        "Record-Route: <sip:198.51.100.7;lr>",
        via=f"SIP/2.0/UDP {PBX};branch=z9hG4bKin",
        call_id="c2",
        to="<sip:alice@example.com>",
        **{"from": "<sip:bob@example.com>;tag=b9"},
    )
    w.from_backend(incoming)
    ringing = w.one(flow)
    w.from_browser(flow, response(ringing, 200, "OK", f"Contact: <{OWN}>", to_tag="a9"))
    w.take()
    w.apply(w.edge.flow_closed(flow.id, w.now))
    w.move(60.2)
    bye = w.one(PBX)
    assert (bye.method, bye.from_tag, bye.to_tag) == (b"BYE", b"a9", b"b9")
    assert (bye.uri, bye.values(b"route")) == (f"sip:bob@{PBX}".encode(), [b"<sip:198.51.100.7;lr>"])


def test_d4_off_means_nothing_is_sent() -> None:
    w = World(orphan_cleanup=False)
    flow = w.browser()
    answered_call(w, flow)
    w.apply(w.edge.flow_closed(flow.id, w.now))
    w.move(200.0)
    assert w.take() == []


def test_d5_an_invite_to_a_browser_that_vanishes_is_480_at_once() -> None:
    w = World()
    flow = w.browser()
    route = f"Route: <sip:{flow.token.decode()}@192.0.2.1:5060;lr>"
    w.from_backend(request("INVITE", OWN, route, via=f"SIP/2.0/UDP {PBX};branch=z9hG4bKin"))
    w.take()
    w.apply(w.edge.flow_closed(flow.id, w.now))
    assert w.one(PBX).status == 480
