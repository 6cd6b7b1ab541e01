"""Server transactions by their rules (I6, I7) and RFC 3261 §17.2, RFC 6026, RFC 4320, time by hand."""

from __future__ import annotations

import pytest

from tests.transactions import (
    FLOW,
    UDP,
    answer,
    assert_empty,
    by_hand,
    layer,
    request,
    sends,
    server_of,
)
from wsgate.addr import Address, Hop, Transport
from wsgate.sip.message import Message
from wsgate.sip.transaction import (
    AckReceived,
    Ended,
    Send,
)

# --- Server transactions ------------------------------------------------------------------------------------------


def test_retransmitted_request_is_answered_with_the_last_response_and_never_passed() -> None:
    """B4."""
    machines = layer()
    invite = request()
    server = server_of(machines.receive_request(invite, UDP, 0.0))
    assert machines.receive_request(invite, UDP, 0.1) == []
    for status in (100, 180, 183):
        data = answer(invite, status).data
        assert machines.respond(server, status, data, 0.2) == [Send(UDP, data)]
        assert machines.receive_request(invite, UDP, 0.3) == [Send(UDP, data)]
    busy = answer(invite, 486).data
    assert machines.respond(server, 486, busy, 0.4) == [Send(UDP, busy)]
    assert machines.receive_request(invite, UDP, 0.45) == [Send(UDP, busy)]
    assert machines.respond(server, 200, answer(invite, 200).data, 0.5) == []
    assert machines.receive_request(invite, UDP, 0.6) == [Send(UDP, busy)]


def test_retransmitted_message_gets_its_answer_until_timer_j() -> None:
    machines = layer()
    message = request(b"MESSAGE")
    server = server_of(machines.receive_request(message, UDP, 0.0))
    assert machines.receive_request(message, UDP, 0.5) == []
    ok = answer(message, 200).data
    assert machines.respond(server, 200, ok, 1.0) == [Send(UDP, ok)]
    assert machines.receive_request(message, UDP, 1.5) == [Send(UDP, ok)]
    assert by_hand(machines, 100) == [(33.0, Ended(server, None))]
    assert_empty(machines)
    assert machines.respond(server, 200, ok, 101.0) == []
    assert server_of(machines.receive_request(message, UDP, 102.0)) is not server


def test_answers_go_to_the_hop_that_came_with_the_request() -> None:
    """A retransmission from elsewhere does not draw the answers to itself."""
    machines = layer()
    message = request(b"MESSAGE")
    server = server_of(machines.receive_request(message, UDP, 0.0))
    ok = answer(message, 200).data
    machines.respond(server, 200, ok, 1.0)
    spoofed = Hop(Transport.UDP, Address("203.0.113.99", 9))
    assert machines.receive_request(message, spoofed, 1.5) == [Send(UDP, ok)]


def test_failure_is_retransmitted_by_timer_g_until_the_ack() -> None:
    machines = layer()
    invite = request()
    server = server_of(machines.receive_request(invite, UDP, 0.0))
    machines.respond(server, 486, answer(invite, 486).data, 0.0)
    assert sends(by_hand(machines, 10)) == [0.5, 1.5, 3.5, 7.5]
    ack = request(b"ACK", to_tag=b"b1")
    assert machines.receive_request(ack, UDP, 10.0) == []
    assert machines.receive_request(ack, UDP, 10.1) == []
    assert machines.receive_request(invite, UDP, 10.2) == []
    assert by_hand(machines, 100) == [(15.0, Ended(server, None))]
    assert_empty(machines)


def test_failure_without_ack_ends_by_timer_h() -> None:
    machines = layer()
    invite = request()
    server = server_of(machines.receive_request(invite, UDP, 0.0))
    machines.respond(server, 486, answer(invite, 486).data, 0.0)
    happened = by_hand(machines, 100)
    assert sends(happened) == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert happened[-1] == (32.0, Ended(server, None))
    assert_empty(machines)


def test_over_a_flow_there_is_no_timer_g_and_i_is_zero() -> None:
    """I1."""
    machines = layer()
    invite = request()
    server = server_of(machines.receive_request(invite, FLOW, 0.0))
    machines.respond(server, 486, answer(invite, 486).data, 0.0)
    assert sends(by_hand(machines, 31)) == []
    assert machines.receive_request(request(b"ACK", to_tag=b"b1"), FLOW, 31.0) == [Ended(server, None)]
    assert_empty(machines)


def test_over_a_flow_timer_j_is_zero() -> None:
    """I1."""
    machines = layer()
    message = request(b"MESSAGE")
    server = server_of(machines.receive_request(message, FLOW, 0.0))
    ok = answer(message, 200).data
    assert machines.respond(server, 200, ok, 0.1) == [Send(FLOW, ok), Ended(server, None)]
    assert machines.next_timer() is None
    assert_empty(machines)


@pytest.mark.parametrize("hop", [UDP, FLOW])
def test_accepted_absorbs_the_invite_and_passes_acks_and_further_2xx_until_timer_l(hop: Hop) -> None:
    """6026 §7.1 and I6."""
    machines = layer()
    invite = request()
    server = server_of(machines.receive_request(invite, hop, 0.0))
    for now, tag in ((1.0, b"b1"), (1.5, b"b1"), (2.0, b"fork")):
        data = answer(invite, 200, tag).data
        assert machines.respond(server, 200, data, now) == [Send(hop, data)]
    assert machines.receive_request(invite, hop, 3.0) == []
    assert machines.respond(server, 180, answer(invite, 180).data, 3.0) == []
    assert machines.respond(server, 486, answer(invite, 486).data, 3.0) == []
    same_branch = request(b"ACK", to_tag=b"b1")
    assert machines.receive_request(same_branch, hop, 4.0) == [AckReceived(same_branch, hop)]
    assert by_hand(machines, 100) == [(33.0, Ended(server, None))]
    assert_empty(machines)


