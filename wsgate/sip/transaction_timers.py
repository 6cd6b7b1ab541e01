"""The timers of all transactions: their lengths (RFC 3261 table 4) and the deadlines in order. Pure."""

from __future__ import annotations

import dataclasses
from collections import deque

from wsgate.sip.transaction_effects import Transaction
from wsgate.sip.transaction_tables import Event, State

STALE_TIMERS_ALLOWED = 1000
"""Timers of ended transactions that the queues may hold, besides eight for each live one."""


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
    """Deadlines in one queue for each length of timer, each a tuple of time, number of the transaction, and event.

    Clocks go forward, so that each queue is in order by itself. Nothing is ever cancelled: a timer whose transaction
    is no longer in `live` is passed over, one that its state no longer waits for has no row in the table.
    """

    __slots__ = ("_delays", "_live", "_queues", "_settings", "_until_sweep")

    def __init__(self, settings: TransactionSettings, live: dict[int, Transaction]) -> None:
        self._settings = settings
        self._live = live
        self._queues: dict[float, deque[tuple[float, int, Event]]] = {}
        self._until_sweep = STALE_TIMERS_ALLOWED
        self._delays = _delays(settings)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def start(self, transaction: Transaction, timer: Event, now: float) -> bool:
        """Start a timer. False: its length is zero and it fires at once. A, E and G never fire over a stream."""
        delay = self._delays[transaction.reliable].get(timer)
        if delay is None:
            if transaction.reliable:
                return True
            delay = self._next_interval(transaction, timer)
        if delay == 0:
            return False
        queue = self._queues.get(delay)
        if queue is None:
            queue = self._queues[delay] = deque()
        queue.append((now + delay, transaction.number, timer))
        self._until_sweep -= 1
        if not self._until_sweep:
            self._sweep()
        return True

    def _sweep(self) -> None:
        """Take out what ended transactions left."""
        live = self._live
        for delay, queue in self._queues.items():
            self._queues[delay] = deque(entry for entry in queue if entry[1] in live)
        self._until_sweep = 8 * len(live) + STALE_TIMERS_ALLOWED

    def next(self) -> float | None:
        """When the earliest timer fires, None for never."""
        live = self._live
        earliest = None
        for queue in self._queues.values():
            while queue and queue[0][1] not in live:
                queue.popleft()
            if queue and (earliest is None or queue[0][0] < earliest):
                earliest = queue[0][0]
        return earliest

    def due(self, now: float, at_most: int) -> list[tuple[Transaction, Event]]:
        """The timers that are due, taken out, in the order of their times; `at_most` of each length.

        The transaction of one may end by one before it.
        """
        live = self._live
        due: list[tuple[float, int, Event]] = []
        for queue in self._queues.values():
            for _ in range(min(at_most, len(queue))):
                if queue[0][0] > now:
                    break
                entry = queue.popleft()
                if entry[1] in live:
                    due.append(entry)
        due.sort()
        return [(live[number], event) for _when, number, event in due]

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
