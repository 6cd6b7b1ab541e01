"""Greenlets that drain what is ready: one is enough unless somebody blocks, and nobody idle has one of his own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import gevent
from gevent import get_hub

MAX_READERS = 256
"""Reader greenlets; more than one exists only while one is held up."""

IDLE_READERS = 4
"""Readers kept for the next time."""


class Drained(Protocol):
    """What is drained; both marks belong to Readers and to whoever drains."""

    queued: bool
    """It waits for a reader."""
    busy: bool
    """A reader is at it, perhaps held up."""


D = TypeVar("D", bound=Drained)


class Readers(Generic[D]):
    """`serve` is called in a reader greenlet for each that was `ready`, never twice at once for the same."""

    def __init__(self, serve: Callable[[D], None]) -> None:
        self._serve = serve
        self._ready: deque[D] = deque()
        self._idle: list[Any] = []
        self._count = 0
        self._waking = False

    def __len__(self) -> int:
        return self._count

    @property
    def all_held_up(self) -> bool:
        """True when no further reader may be made: what becomes ready waits until one is free."""
        return self._count >= MAX_READERS

    def ready(self, one: D) -> None:
        """Have `one` served soon. Never blocks; may be called from the hub."""
        if not one.queued:
            one.queued = True
            self._ready.append(one)
        if self._waking:
            return
        if self._idle:
            get_hub().loop.run_callback(self._idle.pop().switch)
        elif not self.all_held_up:
            self._count += 1
            gevent.spawn(self._read)
        else:
            return
        self._waking = True

    def stop(self) -> None:
        """End the readers that wait."""
        gevent.killall(self._idle)
        self._idle.clear()

    def _read(self) -> None:
        """Serve what is ready, batch by batch so that the loop sees the others in between."""
        while True:
            self._waking = False
            while self._ready:
                for _ in range(len(self._ready)):
                    if self._ready:
                        self._serve_one(self._ready.popleft())
                if self._ready:
                    gevent.sleep(0)
            if len(self._idle) >= IDLE_READERS:
                self._count -= 1
                return
            self._idle.append(gevent.getcurrent())
            get_hub().switch()

    def _serve_one(self, one: D) -> None:
        one.queued = False
        if not one.busy:
            self._serve(one)
