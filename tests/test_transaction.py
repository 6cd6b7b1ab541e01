"""The transaction layer: what belongs to which transaction (V3), transport failure, bounds; time by hand."""

from __future__ import annotations

import gc

import pytest

from tests.transactions import (
    FLOW,
    OTHER_FLOW,
    TCP,
    UDP,
    answer,
    assert_empty,
    by_hand,
    layer,
    request,
    server_of,
    start,
)
from wsgate.addr import Address, Hop, Transport
from wsgate.sip import transaction, transaction_timers
from wsgate.sip.message import Message
from wsgate.sip.transaction import (
    AckReceived,
    ClientTransaction,
    Effect,
    Ended,
    Failed,
    Failure,
    Send,
    ServerTransaction,
    State,
    TransactionLayer,
)

# --- Matching -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        request(branch=b"z9hG4bK-two"),
        request(sent_by=b"other.invalid"),
        request(sent_by=b"client.invalid:5062"),
        request(b"MESSAGE"),
        request(b"CANCEL"),
    ],
)
def test_another_branch_sent_by_or_method_is_another_transaction(other: Message) -> None:
    """RFC 3261 §17.2.3."""
    machines = layer()
    first = server_of(machines.receive_request(request(), UDP, 0.0))
    assert server_of(machines.receive_request(other, UDP, 0.1)) is not first


def test_another_flow_is_another_transaction_but_another_udp_source_is_not() -> None:
    machines = layer()
    first = server_of(machines.receive_request(request(), FLOW, 0.0))
    assert server_of(machines.receive_request(request(), OTHER_FLOW, 0.0)) is not first
    machines.receive_request(request(), UDP, 0.0)
    moved = Hop(Transport.UDP, Address("192.0.2.7", 6000), b"ignored")
    assert machines.receive_request(request(), moved, 0.1) == []


def test_branch_cookie_and_sent_by_in_any_case() -> None:
    machines = layer()
    server_of(machines.receive_request(request(branch=b"Z9HG4bKabc"), UDP, 0.0))
    again = request(branch=b"Z9HG4bKabc", sent_by=b"CLIENT.invalid", uri=b"sip:other@example.com")
    assert machines.receive_request(again, UDP, 0.1) == []


def test_cancel_names_its_invite() -> None:
    """RFC 3261 §9.2; None is for 481 (B5)."""
    machines = layer()
    invite = server_of(machines.receive_request(request(), FLOW, 0.0))
    cancel = request(b"CANCEL")
    server = server_of(machines.receive_request(cancel, FLOW, 0.1))
    assert server.request is cancel
    assert machines.invite_server(cancel, FLOW) is invite
    assert machines.invite_server(cancel, OTHER_FLOW) is None
    assert machines.invite_server(request(b"CANCEL", b"z9hG4bK-two"), FLOW) is None


@pytest.mark.parametrize("branch", [b"1", b"z9hG4bK"])
def test_rfc_2543_requests_are_matched_by_their_parts(branch: bytes) -> None:
    """RFC 3261 §17.2.3, second half; a bare cookie is no transaction id either."""
    machines = layer()
    invite = request(branch=branch)
    server = server_of(machines.receive_request(invite, UDP, 0.0))
    assert machines.receive_request(request(branch=branch), UDP, 0.1) == []
    for other in (
        request(branch=branch, number=8),
        request(branch=branch, uri=b"sip:carol@example.com"),
        request(branch=branch, to_tag=b"x"),
        request(branch=branch, sent_by=b"elsewhere.invalid"),
        request(b"MESSAGE", branch),
    ):
        assert server_of(machines.receive_request(other, UDP, 0.1)) is not server
    assert machines.invite_server(request(b"CANCEL", branch), UDP) is server
    machines.respond(server, 486, answer(invite, 486, b"ours").data, 0.2)
    foreign = request(b"ACK", branch, to_tag=b"theirs")
    assert machines.receive_request(foreign, UDP, 0.3) == [AckReceived(foreign, UDP)]
    assert server.state is State.COMPLETED
    assert machines.receive_request(request(b"ACK", branch, to_tag=b"ours"), UDP, 0.3) == []
    assert server.state is State.CONFIRMED
    by_hand(machines, 10)
    assert machines._acks == {}


def test_rfc_2543_ack_of_a_2xx_passes() -> None:
    machines = layer()
    server = server_of(machines.receive_request(request(branch=b"1"), UDP, 0.0))
    machines.respond(server, 200, answer(server.request, 200, b"ours").data, 0.2)
    ack = request(b"ACK", b"1", to_tag=b"ours")
    assert machines.receive_request(ack, UDP, 0.3) == [AckReceived(ack, UDP)]
    by_hand(machines, 100)
    assert server.state is State.TERMINATED
    assert machines._acks == {}


