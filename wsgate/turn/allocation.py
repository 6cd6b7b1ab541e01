"""What one client holds of the server: relayed addresses, permissions, channels (RFC 8656 §6, §9, §12).

Rules L3, L4, P1, P2.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import NamedTuple

from wsgate.addr import Address
from wsgate.turn.auth import Accepted
from wsgate.turn.effects import Bind, Client, CloseRelay, Effect, Permit, Reply, Revoke, Unbind
from wsgate.turn.values import Family, family_of

PERMISSION_SECONDS = 300.0
CHANNEL_SECONDS = 600.0
RESERVATION_SECONDS = 30.0


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
        "ends",
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
        self.ends: dict[Family, float] = {}
        """When the relayed address of each family expires (RFC 8656 §6)."""
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

    def extend(self, until: float, family: Family | None = None) -> None:
        """Let the relayed address of `family` last until then, or both of them (RFC 8656 §6, §8.1)."""
        self.ends.update(dict.fromkeys(self.relays if family is None else (family,), until))

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
        first = min(self.ends.values())
        if self.reserved is not None:
            first = min(first, self.reserved_until)
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
        del self.ends[family]
        return [*effects, CloseRelay(self.relays.pop(family))]

    def reconsider(self, host_allowed: Callable[[str], bool], allowed: Callable[[Address], bool]) -> list[Effect]:
        """Drop what new lists of peers refuse (rule P5)."""
        hosts = [host for host in self.permissions if not host_allowed(host)]
        numbers = [number for number, channel in self.channels.items() if not allowed(channel.peer)]
        return [*map(self.revoke, hosts), *map(self.unbind, numbers)]
