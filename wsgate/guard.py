"""Limits that strangers run into: connections, rates, memory. Pure: counts and `now` in, yes or no out."""

from __future__ import annotations

import dataclasses

from wsgate.settings import PERCENT, integer, option


@dataclasses.dataclass(frozen=True)
class LimitSettings:
    """[limits]"""

    connections: int = option(15000, integer(1, 1000000))
    connections_per_address: int = option(200, integer(1, 1000000))
    tls_handshakes: int = option(200, integer(1, 100000))
    upgrades_per_second: int = option(50, integer(1, 100000))
    messages_per_second: int = option(50, integer(1, 100000))
    transactions: int = option(100000, integer(10, 10000000))
    dialogs: int = option(50000, integer(10, 10000000))
    memory_high: float = option(0.8, PERCENT)
