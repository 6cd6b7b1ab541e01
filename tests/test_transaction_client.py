"""Client transactions by their rules (I1, B4, B5) and RFC 3261 §17.1, RFC 6026, time by hand."""

from __future__ import annotations

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
    sends,
    start,
)
from wsgate.addr import Hop
from wsgate.sip import transaction
from wsgate.sip.message import Message
from wsgate.sip.transaction import (
    Ended,
    Failed,
    Failure,
    ResponseReceived,
    Send,
    State,
)

# --- Timers of the clients (I1) -----------------------------------------------------------------------------------


def test_invite_over_udp_doubles_timer_a_until_timer_b() -> None:
    machines = layer()
    client = start(machines, b"INVITE", UDP)
    happened = by_hand(machines, 100)
    assert sends(happened) == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert happened[-2:] == [(32.0, Failed(client, Failure.TIMEOUT)), (32.0, Ended(None, client))]
    assert_empty(machines)


def test_other_request_over_udp_doubles_timer_e_up_to_t2_until_timer_f() -> None:
    machines = layer()
    client = start(machines, b"MESSAGE", UDP)
    happened = by_hand(machines, 100)
    assert sends(happened) == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert happened[-2:] == [(32.0, Failed(client, Failure.TIMEOUT)), (32.0, Ended(None, client))]
    assert_empty(machines)


def test_timer_e_is_t2_in_proceeding() -> None:
    machines = layer()
    client = start(machines, b"MESSAGE", UDP)
    machines.receive_response(answer(client.request, 100), UDP, 0.1)
    assert sends(by_hand(machines, 31)) == [0.5, 4.5, 8.5, 12.5, 16.5, 20.5, 24.5, 28.5]


@pytest.mark.parametrize("status", [100, 200, 404])
def test_other_request_goes_on_after_a_100(status: int) -> None:
    """RFC 3261 §17.1.2.2, Proceeding: further provisionals and the final one pass, F still counts, so does the hop."""
    machines = layer()
    client = start(machines, b"MESSAGE", UDP)
    machines.receive_response(answer(client.request, 100), UDP, 0.1)
    response = answer(client.request, status, b"another", body=b"x")
    assert machines.receive_response(response, UDP, 0.2) == [ResponseReceived(client, response)]
    happened = by_hand(machines, 100)
    if status == 100:
        assert happened[-2:] == [(32.0, Failed(client, Failure.TIMEOUT)), (32.0, Ended(None, client))]
    else:
        assert happened == [(5.2, Ended(None, client))]
    assert_empty(machines)


@pytest.mark.parametrize("method", [b"INVITE", b"MESSAGE"])
@pytest.mark.parametrize("hop", [FLOW, TCP])
def test_nothing_is_retransmitted_over_a_reliable_transport(method: bytes, hop: Hop) -> None:
    """I1: no A, no E; B and F stay."""
    machines = layer()
    client = start(machines, method, hop)
    assert by_hand(machines, 100) == [(32.0, Failed(client, Failure.TIMEOUT)), (32.0, Ended(None, client))]


def test_settings_rule_the_times() -> None:
    machines = layer(t1=0.125, t2=0.375, t4=1.0)
    start(machines, b"MESSAGE", UDP)
    assert sends(by_hand(machines, 1.5)) == [0.125, 0.375, 0.75, 1.125, 1.5]


@pytest.mark.parametrize(
    ("method", "status", "hop", "lasts"),
    [
        (b"INVITE", 486, UDP, 32.0),
        (b"INVITE", 200, UDP, 32.0),
        (b"MESSAGE", 200, UDP, 5.0),
        (b"MESSAGE", 404, UDP, 5.0),
        (b"INVITE", 486, FLOW, 0.0),
        (b"INVITE", 200, FLOW, 32.0),
        (b"MESSAGE", 200, FLOW, 0.0),
        (b"MESSAGE", 404, TCP, 0.0),
    ],
)
def test_client_ends_by_timer_d_k_m(method: bytes, status: int, hop: Hop, lasts: float) -> None:
    """I1: D and K are zero over a reliable transport; M (6026 §7.2) is not."""
    machines = layer()
    client = start(machines, method, hop)
    response = answer(client.request, status)
    effects = machines.receive_response(response, hop, 1.0)
    assert ResponseReceived(client, response) in effects
    if lasts:
        assert by_hand(machines, 100) == [(1.0 + lasts, Ended(None, client))]
    else:
        assert effects[-1] == Ended(None, client)
    assert client.state is State.TERMINATED
    assert_empty(machines)


