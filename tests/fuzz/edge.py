"""The SIP edge as a whole: browsers and a backend that say spoiled things, and time.

What must hold after every step: nothing escapes but effects; what leaves is well-formed and goes to nobody else (D1);
no line was injected; no request gets two final answers, and each gets one in the end; responses have the Vias of who
asked (C1); tables stay within their limits; and after all that a call still works.
"""

from __future__ import annotations

import re
from collections import defaultdict

from tests.edge_world import (
    BOB,
    CONTACT,
    PBX,
    TOKENS,
    Call,
    World,
    backend_request,
    begin_branches,
    register,
    request,
    response,
)
from tests.fuzz.chance import INTERESTING, MARK, Choices, spoil
from tests.fuzz.target import Target, require
from tests.test_edge_registrar import Office
from wsgate.addr import Address, Hop, Transport, parse_network
from wsgate.errors import ProtocolError
from wsgate.sip.message import Message
from wsgate.sip.screening import STRANGERS_REMEMBERED

DIALOGS = 3
TRANSACTIONS = 24
LIFETIME = 3600.0
TOKEN = TOKENS.make(b"\0\0\0\0\0\0\0\2")
STRANGER = Address("203.0.113.77", 5060)
DIRECT = (parse_network("192.0.2.128/25"), None)
PIECES = [
    *(b"sip:", b"sips:", b"tel:1", b";lr", b";tag=", b";branch=", b";rport", b";maddr=1.2.3.4", b";expires=0", b";ob"),
    *(b";reg-id=1", b";gr", b';+sip.instance="<urn:x>"', b";transport=ws", b";transport=tcp", b"z9hG4bK", b"[::1]"),
    *(b"SIP/2.0/UDP ", b"gate.example.org", TOKEN, b"<sip:" + TOKEN + b"@192.0.2.1;lr>", b"sip:x@198.51.100.7"),
    *(b"<sip:198.51.100.7;lr>", b"<sip:203.0.113.9>", b"<sip:192.0.2.200>", b"sip:192.0.2.1", b";received=1.2.3.4"),
]
LINES = [
    *(b"Route: <sip:" + TOKEN + b"@192.0.2.1;lr>", b'Route: "', b"Route: <sip:", b"Record-Route: <", b"Contact: *"),
    *(b'Contact: "<sip:x', b'Require: "outbound', b"Require: outbound", b'Supported: "path', b'Proxy-Require: "a'),
    *(b"Max-Forwards: 0", b"Max-Forwards: 1", b"Content-Length: 0", b"Content-Length: 9999", b"Expires: \xb2"),
    *(b"Max-Breadth: 1", b"Subscription-State: terminated", b'WWW-Authenticate: "', b'Via: "', b"Via: ,", b"To: <"),
    *(b'From: "a" <sip:a@b>;tag=1;tag=2', b"Call-ID: ", b"CSeq: 1", b'Path: "', b"Proxy-Authorization: Digest a="),
    b'Authorization: Digest username="\xff", realm="example.com", nonce="x", uri="sip:", response=""',
    *(b"Flow-Timer: x", b"RSeq: x", b'Reason: "', b" folded", b"\t", b"X\r: y", b"Session-Expires: 1", b"Identity: x"),
    *(b"Content-Type: application/sdp", b"Expires: 4294967296", b"Min-Expires: 1", b"Replaces: a;to-tag=b;from-tag=c"),
]
STATUSES = (100, 180, 183, 200, 200, 200, 200, 202, 302, 401, 407, 408, 481, 486, 500, 503, 603)
_BRANCH = re.compile(rb"branch=([^;,\s]+)")
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


