"""Attempts to reach the target of a branch: which targets, in which order, by which transport (rules N2, N3, I4, V1).

A branch goes to a browser's flow or to a backend; a backend's targets are tried one after the other, each in a client
transaction of its own. Pure: every method returns effects, or adds to those it is given, to be applied in their order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial

from wsgate.addr import Address, Hop, Transport
from wsgate.errors import ProtocolError
from wsgate.metrics import Counters
from wsgate.sip.calls import Calls
from wsgate.sip.compose import Composer, Leg, LoopDetection
from wsgate.sip.connections import Connections, accepted_from
from wsgate.sip.contexts import Branch, Effect, Outcome, Resolve, Stray
from wsgate.sip.dead_targets import Place
from wsgate.sip.decisions import Backends
from wsgate.sip.flow import FlowTokens, RandomBytes
from wsgate.sip.headers import parse_uri
from wsgate.sip.message import Message
from wsgate.sip.names import Names
from wsgate.sip.probes import Probe, Probes
from wsgate.sip.rewriting import Changes, rewritten
from wsgate.sip.settings import SipSettings
from wsgate.sip.siblings import Siblings
from wsgate.sip.targets import BackendSettings, ContactMode, Target
from wsgate.sip.transaction import Failure, Send, State, TransactionLayer

MAX_DATAGRAM_BYTES = 65507
"""The largest payload of a UDP datagram over IPv4; beyond it only a stream will do (rule I4)."""

STREAM_REFUSED_SECONDS = 600.0
"""How long a backend that refused TCP is spared the next attempt (rule I4)."""

STREAMS_REFUSED_REMEMBERED = 1024

MAX_WAITING = 1000
"""Requests that wait for one resolution; a further one has no target."""


class Attempts:
    """Sends the requests of branches, and knows what it takes: connections, refusals of TCP, dead targets."""

    def __init__(
        self,
        settings: SipSettings,
        backend_settings: Mapping[str, BackendSettings],
        layer: TransactionLayer,
        names: Names,
        backends: Backends,
        loops: LoopDetection,
        tokens: FlowTokens,
        random_bytes: RandomBytes,
        counters: Counters,
        calls: Calls,
        siblings: Siblings,
    ) -> None:
        self._calls = calls
        self._siblings = siblings
        self._settings = settings
        self._backend_settings = backend_settings
        self._layer = layer
        self._names = names
        self._backends = backends
        self._loops = loops
        self._tokens = tokens
        self._counters = counters
        self._composer = Composer(names)
        self._connections = Connections(names, counters)
        self.probes = Probes(backend_settings, layer, names, backends, self._connections, random_bytes, counters)
        self._dead = self.probes.dead
        self._streams_refused: OrderedDict[Address, float] = OrderedDict()
        self._broken: Place | None = None  # the end of which connection is being dealt with
        self._resolving: dict[str, list[Branch | Stray]] = {}

    def begin(self, branch: Branch, now: float, effects: list[Effect]) -> bool:
        """Send to the flow, or to the first target that takes it. False: there is none, `outcome` says why."""
        if branch.flow is not None:
            self._transmit(branch, branch.flow.hop, None, now, effects)
            return True
        if branch.targets is None:
            targets = self._backends.targets(branch.backend, now)
            if targets is None:
                if self._await_resolution(branch.backend, branch, effects):
                    return True
                branch.outcome = Outcome.UNREACHABLE
                return False
            branch.targets = list(targets)
        # Asked once, before the first attempt: which targets are worth one (rule N3).
        branch.targets = list(self._dead.usable(self._eligible(branch), now))
        if branch.targets:
            self._dead.tried(branch.targets[0], now)
        if self.next_target(branch, now, effects):
            return True
        if branch.outcome is Outcome.PENDING:
            branch.outcome = Outcome.UNREACHABLE
        return False

    def next_target(self, branch: Branch, now: float, effects: list[Effect]) -> bool:
        """Send to the next target that takes the request; False when there is none left (rule N2)."""
        while branch.targets:
            if self._send(branch, branch.targets.pop(0), now, effects):
                return True
        return self._next_way(branch, now, effects)

    def _next_way(self, branch: Branch, now: float, effects: list[Effect]) -> bool:
        """The next flow of the same instance that still is open (RFC 5626 §7)."""
        while branch.ways:
            branch.take(branch.ways.pop(0))
            if branch.flow is None or branch.flow.is_open:
                return self.begin(branch, now, effects)
        return False

    def retry(self, branch: Branch, now: float, effects: list[Effect]) -> bool:
        """The connection that was there broke under a request: once more over a new one, to the same target.

        A server that was restarted, or closes what is idle, is not noticed before something is sent.
        """
        by, target = branch.departure, branch.target
        if by is None or target is None or branch.flow is not None or (by.transport, by.address) != self._broken:
            return False
        if branch.retried or branch.provisional:
            return False
        branch.retried = True
        self._counters.count("sip_retries_after_lost_connections")
        return self._send(branch, target, now, effects)

    def fall_back(self, branch: Branch, now: float, effects: list[Effect]) -> bool:
        """The stream was refused that a request was too large to do without: by UDP after all (rule I4)."""
        target, branch.fallback = branch.fallback, None
        if target is None:
            return False
        hop = Hop(Transport.UDP, target.address)
        written = self._compose(branch.context.message, branch.context.leg, branch, hop, None)
        if len(written[0]) > MAX_DATAGRAM_BYTES:
            return False
        self._counters.count("sip_fallbacks_to_udp")
        self._transmit(branch, hop, None, now, effects, written)
        return True

    def outcome_of(self, branch: Branch, why: Failure, now: float) -> Outcome:
        """What it means that a branch had no answer; a target that takes no stream is not dead for that (rule I4)."""
        if why is Failure.TIMEOUT:
            return Outcome.TIMEOUT
        if self._was_switched(branch) and branch.target and self._refuses_stream(branch.target.address, now):
            return Outcome.TOO_LARGE
        return Outcome.UNREACHABLE

    def target_failed(self, branch: Branch, outcome: Outcome, now: float, at_least: float = 0.0) -> None:
        """The target of this attempt did not serve it: others are spared that for a while (rule N3)."""
        if branch.flow is not None or not branch.backend or branch.target is None or outcome is Outcome.TOO_LARGE:
            return
        is_silent = outcome is Outcome.TIMEOUT
        if not (is_silent and branch.provisional):
            self.probes.failed(branch.backend, branch.target, now, at_least, is_silent=is_silent)

    def target_answered(self, branch: Branch) -> None:
        """The target of this attempt is alive."""
        if branch.flow is None and branch.backend and branch.target:
            self.probes.succeeded(branch.backend, branch.target)

    def stray(self, stray: Stray, now: float, effects: list[Effect]) -> None:
        """Forward an ACK of a 2xx to its one target (RFC 3261 §16.11)."""
        branch = stray.branch
        local: Address | None = None
        if branch.flow is not None:
            hop = branch.flow.hop
            self._calls.acknowledged(stray, branch.flow)
        else:
            targets = branch.targets if branch.targets is not None else self._backends.targets(branch.backend, now)
            if targets is None:
                if not self._await_resolution(branch.backend, stray, effects):
                    self._counters.count("sip_acks_without_target")
                return
            if not branch.sibling:
                targets = [target for target in targets if not self._names.is_own_address(target.address)]
            usable = self._dead.usable(targets, now)
            if not usable:
                self._counters.count("sip_acks_without_target")
                return
            hop, local = self._stray_hop(usable[0])
        data = self._compose(stray.message, stray.leg, branch, hop, local)[0]
        if hop.transport is Transport.UDP and self._is_too_large(branch, hop.address, len(data), now):
            hop = Hop(Transport.TCP, hop.address)
            data = self._compose(stray.message, stray.leg, branch, hop, local)[0]
        effects.append(Send(hop, data))

    def resolved(self, backend: str, now: float, effects: list[Effect]) -> list[Branch]:
        """A resolution that was asked for is over, well or not. Returns the branches that have no target."""
        ended = []
        for waiting in self._resolving.pop(backend, ()):
            branch = waiting.branch if isinstance(waiting, Stray) else waiting
            if branch.targets is None:
                branch.targets = list(self._backends.targets(backend, now) or ())
            if isinstance(waiting, Stray):
                self.stray(waiting, now, effects)
            elif _is_wanted(branch) and not self.begin(branch, now, effects):
                ended.append(branch)
        return ended

    def connected(self, hop: Hop, local: Address, now: float, effects: list[Effect]) -> None:
        """A connection to a backend stands; `local` is its near end, which names us there (V1)."""
        for waiting in self._connections.connected(hop, local):
            if isinstance(waiting, Probe):
                self.probes.send(waiting, now, effects)
            elif isinstance(waiting, Branch) and waiting.target and _is_wanted(waiting):
                self._send(waiting, waiting.target, now, effects)

    def disconnected(self, hop: Hop, now: float) -> list[Branch]:
        """A backend's connection failed or is gone. Returns the branches that waited for it."""
        self._broken = (hop.transport, hop.address) if hop.connection else None
        if hop.transport is Transport.TCP and not hop.connection:
            self._refuse_stream(hop.address, now)
        ended = []
        for waiting in self._connections.disconnected(hop):
            if isinstance(waiting, Probe):
                self.probes.ended(waiting, None, now)
            elif isinstance(waiting, Branch) and _is_wanted(waiting):
                ended.append(waiting)
        return ended

    def local_of(self, hop: Hop) -> Address | None:
        """The near end of the connection that names us towards this hop, None for others."""
        return self._connections.local_of(hop)

    def _eligible(self, branch: Branch) -> list[Target]:
        """Without what is ourselves (rule N1), for sips: without what is no TLS (RFC 3261 §26.2.2)."""
        if branch.sibling:
            return list(branch.targets or ())
        secure = branch.context.message.uri[:5].lower() == b"sips:"
        return [
            target
            for target in branch.targets or ()
            if not self._names.is_own_address(target.address) and (target.transport.secure or not secure)
        ]

    def _await_resolution(self, backend: str, waiting: Branch | Stray, effects: list[Effect]) -> bool:
        queue = self._resolving.setdefault(backend, [])
        if len(queue) >= MAX_WAITING:
            self._counters.count("sip_waiting_full")
            return False
        queue.append(waiting)
        if len(queue) == 1:
            effects.append(Resolve(backend))
        return True

    def _send(self, branch: Branch, target: Target, now: float, effects: list[Effect]) -> bool:
        """One attempt at one target; False when the request cannot go there."""
        branch.fallback = None
        branch.target = target
        if self._names.by_connection(target.transport):
            return self._send_by_connection(branch, target, now, effects)
        hop = Hop(target.transport, target.address)
        written = None
        if target.transport is Transport.UDP:
            # Rule I4 speaks of the request as it leaves. Where the body alone is too large it is not written for that.
            context = branch.context
            is_too_large = self._is_too_large(branch, target.address, context.message.body_bytes, now)
            if not is_too_large:
                written = self._compose(context.message, context.leg, branch, hop, None)
                is_too_large = self._is_too_large(branch, target.address, len(written[0]), now)
            if is_too_large:
                branch.fallback = target
                hop, written = Hop(Transport.TCP, target.address), None
            elif written is not None and len(written[0]) > MAX_DATAGRAM_BYTES:
                branch.outcome = Outcome.TOO_LARGE
                return False
        self._transmit(branch, hop, None, now, effects, written)
        return True

    def _is_too_large(self, branch: Branch, address: Address, size: int, now: float) -> bool:
        # Rule I4: over udp_max_bytes by TCP, unless that was refused lately and a datagram can hold it. Between workers
        # no network is to be spared.
        limit = self._settings.udp_max_bytes if not branch.sibling else MAX_DATAGRAM_BYTES
        if size <= (limit or MAX_DATAGRAM_BYTES):
            return False
        settings = self._backend_settings.get(branch.backend)
        if settings is not None and Transport.TCP not in settings.transports:
            return False
        if size > MAX_DATAGRAM_BYTES:
            return True
        return bool(limit) and size > limit and not self._refuses_stream(address, now)

    def _was_switched(self, branch: Branch) -> bool:
        """True when this attempt went by TCP to a target known for UDP."""
        by, target = branch.departure, branch.target
        return by is not None and target is not None and by.transport is not target.transport

    def _refuses_stream(self, address: Address, now: float) -> bool:
        return self._streams_refused.get(address, 0.0) > now

    def _refuse_stream(self, address: Address, now: float) -> None:
        self._streams_refused.pop(address, None)
        self._streams_refused[address] = now + STREAM_REFUSED_SECONDS
        while len(self._streams_refused) > STREAMS_REFUSED_REMEMBERED:
            self._streams_refused.popitem(last=False)

    def _send_by_connection(self, branch: Branch, target: Target, now: float, effects: list[Effect]) -> bool:
        place = (target.transport, target.address)
        known = self._connections.get(place)
        if known is not None:
            self._transmit(branch, Hop(*place, known.id), known.local, now, effects)
            return True
        branch.departure = Hop(*place)
        branch.client = None
        return self._connections.wait_for(place, branch.backend, branch, effects)

    def _transmit(
        self,
        branch: Branch,
        hop: Hop,
        local: Address | None,
        now: float,
        effects: list[Effect],
        written: tuple[bytes, bytes] | None = None,
    ) -> None:
        """`written` is what `_compose` gave for this hop, None where it is not composed yet."""
        context = branch.context
        branch.departure = hop
        branch.outcome = Outcome.PENDING  # also where a target before was one for small messages only
        branch.provisional = False
        message = context.message
        if branch.flow is not None:
            self._calls.request_shown(branch, branch.flow)
        data, name = written or self._compose(message, context.leg, branch, hop, local)
        accepts = accepted_from(hop, branch.backend, self._backends)
        branch.client, sent = self._layer.send_request(data, message.method, name, hop, now, branch, accepts)
        effects += sent

    def _compose(
        self, message: Message, leg: Leg, branch: Branch, hop: Hop, local: Address | None
    ) -> tuple[bytes, bytes]:
        """The request as it leaves, and the branch of its Via."""
        departure = Leg(branch.flow, hop, self._names.sent_by(hop, local))
        via_branch = self._loops.new_branch(message)
        mode = self._contact_mode(message, leg, branch)
        data = self._composer.request(
            message,
            via_branch,
            leg,
            departure,
            drop_routes=branch.drop_routes,
            uri=branch.uri,
            routes=branch.routes,
            breadth=branch.breadth,
            contacts=self._contacts(message, leg, departure, branch) if mode is not ContactMode.PATH else None,
            with_path=mode is not ContactMode.CONTACT,
            forwarded=_forwarded(leg, branch),
            proof=self._siblings.proof(via_branch) if branch.sibling else b"",
        )
        return data, via_branch

    def _contact_mode(self, message: Message, leg: Leg, branch: Branch) -> ContactMode:
        """Rule R5: only a browser's REGISTER to a backend is rewritten."""
        if message.method != b"REGISTER" or leg.flow is None or branch.flow is not None:
            return ContactMode.PATH
        settings = self._backend_settings.get(branch.backend)
        return ContactMode.PATH if settings is None else settings.contact_mode

    def _contacts(self, message: Message, leg: Leg, departure: Leg, branch: Branch) -> Changes:
        """Rule R5: by the transport of the target, also where this REGISTER is too large for it (I4).

        A registrar that compares URIs would else hold two bindings of a client whose REGISTER grows, and call it twice.
        """
        if leg.flow is None:
            return []
        try:
            aor = parse_uri(message.to_uri).address_of_record
            transport = branch.target.transport if branch.target is not None else departure.hop.transport
            address = self._names.of_first_worker(departure.sent_by)
            return rewritten(message, partial(leg.flow.handle, self._tokens, aor), address, transport)
        except ProtocolError:
            # What cannot be read is the registrar's to refuse.
            return []

    def _stray_hop(self, target: Target) -> tuple[Hop, Address | None]:
        place = (target.transport, target.address)
        known = self._connections.get(place)
        if known is not None:
            return Hop(*place, known.id), known.local
        return Hop(*place), None


def _forwarded(leg: Leg, branch: Branch) -> tuple[tuple[bytes, bytes], ...]:
    """The header lines of the caller's upgrade: for configured backends, never for browsers or direct targets."""
    return leg.flow.forwarded if leg.flow is not None and branch.flow is None and branch.backend else ()


def _is_wanted(branch: Branch) -> bool:
    """True while somebody waits for what a branch will bring: it is not over, nor is the caller gone."""
    server = branch.context.server
    return branch.outcome is Outcome.PENDING and (server is None or server.state is not State.TERMINATED)
