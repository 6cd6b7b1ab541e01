"""A SIP edge in memory for pure tests: browsers and backends are lists of bytes, the clock is moved by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

from wsgate.addr import Address, Hop, Transport
from wsgate.call_peers import CallPeers
from wsgate.directory import Directory
from wsgate.metrics import Counters
from wsgate.sip.contexts import Connect, Resolve
from wsgate.sip.edge import Edge
from wsgate.sip.flow import Flow, FlowTable, FlowTokens, Key
from wsgate.sip.message import Message
from wsgate.sip.names import Names
from wsgate.sip.registrar import Registrar
from wsgate.sip.services import HandOut
from wsgate.sip.settings import SipSettings
from wsgate.sip.siblings import Siblings
from wsgate.sip.targets import BackendSettings, ContactMode, Target
from wsgate.sip.transaction import Send, TransactionSettings

GATE, GATE_TLS = Address("192.0.2.1", 5060), Address("192.0.2.1", 5061)
PUBLIC = Address("gate.example.org", 443)
PBX = Address("198.51.100.7", 5060)
EXAMPLE = BackendSettings(target="sip:pbx.example.com", contact_mode=ContactMode.PATH)
KEYS = (Key(1, b"k" * 32), Key(0, b"o" * 32))
TOKENS = FlowTokens(KEYS)


class FixedBackends:
    """Backends whose targets a test states; None stands for not resolved yet."""

    def __init__(self, targets: Mapping[str, Sequence[Target] | None]) -> None:
        self.by_name = dict(targets)

    def targets(self, backend: str, now: float) -> Sequence[Target] | None:
        return self.by_name.get(backend)

    def named(self, backend: str) -> Mapping[str, Sequence[Target]]:
        return {
            target.host: [t for t in self.by_name[backend] or () if t.host == target.host]
            for target in self.by_name.get(backend) or ()
        }

    def backend_of(self, host: str) -> str | None:
        for name, targets in self.by_name.items():
            if any(target.address.host == host for target in targets or ()):
                return name
        return None


def udp(address: Address = PBX, host: str = "pbx.example.com") -> Target:
    return Target(Transport.UDP, address, host)


class World:
    """An edge, its clock, and what it sent: `sent` holds (hop, bytes), `asked` the other effects.

    `probes` are the OPTIONS for dead targets (rule N3), kept out of `sent`.
    """

    def __init__(
        self,
        targets: Mapping[str, Sequence[Target] | None] | None = None,
        backends: Mapping[str, BackendSettings] | None = None,
        *,
        registrar: Registrar | None = None,
        directory: Directory | None = None,
        dialogs: int = 1000,
        transactions_per_connection: int = 256,
        tls_port: bool = True,
        first_number: int = 1,
        protected_headers: frozenset[bytes] = frozenset(),
        hand_out: HandOut | None = None,
        call_peers: CallPeers | None = None,
        worker: int = 0,
        workers: int = 1,
        **settings: object,
    ) -> None:
        numbers = count(first_number)
        self.now = 1000.0
        self.counters = Counters()
        self.settings = SipSettings(**settings)  # type: ignore[arg-type]
        self.targets = FixedBackends(targets if targets is not None else {"example.com": [udp()]})
        self.directory = directory or Directory()
        random_bytes = lambda size: next(numbers).to_bytes(size, "big")  # noqa: E731
        self.tokens = FlowTokens(KEYS, worker) if worker else TOKENS
        self.flows = FlowTable(self.tokens, random_bytes)
        self.gates = [GATE._replace(port=GATE.port + 100 * number) for number in range(workers)]
        self.names = Names(
            advertise=[self.gates[worker]],
            advertise_tls=[GATE_TLS] if tls_port else [],
            public=PUBLIC,
            aliases=["gate.alias"],
            listeners=[Address("192.0.2.1", 443), *(gate for gate in self.gates if gate != self.gates[worker])],
            first={self.gates[worker]: self.gates[0]},
        )
        others = {number: [gate] for number, gate in enumerate(self.gates) if number != worker}
        self.edge = Edge(
            self.settings,
            backends if backends is not None else {"example.com": EXAMPLE},
            transactions=TransactionSettings(transactions_per_connection=transactions_per_connection),
            dialogs_limit=dialogs,
            names=self.names,
            flows=self.flows,
            backends=self.targets,
            directory=self.directory,
            registrar=registrar,
            random_bytes=random_bytes,
            counters=self.counters,
            protected_headers=protected_headers,
            hand_out=hand_out,
            call_peers=call_peers,
            siblings=Siblings(self.tokens, others, KEYS),
        )
        self.sent: list[tuple[Hop, bytes]] = []
        self.probes: list[tuple[Hop, bytes]] = []
        self.asked: list[Resolve | Connect] = []

    def browser(self, host: str = "203.0.113.5", port: int = 40000, secure: bool = True) -> Flow:
        return self.edge.flow_opened(Address(host, port), secure, PUBLIC)

    def apply(self, effects: Sequence[object]) -> None:
        for effect in effects:
            if isinstance(effect, Send) and is_probe(effect.data):
                self.probes.append((effect.hop, effect.data))
            elif isinstance(effect, Send):
                self.sent.append((effect.hop, effect.data))
            else:
                self.asked.append(effect)  # type: ignore[arg-type]

    def from_browser(self, flow: Flow, data: bytes) -> None:
        self.apply(self.edge.from_browser(flow.id, data, self.now))

    def from_backend(self, data: bytes, address: Address = PBX, transport: Transport = Transport.UDP) -> None:
        self.apply(self.edge.from_backend(Hop(transport, address), data, self.now))

    def move(self, seconds: float) -> None:
        """Let the clock run, serving every timer at its time."""
        end = self.now + seconds
        while (timer := self.edge.next_timer()) is not None and timer <= end:
            self.now = max(self.now, timer)
            self.apply(self.edge.handle_timer(self.now))
        self.now = end

    def take(self, to: Flow | Address | None = None) -> list[Message]:
        """What was sent to a browser's flow or to an address (None: anywhere), taken out of `sent`."""
        mine = [entry for entry in self.sent if _goes_to(entry[0], to)]
        self.sent = [entry for entry in self.sent if entry not in mine]
        return [Message.parse(data) for _, data in mine]

    def one(self, to: Flow | Address | None = None) -> Message:
        """The single message sent there."""
        messages = self.take(to)
        assert len(messages) == 1, [message.data for message in messages]
        return messages[0]


