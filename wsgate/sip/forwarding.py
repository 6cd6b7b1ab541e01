"""Response contexts at work: branches of a forwarded request, and the best of their answers (RFC 3261 §16.6 to §16.10).

What a branch tries, and by which way, is in attempts.py (rules N2, I4). Pure: every method returns effects, to be
applied in their order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from wsgate.addr import Address, Hop
from wsgate.errors import ProtocolError
from wsgate.metrics import Counters
from wsgate.sip.attempts import Attempts
from wsgate.sip.best_response import best, merge_challenges
from wsgate.sip.call_lines import CallLines
from wsgate.sip.calls import Calls
from wsgate.sip.contexts import Branch, Context, Effect, Orphaned, Outcome, Retain, Stray
from wsgate.sip.dead_targets import Place
from wsgate.sip.decisions import Arrival, Backends
from wsgate.sip.edit import Edit
from wsgate.sip.flow import Flow, FlowTokens, RandomBytes
from wsgate.sip.headers import parse_uri
from wsgate.sip.message import Message, response_to, warning
from wsgate.sip.probes import Probe
from wsgate.sip.rewriting import HANDLE_PARAMETER, contact_uri, restored
from wsgate.sip.settings import SipSettings
from wsgate.sip.tracking import BEGINNERS, CHALLENGES, Party, Tracker
from wsgate.sip.transaction import ClientTransaction, Ended, Failure, ServerTransaction, State, TransactionLayer

TurnCredentials = Callable[[Flow, Message, Message, float], tuple[tuple[bytes, bytes], ...]]
"""What a 2xx to a REGISTER hands out to a browser: flow, request, response, `now` (rule A5)."""

RETRY_AFTER_SECONDS = 10
"""What a 503 of our own tells the browser (RFC 3261 §20.33)."""


class Forwarding:
    """All requests under way."""

    def __init__(
        self,
        settings: SipSettings,
        attempts: Attempts,
        layer: TransactionLayer,
        backends: Backends,
        tracker: Tracker,
        tokens: FlowTokens,
        contact_behind: Callable[[bytes], bytes | None],
        random_bytes: RandomBytes,
        counters: Counters,
        turn_credentials: TurnCredentials,
        calls: Calls,
        lines: CallLines,
    ) -> None:
        self._calls = calls
        self._lines = lines
        self._settings = settings
        self._turn_credentials = turn_credentials
        self._layer = layer
        self._tracker = tracker
        self._random_bytes = random_bytes
        self._counters = counters
        self._tokens = tokens
        self._contact_behind = contact_behind
        self._backends = backends
        self._attempts = attempts
        self._invites: dict[int, Context] = {}
        self._invites_of_flow: dict[bytes, set[int]] = {}
        self._timers: list[tuple[float, int]] = []
        self._numbers = count(1)

    def start(self, context: Context, branches: list[Branch], now: float) -> list[Effect]:
        """Forward the request of `context` down all `branches` at once."""
        effects: list[Effect] = []
        if context.server is not None:
            context.server.user = context
        context.branches = branches
        if context.message.method == b"INVITE":
            context.number = next(self._numbers)
            context.began = now
            context.timer_c = now + self._settings.timer_c
            self._invites[context.number] = context
            if context.arrival.flow is not None:
                self._invites_of_flow.setdefault(context.arrival.flow.id, set()).add(context.number)
            heapq.heappush(self._timers, (context.timer_c, context.number))
        for branch in branches:
            branch.context = context
        started = [self._attempts.begin(branch, now, effects) for branch in branches]
        if not all(started):
            self._conclude(context, now, effects)
        return effects

    def stray(self, stray: Stray, now: float) -> list[Effect]:
        """Forward an ACK of a 2xx (rule I7)."""
        effects: list[Effect] = []
        self._attempts.stray(stray, now, effects)
        return effects

    def received(self, client: ClientTransaction, message: Message, now: float) -> list[Effect]:
        """A response of a client transaction (RFC 3261 §16.7)."""
        branch = client.context
        effects: list[Effect] = []
        if isinstance(branch, Probe) and message.status >= 200:
            self._attempts.probes.ended(branch, message.status, now)
        if not isinstance(branch, Branch):
            return effects
        unavailable = message.status == 503 and branch.flow is None
        if not unavailable:
            self._attempts.target_answered(branch)
        if message.status < 200:
            self._provisional(branch, message, now, effects)
        elif branch.client is not client and message.status >= 300:
            self._counters.count("sip_responses_of_abandoned_branches")
        elif unavailable:
            self._fail(branch, Outcome.UNAVAILABLE, now, effects, _retry_after(message))
        elif _is_flow_failure(branch, message):
            self._give_up(branch, Outcome.UNREACHABLE, now, effects)
        else:
            self._final(branch, message, now, effects)
        return effects

    def failed(self, client: ClientTransaction, why: Failure, now: float) -> list[Effect]:
        """A client transaction ended without a final response (RFC 3261 §16.9, §16.8)."""
        branch = client.context
        effects: list[Effect] = []
        if isinstance(branch, Probe):
            self._attempts.probes.ended(branch, None, now)
        if not isinstance(branch, Branch) or branch.client is not client or branch.outcome is not Outcome.PENDING:
            return effects
        if why is Failure.TRANSPORT and not branch.context.cancelled:
            again = self._attempts.retry(branch, now, effects) or self._attempts.fall_back(branch, now, effects)
            if again:
                return effects
        self._fail(branch, self._attempts.outcome_of(branch, why, now), now, effects)
        return effects

    def ended(self, ended: Ended) -> None:
        """A transaction is over: it and its context let go of each other.

        Else they would wait, with their messages, for the garbage collector.
        """
        context = branch = None
        if ended.server is not None and isinstance(ended.server.user, Context):
            context, ended.server.user = ended.server.user, None
        elif ended.client is not None and isinstance(ended.client.context, Branch):
            branch, ended.client.context = ended.client.context, None
            if branch.client is ended.client and branch.outcome is not Outcome.PENDING:
                branch.client = None
            context = branch.context
        if context is not None and context.answered and _is_over(context.server):
            context.branches = []

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
        for branch in self._attempts.resolved(backend, now, effects):
            self._conclude(branch.context, now, effects)
        return effects

    def connected(self, hop: Hop, local: Address, now: float) -> list[Effect]:
        """A connection to a backend stands; `local` is its near end (V1)."""
        effects: list[Effect] = []
        self._attempts.connected(hop, local, now, effects)
        return effects

    def disconnected(self, hop: Hop, now: float) -> list[Effect]:
        """A backend's connection failed or is gone; what waits for it tries its next target."""
        effects: list[Effect] = []
        for branch in self._attempts.disconnected(hop, now):
            self._fail(branch, Outcome.UNREACHABLE, now, effects)
        return effects

    def local_of(self, hop: Hop) -> Address | None:
        """The near end of the connection that names us towards this hop, None for others."""
        return self._attempts.local_of(hop)

    @property
    def probes_under_way(self) -> int:
        """How many transactions are probes of dead targets."""
        return self._attempts.probes.under_way

    def dead_targets(self) -> list[Place]:
        """The targets that are left alone at this time, for the status."""
        return list(self._attempts.probes.dead)

    def invites_of(self, flow: bytes) -> list[Context]:
        """The INVITEs of a browser's flow that have no final answer yet (rule D4)."""
        return [self._invites[number] for number in self._invites_of_flow.get(flow, ())]

    def invites_of_browsers(self) -> list[Context]:
        """Those of all flows."""
        return [self._invites[number] for numbers in self._invites_of_flow.values() for number in numbers]

    def next_timer(self) -> float | None:
        """When the earliest Timer C may fire, or a dead target is to be probed."""
        while self._timers and self._timers[0][1] not in self._invites:
            heapq.heappop(self._timers)
        timers = [self._timers[0][0] if self._timers else None, self._attempts.probes.next_timer()]
        return min((timer for timer in timers if timer is not None), default=None)

    def handle_timer(self, now: float) -> list[Effect]:
        """Timer C (RFC 3261 §16.8, rule I5): CANCEL after a provisional, else as if 408 had come. And probes (N3)."""
        effects: list[Effect] = []
        self._attempts.probes.handle_timer(now, effects)
        while self._timers and self._timers[0][0] <= now:
            _, number = heapq.heappop(self._timers)
            context = self._invites.get(number)
            if context is None:
                continue
            if context.timer_c > now:
                heapq.heappush(self._timers, (context.timer_c, number))
                continue
            for branch in context.branches:
                if branch.outcome is Outcome.PENDING:
                    self._expire(branch, now, effects)
            self._conclude(context, now, effects)
        return effects

    def _expire(self, branch: Branch, now: float, effects: list[Effect]) -> None:
        branch.targets = []
        branch.ways = []
        if branch.client is not None and branch.provisional:
            effects += self._layer.cancel(branch.client, now)
        else:
            self._end(branch, Outcome.TIMEOUT)

    def _end(self, branch: Branch, outcome: Outcome) -> None:
        branch.outcome = outcome
        self._calls.branch_ended(branch)

    def _provisional(self, branch: Branch, message: Message, now: float, effects: list[Effect]) -> None:
        branch.provisional = True
        context = branch.context
        if context.answered or message.status == 100:
            return
        context.timer_c = now + self._settings.timer_c
        self._pass(branch, message, now, effects)

    def _final(self, branch: Branch, message: Message, now: float, effects: list[Effect]) -> None:
        context = branch.context
        branch.response = message
        if message.status < 300:
            if context.answered and context.message.method != b"INVITE":
                self._end(branch, Outcome.ANSWERED)
                return
            self._settle(context)
            self._pass(branch, message, now, effects)
            self._end(branch, Outcome.ANSWERED)
            self._cancel_branches(context, now, effects, b'SIP;cause=200;text="Call completed elsewhere"')
            # Early dialogs of other branches end with them (RFC 3261 §13.2.2.4); a 2xx of theirs begins anew.
            self._tracker.refused(context.dialogs)
            return
        self._end(branch, Outcome.ANSWERED)
        if message.status >= 600:
            self._cancel_branches(context, now, effects)
        self._conclude(context, now, effects)

    def _fail(
        self, branch: Branch, outcome: Outcome, now: float, effects: list[Effect], retry_after: float = 0.0
    ) -> None:
        """This target did not do: mark it, try the next one, or let the branch end (rule N2)."""
        self._attempts.target_failed(branch, outcome, now, retry_after)
        self._give_up(branch, outcome, now, effects)

    def _give_up(self, branch: Branch, outcome: Outcome, now: float, effects: list[Effect]) -> None:
        branch.client = None
        self._calls.branch_ended(branch)  # the next way may lead to another client
        context = branch.context
        if not context.cancelled and not context.answered and self._attempts.next_target(branch, now, effects):
            return
        self._end(branch, outcome)
        self._conclude(context, now, effects)

    def _cancel_branches(self, context: Context, now: float, effects: list[Effect], reason: bytes = b"") -> None:
        for branch in context.branches:
            if branch.outcome is not Outcome.PENDING:
                continue
            if branch.client is not None:
                branch.targets = []
                branch.ways = []
                effects += self._layer.cancel(branch.client, now, reason)
            else:
                self._end(branch, Outcome.UNREACHABLE)

    def _settle(self, context: Context) -> None:
        """The final answer is on its way: neither Timer C nor a CANCEL matters any more."""
        context.answered = True
        if self._invites.pop(context.number, None) is not None and context.arrival.flow is not None:
            numbers = self._invites_of_flow[context.arrival.flow.id]
            numbers.discard(context.number)
            if not numbers:
                del self._invites_of_flow[context.arrival.flow.id]

    def _conclude(self, context: Context, now: float, effects: list[Effect]) -> None:
        """All branches over: the best answer goes out (RFC 3261 §16.7 step 6)."""
        if context.answered or any(branch.outcome is Outcome.PENDING for branch in context.branches):
            return
        self._settle(context)
        chosen = best(context.branches, is_invite=context.message.method == b"INVITE")
        if chosen is not None and chosen.response is not None:
            self._pass(chosen, chosen.response, now, effects)
        else:
            self._answer_ourselves(context, now, effects)
        self._tracker.refused(context.dialogs)

    def _pass(self, branch: Branch, message: Message, now: float, effects: list[Effect]) -> None:
        context = branch.context
        if message.status == 503:
            self._refuse(context, 500, "Server Internal Error", "the next hop answered 503", now, effects)
            return
        if message.status >= 300:
            self._lines.failed(context, message.status, "the far end", now)
        if context.message.to_tag or context.message.method in BEGINNERS:
            self._track(branch, message, now)
        if context.server is None:
            return
        if _is_orphaned(context, message):
            effects.append(Orphaned(context, message))
        edit = Edit(message)
        edit.drop_values(b"via", 1)  # rule C1: ours alone, the browser's own stays as it is
        if message.status in CHALLENGES:
            merge_challenges(edit, branch, context.branches)
        if context.arrival.flow is None and not message.has(b"content-length"):
            # Rule I3: a stream needs it, and so does everyone who reads strictly.
            edit.append(b"Content-Length", b"%d" % message.body_bytes)
        if context.message.method == b"REGISTER" and 200 <= message.status < 300 and context.arrival.flow is not None:
            if message.has_token(b"require", b"outbound") and message.header(b"flow-timer") is None:
                edit.append(b"Flow-Timer", b"%d" % self._settings.flow_timer)
            self._restore_contacts(edit, context.arrival.flow, context.message, message)
            for name, value in self._turn_credentials(context.arrival.flow, context.message, message, now):
                edit.append(name, value)
            effects.append(Retain(context.arrival.flow, context.message, message))
        effects += self._layer.respond(context.server, message.status, edit.build(), now)

    def _track(self, branch: Branch, response: Message, now: float) -> None:
        """Write down what a response does to a dialog: it begins one, or passes inside one."""
        context = branch.context
        key = None
        if not _only_passes(context, branch):
            caller = self.sender(context.arrival)
            callee = Party(branch.flow.id if branch.flow else b"", branch.backend, _source(branch))
            key = self._tracker.response(context.message, caller, callee, response, now, context.dialogs)
        if key is not None:
            context.dialogs[key] = response.status >= 200 or context.dialogs.get(key, False)
        self._calls.response_shown(branch, response, key)
        self._tracker.answered(context.message, response.status, is_ours=context.server is None)

    def sender(self, arrival: Arrival) -> Party:
        """Who sent a request, as the dialog table names it."""
        if arrival.flow is not None:
            return Party(arrival.flow.id, "")
        if arrival.origin is None:
            return Party(b"", "")
        return Party(b"", self._backends.backend_of(arrival.origin.address.host) or "", arrival.origin)

    def _restore_contacts(self, edit: Edit, flow: Flow, request: Message, response: Message) -> None:
        """Rules R5, C6: the browser finds its own Contact in the 2xx, in its own spelling; others get theirs back."""
        if not any(HANDLE_PARAMETER in line[2].lower() for line in response.found(b"contact")):
            return
        try:
            aor = parse_uri(request.to_uri).address_of_record
            own = {flow.handle(self._tokens, aor, uri): uri for uri in map(contact_uri, request.values(b"contact"))}
            changes = restored(
                response.values(b"contact"), lambda handle: own.get(handle) or self._contact_behind(handle)
            )
            edit.replace_values(b"contact", changes)
        except ProtocolError:
            self._counters.count("sip_malformed_contacts")

    def _answer_ourselves(self, context: Context, now: float, effects: list[Effect]) -> None:
        outcomes = {branch.outcome for branch in context.branches}
        from_browser = context.arrival.flow is not None
        if context.cancelled:
            self._refuse(context, 487, "Request Terminated", "cancelled by the caller", now, effects)
        elif Outcome.TIMEOUT in outcomes and context.message.method == b"INVITE":
            # The lowest class (RFC 3261 §16.7 step 6), whatever else came to nothing.
            self._refuse(context, 408, "Request Timeout", "the next hop did not answer", now, effects)
        elif Outcome.UNAVAILABLE in outcomes:
            self._refuse(context, 500, "Server Internal Error", "the next hop answered 503", now, effects)
        elif Outcome.TOO_LARGE in outcomes:
            self._refuse(context, 513, "Message Too Large", "no transport takes a request of this size", now, effects)
        elif Outcome.TIMEOUT in outcomes:
            # Of a request that is not INVITE the layer sends no 408: the client's own timer has fired (RFC 4320).
            self._refuse(context, 408, "Request Timeout", "the next hop did not answer", now, effects)
        elif from_browser and any(branch.flow is None and not branch.located for branch in context.branches):
            is_secure = context.message.uri[:5].lower() == b"sips:"
            text = "no target of the backend is reachable" + (
                " by TLS or WSS, which sips: asks for" if is_secure else ""
            )
            self._refuse(context, 503, "Service Unavailable", text, now, effects)
        else:
            self._refuse(context, 480, "Temporarily Unavailable", "the target cannot be reached", now, effects)

    def _refuse(self, context: Context, status: int, reason: str, text: str, now: float, effects: list[Effect]) -> None:
        self._lines.failed(context, status, f"wsgate ({text})", now)
        headers = [warning(text)]
        if status == 503:
            headers.append((b"Retry-After", b"%d" % RETRY_AFTER_SECONDS))
        self._tracker.answered(context.message, status)
        if context.server is None:
            return
        tag = self._random_bytes(6).hex().encode()
        data = response_to(context.message, status, reason, to_tag=tag, headers=headers)
        effects += self._layer.respond(context.server, status, data, now)