def test_ack_of_a_2xx_has_no_transaction() -> None:
    """I7: each passes, nothing is kept, nothing answered."""
    machines = layer()
    ack = request(b"ACK", b"z9hG4bK-ack", to_tag=b"b1")
    assert machines.receive_request(ack, FLOW, 0.0) == [AckReceived(ack, FLOW)]
    assert machines.receive_request(ack, FLOW, 0.1) == [AckReceived(ack, FLOW)]
    assert_empty(machines)


def test_malformed_ack_is_never_passed_or_answered() -> None:
    """I7."""
    machines = layer()
    ack = Message.parse(request(b"ACK", b"z9hG4bK-ack").data.replace(b"Call-ID: call-1@client\r\n", b""))
    assert ack.flaw
    assert machines.receive_request(ack, UDP, 0.0) == []
    assert machines._counters.values["sip_malformed_dropped"] == 1


def test_answerable_malformed_request_is_passed_with_its_flaw() -> None:
    machines = layer()
    message = Message.parse(request(b"MESSAGE").data.replace(b"CSeq: 7 MESSAGE", b"CSeq: 7 INVITE"))
    server = server_of(machines.receive_request(message, FLOW, 0.0))
    assert server.request.flaw
    assert not server.is_invite


@pytest.mark.parametrize("via", [b"", b"Via: nonsense\r\n", b"Via: SIP/2.0/UDP h:99999;branch=z9hG4bKx\r\n"])
def test_request_without_readable_via_is_dropped_and_counted(via: bytes) -> None:
    machines = layer()
    message = Message.parse(request().data.replace(b"Via: SIP/2.0/UDP client.invalid;branch=z9hG4bK-one\r\n", via))
    assert machines.receive_request(message, UDP, 0.0) == []
    assert machines.invite_server(message, UDP) is None
    assert machines._counters.values["sip_malformed_dropped"] == 1
    assert_empty(machines)


# --- RFC 4320 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hop", [UDP, FLOW])
def test_408_to_another_request_than_invite_is_not_sent(hop: Hop) -> None:
    """4320 §4.2, N3."""
    machines = layer()
    message = request(b"MESSAGE")
    server = server_of(machines.receive_request(message, hop, 0.0))
    assert machines.respond(server, 408, answer(message, 408).data, 1.0) == [Ended(server, None)]
    assert_empty(machines)


def test_408_to_invite_is_sent() -> None:
    machines = layer()
    server = server_of(machines.receive_request(request(), UDP, 0.0))
    data = answer(server.request, 408).data
    assert machines.respond(server, 408, data, 1.0) == [Send(UDP, data)]


@pytest.mark.parametrize("hop", [UDP, FLOW])
def test_late_answer_draws_a_100_when_timer_e_has_reached_t2(hop: Hop) -> None:
    """4320 §4.1; without any answer the transaction ends once the client has given up (§4.2)."""
    machines = layer()
    message = request(b"MESSAGE")
    server = server_of(machines.receive_request(message, hop, 0.0))
    happened = by_hand(machines, 100)
    trying = Send(hop, answer(message, 100).data.replace(b"100 Any", b"100 Trying"))
    assert happened == [(3.5, trying), (37.0, Ended(server, None))]
    assert_empty(machines)


@pytest.mark.parametrize(("hop", "status", "sent"), [(UDP, 100, 0), (FLOW, 100, 1), (UDP, 180, 0), (FLOW, 180, 0)])
def test_provisionals_to_another_request_than_invite(hop: Hop, status: int, sent: int) -> None:
    """4320 §4.1: only 100, and over UDP not before its time."""
    machines = layer()
    message = request(b"MESSAGE")
    server = server_of(machines.receive_request(message, hop, 0.0))
    assert len(machines.respond(server, status, answer(message, status).data, 0.1)) == sent
    happened = by_hand(machines, 100)
    assert sends(happened) == ([] if sent else [3.5])
    assert happened[-1] == (37.0, Ended(server, None))


@pytest.mark.parametrize("status", [200, 404, 408])
def test_answer_after_the_late_100(status: int) -> None:
    """A retransmission is answered with the 100, the final response still goes out, a 408 never."""
    machines = layer()
    message = request(b"MESSAGE")
    server = server_of(machines.receive_request(message, UDP, 0.0))
    ((_when, trying),) = by_hand(machines, 4.0)
    assert machines.receive_request(message, UDP, 4.0) == [trying]
    data = answer(message, status).data
    last = [Ended(server, None)] if status == 408 else [Send(UDP, data)]
    assert machines.respond(server, status, data, 5.0) == last


def test_second_100_over_a_flow_is_sent() -> None:
    machines = layer()
    server = server_of(machines.receive_request(request(b"MESSAGE"), FLOW, 0.0))
    data = answer(server.request, 100).data
    assert machines.respond(server, 100, data, 1.0) == [Send(FLOW, data)]
    assert machines.respond(server, 100, data, 2.0) == [Send(FLOW, data)]