def test_proceeding_invite_waits_for_ever() -> None:
    """Timer C is the proxy's; B no longer counts after a provisional."""
    machines = layer()
    client = start(machines, b"INVITE", UDP)
    machines.receive_response(answer(client.request, 180), UDP, 0.1)
    assert by_hand(machines, 10000) == []
    assert client.state is State.PROCEEDING
    assert len(machines) == 1


# --- Responses ----------------------------------------------------------------------------------------------------


def test_failure_is_acknowledged_here_each_time_and_passed_once() -> None:
    """I6: 3xx to 6xx hop by hop; the ACK of §17.1.1.3 byte for byte."""
    machines = layer()
    message = request(
        extra=b"Route: <sip:p1.example.com;lr>,\r\n <sip:p2.example.com;lr>\r\nroute: <sip:p3.example.com;lr>\r\n"
        b"Via: SIP/2.0/WS browser.invalid;branch=z9hG4bKbrowser\r\n",
        branch=b"z9hG4bK-ours",
    )
    client, _effects = machines.request(message, UDP, 0.0, None, lambda source: True)
    busy = answer(message, 486, b"callee")
    ack = Send(
        UDP,
        b"ACK sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP client.invalid;branch=z9hG4bK-ours\r\n"
        b"Route: <sip:p1.example.com;lr>, <sip:p2.example.com;lr>\r\nRoute: <sip:p3.example.com;lr>\r\n"
        b"Max-Forwards: 70\r\nFrom: <sip:alice@example.com>;tag=a1\r\nTo: <sip:bob@example.com>;tag=callee\r\n"
        b"Call-ID: call-1@client\r\nCSeq: 7 ACK\r\nContent-Length: 0\r\n\r\n",
    )
    assert machines.receive_response(busy, UDP, 1.0) == [ack, ResponseReceived(client, busy)]
    assert machines.receive_response(busy, UDP, 1.5) == [ack]
    assert machines.receive_response(busy, UDP, 32.9) == [ack]
    assert not Message.parse(ack.data).flaw
    by_hand(machines, 40)
    assert machines.receive_response(busy, UDP, 40) == []
    assert machines._counters.values["sip_responses_unmatched"] == 1


def test_every_2xx_passes_also_a_retransmitted_and_a_forked_one_until_timer_m() -> None:
    """I6, V3 and 6026 §7.2."""
    machines = layer()
    client = start(machines, b"INVITE", UDP)
    for now, tag in ((1.0, b"b1"), (1.5, b"b1"), (2.0, b"fork"), (32.9, b"b1")):
        response = answer(client.request, 200, tag)
        assert machines.receive_response(response, UDP, now) == [ResponseReceived(client, response)]
    assert machines.receive_response(answer(client.request, 180, b"late"), UDP, 32.9) == []
    assert machines.receive_response(answer(client.request, 486, b"late"), UDP, 32.9) == []
    by_hand(machines, 33.0)
    assert machines.receive_response(answer(client.request, 200), UDP, 33.1) == []
    assert_empty(machines)


