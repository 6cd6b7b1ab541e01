"""The relay ports: free ones, those that rest after a user, pairs for EVEN-PORT (RFC 8656 §7.2; L4). Pure."""

from __future__ import annotations

from array import array
from collections.abc import Callable

PORT_REST_SECONDS = 120.0
"""How long a freed port serves nobody but its last user (rule L4)."""
PORTS_RESTING_PER_USER = 64
"""A user with that many resting ports gets those first: opening and freeing does not use up the ports of others."""
EVEN_PORT_DRAWS = 64


class Ports:
    """The relay ports of one address: drawn at random, resting after use (rules L2, L4). Constant time per draw."""

    def __init__(self, low: int, high: int, random_bytes: Callable[[int], bytes]) -> None:
        self._low = low
        self._free = array("H", range(low, high + 1))
        self._place = array("i", range(high - low + 1))
        self._random_bytes = random_bytes
        self._resting: dict[int, tuple[float, str]] = {}
        self._resting_of: dict[str, dict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._free)

    def draw(self, user: str, now: float) -> int | None:
        """A random port for `user`, None when all are in use or resting for others."""
        self._release(now)
        own = self._resting_of.get(user, {})
        if self._free and len(own) < PORTS_RESTING_PER_USER:
            return self._take(self._free[self._index(len(self._free))])
        if own:
            port = next(iter(own))
            self._wake(port)
            return port
        return None

    def draw_even(self, user: str, now: float, *, pair: bool) -> int | None:
        """A random even port, with `pair` the next one free and taken too (EVEN-PORT, RFC 8656 §7.2)."""
        self._release(now)
        own = self._resting_of.get(user, {})
        if len(own) >= PORTS_RESTING_PER_USER:
            for port in own:
                if not port & 1 and (not pair or port + 1 in own):
                    self._wake(port)
                    if pair:
                        self._wake(port + 1)
                    return port
            return None
        if not self._free:
            return None
        draws = (self._free[self._index(len(self._free))] & ~1 for _ in range(EVEN_PORT_DRAWS))
        for port in (*draws, *(port for port in self._free if not port & 1)):
            if self._is_free(port) and (not pair or self._is_free(port + 1)):
                if pair:
                    self._take(port + 1)
                return self._take(port)
        return None

    def rest(self, port: int, user: str, now: float) -> None:
        """Give a port back; for PORT_REST_SECONDS only `user` may get it (nobody when empty: it is used elsewhere)."""
        self._resting[port] = (now + PORT_REST_SECONDS, user)
        if user:
            self._resting_of.setdefault(user, {})[port] = None

    def _index(self, count: int) -> int:
        return int.from_bytes(self._random_bytes(4), "big") % count

    def _is_free(self, port: int) -> bool:
        return 0 <= port - self._low < len(self._place) and self._place[port - self._low] >= 0

    def _take(self, port: int) -> int:
        place = self._place[port - self._low]
        last = self._free.pop()
        if last != port:
            self._free[place] = last
            self._place[last - self._low] = place
        self._place[port - self._low] = -1
        return port

    def _wake(self, port: int) -> None:
        _, user = self._resting.pop(port)
        if user:
            del self._resting_of[user][port]
            if not self._resting_of[user]:
                del self._resting_of[user]

    def _release(self, now: float) -> None:
        while self._resting and self._resting[port := next(iter(self._resting))][0] <= now:
            self._wake(port)
            self._place[port - self._low] = len(self._free)
            self._free.append(port)
