"""The SIP edge as one pure machine: browsers on one side, backends on the other (spec/SIP: all rules meet here).

Bytes and `now` come in by `from_browser` and `from_backend`; what is to be done comes out as effects: Send, Resolve,
Connect. The transaction layer, the proxy's decisions, the response contexts and the registrar are wired
together here and nowhere else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from wsgate.addr import Address, Hop
from wsgate.call_peers import CallPeers
from wsgate.directory import Directory
from wsgate.errors import ProtocolError
from wsgate.identity import Admitted
from wsgate.metrics import Counters
from wsgate.registrations import Registration
from wsgate.sip.attempts import Attempts
from wsgate.sip.call_lines import CallLines
from wsgate.sip.calls import Calls
from wsgate.sip.compose import Leg, LoopDetection, for_loose_routing, shows_outbound
from wsgate.sip.contexts import Branch, Connect, Context, Disconnect, Orphaned, Resolve, Retain, Stray, branch_to
from wsgate.sip.continuity import Continuity
from wsgate.sip.dead_targets import Place
from wsgate.sip.decisions import (
    SECURE_ONLY,
    Answer,
    Arrival,
    Backends,
    ToBackend,
    ToDirect,
    ToFlow,
    ToService,
    ToSibling,
    is_secure_only,
    malformed,
)
from wsgate.sip.dialogs import DialogTable
from wsgate.sip.flow import Flow, FlowTable, RandomBytes
from wsgate.sip.forwarding import RETRY_AFTER_SECONDS, Forwarding
from wsgate.sip.heirs import is_phone_at
from wsgate.sip.identities import Identities
from wsgate.sip.message import Message, response_to, warning
from wsgate.sip.names import Names
from wsgate.sip.orphans import Orphans
from wsgate.sip.proxy import Proxy
from wsgate.sip.registrar import Registrar
from wsgate.sip.screening import Screening, reply_place, with_via_parameters
from wsgate.sip.services import TURN_CREDENTIALS, HandOut, Services
from wsgate.sip.settings import SipSettings
from wsgate.sip.siblings import Siblings, origin
from wsgate.sip.subscriptions import SUBSCRIBERS, Subscriptions
from wsgate.sip.targets import BackendSettings
from wsgate.sip.tracking import BEGINNERS, Tracker, is_at
from wsgate.sip.transaction import (
    AckReceived,
    Ended,
    Failed,
    RequestReceived,
    ResponseReceived,
    Send,
    ServerTransaction,
    TransactionLayer,
    TransactionSettings,
)

Effect = Send | Resolve | Connect | Disconnect

DIALOGS_FULL = "the dialog table is full ([limits] dialogs)"

NO_INVITE = Answer(481, "Call/Transaction Does Not Exist", (warning("no INVITE is there for this CANCEL"),))
"""Rule B5."""

ADMITTED = Admitted()
"""An upgrade of which nothing was asked and nothing is forwarded."""

_FOR_OUTSIDE = frozenset((Send, Resolve, Connect, Disconnect))


class Edge:
    """One worker's SIP. Not reentrant: apply the effects of a call after it has returned."""

    def __init__(
        self,
        settings: SipSettings,
        backend_settings: Mapping[str, BackendSettings],
        *,
        transactions: TransactionSettings,
        dialogs_limit: int,
        names: Names,
        flows: FlowTable,
        backends: Backends,
        directory: Directory,
        registrar: Registrar | None,
        random_bytes: RandomBytes,
        counters: Counters,
        protected_headers: frozenset[bytes] = frozenset(),
        hand_out: HandOut | None = None,
        call_peers: CallPeers | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        """`hand_out` gives the TURN credentials that go with a registration (rule A5); None: none are handed out.

        `call_peers` is told where the media of calls go (rule P6); None: nobody wants to know. `siblings` are the other
        workers, None where this is the only one.
        """
        siblings = siblings or Siblings(flows.tokens)
        self._siblings = siblings
        if hand_out is not None:
            protected_headers |= {TURN_CREDENTIALS.lower()}
        self.draining = False
        self._settings = settings
        self._names = names
        self._flows = flows
        self._directory = directory
        self._random_bytes = random_bytes
        self._counters = counters
        self._dialogs = DialogTable(dialogs_limit, settings.dialog_lifetime)
        self._screening = Screening(
            settings, flows.tokens, self._dialogs, backends, counters, siblings, protected_headers
        )
        self._services = Services(registrar, flows, directory, counters, siblings, hand_out)
        self._tracker = Tracker(self._dialogs, flows.tokens)
        self._lines = CallLines(counters)
        self._subscriptions = Subscriptions(self._dialogs, self._tracker, counters)
        self._layer = TransactionLayer(transactions, counters)
        loops = LoopDetection(random_bytes)
        self._proxy = Proxy(
            settings, backend_settings, names, flows, self._dialogs, backends, directory, loops.is_looped, siblings
        )
        self._identities = Identities(self._dialogs, self._proxy, counters)
        calls = Calls(call_peers, self._dialogs, directory)
        self._forwarding = Forwarding(
            settings,
            Attempts(
                settings,
                backend_settings,
                self._layer,
                names,
                backends,
                loops,
                flows.tokens,
                random_bytes,
                counters,
                calls,
                siblings,
            ),
            self._layer,
            backends,
            self._tracker,
            flows.tokens,
            self._contact_behind,
            random_bytes,
            counters,
            self._services.turn_credentials,
            calls,
            self._lines,
        )
        self._orphans = Orphans(
            settings, self._dialogs, directory, flows, self._proxy, self._forwarding, counters, siblings
        )
        self.continuity = Continuity(self._dialogs, directory, self._orphans)
        """What a restart takes up, and what goes from worker to worker."""

    # What happens outside

    def flow_opened(self, remote: Address, secure: bool, host: Address, admitted: Admitted = ADMITTED) -> Flow:
        """A browser's WebSocket is open. `host` is what its upgrade asked for, `admitted` what it showed of itself."""
        flow = self._flows.open(remote, secure, host)
        flow.identity, flow.forwarded = admitted
        self._identities.opened(flow)
        self._directory.flow_opened(flow.id)
        return flow

    def flow_closed(self, connection: bytes, now: float) -> list[Effect]:
        """It is gone: what waits for it fails at once (rules D5, R7)."""
        flow = self._flows.close(connection)
        if flow is None:
            return []
        self._identities.closed(connection)
        self._orphans.flow_closed(connection, now)
        self._directory.flow_closed(connection, now)
        return self._run(self._layer.transport_failed(flow.hop, now, "the browser's connection is gone"), now)

    def from_browser(self, connection: bytes, data: bytes, now: float) -> list[Effect]:
        """One WebSocket message of a flow, keep-alives already taken out (rule H4)."""
        flow = self._flows.get(connection)
        if flow is None:
            return []
        message = self._screening.parse(data, flow.hop, is_browser=True)
        if message is None:
            return []
        if not message.is_request:
            return self._response(message, flow.hop, now)
        if self._settings.add_received:
            message = _with_received(message, flow.remote)
        return self._request(message, flow.hop, now, is_browser=True)

    def refused(self, connection: bytes, data: bytes) -> list[Effect]:
        """One WebSocket message over the rate of its connection: 503 to a request, nothing else (table A)."""
        flow = self._flows.get(connection)
        message = self._screening.parse(data, flow.hop) if flow is not None else None
        if flow is None or message is None or not message.is_request:
            return []
        self._counters.count("sip_messages_over_rate")
        headers = _retry("too many messages ([limits] messages_per_second)")
        return self._stateless(message, flow.hop, Answer(503, "Service Unavailable", headers))

    def from_backend(self, hop: Hop, data: bytes, now: float, flaw: str = "") -> list[Effect]:
        """One message from the backend side; `hop` is its source (and connection).

        `flaw` is what is wrong with the framing of a stream of which this is the last head.
        """
        message = self._screening.parse(data, hop)
        if message is None:
            return []
        message.flaw = flaw or message.flaw
        if not message.is_request:
            return self._response(message, hop, now)
        try:
            message, reply_hop = reply_place(message, hop)
            if not self._screening.may_send(message, hop):
                return self._turn_away(message, reply_hop, now)
        except ProtocolError:
            self._counters.count("sip_malformed_dropped")
            return []
        return self._request(message, reply_hop, now)

    def resolved(self, backend: str, now: float) -> list[Effect]:
        """The resolution that a Resolve asked for is over."""
        return self._run(self._forwarding.resolved(backend, now), now)

    def connected(self, hop: Hop, local: Address, now: float) -> list[Effect]:
        """A connection to a WS backend stands, `local` is its near end."""
        return self._run(self._forwarding.connected(hop, local, now), now)

    def failed(self, hop: Hop, reason: str, now: float) -> list[Effect]:
        """A backend's hop cannot be reached or its connection is gone."""
        effects: list[object] = list(self._forwarding.disconnected(hop, now))
        effects += self._layer.transport_failed(hop, now, reason)
        return self._run(effects, now)

    def next_timer(self) -> float | None:
        """When `handle_timer` is to be called; None for never."""
        timers = (
            self._layer.next_timer(),
            self._forwarding.next_timer(),
            self._orphans.next_timer(),
            self._identities.next_timer(),
            self._subscriptions.next_timer(),
            self._dialogs.next_timer(),
            self._directory.next_timer(),
        )
        return min((timer for timer in timers if timer is not None), default=None)

    def handle_timer(self, now: float) -> list[Effect]:
        """Everything that is due at `now`."""
        effects: list[object] = list(self._layer.handle_timer(now))
        effects += self._forwarding.handle_timer(now)
        effects += self._orphans.handle_timer(now)
        effects += self._identities.handle_timer(now)
        self._subscriptions.handle_timer(now)
        forgotten = self._dialogs.handle_timer(now)
        if forgotten:
            self._counters.count("sip_dialogs_forgotten", forgotten)
        self._directory.handle_timer(now)
        return self._run(effects, now)

    def registered(self, connection: bytes) -> list[Registration]:
        """What is registered through a flow."""
        return self._directory.registrations_of(connection)

    def counts(self) -> dict[str, int]:
        """Sizes of the tables, for the status."""
        return {
            "flows": len(self._flows),
            "transactions": len(self._layer),
            "probes": self._forwarding.probes_under_way,
            "dialogs": len(self._dialogs),
            **self._directory.counts(),
        }

    def dead_targets(self) -> list[Place]:
        """The targets of backends that are left alone at this time (rule N3)."""
        return self._forwarding.dead_targets()

    def is_trusted(self, host: str) -> bool:
        """True where a connection may come from: configured backends, trusted_sources (N6), other workers (T3)."""
        return self._screening.is_trusted(host) or self._siblings.is_host(host)

    def _contact_behind(self, handle: bytes) -> bytes | None:
        registration = self._directory.behind(handle)
        return registration.contact if registration is not None else None

    def stopping(self, now: float) -> list[Effect]:
        """The process ends soon: end what cannot outlive it (rule D4)."""
        return self._run(self._orphans.stopping(now), now)

    # What comes in

    def _response(self, message: Message, hop: Hop, now: float) -> list[Effect]:
        if message.flaw:
            self._counters.count("sip_malformed_dropped")
            return []
        return self._run(self._layer.receive_response(message, hop, now), now)

    def _request(self, message: Message, hop: Hop, now: float, *, is_browser: bool = False) -> list[Effect]:
        if message.flaw:
            # Judged before it may match or make a transaction: its Via, tags or CSeq are not to be trusted.
            self._counters.count("sip_malformed_requests")
            return self._stateless(message, hop, self._proxy.judge(message) or malformed(message.flaw))
        return self._run(self._layer.receive_request(message, hop, now, is_stranger=is_browser), now)

    def _stateless(self, message: Message, hop: Hop, answer: Answer) -> list[Effect]:
        """An answer without a transaction; what lacks the headers to be answered is dropped (table A)."""
        if message.method == b"ACK" or not message.is_answerable:
            self._counters.count("sip_malformed_dropped")
            return []
        return [Send(hop, response_to(message, *answer[:2], to_tag=self._tag(), headers=answer.headers))]

    def _turn_away(self, message: Message, hop: Hop, now: float) -> list[Effect]:
        self._counters.count("sip_requests_of_strangers")
        if not self._screening.may_answer_stranger(hop.address.host, now):
            return []
        headers = (warning("this source is neither a backend nor in trusted_sources"),)
        return self._stateless(message, hop, Answer(403, "Forbidden", headers))

    # Effects of the layers below

    def _run(self, effects: Iterable[object], now: float) -> list[Effect]:
        """Hand what is meant for us from layer to layer until only effects for the outside are left."""
        outside: list[Any] = []
        queue: deque[object] = deque(effects)
        while queue:
            effect = queue.popleft()
            if type(effect) in _FOR_OUTSIDE:
                outside.append(effect)
            elif isinstance(effect, RequestReceived):
                queue.extend(self._handle_request(effect.server, effect.message, effect.hop, now))
            elif isinstance(effect, ResponseReceived):
                queue.extend(self._forwarding.received(effect.client, effect.message, now))
            elif isinstance(effect, Ended):
                self._forwarding.ended(effect)
            elif isinstance(effect, AckReceived):
                queue.extend(self._handle_ack(effect.message, effect.hop, now))
            elif isinstance(effect, Failed):
                queue.extend(self._forwarding.failed(effect.client, effect.why, now))
            elif isinstance(effect, Orphaned):
                queue.extend(self._orphans.answered(effect, now))
            elif isinstance(effect, Retain):
                self._services.retain(effect, now)
        if self._dialogs.calls_over:
            self._tell_ends(now)
        return outside

    def _tell_ends(self, now: float) -> None:
        over, self._dialogs.calls_over = self._dialogs.calls_over, []
        for dialog in over:
            self._lines.ended(dialog, now)

    def _arrival(self, message: Message, hop: Hop) -> tuple[Arrival, Leg]:
        flow = self._flows.get(hop.connection) if hop.connection else None
        sent_by = self._names.sent_by(hop, None if flow else self._forwarding.local_of(hop))
        leg = Leg(flow, hop, sent_by)
        if flow is not None:
            return Arrival(hop, flow, False), leg
        if self._siblings.is_from(message, hop):
            return Arrival(hop, None, True, origin(message)), leg
        return Arrival(hop, None, self._screening.is_trusted(hop.address.host), hop), leg

    def _handle_request(self, server: ServerTransaction, message: Message, hop: Hop, now: float) -> Iterable[object]:
        if message.method == b"CANCEL":
            return self._handle_cancel(server, message, hop, now)
        arrival, leg = self._arrival(message, hop)
        try:
            message = for_loose_routing(message, self._screening.is_own_route)
            if message.method == b"NOTIFY":
                self._subscriptions.notified(message, arrival, self._forwarding.sender(arrival), now)
            decision = self._proxy.decide(message, arrival, now)
            if not isinstance(decision, Answer):
                decision = self._refusal(message, arrival, now) or decision
            if isinstance(decision, ToService):
                branches = self._services.serve(decision, message, arrival, now)
            else:
                branches = self._branches(decision, message, now)
        except ProtocolError as error:
            branches = malformed(error.reason)
        if isinstance(branches, Answer):
            return self._answer(server, message, branches, now)
        return self._forward(server, self._services.consumed(decision, message), arrival, leg, branches, now)

    def _handle_cancel(self, server: ServerTransaction, message: Message, hop: Hop, now: float) -> Iterable[object]:
        # Rule B5: 200 at once, or 481 where nothing matches.
        invite = self._layer.invite_server(message, hop)
        if invite is None:
            return self._answer(server, message, NO_INVITE, now)
        effects: list[object] = list(self._answer(server, message, Answer(200, "OK"), now))
        if isinstance(invite.user, Context):
            effects += self._forwarding.cancel(invite.user, now, message.header(b"reason") or b"")
        return effects

    def _handle_ack(self, message: Message, hop: Hop, now: float) -> Iterable[object]:
        # Rule I7: an ACK is never answered; what may not go on is dropped and counted.
        arrival, leg = self._arrival(message, hop)
        try:
            message = for_loose_routing(message, self._screening.is_own_route)
            against = self._identities.refusal(message, arrival.flow, now)
            decision = against or self._proxy.decide(message, arrival, now)
            if isinstance(decision, ToService):
                branches = self._services.serve(decision, message, arrival, now)
            else:
                branches = self._branches(decision, message, now)
        except ProtocolError as error:
            branches = malformed(error.reason)
        if isinstance(branches, Answer):
            self._counters.count("sip_acks_dropped")
            if message.to_tag:
                self._lines.lost_ack(message, branches, now)
            return ()
        self._tracker.request(message, now, may_change_target=False)
        return self._forwarding.stray(Stray(self._services.consumed(decision, message), leg, branches[0]), now)

    def _refusal(self, message: Message, arrival: Arrival, now: float) -> Answer | None:
        """Nothing against the identity of the flow, no new dialog while the table is full or we drain (table A)."""
        against = self._identities.refusal(message, arrival.flow, now)
        if against is not None:
            return against
        if message.method not in BEGINNERS or message.to_tag:
            return None
        if self.draining:
            return Answer(503, "Service Unavailable", _retry("shutting down, calls that are up go on (drain_timeout)"))
        if not self._dialogs.full:
            return None
        self._counters.count("sip_dialogs_full")
        if arrival.flow is None:
            return Answer(480, "Temporarily Unavailable", (warning(DIALOGS_FULL),))
        return Answer(503, "Service Unavailable", _retry(DIALOGS_FULL))

    def _branches(
        self, decision: Answer | ToBackend | ToDirect | ToFlow | ToSibling, message: Message, now: float
    ) -> list[Branch] | Answer:
        if isinstance(decision, Answer):
            return decision
        if isinstance(decision, ToBackend):
            return [Branch(backend=decision.backend, targets=decision.targets, drop_routes=decision.drop_routes)]
        if isinstance(decision, ToDirect):
            return [Branch(targets=[decision.target], drop_routes=decision.drop_routes)]
        if is_secure_only(message):
            return SECURE_ONLY
        if isinstance(decision, ToSibling):
            return [branch_to(decision, self._siblings)]
        # Rule C2: what its Route brought here may still name a GRUU, which the browser does not know as its own.
        uri = decision.uri or self._services.contact_behind_gruu(message, decision.flow.id, now)
        return [Branch(flow=decision.flow, drop_routes=decision.drop_routes, uri=uri)]

    def _forward(
        self,
        server: ServerTransaction,
        message: Message,
        arrival: Arrival,
        leg: Leg,
        branches: list[Branch],
        now: float,
    ) -> Iterable[object]:
        effects: list[object] = []
        if message.method == b"INVITE":
            # Rules I1, B4: at once, whoever calls, so that nobody sends it again.
            effects += self._layer.respond(server, 100, response_to(message, 100, "Trying"), now)
        if message.method == b"REGISTER" and arrival.flow is not None:
            arrival.flow.outbound = shows_outbound(message)
        if message.to_tag:
            self._note(message, arrival, now)
        context = Context(server, message, arrival, leg)
        if message.method in SUBSCRIBERS and not message.to_tag:
            self._subscriptions.forwarded(context, branches, self._forwarding.sender(arrival), now)
        effects += self._forwarding.start(context, branches, now)
        return effects

    def _note(self, message: Message, arrival: Arrival, now: float) -> None:
        # Rule N6: of the backend side a backend, or the target itself, moves a target; of the browsers the party.
        found = self._dialogs.find(message.call_id, message.from_tag, message.to_tag)
        if found is None:
            return
        if arrival.flow is not None:
            may_change = self._proxy.is_party(found.sender, arrival.flow.id)
        elif arrival.origin is None:
            may_change = True  # another worker has seen that it is the party's
        else:
            host = arrival.origin.address.host
            may_change = self._screening.is_backend(host) or is_at(found.sender.target, host)
            if not may_change and is_phone_at(found.sender, arrival.origin, self._directory):
                # Rule G5: its place counts for its address, whatever its Contact says.
                found.sender.source, may_change = arrival.origin, True
        self._tracker.request(message, now, may_change)

    def _answer(self, server: ServerTransaction, message: Message, answer: Answer, now: float) -> Iterable[object]:
        self._counters.count(f"sip_answers_{answer.status}")
        self._lines.refused(message, answer, now)
        data = response_to(message, *answer[:2], to_tag=self._tag(), headers=answer.headers)
        return self._layer.respond(server, answer.status, data, now)

    def _tag(self) -> bytes:
        return self._random_bytes(6).hex().encode()


def _retry(text: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"Retry-After", b"%d" % RETRY_AFTER_SECONDS), warning(text))


def _with_received(message: Message, remote: Address) -> Message:
    # What has no readable Via is not answered anyway.
    return message if message.flaw else with_via_parameters(message, (b"received", remote.host.encode()))
