"""The transaction layer by its rules (I1, I6, I7, B4, B5, V3) and RFC 3261 §17, RFC 6026, RFC 4320, time by hand."""

from __future__ import annotations

import gc
import re

import pytest

from tests.wire import Wire
from wsgate.addr import Address, Hop, Transport
from wsgate.metrics import Counters
from wsgate.sip import transaction, transaction_effects, transaction_tables, transaction_timers
from wsgate.sip.message import Message, response_to
from wsgate.sip.transaction import (
    AckReceived,
    ClientTransaction,
    Effect,
    Ended,
    Failed,
    Failure,
    RequestReceived,
    ResponseReceived,
    Send,
    ServerTransaction,
    State,
    TransactionLayer,
    TransactionSettings,
)
from wsgate.sip.transaction_tables import Action, Event, Row, Table

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


# --- The tables ---------------------------------------------------------------------------------------------------

TABLES = {
    "INVITE_CLIENT": transaction_tables.INVITE_CLIENT,
    "NON_INVITE_CLIENT": transaction_tables.NON_INVITE_CLIENT,
    "INVITE_SERVER": transaction_tables.INVITE_SERVER,
    "NON_INVITE_SERVER": transaction_tables.NON_INVITE_SERVER,
}
ROWS = [(name, state, event) for name, table in TABLES.items() for state, event in table]
WAY_TO = {
    "INVITE_CLIENT": {
        State.CALLING: [],
        State.PROCEEDING: [Event.PROVISIONAL],
        State.COMPLETED: [Event.FAILURE],
        State.ACCEPTED: [Event.SUCCESS],
    },
    "NON_INVITE_CLIENT": {
        State.TRYING: [],
        State.PROCEEDING: [Event.PROVISIONAL],
        State.COMPLETED: [Event.FAILURE],
    },
    "INVITE_SERVER": {
        State.PROCEEDING: [],
        State.COMPLETED: [Event.FAILURE],
        State.CONFIRMED: [Event.FAILURE, Event.ACK],
        State.ACCEPTED: [Event.SUCCESS],
    },
    "NON_INVITE_SERVER": {
        State.TRYING: [],
        State.PROCEEDING: [Event.PROVISIONAL],
        State.COMPLETED: [Event.FAILURE],
    },
}
"""By which events each state is reached from the first one."""


