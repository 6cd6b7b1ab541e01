"""The STUN/TURN server as a pure machine: requests in, effects out (RFC 8489, RFC 8656)."""

from __future__ import annotations

import dataclasses
import enum
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from wsgate.addr import Address, Network
from wsgate.errors import ProtocolError
from wsgate.metrics import Counters
from wsgate.settings import (
    ADDRESSES,
    BOOLEAN,
    NETWORKS,
    PORT_RANGE,
    STRINGS,
    TEXT,
    auto,
    choice,
    integer,
    option,
    seconds,
)
from wsgate.turn import stun
from wsgate.turn.allocation import (
    RESERVATION_SECONDS,
    Allocation,
    Client,
    CloseRelay,
    Effect,
    Event,
    Join,
    OpenRelays,
    Ports,
    Reply,
    SendToPeer,
)
from wsgate.turn.answers import Answers, Field, Request, error_code, mapped_address
from wsgate.turn.auth import Accepted, Authenticator, Credentials, SecretHash, UnauthenticatedRate
from wsgate.turn.peers import Peers
from wsgate.turn.stun import ErrorCode, Family, Message, MessageClass, Method, family_of


class PeerPolicy(enum.Enum):
    """Which peers a user may relay to (rules P5, P6)."""

    ANY = "any"
    CALL = "call"


class RelayEngine(enum.Enum):
    """Which engine moves the packets (rule F1)."""

    AUTO = "auto"
    PURE = "pure"
    COMPILED = "compiled"


class ChannelRange(enum.Enum):
    """Which channel numbers are accepted (rule P2)."""

    RFC8656 = "rfc8656"
    RFC5766 = "rfc5766"


TURN_ADDRESSES = (Address("0.0.0.0", 3478), Address("::", 3478))


@dataclasses.dataclass(frozen=True)
class TurnSettings:
    """[turn]"""

    enabled: bool = option(True, BOOLEAN)
    udp: tuple[Address, ...] = option(TURN_ADDRESSES, ADDRESSES)
    tcp: tuple[Address, ...] = option(TURN_ADDRESSES, ADDRESSES, later="TURN over TCP")
    tls: tuple[Address, ...] = option((), ADDRESSES, later="TURN over TLS")
    dtls: bool = option(True, BOOLEAN, later="TURN over DTLS")
    certificate: str = option("", TEXT, later="TURN over TLS")
    private_key: str = option("", TEXT, later="TURN over TLS")
    realm: str = option("example.com", TEXT)
    relay_address: tuple[str, ...] | None = option(None, auto(STRINGS))
    external_address: tuple[str, ...] = option((), STRINGS)
    relay_ports: tuple[int, int] = option((49152, 65535), PORT_RANGE)
    alternate_address: str = option("", TEXT, later="RFC 5780 behaviour discovery")
    users: str = option("", TEXT)
    shared_secret: tuple[str, ...] = option((), STRINGS)
    shared_secret_file: str = option("", TEXT)
    shared_secret_hash: SecretHash = option(SecretHash.SHA1, choice(SecretHash))
    credentials_with_register: bool = option(True, BOOLEAN, later="credentials with the registration")
    credential_ttl: int = option(3600, integer(60, 2592000))
    uris: tuple[str, ...] | None = option(None, auto(STRINGS))
    peer_policy: PeerPolicy = option(PeerPolicy.ANY, choice(PeerPolicy), later="peers by call")
    allow_peers: tuple[Network, ...] = option((), NETWORKS)
    deny_peers: tuple[Network, ...] = option((), NETWORKS)
    relay_engine: RelayEngine = option(RelayEngine.AUTO, choice(RelayEngine))
    relay_tick: float = option(0.001, seconds(0, 0.1))
    min_lifetime: int = option(600, integer(1, 3600))
    max_lifetime: int = option(3600, integer(60, 86400))
    nonce_lifetime: int = option(600, integer(1, 86400))
    user_quota: int = option(50, integer(1, 1000000))
    user_bandwidth: int = option(0, integer(0, 10**12), later="bandwidth per user")
    total_quota: int = option(10000, integer(1, 1000000))
    channel_range: ChannelRange = option(ChannelRange.RFC8656, choice(ChannelRange))
    permissions_per_allocation: int = option(1024, integer(1, 65536))
    channels_per_allocation: int = option(1024, integer(1, 4096))
    unauthenticated_rate: int = option(4096, integer(128, 10**9))
    mobility: bool = option(False, BOOLEAN, later="mobility tickets")
    oauth_keys: str = option("", TEXT, later="third-party tokens")
    software: str = option("", TEXT)