def test_rfc_2543_requests_that_cannot_be_read_are_kept_apart_all_the_same() -> None:
    machines = layer()
    broken = Message.parse(
        request(b"MESSAGE", b"1").data.replace(b"To: <sip:bob@example.com>", b'To: "x <sip').replace(b"7 MES", b"MES")
    )
    assert broken.flaw
    server_of(machines.receive_request(broken, UDP, 0.0))
    assert machines.receive_request(broken, UDP, 0.1) == []


@pytest.mark.parametrize("method", [b"ACK", b"MESSAGE"])
def test_request_refuses_an_ack_and_a_branch_in_use(method: bytes) -> None:
    machines = layer()
    start(machines, b"MESSAGE", UDP)
    with pytest.raises(ValueError, match="no client transaction"):
        machines.request(request(method), UDP, 0.0, None, lambda source: True)
    assert len(machines) == 1


# --- Transport failure --------------------------------------------------------------------------------------------


def failed(effects: list[Effect]) -> list[ClientTransaction]:
    assert all(effect.why is Failure.TRANSPORT for effect in effects if isinstance(effect, Failed))
    assert all(effect.reason == "gone" for effect in effects if isinstance(effect, Failed))
    return [effect.client for effect in effects if isinstance(effect, Failed)]


def test_udp_address_that_fails_fails_what_waits_for_it() -> None:
    """RFC 3261 §17.1.4, D5."""
    machines = layer()
    elsewhere = Hop(Transport.UDP, Address("192.0.2.8", 5060))
    calling = start(machines, b"INVITE", UDP, branch=b"z9hG4bK-1")
    proceeding = start(machines, b"INVITE", UDP, branch=b"z9hG4bK-2")
    trying = start(machines, b"MESSAGE", UDP, branch=b"z9hG4bK-3")
    delayed = start(machines, b"MESSAGE", UDP, branch=b"z9hG4bK-9")
    refused = start(machines, b"INVITE", UDP, branch=b"z9hG4bK-10")
    completed = start(machines, b"MESSAGE", UDP, branch=b"z9hG4bK-4")
    accepted = start(machines, b"INVITE", UDP, branch=b"z9hG4bK-5")
    other = start(machines, b"MESSAGE", elsewhere, branch=b"z9hG4bK-6")
    over_tcp = start(machines, b"MESSAGE", TCP, branch=b"z9hG4bK-7")
    server = server_of(machines.receive_request(request(branch=b"z9hG4bK-8"), UDP, 0.0))
    machines.receive_response(answer(proceeding.request, 180), UDP, 0.1)
    machines.receive_response(answer(delayed.request, 100), UDP, 0.1)
    machines.receive_response(answer(refused.request, 486), UDP, 0.1)
    machines.receive_response(answer(completed.request, 200), UDP, 0.1)
    machines.receive_response(answer(accepted.request, 200), UDP, 0.1)
    effects = machines.transport_failed(UDP, 0.2, "gone")
    gone = [calling, proceeding, trying, delayed]
    assert failed(effects) == gone
    ended = [effect.client for effect in effects if isinstance(effect, Ended)]
    assert ended == [*gone, refused], "the proxy has the answer already; only the ACK was lost"
    assert completed.state is State.COMPLETED
    assert accepted.state is State.ACCEPTED
    assert other.state is State.TRYING
    assert over_tcp.state is State.TRYING
    assert server.state is State.PROCEEDING, "6026 §7.1: no state is lost for an answer that could not be sent"


def test_connection_that_is_lost_takes_its_transactions_with_it() -> None:
    machines = layer()
    client = start(machines, b"INVITE", FLOW)
    kept = start(machines, b"INVITE", OTHER_FLOW, branch=b"z9hG4bK-two")
    servers = [
        server_of(machines.receive_request(request(method, b"z9hG4bK-s%d" % number), FLOW, 0.0))
        for number, method in enumerate((b"INVITE", b"INVITE", b"INVITE", b"MESSAGE", b"MESSAGE"))
    ]
    machines.respond(servers[1], 486, answer(servers[1].request, 486).data, 0.1)
    machines.respond(servers[2], 200, answer(servers[2].request, 200).data, 0.1)
    machines.respond(servers[4], 100, answer(servers[4].request, 100).data, 0.1)
    effects = machines.transport_failed(FLOW, 0.2, "gone")
    assert failed(effects) == [client]
    assert [effect.server for effect in effects if isinstance(effect, Ended) and effect.server] == servers
    assert not [effect for effect in effects if isinstance(effect, Send)]
    assert kept.state is State.CALLING
    assert machines.transport_failed(FLOW, 0.3, "gone") == []
    machines.transport_failed(OTHER_FLOW, 0.3, "gone")
    assert_empty(machines)


