"""Sending within the bandwidth of a user (rule Q1)."""

from __future__ import annotations

import errno
from collections.abc import Callable

from wsgate.metrics import Counters
from wsgate.turn.bandwidth import Bucket

Send = Callable[[bytes | memoryview, tuple[str, int]], int]


def metered(send: Send, bucket: Bucket | None, counters: Counters, clock: Callable[[], float]) -> Send:
    """`send`, which drops and counts what is over the bandwidth and then raises BlockingIOError.

    Without a bucket it is `send` itself: what is not bounded costs nothing.
    """
    if bucket is None:
        return send
    take = bucket.take

    def send_within_bandwidth(data: bytes | memoryview, address: tuple[str, int]) -> int:
        if not take(len(data), clock()):
            counters.count("turn_bandwidth_dropped")
            raise BlockingIOError(errno.EAGAIN, "over user_bandwidth")
        return send(data, address)

    return send_within_bandwidth
