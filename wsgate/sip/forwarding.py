"""Response contexts: one forwarded request, its branches, and the best of their answers (RFC 3261 §16.6 to §16.10).

A branch goes to a browser's flow or to a backend; a backend's targets are tried one after the other (rules N2, N3, I4).
Pure: every method returns effects, to be applied in their order.
"""

from __future__ import annotations

import enum
import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import NamedTuple

from wsgate.addr import Address, Hop, Transport
from wsgate.metrics import Counters
from wsgate.sip.compose import Composer, Leg, loop_hash, new_branch
from wsgate.sip.dialogs import Key
from wsgate.sip.flow import Flow, RandomBytes
from wsgate.sip.message import Edit, Message, response_to
from wsgate.sip.names import Names
from wsgate.sip.proxy import Arrival, Backends, SipSettings, warning
from wsgate.sip.targets import BackendSettings, DeadTargets, Target
from wsgate.sip.tracking import Party, Tracker
from wsgate.sip.transaction import (
    ClientTransaction,
    Failure,
    Send,
    ServerTransaction,
    TransactionLayer,
)
from wsgate.sip.transaction import (
    Effect as TransactionEffect,
)

MAX_DATAGRAM_BYTES = 65507
"""The largest payload of a UDP datagram over IPv4; beyond it only a stream will do (rule I4)."""

RETRY_AFTER_SECONDS = 10
"""What a 503 of our own tells the browser (RFC 3261 §20.33)."""

STREAM_REFUSED_SECONDS = 600.0
"""How long a backend that refused TCP is spared the next attempt (rule I4)."""

STREAMS_REFUSED_REMEMBERED = 1024


class Resolve(NamedTuple):
    """Find out where a backend is, then call `resolved`."""

    backend: str


class Connect(NamedTuple):
    """Open a connection to a WS backend, then call `connected` or `failed`: its near end stands in our Via (V1)."""

    hop: Hop
    backend: str


class Retain(NamedTuple):
    """The REGISTER of a flow was answered with 2xx: remember what it registered (rule R4)."""

    flow: Flow
    request: Message
    response: Message


Effect = TransactionEffect | Resolve | Connect | Retain


class Outcome(enum.Enum):
    """What became of a branch."""

    PENDING = "pending"
    ANSWERED = "answered"
    UNREACHABLE = "no target reachable"
    TIMEOUT = "no answer"
    UNAVAILABLE = "503 received"
    TOO_LARGE = "too large for any transport"


class Branch:
    """One way of a forwarded request, with the targets that are left to try."""

    __slots__ = (
        "backend",
        "client",
        "context",
        "departure",
        "drop_routes",
        "fallback",
        "flow",
        "outcome",
        "provisional",
        "response",
        "routes",
        "targets",
        "uri",
    )

    def __init__(
        self,
        *,
        backend: str = "",
        flow: Flow | None = None,
        targets: Sequence[Target] | None = None,
        drop_routes: int = 0,
        uri: bytes | None = None,
        routes: tuple[bytes, ...] = (),
    ) -> None:
        self.context: Context
        self.backend = backend
        self.flow = flow
        self.targets: list[Target] | None = list(targets) if targets is not None else None
        self.drop_routes = drop_routes
        self.uri = uri
        self.routes = routes
        self.client: ClientTransaction | None = None
        self.departure: Hop | None = None
        self.fallback: Target | None = None
        self.outcome = Outcome.PENDING
        self.response: Message | None = None
        self.provisional = False


class Context:
    """A request on its way: the server transaction it came in, and its branches (RFC 3261 §16.7)."""

    __slots__ = ("answered", "arrival", "branches", "cancelled", "dialogs", "leg", "message", "server", "timer_c")

    def __init__(self, server: ServerTransaction, message: Message, arrival: Arrival, leg: Leg) -> None:
        self.server = server
        self.message = message
        self.arrival = arrival
        self.leg = leg
        self.branches: list[Branch] = []
        self.dialogs: list[Key] = []
        self.answered = False
        self.cancelled = False
        self.timer_c = 0.0


