"""What a message costs the edge, in function calls: the same on every machine, however busy it is.

The limits are a twentieth or so above what was counted (Python 3.11). One that is passed means that something is done
anew for every message: see that it is worth it, and write down the new number. A call in C counts like one in Python,
so that many small ones may cost less than few: to split a line is a call, to scan all of them is one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tests.edge_world import PBX, Call, World, request, response
from wsgate.addr import Hop, Transport
from wsgate.sip.message import Message

FROM_PBX = Hop(Transport.UDP, PBX)
CONTACT = 'Contact: <sip:alice@abc.invalid;transport=ws>;reg-id=1;+sip.instance="<urn:uuid:1>";expires=600'
WS_HEADERS = ("Allow: INVITE,ACK,CANCEL,BYE", "Supported: path,gruu,outbound", "User-Agent: JsSIP 3.13.8")


def calls_of(function: Callable[..., Any], *arguments: object) -> tuple[int, Any]:
    """How many functions, of Python and of C, run while this one does; and what it returns."""
    counted = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        result = function(*arguments)
    finally:
        sys.setprofile(before)
    return counted, result


def cost(world: World, flow_id: bytes, data: bytes, *answer: str) -> int:
    """Of a request and the 200 that follows."""
    there, effects = calls_of(world.edge.from_browser, flow_id, data, world.now)
    world.apply(effects)
    arrived = world.one(PBX)
    ok = response(arrived, 200, "OK", *answer, to_tag="far")
    back, effects = calls_of(world.edge.from_backend, FROM_PBX, ok, world.now)
    world.apply(effects)
    assert [Message.parse(sent.data).status for sent in effects] == [200]
    world.sent.clear()
    return there + back


def test_a_refreshed_registration() -> None:
    world = World()
    flow = world.browser()
    counted = 0
    for number in (1, 2):
        values = {"to": "<sip:alice@example.com>", "call_id": "r", "cseq": str(number)}
        data = request("REGISTER", "sip:example.com", CONTACT, "Expires: 600", *WS_HEADERS, **values)
        counted = cost(world, flow.id, data, CONTACT, "Require: outbound", "Supported: path, outbound")
    assert 100 < counted <= 698


def test_a_message() -> None:
    world = World()
    data = request("MESSAGE", "sip:bob@example.com", "Content-Type: text/plain", *WS_HEADERS, body=b"x" * 100)
    assert 100 < cost(world, world.browser().id, data) <= 500


def test_the_end_of_a_call() -> None:
    """With two Routes of ours to take off."""
    world = World()
    call = Call(world, world.browser())
    assert 100 < cost(world, call.flow.id, call.request("BYE", *("sip:bob@198.51.100.7", *WS_HEADERS))) <= 805
