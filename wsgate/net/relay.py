"""The relay engine: moves TURN packets between clients and peers (rules P3, F1, F2, F4).

The listening sockets and all relay sockets are read by one `packet_loop`. ChannelData costs one look-up and one send:
packets are read into one buffer, peers' packets HEADROOM bytes into it so that whatever stands before them on the way
to the client is written in place. Everything else goes to the pure TurnServer, whose effects are applied here.
"""

from __future__ import annotations

import errno
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gevent import get_hub

from wsgate.addr import Address
from wsgate.log import logger
from wsgate.metrics import Counters
from wsgate.net.metering import Send, metered
from wsgate.net.packet_loop import PacketLoop
from wsgate.net.relay_sockets import (
    HEADROOM,
    Buffer,
    ClientSocket,
    Path,
    RelaySocket,
    SocketAddress,
    bound,
    may_be_fragmented,
)
from wsgate.net.turn_connections import ClientStream, TurnConnections
from wsgate.turn import stun
from wsgate.turn.effects import (
    Bind,
    Client,
    CloseConnection,
    CloseRelay,
    Effect,
    Join,
    JoinConnection,
    OpenConnection,
    OpenRelays,
    Part,
    PassStream,
    Permit,
    Reply,
    Revoke,
    SendToPeer,
    Unbind,
)
from wsgate.turn.server import TurnServer
from wsgate.turn.values import Icmp

LISTENER_BUFFER_BYTES = 4 << 20
TIMER_SECONDS_MIN = 0.001
FAILURE_LOG_SECONDS = 60.0
"""The same failure is told in the log at most so often, however many packets bring it about."""

_ICMP_ERRORS = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPROTO, errno.EMSGSIZE, errno.EACCES}
"""What a send may report of an earlier packet to somebody else."""
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC}


