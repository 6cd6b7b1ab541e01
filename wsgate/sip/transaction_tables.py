"""The four transaction machines as tables (RFC 3261 §17 with RFC 6026 and RFC 4320). Data only.

A machine is a dictionary from (state, event) to a row: the state that follows, what is done, which timers are
started, and where it is written. A pair that is not in a table changes nothing: an answer that comes too late, a
timer that its state no longer waits for. A timer whose length is zero (D, I, J, K over a reliable transport) fires
within the same step; A, E and G are not started there at all (§17.1.1.2, §17.1.2.2, §17.2.1).
"""

from __future__ import annotations

import enum
from typing import NamedTuple


# The members are integers because they are hashed for every event.
class State(enum.IntEnum):
    """The states of all four machines, in the RFC's words; NEW is the moment before the first event."""

    NEW = 0
    CALLING = 1
    TRYING = 2
    PROCEEDING = 3
    COMPLETED = 4
    CONFIRMED = 5
    ACCEPTED = 6
    TERMINATED = 7


class Event(enum.IntEnum):
    """What can happen to a transaction. A response comes from the peer (client) or from the proxy (server)."""

    REQUEST = 0
    ACK = 1
    PROVISIONAL = 2
    SUCCESS = 3
    FAILURE = 4
    CANCEL = 5
    TRANSPORT_ERROR = 6
    CONNECTION_LOST = 7
    NO_ANSWER = 8
    TIMER_A = 10
    TIMER_B = 11
    TIMER_D = 12
    TIMER_E = 13
    TIMER_F = 14
    TIMER_G = 15
    TIMER_H = 16
    TIMER_I = 17
    TIMER_J = 18
    TIMER_K = 19
    TIMER_L = 20
    TIMER_M = 21
    CANCEL_EXPIRED = 22
    TRYING_DUE = 23
    EXPIRED = 24


class Action(enum.IntEnum):
    """What a row has done, in this order."""

    SEND_REQUEST = 0
    """Send the client's request, the first time or again."""
    PASS_RESPONSE = 1
    """Hand the response to the proxy."""
    SEND_ACK = 2
    """Build and send the ACK of a 3xx to 6xx (§17.1.1.3)."""
    REPORT_TIMEOUT = 3
    REPORT_TRANSPORT_ERROR = 4
    HOLD_CANCEL = 5
    """Remember that a CANCEL is wanted."""
    SEND_CANCEL = 6
    """Send the CANCEL in a transaction of its own."""
    SEND_HELD_CANCEL = 7
    """Send the CANCEL if one was held back."""
    PASS_REQUEST = 8
    """Hand a new request to the proxy."""
    PASS_ACK = 9
    """Hand the ACK of a 2xx to the proxy."""
    SEND_RESPONSE = 10
    """Send what the proxy answered and keep it."""
    RESEND_RESPONSE = 11
    """Send the last answer again, if there is one."""
    SEND_TRYING = 12
    """Make and send a 100."""


class Row(NamedTuple):
    """One transition."""

    state: State
    actions: tuple[Action, ...]
    timers: tuple[Event, ...]
    source: str


Table = dict[tuple[State, Event], Row]

INVITE_CLIENT: Table = {
    (State.NEW, Event.REQUEST): Row(
        State.CALLING, (Action.SEND_REQUEST,), (Event.TIMER_A, Event.TIMER_B), "3261 §17.1.1.2"
    ),
    (State.CALLING, Event.TIMER_A): Row(State.CALLING, (Action.SEND_REQUEST,), (Event.TIMER_A,), "3261 §17.1.1.2"),
    (State.CALLING, Event.TIMER_B): Row(State.TERMINATED, (Action.REPORT_TIMEOUT,), (), "3261 §17.1.1.2"),
    (State.CALLING, Event.TRANSPORT_ERROR): Row(
        State.TERMINATED, (Action.REPORT_TRANSPORT_ERROR,), (), "3261 §17.1.1.2, §17.1.4"
    ),
    (State.CALLING, Event.PROVISIONAL): Row(
        State.PROCEEDING, (Action.PASS_RESPONSE, Action.SEND_HELD_CANCEL), (), "3261 §17.1.1.2, §9.1"
    ),
    (State.CALLING, Event.SUCCESS): Row(State.ACCEPTED, (Action.PASS_RESPONSE,), (Event.TIMER_M,), "6026 §7.2"),
    (State.CALLING, Event.FAILURE): Row(
        State.COMPLETED, (Action.SEND_ACK, Action.PASS_RESPONSE), (Event.TIMER_D,), "3261 §17.1.1.2"
    ),
    (State.CALLING, Event.CANCEL): Row(State.CALLING, (Action.HOLD_CANCEL,), (), "3261 §9.1"),
    (State.PROCEEDING, Event.PROVISIONAL): Row(State.PROCEEDING, (Action.PASS_RESPONSE,), (), "3261 §17.1.1.2"),
    (State.PROCEEDING, Event.SUCCESS): Row(State.ACCEPTED, (Action.PASS_RESPONSE,), (Event.TIMER_M,), "6026 §7.2"),
    (State.PROCEEDING, Event.FAILURE): Row(
        State.COMPLETED, (Action.SEND_ACK, Action.PASS_RESPONSE), (Event.TIMER_D,), "3261 §17.1.1.2"
    ),
    (State.PROCEEDING, Event.CANCEL): Row(
        State.PROCEEDING, (Action.SEND_CANCEL,), (Event.CANCEL_EXPIRED,), "3261 §9.1"
    ),
    (State.PROCEEDING, Event.CANCEL_EXPIRED): Row(State.TERMINATED, (Action.REPORT_TIMEOUT,), (), "3261 §9.1"),
    # A neighbour that is gone cannot answer any more: the proxy hears of it (§16.9) instead of waiting for Timer C.
    (State.PROCEEDING, Event.TRANSPORT_ERROR): Row(
        State.TERMINATED, (Action.REPORT_TRANSPORT_ERROR,), (), "3261 §17.1.4, §16.9"
    ),
    (State.COMPLETED, Event.FAILURE): Row(State.COMPLETED, (Action.SEND_ACK,), (), "3261 §17.1.1.2"),
    # The proxy has its final response, so that the failed ACK is no news for it.
    (State.COMPLETED, Event.TRANSPORT_ERROR): Row(State.TERMINATED, (), (), "3261 §17.1.1.2"),
    (State.COMPLETED, Event.TIMER_D): Row(State.TERMINATED, (), (), "3261 §17.1.1.2"),
    (State.ACCEPTED, Event.SUCCESS): Row(State.ACCEPTED, (Action.PASS_RESPONSE,), (), "6026 §7.2"),
    (State.ACCEPTED, Event.TIMER_M): Row(State.TERMINATED, (), (), "6026 §7.2"),
}

