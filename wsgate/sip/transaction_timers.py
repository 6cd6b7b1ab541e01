"""The timers of all transactions: their lengths (RFC 3261 table 4) and one heap of deadlines. Pure."""

from __future__ import annotations

import dataclasses
from heapq import heapify, heappop, heappush

from wsgate.sip.transaction_effects import Transaction
from wsgate.sip.transaction_tables import Event, State

STALE_TIMERS_ALLOWED = 1000
"""Timers of ended transactions that the heap may hold, besides eight for each live one."""


@dataclasses.dataclass(frozen=True)
class TransactionSettings:
    """The times of RFC 3261 §17 in seconds, and the numbers of transactions over which new ones are refused."""

    t1: float = 0.5
    t2: float = 4.0
    t4: float = 5.0
    transactions: int = 100000
    transactions_per_connection: int = 256
    """Requests of one browser's connection that wait for their end."""


class Timers:
    """Deadlines in one heap, each a tuple of time, number of the transaction, and event.

    Nothing is ever cancelled: a timer whose transaction is no longer in `live` is passed over, one that its state no
    longer waits for has no row in the table.
    """

    __slots__ = ("_delays", "_heap", "_live", "_settings")

    def __init__(self, settings: TransactionSettings, live: dict[int, Transaction]) -> None:
        self._settings = settings
        self._live = live
        self._heap: list[tuple[float, int, Event]] = []
        self._delays = _delays(settings)

    def __len__(self) -> int:
        return len(self._heap)

    def start(self, transaction: Transaction, timer: Event, now: float) -> bool:
        """Start a timer. False: its length is zero and it fires at once. A, E and G never fire over a stream."""
        delay = self._delays[transaction.reliable].get(timer)
        if delay is None:
            if transaction.reliable:
                return True
            delay = self._next_interval(transaction, timer)
        if delay == 0:
            return False
        heappush(self._heap, (now + delay, transaction.number, timer))
        if len(self._heap) > 8 * len(self._live) + STALE_TIMERS_ALLOWED:
            self._heap = [entry for entry in self._heap if entry[1] in self._live]
            heapify(self._heap)
        return True

    def next(self) -> float | None:
        """When the earliest timer fires, None for never."""
        heap = self._heap
        while heap and heap[0][1] not in self._live:
            heappop(heap)
        return heap[0][0] if heap else None

    def pop(self, now: float) -> tuple[Transaction, Event] | None:
        """The earliest timer that is due, taken out; None when there is none."""
        due = self.next()
        if due is None or due > now:
            return None
        _when, number, event = heappop(self._heap)
        return self._live[number], event

    def _next_interval(self, transaction: Transaction, timer: Event) -> float:
        """Of the retransmissions: A doubles without bound, E and G up to T2; E is T2 in Proceeding."""
        interval = transaction.interval * 2 or self._settings.t1
        if timer is not Event.TIMER_A:
            interval = min(interval, self._settings.t2)
            if timer is Event.TIMER_E and transaction.state is State.PROCEEDING:
                interval = self._settings.t2
        transaction.interval = interval
        return interval


def _delays(settings: TransactionSettings) -> tuple[dict[Event, float], dict[Event, float]]:
    """The lengths of the timers over an unreliable and over a reliable transport (RFC 3261 table 4, 6026 §8.11)."""
    # Rule I1: over UDP by T1 and T2; over a stream and a WebSocket nothing is sent again and D, I, J, K are zero.
    long = 64 * settings.t1
    ends = (Event.TIMER_B, Event.TIMER_F, Event.TIMER_H, Event.TIMER_L, Event.TIMER_M, Event.CANCEL_EXPIRED)
    always = dict.fromkeys(ends, long)
    # A 100 to another request than INVITE is due when the client's Timer E reaches T2 (4320 §4.1).
    due, interval = 0.0, settings.t1
    while interval < settings.t2:
        due += interval
        interval *= 2
    always[Event.TRYING_DUE] = due
    # T4 on top of 64*T1, so that the client's last retransmission still finds its transaction.
    always[Event.EXPIRED] = long + settings.t4 - due
    unreliable = {
        Event.TIMER_D: long,
        Event.TIMER_I: settings.t4,
        Event.TIMER_J: long,
        Event.TIMER_K: settings.t4,
    }
    return always | unreliable, always | dict.fromkeys(unreliable, 0.0)
