"""TCP between clients of TCP allocations and their peers (RFC 6062; rule C1): listen, connect, join.

A side that does not read stops the reading of the other: at most one read of READ_BYTES waits in each direction,
whatever the other side sends. Until a client claims a connection, what its peer sends stays in the kernel.
"""

from __future__ import annotations

import errno
import heapq
import socket
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from gevent import get_hub

from wsgate.addr import Address, canonical_host
from wsgate.metrics import Counters
from wsgate.net.clock import LoopTimer
from wsgate.net.turn_listening import EXHAUSTED, KERNEL_BUFFER_BYTES, Listening, bound
from wsgate.net.turn_side import Side
from wsgate.turn.bandwidth import Bucket
from wsgate.turn.effects import Client, CloseConnection, Effect, JoinConnection, OpenConnection, PassStream
from wsgate.turn.server import TurnServer

READ_BYTES = 65536
"""What may wait for one side of a connection."""
HALF_CLOSED_SECONDS = 30.0
"""When one side has ended, the other may go on as long as no such time passes without a byte."""

BANDWIDTH_CHUNK_BYTES = 4096
"""A side over its user's bandwidth is not read until so much may come (rule Q1)."""
BANDWIDTH_WAIT_MAX = 1.0
"""Seconds after which it looks again at any rate."""

_WRITE = 2


class Taken(NamedTuple):
    """A client's stream that carries a connection from now on: what was read of it already, and what it is still to
    be sent, the answer to ConnectionBind among it."""

    socket: Any
    unread: bytes
    unsent: bytes


@runtime_checkable
class ClientStream(Protocol):
    """The stream of a client."""

    def hand_over(self, end: Callable[[], None]) -> Taken:
        """Give its socket; `end` is called when the stream is ended by others."""

    def end(self) -> None:
        """Close its socket."""


class Engine(Protocol):
    """The relay engine as it is seen from here."""

    server: TurnServer
    counters: Counters

    def apply(self, effects: Iterable[Effect]) -> None:
        """Do what the server decided."""

    def now(self) -> float:
        """Monotonic seconds."""

    def stream_of(self, client: Client) -> ClientStream | None:
        """The stream of a client that has one."""

    def inside(self, peer: Address) -> tuple[str, int]:
        """Where a peer really is."""

    def outside(self, host: str) -> str:
        """How clients know a host."""