class RecordingTable(dict[tuple[State, Event], Row]):
    """A table that remembers which of its rows were taken."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self.taken: list[tuple[State, Event]] = []

    def get(self, key: tuple[State, Event], default: Row | None = None) -> Row | None:  # type: ignore[override]
        row = super().get(key, default)
        if row is not None:
            self.taken.append(key)
        return row


class Driver:
    """One transaction of a machine, driven to an event through the public methods alone."""

    def __init__(self, name: str, hop: Hop, table: RecordingTable) -> None:
        self.layer = layer()
        self.table = table
        self.hop = hop
        self.now = 0.0
        self.tags = 0
        self.message = request(b"INVITE" if name.startswith("INVITE") else b"MESSAGE")
        self.effects: list[Effect] = []
        self.transaction: ServerTransaction | ClientTransaction
        if name.endswith("CLIENT"):
            self.transaction, self.effects = self.layer.request(self.message, hop, 0.0, None, lambda source: True)
        else:
            self.effects = self.layer.receive_request(self.message, hop, 0.0)
            self.transaction = server_of(self.effects)

    def drive(self, event: Event) -> None:
        if event is Event.REQUEST:
            self.effects = self.layer.receive_request(self.message, self.hop, self.now)
        elif event is Event.ACK:
            self.effects = self.layer.receive_request(request(b"ACK", to_tag=b"b1"), self.hop, self.now)
        elif event in (Event.CONNECTION_LOST, Event.TRANSPORT_ERROR):
            self.effects = self.layer.transport_failed(self.hop, self.now, "gone")
        elif event is Event.CANCEL:
            assert isinstance(self.transaction, ClientTransaction)
            self.effects = self.layer.cancel(self.transaction, self.now)
        elif event in (Event.PROVISIONAL, Event.SUCCESS, Event.FAILURE, Event.NO_ANSWER):
            self.answer(event)
        else:
            self.wait(event)

    def answer(self, event: Event) -> None:
        self.tags += 1
        status = {Event.PROVISIONAL: 180, Event.SUCCESS: 200, Event.FAILURE: 486, Event.NO_ANSWER: 408}[event]
        if isinstance(self.transaction, ClientTransaction):
            self.effects = self.layer.receive_response(
                answer(self.message, status, b"b%d" % self.tags), self.hop, self.now
            )
            return
        if event is Event.PROVISIONAL and not self.transaction.is_invite:
            if not self.hop.transport.reliable:
                self.wait(Event.TRYING_DUE)
                return
            status = 100
        self.effects = self.layer.respond(self.transaction, status, answer(self.message, status).data, self.now)

    def wait(self, timer: Event) -> None:
        while not any(event is timer for _state, event in self.table.taken):
            when = self.layer.next_timer()
            assert when is not None
            self.now = when
            self.effects = self.layer.handle_timer(when)


@pytest.mark.parametrize(("name", "state", "event"), ROWS, ids=lambda value: getattr(value, "name", value))
def test_every_row_is_taken(name: str, state: State, event: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of the four tables is reached through the public methods and does what it says."""
    table = RecordingTable(TABLES[name])
    monkeypatch.setattr(transaction_effects, name, table)
    row = table[state, event]
    reliable = event is Event.CONNECTION_LOST or (
        name == "NON_INVITE_SERVER" and (event in (Event.PROVISIONAL, Event.TRYING_DUE) or state is State.PROCEEDING)
    )
    driver = Driver(name, FLOW if reliable else UDP, table)
    if state is not State.NEW:
        if event is Event.CANCEL_EXPIRED:
            driver.drive(Event.CANCEL)
        for step in WAY_TO[name][state]:
            driver.drive(step)
        assert driver.transaction.state is state
        assert (state, event) not in table.taken
        driver.drive(event)
    assert (state, event) in table.taken
    assert driver.transaction.state is (State.TERMINATED if ends_at_once(row, driver.hop) else row.state)
    kinds = [type(effect) for effect in driver.effects]
    assert [kind for kind in kinds if kind is not Ended] == [EFFECT_OF[action] for action in effective(row)]
    assert (Ended in kinds) is (driver.transaction.state is State.TERMINATED)


EFFECT_OF = {
    Action.SEND_REQUEST: Send,
    Action.PASS_RESPONSE: ResponseReceived,
    Action.SEND_ACK: Send,
    Action.REPORT_TIMEOUT: Failed,
    Action.REPORT_TRANSPORT_ERROR: Failed,
    Action.SEND_CANCEL: Send,
    Action.PASS_REQUEST: RequestReceived,
    Action.PASS_ACK: AckReceived,
    Action.SEND_RESPONSE: Send,
    Action.RESEND_RESPONSE: Send,
    Action.SEND_TRYING: Send,
}


def effective(row: Row) -> list[Action]:
    """Without what only remembers, or has nothing to do in these drives."""
    idle = (Action.HOLD_CANCEL, Action.SEND_HELD_CANCEL)
    if row is TABLES["INVITE_SERVER"][State.PROCEEDING, Event.REQUEST]:
        return []
    return [action for action in row.actions if action not in idle]


def ends_at_once(row: Row, hop: Hop) -> bool:
    zero = {Event.TIMER_D, Event.TIMER_I, Event.TIMER_J, Event.TIMER_K}
    return row.state is State.TERMINATED or (hop.transport.reliable and bool(zero & set(row.timers)))


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_whole(name: str) -> None:
    """Each row cites its source, each started timer has a row, each state can be left, Terminated cannot."""
    table = TABLES[name]
    states = {state for state, _event in table}
    for (_state, event), row in table.items():
        assert re.match(r"(3261|6026|4320) §\d", row.source)
        assert row.state is State.TERMINATED or row.state in states
        for timer in row.timers:
            assert (row.state, timer) in table
        if row.state is State.TERMINATED:
            assert not row.timers
        assert event is not Event.REQUEST or row.state is not State.TERMINATED
    assert State.TERMINATED not in states


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


# --- Over a bad wire ----------------------------------------------------------------------------------------------


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
