"""The clock and the loop timer: where `now` and `handle_timer` of every machine come from."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gevent import get_hub

now: Callable[[], float] = time.monotonic
"""Monotonic seconds, as every machine takes them."""


class LoopTimer:
    """One timer for one layer: `arm` with what `next_timer()` gave, and `callback` runs in the hub when it is due.

    The callback must not block; it may be early, as every `handle_timer` allows, and arms the timer again itself.
    """

    __slots__ = ("_callback", "_deadline", "_watcher")

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._deadline: float | None = None
        self._watcher: Any = None

    def arm(self, deadline: float | None) -> None:
        """Fire at `deadline` (monotonic seconds); None: not at all. A timer that is due earlier is left to fire."""
        if deadline is None:
            self.stop()
            return
        if self._deadline is not None and self._deadline <= deadline:
            return
        self.stop()
        self._deadline = deadline
        hub = get_hub()
        self._watcher = hub.loop.timer(max(0.0, deadline - now()))
        self._watcher.start(self._fire, update=True)

    def is_due_by(self, at: float) -> bool:
        """True when it fires at `at` or before."""
        return self._deadline is not None and self._deadline <= at

    def stop(self) -> None:
        """Disarm."""
        self._deadline = None
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None

    def _fire(self) -> None:
        self.stop()
        self._callback()
