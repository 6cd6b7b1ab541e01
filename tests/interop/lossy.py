"""A UDP relay that loses, doubles and delays packets as a seed says, and drops those that a test chooses."""

from __future__ import annotations

import enum
import heapq
import itertools
import random
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

Endpoint = tuple[str, int]


class Direction(enum.Enum):
    """Which way a packet goes: from the gateway to the server, or from the server to the gateway."""

    FORTH = "forth"
    BACK = "back"


class Packet(NamedTuple):
    """One packet as the relay saw it: seconds since the start, way, bytes, and how many copies were passed on."""

    at: float
    direction: Direction
    data: bytes
    copies: int


class LossyRelay:
    """Stands between `gateway` and `server` with one address towards each, so that nothing goes round it.

    What the gateway sends to `front` leaves for `server` from `back`; what the server sends to `back` leaves for the
    gateway from `front`. `loss` and `duplicate` are probabilities, `delay` the longest delay in seconds, all of them
    drawn from `seed`. `drop(direction, data)` says True for a packet that must be lost whatever was drawn.
    """

    def __init__(
        self,
        gateway: Endpoint,
        server: Endpoint,
        *,
        front: Endpoint,
        back: Endpoint,
        seed: int,
        loss: float = 0.0,
        duplicate: float = 0.0,
        delay: float = 0.0,
        drop: Callable[[Direction, bytes], bool] = lambda direction, data: False,
    ) -> None:
        self.packets: list[Packet] = []
        self.loss, self.duplicate, self.delay, self.drop = loss, duplicate, delay, drop
        self._random = {Direction.FORTH: random.Random(seed), Direction.BACK: random.Random(seed + 1)}
        self._front, self._back = _bound(front), _bound(back)
        self.front: Endpoint = self._front.getsockname()
        self.back: Endpoint = self._back.getsockname()
        self._ways = {
            self._front: (Direction.FORTH, gateway, self._back, server),
            self._back: (Direction.BACK, server, self._front, gateway),
        }
        self._queue: list[tuple[float, int, socket.socket, bytes, Endpoint]] = []
        self._number = itertools.count()
        self._start = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait = 0.05
            if self._queue:
                wait = min(wait, max(0.0, self._queue[0][0] - time.monotonic()))
            for readable in select.select([self._front, self._back], [], [], wait)[0]:
                self._read(readable)
            while self._queue and self._queue[0][0] <= time.monotonic():
                _, _, out, data, to = heapq.heappop(self._queue)
                out.sendto(data, to)

    def _read(self, readable: socket.socket) -> None:
        direction, expected, out, to = self._ways[readable]
        try:
            data, source = readable.recvfrom(65536)
        except ConnectionRefusedError:
            return
        if source != expected:
            return
        chance = self._random[direction]
        lost, doubled = chance.random() < self.loss, chance.random() < self.duplicate
        delays = [chance.random() * self.delay, chance.random() * self.delay]
        copies = 0 if lost or self.drop(direction, data) else 2 if doubled else 1
        now = time.monotonic()
        self.packets.append(Packet(now - self._start, direction, data, copies))
        for delay in delays[:copies]:
            heapq.heappush(self._queue, (now + delay, next(self._number), out, data, to))

    def count(self, direction: Direction, start: bytes = b"", cseq: bytes = b"", *, lost: bool = False) -> int:
        """How many packets beginning with `start`, of method `cseq`, were passed on (copies counted), or lost."""
        chosen = [
            p
            for p in list(self.packets)
            if p.direction is direction and p.data.startswith(start) and (not cseq or b" " + cseq + b"\r\n" in p.data)
        ]
        return sum(p.copies == 0 for p in chosen) if lost else sum(p.copies for p in chosen)

    def story(self) -> str:
        """One line per packet."""
        return "\n".join(f"{p.at:8.3f} {p.direction.value:5} x{p.copies} {_line(p.data)}" for p in list(self.packets))

    def close(self) -> None:
        """Stop the relay and close its sockets."""
        self._stopping.set()
        self._thread.join()
        self._front.close()
        self._back.close()


class DropFirst:
    """A `drop` that loses the first copy of each message (first line, CSeq, Call-ID) in either direction."""

    def __init__(self) -> None:
        self._seen: set[tuple[Direction, bytes, bytes, bytes]] = set()

    def __call__(self, direction: Direction, data: bytes) -> bool:
        lines = data.partition(b"\r\n\r\n")[0].split(b"\r\n")
        cseq = next((line for line in lines if line.lower().startswith(b"cseq:")), b"")
        call = next((line for line in lines if line.lower().startswith(b"call-id:")), b"")
        key = (direction, lines[0], cseq, call)
        first = key not in self._seen
        self._seen.add(key)
        return first


def _bound(endpoint: Endpoint) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(endpoint)
    return made


def _line(data: bytes) -> str:
    lines = data.partition(b"\r\n\r\n")[0].split(b"\r\n")
    cseq = next((line for line in lines if line.lower().startswith(b"cseq:")), b"")
    return (lines[0][:80] + b"  " + cseq).decode("latin-1")
