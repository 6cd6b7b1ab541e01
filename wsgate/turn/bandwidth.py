"""How much a user may do in a second: token buckets, one for each user (rule Q1)."""

from __future__ import annotations

from weakref import WeakValueDictionary

BURST_MIN = 1500
"""A bucket holds what comes in a second, and at any rate one packet."""

BUCKETS_KEPT = 4096
"""So many users who have nothing any more are remembered: whoever frees and allocates again finds the old bucket."""


class Bucket:
    """Fills by `rate` in a second up to `size`. Times are seconds of the monotonic clock."""

    __slots__ = ("__weakref__", "_at", "_rate", "_size", "_tokens")

    def __init__(self, rate: int, size: int) -> None:
        self._rate = rate
        self._size = self._tokens = float(size)
        self._at: float | None = None

    def available(self, now: float) -> int:
        """How much may be taken."""
        if self._at is not None:
            self._tokens = min(self._size, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return int(self._tokens)

    def take(self, amount: int, now: float) -> bool:
        """Take `amount`, all or nothing; False when there is not so much."""
        enough = self.available(now) >= amount
        if enough:
            self._tokens -= amount
        return enough

    def seconds_until(self, amount: int) -> float:
        """How long it takes from the last question until there is so much, or a full bucket."""
        return max(0.0, (min(float(amount), self._size) - self._tokens) / self._rate)


class Buckets:
    """The buckets of users: as long as somebody holds one, and of BUCKETS_KEPT users since."""

    def __init__(self, rate: int, burst_min: int = BURST_MIN) -> None:
        self._rate = rate
        self._size = max(rate, burst_min)
        self._all: WeakValueDictionary[str, Bucket] = WeakValueDictionary()
        self._kept: dict[str, Bucket] = {}

    def of(self, user: str) -> Bucket:
        """The bucket of `user`."""
        bucket = self._all.get(user)
        if bucket is None:
            bucket = self._all[user] = Bucket(self._rate, self._size)
        self._kept.pop(user, None)
        self._kept[user] = bucket
        if len(self._kept) > BUCKETS_KEPT:
            del self._kept[next(iter(self._kept))]
        return bucket

    def __len__(self) -> int:
        return len(self._all)
