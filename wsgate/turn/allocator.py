"""The life of allocations: how they begin, what they may cost, how they end (RFC 8656 §6, §7; rules L1 to L4, Q1)."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from wsgate.addr import Address
from wsgate.errors import ProtocolError
from wsgate.metrics import Counters
from wsgate.turn import stun
from wsgate.turn.allocation import RESERVATION_SECONDS, Allocation, Event
from wsgate.turn.answers import Answers, Field, Request, error_code, mapped_address
from wsgate.turn.auth import same_user
from wsgate.turn.connections import Connections
from wsgate.turn.effects import Client, CloseRelay, Effect, Join, OpenRelays, Part, RelayAddress, Reply
from wsgate.turn.mobility import Tickets
from wsgate.turn.ports import Ports
from wsgate.turn.stun import Message, Method
from wsgate.turn.values import ErrorCode, EvenPort, Family, family_of

TCP_PROTOCOL = 6
UDP_PROTOCOL = 17
DEFAULT_LIFETIME_SECONDS = 600
OPENING_TRIES = 16
"""How many ports are tried when other programs hold them (rule L1, 508)."""


class Limits(NamedTuple):
    """Allocations of one user and of all; seconds that a lifetime may have."""

    user_quota: int
    total_quota: int
    min_lifetime: int
    max_lifetime: int


class _Opening(NamedTuple):
    """An allocation whose relayed addresses are being bound."""

    request: Request
    allocation: Allocation
    families: tuple[Family, ...]
    even: EvenPort | None
    errors: tuple[tuple[int, ErrorCode], ...]
    tries: int

    def without(self, family: Family) -> _Opening:
        """The same without a family that cannot be had: ADDRESS-ERROR-CODE says so (RFC 8656 §7.2; rule L2)."""
        families = tuple(one for one in self.families if one is not family)
        return self._replace(families=families, errors=(*self.errors, (family, error_code(508))))


class Allocator:
    """All allocations of a server by their 5-tuples, their relay ports, and one heap of their deadlines."""

    def __init__(
        self,
        limits: Limits,
        relay_addresses: Iterable[RelayAddress],
        relay_ports: tuple[int, int],
        answers: Answers,
        random_bytes: Callable[[int], bytes],
        counters: Counters,
        connections: Connections,
        tickets: Tickets | None = None,
    ) -> None:
        """`tickets` where allocations may move (rule E4)."""
        self._connections = connections
        self._tickets = tickets
        self.held: Counter[str] = Counter()
        self._limits = limits
        self._answers = answers
        self._random_bytes = random_bytes
        self._counters = counters
        self._relay_addresses = {family_of(relay.host): relay for relay in relay_addresses}
        self._ports = {family: Ports(*relay_ports, random_bytes) for family in self._relay_addresses}
        self._allocations: dict[Client, Allocation] = {}
        self._of_user: dict[str, dict[Client, Allocation]] = {}
        self._reservations: dict[bytes, Allocation] = {}
        self._opening: dict[tuple[Address, ...], _Opening] = {}
        self._timers: list[tuple[float, int, Allocation]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._allocations)

    def __iter__(self) -> Iterator[Allocation]:
        return iter(self._allocations.values())

    def get(self, client: Client) -> Allocation | None:
        """The allocation of a 5-tuple."""
        return self._allocations.get(client)

    def of_user(self, user: str) -> list[Allocation]:
        """The allocations of a user."""
        return list(self._of_user.get(user, {}).values())

    def allocate(self, request: Request) -> list[Effect]:
        """RFC 8656 §7.2 in the order of rule L1."""
        message, user = request.message, request.user
        allocation = self._allocations.get(request.client)
        if allocation is not None:
            if (allocation.transaction_id, allocation.user) == (message.transaction_id, user):
                return [Reply(request.client, allocation.answer)]
            return self._answers.error(request, 437)
        transport = message.get(stun.REQUESTED_TRANSPORT)
        is_tcp = transport == TCP_PROTOCOL
        ticket = message.get(stun.MOBILITY_TICKET)
        if ticket is not None and (self._tickets is None or ticket or is_tcp):
            # What a TCP allocation relays hangs on its streams: it cannot move.
            return self._answers.error(request, 405 if self._tickets is None or is_tcp else 400)
        if transport not in (UDP_PROTOCOL, TCP_PROTOCOL):
            return self._answers.error(request, 400 if transport is None else 442)
        even, token = message.get(stun.EVEN_PORT), message.get(stun.RESERVATION_TOKEN)
        unfit = (even, token, message.get(stun.DONT_FRAGMENT)) != (None, None, None)
        if is_tcp and (unfit or not request.is_stream):
            # RFC 6062 §5.1; rule C1.
            return self._answers.error(request, 400)
        families = self._families(message, even, token)
        if isinstance(families, int):
            return self._answers.error(request, families)
        if self.held[user] >= self._limits.user_quota or len(self) >= self._limits.total_quota:
            return self._answers.error(request, 486)
        allocation = Allocation(request.client, user, message.transaction_id, self.lifetime(request))
        allocation.mobile = ticket is not None
        allocation.is_tcp = is_tcp
        if token is not None:
            return self._redeem(request, allocation, token)
        present = tuple(family for family in families if family in self._relay_addresses)
        errors = tuple((family, error_code(440)) for family in families if family not in present)
        return self._open(_Opening(request, allocation, present, even, errors, 1))

    def _families(self, message: Message, even: EvenPort | None, token: bytes | None) -> tuple[Family, ...] | int:
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
        if token is None and additional is None and first not in self._relay_addresses:
            return 440
        return (first,) if additional is None else (first, Family.IPV6)

    def _redeem(self, request: Request, allocation: Allocation, token: bytes) -> list[Effect]:
        """Take the port that an earlier Allocate of the same user reserved (RFC 8656 §7.2)."""
        holder = self._reservations.get(token)
        if holder is None or not same_user(holder.user, allocation.user) or holder.reserved is None:
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
            port = ports.draw(user, now) if opening.even is None else ports.draw_even(user, now, pair=reserve)
            if port is None:
                opening = opening.without(family)
                continue
            relays.append(Address(host, port))
            if reserve:
                relays.append(Address(host, port + 1))
        if not relays:
            opening.allocation.advance(Event.REFUSED)
            return self._answers.error(opening.request, 508)
        self._opening[tuple(relays)] = opening
        return [OpenRelays(tuple(relays), opening.allocation.is_tcp)]

    def _begin(
        self, request: Request, allocation: Allocation, errors: tuple[tuple[int, ErrorCode], ...]
    ) -> list[Effect]:
        """The allocation stands: remember it, join its addresses to the client, answer."""
        allocation.advance(Event.OPENED)
        allocation.show(request.accepted)
        allocation.extend(request.now + allocation.lifetime)
        self._enter(allocation)
        self.held[allocation.user] += 1
        self.arm(allocation)
        self._counters.count("turn_allocations_made")
        fields: list[Field] = [stun.XOR_RELAYED_ADDRESS(self._public(relay)) for relay in allocation.relays.values()]
        fields += [stun.LIFETIME(allocation.lifetime), mapped_address(request.client)]
        fields += [stun.ADDRESS_ERROR_CODE(error) for error in errors]
        if allocation.token:
            fields.append(stun.RESERVATION_TOKEN(allocation.token))
        if allocation.mobile and self._tickets is not None:
            fields.append(stun.MOBILITY_TICKET(self._tickets.issue(allocation)))
        answer = self._answers.success(request, fields)
        allocation.remember(request.message.transaction_id, answer)
        return [*(Join(relay, request.client) for relay in allocation.relays.values()), *answer]

    def relays_opened(self, relays: tuple[Address, ...], now: float) -> list[Effect]:
        """The addresses of an OpenRelays are bound: the allocation begins (RFC 8656 §7.2)."""
        opening = self._opening.pop(relays)
        allocation = opening.allocation
        allocation.relays = dict(zip(opening.families, relays, strict=False))
        if len(relays) > len(opening.families):
            allocation.reserved = relays[-1]
            allocation.reserved_until = now + RESERVATION_SECONDS
            allocation.token = self._random_bytes(8)
            self._reservations[allocation.token] = allocation
        return self._begin(opening.request._replace(now=now), allocation, opening.errors)

    def relays_refused(self, relays: tuple[Address, ...], exhausted: bool, now: float) -> list[Effect]:
        """The addresses of an OpenRelays are not bound: other ports are tried, or 508 when `exhausted` (rule Q1)."""
        opening = self._opening.pop(relays)
        for relay in relays:
            self._ports[family_of(relay.host)].rest(relay.port, opening.allocation.user if exhausted else "", now)
        if len(opening.families) > 1 and (exhausted or opening.tries >= OPENING_TRIES):
            # Both cannot be had: one of them alone (RFC 8656 §7.2).
            return self._open(opening.without(opening.families[-1])._replace(tries=1))
        if exhausted or opening.tries >= OPENING_TRIES:
            opening.allocation.advance(Event.REFUSED)
            return self._answers.error(opening.request, 508)
        return self._open(opening._replace(tries=opening.tries + 1))

    def refresh(self, request: Request, allocation: Allocation) -> list[Effect]:
        """RFC 8656 §8.2 for the allocation's own user, rule L3; of two families for the one that is named (§8.1)."""
        asked = request.message.get(stun.REQUESTED_ADDRESS_FAMILY)
        if asked not in (None, *allocation.relays):
            return self._answers.error(request, 443)
        family = None if asked is None else Family(asked)
        effects: list[Effect] = []
        lifetime = self.lifetime(request)
        if lifetime:
            allocation.advance(Event.REFRESHED)
            allocation.show(request.accepted)
            allocation.extend(request.now + lifetime, family)
            self.arm(allocation)
        elif family is not None and len(allocation.relays) > 1:
            effects = self._give_up(allocation, family, request.now)
        else:
            effects = self.free(allocation, request.now)
        return effects + self._answers.success(request, (stun.LIFETIME(lifetime),))

    def ticket_holder(self, ticket: bytes | None) -> Allocation | None:
        """The allocation that a ticket is good for."""
        try:
            return None if self._tickets is None or ticket is None else self._tickets.holder(ticket)
        except ProtocolError:
            return None

    def move(self, request: Request, ticket: bytes) -> list[Effect]:
        """Bring the allocation of a ticket to this 5-tuple, with all that is set on it (RFC 8016 §3.2.2; rule E4).

        The ticket is spent by that; the answer brings the next.
        """
        if self._tickets is None:
            return self._answers.error(request, 405)
        here = self._allocations.get(request.client)
        if here is not None:
            if (here.transaction_id, here.user) == (request.message.transaction_id, request.user):
                return [Reply(request.client, here.answer)]
            return self._answers.error(request, 400)
        try:
            allocation = self._tickets.holder(ticket)
        except ProtocolError:
            self._counters.count("turn_tickets_forged")
            return self._answers.error(request, 400)
        if allocation is None or not same_user(allocation.user, request.user):
            return self._answers.error(request, 437 if allocation is None else 441)
        asked = request.message.get(stun.REQUESTED_ADDRESS_FAMILY)
        lifetime = self.lifetime(request)
        if asked not in (None, *allocation.relays) or not lifetime:
            return self.refresh(request, allocation)
        allocation.advance(Event.MOVED)
        allocation.show(request.accepted)
        self._leave(allocation)
        allocation.client = request.client
        self._enter(allocation)
        allocation.extend(request.now + lifetime, None if asked is None else Family(asked))
        self.arm(allocation)
        self._counters.count("turn_allocations_moved")
        fields = (stun.LIFETIME(lifetime), stun.MOBILITY_TICKET(self._tickets.issue(allocation)))
        answer = self._answers.success(request, fields)
        allocation.remember(request.message.transaction_id, answer)
        return [*(Join(relay, request.client) for relay in allocation.relays.values()), *answer]

    def client_closed(self, client: Client, now: float) -> list[Effect]:
        """The stream of `client` is gone: so is its allocation (rule L4), if it cannot come back (rule E4)."""
        allocation = self._allocations.get(client)
        if allocation is None:
            return []
        if allocation.mobile:
            return [Part(relay) for relay in allocation.relays.values()]
        return self.free(allocation, now)

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
            ended = [family for family, end in allocation.ends.items() if end <= now]
            if len(ended) == len(allocation.ends):
                self._counters.count("turn_allocations_expired")
                effects += self.free(allocation, now)
                continue
            for family in ended:
                effects += self._give_up(allocation, family, now)
            if allocation.reserved is not None and allocation.reserved_until <= now:
                effects += self._drop_reservation(allocation, now)
            effects += allocation.expire(now)
            allocation.armed = 0.0
            self.arm(allocation)
        return effects

    def arm(self, allocation: Allocation) -> None:
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

    def lifetime(self, request: Request) -> int:
        """Seconds that are granted; 0 stays 0 in a Refresh (rules L2, L3). A token's are the most (RFC 7635 §9)."""
        asked = request.message.get(stun.LIFETIME)
        if asked == 0 and request.message.method == Method.REFRESH:
            return 0
        asked = DEFAULT_LIFETIME_SECONDS if asked is None else asked
        granted = max(self._limits.min_lifetime, min(asked, self._limits.max_lifetime))
        seconds_max = None if request.accepted is None else request.accepted.seconds_max
        return granted if seconds_max is None else min(granted, seconds_max)

    def free(self, allocation: Allocation, now: float) -> list[Effect]:
        """End an allocation and give back everything it held (rule L4)."""
        allocation.advance(Event.ENDED)
        self._leave(allocation)
        if self._tickets is not None:
            self._tickets.forget(allocation)
        self.held[allocation.user] -= 1
        if not self.held[allocation.user]:
            del self.held[allocation.user]
        effects = self._drop_reservation(allocation, now) if allocation.reserved is not None else []
        effects += self._connections.end_of(allocation)
        for relay in allocation.relays.values():
            self._rest(relay, allocation, now)
            effects.append(CloseRelay(relay))
        return effects

    def _give_up(self, allocation: Allocation, family: Family, now: float) -> list[Effect]:
        """End one of two relayed addresses (RFC 8656 §8.1)."""
        self._rest(allocation.relays[family], allocation, now)
        return self._connections.end_of(allocation, family) + allocation.leave(family)

    def _enter(self, allocation: Allocation) -> None:
        self._allocations[allocation.client] = allocation
        self._of_user.setdefault(allocation.user, {})[allocation.client] = allocation

    def _leave(self, allocation: Allocation) -> None:
        del self._allocations[allocation.client]
        del self._of_user[allocation.user][allocation.client]
        if not self._of_user[allocation.user]:
            del self._of_user[allocation.user]

    def _drop_reservation(self, allocation: Allocation, now: float) -> list[Effect]:
        relay, allocation.reserved = allocation.reserved, None
        del self._reservations[allocation.token]
        if relay is None:
            return []
        self._rest(relay, allocation, now)
        return [CloseRelay(relay)]

    def _rest(self, relay: Address, allocation: Allocation, now: float) -> None:
        self._ports[family_of(relay.host)].rest(relay.port, allocation.user, now)

    def public(self, allocation: Allocation, host: str) -> Address | None:
        """The relayed address of the family of `host`, as clients are told of it."""
        relay = allocation.relay_for(host)
        return None if relay is None else self._public(relay)

    def _public(self, relay: Address) -> Address:
        return Address(self._relay_addresses[family_of(relay.host)].public, relay.port)