class Talk:
    """A world with calls in progress, what both sides said so far, and the hand that spoils it."""

    def __init__(self, world: World, chance: Choices) -> None:
        self.world = world
        self.chance = chance
        self.flows = [world.browser(port=40000), world.browser(port=40001)]
        self.said: list[bytes] = []
        self.recent: list[tuple[Hop, bytes]] = []
        self.has_begun = False
        self.number = 0
        self.asked: dict[tuple[object, ...], list[Message]] = defaultdict(list)
        self.finals: dict[tuple[object, ...], set[bytes]] = defaultdict(set)
        self.answered: set[tuple[object, ...]] = set()
        self.gone: set[bytes] = set()
        self.is_honest = False
        """True while the far end answers just what it was asked."""
        self.confused: set[bytes] = set()
        """Branches of spoiled answers: these may tell a browser what another answer should."""
        self.early: set[tuple[object, ...]] = set()
        """What was asked before `begin`: its answers are not known."""
        self._listen(world)

    def _listen(self, world: World) -> None:
        """Note what is said: all of it until `begin`, and always what browsers ask."""
        from_browser, from_backend, refused = world.edge.from_browser, world.edge.from_backend, world.edge.refused

        def browser(connection: bytes, data: bytes, now: float) -> list:
            self._hear(data)
            self._note(connection, data)
            return from_browser(connection, data, now)

        def backend(hop: Hop, data: bytes, now: float) -> list:
            self._hear(data)
            return from_backend(hop, data, now)

        def over_rate(connection: bytes, data: bytes) -> list:
            self._note(connection, data)
            return refused(connection, data)

        world.edge.from_browser = browser  # type: ignore[method-assign]
        world.edge.from_backend = backend  # type: ignore[method-assign]
        world.edge.refused = over_rate  # type: ignore[method-assign]

    def _hear(self, data: bytes) -> None:
        if data.startswith(b"SIP/2.0") and not self.is_honest:
            self.confused |= set(_BRANCH.findall(data))
        if not self.has_begun and b"\r\n" in data:
            self.said.append(data)

    def begin(self) -> None:
        """What was said up to now is what is spoiled from now on."""
        self.said += [data for _, data in self.world.sent]
        self.world.sent = []
        self.early = set(self.asked)
        self.has_begun = True

    def spoiled(self, data: bytes) -> bytes:
        """Something else than what was said: mostly new as a transaction, with one or more values changed."""
        self.number += 1
        chance = self.chance
        if chance.percent(80):
            data = data.replace(b"branch=z9hG4bK", b"branch=z9hG4bK%df" % self.number, 1)
        if chance.percent(40):
            data = data.replace(b"call-1@test", b"call-%d@test" % self.number)
        for _ in range(chance.pick((0, 0, 0, 1, 1, 1, 2, 3))):
            kind = chance.number(10)
            if kind < 5:
                data = self._spoiled_line(data)
            elif kind < 7:
                data = data.replace(b"\r\n", b"\r\n" + chance.pick(LINES) + b"\r\n", 1)
            else:
                data = spoil(chance, data, [*INTERESTING, *PIECES])
        return data.replace(b"\r\n" + MARK, b"\r\nMeant")

    def _spoiled_line(self, data: bytes) -> bytes:
        """One header line with a piece in its value, or with the value that this header has elsewhere."""
        chance = self.chance
        lines = data.split(b"\r\n")
        place = chance.number(len(lines))
        name, _, value = lines[place].partition(b": ")
        if chance.percent(50):
            within = chance.number(len(value) + 1)
            value = value[:within] + chance.pick([*INTERESTING, *PIECES]) + value[within + chance.pick((0, 0, 1, 5)) :]
        else:
            others = [line for line in chance.pick(self.said).split(b"\r\n") if line.startswith(name + b": ")]
            value = chance.pick(others).partition(b": ")[2] if others else value + b", " + value
        lines[place] = name + b": " + value if name else value
        return b"\r\n".join(lines)

    def run(self) -> None:
        """Until no decision is left, and then until nothing is under way."""
        world, chance = self.world, self.chance
        while not chance.is_over:
            data = self.spoiled(chance.pick(self.said))
            way = chance.number(18)
            if way < 6:
                flow = chance.pick(self.flows)
                world.from_browser(flow, data)
            elif way < 9:
                transport = chance.pick((Transport.UDP, Transport.UDP, Transport.TCP, Transport.WS))
                world.from_backend(data, PBX, transport)
            elif way == 9:
                world.from_backend(data, STRANGER)
            elif way == 10:
                self._happen(data)
            else:
                self._answer()
            self._check()
        world.move(500)
        self._check()
        self._everybody_was_answered()

    def _answer(self) -> None:
        """The far end answers something that it got, well or spoiled."""
        for hop, data in self.recent[-3:]:
            if data.startswith(b"SIP/2.0"):
                continue
            status = self.chance.pick(STATUSES)
            answer = response(Message.parse(data), status, "x", BOB, to_tag=self.chance.pick(("b1", "b2", "")))
            self.is_honest = self.chance.percent(60)
            if not self.is_honest:
                self.confused |= set(_BRANCH.findall(answer))
                answer = self.spoiled(answer)
            if hop.connection:
                self.world.apply(self.world.edge.from_browser(hop.connection, answer, self.world.now))
            else:
                self.world.apply(self.world.edge.from_backend(hop, answer, self.world.now))
            self.is_honest = False

    def _happen(self, data: bytes) -> None:
        world, chance = self.world, self.chance
        number = chance.number(4)
        if number == 0:
            world.move(chance.pick((0.5, 4, 33, 200)))
        elif number == 1:
            world.apply(world.edge.failed(Hop(chance.pick((Transport.UDP, Transport.TCP)), PBX), "x", world.now))
        elif number == 2 and chance.percent(30):
            place = chance.number(2)
            self.gone.add(self.flows[place].id)
            world.apply(world.edge.flow_closed(self.flows[place].id, world.now))
            self.flows[place] = world.browser(port=40000 + place)
        else:
            world.apply(world.edge.refused(self.flows[0].id, data))

    def _note(self, connection: bytes, data: bytes) -> None:
        """Remember what a browser asks, by what an answer to it must have."""
        try:
            message = Message.parse(data)
            key = (connection, message.branch, message.cseq) if message.is_request else None
        except ProtocolError:
            return
        if key is not None:
            self.asked[key].append(message)

    def _check(self) -> None:
        for hop, data in self.world.sent:
            head = data.partition(b"\r\n\r\n")[0]
            require(not _BARE.search(head), "a bare CR or LF leaves", data)
            require(b"\r\n" + MARK not in head, "an injected line", data)
            message = Message.parse(data)
            require(len(message.data) == len(data), "bytes behind the body (C4)", data)
            if message.is_request:
                require(not message.flaw, message.flaw, data)
                require(hop.connection or hop.address == PBX, "to somebody else (D1)", hop, data)
                require(hop.connection in self.world.flows._flows or not hop.connection, "to a flow that is gone")
            require(message.header(b"content-length") is not None or hop.connection, "no Content-Length (I3)", data)
            if hop.connection and not message.is_request:
                self._judge_response(hop, message)
        self.recent = [*self.recent, *self.world.sent][-6:]
        self.world.sent = []
        self.world.asked = []
        counts = self.world.edge.counts()
        require(counts["dialogs"] <= DIALOGS, "too many dialogs", counts)
        require(len(self.world.edge._screening._strangers) <= STRANGERS_REMEMBERED, "too many strangers")

    def _judge_response(self, hop: Hop, message: Message) -> None:
        """To a browser: to something that it asked, with its Vias and no others, and one final answer."""
        if message.flaw:
            return
        key = (hop.connection, message.branch, message.cseq)
        asked = self.asked.get(key)
        if asked is None:
            return
        # The backend may spoil what it copies, but what is on top has to be whose it is.
        vias = [one.via[:3] for one in asked if not one.flaw]
        require(len(vias) < len(asked) or message.via[:3] in vias, "another's Via (C1)", message.data, vias)
        if message.status >= 200:
            self.answered.add(key)
        if message.status >= 300 or (message.status >= 200 and message.method != b"INVITE" and key[2][1] != b"INVITE"):
            self.finals[key].add(message.data)
        if len(asked) == 1 and message.branch not in self.confused:
            require(len(self.finals[key]) <= 1, "two final answers", self.finals[key])

    def _everybody_was_answered(self) -> None:
        """No call of a browser was lost (rule I5, table A)."""
        for key, (message, *more) in self.asked.items():
            connection, branch, (_, method) = key
            # RFC 4320 §4.2: when nobody answers anything but an INVITE, nobody says so.
            if method != b"INVITE" or key in self.early or more or message.flaw or connection in self.gone:
                continue
            if branch in self.confused:
                continue
            require(key in self.answered, "never answered", message.data)