def test_retransmitted_provisional_is_not_passed() -> None:
    """I5, I6: the same bytes are a retransmission; each difference is news, a queue's progress too (3261 §21.1.5)."""
    machines = layer()
    client = start(machines, b"INVITE", UDP)
    news = [
        answer(client.request, 100),
        answer(client.request, 180, b"b1"),
        answer(client.request, 180, b"fork"),
        answer(client.request, 183, b"b1"),
        answer(client.request, 183, b"b1", body=b"v=0\r\n"),
        answer(client.request, 183, b"b1", headers=((b"RSeq", b"1"),)),
        answer(client.request, 183, b"b1", headers=((b"RSeq", b"2"),)),
        answer(client.request, 180, b"b1", headers=((b"Alert-Info", b"<urn:alert:service:call-waiting>"),)),
        answer(client.request, 182, b"b1", reason="Queued, 2 calls ahead"),
        answer(client.request, 182, b"b1", reason="Queued, 1 call ahead"),
    ]
    for response in news:
        assert machines.receive_response(response, UDP, 1.0) == [ResponseReceived(client, response)]
    for response in reversed(news):
        assert machines.receive_response(response, UDP, 2.0) == []
    assert machines._counters.values["sip_retransmissions_received"] == len(news)


def test_repeated_provisional_after_a_minute_is_a_sign_of_life() -> None:
    """RFC 3261 §13.3.1.1: it restarts Timer C on the way (I5)."""
    machines = layer()
    client = start(machines, b"INVITE", UDP)
    ringing = answer(client.request, 180)
    passed = [now for now in range(0, 181, 10) if machines.receive_response(ringing, UDP, float(now))]
    assert passed == [0, 40, 80, 120, 160]


def test_remembered_provisionals_are_bounded() -> None:
    machines = layer()
    client = start(machines, b"INVITE", UDP)
    for fork in range(1000):
        assert machines.receive_response(answer(client.request, 180, b"f%d" % fork), UDP, 1.0)
    assert client.provisionals is not None
    assert len(client.provisionals) == transaction.PROVISIONALS_REMEMBERED


def test_response_from_elsewhere_is_dropped_and_counted() -> None:
    """V3."""
    machines = layer()
    client, _effects = machines.request(request(), FLOW, 0.0, None, lambda hop: hop.connection == FLOW.connection)
    response = answer(client.request, 200)
    assert machines.receive_response(response, OTHER_FLOW, 1.0) == []
    assert machines._counters.values["sip_responses_from_elsewhere"] == 1
    assert machines.receive_response(response, FLOW, 1.0) == [ResponseReceived(client, response)]


def test_response_is_matched_by_branch_and_method() -> None:
    """V3, RFC 3261 §17.1.3."""
    machines = layer()
    invite = start(machines, b"INVITE", UDP)
    for stranger in (request(branch=b"z9hG4bK-two"), request(b"BYE")):
        assert machines.receive_response(answer(stranger, 200), UDP, 1.0) == []
    assert machines._counters.values["sip_responses_unmatched"] == 2
    assert invite.state is State.CALLING


def test_malformed_response_is_dropped_and_counted() -> None:
    """H4."""
    machines = layer()
    client = start(machines, b"INVITE", UDP)
    short = Message.parse(answer(client.request, 200).data.replace(b"Content-Length: 0", b"Content-Length: 5"))
    assert short.flaw
    assert machines.receive_response(short, UDP, 1.0) == []
    assert machines._counters.values["sip_malformed_dropped"] == 1
    assert client.state is State.CALLING


# --- CANCEL (B5) --------------------------------------------------------------------------------------------------

CANCEL = (
    b"CANCEL sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP client.invalid;branch=z9hG4bK-one\r\n"
    b"Max-Forwards: 70\r\nFrom: <sip:alice@example.com>;tag=a1\r\nTo: <sip:bob@example.com>\r\n"
    b"Call-ID: call-1@client\r\nCSeq: 7 CANCEL\r\n%bContent-Length: 0\r\n\r\n"
)


def test_cancel_waits_for_the_first_provisional() -> None:
    """B5, RFC 3261 §9.1."""
    machines = layer()
    client = start(machines, b"INVITE", UDP)
    assert machines.cancel(client, 0.1, b"SIP;cause=200") == []
    assert machines.cancel(client, 0.2) == []
    trying = answer(client.request, 100)
    effects = machines.receive_response(trying, UDP, 0.3)
    assert effects == [ResponseReceived(client, trying), Send(UDP, CANCEL % b"Reason: SIP;cause=200\r\n")]
    assert machines.receive_response(answer(client.request, 180), UDP, 0.4)[1:] == []