def is_probe(data: bytes) -> bool:
    """True for an OPTIONS of our own."""
    return data.startswith(b"OPTIONS ") and b"\r\nUser-Agent: wsgate\r\n" in data


def _goes_to(hop: Hop, to: Flow | Address | None) -> bool:
    if to is None:
        return True
    return hop.connection == to.id if isinstance(to, Flow) else hop.address == to


_branches = count(1)


def begin_branches() -> None:
    """Number the branches of `request` from 1 again, so that what is said does not depend on what was said before."""
    global _branches  # noqa: PLW0603
    _branches = count(1)


def request(method: str, uri: str, *headers: str, body: bytes = b"", **fields: str) -> bytes:
    """A request as a browser's library would write it; `fields` replace the usual header values."""
    values = {
        "via": f"SIP/2.0/WSS abc.invalid;branch=z9hG4bK{next(_branches)}",
        "from": "<sip:alice@example.com>;tag=a1",
        "to": "<sip:bob@example.com>",
        "call_id": "call-1@test",
        "cseq": "1",
    } | fields
    lines = [f"{method} {uri} SIP/2.0", f"Via: {values['via']}"]
    if "max_forwards" not in fields or fields["max_forwards"]:
        lines.append(f"Max-Forwards: {values.get('max_forwards', '70')}")
    lines += [f"From: {values['from']}", f"To: {values['to']}", f"Call-ID: {values['call_id']}"]
    lines += [f"CSeq: {values['cseq']} {method}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def response(
    request_message: Message, status: int, reason: str, *headers: str, to_tag: str = "", body: bytes = b""
) -> bytes:
    """What the far end answers: Vias, Record-Routes, From, To, Call-ID and CSeq copied."""
    lines = [f"SIP/2.0 {status} {reason}".encode()]
    for header in request_message.headers:
        line = request_message.data[header.start : header.end - 2]
        if header.name in (b"via", b"from", b"call-id", b"cseq", b"record-route"):
            lines.append(line)
        elif header.name == b"to":
            lines.append(line + (f";tag={to_tag}".encode() if to_tag and b"tag=" not in line else b""))
    lines += [header.encode() for header in headers]
    lines += [b"Content-Length: %d" % len(body), b"", b""]
    return b"\r\n".join(lines) + body