def healthy(world: World) -> None:
    """After all that a call still works, and nothing was left behind."""
    flow = world.browser(port=45000)
    for hop, data in world.probes[-1:]:
        world.apply(world.edge.from_backend(hop, response(Message.parse(data), 200, "OK"), world.now))
    world.move(2 * LIFETIME)
    world.sent = []
    counts = world.edge.counts()
    require((counts["transactions"], counts["dialogs"]) == (counts["probes"], 0), "left behind", counts)
    Call(world, flow, call_id="healthy")


def edge(data: bytes) -> None:
    """Two browsers before a backend."""
    begin_branches()
    chance = Choices(data)
    world = World(
        dialogs=DIALOGS,
        transactions_per_connection=TRANSACTIONS,
        dialog_lifetime=LIFETIME,
        direct_targets=(DIRECT,) if chance.percent(50) else (),
        add_received=chance.percent(30),
        protected_headers=frozenset((b"identity",)) if chance.percent(30) else frozenset(),
    )
    talk = Talk(world, chance)
    alice, bob = talk.flows
    register(world, alice, 'Contact: <sip:alice@abc.invalid;transport=ws>;+sip.instance="<urn:1>";reg-id=1')
    path = register(world, bob, user="bob").header(b"path").decode()
    call = Call(world, alice)
    for method in ("ACK", "INFO", "INVITE", "REFER"):
        world.from_browser(alice, call.request(method, cseq="3"))
    world.from_backend(call.backend_request("NOTIFY", "Subscription-State: active"))
    world.from_backend(call.backend_request("UPDATE", BOB))
    body = b"v=0\r\nInjected: 1\r\n"
    world.from_backend(backend_request("INVITE", "sip:bob@bob.invalid", f"Route: {path}", BOB, body=body))
    world.from_browser(alice, request("MESSAGE", "sip:bob@example.com", body=b"hello\r\nInjected: 1\r\n"))
    world.from_browser(alice, request("SUBSCRIBE", "sip:bob@example.com", CONTACT))
    world.from_browser(alice, request("CANCEL", "sip:bob@example.com"))
    talk.begin()
    talk.run()
    healthy(world)


def registrar(data: bytes) -> None:
    """Two browsers at the embedded registrar."""
    begin_branches()
    office = Office(dialogs=DIALOGS, transactions_per_connection=TRANSACTIONS, dialog_lifetime=LIFETIME)
    talk = Talk(office, Choices(data))
    talk.flows = [office.phone("alice"), office.phone("bob", ';+sip.instance="<urn:uuid:1>";reg-id=1', port=40001)]
    office.call(talk.flows[0])
    office.call(talk.flows[1], "MESSAGE")
    talk.begin()
    talk.run()
    office.move(2 * LIFETIME)
    require(office.phone("carol", port=45001).id, "nobody can register any more")


TARGETS = [Target("sip-edge", edge, test_inputs=12), Target("sip-registrar", registrar, test_inputs=12)]
