"""TCP allocations: connections with peers, and the clients' streams that carry them (RFC 6062; rule C1). Pure.

A connection begins with a Connect of the client or with a peer that connects to the relayed address; the client then
opens a stream of its own for it and claims it by ConnectionBind. What moves the bytes is the engine's.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from wsgate.addr import Address
from wsgate.metrics import Counters
from wsgate.turn import stun
from wsgate.turn.allocation import Allocation
from wsgate.turn.answers import Answers, Request
from wsgate.turn.auth import same_user
from wsgate.turn.bandwidth import Buckets
from wsgate.turn.effects import CloseConnection, Effect, JoinConnection, OpenConnection, PassStream, Reply
from wsgate.turn.stun import MessageClass, Method
from wsgate.turn.values import Family, family_of

CONNECT_SECONDS = 30.0
"""So long a peer has to take a connection (RFC 6062 §5.2)."""
BIND_SECONDS = 30.0
"""So long a client has to claim one (RFC 6062 §5.2, §5.3)."""
_ID_DRAWS = 16
_ID_END = 1 << 32
DEADLINES_STALE_MAX = 64
"""Deadlines of connections that are over, besides two for each that is not: peers come and go faster than 30 s."""


class State(enum.Enum):
    """Where a connection stands."""

    CONNECTING = "connecting"
    PENDING = "pending"
    BOUND = "bound"
    CLOSED = "closed"


class Event(enum.Enum):
    """What happens to a connection."""

    CONNECTED = "connected"
    FAILED = "failed"
    CLAIMED = "claimed"
    TIMED_OUT = "timed out"
    ENDED = "ended"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.CONNECTING, Event.CONNECTED): State.PENDING,  # RFC 6062 §5.2, the success answer
    (State.CONNECTING, Event.FAILED): State.CLOSED,  # RFC 6062 §5.2, 447
    (State.CONNECTING, Event.TIMED_OUT): State.CLOSED,  # RFC 6062 §5.2, 447
    (State.CONNECTING, Event.ENDED): State.CLOSED,  # RFC 6062 §5.1: with its allocation
    (State.PENDING, Event.CLAIMED): State.BOUND,  # RFC 6062 §5.4
    (State.PENDING, Event.TIMED_OUT): State.CLOSED,  # RFC 6062 §5.2, §5.3
    (State.PENDING, Event.ENDED): State.CLOSED,  # RFC 6062 §5.1: with its allocation
    (State.BOUND, Event.ENDED): State.CLOSED,  # RFC 6062 §5.5
}


class Connection:
    """One connection with a peer. `request` is the Connect that waits for its answer, None where the peer came."""

    __slots__ = ("allocation", "number", "peer", "request", "state")

    def __init__(self, number: int, allocation: Allocation, peer: Address, request: Request | None) -> None:
        self.number = number
        self.allocation = allocation
        self.peer = peer
        self.request = request
        self.state = State.PENDING if request is None else State.CONNECTING

    def advance(self, event: Event) -> None:
        """Go where the table says. Raises KeyError for what it does not have."""
        self.state = TRANSITIONS[self.state, event]


class ConnectionLimits(NamedTuple):
    """How many connections one allocation, one user and all together may have; Connects of a user in a second (Q1)."""

    per_allocation: int
    per_user: int
    total: int
    connects_per_second: int


class Connections:
    """All connections of a server by their CONNECTION-ID, and one queue of their deadlines."""

    def __init__(
        self,
        limits: ConnectionLimits,
        answers: Answers,
        random_bytes: Callable[[int], bytes],
        counters: Counters,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """`share` is the number of this worker and how many there are: a CONNECTION-ID says whose it is."""
        self._worker, self._workers = share
        self._limits = limits
        self._answers = answers
        self._random_bytes = random_bytes
        self._counters = counters
        self._held: Counter[str] = Counter()
        self._rates = Buckets(limits.connects_per_second, burst_min=1)
        self._connections: dict[int, Connection] = {}
        # Both waits are as long as each other, so that a queue is in the order of time.
        self._deadlines: deque[tuple[float, Connection, State]] = deque()

    def __len__(self) -> int:
        return len(self._connections)

    def connect(self, request: Request, allocation: Allocation, peer: Address) -> list[Effect]:
        """A Connect to a peer that is allowed (RFC 6062 §5.2)."""
        if peer in allocation.connections:
            return self._answers.error(request, 446)
        if not self._rates.of(allocation.user).take(1, request.now):
            # A relay is no port scanner.
            self._counters.count("turn_connects_limited")
            return self._answers.error(request, 508)
        relay = allocation.relay_for(peer.host)
        connection = self._begin(allocation, peer, request) if relay is not None else None
        if relay is None or connection is None:
            return self._answers.error(request, 508)
        request.message.forget_values()
        self._wait(connection, request.now + CONNECT_SECONDS)
        return [OpenConnection(connection.number, relay, peer)]

    def connected(self, number: int, now: float) -> list[Effect]:
        """The peer has taken the connection: the client learns its CONNECTION-ID."""
        connection = self._connections.get(number)
        if connection is None or connection.request is None:
            return []
        request, connection.request = connection.request, None
        connection.advance(Event.CONNECTED)
        self._wait(connection, now + BIND_SECONDS)
        return self._answers.success(request._replace(now=now), (stun.CONNECTION_ID(number),))

    def connect_failed(self, number: int, now: float, *, exhausted: bool) -> list[Effect]:
        """The peer cannot be reached, or no port is left for it: 447; no descriptor (`exhausted`): 508."""
        connection = self._connections.get(number)
        code = 508 if exhausted else 447
        return [] if connection is None else self._fail(connection, Event.FAILED, now, code)

    def accepted(self, allocation: Allocation, peer: Address, now: float) -> tuple[int, list[Effect]]:
        """A peer that may has connected (RFC 6062 §5.3): the client is told.

        Returns the number of the connection, 0 where it is to be closed, and effects.
        """
        connection = self._begin(allocation, peer, None)
        if connection is None:
            self._counters.count("turn_connections_refused")
            return 0, []
        self._wait(connection, now + BIND_SECONDS)
        data = stun.encode(
            Method.CONNECTION_ATTEMPT,
            MessageClass.INDICATION,
            self._random_bytes(stun.TRANSACTION_ID_BYTES),
            (stun.XOR_PEER_ADDRESS(peer), stun.CONNECTION_ID(connection.number)),
        )
        return connection.number, [Reply(allocation.client, data)]

    def claim(self, request: Request, number: int | None) -> list[Effect]:
        """A ConnectionBind on a stream of its own (RFC 6062 §5.4), by the user of the allocation."""
        if number is not None and number % self._workers != self._worker:
            # The kernel spreads a client's streams over the workers; that one judges the request again.
            self._counters.count("turn_streams_passed")
            return [PassStream(number % self._workers, request.client, request.message.data)]
        connection = None if number is None else self._connections.get(number)
        if connection is None or connection.state is not State.PENDING:
            return self._answers.error(request, 400)
        if not same_user(connection.allocation.user, request.user):
            return self._answers.error(request, 441)
        connection.advance(Event.CLAIMED)
        self._counters.count("turn_connections_joined")
        answer = self._answers.success(request)
        return [*answer, JoinConnection(connection.number, request.client, connection.allocation.user)]

    def allocation_of(self, number: int | None) -> Allocation | None:
        """The allocation of a connection that can be claimed here."""
        connection = None if number is None else self._connections.get(number)
        return connection.allocation if connection is not None and connection.state is State.PENDING else None

    def closed(self, number: int) -> None:
        """The engine has closed a connection: one of its two sides ended (RFC 6062 §5.5)."""
        connection = self._connections.get(number)
        if connection is not None:
            self._end(connection, Event.ENDED)

    def end_of(self, allocation: Allocation, family: Family | None = None) -> list[Effect]:
        """The allocation is over, or its address of one family, and with it all connections (RFC 6062 §5.1, §5.5)."""
        ending = [number for peer, number in allocation.connections.items() if family in (None, family_of(peer.host))]
        return [self._close(number) for number in ending]

    def reconsider(self, allocation: Allocation, allowed: Callable[[Address], bool]) -> list[Effect]:
        """End what new lists of peers refuse (rules P5, P6)."""
        refused = [number for peer, number in allocation.connections.items() if not allowed(peer)]
        return [self._close(number) for number in refused]

    def next_timer(self) -> float | None:
        """When `handle_timer` is to be called, None for not at all."""
        return self._deadlines[0][0] if self._deadlines else None

    def handle_timer(self, now: float) -> list[Effect]:
        """Give up what waited too long: 447, or nothing to a client that did not claim (RFC 6062 §5.2, §5.3)."""
        effects: list[Effect] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, connection, state = self._deadlines.popleft()
            if connection.state is not state:
                continue
            self._counters.count("turn_connections_timed_out")
            effects.append(CloseConnection(connection.number))
            effects += self._fail(connection, Event.TIMED_OUT, now, 447)
        return effects

    def _begin(self, allocation: Allocation, peer: Address, request: Request | None) -> Connection | None:
        """None where a limit is reached, or the same peer is connected already."""
        limits = self._limits
        full = (
            len(allocation.connections) >= limits.per_allocation
            or self._held[allocation.user] >= limits.per_user
            or len(self) >= limits.total
        )
        number = 0 if full or peer in allocation.connections else self._draw()
        if not number:
            return None
        connection = Connection(number, allocation, peer, request)
        self._connections[number] = connection
        allocation.connections[peer] = number
        self._held[allocation.user] += 1
        return connection

    def _draw(self) -> int:
        """A CONNECTION-ID that is not in use and tells this worker from the others; 0 when none was found."""
        count = self._workers
        draws = (int.from_bytes(self._random_bytes(4), "big") // count * count for _ in range(_ID_DRAWS))
        mine = (number + self._worker for number in draws if number < _ID_END - count)
        return next((number for number in mine if number and number not in self._connections), 0)

    def _wait(self, connection: Connection, deadline: float) -> None:
        while self._deadlines and self._deadlines[0][1].state is not self._deadlines[0][2]:
            self._deadlines.popleft()
        self._deadlines.append((deadline, connection, connection.state))
        if len(self._deadlines) > 2 * len(self) + DEADLINES_STALE_MAX:
            self._deadlines = deque(entry for entry in self._deadlines if entry[1].state is entry[2])

    def _close(self, number: int) -> Effect:
        self._end(self._connections[number], Event.ENDED)
        return CloseConnection(number)

    def _fail(self, connection: Connection, event: Event, now: float, code: int) -> list[Effect]:
        request = connection.request
        self._end(connection, event)
        return [] if request is None else self._answers.error(request._replace(now=now), code)

    def _end(self, connection: Connection, event: Event) -> None:
        connection.advance(event)
        connection.request = None
        del self._connections[connection.number]
        allocation = connection.allocation
        del allocation.connections[connection.peer]
        self._held[allocation.user] -= 1
        if not self._held[allocation.user]:
            del self._held[allocation.user]
