"""A UDP backend behind a bad wire: calls and registrations succeed, and the browser sees nothing twice (I1, I6, C3)."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.edge_world import BOB, CONTACT, PBX, World, request, response, routes_of
from tests.wire import Wire
from wsgate.addr import Hop, Transport
from wsgate.sip.contexts import Resolve
from wsgate.sip.message import Message
from wsgate.sip.transaction import (
    AckReceived,
    RequestReceived,
    ResponseReceived,
    Send,
    TransactionLayer,
    TransactionSettings,
)

FROM_GATE = Hop(Transport.UDP, PBX._replace(host="192.0.2.1"))


class Gate:
    """The edge as one end of a wire; what goes to a browser is kept in `shown`."""

    def __init__(self) -> None:
        self.world = World()
        self.flow = self.world.browser()
        self.shown: list[Message] = []

    def say(self, data: bytes, now: float) -> list[bytes]:
        """The browser sends."""
        self.world.now = now
        self.world.from_browser(self.flow, data)
        return self._sort()

    def receive(self, data: bytes, now: float) -> list[bytes]:
        self.world.now = now
        self.world.from_backend(data)
        return self._sort()

    def next_timer(self) -> float | None:
        return self.world.edge.next_timer()

    def handle_timer(self, now: float) -> list[bytes]:
        self.world.now = now
        self.world.apply(self.world.edge.handle_timer(now))
        return self._sort()

    def _sort(self) -> list[bytes]:
        assert not any(isinstance(effect, Resolve) for effect in self.world.asked)
        self.shown += self.world.take(self.flow)
        out, self.world.sent = [data for _, data in self.world.sent], []
        return out


class Pbx:
    """The other end: a transaction layer whose user answers everything, and repeats a 2xx to INVITE until its ACK."""

    def __init__(self, invite_status: int) -> None:
        self._status = invite_status
        self._layer = TransactionLayer(TransactionSettings(), World().counters)
        self._unacknowledged: dict[bytes, tuple[float, float, object, bytes]] = {}
        self.acks: Counter[bytes] = Counter()
        self.heard: Counter[tuple[bytes, bytes]] = Counter()

    def receive(self, data: bytes, now: float) -> list[bytes]:
        message = Message.parse(data)
        layer = self._layer
        take = layer.receive_request if message.is_request else layer.receive_response
        return self._run(take(message, FROM_GATE, now), now)

    def next_timer(self) -> float | None:
        times = [due for due, *_ in self._unacknowledged.values()]
        times += [timer] if (timer := self._layer.next_timer()) is not None else []
        return min(times, default=None)

    def handle_timer(self, now: float) -> list[bytes]:
        out = self._run(self._layer.handle_timer(now), now)
        for call_id, (due, interval, server, ok) in list(self._unacknowledged.items()):
            if due <= now:
                longer = min(2 * interval, 4.0)
                self._unacknowledged[call_id] = (now + longer, longer, server, ok)
                out += self._run(self._layer.respond(server, 200, ok, now), now)  # type: ignore[arg-type]
        return out

    def _run(self, effects, now: float) -> list[bytes]:
        out: list[bytes] = []
        for effect in effects:
            if isinstance(effect, Send):
                out.append(effect.data)
            elif isinstance(effect, RequestReceived):
                out += self._answer(effect.server, effect.message, now)
            elif isinstance(effect, AckReceived):
                self.acks[effect.message.call_id] += 1
                self._unacknowledged.pop(effect.message.call_id, None)
            assert not isinstance(effect, ResponseReceived)
        return out

    def _answer(self, server, message: Message, now: float) -> list[bytes]:
        self.heard[message.method, message.call_id] += 1
        if message.method != b"INVITE":
            contacts = [f"Contact: {value.decode()}" for value in message.lines(b"contact")]
            return self._run(
                self._layer.respond(server, 200, response(message, 200, "OK", *contacts, to_tag="t"), now), now
            )
        out: list[bytes] = []
        for status in (100, 180, self._status):
            data = response(message, status, "x", BOB, to_tag="b1" if status > 100 else "")
            out += self._run(self._layer.respond(server, status, data, now), now)
            if status == 200:
                self._unacknowledged[message.call_id] = (now + 0.5, 0.5, server, data)
        return out


def calls(gate: Gate, pbx: Pbx, wire: Wire, count: int) -> None:
    """Registrations and calls one after the other; the browser acknowledges each 2xx and hangs up."""
    for number in range(count):
        call = f"c{number}"
        wire.send(gate, gate.say(request("REGISTER", "sip:example.com", CONTACT, call_id=f"r{number}"), wire.now))
        wire.send(gate, gate.say(request("INVITE", "sip:bob@example.com", CONTACT, call_id=call), wire.now))
        seen = len(gate.shown)
        end = wire.now + 60
        while wire.now < end:
            wire.run(wire.now + 0.05)
            for message in gate.shown[seen:]:
                if message.status == 200 and message.cseq[1] == b"INVITE":
                    route = f"Route: {routes_of(message, is_caller=True)}"
                    fields = {"to": "<sip:bob@example.com>;tag=b1", "call_id": message.call_id.decode()}
                    wire.send(gate, gate.say(request("ACK", "sip:bob@198.51.100.7", route, **fields), wire.now))
            seen = len(gate.shown)


@pytest.mark.parametrize("status", [200, 486])
def test_behind_seeded_loss_both_ways_all_succeeds_and_the_browser_sees_nothing_twice(status):
    """I1, I6: retransmitted requests, 1xx and failures stop here; each retransmitted 2xx passes and gets its ACK."""
    gate, pbx = Gate(), Pbx(status)
    wire = Wire(gate, pbx, seed=11, loss=0.25, duplication=0.1, delay=(0.01, 0.2))
    wire.now = 1000.0
    calls(gate, pbx, wire, 6)
    lost = sum(crossing.copies == 0 for crossing in wire.log)
    assert lost > 10, "the wire was bad"
    finals = Counter((m.call_id, m.cseq[1], m.status) for m in gate.shown if m.status >= 200)
    for number in range(6):
        call = b"c%d" % number
        assert finals[b"r%d" % number, b"REGISTER", 200] == 1
        invites = finals[call, b"INVITE", status]
        assert pbx.heard[b"INVITE", call] == 1
        if status == 200:
            assert invites >= 1
            assert pbx.acks[call] >= 1
        else:
            assert invites == 1
    provisionals = Counter((m.call_id, m.status) for m in gate.shown if m.status == 180)
    assert all(times == 1 for times in provisionals.values())
    assert not any(message.is_request for message in gate.shown)


def test_chosen_losses_of_the_ack_let_each_2xx_pass_again_and_get_its_ack():
    """I6: the first two ACKs are lost."""
    gate, pbx = Gate(), Pbx(200)
    lost: list[bytes] = []

    def drops(number: int, data: bytes) -> bool:
        if data.startswith(b"ACK") and len(lost) < 2:
            lost.append(data)
            return True
        return False

    wire = Wire(gate, pbx, drops=drops)
    wire.now = 1000.0
    calls(gate, pbx, wire, 1)
    passed = [message for message in gate.shown if message.status == 200 and message.cseq[1] == b"INVITE"]
    assert len(lost) == 2
    assert len(passed) == 3
    assert pbx.acks[b"c0"] == 1
