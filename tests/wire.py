"""Two pure machines joined by a pretend wire: seeded loss, duplication, reordering, and a clock moved by hand."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol


class End(Protocol):
    """One side of the wire. What it returns is put on the wire at once."""

    def receive(self, data: bytes, now: float) -> list[bytes]:
        """A packet of the other side."""

    def next_timer(self) -> float | None:
        """When `handle_timer` is wanted."""

    def handle_timer(self, now: float) -> list[bytes]:
        """The clock has come to `next_timer`."""


class Crossing(NamedTuple):
    """One packet that was sent: when, by which end, and how many copies arrive (0: lost)."""

    when: float
    sender: End
    data: bytes
    copies: int


class Wire:
    """Carries packets between two ends. `delay` is (least, most) in seconds: a wide one reorders.

    `loss` and `duplication` are chances from 0 to 1; `drops(number, data)` loses chosen packets, numbered from 0.
    All chance comes from `seed`. `log` holds everything that was sent.
    """

    def __init__(
        self,
        left: End,
        right: End,
        *,
        seed: int = 0,
        loss: float = 0.0,
        duplication: float = 0.0,
        delay: tuple[float, float] = (0.01, 0.01),
        drops: Callable[[int, bytes], bool] = lambda number, data: False,
    ) -> None:
        self.left = left
        self.right = right
        self.now = 0.0
        self.log: list[Crossing] = []
        self._chance = random.Random(seed)
        self._loss = loss
        self._duplication = duplication
        self._delay = delay
        self._drops = drops
        self._numbers = itertools.count()
        self._flying: list[tuple[float, int, End, bytes]] = []

    def send(self, sender: End, packets: Iterable[bytes]) -> None:
        """Put the packets of one end on the wire now."""
        for data in packets:
            copies = 1 + (self._chance.random() < self._duplication)
            copies = sum(self._chance.random() >= self._loss for _ in range(copies))
            if self._drops(len(self.log), data):
                copies = 0
            self.log.append(Crossing(self.now, sender, data, copies))
            receiver = self.right if sender is self.left else self.left
            for _ in range(copies):
                when = self.now + self._chance.uniform(*self._delay)
                heapq.heappush(self._flying, (when, next(self._numbers), receiver, data))

    def run(self, until: float) -> None:
        """Move the clock to `until`, delivering packets and firing timers in the order of their times."""
        while True:
            timers = [(end.next_timer(), end) for end in (self.left, self.right)]
            due, end = min(
                ((when, end) for when, end in timers if when is not None),
                default=(until + 1, self.left),
                key=lambda pair: pair[0],
            )
            flying = self._flying[0][0] if self._flying else until + 1
            if min(due, flying) > until:
                break
            self.now = max(self.now, min(due, flying))
            if flying <= due:
                _when, _number, receiver, data = heapq.heappop(self._flying)
                self.send(receiver, receiver.receive(data, self.now))
            else:
                self.send(end, end.handle_timer(self.now))
        self.now = until
