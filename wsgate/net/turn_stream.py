"""TURN clients on TCP and TLS streams (rules E1, E3, L4, P3): read frames, hand them to the relay engine, send.

A stream is one persistent watcher and no greenlet. A client that does not read loses media, which is dropped, and no
memory grows; one that leaves even answers unread is cut off.
"""

from __future__ import annotations

import heapq
import socket
from collections.abc import Callable
from typing import Any

from gevent import get_hub, ssl

from wsgate.addr import Address
from wsgate.errors import ProtocolError
from wsgate.guard import Guard
from wsgate.log import logger
from wsgate.metrics import Counters
from wsgate.net.clock import LoopTimer, now
from wsgate.net.relay import Relay
from wsgate.net.relay_sockets import Routes, SocketAddress
from wsgate.net.turn_connections import Taken
from wsgate.net.upgrade import Accepted
from wsgate.turn import stun
from wsgate.turn.effects import Client
from wsgate.turn.framing import FRAME_BYTES_MAX, PARTIAL_SECONDS, Frames

IDLE_SECONDS = 30.0
"""A stream without an allocation is closed so long after its last message."""

MEDIA_QUEUE_BYTES = 65536
"""Media is dropped while more waits for the client to read (rule E3)."""

ANSWER_QUEUE_BYTES = 2 * MEDIA_QUEUE_BYTES
"""A client that leaves so much unread, answers included, is cut off."""

SEND_BUFFER_BYTES = 131072
"""What the kernel may hold for a client: more would only be late."""

READ_BYTES = 65536
READS_PER_TURN = 4
"""Reads of one stream before the others get their turn."""

_READ, _WRITE = 1, 2
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class TurnStream:
    """One client on a stream; a Path of the relay engine."""

    __slots__ = (
        "_frames",
        "_heard",
        "_queue",
        "_reader",
        "_socket",
        "_streams",
        "_tls",
        "_writer",
        "claim",
        "client",
        "ended",
        "joined",
        "path",
        "routes",
    )

    def __init__(self, streams: TurnStreams, sock: Any, address: Address, claim: str) -> None:
        self.path = -1
        self.routes: Routes = {}
        self.claim = claim
        self.ended = False
        self.joined: Callable[[], None] | None = None
        """Ends the connection that this stream was given to (RFC 6062)."""
        streams.relay.open_path(self)
        self.client = Client(self.path, address)
        self._streams = streams
        self._socket = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._frames = Frames(stun.DATAGRAM_BYTES_MAX)
        self._heard = now()
        self._queue = bytearray()
        loop = get_hub().loop
        self._reader: Any = loop.io(sock.fileno(), _READ)
        self._writer: Any = loop.io(sock.fileno(), _WRITE)

    def begin(self, data: bytes) -> None:
        """Serve from now on; `data` was read already."""
        self._reader.start(self._readable)
        if data:
            self._receive(data)
        if self._tls and not self.ended:
            # What TLS has decrypted already no watcher tells of.
            self._readable()

    def sendto(self, data: bytes | memoryview, _address: SocketAddress) -> int:
        """Media: ChannelData padded to 4 with zeros (rule P3), or a Data indication. Raises OSError when dropped."""
        if self.ended or len(self._queue) > MEDIA_QUEUE_BYTES:
            self._streams.counters.count("turn_stream_media_dropped")
            raise BlockingIOError
        self._send(bytes(data) + bytes(-len(data) % 4))
        return len(data)

    def answer(self, data: bytes, _address: SocketAddress) -> None:
        """A STUN answer: it waits where media would be dropped."""
        if self.ended or self.joined is not None or len(self._queue) > ANSWER_QUEUE_BYTES:
            return
        self._send(data)
        if len(self._queue) > ANSWER_QUEUE_BYTES:
            self._streams.counters.count("turn_stream_queue_cut")
            self._end_soon()

    def deadline(self) -> float | None:
        """When the stream is closed for half a frame (rule E3) or for doing nothing; None: not for the time being."""
        if self.joined is not None:
            return None
        if self._frames.partial_since is not None:
            return self._frames.partial_since + PARTIAL_SECONDS
        has_allocation = self._streams.relay.server.has_allocation(self.client)
        return None if has_allocation else self._heard + IDLE_SECONDS

    def end(self) -> None:
        """Close TCP now and free what the client held (rule L4)."""
        if self.ended:
            return
        self.ended = True
        for watcher in (self._reader, self._writer):
            watcher.stop()
            watcher.close()
        self._queue.clear()
        self._socket.close()
        self._streams.finish(self)
        if self.joined is not None:
            self.joined()

    def hand_over(self, end: Callable[[], None]) -> Taken:
        """Give the socket away; `end` is called when this stream is ended, and whoever has it calls `end` of this."""
        self.joined = end
        for watcher in (self._reader, self._writer):
            watcher.stop()
        taken = Taken(self._socket, self._frames.take(), bytes(self._queue))
        self._queue.clear()
        return taken

    def _end_soon(self) -> None:
        """The engine may be in the middle of a pass over the client's relay sockets."""
        get_hub().loop.run_callback(self.end)

    def _readable(self) -> None:
        """Runs in the hub: take what is there, a bounded part of it at once."""
        view = self._streams.read_view
        for _ in range(READS_PER_TURN):
            if self.ended or self.joined is not None:
                return
            try:
                count = self._socket.recv_into(view)
            except _AGAIN:
                return
            except OSError:
                count = 0
            if not count:
                self.end()
                return
            self._receive(view[:count])
        if self._tls and not self.ended and self.joined is None and self._socket.pending():
            get_hub().loop.run_callback(self._readable)

    def _receive(self, data: bytes | memoryview) -> None:
        streams, frames = self._streams, self._frames
        relay, client = streams.relay, self.client
        while True:
            try:
                whole = frames.receive(data, now())
            except ProtocolError as error:
                streams.counters.count("turn_stream_malformed")
                logger.debug("turn, %s: %s", client.address, error)
                self.end()
                return
            if whole:
                self._heard = now()
            for frame in whole:
                if frame[0] < 0x40:
                    relay.stun_message(frame, client, FRAME_BYTES_MAX, is_stream=True)
                else:
                    relay.channel_data(frame, self, client.address)
            if not frames.is_held or self.ended or self.joined is not None:
                break
            data = b""
        if frames.bytes_max < FRAME_BYTES_MAX and relay.server.has_allocation(client):
            frames.bytes_max = FRAME_BYTES_MAX

    def _send(self, data: bytes) -> None:
        if not self._queue:
            sent = self._try_send(data)
            if sent == len(data):
                return
            data = data[sent:]
            if not self.ended:
                self._writer.start(self._writable)
        self._queue += data

    def _try_send(self, data: bytes | bytearray) -> int:
        try:
            return int(self._socket.send(data))
        except _AGAIN:
            return 0
        except OSError:
            self._end_soon()
            return 0

    def _writable(self) -> None:
        """Runs in the hub."""
        while self._queue and (sent := self._try_send(self._queue)):
            del self._queue[:sent]
        if not self._queue and not self.ended:
            self._writer.stop()