def _only_passes(context: Context, branch: Branch) -> bool:
    """True for what begins a dialog of others: the worker that it goes to keeps it (T3)."""
    return branch.sibling and context.arrival.flow is None and not context.message.to_tag


def _source(branch: Branch) -> Hop | None:
    """Where the phone is that the location service found (rule G5)."""
    target = branch.located.target if branch.located is not None and not branch.sibling else None
    return Hop(target.transport, target.address) if target is not None else None


def _is_flow_failure(branch: Branch, response: Message) -> bool:
    """430, or 408 while the instance has other flows: it was not the instance that answered (RFC 5626 §7)."""
    return branch.located is not None and (response.status == 430 or (response.status == 408 and bool(branch.ways)))


def _is_orphaned(context: Context, response: Message) -> bool:
    """True when an INVITE was taken whose sender's connection is gone: nobody will acknowledge it (rule D4)."""
    if context.server is None or context.message.method != b"INVITE":
        return False
    gone = context.arrival.flow is not None and not context.arrival.flow.is_open
    return gone and 200 <= response.status < 300


def _retry_after(message: Message) -> float:
    """The seconds of a Retry-After, which a comment or parameters may follow (RFC 3261 §20.33); 0 without one."""
    digits = (message.header(b"retry-after") or b"").partition(b";")[0].partition(b"(")[0].strip()
    return float(digits) if digits.isdigit() and len(digits) < 10 else 0.0


def _is_over(server: ServerTransaction | None) -> bool:
    return server is None or server.state is State.TERMINATED
