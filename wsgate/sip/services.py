"""What wsgate does itself instead of forwarding: OPTIONS, the embedded registrar, its location service. Pure.

Rules: G1 (OPTIONS for us, location), G4 (whose From), G6 (one branch for each instance), R4 (what is remembered).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from wsgate.addr import Address
from wsgate.bindings import Binding
from wsgate.directory import Directory
from wsgate.errors import ProtocolError
from wsgate.metrics import Counters
from wsgate.sip.compose import shows_outbound
from wsgate.sip.contexts import Branch, Retain, Way
from wsgate.sip.decisions import (
    SECURE_ONLY,
    Answer,
    Arrival,
    Decision,
    Service,
    ToBackend,
    ToService,
    is_secure_only,
)
from wsgate.sip.flow import Flow, FlowTable
from wsgate.sip.headers import parse_uri
from wsgate.sip.message import Message, warning
from wsgate.sip.registrar import Registrar
from wsgate.sip.registration import registrations
from wsgate.sip.siblings import Siblings
from wsgate.sip.targets import Target

ALLOWED_METHODS = b"INVITE, ACK, CANCEL, BYE, OPTIONS, REGISTER, SUBSCRIBE, NOTIFY, REFER, MESSAGE, INFO, PRACK, UPDATE"
EXTENSIONS = (b"path", b"outbound")
"""What Supported says, and Require may (RFC 3261 §8.2.2.3)."""
MAX_BREADTH = 60
"""Branches that a request without Max-Breadth may be forked into (RFC 5393 §5.3.3)."""

NO_REGISTRAR = Answer(404, "Not Found", (warning("no [backend] has target = embedded since the start"),))
NO_USER = Answer(404, "Not Found", (warning("there is no such user"),))
NO_FLOW = Answer(480, "Temporarily Unavailable", (warning("no open flow leads to this user"),))


TURN_CREDENTIALS = b"X-Turn-Credentials"
"""The header that hands out TURN credentials with a registration (rule A5)."""

HandOut = Callable[[Address, str], bytes]
"""The value of TURN_CREDENTIALS for a browser that asked for this host and has the registration with this id."""


class Services:
    """Serves what the proxy decided to keep here, and remembers what backends' registrars confirmed."""

    def __init__(
        self,
        registrar: Registrar | None,
        flows: FlowTable,
        directory: Directory,
        counters: Counters,
        siblings: Siblings,
        hand_out: HandOut | None = None,
    ) -> None:
        self._siblings = siblings
        self._hand_out = hand_out
        self._registrar = registrar
        self._flows = flows
        self._directory = directory
        self._counters = counters

    def serve(self, decision: ToService, message: Message, arrival: Arrival, now: float) -> list[Branch] | Answer:
        """The answer, or the branches that lead to a user of ours. Raises ProtocolError."""
        if decision.service is Service.OPTIONS:
            return _able(message)
        registrar = self._registrar
        if registrar is None:
            return NO_REGISTRAR
        if decision.service is Service.LOCATION:
            return self._locate(registrar, decision, message, arrival, now)
        flow = b""
        if arrival.flow is not None:
            flow = arrival.flow.id
            arrival.flow.outbound = shows_outbound(message)
        answer = registrar.register(message, flow, arrival.hop, now)
        headers: tuple[tuple[bytes, bytes], ...] = tuple(answer.headers)
        if answer.status == 200 and arrival.flow is not None:
            headers += self.turn_credentials(arrival.flow, message, None, now)
        return Answer(answer.status, answer.reason, headers)

    def consumed(self, decision: Decision, message: Message) -> Message:
        """The request as the far end may see it, where wsgate itself asks for credentials (rule G4).

        A real backend has its own users, and reads for itself what is for it.
        """
        if self._registrar is None or isinstance(decision, ToBackend):
            return message
        return self._registrar.accounts.without_credentials(message)

    def turn_credentials(
        self, flow: Flow, request: Message, response: Message | None, now: float
    ) -> tuple[tuple[bytes, bytes], ...]:
        """Rule A5: the header for a 2xx that leaves a registration of this flow, nothing where it leaves none.

        `response` is that of a backend's registrar, which is not remembered yet; None: the embedded one has done it.
        """
        if self._hand_out is None:
            return ()
        try:
            aor = parse_uri(request.to_uri).address_of_record
            found = [one for one in self._directory.registrations_of(flow.id) if one.aor == aor]
            if response is not None and request.values(b"contact"):
                handle = partial(flow.handle, self._flows.tokens)
                found = registrations(flow.id, request, response, now, handle) or []
        except ProtocolError:
            return ()
        lasting = [one for one in found if one.expires_at > now]
        return ((TURN_CREDENTIALS, self._hand_out(flow.host, lasting[-1].id)),) if lasting else ()

    def contact_behind_gruu(self, message: Message, flow: bytes, now: float) -> bytes | None:
        """The Contact on this flow of the instance whose GRUU of ours is the Request-URI. Raises ProtocolError."""
        if self._registrar is None or b";gr" not in message.uri:
            return None
        return self._registrar.location.contact_on(message.request_uri, flow, now)

    def retain(self, retain: Retain, now: float) -> None:
        """Rule R4: what a backend's registrar has confirmed is remembered with the flow."""
        try:
            handle = partial(retain.flow.handle, self._flows.tokens)
            found = registrations(retain.flow.id, retain.request, retain.response, now, handle)
            if found is None:
                self._directory.forget_all(parse_uri(retain.request.to_uri).address_of_record, now)
                return
        except ProtocolError:
            self._counters.count("sip_malformed_contacts")
            return
        for registration in found:
            if not self._directory.remember(registration, now):
                self._counters.count("sip_registrations_full")

    def _locate(
        self, registrar: Registrar, decision: ToService, message: Message, arrival: Arrival, now: float
    ) -> list[Branch] | Answer:
        """Rules G1, G4, G6: whose call, where to, one branch for each instance."""
        if arrival.flow is not None and not message.to_tag:
            judged = registrar.accounts.judge_from(message, arrival.flow.id, now)
            if not judged.allowed:
                return Answer(judged.status, judged.reason, tuple(judged.headers))
        found = registrar.location.lookup(message.request_uri, now)
        instances = [[way for binding in flows if (way := self._way(binding))] for flows in found.instances]
        if is_secure_only(message):
            # Rule C2: a browser cannot show that its leg is TLS to the end.
            instances = [[way for way in ways if way.flow is None and not way.sibling] for ways in instances]
            if found.instances and not any(instances):
                return SECURE_ONLY
        branches = [_branch(ways, decision.drop_routes) for ways in instances if ways]
        if not branches:
            return NO_USER if found.status == 404 else NO_FLOW
        return _shared(branches, message.header(b"max-breadth"))

    def _way(self, binding: Binding) -> Way | None:
        """The browser's flow, or where the phone's packets come from (rule G5); None where neither is there."""
        if binding.flow:
            flow = self._flows.get(binding.flow)
            worker = self._directory.worker_of(binding.flow)
            if flow is not None:
                return Way(flow, None, binding.contact, binding.path)
            if worker is None or not self._siblings.has(worker):
                return None
            # Rule T3: as if the worker's token were the Path. With `ob`, so that a flow that just went is told by 430.
            route = self._siblings.route(worker, binding.flow, outbound=True)
            return Way(None, self._siblings.targets(worker)[0], binding.contact, (route, *binding.path), sibling=True)
        if binding.source is None:
            return None
        target = Target(binding.source.transport, binding.source.address, binding.source.address.host)
        return Way(None, target, binding.contact, binding.path)


