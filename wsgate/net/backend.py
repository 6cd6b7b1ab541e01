"""The backend side: SIP servers over UDP, TCP, TLS, and WebSocket in the client role, behind one `send`.

Nothing here waits for a server. What becomes of a send comes later by the callbacks: `received`, `connected`, `failed`;
they are called from greenlets of this layer and never from inside `send` or `connect`.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence

import gevent
from gevent import get_hub, ssl

from wsgate.addr import Address, Hop, Transport, canonical_host
from wsgate.errors import ProtocolError, StartError, WsgateError
from wsgate.log import logger
from wsgate.metrics import Counters
from wsgate.net.backend_codec import StreamLimits
from wsgate.net.backend_stream import BackendStream, Peer
from wsgate.net.clock import now
from wsgate.net.datagram import DatagramSocket
from wsgate.net.keep_alive import binding_answer, is_stun
from wsgate.net.tls import ClientContexts
from wsgate.sip.framing import Broken
from wsgate.sip.message import Message
from wsgate.sip.targets import BackendSettings, Target
from wsgate.ws.connection import WebSocketSettings

CONNECTION_ID_BYTES = 8
MAX_SOURCES_REMEMBERED = 10000
ACCEPTS_PER_TURN = 32
ACCEPT_PAUSE_SECONDS = 0.25
"""After descriptors ran out (rule H7)."""
TICK_SECONDS = 1.0

_READ = 1
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Received = Callable[[Hop, bytes, Address], None]
Connected = Callable[[Hop, Address], None]
Failed = Callable[[Hop, str], None]
Unframed = Callable[[Hop, bytes, str], None]
ServerContext = Callable[[], ssl.SSLContext]
FindBackend = Callable[[Transport, Address], "tuple[BackendSettings, Target] | None"]


def _no_certificate() -> ssl.SSLContext:
    raise StartError("a TLS listener needs a certificate")


@dataclasses.dataclass(frozen=True)
class BackendLimits:
    """What the backend side may hold. Strangers are sources that `allowed` does not name (rule N6)."""

    stream: StreamLimits = StreamLimits()
    outgoing: int = 1024
    incoming: int = 1024
    incoming_per_source: int = 64
    incoming_strangers: int = 32
    incoming_per_stranger: int = 2
    idle_seconds: float = 900.0
    idle_seconds_stranger: float = 10.0


class BackendSockets:
    """Takes over bound UDP and listening TCP and TLS sockets; `start` begins to read.

    `received(hop, data, local)` gets each whole message or datagram; `hop.connection` names the stream it came by.
    `connected(hop, local)` says that an outgoing stream is there: Via and Path of a WebSocket backend carry `local`
    (rule V1). `failed(hop, reason)` says that an ICMP error came (UDP), that no connection could be made (`hop` without
    connection) or that a stream ended (`hop` with its connection), ours for idleness included.
    `unframed(hop, head, reason)` gets the head of a message whose end cannot be known: an answer that is sent at once
    is the last on its stream.
    `find_backend` (Resolver.backend_at) tells name, path and trust of a target; TLS, WS and WSS go to such ones only.
    `allowed(host)` names the sources that may hold many connections. `contexts` are those for TLS and WSS backends,
    `server_context` gives the one for whoever connects to `tls_listeners`.

    There is one connection to a target, kept alive and used for all that goes there. What its server sends on it is
    taken; and a connection that the server opened to us is used instead where its messages say `;alias` (RFC 5923 §8)
    or it comes from the very port of the target.
    """

    def __init__(
        self,
        udp_sockets: Sequence[socket.socket],
        tcp_listeners: Sequence[socket.socket],
        received: Received,
        connected: Connected,
        failed: Failed,
        find_backend: FindBackend,
        allowed: Callable[[str], bool],
        counters: Counters,
        unframed: Unframed,
        websocket: WebSocketSettings | None = None,
        limits: BackendLimits | None = None,
        *,
        contexts: ClientContexts | None = None,
        tls_listeners: Sequence[socket.socket] = (),
        server_context: ServerContext = _no_certificate,
    ) -> None:
        self._received, self._connected, self._failed, self._unframed = received, connected, failed, unframed
        self._find_backend = find_backend
        self._allowed = allowed
        self._counters = counters
        self._websocket = websocket or WebSocketSettings()
        self._limits = limits or BackendLimits()
        self._datagrams = [self._datagram_socket(plain) for plain in udp_sockets]
        self._default_v4 = self._default(socket.AF_INET, "0.0.0.0")
        self._default_v6 = self._default(socket.AF_INET6, "::")
        self._listeners = [(listener, Transport.TCP) for listener in tcp_listeners]
        self._listeners += [(listener, Transport.TLS) for listener in tls_listeners]
        self._server_context = server_context
        self._arrived_at: dict[Address, DatagramSocket] = {}
        self._streams: dict[bytes, BackendStream] = {}
        self._by_address: dict[tuple[Transport, Address], BackendStream] = {}
        self._incoming: Counter[str] = Counter()
        self._strangers = 0
        self._contexts = contexts or ClientContexts()
        self._greenlets: list[gevent.Greenlet] = []

    def start(self) -> None:
        """Begin to read and accept."""
        for datagrams in self._datagrams:
            datagrams.start()
        self._greenlets = [gevent.spawn(self._accept, *listener) for listener in self._listeners]
        self._greenlets.append(gevent.spawn(self._tick))

    def close(self) -> None:
        """End every stream and close every socket; `failed` is told of nothing any more."""
        self._failed = lambda hop, reason: None
        gevent.killall(self._greenlets)
        for stream in list(self._streams.values()):
            stream.end("shutting down")
        for datagrams in self._datagrams:
            datagrams.close()
        for listener, _ in self._listeners:
            listener.close()

    def reload(self, contexts: ClientContexts) -> None:
        """Other CA files and certificates for the connections to come (SIGHUP)."""
        self._contexts = contexts

    def __len__(self) -> int:
        return len(self._streams)

    def send(self, hop: Hop, data: bytes) -> None:
        """Send one message. Never blocks; what goes wrong comes by `failed`.

        UDP leaves by the socket that last heard from there. Else it goes down the connection that `hop` names, or any
        other to that address, or a new one. A named connection that is gone is replaced only towards a target of a
        backend: the address of a stranger's connection is no server.
        """
        if hop.transport is Transport.UDP:
            self._send_datagram(hop, data)
            return
        stream = self._stream(hop)
        if stream is not None:
            self._counters.count("sip_stream_messages_sent")
            stream.send(data)

    def connect(self, hop: Hop) -> None:
        """See that there is a connection to `hop`: `connected` follows, or `failed`."""
        stream = self._stream(hop)
        if stream is not None and stream.is_open:
            gevent.spawn(self._connected, stream.hop, stream.local)

    def connection(self, hop: Hop) -> tuple[Hop, Address] | None:
        """The open connection that `send` would take now, and its local address; None when there is none."""
        stream = self._find(hop)
        return (stream.hop, stream.local) if stream is not None and stream.is_open else None

    def _datagram_socket(self, plain: socket.socket) -> DatagramSocket:
        def received(data: bytes, source: Address) -> None:
            if len(data) <= 4 and not data.strip(b"\r\n\0"):
                self._counters.count("sip_udp_keep_alives")
                return
            if is_stun(data):
                answer = binding_answer(data, source) if self._allowed(source.host) else None
                self._counters.count("sip_udp_keep_alives" if answer else "sip_udp_foreign_dropped")
                if answer:
                    datagrams.send(answer, source)
                return
            self._counters.count("sip_udp_received")
            if len(self._datagrams) > 1:
                self._arrived_at.pop(source, None)
                if len(self._arrived_at) >= MAX_SOURCES_REMEMBERED:
                    del self._arrived_at[next(iter(self._arrived_at))]
                self._arrived_at[source] = datagrams
            self._received(Hop(Transport.UDP, source), data, datagrams.local)

        def unreachable(destination: Address, reason: str) -> None:
            self._failed(Hop(Transport.UDP, destination), reason)

        datagrams = DatagramSocket(plain, received, unreachable, self._counters)
        return datagrams

    def _send_datagram(self, hop: Hop, data: bytes) -> None:
        address = hop.address
        datagrams = self._arrived_at.get(address) if self._arrived_at else None
        if datagrams is None:
            datagrams = self._default_v6 if ":" in address.host else self._default_v4
            if datagrams is None:
                self._fail_later(hop, "no UDP socket for this address")
                return
        self._counters.count("sip_udp_sent")
        datagrams.send(data, address)

    def _default(self, family: socket.AddressFamily, host: str) -> DatagramSocket | None:
        """The first socket that reaches the like of `host`; for IPv4 a dual one is the second choice."""
        reaching = [one for one in self._datagrams if one.reaches(host)]
        return next((one for one in reaching if one.family == family), reaching[0] if reaching else None)

    def _find(self, hop: Hop) -> BackendStream | None:
        stream = self._streams.get(hop.connection) if hop.connection else None
        if stream is not None:
            return stream
        stream = self._by_address.get((hop.transport, hop.address))
        if stream is None or stream.outgoing or hop.transport is not Transport.TLS:
            return stream
        # Who opened it has shown no certificate: a phone is reached by it, a target of a backend is not (RFC 5922).
        return stream if self._find_backend(*hop[:2]) is None else None

    def _stream(self, hop: Hop) -> BackendStream | None:
        """The stream to send on, a new one where there is none; None when there can be none, which `failed` says."""
        stream = self._find(hop)
        if stream is not None:
            return stream
        found = self._find_backend(hop.transport, hop.address)
        if found is None and (hop.connection or hop.transport is not Transport.TCP):
            reason = "the connection is gone" if hop.connection else "not a target of a backend"
            self._fail_later(hop, reason)
            return None
        if len(self._streams) - self._incoming.total() >= self._limits.outgoing:
            self._counters.count("sip_connections_refused")
            self._fail_later(hop, "too many connections")
            return None
        try:
            peer = self._peer(hop, found)
        except WsgateError as error:
            self._fail_later(hop, str(error))
            return None
        stream = self._new_stream(hop, outgoing=True)
        stream.connect(peer)
        return stream

    def _peer(self, hop: Hop, found: tuple[BackendSettings, Target] | None) -> Peer:
        """What the connection must know. Raises StartError when the files of its context cannot be used."""
        if found is None:
            return Peer(hop.address.host, "/", None)
        settings, target = found
        name = settings.server_name or target.host
        if not hop.transport.secure:
            return Peer(name, settings.ws_path, None)
        context = self._contexts.get(
            settings.ca_file,
            settings.client_certificate,
            settings.client_private_key,
            checks_name=hop.transport is Transport.WSS,
        )
        return Peer(name, settings.ws_path, context)

    def _new_stream(self, hop: Hop, outgoing: bool) -> BackendStream:
        hop = hop._replace(connection=os.urandom(CONNECTION_ID_BYTES))
        stream = BackendStream(
            hop, outgoing, self._limits.stream, self._websocket, self._message, self._opened, self._ended, self._broken
        )
        self._streams[hop.connection] = stream
        self._by_address[hop.transport, hop.address] = stream
        return stream

    def _message(self, stream: BackendStream, data: bytes) -> None:
        self._counters.count("sip_stream_messages_received")
        if stream.may_be_alias:
            self._take_alias(stream, data)
        self._guarded(stream, self._received, data, stream.local)

    def _guarded(self, stream: BackendStream, tell: Callable[..., None], *what: object) -> None:
        """A bug in a handler costs one message."""
        try:
            tell(stream.hop, *what)
        except Exception:
            logger.exception("internal error on a message of %s", stream.hop.address)
            self._counters.count("internal_errors")

    def _take_alias(self, stream: BackendStream, data: bytes) -> None:
        """A server's first request may say that its connection serves both ways (RFC 5923 §8, `;alias` in Via).

        Believed of the source's own address alone, and over TLS not at all: what goes to a TLS target leaves by a
        connection whose server has shown the certificate of its domain.
        """
        try:
            message = Message.parse(data)
            if not message.is_request:
                return
            stream.may_be_alias = False
            via = message.via
        except ProtocolError:
            return
        transport, source = stream.hop[:2]
        if b"alias" in via.parameters:
            place = (transport, Address(source.host, via.port or transport.default_port))
            if place not in self._by_address:
                self._by_address[place] = stream
                stream.alias = place

    def _opened(self, stream: BackendStream) -> None:
        self._counters.count("sip_connections_opened")
        if stream.outgoing:
            gevent.spawn(self._connected, stream.hop, stream.local)

    def _ended(self, stream: BackendStream, reason: str) -> None:
        hop = stream.hop
        del self._streams[hop.connection]
        for place in {(hop.transport, hop.address), stream.alias}:
            if place is not None and self._by_address.get(place) is stream:
                del self._by_address[place]
        if not stream.outgoing:
            self._incoming[hop.address.host] -= 1
            if not self._incoming[hop.address.host]:
                del self._incoming[hop.address.host]
            self._strangers -= not stream.is_trusted
        self._counters.count("sip_connections_ended")
        logger.debug("%s connection of %s ended: %s", hop.transport.value, hop.address, reason)
        if stream.local.port:
            self._fail_later(hop, reason)
        elif stream.outgoing:
            self._fail_later(hop._replace(connection=b""), reason)

    def _broken(self, stream: BackendStream, event: Broken) -> None:
        """Table A: without a border there is no further message; what can be answered of this one is."""
        self._counters.count("sip_malformed_streams")
        if event.head:
            self._guarded(stream, self._unframed, event.head, event.reason)

    def _fail_later(self, hop: Hop, reason: str) -> None:
        gevent.spawn(self._fail, hop, reason)

    def _fail(self, hop: Hop, reason: str) -> None:
        self._failed(hop, reason)

    def _accept(self, listener: socket.socket, transport: Transport) -> None:
        """Accept in turns of ACCEPTS_PER_TURN; without descriptors wait, with one line in the log (rule H7)."""
        listener.setblocking(False)
        hub = get_hub()
        watcher = hub.loop.io(listener.fileno(), _READ)
        exhausted = False
        try:
            while True:
                hub.wait(watcher)
                for _ in range(ACCEPTS_PER_TURN):
                    try:
                        plain, source = listener.accept()
                    except BlockingIOError:
                        break
                    except OSError as error:
                        if error.errno in _EXHAUSTED:
                            if not exhausted:
                                logger.error("no descriptors for connections from backends: %s", error.strerror)
                            exhausted = True
                            gevent.sleep(ACCEPT_PAUSE_SECONDS)
                        break
                    exhausted = False
                    self._adopt(plain, Hop(transport, Address(canonical_host(source[0]), source[1])))
                else:
                    gevent.sleep(0)
        finally:
            watcher.stop()
            watcher.close()

    def _adopt(self, plain: socket.socket, hop: Hop) -> None:
        """Keep an accepted connection, or close it where its source or all of them have too many."""
        limits, source = self._limits, hop.address
        is_trusted = self._allowed(source.host)
        per_source = limits.incoming_per_source if is_trusted else limits.incoming_per_stranger
        if (
            self._incoming.total() >= limits.incoming
            or self._incoming[source.host] >= per_source
            or (not is_trusted and self._strangers >= limits.incoming_strangers)
        ):
            self._counters.count("sip_connections_refused")
            plain.close()
            return
        self._counters.count("sip_connections_accepted")
        stream = self._new_stream(hop, outgoing=False)
        stream.is_trusted = is_trusted
        stream.may_be_alias = is_trusted and hop.transport is Transport.TCP
        self._incoming[source.host] += 1
        self._strangers += not is_trusted
        stream.adopt(plain, self._server_context() if hop.transport.secure else None)

    def _tick(self) -> None:
        """Keep-alives of all streams, and the end of idle ones."""
        while True:
            gevent.sleep(TICK_SECONDS)
            at = now()
            for stream in list(self._streams.values()):
                stream.handle_timer(at)
                if self._is_idle(stream, at):
                    stream.end("idle")

    def _is_idle(self, stream: BackendStream, at: float) -> bool:
        """Ours stay while a backend is at their far end; the keep-alives of others count as life."""
        limits = self._limits
        if stream.outgoing:
            return at - stream.used_at > limits.idle_seconds and self._find_backend(*stream.hop[:2]) is None
        return at - stream.heard_at > (limits.idle_seconds if stream.is_trusted else limits.idle_seconds_stranger)
