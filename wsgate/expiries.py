"""When keys end: a heap of seconds, so that many keys cost one timer (DESIGN: a timer is a value). Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Expiries(Generic[Key]):
    """When each key ends, to the second above; moving a key leaves nothing behind that could grow."""

    __slots__ = ("_buckets", "_heap", "_second")

    def __init__(self) -> None:
        self._second: dict[Key, int] = {}
        self._buckets: dict[int, set[Key]] = {}
        self._heap: list[int] = []

    def set(self, key: Key, at: float) -> None:
        """Let `key` end at `at`, whatever was said before."""
        second = math.ceil(at)
        if self._second.get(key) == second:
            return
        self.discard(key)
        self._second[key] = second
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = set()
            heapq.heappush(self._heap, second)
            # Seconds whose bucket became empty stay in the heap; they may not outgrow those that count.
            if len(self._heap) > 2 * len(self._buckets) + 64:
                self._heap = sorted(self._buckets)
        bucket.add(key)

    def discard(self, key: Key) -> None:
        """Forget `key`."""
        second = self._second.pop(key, None)
        if second is not None:
            bucket = self._buckets[second]
            bucket.discard(key)
            if not bucket:
                del self._buckets[second]

    def next_timer(self) -> float | None:
        """When the first key ends, or None."""
        while self._heap and self._heap[0] not in self._buckets:
            heapq.heappop(self._heap)
        return float(self._heap[0]) if self._heap else None

    def due(self, now: float) -> list[Key]:
        """Take out the keys that have ended."""
        ended: list[Key] = []
        while self._heap and self._heap[0] <= now:
            for key in self._buckets.pop(heapq.heappop(self._heap), ()):
                del self._second[key]
                ended.append(key)
        return ended
