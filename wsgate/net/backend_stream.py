"""One stream to or from a SIP server: TCP, TLS, or a WebSocket in the client role (rule V1), over non-blocking sockets.

A greenlet connects and reads. Writing never waits: what the socket does not take is queued, and a queue that grows too
long ends the stream. What differs between the transports once a stream is open is in backend_codec.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent
from gevent import get_hub, ssl
from gevent.socket import wait_read, wait_write

from wsgate.addr import Address, Hop, Transport, canonical_host, join_host_port, uri_host
from wsgate.errors import ProtocolError, WsgateError
from wsgate.net.backend_codec import Codec, Step, StreamCodec, StreamLimits, WebSocketCodec
from wsgate.net.clock import now
from wsgate.net.tls import check_sip_domain
from wsgate.sip.framing import Broken
from wsgate.ws.connection import WebSocketSettings
from wsgate.ws.handshake import ClientHandshake

READ_BYTES = 65536
READS_PER_TURN = 4
"""Reads of one stream before the others get their turn."""
CONNECT_TIMEOUT_SECONDS = 4.0
HANDSHAKE_TIMEOUT_SECONDS = 4.0
"""For TLS and the WebSocket upgrade together."""
UNACKNOWLEDGED_SECONDS = 20
"""How long TCP may wait for an acknowledgement before the connection counts as broken (RFC 5482)."""

LINGER_SECONDS, LINGER_BYTES = 1.0, 1048576
"""How long, and for how much, a stream is read after the answer that ends it."""

_READ, _WRITE = 1, 2


class Peer(NamedTuple):
    """What a connection must know of the server it goes to: `name` is verified and sent, `path` is for WebSockets.

    `name` is that of RFC 5922 §4, the domain of the target, unless `server_name` says another.
    """

    name: str
    path: str
    context: ssl.SSLContext | None


class BackendStream:
    """One connection; `hop` carries its id. `heard_at` is when bytes came last, `used_at` when a message passed.

    Its owner is told `received(stream, message)` and `opened(stream)` from its greenlet, and `ended(stream, reason)`
    once, from wherever the end was noticed. `broken(stream, event)` comes before the end of one whose peer's bytes
    cannot be cut into messages: what is sent then, and is taken by the socket, still arrives.
    """

    def __init__(
        self,
        hop: Hop,
        outgoing: bool,
        limits: StreamLimits,
        websocket: WebSocketSettings,
        received: Callable[[BackendStream, bytes], None],
        opened: Callable[[BackendStream], None],
        ended: Callable[[BackendStream, str], None],
        broken: Callable[[BackendStream, Broken], None],
    ) -> None:
        self.hop = hop
        self.outgoing = outgoing
        self.local = Address("", 0)
        self.heard_at = self.used_at = now()
        self.is_trusted = True
        self.may_be_alias = False
        self.alias: tuple[Transport, Address] | None = None
        self._limits = limits
        self._websocket = websocket
        self._received, self._opened, self._ended, self._broken = received, opened, ended, broken
        self._messages_sent = 0
        self._has_last_words = False
        self._codec: Codec | None = None
        self._socket: Any = None
        self._waiting: list[bytes] = []  # messages for a connection that is not open yet
        self._waiting_bytes = 0
        self._queue = bytearray()  # bytes that the socket did not take yet
        self._writer: Any = None
        self._greenlet: gevent.Greenlet | None = None
        self.has_ended = False

    @property
    def is_open(self) -> bool:
        """True once messages can pass, until the end."""
        return self._codec is not None and not self.has_ended

    def connect(self, peer: Peer) -> None:
        """Begin to connect to `hop.address`; `opened` or `ended` follows."""
        self._start(self._run_outgoing, peer)

    def adopt(self, plain: socket.socket, context: ssl.SSLContext | None = None) -> None:
        """Take over an accepted socket; with `context` its client speaks TLS."""
        plain.setblocking(False)
        self._socket = plain
        self._start(self._run_incoming, context)

    def send(self, data: bytes) -> None:
        """Send one message; before the connection is open it waits. Never blocks; too much waiting is the end."""
        if self.has_ended:
            return
        if self._codec is not None:
            self.used_at = now()
            self._messages_sent += 1
            self._write(self._codec.encode(data))
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > self._limits.queue_bytes:
            self.end("send queue is full")

    def handle_timer(self, at: float) -> None:
        """Keep-alives; called now and then."""
        if self._codec is not None and not self.has_ended:
            self._take(self._codec.handle_timer(at))

    def end(self, reason: str, polite: bool = True) -> None:
        """Close at once; `ended` is told unless it was before. `polite`: with the codec's last words if they fit."""
        if self.has_ended:
            return
        self.has_ended = True
        if polite and self._codec is not None and not self._queue:
            self._send_some(self._codec.close(now()))
        self._stop_writer()
        self._queue.clear()
        self._waiting.clear()
        if self._greenlet is not None and self._greenlet is not gevent.getcurrent():
            self._greenlet.kill(block=False)
        self._ended(self, reason)

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        self._greenlet = gevent.spawn(run, *arguments)
        # A link also runs for a greenlet that was ended before it began.
        self._greenlet.rawlink(self._release)

    def _release(self, _: object) -> None:
        """Runs in the hub after the greenlet, which alone waits on the socket."""
        self.end("internal error", polite=False)
        if self._socket is not None:
            self._socket.close()

    def _run_outgoing(self, peer: Peer) -> None:
        try:
            with gevent.Timeout(CONNECT_TIMEOUT_SECONDS, TimeoutError("connect timed out")):
                self._connect()
            with gevent.Timeout(HANDSHAKE_TIMEOUT_SECONDS, TimeoutError("handshake timed out")):
                rest = self._shake_hands(peer)
        except (OSError, EOFError, ValueError, WsgateError) as error:
            self.end(_reason(error))
            return
        self._run(rest)

    def _run_incoming(self, context: ssl.SSLContext | None) -> None:
        if context is not None:
            try:
                with gevent.Timeout(HANDSHAKE_TIMEOUT_SECONDS, TimeoutError("handshake timed out")):
                    self._secure(context, server_side=True)
            except OSError as error:
                self.end(_reason(error))
                return
        self._run()

    def _secure(self, context: ssl.SSLContext, **role: Any) -> None:
        """The TLS handshake. Raises OSError."""
        self._socket = context.wrap_socket(self._socket, do_handshake_on_connect=False, **role)
        self._socket.settimeout(None)
        self._socket.do_handshake()
        self._socket.settimeout(0.0)

    def _connect(self) -> None:
        host, port = self.hop.address
        self._socket = plain = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        plain.setblocking(False)
        try:
            plain.connect((host, port))
        except BlockingIOError:
            wait_write(plain.fileno())
            error = plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error)) from None

    def _shake_hands(self, peer: Peer) -> bytes:
        """TLS, then the upgrade, where the transport has them; returns bytes that belong to the first frame."""
        if peer.context is not None:
            self._secure(peer.context, server_hostname=peer.name)
        if self.hop.transport is Transport.TLS:
            check_sip_domain(self._socket.getpeercert(), peer.name)
        if not self.hop.transport.is_websocket:
            return b""
        port = self.hop.address.port
        is_default = port == self.hop.transport.default_port
        host = uri_host(peer.name) if is_default else join_host_port(peer.name, port)
        handshake = ClientHandshake(host, peer.path, os.urandom)
        self._socket.send(handshake.request)  # fits the empty buffer of a new connection
        while True:
            data = self._read_some()
            if not data:
                raise EOFError("closed during the handshake")
            rest = handshake.receive(data)
            if rest is not None:
                return rest

    def _read_some(self) -> bytes:
        """What the socket gives, empty at its end; waits for it."""
        while True:
            try:
                data: bytes = self._socket.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                wait_read(self._socket.fileno())
            except ssl.SSLWantWriteError:
                wait_write(self._socket.fileno())
            else:
                return data

    def _run(self, data: bytes = b"") -> None:
        """The open stream: tell the owner, send what waited, read to the end. `data` was read already."""
        plain = self._socket
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_SECONDS * 1000)
            host, port = plain.getsockname()[:2]
        except OSError as error:
            self.end(_reason(error))
            return
        self.local = Address(canonical_host(host), port)
        codec: Codec
        if self.hop.transport.is_websocket:
            codec = WebSocketCodec(self._websocket, now())
        else:
            codec = StreamCodec(self._limits, self.outgoing, now())
        self._codec = codec
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self._write(codec.encode(message))
        if not self.has_ended:
            self._opened(self)
        if data:
            self._take(codec.receive(data, now()))
        watcher = get_hub().loop.io(plain.fileno(), _READ)
        try:
            self._read(codec, watcher)
            if self._has_last_words:
                self._linger(watcher)
        finally:
            watcher.stop()
            watcher.close()

    def _read(self, codec: Codec, watcher: Any) -> None:
        hub = get_hub()
        while not self.has_ended:
            for _ in range(READS_PER_TURN):
                try:
                    data = self._socket.recv(READ_BYTES)
                except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    hub.wait(watcher)
                    continue
                except OSError as error:
                    self.end(_reason(error))
                    return
                if not data:
                    self.end("closed by the peer")
                    return
                self.heard_at = now()
                self._take(codec.receive(data, self.heard_at))
                if self.has_ended:
                    return
            gevent.sleep(0)

    def _linger(self, watcher: Any) -> None:
        """Read on for a moment: a close with bytes unread is a reset that overtakes the answer (RFC 1122 §4.2.2.13)."""
        left = LINGER_BYTES
        with gevent.Timeout(LINGER_SECONDS, False), contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while left > 0:
                try:
                    data = self._socket.recv(READ_BYTES)
                except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    get_hub().wait(watcher)
                    continue
                if not data:
                    break
                left -= len(data)

    def _take(self, step: Step) -> None:
        if step.output:
            self._write(step.output)
        if step.messages:
            self.used_at = now()
        for message in step.messages:
            self._received(self, message)
        if step.broken is not None and not self.has_ended:
            before = self._messages_sent
            self._broken(self, step.broken)
            self._has_last_words = self._messages_sent > before
        if step.end:
            self.end(step.end)

    def _write(self, data: bytes) -> None:
        if not data or self.has_ended:
            return
        sent = 0 if self._queue else self._send_some(data)
        if self.has_ended or sent == len(data):
            return
        self._queue += memoryview(data)[sent:]
        if len(self._queue) > self._limits.queue_bytes:
            self.end("send queue is full", polite=False)
        elif self._writer is None:
            self._writer = get_hub().loop.io(self._socket.fileno(), _WRITE)
            self._writer.start(self._writable)

    def _send_some(self, data: bytes | bytearray) -> int:
        """How many bytes the socket took; one that is broken takes none and ends the stream."""
        try:
            return int(self._socket.send(data))
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError as error:
            self.end(_reason(error), polite=False)
            return 0

    def _writable(self) -> None:
        """The socket takes bytes again. Runs in the hub."""
        sent = self._send_some(self._queue)
        del self._queue[:sent]
        if not self._queue:
            self._stop_writer()

    def _stop_writer(self) -> None:
        if self._writer is not None:
            self._writer.stop()
            self._writer.close()
            self._writer = None


def _reason(error: Exception) -> str:
    """An error in words for a log and for `failed`."""
    if isinstance(error, ProtocolError):
        return error.reason
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