class TurnConnections:
    """Everything of one engine that is TCP with peers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.read_view = memoryview(bytearray(READ_BYTES))
        self._listening: dict[Address, Listening] = {}
        self._peers: dict[int, _Peer] = {}
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._timer = LoopTimer(self._tick)
        self._passed = 0
        self.pass_stream: Callable[[int, Address, socket.socket], bool] | None = None
        """Gives a worker the stream of the client at an address; False: it cannot be had."""

    def __len__(self) -> int:
        return len(self._peers)

    def listen(self, relays: Iterable[Address]) -> None:
        """Take the connections of peers at these relayed addresses, all or none. Raises OSError."""
        opened: dict[Address, Listening] = {}
        try:
            for relay in relays:
                opened[relay] = Listening(relay, self.accepted)
        except OSError:
            for listening in opened.values():
                listening.close()
            raise
        self._listening.update(opened)

    def begin(self, relay: Address, client: Client) -> None:
        """From now on what connects to `relay` is for `client`."""
        self._listening[relay].client = client

    def close_listener(self, relay: Address) -> bool:
        """Take no more; False where nothing of this kind is there."""
        listening = self._listening.pop(relay, None)
        if listening is not None:
            listening.close()
        return listening is not None

    def open(self, effect: OpenConnection) -> list[Effect]:
        """Begin to connect from the relayed address; the server hears of the end of it."""
        try:
            sock = bound(effect.relay, shared=True)
        except OSError as problem:
            exhausted = problem.errno in EXHAUSTED
            return self.engine.server.connect_failed(effect.connection, self.engine.now(), exhausted=exhausted)
        error = sock.connect_ex(self.engine.inside(effect.peer))
        if error not in (0, errno.EINPROGRESS):
            sock.close()
            return self.engine.server.connect_failed(effect.connection, self.engine.now())
        self._peers[effect.connection] = _Peer(self, effect.connection, sock)
        self._peers[effect.connection].wait()
        return []

    def accepted(self, sock: socket.socket, source: tuple[Any, ...], client: Client | None) -> None:
        """A peer has connected: the server judges it."""
        engine = self.engine
        number = 0
        effects: list[Effect] = []
        if client is not None:
            peer = Address(engine.outside(canonical_host(source[0])), source[1])
            number, effects = engine.server.accepted(client, peer, engine.now())
        if number:
            self._peers[number] = _Peer(self, number, sock)
        else:
            sock.close()
        engine.apply(effects)

    def join(self, effect: JoinConnection) -> None:
        """Let the bytes flow."""
        peer, stream = self._peers.get(effect.connection), self.engine.stream_of(effect.client)
        if peer is None or stream is None:
            self.over(effect.connection)
            return
        peer.join(stream, self.engine.server.bandwidth_of(effect.user))

    def pass_on(self, effect: PassStream) -> None:
        """The connection is another worker's: it gets one end of two joined sockets, the client's stream the other.

        So TLS ends here, where its keys are, and back-pressure and half-close reach from end to end.
        """
        stream = self.engine.stream_of(effect.client)
        if stream is None or self.pass_stream is None:
            return
        try:
            near, far = socket.socketpair()
        except OSError:
            self._not_passed(stream)
            return
        near.setblocking(False)
        with far:
            done = self.pass_stream(effect.worker, effect.client.address, far)
        if not done:
            near.close()
            self._not_passed(stream)
            return
        self._passed += 1
        # Below all CONNECTION-IDs: the other worker knows of them, our server does not.
        peer = self._peers[-self._passed] = _Peer(self, -self._passed, near)
        peer.join(stream, None, effect.request)

    def _not_passed(self, stream: ClientStream) -> None:
        self.engine.counters.count("turn_streams_not_passed")
        # Its frames are being read just now.
        get_hub().loop.run_callback(stream.end)

    def close(self, effect: CloseConnection) -> None:
        """The server wants it closed."""
        peer = self._peers.pop(effect.connection, None)
        if peer is not None:
            peer.close()

    def over(self, number: int) -> None:
        """A connection has ended by itself."""
        peer = self._peers.pop(number, None)
        if peer is not None:
            peer.close()
            self.engine.server.connection_closed(number)

    def stop(self) -> None:
        """Close everything."""
        for listening in self._listening.values():
            listening.close()
        self._listening.clear()
        for number in list(self._peers):
            self.over(number)
        self._timer.stop()
        self._waiting.clear()

    def later(self, at: float, do: Callable[[], None]) -> None:
        """Call `do` at this time."""
        self._serial += 1
        heapq.heappush(self._waiting, (at, self._serial, do))
        self._timer.arm(self._waiting[0][0])

    def _tick(self) -> None:
        """Runs in the hub."""
        at = self.engine.now()
        while self._waiting and self._waiting[0][0] <= at:
            heapq.heappop(self._waiting)[2]()
        self._timer.arm(self._waiting[0][0] if self._waiting else None)


class _Peer:
    """A connection with a peer: on its way, waiting to be claimed, or joined to a client's stream."""

    def __init__(self, owner: TurnConnections, number: int, sock: socket.socket) -> None:
        self._owner = owner
        self._number = number
        self._socket = sock
        self._watcher: Any = None
        self._sides: tuple[Side, Side] | None = None
        self._stream: ClientStream | None = None
        self._linger: Any = None
        self._moved = 0
        self.bucket: Bucket | None = None
        """The bandwidth of the user, None where nothing bounds it."""

    def wait(self) -> None:
        """Until the connection stands or is refused."""
        self._watcher = get_hub().loop.io(self._socket.fileno(), _WRITE)
        self._watcher.start(self._connected)

    def _connected(self) -> None:
        """Runs in the hub."""
        self._stop_watcher()
        engine = self._owner.engine
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            effects = engine.server.connect_failed(self._number, engine.now())
            self._owner.over(self._number)
        else:
            effects = engine.server.connected(self._number, engine.now())
        engine.apply(effects)

    def join(self, stream: ClientStream, bucket: Bucket | None, first: bytes = b"") -> None:
        """Move bytes between peer and client from now on; `first` goes to the peer in front of everything."""
        self._stream = stream
        self.bucket = bucket
        taken = stream.hand_over(self.end)
        self.spend(len(taken.unread))
        for sock in (self._socket, taken.socket):
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, KERNEL_BUFFER_BYTES)
        client, peer = Side(self, taken.socket), Side(self, self._socket)
        self._sides = client, peer
        self._linger = get_hub().loop.timer(HALF_CLOSED_SECONDS, repeat=HALF_CLOSED_SECONDS)
        client.start(peer, taken.unsent)
        peer.start(client, first + taken.unread)

    def close(self) -> None:
        """Close both sides."""
        self._stop_watcher()
        for side in self._sides or ():
            side.stop()
        if self._linger is not None:
            self._linger.stop()
            self._linger.close()
            self._linger = None
        self._socket.close()
        if self._stream is not None:
            self._stream.end()

    def half_closed(self) -> None:
        """One side has ended; the other has its time."""
        if self._linger is not None:
            self._moved = self._total()
            self._linger.start(self._lingered)

    def end(self) -> None:
        """It is over."""
        self._owner.over(self._number)

    def room(self, resume: Callable[[], None]) -> int:
        """How much may be read now; 0 while the bandwidth is used up, and `resume` is called when it may not be."""
        if self.bucket is None:
            return READ_BYTES
        at = self._owner.engine.now()
        allowed = self.bucket.available(at)
        wait = self.bucket.seconds_until(BANDWIDTH_CHUNK_BYTES)
        if wait > 0.0:
            self._owner.engine.counters.count("turn_bandwidth_waits")
            self._owner.later(at + min(wait, BANDWIDTH_WAIT_MAX), resume)
            return 0
        return min(allowed, READ_BYTES)

    def spend(self, size: int) -> None:
        """So much was read; what is over the bandwidth already cannot be taken back."""
        if self.bucket is not None:
            at = self._owner.engine.now()
            self.bucket.take(min(size, self.bucket.available(at)), at)

    @property
    def view(self) -> memoryview:
        """What to read into."""
        return self._owner.read_view

    def _lingered(self) -> None:
        """Runs in the hub."""
        moved, self._moved = self._moved, self._total()
        if moved == self._moved:
            self.end()

    def _total(self) -> int:
        return sum(side.moved_bytes for side in self._sides or ())

    def _stop_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