@pytest.mark.parametrize(("transport", "default_port"), [(Transport.TCP, 5060), (Transport.TLS, 5061)])
@pytest.mark.parametrize(("method", "status"), [(b"INVITE", 486), (b"INVITE", 200), (b"MESSAGE", 200)])
def test_answers_to_what_came_by_a_stream_that_is_gone_go_to_the_port_of_the_via(
    transport: Transport, default_port: int, method: bytes, status: int
) -> None:
    """RFC 3261 §18.2.2; at the source that was seen, whatever host the Via names (N4)."""
    machines = layer()
    stream = Hop(transport, Address("192.0.2.7", 33333), b"stream-1")
    asked = [(b"z9hG4bK-one", b"client.invalid", default_port), (b"z9hG4bK-two", b"client.invalid:5070", 5070)]
    for branch, sent_by, port in asked:
        server = server_of(machines.receive_request(request(method, branch, sent_by=sent_by), stream, 0.0))
        assert machines.transport_failed(stream, 0.1, "gone") == []
        effects = machines.respond(server, status, answer(server.request, status).data, 0.2)
        (sent,) = [effect for effect in effects if isinstance(effect, Send)]
        assert sent.hop == Hop(transport, Address("192.0.2.7", port), b"stream-1")
    by_hand(machines, 200.0)
    assert_empty(machines)


def test_a_server_may_open_another_stream_for_its_cancel_and_ack() -> None:
    """RFC 3261 §9.2, §17.2.3: the branch tells, among the requests of one source."""
    machines = layer()
    first, second, elsewhere = (
        Hop(Transport.TCP, Address(host, port), b"stream%d" % port)
        for host, port in (("192.0.2.7", 1), ("192.0.2.7", 2), ("192.0.2.8", 3))
    )
    invite = server_of(machines.receive_request(request(), first, 0.0))
    assert machines.invite_server(request(b"CANCEL"), second) is invite
    assert machines.invite_server(request(b"CANCEL"), elsewhere) is None
    machines.respond(invite, 487, answer(invite.request, 487).data, 0.1)
    assert machines.receive_request(request(b"ACK"), second, 0.2)[-1] == Ended(invite, None)
    assert_empty(machines)


def test_request_for_whatever_connection_fails_with_the_one_to_its_address() -> None:
    machines = layer()
    client = start(machines, b"MESSAGE", TCP)
    effects = machines.transport_failed(TCP._replace(connection=b"backend1"), 0.1, "gone")
    assert failed(effects) == [client]
    assert_empty(machines)


def test_failed_cancel_is_silent() -> None:
    machines = layer()
    client = start(machines, b"INVITE", FLOW)
    machines.receive_response(answer(client.request, 180), FLOW, 0.1)
    machines.cancel(client, 0.2)
    effects = machines.transport_failed(FLOW, 0.3, "gone")
    assert effects == [Failed(client, Failure.TRANSPORT, "gone"), Ended(None, client)]
    assert_empty(machines)


# --- Bounds -------------------------------------------------------------------------------------------------------


def test_full_table_answers_503_and_forgets_it() -> None:
    machines = layer(transactions=2)
    first = server_of(machines.receive_request(request(branch=b"z9hG4bK-1"), UDP, 0.0))
    server_of(machines.receive_request(request(branch=b"z9hG4bK-2"), UDP, 0.0))
    (refusal,) = machines.receive_request(request(branch=b"z9hG4bK-3"), UDP, 0.0)
    assert isinstance(refusal, Send)
    response = Message.parse(refusal.data)
    assert (response.status, refusal.hop) == (503, UDP)
    assert response.header(b"retry-after") == b"10"
    assert len(machines) == 2
    assert machines._counters.values["sip_transactions_full"] == 1
    assert machines.receive_request(request(branch=b"z9hG4bK-3"), UDP, 0.5) == [refusal]
    ack = request(b"ACK", b"z9hG4bK-3", to_tag=response.to_tag)
    assert machines.receive_request(ack, UDP, 0.6) == [], "the ACK of our own 503 is no business of the proxy"
    other = request(b"ACK", b"z9hG4bK-4", to_tag=b"b1")
    assert machines.receive_request(other, UDP, 0.6) == [AckReceived(other, UDP)], "an ACK is never refused"
    assert machines.receive_request(request(branch=b"z9hG4bK-1"), UDP, 0.7) == []
    machines.respond(first, 486, answer(first.request, 486).data, 1.0)
    by_hand(machines, 50)
    server_of(machines.receive_request(request(branch=b"z9hG4bK-3"), UDP, 51.0))


