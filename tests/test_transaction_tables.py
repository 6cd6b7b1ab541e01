"""The tables of the transaction machines: whole, and every row is taken (RFC 3261 §17, RFC 6026)."""

from __future__ import annotations

import re

import pytest

from tests.transactions import (
    FLOW,
    UDP,
    answer,
    layer,
    request,
    server_of,
)
from wsgate.addr import Hop
from wsgate.sip import transaction_effects, transaction_tables
from wsgate.sip.transaction import (
    AckReceived,
    ClientTransaction,
    Effect,
    Ended,
    Failed,
    RequestReceived,
    ResponseReceived,
    Send,
    ServerTransaction,
    State,
)
from wsgate.sip.transaction_tables import Action, Event, Row, Table

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
