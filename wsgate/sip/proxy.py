"""What a SIP edge proxy decides about a request (RFC 3261 §16, rules R1, B1, B2, D1, W2, N4). Pure.

`Proxy.decide` reads a request and says where it goes: an answer of our own, a backend, a browser's flow, or a service
of wsgate. It writes nothing and keeps nothing; compose.py writes the bytes, forwarding.py keeps the state.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from wsgate.addr import Address, Hop, Transport, in_networks, is_numeric, parse_network
from wsgate.directory import Directory
from wsgate.errors import ProtocolError
from wsgate.log import escaped
from wsgate.registrations import Registration
from wsgate.sip.compose import max_forwards
from wsgate.sip.decisions import (
    FORGED,
    NO_DIALOG,
    Answer,
    Arrival,
    Backends,
    Decision,
    Service,
    ToBackend,
    ToDirect,
    ToFlow,
    ToService,
    ToSibling,
    malformed,
)
from wsgate.sip.dialogs import DialogTable, Side
from wsgate.sip.flow import Flow, FlowTable, Token, Verdict
from wsgate.sip.framing import TOO_LARGE
from wsgate.sip.headers import NameAddr, Uri, host_port, parse_name_addr, parse_uri, same_uri
from wsgate.sip.heirs import heir_by_contact, place_of_phone
from wsgate.sip.message import Message, warning
from wsgate.sip.names import Names
from wsgate.sip.rewriting import handle_in
from wsgate.sip.settings import SipSettings
from wsgate.sip.siblings import Siblings
from wsgate.sip.targets import EMBEDDED, BackendSettings, Target

METADATA = tuple(
    map(parse_network, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"))
)
"""Metadata services of clouds that are not link-local: no direct target even inside direct_targets (rule D1)."""

_SCHEME = re.compile(rb"[a-z][a-z0-9+.-]*\Z")
"""RFC 3261 §25.1, in lower case."""


class Popped(NamedTuple):
    """The Routes that were ours: how many from the top, and the tokens on them in order, each with its `ob`."""

    depth: int
    tokens: tuple[tuple[Token, bool], ...]


NONE_POPPED = Popped(0, ())


class Proxy:
    """Decides where a request goes (RFC 3261 §16.4 to §16.6). Holds no state of its own."""

    def __init__(
        self,
        settings: SipSettings,
        backend_settings: Mapping[str, BackendSettings],
        names: Names,
        flows: FlowTable,
        dialogs: DialogTable,
        backends: Backends,
        directory: Directory,
        is_looped: Callable[[Message], bool],
        siblings: Siblings,
    ) -> None:
        self._siblings = siblings
        self._settings = settings
        self._backend_settings = backend_settings
        self._names = names
        self._flows = flows
        self._dialogs = dialogs
        self._backends = backends
        self._directory = directory
        self._is_looped = is_looped

    def decide(self, message: Message, arrival: Arrival, now: float) -> Decision:
        """The way of one request that is not CANCEL. Raises ProtocolError where a header that routes is malformed."""
        refusal = self.judge(message, arrival.flow)
        if refusal is not None:
            return refusal
        if not message.has(b"route"):
            if arrival.flow is None:
                return self._from_backend(message, arrival, NONE_POPPED)
            return self._from_browser(message, arrival.flow, NONE_POPPED, [], now)
        routes = [parse_name_addr(value) for value in message.values(b"route")]
        popped = self._pop(routes, arrival)
        if any(token.verdict is Verdict.FORGED for token, _ in popped.tokens):
            return FORGED
        if arrival.flow is None:
            return self._from_backend(message, arrival, popped)
        return self._from_browser(message, arrival.flow, popped, [route.uri for route in routes[popped.depth :]], now)

    def judge(self, message: Message, flow: Flow | None = None) -> Answer | None:
        """The checks before routing (RFC 3261 §16.3): syntax, Request-URI, Max-Forwards, loop, Proxy-Require.

        `flow` is what it came in on, None for the backend side.
        """
        if message.flaw:
            if message.flaw == "unknown SIP version":
                return Answer(505, "Version Not Supported", (warning("only SIP/2.0 is spoken here"),))
            if message.flaw == TOO_LARGE:
                return Answer(513, "Message Too Large", (warning("larger than a message on a stream may be"),))
            return malformed(message.flaw)
        if message.uri[:4] != b"sip:":
            scheme = message.uri.partition(b":")[0].lower()
            if not _SCHEME.match(scheme):
                return malformed("the Request-URI is no URI")
            if scheme not in (b"sip", b"sips"):
                return Answer(416, "Unsupported URI Scheme", (warning("only sip: and sips: are routed here"),))
        if message.request_uri.headers is not None:
            return malformed("headers in the Request-URI")
        try:
            remaining = max_forwards(message)
        except ValueError as error:
            return malformed(str(error))
        if remaining == 0 and not self._ends_here(message, flow):
            return Answer(483, "Too Many Hops", (warning("Max-Forwards is used up"),))
        if self._is_looped(message):
            return Answer(482, "Loop Detected", (warning("this request has been here before, unchanged"),))
        unknown = message.values(b"proxy-require")
        if unknown and message.method not in (b"ACK", b"CANCEL"):
            headers = ((b"Unsupported", b", ".join(unknown)), warning("Proxy-Require names what wsgate does not know"))
            return Answer(420, "Bad Extension", headers)
        return None

    def _ends_here(self, message: Message, flow: Flow | None) -> bool:
        """True for what wsgate does not forward in any case: it need not have a hop left (RFC 3261 §8.1.1.6, §16.3).

        So do servers ask by OPTIONS whether we live, lest anybody passes it on.
        """
        if message.method not in (b"OPTIONS", b"REGISTER") or message.to_tag or message.has(b"route"):
            return False
        uri = message.request_uri
        if message.method == b"REGISTER":
            return self._is_embedded_host(uri)
        return uri.user is None and self._names.is_ours(uri, flow) and self.domain_of(uri) in (None, "*")

    def _pop(self, routes: list[NameAddr], arrival: Arrival) -> Popped:
        # Rules R1, W2: from the top while they are ours.
        tokens = []
        count = 0
        for route in routes:
            try:
                uri = route.parsed_uri()
            except ProtocolError:
                if route.uri.partition(b":")[0].lower() in (b"sip", b"sips"):
                    raise
                break
            token = self._flows.tokens.read(uri.user)
            ours = self._names.is_ours(uri, arrival.flow)
            if token.verdict is Verdict.VALID and (arrival.flow is None or self._siblings.has(token.worker)):
                # A B2BUA that rewrites our Route with the source of our packets is still understood. What another
                # worker calls itself towards its backends is known to that worker alone (V1), so its tokens speak.
                ours = True
            if not ours:
                break
            count += 1
            if token.verdict is not Verdict.FOREIGN:
                tokens.append((token, b"ob" in uri.parameters))
        return Popped(count, tuple(tokens))

    def _from_backend(self, message: Message, arrival: Arrival, popped: Popped) -> Decision:
        # Rules B1, D1: the flow its token names and nowhere else.
        handle = handle_in(message.uri)
        registration = self._directory.behind(handle) if handle else None
        if popped.tokens:
            decision = self._to_token(message, *popped.tokens[-1], popped.depth)
            if registration is not None and isinstance(decision, ToFlow | ToSibling):
                return decision._replace(uri=registration.contact)
            return decision
        if handle:
            return self._to_registration(registration, popped.depth)
        uri = message.request_uri
        if uri.user is None and self._names.is_ours(uri) and message.method == b"OPTIONS":
            return ToService(Service.OPTIONS, uri.host, popped.depth)
        domain = self.domain_of(uri)
        if domain is not None and self.is_embedded(domain) and arrival.trusted:
            if message.method != b"REGISTER":
                return ToService(Service.LOCATION, uri.host, popped.depth)
            if in_networks(arrival.hop.address.host, self._settings.trusted_sources):
                return ToService(Service.REGISTER, uri.host, popped.depth)
            return Answer(403, "Forbidden", (warning("phones register from trusted_sources only"),))
        return Answer(404, "Not Found", (warning("a request from the backend side needs a flow token in its Route"),))

    def _to_token(self, message: Message, token: Token, outbound: bool, drop_routes: int) -> Decision:
        flow = self._flows.get(token.connection)
        if self._settings.flow_rebind and message.to_tag:
            # Rule D3: the same client on a newer flow takes over the dialogs of the old one.
            heir = self._directory.heir(token.connection, message.uri)
            heir = heir or heir_by_contact(message, token.connection, self._directory)
            if heir is not None and self._flows.get(heir) is None:
                return self._to_sibling(heir, outbound, drop_routes) or self._gone(outbound)
            flow = (self._flows.get(heir) if heir is not None else None) or flow
        if flow is None and self._siblings.has(token.worker):
            # Rule T3: its worker knows what has become of it.
            return ToSibling(token.worker, token.connection, outbound, drop_routes)
        return ToFlow(flow, drop_routes) if flow is not None else self._gone(outbound)

    def _to_sibling(self, flow: bytes, outbound: bool, drop_routes: int, uri: bytes | None = None) -> ToSibling | None:
        """The way to an open flow of another worker (T3), None where it is none."""
        worker = self._directory.worker_of(flow)
        if worker is None or not self._siblings.has(worker):
            return None
        return ToSibling(worker, flow, outbound, drop_routes, uri)

    def _gone(self, outbound: bool) -> Answer:
        # Rules B1, T2: at once, and never as if it were forged.
        status, reason = (430, "Flow Failed") if outbound else (480, "Temporarily Unavailable")
        return Answer(status, reason, (warning("the flow of this token is gone"),))

    def _to_registration(self, registration: Registration | None, drop_routes: int) -> Decision:
        """Rule R5: the newest flow registered under the handle of the Request-URI; none: as B1."""
        flow = self._flows.get(registration.flow) if registration is not None else None
        if flow is not None and registration is not None:
            return ToFlow(flow, drop_routes, registration.contact)
        if registration is not None:
            elsewhere = self._to_sibling(registration.flow, False, drop_routes, registration.contact)
            if elsewhere is not None:
                return elsewhere
        return Answer(480, "Temporarily Unavailable", (warning("nobody is registered under this handle"),))

    def _from_browser(
        self, message: Message, flow: Flow, popped: Popped, remaining: list[bytes], now: float
    ) -> Decision:
        others: list[tuple[Token, bool]] = []
        if popped.tokens:
            others = [entry for entry in popped.tokens if not self._is_own(entry[0], flow)]
        to_tag = message.to_tag
        if others and to_tag and self._is_of_another_process(message, others):
            # Nobody can be reached by these tokens; the routes behind them, and D1, decide (rule T2).
            others = []
        if others:
            return self._between_browsers(message, flow, others[-1], popped.depth)
        if not remaining and not to_tag:
            return self._out_of_dialog(message, flow, popped, now)
        return self._onward(message, flow, remaining[0] if remaining else message.uri, popped, now)

    def _is_of_another_process(self, message: Message, tokens: list[tuple[Token, bool]]) -> bool:
        """True for valid tokens of flows that are gone, in a dialog that is not known: those of before a restart."""
        if any(self._directory.has_flow(token.connection) for token, _ in tokens):
            return False
        return self._dialogs.find(message.call_id, message.from_tag, message.to_tag) is None

    def _is_own(self, token: Token, flow: Flow) -> bool:
        # Rules B2, W2, D3: no target is the flow that a request came in on, nor one whose place it took.
        return token.connection == flow.id or self._directory.superseded(token.connection, flow.id)

    def _between_browsers(self, message: Message, flow: Flow, named: tuple[Token, bool], drop_routes: int) -> Decision:
        # Rule W2: another flow's token only inside a dialog that the table knows for both.
        if not message.to_tag:
            return Answer(403, "Forbidden", (warning("another flow's token outside a dialog"),))
        found = self._dialogs.find(message.call_id, message.from_tag, message.to_tag)
        if found is None:
            return NO_DIALOG
        if not any(self.is_party(side, flow.id) for side in (found.dialog.caller, found.dialog.callee)):
            return Answer(403, "Forbidden", (warning("this flow is no party of the dialog"),))
        if not found.dialog.holds_flow(named[0].connection):
            return Answer(403, "Forbidden", (warning("the flow of the Route is no party of the dialog"),))
        return self._to_token(message, *named, drop_routes)

    def is_party(self, side: Side, flow: bytes) -> bool:
        """True when this side of a dialog sits on this flow, or on one that it superseded."""
        known = side.flow or side.elsewhere
        return bool(known) and (known == flow or self._directory.superseded(known, flow, side.target))

    def _out_of_dialog(self, message: Message, flow: Flow, popped: Popped, now: float) -> Decision:
        uri = message.request_uri
        domain = self.domain_of(uri)
        if domain is not None and (domain != "*" or not self._names.is_ours(uri, flow)):
            if self.is_embedded(domain):
                service = Service.REGISTER if message.method == b"REGISTER" else Service.LOCATION
                return ToService(service, uri.host, popped.depth)
            return ToBackend(domain, None, popped.depth)
        if self._names.is_ours(uri, flow) and uri.user is None and message.method == b"OPTIONS":
            return ToService(Service.OPTIONS, uri.host, popped.depth)
        onward = self._to_known_address(uri, popped.depth, now)
        if onward is not None:
            return onward
        if is_numeric(uri.host):
            return self._refused(uri)
        return Answer(404, "Not Found", (warning(f"the domain {uri.host[:100]} is not served here: no [backend]"),))

    def _onward(self, message: Message, flow: Flow, next_hop: bytes, popped: Popped, now: float) -> Decision:
        """Rule D1: the only ways on for a Route that is not ours, or a request inside a dialog."""
        uri = parse_uri(next_hop)
        onward = self._to_known_address(uri, popped.depth, now)
        if onward is not None:
            return onward
        if not message.to_tag:
            return self._refused(uri)
        found = self._dialogs.find(message.call_id, message.from_tag, message.to_tag)
        if found is None:
            return NO_DIALOG
        if not self.is_party(found.sender, flow.id):
            return self._refused(uri)
        if popped.tokens and self.is_party(found.receiver, flow.id):
            # Rule W2 for a flow that carries both parties: another edge stands in front, with many users behind it.
            return ToFlow(flow, popped.depth)
        if next_hop == message.uri and b"gr" in uri.parameters and self._is_embedded_host(uri):
            # A GRUU of ours leads to a binding and nowhere else (RFC 5627 §5.4).
            return ToService(Service.LOCATION, uri.host, popped.depth)
        return self._to_direct_target(uri, next_hop, found.receiver, popped.depth) or self._refused(uri)

    def _to_known_address(self, uri: Uri, drop_routes: int, now: float) -> ToBackend | None:
        """Rule D1 (a): where a configured backend resolved to, or by a name met in that resolution. No look-up."""
        for backend, settings in self._backend_settings.items():
            if self.is_embedded(backend):
                continue
            targets = self._backends.targets(backend, now)
            if is_numeric(uri.host):
                chosen = _exact_targets(uri, targets or (), settings.transports)
            elif uri.host == backend:
                chosen = _named_targets(uri, targets or ())
            else:
                chosen = _named_targets(uri, self._backends.named(backend).get(uri.host, ()))
            if targets is None and uri.host == backend and uri.port is None and uri.transport is None:
                return ToBackend(backend, None, drop_routes)
            if chosen:
                return ToBackend(backend, chosen, drop_routes)
        return None

    def _to_direct_target(self, uri: Uri, next_hop: bytes, receiver: Side, drop_routes: int) -> ToDirect | None:
        # Rule D1 (b): exactly what the backend side gave, and a phone of ours, or numeric and inside direct_targets.
        given = receiver.routes[0] if receiver.routes else receiver.target
        if receiver.flow or not same_uri(given, next_hop):
            return None
        source = place_of_phone(receiver, self._directory)
        if source is not None:
            return ToDirect(Target(source.transport, source.address, source.address.host), drop_routes)
        if not is_numeric(uri.host):
            return None
        transport = uri.transport or (Transport.TLS if uri.scheme == b"sips" else Transport.UDP)
        address = Address(uri.host, uri.port or transport.default_port)
        if self._names.is_own_address(address):
            return None
        if not self._directory.has_source(Hop(transport, address)) and (
            transport not in (Transport.UDP, Transport.TCP) or not self._is_direct_target(address)
        ):
            return None
        return ToDirect(Target(transport, address, uri.host), drop_routes)

    def _is_direct_target(self, address: Address) -> bool:
        ip = ipaddress.ip_address(address.host)
        if ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
            return False
        if in_networks(address.host, METADATA) or address.host == "255.255.255.255":
            return False
        return any(
            (port is None or port == address.port) and in_networks(address.host, (network,))
            for network, port in self._settings.direct_targets
        )

    def _refused(self, uri: Uri) -> Answer:
        place = escaped(host_port(uri.host, uri.port), 100)
        text = f"{place} is no address of a configured backend and not in direct_targets"
        if not is_numeric(uri.host):
            text = f"{place} is no name in the DNS of a configured backend, and direct_targets takes addresses alone"
        return Answer(403, "Forbidden", (warning(text),))

    def way_to(self, side: Side, now: float) -> ToFlow | ToSibling | ToBackend | ToDirect | None:
        """The way for a request of our own to one side of a dialog (rule D4), None where it cannot be reached.

        Raises ProtocolError.
        """
        if side.flow or side.elsewhere:
            return self._way_to_browser(side)
        next_hop = side.routes[0] if side.routes else side.target
        uri = parse_uri(next_hop)
        onward = self._to_known_address(uri, 0, now) or self._to_direct_target(uri, next_hop, side, 0)
        return onward or (ToBackend(side.backend, None, 0) if side.backend else None)

    def _way_to_browser(self, side: Side) -> ToFlow | ToSibling | None:
        named = side.flow or side.elsewhere
        heir = self._directory.heir(named, side.target) if self._settings.flow_rebind else None
        known = heir or named
        depth = 0 if side.flow else _leading(side.routes, self._is_token)
        flow = self._flows.get(known)
        if flow is not None:
            return ToFlow(flow, depth)
        return self._to_sibling(known, True, depth)

    def _is_token(self, route: bytes) -> bool:
        return self._flows.tokens.read(parse_uri(route).user).verdict is Verdict.VALID

    def domain_of(self, uri: Uri) -> str | None:
        """The backend section that serves this URI's host, `*` where only that one does, or None."""
        if uri.host in self._backend_settings:
            return uri.host
        return "*" if "*" in self._backend_settings else None

    def _is_embedded_host(self, uri: Uri) -> bool:
        domain = self.domain_of(uri)
        return domain is not None and self.is_embedded(domain)

    def is_embedded(self, domain: str) -> bool:
        """True when the embedded registrar serves this backend section."""
        return self._backend_settings[domain].target == EMBEDDED