def backend_request(method: str, uri: str, *headers: str, body: bytes = b"", **fields: str) -> bytes:
    """A request as the PBX sends it over UDP: from bob to alice."""
    values = {
        "via": f"SIP/2.0/UDP 198.51.100.7:5060;branch=z9hG4bKp{next(_branches)}",
        "from": "<sip:bob@example.com>;tag=b1",
        "to": "<sip:alice@example.com>",
    } | fields
    return request(method, uri, *headers, body=body, **values)


def ack_of(response_message: Message, request_message: Message) -> bytes:
    """The ACK of a 3xx to 6xx: in the transaction of its INVITE (RFC 3261 §17.1.1.3)."""
    lines = [b"ACK %b SIP/2.0" % request_message.uri, b"Via: " + request_message.via_bytes]
    lines += [b"From: " + (request_message.header(b"from") or b""), b"To: " + (response_message.header(b"to") or b"")]
    lines += [b"Call-ID: " + request_message.call_id, b"CSeq: %d ACK" % request_message.cseq[0]]
    return b"\r\n".join([*lines, b"Max-Forwards: 70", b"Content-Length: 0", b"", b""])


def routes_of(message: Message, *, is_caller: bool) -> str:
    """The route set that a party takes from Record-Route: reversed for the caller (RFC 3261 §12.1)."""
    values = [value.decode() for value in message.values(b"record-route")]
    return ", ".join(values[::-1] if is_caller else values)


CONTACT = "Contact: <sip:alice@abc.invalid;transport=ws>"
BOB = "Contact: <sip:bob@198.51.100.7>"


def register(
    world: World, flow: Flow, *headers: str, user: str = "alice", expires: int = 600, **fields: str
) -> Message:
    """Register through the PBX; returns the REGISTER as the PBX got it."""
    contact = f"Contact: <sip:{user}@abc.invalid;transport=ws>;expires={expires}"
    aor = f"<sip:{user}@example.com>"
    values = {"to": aor, "from": aor + ";tag=r1", "call_id": f"reg-{user}-{flow.id.hex()}"} | fields
    world.from_browser(flow, request("REGISTER", "sip:example.com", *(headers or (contact,)), **values))
    arrived = world.one(PBX)
    contacts = [value.decode() for value in arrived.lines(b"contact")]
    world.from_backend(response(arrived, 200, "OK", *(f"Contact: {value}" for value in contacts), to_tag="reg"))
    assert world.one(flow).status == 200
    return arrived


class Call:
    """A call of a browser to bob behind the PBX, established: what each side knows of it."""

    def __init__(
        self, world: World, flow: Flow, *, contact: str = BOB, record_route: str = "", call_id: str = "call-1@test"
    ) -> None:
        self.world, self.flow, self.call_id = world, flow, call_id
        world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT, call_id=call_id))
        self.invite = world.one(PBX)
        assert [message.status for message in world.take(flow)] == [100]
        headers = [contact] + ([f"Record-Route: {record_route}"] if record_route else [])
        if record_route:
            # The far proxy stands above us.
            data = response(self.invite, 200, "OK", contact, to_tag="b1")
            place = data.index(b"Record-Route:")
            data = data[:place] + f"Record-Route: {record_route}\r\n".encode() + data[place:]
        else:
            data = response(self.invite, 200, "OK", *headers, to_tag="b1")
        world.from_backend(data)
        self.ok = world.one(flow)
        self.routes = routes_of(self.ok, is_caller=True)

    def request(
        self,
        method: str,
        uri: str = "sip:bob@198.51.100.7",
        *headers: str,
        cseq: str = "2",
        route: str | None = None,
        **fields: str,
    ) -> bytes:
        """A request of the browser inside the call."""
        routes = self.routes if route is None else route
        values = {"to": "<sip:bob@example.com>;tag=b1", "call_id": self.call_id, "cseq": cseq} | fields
        return request(method, uri, *([f"Route: {routes}"] if routes else []), *headers, **values)

    def backend_request(self, method: str, *headers: str, cseq: str = "1", **fields: str) -> bytes:
        """A request of bob inside the call."""
        routes = routes_of(self.invite, is_caller=False)
        values = {
            "from": "<sip:bob@example.com>;tag=b1",
            "to": "<sip:alice@example.com>;tag=a1",
            "call_id": self.call_id,
            "cseq": cseq,
        } | fields
        uri = "sip:alice@abc.invalid;transport=ws"
        return backend_request(method, uri, f"Route: {routes}", *headers, **values)