class Forwarding:
    """All requests under way. `arrival_leg` tells how wsgate names itself towards where a request came from."""

    def __init__(
        self,
        settings: SipSettings,
        backend_settings: Mapping[str, BackendSettings],
        layer: TransactionLayer,
        names: Names,
        backends: Backends,
        tracker: Tracker,
        random_bytes: RandomBytes,
        counters: Counters,
    ) -> None:
        self._settings = settings
        self._backend_settings = backend_settings
        self._layer = layer
        self._names = names
        self._backends = backends
        self._tracker = tracker
        self._random_bytes = random_bytes
        self._counters = counters
        self._composer = Composer(names)
        self.dead = DeadTargets()
        self._streams_refused: OrderedDict[Address, float] = OrderedDict()
        self._web_connections: dict[tuple[Transport, Address], tuple[bytes, Address]] = {}
        self._resolving: dict[str, list[Branch | Stray]] = {}
        self._connecting: dict[tuple[Transport, Address], list[tuple[Branch, Target]]] = {}
        self._timers: list[tuple[float, int, Context]] = []
        self._numbers = count()

    def start(self, context: Context, branches: list[Branch], now: float) -> list[Effect]:
        """Forward the request of `context` down all `branches` at once."""
        effects: list[Effect] = []
        context.server.user = context
        context.branches = branches
        if context.server.is_invite:
            context.timer_c = now + self._settings.timer_c
            heapq.heappush(self._timers, (context.timer_c, next(self._numbers), context))
        for branch in branches:
            branch.context = context
        for branch in branches:
            self._proceed(branch, now, effects)
        return effects

    def stray(self, message: Message, arrival: Arrival, leg: Leg, branch: Branch, now: float) -> list[Effect]:
        """Forward an ACK of a 2xx: no transaction, no answer, one target (RFC 3261 §16.11, rule I7)."""
        stray = Stray(message, arrival, leg, branch)
        return self._send_stray(stray, now)

    def received(self, client: ClientTransaction, message: Message, now: float) -> list[Effect]:
        """A response of a client transaction (RFC 3261 §16.7)."""
        branch = client.context
        effects: list[Effect] = []
        if not isinstance(branch, Branch):
            return effects
        if branch.departure is not None and branch.flow is None:
            self.dead.succeeded(branch.departure.transport, branch.departure.address)
        if message.status < 200:
            self._provisional(branch, message, now, effects)
        elif branch.client is not client and message.status >= 300:
            self._counters.count("sip_responses_of_abandoned_branches")
        elif message.status == 503 and branch.flow is None:
            self._fail(branch, Outcome.UNAVAILABLE, now, effects)
        else:
            self._final(branch, message, now, effects)
        return effects

    def failed(self, client: ClientTransaction, why: Failure, now: float) -> list[Effect]:
        """A client transaction ended without a final response (RFC 3261 §16.9, §16.8)."""
        branch = client.context
        effects: list[Effect] = []
        if not isinstance(branch, Branch) or branch.client is not client or branch.outcome is not Outcome.PENDING:
            return effects
        if why is Failure.TRANSPORT and branch.fallback is not None:
            self._refuse_stream(branch.fallback.address, now)
            target, branch.fallback = branch.fallback, None
            if self._send(branch, target, now, effects):
                return effects
        self._fail(branch, Outcome.UNREACHABLE if why is Failure.TRANSPORT else Outcome.TIMEOUT, now, effects)
        return effects

    def cancel(self, context: Context, now: float, reason: bytes = b"") -> list[Effect]:
        """The caller sent CANCEL: every pending branch is cancelled, what never left is 487 at once (rule B5)."""
        effects: list[Effect] = []
        if context.answered or context.cancelled:
            return effects
        context.cancelled = True
        self._cancel_branches(context, now, effects, reason)
        self._conclude(context, now, effects)
        return effects

    def resolved(self, backend: str, now: float) -> list[Effect]:
        """A resolution that was asked for is over, well or not."""
        effects: list[Effect] = []
        for waiting in self._resolving.pop(backend, ()):
            if isinstance(waiting, Stray):
                effects += self._send_stray(waiting, now)
            elif waiting.outcome is Outcome.PENDING:
                targets = self._backends.targets(backend, now)
                waiting.targets = list(targets) if targets else []
                self._proceed(waiting, now, effects)
        return effects

    def connected(self, hop: Hop, local: Address, now: float) -> list[Effect]:
        """A connection to a WS backend stands; `local` is its near end (V1)."""
        effects: list[Effect] = []
        place = (hop.transport, hop.address)
        self._web_connections[place] = (hop.connection, local)
        self._names.connected(local)
        for branch, target in self._connecting.pop(place, ()):
            if branch.outcome is Outcome.PENDING and not self._send(branch, target, now, effects):
                self._fail(branch, Outcome.UNREACHABLE, now, effects)
        return effects

    def disconnected(self, hop: Hop, now: float) -> list[Effect]:
        """A backend's connection failed or is gone; what waits for it tries its next target."""
        effects: list[Effect] = []
        place = (hop.transport, hop.address)
        self._web_connections.pop(place, None)
        for branch, target in self._connecting.pop(place, ()):
            if branch.outcome is Outcome.PENDING:
                self.dead.failed(target.transport, target.address, now)
                self._fail(branch, Outcome.UNREACHABLE, now, effects)
        return effects

    def local_of(self, hop: Hop) -> Address | None:
        """The near end of the connection to a WS backend, None for other hops."""
        known = self._web_connections.get((hop.transport, hop.address))
        return known[1] if known else None

    def next_timer(self) -> float | None:
        """When the earliest Timer C may fire."""
        return self._timers[0][0] if self._timers else None

    def handle_timer(self, now: float) -> list[Effect]:
        """Timer C (RFC 3261 §16.8, rule I5): CANCEL after a provisional, else as if 408 had come."""
        effects: list[Effect] = []
        while self._timers and self._timers[0][0] <= now:
            _, number, context = heapq.heappop(self._timers)
            if context.answered:
                continue
            if context.timer_c > now:
                heapq.heappush(self._timers, (context.timer_c, number, context))
                continue
            for branch in context.branches:
                if branch.outcome is not Outcome.PENDING:
                    continue
                if branch.client is not None and branch.provisional:
                    effects += self._layer.cancel(branch.client, now)
                else:
                    branch.outcome = Outcome.TIMEOUT
            self._conclude(context, now, effects)
        return effects

    def _proceed(self, branch: Branch, now: float, effects: list[Effect]) -> None:
        """Send to the flow, or to the first target that takes it; none left: the branch has failed."""
        if branch.flow is not None:
            self._transmit(branch, branch.flow.hop, None, now, effects)
            return
        if branch.targets is None:
            targets = self._backends.targets(branch.backend, now)
            if targets is None:
                self._await_resolution(branch.backend, branch, effects)
                return
            branch.targets = list(targets)
        if branch.departure is None:
            # Asked once, before the first attempt: which targets are worth one (rule N3).
            branch.targets = self._chosen(branch)
            branch.targets = list(self.dead.usable(branch.targets, now))
        if not self._next_target(branch, now, effects):
            if branch.outcome is Outcome.PENDING:
                branch.outcome = Outcome.UNREACHABLE
            self._conclude(branch.context, now, effects)

    def _chosen(self, branch: Branch) -> list[Target]:
        secure = branch.context.message.uri[:5].lower() == b"sips:"
        return [
            target
            for target in branch.targets or ()
            if not self._names.is_own_address(target.address) and (target.transport.secure or not secure)
        ]

    def _await_resolution(self, backend: str, waiting: Branch | Stray, effects: list[Effect]) -> None:
        queue = self._resolving.setdefault(backend, [])
        queue.append(waiting)
        if len(queue) == 1:
            effects.append(Resolve(backend))

    def _next_target(self, branch: Branch, now: float, effects: list[Effect]) -> bool:
        while branch.targets:
            target = branch.targets.pop(0)
            if self._send(branch, target, now, effects):
                return True
        return False

    def _send(self, branch: Branch, target: Target, now: float, effects: list[Effect]) -> bool:
        """One attempt at one target; False when the request cannot go there."""
        branch.fallback = None
        if target.transport in (Transport.WS, Transport.WSS):
            return self._send_by_web(branch, target, now, effects)
        hop = Hop(target.transport, target.address)
        if target.transport is Transport.UDP:
            size = len(branch.context.message.data) + 400  # our own Via, Routes and Path are not counted to the byte
            if self._is_too_large(branch.backend, target.address, size, now):
                if size <= MAX_DATAGRAM_BYTES:
                    branch.fallback = target
                hop = Hop(Transport.TCP, target.address)
            elif size > MAX_DATAGRAM_BYTES:
                branch.outcome = Outcome.TOO_LARGE
                return False
        self._transmit(branch, hop, None, now, effects)
        return True

    def _is_too_large(self, backend: str, address: Address, size: int, now: float) -> bool:
        # Rule I4: over udp_max_bytes by TCP, unless that was refused lately and a datagram can hold it.
        limit = self._settings.udp_max_bytes
        settings = self._backend_settings.get(backend)
        if settings is not None and Transport.TCP not in settings.transports:
            return False
        if size > MAX_DATAGRAM_BYTES:
            return True
        return bool(limit) and size > limit and self._streams_refused.get(address, 0.0) <= now

    def _refuse_stream(self, address: Address, now: float) -> None:
        self._streams_refused.pop(address, None)
        self._streams_refused[address] = now + STREAM_REFUSED_SECONDS
        while len(self._streams_refused) > STREAMS_REFUSED_REMEMBERED:
            self._streams_refused.popitem(last=False)

    def _send_by_web(self, branch: Branch, target: Target, now: float, effects: list[Effect]) -> bool:
        place = (target.transport, target.address)
        known = self._web_connections.get(place)
        if known is not None:
            self._transmit(branch, Hop(*place, known[0]), known[1], now, effects)
            return True
        branch.departure = Hop(*place)
        queue = self._connecting.setdefault(place, [])
        queue.append((branch, target))
        if len(queue) == 1:
            effects.append(Connect(Hop(*place), branch.backend))
        return True

    def _transmit(self, branch: Branch, hop: Hop, local: Address | None, now: float, effects: list[Effect]) -> None:
        context = branch.context
        branch.departure = hop
        branch.provisional = False
        data = self._compose(context.message, context.leg, branch, hop, local)
        branch.client, sent = self._layer.request(
            Message.parse(data), hop, now, branch, self._accepting(branch.backend, hop)
        )
        effects += sent

    def _compose(self, message: Message, leg: Leg, branch: Branch, hop: Hop, local: Address | None) -> bytes:
        departure = Leg(branch.flow, hop, self._names.sent_by(hop, local))
        return self._composer.request(
            message,
            new_branch(loop_hash(message), self._random_bytes),
            leg,
            departure,
            drop_routes=branch.drop_routes,
            uri=branch.uri,
            routes=branch.routes,
        )

    def _accepting(self, backend: str, hop: Hop) -> Callable[[Hop], bool]:
        """Rule V3: the same connection for WebSocket, else any address of the backend, whatever the port."""
        if hop.transport in (Transport.WS, Transport.WSS):
            return lambda source: source.connection == hop.connection
        host = hop.address.host
        return lambda source: (
            source.address.host == host or (bool(backend) and self._backends.backend_of(source.address.host) == backend)
        )

    def _send_stray(self, stray: Stray, now: float) -> list[Effect]:
        effects: list[Effect] = []
        branch = stray.branch
        if branch.flow is not None:
            hop, local = branch.flow.hop, None
        else:
            targets = branch.targets if branch.targets is not None else self._backends.targets(branch.backend, now)
            if targets is None:
                self._await_resolution(branch.backend, stray, effects)
                return effects
            usable = self.dead.usable([t for t in targets if not self._names.is_own_address(t.address)], now)
            if not usable:
                self._counters.count("sip_acks_without_target")
                return effects
            hop, local = self._stray_hop(branch, usable[0], len(stray.message.data) + 400, now)
        data = self._compose(stray.message, stray.leg, branch, hop, local)
        effects.append(Send(hop, data))
        return effects

    def _stray_hop(self, branch: Branch, target: Target, size: int, now: float) -> tuple[Hop, Address | None]:
        place = (target.transport, target.address)
        known = self._web_connections.get(place)
        if known is not None:
            return Hop(*place, known[0]), known[1]
        if target.transport is Transport.UDP and self._is_too_large(branch.backend, target.address, size, now):
            return Hop(Transport.TCP, target.address), None
        return Hop(*place), None

    def _provisional(self, branch: Branch, message: Message, now: float, effects: list[Effect]) -> None:
        branch.provisional = True
        context = branch.context
        if context.answered or message.status == 100:
            return
        context.timer_c = now + self._settings.timer_c
        self._pass(branch, message, now, effects)

    def _final(self, branch: Branch, message: Message, now: float, effects: list[Effect]) -> None:
        context = branch.context
        branch.outcome = Outcome.ANSWERED
        branch.response = message
        if message.status < 300:
            if context.answered and not context.server.is_invite:
                return
            context.answered = True
            self._pass(branch, message, now, effects)
            self._cancel_branches(context, now, effects, b'SIP;cause=200;text="Call completed elsewhere"')
            return
        if message.status >= 600:
            self._cancel_branches(context, now, effects)
        self._conclude(context, now, effects)

    def _fail(self, branch: Branch, outcome: Outcome, now: float, effects: list[Effect]) -> None:
        """This target did not do: mark it, try the next one, or let the branch end (rule N2)."""
        if branch.flow is None and branch.departure is not None and branch.client is not None:
            self.dead.failed(branch.departure.transport, branch.departure.address, now)
        branch.outcome = outcome
        branch.client = None
        context = branch.context
        if not context.cancelled and not context.answered and self._next_target(branch, now, effects):
            branch.outcome = Outcome.PENDING
            return
        self._conclude(context, now, effects)

    def _cancel_branches(self, context: Context, now: float, effects: list[Effect], reason: bytes = b"") -> None:
        for branch in context.branches:
            if branch.outcome is not Outcome.PENDING:
                continue
            if branch.client is not None:
                branch.targets = []
                effects += self._layer.cancel(branch.client, now, reason)
            else:
                branch.outcome = Outcome.UNREACHABLE

    def _conclude(self, context: Context, now: float, effects: list[Effect]) -> None:
        """All branches over: the best answer goes out (RFC 3261 §16.7 step 6)."""
        if context.answered or any(branch.outcome is Outcome.PENDING for branch in context.branches):
            return
        context.answered = True
        best = _best(context.branches)
        if best is not None and best.response is not None:
            self._pass(best, best.response, now, effects)
        else:
            self._answer_ourselves(context, now, effects)
        self._tracker.refused(context.dialogs)

    def _pass(self, branch: Branch, message: Message, now: float, effects: list[Effect]) -> None:
        context = branch.context
        if message.status == 503:
            self._refuse(context, 500, "Server Internal Error", "the next hop answered 503", now, effects)
            return
        caller = Party(context.arrival.flow.id if context.arrival.flow else b"", "")
        callee = Party(branch.flow.id if branch.flow else b"", branch.backend)
        key = self._tracker.response(context.message, caller, callee, message, now)
        if key is not None:
            context.dialogs.append(key)
        self._tracker.answered(context.message, message.status)
        edit = Edit(message)
        edit.drop_values(b"via", 1)
        if message.status in (401, 407):
            _merge_challenges(edit, branch, context.branches)
        if context.message.method == b"REGISTER" and message.status < 300 and context.arrival.flow is not None:
            if message.has_token(b"require", b"outbound") and message.header(b"flow-timer") is None:
                edit.append(b"Flow-Timer", b"%d" % self._settings.flow_timer)
            effects.append(Retain(context.arrival.flow, context.message, message))
        effects += self._layer.respond(context.server, message.status, edit.build(), now)

    def _answer_ourselves(self, context: Context, now: float, effects: list[Effect]) -> None:
        outcomes = {branch.outcome for branch in context.branches}
        from_browser = context.arrival.flow is not None
        if context.cancelled:
            self._refuse(context, 487, "Request Terminated", "cancelled by the caller", now, effects)
        elif Outcome.UNAVAILABLE in outcomes:
            self._refuse(context, 500, "Server Internal Error", "the next hop answered 503", now, effects)
        elif Outcome.TOO_LARGE in outcomes:
            self._refuse(context, 513, "Message Too Large", "no transport takes a request of this size", now, effects)
        elif Outcome.TIMEOUT in outcomes:
            # Of a request that is not INVITE the layer sends no 408: the client's own timer has fired (RFC 4320).
            self._refuse(context, 408, "Request Timeout", "the next hop did not answer", now, effects)
        elif from_browser and any(branch.flow is None for branch in context.branches):
            self._refuse(context, 503, "Service Unavailable", "no target of the backend is reachable", now, effects)
        else:
            self._refuse(context, 480, "Temporarily Unavailable", "the target cannot be reached", now, effects)

    def _refuse(self, context: Context, status: int, reason: str, text: str, now: float, effects: list[Effect]) -> None:
        headers = [warning(text)]
        if status == 503:
            headers.append((b"Retry-After", b"%d" % RETRY_AFTER_SECONDS))
        tag = self._random_bytes(6).hex().encode()
        data = response_to(context.message, status, reason, to_tag=tag, headers=headers)
        self._tracker.answered(context.message, status)
        effects += self._layer.respond(context.server, status, data, now)


class Stray(NamedTuple):
    """An ACK of a 2xx that waits for its backend's resolution."""

    message: Message
    arrival: Arrival
    leg: Leg
    branch: Branch


def _best(branches: list[Branch]) -> Branch | None:
    """The branch whose answer goes upstream: a 6xx, else the lowest class, 401 and 407 first (RFC 3261 §16.7)."""
    answered = [branch for branch in branches if branch.response is not None]
    return min(answered, key=_rank, default=None)


def _rank(branch: Branch) -> tuple[int, int]:
    status = branch.response.status if branch.response is not None else 999
    if status >= 600:
        return 0, status
    preferred = (401, 407, 415, 420, 484)
    if status == 503:
        return 9, status
    return status // 100, preferred.index(status) if status in preferred else status


def _merge_challenges(edit: Edit, best: Branch, branches: list[Branch]) -> None:
    """A forked request that several refused with 401 or 407 shows all their challenges (RFC 3261 §16.7 step 7)."""
    for branch in branches:
        if branch is best or branch.response is None or branch.response.status not in (401, 407):
            continue
        for name in (b"WWW-Authenticate", b"Proxy-Authenticate"):
            for value in branch.response.lines(name.lower()):
                edit.append(name, value)