NON_INVITE_CLIENT: Table = {
    (State.NEW, Event.REQUEST): Row(
        State.TRYING, (Action.SEND_REQUEST,), (Event.TIMER_E, Event.TIMER_F), "3261 §17.1.2.2"
    ),
    (State.TRYING, Event.TIMER_E): Row(State.TRYING, (Action.SEND_REQUEST,), (Event.TIMER_E,), "3261 §17.1.2.2"),
    (State.TRYING, Event.TIMER_F): Row(State.TERMINATED, (Action.REPORT_TIMEOUT,), (), "3261 §17.1.2.2"),
    (State.TRYING, Event.TRANSPORT_ERROR): Row(
        State.TERMINATED, (Action.REPORT_TRANSPORT_ERROR,), (), "3261 §17.1.2.2, §17.1.4"
    ),
    (State.TRYING, Event.PROVISIONAL): Row(State.PROCEEDING, (Action.PASS_RESPONSE,), (), "3261 §17.1.2.2"),
    (State.TRYING, Event.SUCCESS): Row(State.COMPLETED, (Action.PASS_RESPONSE,), (Event.TIMER_K,), "3261 §17.1.2.2"),
    (State.TRYING, Event.FAILURE): Row(State.COMPLETED, (Action.PASS_RESPONSE,), (Event.TIMER_K,), "3261 §17.1.2.2"),
    (State.PROCEEDING, Event.TIMER_E): Row(
        State.PROCEEDING, (Action.SEND_REQUEST,), (Event.TIMER_E,), "3261 §17.1.2.2"
    ),
    (State.PROCEEDING, Event.TIMER_F): Row(State.TERMINATED, (Action.REPORT_TIMEOUT,), (), "3261 §17.1.2.2"),
    (State.PROCEEDING, Event.TRANSPORT_ERROR): Row(
        State.TERMINATED, (Action.REPORT_TRANSPORT_ERROR,), (), "3261 §17.1.2.2, §17.1.4"
    ),
    (State.PROCEEDING, Event.PROVISIONAL): Row(State.PROCEEDING, (Action.PASS_RESPONSE,), (), "3261 §17.1.2.2"),
    (State.PROCEEDING, Event.SUCCESS): Row(
        State.COMPLETED, (Action.PASS_RESPONSE,), (Event.TIMER_K,), "3261 §17.1.2.2"
    ),
    (State.PROCEEDING, Event.FAILURE): Row(
        State.COMPLETED, (Action.PASS_RESPONSE,), (Event.TIMER_K,), "3261 §17.1.2.2"
    ),
    (State.COMPLETED, Event.TIMER_K): Row(State.TERMINATED, (), (), "3261 §17.1.2.2"),
}

