"""What one client holds of the server: relayed addresses, permissions, channels; and the ports they come from.

RFC 8656 §6, §9, §12; rules L3, L4, P1, P2. The effects by which the relay engine follows are declared here.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable, Iterable
from typing import NamedTuple

from wsgate.addr import Address
from wsgate.turn.auth import Accepted
from wsgate.turn.values import Family, family_of

PERMISSION_SECONDS = 300.0
CHANNEL_SECONDS = 600.0
RESERVATION_SECONDS = 30.0
PORT_REST_SECONDS = 120.0
"""How long a freed port serves nobody but its last user (rule L4)."""
PORTS_RESTING_PER_USER = 64
"""A user with that many resting ports gets those first: opening and freeing does not use up the ports of others."""
EVEN_PORT_DRAWS = 64


class Client(NamedTuple):
    """The client's side of a 5-tuple: `path` is the number of the socket or stream, opaque here; `address` its own."""

    path: int
    address: Address


class RelayAddress(NamedTuple):
    """An address that relay sockets are bound to, and the one that clients are told (`external_address`)."""

    host: str
    public: str


class Reply(NamedTuple):
    """Send a STUN message to a client."""

    client: Client
    data: bytes


class OpenRelays(NamedTuple):
    """Bind these addresses, all or none; the answer is `relays_opened` or `relays_refused` of the server, at once.

    With `is_tcp` they are listened on for the connections of peers (RFC 6062 §5.1).
    """

    relays: tuple[Address, ...]
    is_tcp: bool = False


class CloseRelay(NamedTuple):
    """Close a relayed address and forget what was set on it."""

    relay: Address


class Join(NamedTuple):
    """What arrives at `relay` belongs to `client`, and the client's channels go out there."""

    relay: Address
    client: Client


class Part(NamedTuple):
    """The client of `relay` is gone and may come back elsewhere (RFC 8016): what arrives is dropped until a Join."""

    relay: Address


class Permit(NamedTuple):
    """Take data from any port of `host`."""

    relay: Address
    host: str


class Revoke(NamedTuple):
    """Take no more data from `host`."""

    relay: Address
    host: str


class Bind(NamedTuple):
    """Channel `number` is `peer`, both ways."""

    relay: Address
    number: int
    peer: Address


class Unbind(NamedTuple):
    """Channel `number` is nothing any more."""

    relay: Address
    number: int
    peer: Address


class SendToPeer(NamedTuple):
    """Send `data` from `relay` to `peer`, with the DF bit when `dont_fragment` (RFC 8656 §18.9)."""

    relay: Address
    peer: Address
    data: bytes
    dont_fragment: bool


class OpenConnection(NamedTuple):
    """Connect from `relay` to `peer`; the answer is `connected` or `connect_failed` of the server."""

    connection: int
    relay: Address
    peer: Address


class JoinConnection(NamedTuple):
    """The stream of `client` is joined to the connection: every byte behind this message goes to the peer, and back."""

    connection: int
    client: Client
    user: str


class PassStream(NamedTuple):
    """The stream of `client` is for a connection of another worker: `request` and what follows is to be carried there,
    and back."""

    worker: int
    client: Client
    request: bytes


class CloseConnection(NamedTuple):
    """Close the connection with the peer, and the stream that is joined to it."""

    connection: int


Effect = (
    Reply
    | OpenRelays
    | CloseRelay
    | Join
    | Part
    | Permit
    | Revoke
    | Bind
    | Unbind
    | SendToPeer
    | OpenConnection
    | JoinConnection
    | PassStream
    | CloseConnection
)


class State(enum.Enum):
    """Where an allocation stands."""

    OPENING = "opening"
    ALLOCATED = "allocated"
    FREED = "freed"


class Event(enum.Enum):
    """What happens to an allocation."""

    OPENED = "opened"
    REFUSED = "refused"
    REFRESHED = "refreshed"
    MOVED = "moved"
    ENDED = "ended"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.OPENING, Event.OPENED): State.ALLOCATED,  # RFC 8656 §7.2, the success answer
    (State.OPENING, Event.REFUSED): State.FREED,  # RFC 8656 §7.2, 508
    (State.ALLOCATED, Event.REFRESHED): State.ALLOCATED,  # RFC 8656 §8.2
    (State.ALLOCATED, Event.MOVED): State.ALLOCATED,  # RFC 8016 §3.2.2
    (State.ALLOCATED, Event.ENDED): State.FREED,  # RFC 8656 §8.2 lifetime 0, §6 expiry; L4 its stream closed
}


