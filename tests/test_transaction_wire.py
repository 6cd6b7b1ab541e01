"""Two transaction layers over a wire that loses, doubles and reorders (I1, B4)."""

from __future__ import annotations

import pytest

from tests.transactions import (
    UDP,
    answer,
    assert_empty,
    layer,
    request,
)
from tests.wire import Wire
from wsgate.sip.message import Message
from wsgate.sip.transaction import (
    AckReceived,
    ClientTransaction,
    Effect,
    Failed,
    RequestReceived,
    ResponseReceived,
    Send,
    ServerTransaction,
)


class Party:
    """A transaction layer with the simplest user on top: it answers what comes and counts what it is told."""

    def __init__(self, statuses: tuple[int, ...] = ()) -> None:
        self.layer = layer()
        self.statuses = statuses
        self.requests: list[bytes] = []
        self.acks: list[bytes] = []
        self.finals: list[tuple[bytes, int]] = []
        self.provisionals: list[tuple[bytes, int]] = []
        self.failures: list[ClientTransaction] = []
        self.ended = 0
        self.repeats: dict[ServerTransaction, tuple[float, float, bytes]] = {}

    def receive(self, data: bytes, now: float) -> list[bytes]:
        message = Message.parse(data)
        if message.is_request:
            return self.apply(self.layer.receive_request(message, UDP, now), now)
        return self.apply(self.layer.receive_response(message, UDP, now), now)

    def next_timer(self) -> float | None:
        times = [when for when, _interval, _data in self.repeats.values()]
        due = self.layer.next_timer()
        return min([*times, due] if due is not None else times, default=None)

    def handle_timer(self, now: float) -> list[bytes]:
        """The user repeats its 2xx until the ACK (RFC 3261 §13.3.1.4)."""
        packets = []
        for server, (when, interval, data) in list(self.repeats.items()):
            if when <= now:
                packets += self.apply(self.layer.respond(server, 200, data, now), now)
                self.repeats[server] = (now + min(2 * interval, 4.0), min(2 * interval, 4.0), data)
        return packets + self.apply(self.layer.handle_timer(now), now)

    def apply(self, effects: list[Effect], now: float) -> list[bytes]:
        packets = []
        for effect in effects:
            if isinstance(effect, Send):
                packets.append(effect.data)
            elif isinstance(effect, RequestReceived):
                self.requests.append(effect.message.branch)
                packets += self.answer(effect.server, now)
            elif isinstance(effect, AckReceived):
                self.acks.append(effect.message.branch)
                for server in [one for one in self.repeats if b"ack-" + one.request.branch in effect.message.data]:
                    del self.repeats[server]
            elif isinstance(effect, ResponseReceived):
                packets += self.hear(effect.client, effect.message)
            elif isinstance(effect, Failed):
                self.failures.append(effect.client)
            else:
                self.ended += 1
                if effect.server is not None:
                    self.repeats.pop(effect.server, None)
        return packets

    def answer(self, server: ServerTransaction, now: float) -> list[bytes]:
        packets = []
        for status in self.statuses if server.is_invite else self.statuses[-1:]:
            data = answer(server.request, status).data
            packets += self.apply(self.layer.respond(server, status, data, now), now)
            if server.is_invite and 200 <= status < 300:
                self.repeats[server] = (now + 0.5, 0.5, data)
        return packets

    def hear(self, client: ClientTransaction, message: Message) -> list[bytes]:
        if message.status < 200:
            self.provisionals.append((message.branch, message.status))
            return []
        self.finals.append((message.branch, message.status))
        if client.is_invite and message.status < 300:
            return [request(b"ACK", b"z9hG4bKack-" + message.branch, to_tag=message.to_tag).data]
        return []


def over_the_wire(
    seed: int, method: bytes, statuses: tuple[int, ...], count: int, **chances: float
) -> tuple[Party, Party, Wire]:
    caller, callee = Party(), Party(statuses)
    wire = Wire(caller, callee, seed=seed, delay=(0.01, 0.9), **chances)  # type: ignore[arg-type]
    for number in range(count):
        wire.run(number * 0.05)
        message = request(method, b"z9hG4bK%d-" % number)
        _client, effects = caller.layer.request(message, UDP, wire.now, None, lambda source: True)
        wire.send(caller, caller.apply(effects, wire.now))
    wire.run(wire.now + 200)
    return caller, callee, wire


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("method", "statuses"),
    [(b"INVITE", (100, 180, 486)), (b"INVITE", (180, 200)), (b"MESSAGE", (200,)), (b"MESSAGE", (404,))],
)
def test_loss_duplication_and_reordering(seed: int, method: bytes, statuses: tuple[int, ...]) -> None:
    """I6, B4: each request arrives once, each failure once, each provisional at most once, nothing stays."""
    count = 100
    caller, callee, wire = over_the_wire(seed, method, statuses, count, loss=0.15, duplication=0.2)
    assert any(crossing.copies == 0 for crossing in wire.log)
    assert any(crossing.copies == 2 for crossing in wire.log)
    assert caller.failures == []
    assert len(callee.requests) == len(set(callee.requests)) == count
    assert len(set(caller.finals)) == count
    assert len(caller.provisionals) == len(set(caller.provisionals))
    if statuses[-1] == 200 and method == b"INVITE":
        assert callee.repeats == {}, "every 2xx was acknowledged"
        assert set(callee.acks) >= {b"z9hG4bKack-" + branch for branch in callee.requests}
        assert len(caller.finals) > count, "I6: retransmitted 2xx pass, so that they are acknowledged again"
    else:
        assert len(caller.finals) == count
        assert callee.acks == []
    assert caller.ended == callee.ended == count
    assert_empty(caller.layer)
    assert_empty(callee.layer)


@pytest.mark.parametrize("method", [b"INVITE", b"MESSAGE"])
def test_silence_fails_every_request_once(method: bytes) -> None:
    caller, callee, _wire = over_the_wire(1, method, (200,), 20, loss=1.0)
    assert callee.requests == []
    assert len(caller.failures) == len(set(caller.failures)) == 20
    assert caller.finals == []
    assert_empty(caller.layer)


def test_lost_ack_is_repeated_for_the_repeated_failure() -> None:
    """The ACK belongs to the transaction: the callee stops by Timer I, not by H."""
    caller, callee = Party(), Party((486,))
    acks: list[bytes] = []

    def drops(number: int, data: bytes) -> bool:
        if data.startswith(b"ACK"):
            acks.append(data)
        return data.startswith(b"ACK") and len(acks) < 3

    wire = Wire(caller, callee, drops=drops)
    _client, effects = caller.layer.request(request(), UDP, 0.0, None, lambda source: True)
    wire.send(caller, caller.apply(effects, 0.0))
    wire.run(10.0)
    assert len(acks) == 3
    assert len(set(acks)) == 1
    assert len(callee.layer) == 0, "I was 5 s after the third ACK"
    assert caller.finals == [(b"z9hG4bK-one", 486)]
