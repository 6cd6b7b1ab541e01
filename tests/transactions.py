"""Requests, answers and transaction layers for the tests of sip/transaction, with a clock moved by hand."""

from __future__ import annotations

from wsgate.addr import Address, Hop, Transport
from wsgate.metrics import Counters
from wsgate.sip.message import Message, response_to
from wsgate.sip.transaction import (
    ClientTransaction,
    Effect,
    RequestReceived,
    Send,
    ServerTransaction,
    TransactionLayer,
    TransactionSettings,
)

UDP = Hop(Transport.UDP, Address("192.0.2.7", 5060))
TCP = Hop(Transport.TCP, Address("192.0.2.7", 5060))
FLOW = Hop(Transport.WS, Address("198.51.100.9", 40000), b"flow-one")
OTHER_FLOW = Hop(Transport.WS, Address("198.51.100.9", 40001), b"flow-two")


def layer(**settings: float) -> TransactionLayer:
    return TransactionLayer(TransactionSettings(**settings), Counters())  # type: ignore[arg-type]


def request(
    method: bytes = b"INVITE",
    branch: bytes = b"z9hG4bK-one",
    *,
    sent_by: bytes = b"client.invalid",
    uri: bytes = b"sip:bob@example.com",
    to_tag: bytes = b"",
    extra: bytes = b"",
    number: int = 7,
) -> Message:
    tag = b";tag=" + to_tag if to_tag else b""
    return Message.parse(
        b"%b %b SIP/2.0\r\nVia: SIP/2.0/UDP %b;branch=%b\r\nMax-Forwards: 70\r\n"
        b"From: <sip:alice@example.com>;tag=a1\r\nTo: <sip:bob@example.com>%b\r\n"
        b"Call-ID: call-1@client\r\nCSeq: %d %b\r\n%bContent-Length: 0\r\n\r\n"
        % (method, uri, sent_by, branch, tag, number, method, extra)
    )


def answer(
    to: Message,
    status: int,
    tag: bytes = b"b1",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    body: bytes = b"",
    reason: str = "Any",
) -> Message:
    return Message.parse(response_to(to, status, reason, to_tag=tag, headers=headers, body=body))


def server_of(effects: list[Effect]) -> ServerTransaction:
    (effect,) = effects
    assert isinstance(effect, RequestReceived)
    return effect.server


def start(
    machines: TransactionLayer, method: bytes, hop: Hop, now: float = 0.0, branch: bytes = b"z9hG4bK-one"
) -> ClientTransaction:
    client, effects = machines.request(request(method, branch), hop, now, None, lambda source: True)
    assert effects == [Send(hop, client.request.data)]
    return client


def by_hand(machines: TransactionLayer, until: float) -> list[tuple[float, Effect]]:
    """Move the clock to `until`, firing every timer at its time."""
    happened: list[tuple[float, Effect]] = []
    while (when := machines.next_timer()) is not None and when <= until:
        happened += [(when, effect) for effect in machines.handle_timer(when)]
    return happened


def sends(happened: list[tuple[float, Effect]]) -> list[float]:
    return [round(when, 6) for when, effect in happened if isinstance(effect, Send)]


def assert_empty(machines: TransactionLayer) -> None:
    assert len(machines) == 0
    assert machines.next_timer() is None
    assert len(machines._timers) == 0
    tables = machines._servers, machines._clients, machines._acks, machines._waiting, machines._live, machines._asked
    for table in tables:
        assert table == {}
