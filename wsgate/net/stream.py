"""WebSocket connections on their sockets after the upgrade: read, feed the machine, hand over; send without blocking.

An idle connection is one persistent watcher and no greenlet. What becomes readable is queued and drained by a reader
greenlet; a handler that blocks holds up its own connection only, because another reader takes the rest.
"""

from __future__ import annotations

import enum
import heapq
import os
import socket
import struct
from typing import Any, NamedTuple, Protocol

from gevent import get_hub, ssl

from wsgate.addr import Address
from wsgate.guard import Guard, MessageRate, Verdict
from wsgate.identity import Admitted
from wsgate.log import logger
from wsgate.metrics import Counters
from wsgate.net.clock import LoopTimer, now
from wsgate.net.readers import Readers
from wsgate.ws.connection import Closed, Connection, Event, Message, Role, State, WebSocketSettings
from wsgate.ws.frames import CloseCode

READ_BYTES = 65536
"""Of one read."""

READS_PER_TURN = 4
"""Reads of one connection before the others get their turn."""

LINGER_TIMEOUT = 2.0
"""Seconds for the last bytes to leave and for the peer to close TCP; until then what it sends is thrown away."""

_READ, _WRITE = 1, 2
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Upgrade(NamedTuple):
    """The request that became a WebSocket. It is not kept; whoever needs a part of it keeps that part."""

    remote: Address
    """The client's real address; port 0 where only a relay knows it."""
    secure: bool
    """TLS here or at the relay."""
    host: str
    """Host asked for, lower case, with port if given."""
    headers: tuple[tuple[str, str], ...]
    """Name and value of every field of the GET."""
    admitted: Admitted = Admitted()
    """The identity that it showed, where one is asked for, and the header lines for backends."""


class FlowHandler(Protocol):
    """Who gets the messages. Nothing here may block for long; `closed` is the last call for a stream and comes once."""

    def opened(self, stream: WebSocketStream, upgrade: Upgrade) -> None:
        """A browser is there."""

    def message(self, stream: WebSocketStream, data: bytes) -> None:
        """One WebSocket message; keep-alives are answered before (rule H5)."""

    def refused(self, stream: WebSocketStream, data: bytes) -> None:
        """One message above messages_per_second: 503 with Retry-After to a request, nothing else (table A)."""

    def closed(self, stream: WebSocketStream) -> None:
        """The stream is gone; sending on it does nothing."""


class _Phase(enum.Enum):
    OPEN = 0
    LINGERING = 1  # our last bytes leave, what still comes is thrown away
    ENDED = 2  # the socket is closed