def test_one_connection_holds_its_share_of_the_table_and_no_more() -> None:
    machines = layer(transactions_per_connection=2)
    first = server_of(machines.receive_request(request(b"MESSAGE", b"z9hG4bK-1"), FLOW, 0.0, is_stranger=True))
    server_of(machines.receive_request(request(branch=b"z9hG4bK-2"), FLOW, 0.0, is_stranger=True))
    (refusal,) = machines.receive_request(request(branch=b"z9hG4bK-3"), FLOW, 0.0, is_stranger=True)
    assert isinstance(refusal, Send)
    assert refusal.data.startswith(b"SIP/2.0 503 ")
    assert b"[limits] transactions_per_connection" in refusal.data
    other = FLOW._replace(connection=b"another")
    server_of(machines.receive_request(request(branch=b"z9hG4bK-3"), other, 0.0, is_stranger=True))
    server_of(machines.receive_request(request(branch=b"z9hG4bK-4"), FLOW, 0.0))
    server_of(machines.receive_request(request(b"CANCEL", b"z9hG4bK-2"), FLOW, 0.1, is_stranger=True))
    machines.respond(first, 200, answer(first.request, 200).data, 1.0)
    for server in list(machines._servers.values()):
        machines.respond(server, 486, answer(server.request, 486).data, 1.0)
    by_hand(machines, 50)
    assert_empty(machines)
    server_of(machines.receive_request(request(branch=b"z9hG4bK-5"), FLOW, 51.0, is_stranger=True))


def test_full_table_takes_the_cancel_of_a_known_invite() -> None:
    machines = layer(transactions=1)
    server_of(machines.receive_request(request(), FLOW, 0.0))
    server_of(machines.receive_request(request(b"CANCEL"), FLOW, 0.1))
    (refusal,) = machines.receive_request(request(b"CANCEL", b"z9hG4bK-unknown"), FLOW, 0.1)
    assert isinstance(refusal, Send)
    assert refusal.data.startswith(b"SIP/2.0 503 ")


def finish_many(machines: TransactionLayer, count: int, hop: Hop, now: float, step: float) -> int:
    """Run `count` relayed requests and calls to their end; returns the longest the heap has been."""
    longest = 0
    for number in range(count):
        now += step
        method = b"INVITE" if number % 2 else b"MESSAGE"
        message = request(method, b"z9hG4bK-in%d" % number)
        server = server_of(machines.receive_request(message, FLOW, now))
        out = request(method, b"z9hG4bK-out%d" % number)
        client, _effects = machines.request(out, hop, now, server, lambda source: True)
        server.user = client
        status = 486 if number % 4 == 1 else 200
        machines.receive_response(answer(out, status), hop, now)
        machines.respond(server, status, answer(message, status).data, now)
        if status == 486:
            machines.receive_request(request(b"ACK", b"z9hG4bK-in%d" % number, to_tag=b"b1"), FLOW, now)
        longest = max(longest, len(machines._timers))
        if step:
            by_hand(machines, now)
    return longest


@pytest.mark.parametrize("hop", [UDP, FLOW])
def test_finished_transactions_leave_nothing_behind(hop: Hop) -> None:
    machines = layer()
    finish_many(machines, 10000, hop, 0.0, 0.01)
    by_hand(machines, 200.0)
    assert_empty(machines)
    gc.collect()
    left = [kept for kept in gc.get_objects() if isinstance(kept, ServerTransaction | ClientTransaction)]
    assert not [kept for kept in left if kept.key[0] in (b"z9hG4bK-in9999", b"z9hG4bK-out9999", b"z9hG4bK-in0")]


def test_timers_are_bounded_while_the_clock_stands_still() -> None:
    """Short transactions over flows end at once; their timers must not pile up until they would fire."""
    machines = layer()
    for number in range(20000):
        message = request(b"MESSAGE", b"z9hG4bK-%d" % number)
        server = server_of(machines.receive_request(message, FLOW, 0.0))
        machines.respond(server, 200, answer(message, 200).data, 0.0)
        assert len(machines._timers) <= transaction_timers.STALE_TIMERS_ALLOWED + 8
    assert len(machines) == 0


def test_many_timers_at_once_are_served_in_portions() -> None:
    machines = layer()
    total = 2 * transaction.TIMERS_AT_ONCE + 5
    for number in range(total):
        start(machines, b"MESSAGE", FLOW, branch=b"z9hG4bK-%d" % number)
    portions = []
    while (when := machines.next_timer()) is not None:
        assert when == 32.0
        portions.append(sum(isinstance(effect, Failed) for effect in machines.handle_timer(32.0)))
    assert portions == [transaction.TIMERS_AT_ONCE, transaction.TIMERS_AT_ONCE, 5]
    assert_empty(machines)


def test_no_timer_fires_early() -> None:
    machines = layer()
    start(machines, b"INVITE", UDP)
    assert machines.handle_timer(0.49) == []
    assert len(machines.handle_timer(0.5)) == 1