class Relay:
    """The pure engine. `listeners` are bound UDP sockets, which stay the caller's; relay sockets are opened here.

    `tick` is the longest that packets are gathered under load (rule F2), 0 for not at all. Client paths are the
    indices of `listeners`, and further numbers by `open_path`. Everything runs on the hub of the greenlet that calls
    `start`.
    """

    def __init__(
        self,
        server: TurnServer,
        listeners: Sequence[socket.socket],
        *,
        tick: float = 0.0,
        counters: Counters | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.server = server
        self.counters = server.counters if counters is None else counters
        self.buffer = Buffer()
        self.to_peers = self.to_clients = 0
        self.secured: Callable[[socket.socket, bytes, SocketAddress], None] | None = None
        """Takes the datagrams that begin like DTLS (rule E2)."""
        self.hear: Callable[[], None] | None = None
        """Called before a request is judged: takes what other workers have told (A5, P6). Does not block."""
        self._clock = clock
        self.loop = PacketLoop(tick, clock, after_pass=self._count_packets, failed=self._count_failure)
        self._listeners = [ClientSocket(self, path, sock) for path, sock in enumerate(listeners)]
        self._paths: dict[int, Path] = dict(enumerate(self._listeners))
        self._next_path = len(self._listeners)
        self._relays: dict[Address, RelaySocket] = {}
        aliases = [(relay.public, relay.host) for relay in server.relay_addresses if relay.public != relay.host]
        self._bound_host = dict(aliases)
        self._public_host = {host: public for public, host in aliases}
        self.connections = TurnConnections(self)
        self._timer_at: float | None = None
        self._told_at: dict[str, float] = {}

    @property
    def relay_sockets(self) -> int:
        """How many relay sockets are open."""
        return len(self._relays)

    def start(self) -> None:
        """Begin to listen. Raises OSError."""
        self.loop.start()
        self._timer: Any = get_hub().loop.timer(0)
        for listener in self._listeners:
            listener.socket.setblocking(False)
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LISTENER_BUFFER_BYTES)
            may_be_fragmented(listener.socket)
            self.loop.watch(listener)

    def stop(self) -> None:
        """Stop and close every relay socket; the listening sockets stay open."""
        if not self.loop.is_running:
            return
        self.loop.stop()
        self._timer.stop()
        self._timer.close()
        for relay in self._relays.values():
            relay.socket.close()
        self._relays.clear()
        self.connections.stop()

    def apply(self, effects: Iterable[Effect]) -> None:
        """Do what the server decided, in order, without blocking; then set the timer."""
        waiting = deque(effects)
        while waiting:
            effect = waiting.popleft()
            more = _APPLY[type(effect)](self, effect)
            if more:
                waiting.extendleft(reversed(more))
        self._set_timer()

    def open_path(self, path: Path) -> None:
        """Take in a stream or association: its frames come by `stun_message` and `channel_data` until `close_path`."""
        path.path = self._next_path
        self._next_path += 1
        self._paths[path.path] = path

    def close_path(self, client: Client) -> None:
        """The only client of a path is gone: so are the path and the client's allocation (rule L4)."""
        if self._paths.get(client.path) is not None:
            self.apply(self.server.client_closed(client, self._clock()))
            del self._paths[client.path]

    def stun_message(
        self, data: bytes, client: Client, bytes_max: int = stun.DATAGRAM_BYTES_MAX, *, is_stream: bool = False
    ) -> None:
        """A STUN message of a client."""
        # Who has registered, or whose call was answered, may come here before the inbox was looked at.
        if self.hear is not None and stun.is_request(data):
            self.hear()
        self.apply(self.server.receive(data, client, self._clock(), bytes_max, is_stream=is_stream))

    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock()

    def stream_of(self, client: Client) -> ClientStream | None:
        """The stream of a client that has one."""
        path = self._paths.get(client.path)
        return path if isinstance(path, ClientStream) else None

    def outside(self, host: str) -> str:
        """How clients know a host: by its `external_address` where that is this machine."""
        return self._public_host.get(host, host)

    def channel_data(self, frame: bytes, path: Path, address: SocketAddress) -> None:
        """ChannelData of a client on a path of its own (rule P3)."""
        route = path.routes.get(address)
        channel = route and route.get(frame[0] << 8 | frame[1])
        end = 4 + (frame[2] << 8 | frame[3])
        if not channel or end > len(frame):
            self.counters.count("turn_channel_data_dropped")
            return
        payload = memoryview(frame)[4:end]
        try:
            channel[0](payload, channel[1])
            relayed = 1
        except OSError as problem:
            relayed = self.send_again(problem, channel, payload)
        self.counters.count("turn_packets_to_peers", relayed)

    def send_again(self, problem: OSError, channel: tuple[Send, SocketAddress], payload: bytes | memoryview) -> int:
        """A send failed. It may have told of an earlier packet, and that only once: 1 where the second one went out."""
        if problem.errno in _ICMP_ERRORS:
            try:
                channel[0](payload, channel[1])
            except OSError:
                self.counters.count("turn_send_failed")
                return 0
            return 1
        self.counters.count("turn_send_failed")
        return 0

    def message(self, listener: ClientSocket, source: SocketAddress, size: int) -> None:
        """A datagram from a client that is no ChannelData: STUN or DTLS by its first byte (RFC 7983 §7), or nothing."""
        first = self.buffer.data[0] if size else 0xFF
        if 20 <= first <= 63 and self.secured is not None:
            self.secured(listener.socket, bytes(self.buffer.view[:size]), source)
            return
        if first > 3:
            self.counters.count("turn_garbage_dropped")
            return
        bytes_max = self.server.datagram_bytes_max
        data = bytes(self.buffer.view[: min(size, bytes_max + 1)])
        self.stun_message(data, Client(listener.path, Address(*source)), bytes_max)

    def tell_icmp(self, client: Client, peer: SocketAddress, icmp: Icmp) -> None:
        """A Data indication with the ICMP attribute (RFC 8656 §11.5; rule P4); none of a port that is refused."""
        if not self.server.peers.port_allowed(*peer):
            return
        self.counters.count("turn_icmp_told")
        told = Address(self._public_host.get(peer[0], peer[0]), peer[1])
        fields = (stun.XOR_PEER_ADDRESS(told), stun.ICMP(icmp))
        transaction_id = self.server.random_bytes(stun.TRANSACTION_ID_BYTES)
        data = stun.encode(stun.Method.DATA, stun.MessageClass.INDICATION, transaction_id, fields)
        try:
            self._paths[client.path].sendto(data, client.address)
        except OSError:
            self.counters.count("turn_send_failed")

    def write_data_indication(self, source: SocketAddress, size: int) -> tuple[int, int]:
        """Make the payload in the buffer a Data indication (RFC 8656 §11.3); returns where it begins and ends.

        Nothing (0, 0) when the peer's port is refused (rule P5), or it does not fit: relayed whole or not at all (P3).
        """
        if size > stun.INDICATED_BYTES_MAX or not self.server.peers.port_allowed(*source):
            self.counters.count("turn_peer_data_dropped")
            return 0, 0
        transaction_id = self.server.random_bytes(stun.TRANSACTION_ID_BYTES)
        peer = Address(self._public_host.get(source[0], source[0]), source[1])
        head = stun.data_indication_head(peer, size, transaction_id)
        start, end, padding = HEADROOM - len(head), HEADROOM + size, -size % 4
        self.buffer.data[start:HEADROOM] = head
        self.buffer.data[end : end + padding] = bytes(padding)
        return start, end + padding

    def _count_packets(self) -> None:
        self.counters.count("turn_packets_to_peers", self.to_peers)
        self.counters.count("turn_packets_to_clients", self.to_clients)
        self.to_peers = self.to_clients = 0

    def _count_failure(self) -> None:
        """A reader raised: that is our mistake, and costs one packet (rule F4)."""
        self.counters.count("internal_errors")
        if self._is_news("internal error"):
            logger.exception("turn: internal error on a packet")

    def _set_timer(self) -> None:
        at = self.server.next_timer()
        if at == self._timer_at or not self.loop.is_running:
            return
        self._timer_at = at
        self._timer.stop()
        if at is not None:
            self._timer.close()
            self._timer = get_hub().loop.timer(max(at - self._clock(), TIMER_SECONDS_MIN))
            self._timer.start(self._expired)

    def _is_news(self, failure: str) -> bool:
        """True where the log has not told of it lately; clients can bring it about with every packet."""
        at = self._clock()
        if at - self._told_at.get(failure, -FAILURE_LOG_SECONDS) < FAILURE_LOG_SECONDS:
            return False
        self._told_at[failure] = at
        return True

    def _expired(self) -> None:
        self._timer_at = None
        self.apply(self.server.handle_timer(self._clock()))

    def _reply(self, effect: Reply) -> None:
        try:
            self._paths[effect.client.path].answer(effect.data, effect.client.address)
        except OSError:
            self.counters.count("turn_send_failed")

    def _open_relays(self, effect: OpenRelays) -> list[Effect]:
        """Bind all or none (rule Q1: 508 when descriptors are used up, and the daemon goes on)."""
        opened: list[RelaySocket] = []
        try:
            if effect.is_tcp:
                self.connections.listen(effect.relays)
                return self.server.relays_opened(effect.relays, self._clock())
            for address in effect.relays:
                opened.append(RelaySocket(self, address, bound(address)))
                self.loop.watch(opened[-1])
        except OSError as problem:
            for relay in opened:
                self.loop.forget(relay)
                relay.socket.close()
            exhausted = problem.errno in _EXHAUSTED
            if problem.errno != errno.EADDRINUSE and self._is_news("no relay socket"):
                logger.warning("turn: no relay socket at %s: %s", effect.relays[0].host, problem.strerror)
            self.counters.count("turn_relay_sockets_refused")
            return self.server.relays_refused(effect.relays, exhausted, self._clock())
        self._relays.update(zip(effect.relays, opened, strict=True))
        return self.server.relays_opened(effect.relays, self._clock())

    def _close_relay(self, effect: CloseRelay) -> None:
        if self.connections.close_listener(effect.relay):
            return
        relay = self._relays.pop(effect.relay)
        self.loop.forget(relay)
        relay.socket.close()
        self._leave(relay)

    def _leave(self, relay: RelaySocket) -> None:
        """The client has nothing to do with a relay socket any more."""
        if relay.client is None:
            return
        routes = self._paths[relay.client.path].routes
        channels = routes.get(relay.client.address, {})
        for number in relay.channels.values():
            channels.pop(number, None)
        if not channels:
            routes.pop(relay.client.address, None)
        relay.client = relay.reply = None

    def _part(self, effect: Part) -> None:
        self._leave(self._relays[effect.relay])

    def _join(self, effect: Join) -> None:
        relay = self._relays.get(effect.relay)
        if relay is None:
            self.connections.begin(effect.relay, effect.client)
            return
        self._leave(relay)
        relay.client = effect.client
        bucket = self.server.bandwidth(effect.client)
        relay.reply = metered(self._paths[effect.client.path].sendto, bucket, self.counters, self._clock)
        relay.sendto = metered(relay.socket.sendto, bucket, self.counters, self._clock)
        if relay.channels:
            # The client has moved and brings its channels (rule E4).
            channels = self._paths[effect.client.path].routes.setdefault(effect.client.address, {})
            channels.update({number: (relay.sendto, peer) for peer, number in relay.channels.items()})

    def _permit(self, effect: Permit) -> None:
        relay = self._relays.get(effect.relay)
        if relay is not None:
            relay.permitted.add(self._bound_host.get(effect.host, effect.host))

    def _revoke(self, effect: Revoke) -> None:
        relay = self._relays.get(effect.relay)
        if relay is not None:
            relay.permitted.discard(self._bound_host.get(effect.host, effect.host))

    def _bind(self, effect: Bind) -> None:
        relay = self._relays[effect.relay]
        peer = self.inside(effect.peer)
        relay.channels[peer] = effect.number
        if relay.client is not None:
            routes = self._paths[relay.client.path].routes
            routes.setdefault(relay.client.address, {})[effect.number] = (relay.sendto, peer)

    def _unbind(self, effect: Unbind) -> None:
        relay = self._relays[effect.relay]
        relay.channels.pop(self.inside(effect.peer), None)
        if relay.client is not None:
            self._paths[relay.client.path].routes[relay.client.address].pop(effect.number, None)

    def inside(self, peer: Address) -> SocketAddress:
        """Where a peer really is: another client's `external_address` is this machine, and need not leave it."""
        return self._bound_host.get(peer.host, peer.host), peer.port

    def _send_to_peer(self, effect: SendToPeer) -> None:
        relay = self._relays[effect.relay]
        peer = self.inside(effect.peer)
        if effect.dont_fragment:
            relay.set_dont_fragment(True)
        try:
            relay.sendto(effect.data, peer)
            self.to_peers += 1
        except OSError as problem:
            self.to_peers += self.send_again(problem, (relay.sendto, peer), effect.data)
        finally:
            if effect.dont_fragment:
                relay.set_dont_fragment(False)


_APPLY: dict[type[Effect], Callable[[Relay, Any], list[Effect] | None]] = {
    Reply: Relay._reply,
    OpenRelays: Relay._open_relays,
    CloseRelay: Relay._close_relay,
    Join: Relay._join,
    Part: Relay._part,
    Permit: Relay._permit,
    Revoke: Relay._revoke,
    Bind: Relay._bind,
    Unbind: Relay._unbind,
    SendToPeer: Relay._send_to_peer,
    OpenConnection: lambda relay, effect: relay.connections.open(effect),
    JoinConnection: lambda relay, effect: relay.connections.join(effect),
    PassStream: lambda relay, effect: relay.connections.pass_on(effect),
    CloseConnection: lambda relay, effect: relay.connections.close(effect),
}
"""Who applies which effect."""