class WebSocketStream:
    """One browser. `flow` belongs to the handler, which may keep there what it wants to find again."""

    __slots__ = (
        "_connection",
        "_deadline",
        "_phase",
        "_queue",
        "_rate",
        "_socket",
        "_streams",
        "_watcher",
        "_writer",
        "busy",
        "flow",
        "queued",
        "remote",
        "secure",
        "told",
    )

    def __init__(self, streams: Streams, sock: Any, upgrade: Upgrade) -> None:
        self.flow: Any = None
        self.remote = upgrade.remote
        self.secure = upgrade.secure
        self._streams = streams
        self._socket = sock
        self._connection = Connection(Role.SERVER, streams.settings, os.urandom, now())
        self._rate = MessageRate()
        self._phase = _Phase.OPEN
        self._queue: bytearray | None = None
        self.queued = False
        self.busy = False
        self.told = False
        self._deadline = 0.0
        self._writer: Any = None
        self._watcher: Any = get_hub().loop.io(sock.fileno(), _READ)

    @property
    def is_open(self) -> bool:
        """True until either side began to close."""
        return self._phase is _Phase.OPEN and self._connection.state is State.OPEN

    def send(self, data: bytes) -> bool:
        """Send one message, text when it is valid UTF-8, else binary (rule H4). Never blocks.

        False: the stream is closing, or was cut off now because the peer does not read (rule H6).
        """
        if not self.is_open:
            return False
        self._connection.send_message(data)
        self._streams.counters.count("websocket_messages_sent")
        return self._flush()

    def close(self, code: int, reason: str) -> None:
        """Begin to close with `code` (1001 shutting down, 1012 restarting, 1008 policy); `closed` follows."""
        if self.is_open:
            self._connection.close(code, reason, now())
            if self._flush():
                self._streams.schedule(self, self._connection.next_timer())

    def abort(self) -> None:
        """Cut off at once, unsent bytes and all; `closed` follows."""
        self._end(reset=True)

    def end(self) -> None:
        """Close TCP now; what the kernel holds may still leave."""
        self._end()

    def begin(self, upgrade: Upgrade, data: bytes) -> None:
        """Tell the handler and read from now on; `data` came behind the blank line of the upgrade (rule H2)."""
        self._streams.schedule(self, self._connection.next_timer())
        self.busy = True
        self._streams.opened(self, upgrade)
        if data:
            self._receive(data)
        self.busy = False
        if self._phase is not _Phase.ENDED:
            self._watcher.start(self._streams.readable, self)

    def drain(self) -> None:
        """Take what is readable, fairly; called by a reader."""
        self.busy = True
        for _ in range(READS_PER_TURN):
            if self._phase is _Phase.ENDED:
                break
            data = self._read()
            if data is None:
                break
            if not data:
                self._lost()
                break
            if self._phase is _Phase.OPEN:
                self._receive(data)
            if len(data) < READ_BYTES and not self._decrypted():
                break
        self.busy = False
        if self._phase is not _Phase.ENDED:
            if not self._watcher.active:
                self._watcher.start(self._streams.readable, self)
            if self._decrypted():
                self._streams.ready(self)

    def pause(self) -> None:
        """Do not tell again that it is readable before it was drained."""
        if self._phase is not _Phase.ENDED:
            self._watcher.stop()

    def handle_timer(self, at: float) -> float | None:
        """Pings and deadlines; returns when to be called again."""
        if self._phase is _Phase.ENDED:
            return None
        if self._phase is _Phase.LINGERING:
            if at < self._deadline:
                return self._deadline
            self._end()
            return None
        self._handle(self._connection.handle_timer(at))
        return self._connection.next_timer()

    @property
    def is_over(self) -> bool:
        """True when nothing passes any more in either direction."""
        return self._phase is not _Phase.OPEN

    @property
    def has_ended(self) -> bool:
        """True after the socket was closed."""
        return self._phase is _Phase.ENDED

    def _decrypted(self) -> bool:
        """True while TLS holds decrypted bytes, which no watcher tells of."""
        return (
            self._phase is not _Phase.ENDED and isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0
        )

    def _read(self) -> bytes | None:
        """What is readable now; None: nothing, empty: the end."""
        view = self._streams.read_view
        try:
            count = self._socket.recv_into(view)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError:
            return b""
        return bytes(view[:count])

    def _receive(self, data: bytes) -> None:
        self._handle(self._connection.receive(data, now()))

    def _handle(self, events: list[Event]) -> None:
        streams = self._streams
        for event in events:
            if isinstance(event, Closed):
                streams.count_end(event.code)
                self._flush()
                if event.code == CloseCode.ABNORMAL:
                    self._end()
                else:
                    self._linger()
                return
            if not self.is_open:
                return
            verdict = self._rate.judge(streams.guard.settings.messages_per_second, now())
            if verdict is Verdict.FLOOD:
                streams.counters.count("websocket_floods_closed")
                self.close(CloseCode.POLICY_VIOLATION, "too many messages")
                return
            if isinstance(event, Message):
                streams.deliver(self, event.data, verdict)
        self._flush()

    def _flush(self) -> bool:
        """Send what the machine has to send; what the socket does not take waits, but not too much (rule H6)."""
        data = self._connection.data_to_send()
        if not data:
            return True
        if self._phase is not _Phase.OPEN:
            return False
        if self._queue is None:
            sent = self._send(data)
            if sent == len(data):
                return True
            if sent < 0:
                return False
            self._queue = bytearray(memoryview(data)[sent:])
            self._writer = get_hub().loop.io(self._socket.fileno(), _WRITE)
            self._writer.start(self._writable)
        else:
            self._queue += data
        if len(self._queue) > self._streams.settings.max_send_queue:
            self._streams.counters.count("websocket_send_queue_cut")
            self._end(reset=True)
            return False
        return True

    def _send(self, data: bytes | bytearray) -> int:
        """Bytes that the socket took; -1 when it is broken, which ends the stream."""
        try:
            return int(self._socket.send(data))
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError:
            self._end()
            return -1

    def _writable(self) -> None:
        queue = self._queue
        while queue:
            sent = self._send(queue)
            if sent < 0:
                return
            if sent == 0:
                return
            del queue[:sent]
        self._queue = None
        self._stop_writer()
        if self._phase is _Phase.LINGERING:
            self._shutdown()

    def _stop_writer(self) -> None:
        if self._writer is not None:
            self._writer.stop()
            self._writer.close()
            self._writer = None

    def _linger(self) -> None:
        """Closing TCP while the peer still sends would reset it, and the close frame with it would be lost."""
        if self._phase is not _Phase.OPEN:
            return
        self._phase = _Phase.LINGERING
        self._deadline = now() + LINGER_TIMEOUT
        self._streams.schedule(self, self._deadline)
        self._streams.ready(self)
        if self._queue is None:
            self._shutdown()

    def _shutdown(self) -> None:
        try:
            if isinstance(self._socket, ssl.SSLSocket):
                self._close_notify()
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._end()

    def _close_notify(self) -> None:
        try:
            self._socket.unwrap()
        except (ssl.SSLError, ValueError):
            return

    def _lost(self) -> None:
        if self._phase is _Phase.OPEN:
            for event in self._connection.receive_eof():
                assert isinstance(event, Closed)
                self._streams.count_end(event.code)
        self._end()

    def _end(self, reset: bool = False) -> None:
        if self._phase is _Phase.ENDED:
            return
        self._phase = _Phase.ENDED
        self._connection.receive_eof()
        self._queue = None
        self._stop_writer()
        self._watcher.stop()
        self._watcher.close()
        if reset:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            except OSError as error:
                logger.debug("cannot reset %s: %s", self.remote, error)
        self._socket.close()
        # Whoever sends is in the middle of something: the handler is told by a reader.
        self._streams.ready(self)