def test_cancel_after_a_provisional_is_sent_at_once_and_only_once() -> None:
    machines = layer()
    client = start(machines, b"INVITE", FLOW)
    machines.receive_response(answer(client.request, 180), FLOW, 0.3)
    assert machines.cancel(client, 0.4) == [Send(FLOW, CANCEL % b"")]
    assert machines.cancel(client, 0.5) == []


def test_cancel_carries_the_routes_of_the_invite() -> None:
    machines = layer()
    message = request(extra=b"Route: <sip:p1.example.com;lr>\r\nRoute: <sip:p2.example.com;lr>\r\n")
    client, _effects = machines.request(message, UDP, 0.0, None, lambda source: True)
    machines.receive_response(answer(message, 180), UDP, 0.3)
    (effect,) = machines.cancel(client, 0.4)
    assert isinstance(effect, Send)
    cancel = Message.parse(effect.data)
    assert not cancel.flaw
    assert cancel.values(b"route") == [b"<sip:p1.example.com;lr>", b"<sip:p2.example.com;lr>"]


@pytest.mark.parametrize("status", [200, 486])
def test_no_cancel_after_a_final_response(status: int) -> None:
    machines = layer()
    waiting = start(machines, b"INVITE", UDP)
    assert machines.cancel(waiting, 0.1) == []
    effects = machines.receive_response(answer(waiting.request, status), UDP, 0.3)
    answered = start(machines, b"INVITE", UDP, branch=b"z9hG4bK-two")
    machines.receive_response(answer(answered.request, status), UDP, 0.3)
    effects += machines.cancel(answered, 0.4)
    assert not [e for e in effects if isinstance(e, Send) and e.data.startswith(b"CANCEL")]


def test_only_an_invite_is_cancelled() -> None:
    machines = layer()
    client = start(machines, b"MESSAGE", UDP)
    machines.receive_response(answer(client.request, 100), UDP, 0.1)
    assert machines.cancel(client, 0.2) == []


def test_cancel_has_a_transaction_of_its_own_of_which_the_proxy_hears_nothing() -> None:
    machines = layer()
    client = start(machines, b"INVITE", UDP)
    machines.receive_response(answer(client.request, 180), UDP, 0.0)
    machines.cancel(client, 0.0)
    assert sends(by_hand(machines, 2)) == [0.5, 1.5]
    assert machines.receive_response(answer(Message.parse(CANCEL % b""), 200), UDP, 2.0) == []
    assert sends(by_hand(machines, 20)) == []
    terminated = answer(client.request, 487)
    effects = machines.receive_response(terminated, UDP, 20.0)
    assert effects[1:] == [ResponseReceived(client, terminated)]
    assert by_hand(machines, 100) == [(52.0, Ended(None, client))]
    assert_empty(machines)


def test_cancelled_invite_without_final_response_fails_after_64_t1() -> None:
    """B5: what the proxy answers 487 for."""
    machines = layer()
    client = start(machines, b"INVITE", UDP)
    machines.receive_response(answer(client.request, 180), UDP, 1.0)
    machines.cancel(client, 10.0)
    happened = [(when, effect) for when, effect in by_hand(machines, 100) if not isinstance(effect, Send)]
    assert happened == [(42.0, Failed(client, Failure.TIMEOUT)), (42.0, Ended(None, client))]
    assert_empty(machines)


def test_2xx_that_crosses_the_cancel_still_passes() -> None:
    """B5: races are resolved as in RFC 3261 §9."""
    machines = layer()
    client = start(machines, b"INVITE", FLOW)
    machines.receive_response(answer(client.request, 180), FLOW, 1.0)
    machines.cancel(client, 2.0)
    success = answer(client.request, 200)
    assert machines.receive_response(success, FLOW, 2.1) == [ResponseReceived(client, success)]
    assert by_hand(machines, 100) == [(34.1, Ended(None, client))]