class Channel(NamedTuple):
    """One binding (RFC 8656 §12)."""

    peer: Address
    expires: float


class Allocation:
    """One allocation. Times are seconds of the monotonic clock; permissions and channels stand in order of expiry."""

    __slots__ = (
        "answer",
        "armed",
        "channels",
        "client",
        "connections",
        "expires",
        "is_tcp",
        "lifetime",
        "mobile",
        "numbers",
        "permissions",
        "relays",
        "reserved",
        "reserved_until",
        "session",
        "state",
        "ticket",
        "token",
        "transaction_id",
        "user",
    )

    def __init__(self, client: Client, user: str, transaction_id: bytes, lifetime: int) -> None:
        self.client = client
        self.user = user
        self.transaction_id = transaction_id
        self.answer = b""
        self.state = State.OPENING
        self.relays: dict[Family, Address] = {}
        self.reserved: Address | None = None
        self.reserved_until = 0.0
        self.token = b""
        self.lifetime = lifetime
        self.mobile = False
        self.session: Accepted | None = None
        self.ticket = b""
        self.expires = 0.0
        self.armed = 0.0
        self.permissions: dict[str, float] = {}
        self.channels: dict[int, Channel] = {}
        self.numbers: dict[Address, int] = {}
        self.is_tcp = False
        self.connections: dict[Address, int] = {}
        """Of a TCP allocation: peers and the CONNECTION-IDs of their connections (RFC 6062)."""

    def advance(self, event: Event) -> None:
        """Go where the table says. Raises KeyError for what it does not have."""
        self.state = TRANSITIONS[self.state, event]

    def show(self, accepted: Accepted | None) -> None:
        """Keep the token that was shown last: other requests are signed with its key (RFC 7635)."""
        self.session = accepted if accepted is not None and accepted.seconds_max is not None else None

    def remember(self, transaction_id: bytes, effects: Iterable[Effect]) -> None:
        """Keep the answer to the request that brought the allocation to its 5-tuple, for its retransmissions (L1)."""
        self.transaction_id = transaction_id
        self.answer = b"".join(effect.data for effect in effects if isinstance(effect, Reply))

    def relay_for(self, host: str) -> Address | None:
        """The relayed address of the peer's family."""
        return self.relays.get(family_of(host))

    def permit(self, host: str, now: float) -> list[Effect]:
        """Install or refresh the permission of `host` (rule P1), in constant time."""
        known = self.permissions.pop(host, None) is not None
        self.permissions[host] = now + PERMISSION_SECONDS
        return [] if known else [Permit(self.relays[family_of(host)], host)]

    def bind(self, number: int, peer: Address, now: float) -> list[Effect]:
        """Install or refresh a channel and the permission that goes with it (rule P2)."""
        known = self.channels.pop(number, None) is not None
        self.channels[number] = Channel(peer, now + CHANNEL_SECONDS)
        self.numbers[peer] = number
        effects = self.permit(peer.host, now)
        return effects if known else [*effects, Bind(self.relays[family_of(peer.host)], number, peer)]

    def revoke(self, host: str) -> Effect:
        """Take the permission of `host` away."""
        del self.permissions[host]
        return Revoke(self.relays[family_of(host)], host)

    def unbind(self, number: int) -> Effect:
        """Take a channel away."""
        peer = self.channels.pop(number).peer
        del self.numbers[peer]
        return Unbind(self.relays[family_of(peer.host)], number, peer)

    def deadline(self) -> float:
        """When something of it expires next."""
        first = self.expires if self.reserved is None else min(self.expires, self.reserved_until)
        for expires in self.permissions.values():
            first = min(first, expires)
            break
        for channel in self.channels.values():
            return min(first, channel.expires)
        return first

    def expire(self, now: float) -> list[Effect]:
        """Drop the permissions and channels whose time is over; the allocation's own end is the server's."""
        effects: list[Effect] = []
        while self.permissions and (host := next(iter(self.permissions))) and self.permissions[host] <= now:
            effects.append(self.revoke(host))
        while self.channels and (number := next(iter(self.channels))) and self.channels[number].expires <= now:
            effects.append(self.unbind(number))
        return effects

    def leave(self, family: Family) -> list[Effect]:
        """Give up one of two families with all that was set on it (RFC 8656 §8.2)."""
        hosts = [host for host in self.permissions if family_of(host) is family]
        numbers = [number for number, channel in self.channels.items() if family_of(channel.peer.host) is family]
        effects = [*map(self.revoke, hosts), *map(self.unbind, numbers)]
        return [*effects, CloseRelay(self.relays.pop(family))]

    def reconsider(self, host_allowed: Callable[[str], bool], allowed: Callable[[Address], bool]) -> list[Effect]:
        """Drop what new lists of peers refuse (rule P5)."""
        hosts = [host for host in self.permissions if not host_allowed(host)]
        numbers = [number for number, channel in self.channels.items() if not allowed(channel.peer)]
        return [*map(self.revoke, hosts), *map(self.unbind, numbers)]