# No server machine has a row for an answer that could not be sent: the state stays (6026 §7.1). A connection that is
# gone is another matter: over it neither a retransmission nor an ACK can come.
INVITE_SERVER: Table = {
    (State.NEW, Event.REQUEST): Row(State.PROCEEDING, (Action.PASS_REQUEST,), (), "3261 §17.2.1"),
    (State.PROCEEDING, Event.REQUEST): Row(State.PROCEEDING, (Action.RESEND_RESPONSE,), (), "3261 §17.2.1"),
    (State.PROCEEDING, Event.PROVISIONAL): Row(State.PROCEEDING, (Action.SEND_RESPONSE,), (), "3261 §17.2.1"),
    (State.PROCEEDING, Event.SUCCESS): Row(State.ACCEPTED, (Action.SEND_RESPONSE,), (Event.TIMER_L,), "6026 §7.1"),
    (State.PROCEEDING, Event.FAILURE): Row(
        State.COMPLETED, (Action.SEND_RESPONSE,), (Event.TIMER_G, Event.TIMER_H), "3261 §17.2.1"
    ),
    (State.PROCEEDING, Event.CONNECTION_LOST): Row(State.TERMINATED, (), (), "3261 §17.2.4"),
    (State.COMPLETED, Event.REQUEST): Row(State.COMPLETED, (Action.RESEND_RESPONSE,), (), "3261 §17.2.1"),
    (State.COMPLETED, Event.TIMER_G): Row(State.COMPLETED, (Action.RESEND_RESPONSE,), (Event.TIMER_G,), "3261 §17.2.1"),
    (State.COMPLETED, Event.TIMER_H): Row(State.TERMINATED, (), (), "3261 §17.2.1"),
    (State.COMPLETED, Event.ACK): Row(State.CONFIRMED, (), (Event.TIMER_I,), "3261 §17.2.1"),
    (State.COMPLETED, Event.CONNECTION_LOST): Row(State.TERMINATED, (), (), "3261 §17.2.4"),
    (State.CONFIRMED, Event.TIMER_I): Row(State.TERMINATED, (), (), "3261 §17.2.1"),
    (State.ACCEPTED, Event.SUCCESS): Row(State.ACCEPTED, (Action.SEND_RESPONSE,), (), "6026 §7.1"),
    (State.ACCEPTED, Event.ACK): Row(State.ACCEPTED, (Action.PASS_ACK,), (), "6026 §7.1"),
    (State.ACCEPTED, Event.TIMER_L): Row(State.TERMINATED, (), (), "6026 §7.1"),
    (State.ACCEPTED, Event.CONNECTION_LOST): Row(State.TERMINATED, (), (), "3261 §17.2.4"),
}

NON_INVITE_SERVER: Table = {
    (State.NEW, Event.REQUEST): Row(State.TRYING, (Action.PASS_REQUEST,), (Event.TRYING_DUE,), "3261 §17.2.2"),
    (State.TRYING, Event.PROVISIONAL): Row(State.PROCEEDING, (Action.SEND_RESPONSE,), (), "3261 §17.2.2"),
    (State.TRYING, Event.SUCCESS): Row(State.COMPLETED, (Action.SEND_RESPONSE,), (Event.TIMER_J,), "3261 §17.2.2"),
    (State.TRYING, Event.FAILURE): Row(State.COMPLETED, (Action.SEND_RESPONSE,), (Event.TIMER_J,), "3261 §17.2.2"),
    (State.TRYING, Event.NO_ANSWER): Row(State.TERMINATED, (), (), "4320 §4.2"),
    (State.TRYING, Event.TRYING_DUE): Row(State.PROCEEDING, (Action.SEND_TRYING,), (Event.EXPIRED,), "4320 §4.1"),
    (State.TRYING, Event.CONNECTION_LOST): Row(State.TERMINATED, (), (), "3261 §17.2.4"),
    (State.PROCEEDING, Event.REQUEST): Row(State.PROCEEDING, (Action.RESEND_RESPONSE,), (), "3261 §17.2.2"),
    (State.PROCEEDING, Event.PROVISIONAL): Row(State.PROCEEDING, (Action.SEND_RESPONSE,), (), "3261 §17.2.2"),
    (State.PROCEEDING, Event.SUCCESS): Row(State.COMPLETED, (Action.SEND_RESPONSE,), (Event.TIMER_J,), "3261 §17.2.2"),
    (State.PROCEEDING, Event.FAILURE): Row(State.COMPLETED, (Action.SEND_RESPONSE,), (Event.TIMER_J,), "3261 §17.2.2"),
    (State.PROCEEDING, Event.NO_ANSWER): Row(State.TERMINATED, (), (), "4320 §4.2"),
    # The proxy sent its own 100 before this one was due.
    (State.PROCEEDING, Event.TRYING_DUE): Row(State.PROCEEDING, (), (Event.EXPIRED,), "4320 §4.1"),
    # Nobody waits any more for an answer: the client's Timer F has fired (4320 §4.2 forbids the 408).
    (State.PROCEEDING, Event.EXPIRED): Row(State.TERMINATED, (), (), "4320 §4.2"),
    (State.PROCEEDING, Event.CONNECTION_LOST): Row(State.TERMINATED, (), (), "3261 §17.2.4"),
    (State.COMPLETED, Event.REQUEST): Row(State.COMPLETED, (Action.RESEND_RESPONSE,), (), "3261 §17.2.2"),
    (State.COMPLETED, Event.TIMER_J): Row(State.TERMINATED, (), (), "3261 §17.2.2"),
}
