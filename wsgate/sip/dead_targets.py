"""Which targets did not answer, and for how long each is left alone (rule N3). Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from wsgate.addr import Address, Transport
from wsgate.sip.targets import Target

FIRST_BACK_OFF_SECONDS = 4.0
MOST_BACK_OFF_SECONDS = 300.0
MAX_DEAD_TARGETS = 4096

Place = tuple[Transport, Address]


class _Dead:
    __slots__ = ("back_off", "probed", "until")

    def __init__(self, until: float, back_off: float) -> None:
        self.until = until
        self.back_off = back_off
        self.probed = False


class DeadTargets:
    """Which (transport, address) failed, and until when it is left alone: each failure doubles that (rule N3).

    When its time is over one request tries a dead target, for all others it stays dead twice as long; so a server that
    swallows requests in silence costs one caller per back-off, and one that answers no probe comes back all the same.
    """

    def __init__(self) -> None:
        self._dead: dict[Place, _Dead] = {}

    def __contains__(self, place: Place) -> bool:
        return place in self._dead

    def __iter__(self) -> Iterator[Place]:
        return iter(self._dead)

    def __len__(self) -> int:
        return len(self._dead)

    def failed(self, transport: Transport, address: Address, now: float, at_least: float = 0.0) -> None:
        """It did not answer. Failures of requests that were on their way together count once.

        `at_least` are the seconds for which the target itself asked to be left alone (Retry-After of a 503).
        """
        key = (transport, address)
        dead = self._dead.get(key)
        at_least = min(at_least, MOST_BACK_OFF_SECONDS)
        if dead is not None and now < dead.until:
            dead.until = max(dead.until, now + at_least)
            return
        back_off = FIRST_BACK_OFF_SECONDS if dead is None else _doubled(dead.back_off)
        self._dead.pop(key, None)
        if len(self._dead) >= MAX_DEAD_TARGETS:
            del self._dead[next(iter(self._dead))]  # the one that failed longest ago
        self._dead[key] = _Dead(now + max(back_off, at_least), back_off)

    def succeeded(self, transport: Transport, address: Address) -> None:
        """It answered: all is forgiven."""
        if self._dead:
            self._dead.pop((transport, address), None)

    def probe_is_out(self, place: Place, is_out: bool) -> None:
        """While a probe waits for its answer, no request is risked on the target."""
        dead = self._dead.get(place)
        if dead is not None:
            dead.probed = is_out

    def usable(self, targets: Sequence[Target], now: float) -> tuple[Target, ...]:
        """Those of `targets` worth a try, in their order; all dead: the one whose back-off ends first, once (N3)."""
        if not self._dead:
            return tuple(targets)
        alive = tuple(target for target in targets if self._until(target) <= now)
        return alive or tuple(sorted(targets, key=self._until)[:1])

    def tried(self, target: Target, now: float) -> None:
        """A request goes to `target`: was it dead, others do not follow before this one's fate is known."""
        dead = self._dead.get((target.transport, target.address)) if self._dead else None
        if dead is not None and dead.until <= now:
            dead.back_off = _doubled(dead.back_off)
            dead.until = now + dead.back_off

    def _until(self, target: Target) -> float:
        dead = self._dead.get((target.transport, target.address))
        if dead is None:
            return -math.inf
        return math.inf if dead.probed else dead.until


def _doubled(back_off: float) -> float:
    return min(2 * back_off, MOST_BACK_OFF_SECONDS)
