"""The STUN/TURN server as a pure machine: requests in, effects out (RFC 8489, RFC 8656)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from wsgate.addr import Address
from wsgate.call_peers import CallPeers
from wsgate.errors import ProtocolError
from wsgate.metrics import Counters
from wsgate.turn import stun
from wsgate.turn.allocation import Allocation
from wsgate.turn.allocator import Allocator, Limits
from wsgate.turn.answers import Answers, Request, mapped_address
from wsgate.turn.auth import (
    REGISTERED_MARK,
    Accepted,
    Authenticator,
    Credentials,
    UnauthenticatedRate,
    same_user,
)
from wsgate.turn.bandwidth import Bucket, Buckets
from wsgate.turn.connections import ConnectionLimits, Connections
from wsgate.turn.discovery import DATAGRAM_BYTES_MAX as DISCOVERY_BYTES_MAX
from wsgate.turn.discovery import Discovery
from wsgate.turn.effects import Client, Effect, RelayAddress
from wsgate.turn.mobility import Tickets
from wsgate.turn.peers import Admittance, Peers
from wsgate.turn.permissions import Permissions
from wsgate.turn.settings import PeerPolicy, TurnSettings, part_of_ports
from wsgate.turn.stun import MessageClass, Method


class TurnServer:
    """STUN Binding and TURN for any transport: bytes of a client and `now` in, effects out.

    The caller applies effects in order and answers OpenRelays with `relays_opened` or `relays_refused` before it hands
    in anything else. ChannelData and peers' packets never come here: the relay engine moves them by Join, Permit, Bind.
    """

    def __init__(
        self,
        settings: TurnSettings,
        *,
        credentials: Credentials,
        peers: Peers,
        relay_addresses: Iterable[RelayAddress],
        nonce_keys: Sequence[bytes],
        unix_time: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        counters: Counters,
        calls: CallPeers | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """`calls` is what the calls of registrations allow, for `peer_policy = call` (rule P6).

        `share` is the number of this worker and how many there are: each has its part of ports and `total_quota`.
        """
        if settings.peer_policy is PeerPolicy.ANY:
            calls = None
        elif calls is None:
            calls = CallPeers()
        self._admittance = Admittance(peers, calls)
        self.counters = counters
        self.random_bytes = random_bytes
        self._authenticator = Authenticator(credentials, nonce_keys, settings.nonce_lifetime, unix_time)
        rate = UnauthenticatedRate(settings.unauthenticated_rate)
        self._answers = Answers(self._authenticator, rate, settings.software, counters)
        self.discovery: Discovery | None = None
        """Set where there is a second address (RFC 5780, rule S4)."""
        self.relay_addresses = tuple(relay_addresses)
        total_quota = max(1, settings.total_quota // share[1])
        limits = Limits(settings.user_quota, total_quota, settings.min_lifetime, settings.max_lifetime)
        connections = ConnectionLimits(
            settings.connections_per_allocation,
            settings.connections_per_user,
            max(1, settings.total_connections // share[1]),
            settings.connects_per_second,
        )
        self._bandwidth = Buckets(settings.user_bandwidth) if settings.user_bandwidth else None
        self._connections = Connections(connections, self._answers, random_bytes, counters, share)
        self._allocator = Allocator(
            limits,
            self.relay_addresses,
            part_of_ports(settings.relay_ports, *share),
            self._answers,
            random_bytes,
            counters,
            self._connections,
            Tickets(random_bytes) if settings.mobility else None,
        )
        self._permissions = Permissions(settings, self._admittance, self._answers, counters, self._allocator.arm)

    @property
    def peers(self) -> Peers:
        """The table of rule P5."""
        return self._admittance.peers

    @peers.setter
    def peers(self, peers: Peers) -> None:
        self._admittance.peers = peers

    @property
    def allocations(self) -> int:
        """How many allocations there are."""
        return len(self._allocator)

    @property
    def datagram_bytes_max(self) -> int:
        """The longest STUN message that is read from UDP (rule S1)."""
        return stun.DATAGRAM_BYTES_MAX if self.discovery is None else DISCOVERY_BYTES_MAX

    @property
    def channel_numbers(self) -> range:
        """The channel numbers that clients may use (rule P2)."""
        return self._permissions.channel_numbers

    def bandwidth(self, client: Client) -> Bucket | None:
        """What the user of this 5-tuple's allocation may still relay; None where nothing bounds it (rule Q1)."""
        allocation = self._allocator.get(client)
        return None if allocation is None else self.bandwidth_of(allocation.user)

    def bandwidth_of(self, user: str) -> Bucket | None:
        """The same for a user."""
        return None if self._bandwidth is None else self._bandwidth.of(user)

    def has_allocation(self, client: Client) -> bool:
        """True while this 5-tuple has an allocation."""
        return self._allocator.get(client) is not None

    def take_unauthenticated(self, host: str, size: int, now: float) -> bool:
        """True when `size` more bytes may go to `host` without authentication (rule S4); they are then counted."""
        return self._answers.take_unauthenticated(host, size, now)

    def users(self) -> dict[str, int]:
        """Allocations by user."""
        return dict(self._allocator.held)

    @property
    def credentials(self) -> Credentials:
        """Who may use the server now."""
        return self._authenticator.credentials

    def reload(self, credentials: Credentials) -> None:
        """Take new users and secrets; what is allocated stays until its user has to show credentials again."""
        self._authenticator.credentials = credentials

    def reconsider(self) -> list[Effect]:
        """Ask the lists of peers again for everything that is installed; call it when `peers` changed (rule P5)."""
        return self._reconsider(self._allocator)

    def reconsider_registrations(self, registrations: Iterable[str]) -> list[Effect]:
        """The same for the allocations of these registrations: their calls allow less than they did (rule P6)."""
        users = (REGISTERED_MARK + registration for registration in registrations)
        return [effect for user in users for effect in self._reconsider(self._allocator.of_user(user))]

    def _reconsider(self, allocations: Iterable[Allocation]) -> list[Effect]:
        rules = self._admittance
        effects: list[Effect] = []
        for one in allocations:
            allowed = partial(rules.allowed, one.user)
            effects += one.reconsider(partial(rules.host_allowed, one.user), allowed)
            effects += self._connections.reconsider(one, allowed)
        return effects

    def receive(
        self,
        data: bytes,
        client: Client,
        now: float,
        bytes_max: int = stun.DATAGRAM_BYTES_MAX,
        *,
        is_stream: bool = False,
    ) -> list[Effect]:
        """Handle one STUN message from `client` (rules S1 to S5); `is_stream`: it came by TCP or TLS."""
        effects = self.handle_timer(now)
        try:
            if len(data) > bytes_max:
                raise ProtocolError("too large")
            message = stun.parse(data)
        except ProtocolError:
            self.counters.count("turn_malformed_dropped")
            return effects
        if message.method != Method.BINDING or self.discovery is None or client.path not in self.discovery:
            message.disown(stun.DISCOVERY_ATTRIBUTES)
        if self.credentials.token_keys is None:
            message.disown((stun.ACCESS_TOKEN.number,))
        request = Request(message, client, now, is_stream=is_stream)
        if message.message_class is MessageClass.REQUEST:
            return effects + self._request(request)
        if message.message_class is MessageClass.INDICATION and message.method == Method.SEND:
            return effects + self._permissions.send(request, self._allocator.get(client))
        if (message.message_class, message.method) != (MessageClass.INDICATION, Method.BINDING):
            self.counters.count("turn_unexpected_dropped")
        return effects

    def relays_opened(self, relays: tuple[Address, ...], now: float) -> list[Effect]:
        """The addresses of an OpenRelays are bound: the allocation begins (RFC 8656 §7.2)."""
        return self._allocator.relays_opened(relays, now)

    def relays_refused(self, relays: tuple[Address, ...], exhausted: bool, now: float) -> list[Effect]:
        """The addresses of an OpenRelays are not bound: other ports are tried, or 508 when `exhausted` (rule Q1)."""
        return self._allocator.relays_refused(relays, exhausted, now)

    def client_closed(self, client: Client, now: float) -> list[Effect]:
        """The stream of `client` is gone: so is its allocation (rule L4)."""
        self._answers.forget(client)
        return self._allocator.client_closed(client, now)

    def next_timer(self) -> float | None:
        """When `handle_timer` is to be called, None for not at all."""
        timers = (self._allocator.next_timer(), self._connections.next_timer(), self._answers.next_timer())
        return min((at for at in timers if at is not None), default=None)

    def handle_timer(self, now: float) -> list[Effect]:
        """End what has expired: connections that wait, channels, permissions, reservations, allocations (rules C1, L4,
        P1, P2)."""
        return [
            *self._connections.handle_timer(now),
            *self._allocator.handle_timer(now),
            *self._answers.handle_timer(now),
        ]

    # Connections of TCP allocations (RFC 6062; rule C1): what the engine says of them

    def connected(self, connection: int, now: float) -> list[Effect]:
        """The connection of an OpenConnection stands."""
        return self._connections.connected(connection, now)

    def connect_failed(self, connection: int, now: float, *, exhausted: bool = False) -> list[Effect]:
        """That of an OpenConnection cannot be had; `exhausted` when no descriptor is left (rule Q1)."""
        return self._connections.connect_failed(connection, now, exhausted=exhausted)

    def accepted(self, client: Client, peer: Address, now: float) -> tuple[int, list[Effect]]:
        """`peer` has connected to the relayed address of `client` (RFC 6062 §5.3).

        Returns the number of the connection, 0 where it is to be closed at once, and effects.
        """
        allocation = self._allocator.get(client)
        if (
            allocation is None
            or peer.host not in allocation.permissions
            or not self._admittance.allowed(allocation.user, peer)
        ):
            self.counters.count("turn_connections_refused")
            return 0, []
        return self._connections.accepted(allocation, peer, now)

    def connection_closed(self, connection: int) -> None:
        """One side of a connection has ended, and the engine has closed both."""
        self._connections.closed(connection)

    def _request(self, request: Request) -> list[Effect]:
        message = request.message
        if message.method == Method.BINDING:
            return self._binding(request)
        handler = _HANDLERS.get(message.method)
        if handler is None:
            self.counters.count("turn_unexpected_dropped")
            return []
        try:
            allocation = self._concerned(request)
            session, holder = (None, "") if allocation is None else (allocation.session, allocation.user)
            verdict = self._authenticator.check(message, request.client.address, session, holder)
            if not isinstance(verdict, Accepted):
                return self._answers.refused(request, verdict.code, challenge=verdict.challenge)
            request = request._replace(accepted=verdict)
            if message.unknown:
                return self._answers.unknown(request)
            return handler(self, request)
        except ProtocolError:
            return self._answers.error(request, 400)

    def _concerned(self, request: Request) -> Allocation | None:
        """What a request goes on with: the allocation of its 5-tuple, else of its ticket or CONNECTION-ID.

        Whose it is decides what credentials are good for it, so it is looked up before they are judged (rule A4).
        """
        message = request.message
        if message.method == Method.CONNECTION_BIND:
            try:
                return self._connections.allocation_of(message.get(stun.CONNECTION_ID))
            except ProtocolError:
                return None  # 400, but not before it is known who asks
        allocation = self._allocator.get(request.client)
        if allocation is None and message.method == Method.REFRESH:
            allocation = self._allocator.ticket_holder(message.get(stun.MOBILITY_TICKET))
        return allocation

    def _binding(self, request: Request) -> list[Effect]:
        """Answered without authentication and in at most 44 bytes, in 116 to help discovery (rule S4; RFC 8489 §10)."""
        if request.message.unknown:
            return self._answers.unknown(request)
        if self.discovery is not None and request.client.path in self.discovery:
            try:
                return self.discovery.binding(request, self._answers)
            except ProtocolError:
                return self._answers.error(request, 400)
        return self._answers.success(request, (mapped_address(request.client),))

    def _allocate(self, request: Request) -> list[Effect]:
        return self._allocator.allocate(request)

    def _refresh(self, request: Request) -> list[Effect]:
        ticket = request.message.get(stun.MOBILITY_TICKET)
        if ticket is not None:
            return self._allocator.move(request, ticket)
        return self._at_own_allocation(request, self._allocator.refresh)

    def _connect(self, request: Request) -> list[Effect]:
        return self._at_own_allocation(request, self._connect_to_peer)

    def _connect_to_peer(self, request: Request, allocation: Allocation) -> list[Effect]:
        """RFC 6062 §5.2, rule C1."""
        if not allocation.is_tcp:
            return self._answers.error(request, 437)
        peer = request.message.get(stun.XOR_PEER_ADDRESS)
        if peer is None:
            return self._answers.error(request, 400)
        if not allocation.relay_for(peer.host):
            return self._answers.error(request, 443)
        # TCP would connect the relayed address with itself.
        is_itself = self._allocator.public(allocation, peer.host) == peer
        if is_itself or not self._admittance.allowed(allocation.user, peer):
            self.counters.count("turn_peers_refused")
            return self._answers.error(request, 403)
        return self._connections.connect(request, allocation, peer)

    def _connection_bind(self, request: Request) -> list[Effect]:
        """RFC 6062 §5.4, rule C1: on a stream that serves for nothing else."""
        if not request.is_stream or self.has_allocation(request.client):
            return self._answers.error(request, 400)
        return self._connections.claim(request, request.message.get(stun.CONNECTION_ID))

    def _at_own_allocation(
        self, request: Request, handler: Callable[[Request, Allocation], list[Effect]]
    ) -> list[Effect]:
        """Go on at the allocation of the 5-tuple if this user made it, else 437 or 441 (RFC 8656 §5)."""
        allocation = self._allocator.get(request.client)
        if allocation is None:
            return self._answers.error(request, 437)
        if not same_user(allocation.user, request.user):
            return self._answers.error(request, 441)
        return handler(request, allocation)

    def _create_permission(self, request: Request) -> list[Effect]:
        return self._at_own_allocation(request, self._permissions.create)

    def _channel_bind(self, request: Request) -> list[Effect]:
        return self._at_own_allocation(request, self._permissions.bind_channel)


_HANDLERS: dict[int, Callable[[TurnServer, Request], list[Effect]]] = {
    Method.ALLOCATE: TurnServer._allocate,
    Method.REFRESH: TurnServer._refresh,
    Method.CREATE_PERMISSION: TurnServer._create_permission,
    Method.CHANNEL_BIND: TurnServer._channel_bind,
    Method.CONNECT: TurnServer._connect,
    Method.CONNECTION_BIND: TurnServer._connection_bind,
}
"""Who answers which request (RFC 8656 §3.2, RFC 6062 §5); Binding needs no user and stands apart."""