class TurnStreams:
    """The streams of a worker's TURN server; `speak` is a row of a Port."""

    def __init__(self, relay: Relay, guard: Guard, counters: Counters) -> None:
        self.relay = relay
        self.counters = counters
        self.read_view = memoryview(bytearray(READ_BYTES))
        self._guard = guard
        self._open: set[TurnStream] = set()
        self._timers: list[tuple[float, int, TurnStream]] = []
        self._serial = 0
        self._loop_timer = LoopTimer(self._tick)

    def __len__(self) -> int:
        return len(self._open)

    def speak(self, accepted: Accepted) -> None:
        """Take over a connection whose first byte is STUN's, and with it its place in the guard."""
        guard, host = self._guard, accepted.peer.host
        accepted.limit(None)
        if not accepted.claim:
            if not guard.claim(host):
                self.counters.count("listener_dropped_address")
                return
            accepted.claim = host
        if guard.overloaded or guard.crowded(host):
            self.counters.count("turn_streams_refused")
            return
        data, sock = accepted.head.take(), accepted.socket
        accepted.socket = None
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(0.0)
        else:
            # Without gevent's wrapper and its two watchers.
            sock = socket.socket(sock.family, socket.SOCK_STREAM, 0, sock.detach())
            sock.setblocking(False)
        self._begin(TurnStream(self, sock, accepted.peer, accepted.claim), data)

    def adopt(self, sock: socket.socket, client: Address) -> None:
        """Serve a client's stream that another worker carries to us, for a connection of ours (rule C1)."""
        guard = self._guard
        if not guard.open():
            self.counters.count("listener_dropped_connections")
            sock.close()
            return
        if guard.overloaded or not guard.claim(client.host):
            self.counters.count("turn_streams_refused")
            guard.close()
            sock.close()
            return
        sock.setblocking(False)
        self._begin(TurnStream(self, sock, client, client.host), b"")

    def _begin(self, stream: TurnStream, data: bytes) -> None:
        self._open.add(stream)
        self.counters.count("turn_streams_opened")
        self._watch(stream)
        stream.begin(data)

    def stop(self) -> None:
        """Close every stream."""
        for stream in list(self._open):
            stream.end()
        self._loop_timer.stop()
        self._timers.clear()

    def finish(self, stream: TurnStream) -> None:
        """The socket of `stream` is closed."""
        self._open.discard(stream)
        self.relay.close_path(stream.client)
        self._guard.release(stream.claim)
        self._guard.close()

    def _watch(self, stream: TurnStream) -> None:
        """Look at the deadline of `stream` from time to time; each has one entry of the heap."""
        self._serial += 1
        heapq.heappush(self._timers, (now() + IDLE_SECONDS, self._serial, stream))
        self._loop_timer.arm(self._timers[0][0])

    def _tick(self) -> None:
        """Runs in the hub."""
        timers, at = self._timers, now()
        while timers and timers[0][0] <= at:
            _, _, stream = heapq.heappop(timers)
            if stream.ended:
                continue
            deadline = stream.deadline()
            if deadline is not None and deadline <= at:
                self.counters.count("turn_stream_timeouts")
                stream.end()
                continue
            self._serial += 1
            heapq.heappush(timers, (deadline or at + IDLE_SECONDS, self._serial, stream))
        self._loop_timer.arm(timers[0][0] if timers else None)
