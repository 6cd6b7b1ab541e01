"""Counters of everything worth counting: plain integers by name, read by /status and /metrics."""

from __future__ import annotations

from collections import Counter


class Counters:
    """Named integers that only grow. Names are words with underscores, e.g. `sip_malformed_dropped`."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: Counter[str] = Counter()

    def count(self, name: str, amount: int = 1) -> None:
        """Add `amount` to the counter `name`, which begins at 0."""
        self.values[name] += amount