class Ports:
    """The relay ports of one address: drawn at random, resting after use (rules L2, L4). Constant time per draw."""

    def __init__(self, low: int, high: int, random_bytes: Callable[[int], bytes]) -> None:
        self._low = low
        self._free = array("H", range(low, high + 1))
        self._place = array("i", range(high - low + 1))
        self._random_bytes = random_bytes
        self._resting: dict[int, tuple[float, str]] = {}
        self._resting_of: dict[str, dict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._free)

    def draw(self, user: str, now: float) -> int | None:
        """A random port for `user`, None when all are in use or resting for others."""
        self._release(now)
        own = self._resting_of.get(user, {})
        if self._free and len(own) < PORTS_RESTING_PER_USER:
            return self._take(self._free[self._index(len(self._free))])
        if own:
            port = next(iter(own))
            self._wake(port)
            return port
        return None

    def draw_even(self, user: str, now: float, *, pair: bool) -> int | None:
        """A random even port, with `pair` the next one free and taken too (EVEN-PORT, RFC 8656 §7.2)."""
        self._release(now)
        own = self._resting_of.get(user, {})
        if len(own) >= PORTS_RESTING_PER_USER:
            for port in own:
                if not port & 1 and (not pair or port + 1 in own):
                    self._wake(port)
                    if pair:
                        self._wake(port + 1)
                    return port
            return None
        if not self._free:
            return None
        draws = (self._free[self._index(len(self._free))] & ~1 for _ in range(EVEN_PORT_DRAWS))
        for port in (*draws, *(port for port in self._free if not port & 1)):
            if self._is_free(port) and (not pair or self._is_free(port + 1)):
                if pair:
                    self._take(port + 1)
                return self._take(port)
        return None

    def rest(self, port: int, user: str, now: float) -> None:
        """Give a port back; for PORT_REST_SECONDS only `user` may get it (nobody when empty: it is used elsewhere)."""
        self._resting[port] = (now + PORT_REST_SECONDS, user)
        if user:
            self._resting_of.setdefault(user, {})[port] = None

    def _index(self, count: int) -> int:
        return int.from_bytes(self._random_bytes(4), "big") % count

    def _is_free(self, port: int) -> bool:
        return 0 <= port - self._low < len(self._place) and self._place[port - self._low] >= 0

    def _take(self, port: int) -> int:
        place = self._place[port - self._low]
        last = self._free.pop()
        if last != port:
            self._free[place] = last
            self._place[last - self._low] = place
        self._place[port - self._low] = -1
        return port

    def _wake(self, port: int) -> None:
        _, user = self._resting.pop(port)
        if user:
            del self._resting_of[user][port]
            if not self._resting_of[user]:
                del self._resting_of[user]

    def _release(self, now: float) -> None:
        while self._resting and self._resting[port := next(iter(self._resting))][0] <= now:
            self._wake(port)
            self._place[port - self._low] = len(self._free)
            self._free.append(port)