class Streams:
    """All WebSocket streams of a worker: who is ready, the timers, and the way to the handler."""

    def __init__(self, settings: WebSocketSettings, guard: Guard, handler: FlowHandler, counters: Counters) -> None:
        """`settings` may be replaced; streams that are open keep the machine settings they began with."""
        self.settings = settings
        self.guard = guard
        self.counters = counters
        self.read_view = memoryview(bytearray(READ_BYTES))
        self._handler = handler
        self._open: set[WebSocketStream] = set()
        self._readers: Readers[WebSocketStream] = Readers(self._serve)
        self._timers: list[tuple[float, int, WebSocketStream]] = []
        self._timer_number = 0
        self._loop_timer = LoopTimer(self._tick)

    def __len__(self) -> int:
        return len(self._open)

    def adopt(self, sock: Any, upgrade: Upgrade) -> WebSocketStream:
        """Take over a gevent socket after its upgrade, and its place in the guard (`open`, and `claim` of the remote).

        Call `begin` of the stream next.
        """
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(0.0)
        else:
            # Without gevent's wrapper and its two watchers.
            sock = socket.socket(sock.family, socket.SOCK_STREAM, 0, sock.detach())
            sock.setblocking(False)
        stream = WebSocketStream(self, sock, upgrade)
        self._open.add(stream)
        self.counters.count("websocket_opened")
        return stream

    def close(self, code: int, reason: str) -> None:
        """Begin to close every stream."""
        for stream in list(self._open):
            stream.close(code, reason)

    def stop(self) -> None:
        """Cut off every stream; the handler is told of each before this returns."""
        for stream in list(self._open):
            stream.end()
            self._finish(stream)
        self._loop_timer.stop()
        self._timers.clear()
        self._readers.stop()

    def readable(self, stream: WebSocketStream) -> None:
        """The watcher of `stream` fired. Runs in the hub."""
        if stream.busy or self._readers.all_held_up:
            # Its reader is held up by the handler: the loop is not to spin until then.
            stream.pause()
        self.ready(stream)

    def ready(self, stream: WebSocketStream) -> None:
        """Have `stream` drained, or the handler told of its end, by a reader."""
        self._readers.ready(stream)

    def schedule(self, stream: WebSocketStream, at: float | None) -> None:
        """Call `handle_timer` of `stream` at `at`."""
        if at is not None:
            self._timer_number += 1
            heapq.heappush(self._timers, (at, self._timer_number, stream))
            self._loop_timer.arm(self._timers[0][0])

    def opened(self, stream: WebSocketStream, upgrade: Upgrade) -> None:
        """Tell the handler of a new stream."""
        try:
            self._handler.opened(stream, upgrade)
        except Exception:
            self._failed(stream)

    def deliver(self, stream: WebSocketStream, data: bytes, verdict: Verdict) -> None:
        """Hand one message to the handler; what it raises costs this stream and no other."""
        self.counters.count("websocket_messages_received")
        try:
            if verdict is Verdict.PASS:
                self._handler.message(stream, data)
            else:
                self.counters.count("websocket_messages_excess")
                self._handler.refused(stream, data)
        except Exception:
            self._failed(stream)

    def count_end(self, code: int) -> None:
        """Count how a stream ended."""
        self.counters.count(f"websocket_closed_{code}" if code < 1016 else "websocket_closed_other")

    def _failed(self, stream: WebSocketStream) -> None:
        logger.exception("internal error on the connection of %s", stream.remote)
        self.counters.count("internal_errors")
        stream.close(CloseCode.INTERNAL_ERROR, "internal error")

    def _serve(self, stream: WebSocketStream) -> None:
        if not stream.has_ended:
            stream.drain()
        if stream.is_over:
            self._finish(stream)

    def _finish(self, stream: WebSocketStream) -> None:
        """Tell the handler once nothing passes any more, and give the place back once the socket is closed."""
        if stream.has_ended and stream in self._open:
            self._open.discard(stream)
            self.guard.release(stream.remote.host)
            self.guard.close()
        if stream.told:
            return
        stream.told = True
        try:
            self._handler.closed(stream)
        except Exception:
            logger.exception("internal error after the connection of %s", stream.remote)
            self.counters.count("internal_errors")

    def _tick(self) -> None:
        """Runs in the hub."""
        timers, at = self._timers, now()
        while timers and timers[0][0] <= at:
            _, _, stream = heapq.heappop(timers)
            again = stream.handle_timer(at)
            if again is not None:
                self._timer_number += 1
                heapq.heappush(timers, (again, self._timer_number, stream))
        self._loop_timer.arm(timers[0][0] if timers else None)
