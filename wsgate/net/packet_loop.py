"""Reads many sockets in passes: one gevent watcher waits for a nested epoll over all of them (rules F2, F4)."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from itertools import chain, repeat
from typing import Any, Protocol

from gevent import get_hub

PACKETS_PER_PASS = 256
"""After so many packets other greenlets get their turn."""
PACKETS_PER_READ = (1, 4, 32)
"""How many packets one socket may give in the first, second and later rounds of a pass. One at first: to find a socket
empty costs more than to be told by the next poll that it is not."""
EVENTS_PER_POLL = 128
FEW_READY = 4
"""With more sockets ready than that each gives one packet a round."""
IDLE_TICKS = 4
"""After so many ticks without a packet the loop waits for the sockets again (rule F2)."""


class Readable(Protocol):
    """What is read in passes. Its descriptor stays the same while it is watched."""

    @property
    def socket(self) -> socket.socket:
        """The socket that is waited for."""

    def read(self, limit: int) -> int:
        """Take up to about `limit` packets; returns how many. Never blocks."""

    def read_errors(self) -> None:
        """Take the errors that wait at the socket. Never blocks."""


class PacketLoop:
    """Waits for sockets and reads them. `tick_seconds` is the longest that packets are gathered under load (rule F2),
    0 for not at all.

    `after_pass` is called when a pass is over; `failed` in the handler of whatever a reader raised.
    """

    def __init__(
        self,
        tick_seconds: float,
        clock: Callable[[], float],
        *,
        after_pass: Callable[[], None],
        failed: Callable[[], None],
    ) -> None:
        self.ready = 0
        """How many sockets the last poll found ready."""
        self._tick_seconds = tick_seconds
        self._clock = clock
        self._after_pass = after_pass
        self._failed = failed
        self._readers: dict[int, Readable] = {}
        self._epoll: select.epoll | None = None
        self._idle_ticks = 0
        self._last_pass = 0.0

    @property
    def is_running(self) -> bool:
        """True from `start` to `stop`."""
        return self._epoll is not None

    @property
    def is_gathering(self) -> bool:
        """True while packets are read by ticks instead of when they come (rule F2)."""
        return self.is_running and bool(self._ticker.active)

    def start(self) -> None:
        """Begin to wait, in the hub of this greenlet. Raises OSError."""
        loop = get_hub().loop
        self._epoll = select.epoll()
        self._watcher: Any = loop.io(self._epoll.fileno(), 1)
        self._ticker: Any = loop.timer(self._tick_seconds, repeat=self._tick_seconds)
        self._watcher.start(self._readable)

    def stop(self) -> None:
        """Wait for nothing any more; the sockets stay open."""
        if self._epoll is None:
            return
        for watcher in (self._watcher, self._ticker):
            watcher.stop()
            watcher.close()
        self._readers.clear()
        self._epoll.close()
        self._epoll = None

    def watch(self, one: Readable) -> None:
        """Read it whenever there is something to read, until it is forgotten. Raises OSError."""
        if self._epoll is not None:
            self._epoll.register(one.socket.fileno(), select.EPOLLIN)
            self._readers[one.socket.fileno()] = one

    def forget(self, one: Readable) -> None:
        """Read it no more; call it before its socket is closed, which ends the waiting."""
        self._readers.pop(one.socket.fileno(), None)

    def _drain(self) -> int:
        """Read what is there, at most about PACKETS_PER_PASS packets; returns how many it was."""
        readers, done = self._readers, 0
        limits = chain(PACKETS_PER_READ, repeat(PACKETS_PER_READ[-1]))
        while self._epoll is not None and done < PACKETS_PER_PASS:
            ready = self._epoll.poll(0, EVENTS_PER_POLL)
            self.ready = len(ready)
            limit = next(limits) if self.ready <= FEW_READY else 1
            before = done
            for descriptor, events in ready:
                reader = readers.get(descriptor)
                if reader is None:
                    continue
                try:
                    if events & select.EPOLLERR:
                        reader.read_errors()
                    done += reader.read(limit)
                except Exception:
                    # gevent stops a watcher whose callback raises, and with it all media (rule F4).
                    done += 1
                    self._failed()
            if done == before:
                break
        self._after_pass()
        return done

    def _readable(self) -> None:
        """Sockets are readable. Under load, when passes come closer than a tick, gather packets by ticks (F2).

        Never after a pass that did not read everything: to sleep on full sockets loses packets.
        """
        done = self._drain()
        now = self._clock()
        if done < PACKETS_PER_PASS and now - self._last_pass < self._tick_seconds:
            self._watcher.stop()
            self._idle_ticks = 0
            self._ticker.again(self._tick)
        self._last_pass = now

    def _tick(self) -> None:
        """One tick has passed: read until nothing is left, then sleep another; wait again after idle ones (F2)."""
        done = self._drain()
        self._idle_ticks = 0 if done else self._idle_ticks + 1
        if done >= PACKETS_PER_PASS or self._idle_ticks >= IDLE_TICKS:
            self._last_pass = self._clock() if done else 0.0
            self._ticker.stop()
            self._watcher.start(self._readable)