def _leading(routes: Sequence[bytes], pleases: Callable[[bytes], bool]) -> int:
    """How many from the top please."""
    return next((number for number, route in enumerate(routes) if not pleases(route)), len(routes))


def _exact_targets(uri: Uri, targets: Sequence[Target], transports: Sequence[Transport]) -> tuple[Target, ...]:
    transport = uri.transport or (Transport.TLS if uri.scheme == b"sips" else Transport.UDP)
    if uri.scheme == b"sips" and not transport.secure:
        transport = Transport.TLS if transport is Transport.TCP else Transport.WSS
    resolved = [target for target in targets if target.address.host == uri.host]
    if transport.is_websocket:
        # The word ws stands for both; only a connection that the resolution named is made.
        same = (t for t in resolved if t.transport.is_websocket)
        return tuple(t for t in same if uri.port in (None, t.address.port))
    if uri.transport is None and uri.scheme == b"sip":
        # Nothing said: the transport by which the backend is known at this port (RFC 3263 §4.1 allows local policy).
        wanted = uri.port or transport.default_port
        known = tuple(t for t in resolved if t.address.port == wanted)
        return known if known else ()
    address = Address(uri.host, uri.port or transport.default_port)
    if transport in transports and any(target.address == address for target in resolved):
        return (Target(transport, address, uri.host),)
    return ()


def _named_targets(uri: Uri, targets: Sequence[Target]) -> tuple[Target, ...]:
    of_host = list(targets)
    if uri.port is not None:
        of_host = [target for target in of_host if target.address.port == uri.port]
    if uri.transport is not None:
        of_host = [target for target in of_host if _same_word(target.transport, uri.transport)]
    if uri.scheme == b"sips":
        of_host = [target for target in of_host if target.transport.secure]
    return tuple(of_host)


def _same_word(left: Transport, right: Transport) -> bool:
    return left is right or (left.is_websocket and right.is_websocket)
