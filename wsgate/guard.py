"""Limits that strangers run into: connections, rates, memory. Pure: counts and `now` in, yes or no out.

An address is an IP address as text; IPv6 counts by its /64, because whoever has one address has all of those.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress

from wsgate.addr import canonical_ip
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
    transactions_per_connection: int = option(256, integer(10, 10000000))
    dialogs: int = option(50000, integer(10, 10000000))
    memory_high: float = option(0.8, PERCENT)


BURST = 2
"""A rate may be run ahead of by this many seconds' worth at once."""

ANSWERED_ABOVE_LIMIT = 64
"""So many connections above a limit are still accepted, to be told 503; the next ones are dropped unheard."""

UPGRADE_TABLE = 65536
"""Addresses whose upgrade rate is remembered; a full table forgets the one that upgraded longest ago."""

RETRY_AFTER = 10
"""Seconds that a client is asked to wait when wsgate is overloaded (rule H1)."""

EXCESS_ALLOWED = 10.0
"""Seconds of uninterrupted excess of messages after which a connection is closed with 1008 (table A)."""

EXCESS_FORGIVEN = 2.0
"""Seconds without an excess message that end an excess."""


class Verdict(enum.Enum):
    """What becomes of one message (table A: too many messages)."""

    PASS = "pass"
    EXCESS = "answer 503"
    FLOOD = "close with 1008"


def take(full_at: float, rate: float, now: float) -> float | None:
    """One token from a bucket of BURST * rate tokens; None when it is empty.

    The whole bucket is one number: the time at which it will be full again. Keep what is returned for the next call.
    """
    later = max(full_at, now) + 1 / rate
    return None if later - now > BURST + 1e-9 else later


class MessageRate:
    """messages_per_second of one connection."""

    __slots__ = ("_excess_at", "_excess_since", "_full_at")

    def __init__(self) -> None:
        self._full_at = 0.0
        self._excess_since = 0.0
        self._excess_at = -EXCESS_FORGIVEN

    def judge(self, rate: int, now: float) -> Verdict:
        """Count one message at `now`; `rate` in messages per second."""
        later = take(self._full_at, rate, now)
        if later is not None:
            self._full_at = later
            return Verdict.PASS
        if now - self._excess_at >= EXCESS_FORGIVEN:
            self._excess_since = now
        self._excess_at = now
        return Verdict.FLOOD if now - self._excess_since >= EXCESS_ALLOWED else Verdict.EXCESS


class Guard:
    """The counts of one worker. What is opened, claimed or begun here is given back by the matching call, once."""

    def __init__(self, settings: LimitSettings) -> None:
        self.settings = settings
        self.memory_used = 0.0
        """Share of the memory in use, 0 to 1; whoever measures it writes it here."""
        self.draining = False
        """True while shutting down: no new work (rule H1, 503)."""
        self.connections = 0
        self.tls_handshakes = 0
        self._claims: dict[str, int] = {}
        self._upgrades: dict[str, float] = {}

    @property
    def overloaded(self) -> bool:
        """True when new work is to be refused: too many connections, memory high, or draining."""
        return (
            self.draining
            or self.connections > self.settings.connections
            or self.memory_used >= self.settings.memory_high
        )

    def open(self) -> bool:
        """Count one accepted connection; False: not counted, drop it."""
        if self.connections >= self.settings.connections + ANSWERED_ABOVE_LIMIT:
            return False
        self.connections += 1
        return True

    def close(self) -> None:
        """The connection that `open` counted is gone."""
        self.connections -= 1

    def claim(self, address: str) -> bool:
        """Count one connection for `address`; False: not counted, drop it."""
        key = _key(address)
        count = self._claims.get(key, 0)
        if count >= self.settings.connections_per_address + ANSWERED_ABOVE_LIMIT:
            return False
        self._claims[key] = count + 1
        return True

    def release(self, address: str) -> None:
        """The connection that `claim` counted for `address` is gone."""
        key = _key(address)
        count = self._claims[key] - 1
        if count:
            self._claims[key] = count
        else:
            del self._claims[key]

    def claimed(self, address: str) -> int:
        """How many connections `address` has."""
        return self._claims.get(_key(address), 0)

    def crowded(self, address: str) -> bool:
        """True when `address` has more than connections_per_address (rule H1, 503)."""
        return self.claimed(address) > self.settings.connections_per_address

    def begin_tls(self) -> bool:
        """Count one TLS handshake; False: not counted, drop the connection."""
        if self.tls_handshakes >= self.settings.tls_handshakes:
            return False
        self.tls_handshakes += 1
        return True

    def end_tls(self) -> None:
        """A TLS handshake that `begin_tls` counted is over."""
        self.tls_handshakes -= 1

    def upgrade(self, address: str, now: float) -> bool:
        """Take one upgrade from the rate of `address`; False: too many (rule H1, 503)."""
        key = _key(address)
        later = take(self._upgrades.get(key, 0.0), self.settings.upgrades_per_second, now)
        if later is None:
            return False
        # Written anew at the end, so that the table stands in the order of the last upgrade.
        self._upgrades.pop(key, None)
        if len(self._upgrades) >= UPGRADE_TABLE:
            del self._upgrades[next(iter(self._upgrades))]
        self._upgrades[key] = later
        return True


class Places:
    """A number of places, some of them for each address: what is entered here is left again, once."""

    def __init__(self, total: int, per_address: int) -> None:
        self.taken = 0
        self._total = total
        self._per_address = per_address
        self._by_address: dict[str, int] = {}

    def enter(self, address: str) -> bool:
        """Take a place for `address`; False: there is none."""
        key = _key(address)
        count = self._by_address.get(key, 0)
        if self.taken >= self._total or count >= self._per_address:
            return False
        self.taken += 1
        self._by_address[key] = count + 1
        return True

    def leave(self, address: str) -> None:
        """The place that `enter` took for `address` is free."""
        key = _key(address)
        self.taken -= 1
        self._by_address[key] -= 1
        if not self._by_address[key]:
            del self._by_address[key]


def _key(address: str) -> str:
    try:
        ip = canonical_ip(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return address
    if ip.version == 4:
        return str(ip)
    return str(ipaddress.IPv6Address(int(ip) >> 64 << 64))