def _able(message: Message) -> Answer:
    """What an OPTIONS for wsgate itself is told (rule G1, RFC 3261 §11.2), 420 where it asks for more (§8.2.2.3)."""
    unknown = [tag for tag in message.values(b"require") if tag.lower() not in EXTENSIONS]
    if unknown:
        unsupported = (b"Unsupported", b", ".join(unknown))
        return Answer(420, "Bad Extension", (unsupported, warning("Require names what wsgate does not know")))
    able = ((b"Allow", ALLOWED_METHODS), (b"Accept", b"*/*"), (b"Supported", b", ".join(EXTENSIONS)))
    return Answer(200, "OK", able)


def _branch(ways: list[Way], drop_routes: int) -> Branch:
    """One branch for an instance: its newest flow, the others when that one fails (G6, RFC 5626 §7)."""
    branch = Branch(drop_routes=drop_routes)
    branch.take(ways[0])
    branch.ways = ways[1:]
    return branch


def _shared(branches: list[Branch], header: bytes | None) -> list[Branch] | Answer:
    """Max-Breadth divided among the branches (RFC 5393 §5.3.3), 440 where it does not suffice."""
    given = int(header) if header is not None and header.isdigit() and len(header) < 6 else None
    breadth = MAX_BREADTH if given is None else given
    if len(branches) > breadth:
        return Answer(440, "Max-Breadth Exceeded", (warning("the user has more instances than Max-Breadth allows"),))
    if len(branches) > 1:
        share, more = divmod(breadth, len(branches))
        for number, branch in enumerate(branches):
            branch.breadth = share + (number < more)
    return branches