UDP_PROTOCOL = 17
DEFAULT_LIFETIME_SECONDS = 600
OPENING_TRIES = 16
"""How many ports are tried when other programs hold them (rule L1, 508)."""

CHANNEL_NUMBERS = {
    ChannelRange.RFC8656: range(0x4000, 0x5000),
    ChannelRange.RFC5766: range(0x4000, 0x7FFF),
}
"""Which channel numbers are accepted (RFC 8656 §12, RFC 5766 §11; rule P2)."""


class RelayAddress(NamedTuple):
    """An address that relay sockets are bound to, and the one that clients are told (`external_address`)."""

    host: str
    public: str


class _Opening(NamedTuple):
    """An allocation whose relayed addresses are being bound."""

    request: Request
    allocation: Allocation
    families: tuple[Family, ...]
    even: stun.EvenPort | None
    errors: tuple[tuple[int, ErrorCode], ...]
    tries: int


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
    ) -> None:
        self.peers = peers
        self.counters = counters
        self.random_bytes = random_bytes
        self._settings = settings
        self._authenticator = Authenticator(credentials, nonce_keys, settings.nonce_lifetime, unix_time)
        rate = UnauthenticatedRate(settings.unauthenticated_rate)
        self._answers = Answers(self._authenticator, rate, settings.software, counters)
        self.relay_addresses = tuple(relay_addresses)
        self._relay_addresses = {family_of(relay.host): relay for relay in self.relay_addresses}
        self._ports = {family: Ports(*settings.relay_ports, random_bytes) for family in self._relay_addresses}
        self._allocations: dict[Client, Allocation] = {}
        self._held: Counter[str] = Counter()
        self._reservations: dict[bytes, Allocation] = {}
        self._opening: dict[tuple[Address, ...], _Opening] = {}
        self._timers: list[tuple[float, int, Allocation]] = []
        self._serial = 0

    @property
    def allocations(self) -> int:
        """How many allocations there are."""
        return len(self._allocations)

    @property
    def channel_numbers(self) -> range:
        """The channel numbers that clients may use (rule P2)."""
        return CHANNEL_NUMBERS[self._settings.channel_range]

    def users(self) -> dict[str, int]:
        """Allocations by user."""
        return dict(self._held)

    def reload(self, credentials: Credentials) -> None:
        """Take new users and secrets; what is allocated stays until its user has to show credentials again."""
        self._authenticator.credentials = credentials

    def reconsider(self) -> list[Effect]:
        """Ask the lists of peers again for everything that is installed; call it when `peers` changed (rule P5)."""
        return [
            effect
            for allocation in self._allocations.values()
            for effect in allocation.reconsider(self.peers.host_allowed, self.peers.allowed)
        ]

    def receive(
        self, data: bytes, client: Client, now: float, bytes_max: int = stun.DATAGRAM_BYTES_MAX
    ) -> list[Effect]:
        """Handle one STUN message from `client` (rules S1 to S5)."""
        effects = self.handle_timer(now) if self._timers and self._timers[0][0] <= now else []
        try:
            if len(data) > bytes_max:
                raise ProtocolError("too large")
            message = stun.parse(data)
        except ProtocolError:
            self.counters.count("turn_malformed_dropped")
            return effects
        request = Request(message, client, now)
        if message.message_class is MessageClass.REQUEST:
            return effects + self._request(request)
        if message.message_class is MessageClass.INDICATION and message.method == Method.SEND:
            return effects + self._send(request)
        if (message.message_class, message.method) != (MessageClass.INDICATION, Method.BINDING):
            self.counters.count("turn_unexpected_dropped")
        return effects

    def relays_opened(self, relays: tuple[Address, ...], now: float) -> list[Effect]:
        """The addresses of an OpenRelays are bound: the allocation begins (RFC 8656 §7.2)."""
        opening = self._opening.pop(relays)
        allocation = opening.allocation
        allocation.relays = dict(zip(opening.families, relays, strict=False))
        if len(relays) > len(opening.families):
            allocation.reserved = relays[-1]
            allocation.reserved_until = now + RESERVATION_SECONDS
            allocation.token = self.random_bytes(8)
            self._reservations[allocation.token] = allocation
        return self._begin(opening.request._replace(now=now), allocation, opening.errors)

    def relays_refused(self, relays: tuple[Address, ...], exhausted: bool, now: float) -> list[Effect]:
        """The addresses of an OpenRelays are not bound: other ports are tried, or 508 when `exhausted` (rule Q1)."""
        opening = self._opening.pop(relays)
        for relay in relays:
            self._ports[family_of(relay.host)].rest(relay.port, opening.allocation.user if exhausted else "", now)
        if exhausted or opening.tries >= OPENING_TRIES:
            opening.allocation.advance(Event.REFUSED)
            return self._answers.error(opening.request, 508)
        return self._open(opening._replace(tries=opening.tries + 1))

    def client_closed(self, client: Client, now: float) -> list[Effect]:
        """The stream of `client` is gone: so is its allocation (rule L4)."""
        allocation = self._allocations.get(client)
        return [] if allocation is None else self._free(allocation, now)

    def next_timer(self) -> float | None:
        """When `handle_timer` is to be called, None for not at all."""
        return self._timers[0][0] if self._timers else None

    def handle_timer(self, now: float) -> list[Effect]:
        """End what has expired: channels, permissions, reservations, allocations (rules L4, P1, P2)."""
        effects: list[Effect] = []
        while self._timers and self._timers[0][0] <= now:
            deadline, _, allocation = heapq.heappop(self._timers)
            if allocation.armed != deadline or self._allocations.get(allocation.client) is not allocation:
                continue
            if allocation.expires <= now:
                self.counters.count("turn_allocations_expired")
                effects += self._free(allocation, now)
                continue
            if allocation.reserved is not None and allocation.reserved_until <= now:
                effects += self._drop_reservation(allocation, now)
            effects += allocation.expire(now)
            allocation.armed = 0.0
            self._arm(allocation)
        return effects

    def _arm(self, allocation: Allocation) -> None:
        """One entry per allocation is alive; entries that are not are passed over, and swept when they outnumber it."""
        deadline = allocation.deadline()
        if 0.0 < allocation.armed <= deadline:
            return
        allocation.armed = deadline
        self._serial += 1
        heapq.heappush(self._timers, (deadline, self._serial, allocation))
        if len(self._timers) > 2 * len(self._allocations) + 64:
            live = self._allocations.values()
            self._timers = [(one.armed, serial, one) for serial, one in enumerate(live)]
            self._serial = len(self._timers)
            heapq.heapify(self._timers)

    def _request(self, request: Request) -> list[Effect]:
        message = request.message
        if message.method == Method.BINDING:
            return self._binding(request)
        handler = _HANDLERS.get(message.method)
        if handler is None:
            self.counters.count("turn_unexpected_dropped")
            return []
        try:
            verdict = self._authenticator.check(message, request.client.address)
            if not isinstance(verdict, Accepted):
                return self._answers.refused(request, verdict.code, challenge=verdict.challenge)
            request = request._replace(accepted=verdict)
            if message.unknown:
                return self._answers.unknown(request)
            return handler(self, request)
        except ProtocolError:
            return self._answers.error(request, 400)

    def _binding(self, request: Request) -> list[Effect]:
        """Answered without authentication and in at most 44 bytes (rule S4; RFC 8489 §10)."""
        if request.message.unknown:
            return self._answers.unknown(request)
        return self._answers.success(request, (mapped_address(request.client),))

    def _allocate(self, request: Request) -> list[Effect]:
        """RFC 8656 §7.2 in the order of rule L1."""
        message, user = request.message, request.user
        allocation = self._allocations.get(request.client)
        if allocation is not None:
            if (allocation.transaction_id, allocation.user) == (message.transaction_id, user):
                return [Reply(request.client, allocation.answer)]
            return self._answers.error(request, 437)
        transport = message.get(stun.REQUESTED_TRANSPORT)
        if transport != UDP_PROTOCOL:
            return self._answers.error(request, 400 if transport is None else 442)
        even, token = message.get(stun.EVEN_PORT), message.get(stun.RESERVATION_TOKEN)
        families = self._families(message, even, token)
        if isinstance(families, int):
            return self._answers.error(request, families)
        if self._held[user] >= self._settings.user_quota or self.allocations >= self._settings.total_quota:
            return self._answers.error(request, 486)
        allocation = Allocation(request.client, user, message.transaction_id, self._lifetime(message))
        if token is not None:
            return self._redeem(request, allocation, token)
        present = tuple(family for family in families if family in self._relay_addresses)
        errors = tuple((family, error_code(440)) for family in families if family not in present)
        return self._open(_Opening(request, allocation, present, even, errors, 1))

    def _families(self, message: Message, even: stun.EvenPort | None, token: bytes | None) -> tuple[Family, ...] | int:
        """The families to allocate, the first of them at any rate; or an error code (RFC 8656 §7.2)."""
        requested = message.get(stun.REQUESTED_ADDRESS_FAMILY)
        additional = message.get(stun.ADDITIONAL_ADDRESS_FAMILY)
        if token is not None and (even, requested, additional) != (None, None, None):
            return 400
        if additional is not None and (
            requested is not None or additional != Family.IPV6 or (even is not None and even.reserve)
        ):
            return 400
        if requested not in (None, *self._relay_addresses):
            return 440
        first = Family.IPV4 if requested is None else Family(requested)
        if token is None and first not in self._relay_addresses:
            return 440
        return (first,) if additional is None else (first, Family.IPV6)

    def _redeem(self, request: Request, allocation: Allocation, token: bytes) -> list[Effect]:
        """Take the port that an earlier Allocate of the same user reserved (RFC 8656 §7.2)."""
        holder = self._reservations.get(token)
        if holder is None or holder.user != allocation.user or holder.reserved is None:
            return self._answers.error(request, 508)
        relay, holder.reserved = holder.reserved, None
        del self._reservations[token]
        allocation.relays = {family_of(relay.host): relay}
        return self._begin(request, allocation, ())

    def _open(self, opening: _Opening) -> list[Effect]:
        """Draw ports and have them bound."""
        relays: list[Address] = []
        now, user = opening.request.now, opening.allocation.user
        reserve = opening.even is not None and opening.even.reserve
        for family in opening.families:
            ports, host = self._ports[family], self._relay_addresses[family].host
            port = ports.draw(user, now) if opening.even is None else ports.draw_even(now, pair=reserve)
            if port is None:
                for relay in relays:
                    self._ports[family_of(relay.host)].rest(relay.port, user, now)
                opening.allocation.advance(Event.REFUSED)
                return self._answers.error(opening.request, 508)
            relays.append(Address(host, port))
            if reserve:
                relays.append(Address(host, port + 1))
        self._opening[tuple(relays)] = opening
        return [OpenRelays(tuple(relays))]

    def _begin(
        self, request: Request, allocation: Allocation, errors: tuple[tuple[int, ErrorCode], ...]
    ) -> list[Effect]:
        """The allocation stands: remember it, join its addresses to the client, answer."""
        allocation.advance(Event.OPENED)
        allocation.expires = request.now + allocation.lifetime
        self._allocations[request.client] = allocation
        self._held[allocation.user] += 1
        self._arm(allocation)
        self.counters.count("turn_allocations_made")
        fields: list[Field] = [stun.XOR_RELAYED_ADDRESS(self._public(relay)) for relay in allocation.relays.values()]
        fields += [stun.LIFETIME(allocation.lifetime), mapped_address(request.client)]
        fields += [stun.ADDRESS_ERROR_CODE(error) for error in errors]
        if allocation.token:
            fields.append(stun.RESERVATION_TOKEN(allocation.token))
        answer = self._answers.success(request, fields)
        allocation.answer = b"".join(effect.data for effect in answer if isinstance(effect, Reply))
        return [*(Join(relay, request.client) for relay in allocation.relays.values()), *answer]

    def _refresh(self, request: Request) -> list[Effect]:
        """RFC 8656 §8.2, rule L3."""
        allocation = self._own_allocation(request)
        if isinstance(allocation, int):
            return self._answers.error(request, allocation)
        family = request.message.get(stun.REQUESTED_ADDRESS_FAMILY)
        if family is not None and family not in allocation.relays:
            return self._answers.error(request, 443)
        effects: list[Effect] = []
        lifetime = self._lifetime(request.message)
        if lifetime:
            allocation.advance(Event.REFRESHED)
            allocation.expires = request.now + lifetime
            self._arm(allocation)
        elif family is not None and len(allocation.relays) > 1:
            self._rest(allocation.relays[Family(family)], allocation, request.now)
            effects = allocation.leave(Family(family))
        else:
            effects = self._free(allocation, request.now)
        return effects + self._answers.success(request, (stun.LIFETIME(lifetime),))

    def _create_permission(self, request: Request) -> list[Effect]:
        """RFC 8656 §10.2, rule P1: all peers or none."""
        allocation = self._own_allocation(request)
        if isinstance(allocation, int):
            return self._answers.error(request, allocation)
        peers = request.message.all(stun.XOR_PEER_ADDRESS)
        hosts = {peer.host: None for peer in peers}
        if not hosts:
            return self._answers.error(request, 400)
        if not all(allocation.relay_for(host) for host in hosts):
            return self._answers.error(request, 443)
        if not all(self.peers.host_allowed(host) for host in hosts):
            self.counters.count("turn_peers_refused")
            return self._answers.error(request, 403)
        if self._permissions_full(allocation, hosts):
            return self._answers.error(request, 508)
        effects = [effect for host in hosts for effect in allocation.permit(host, request.now)]
        self._arm(allocation)
        return effects + self._answers.success(request)

    def _channel_bind(self, request: Request) -> list[Effect]:
        """RFC 8656 §12.2, rule P2."""
        allocation = self._own_allocation(request)
        if isinstance(allocation, int):
            return self._answers.error(request, allocation)
        number, peer = request.message.get(stun.CHANNEL_NUMBER), request.message.get(stun.XOR_PEER_ADDRESS)
        if number not in self.channel_numbers or number is None or peer is None:
            return self._answers.error(request, 400)
        if not allocation.relay_for(peer.host):
            return self._answers.error(request, 443)
        channel = allocation.channels.get(number)
        if (channel is not None and channel.peer != peer) or allocation.numbers.get(peer, number) != number:
            return self._answers.error(request, 400)
        if not self.peers.allowed(peer):
            self.counters.count("turn_peers_refused")
            return self._answers.error(request, 403)
        full = channel is None and len(allocation.channels) >= self._settings.channels_per_allocation
        if full or self._permissions_full(allocation, (peer.host,)):
            return self._answers.error(request, 508)
        effects = allocation.bind(number, peer, request.now)
        self._arm(allocation)
        return effects + self._answers.success(request)

    def _send(self, request: Request) -> list[Effect]:
        """RFC 8656 §11.2, rule P3: what is not complete or has no permission is dropped."""
        message = request.message
        allocation = self._allocations.get(request.client)
        try:
            peer, data = message.get(stun.XOR_PEER_ADDRESS), message.get(stun.DATA)
        except ProtocolError:
            peer, data = None, None
        if allocation is None or peer is None or data is None or message.unknown:
            self.counters.count("turn_send_dropped")
            return []
        relay = allocation.relay_for(peer.host)
        if relay is None or peer.host not in allocation.permissions or not self.peers.port_allowed(*peer):
            self.counters.count("turn_send_dropped")
            return []
        return [SendToPeer(relay, peer, data, message.get(stun.DONT_FRAGMENT) is not None)]

    def _own_allocation(self, request: Request) -> Allocation | int:
        """The allocation of the 5-tuple if this user made it, else 437 or 441 (RFC 8656 §5)."""
        allocation = self._allocations.get(request.client)
        if allocation is None:
            return 437
        return allocation if allocation.user == request.user else 441

    def _permissions_full(self, allocation: Allocation, hosts: Iterable[str]) -> bool:
        more = sum(host not in allocation.permissions for host in hosts)
        return more > 0 and len(allocation.permissions) + more > self._settings.permissions_per_allocation

    def _lifetime(self, message: Message) -> int:
        """Seconds that are granted; 0 stays 0 in a Refresh (rules L2, L3)."""
        asked = message.get(stun.LIFETIME)
        if asked == 0 and message.method == Method.REFRESH:
            return 0
        asked = DEFAULT_LIFETIME_SECONDS if asked is None else asked
        return max(self._settings.min_lifetime, min(asked, self._settings.max_lifetime))

    def _free(self, allocation: Allocation, now: float) -> list[Effect]:
        """End an allocation and give back everything it held (rule L4)."""
        allocation.advance(Event.ENDED)
        del self._allocations[allocation.client]
        self._held[allocation.user] -= 1
        if not self._held[allocation.user]:
            del self._held[allocation.user]
        effects = self._drop_reservation(allocation, now) if allocation.reserved is not None else []
        for relay in allocation.relays.values():
            self._rest(relay, allocation, now)
            effects.append(CloseRelay(relay))
        return effects

    def _drop_reservation(self, allocation: Allocation, now: float) -> list[Effect]:
        relay, allocation.reserved = allocation.reserved, None
        del self._reservations[allocation.token]
        if relay is None:
            return []
        self._rest(relay, allocation, now)
        return [CloseRelay(relay)]

    def _rest(self, relay: Address, allocation: Allocation, now: float) -> None:
        self._ports[family_of(relay.host)].rest(relay.port, allocation.user, now)

    def _public(self, relay: Address) -> Address:
        return Address(self._relay_addresses[family_of(relay.host)].public, relay.port)


_HANDLERS: dict[int, Callable[[TurnServer, Request], list[Effect]]] = {
    Method.ALLOCATE: TurnServer._allocate,
    Method.REFRESH: TurnServer._refresh,
    Method.CREATE_PERMISSION: TurnServer._create_permission,
    Method.CHANNEL_BIND: TurnServer._channel_bind,
}
"""Who answers which request (RFC 8656 §3.2); Binding needs no user and stands apart."""
