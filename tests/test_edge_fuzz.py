"""Mutated messages from both sides: nothing escapes from the edge, and whatever it sends can be read (table A, H4)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.edge_world import BOB, CONTACT, PBX, TOKENS, Call, World, backend_request, register, request, response
from tests.test_edge_registrar import Office
from wsgate.addr import Address, Hop, Transport, parse_network
from wsgate.sip.flow import Flow
from wsgate.sip.message import Message

ROUNDS = 1200
TOKEN = TOKENS.make(b"\0\0\0\0\0\0\0\2")
PIECES = [
    *(bytes((byte,)) for byte in b'"<>,;:@%\\\r\n\0\xff \t=?[]*.0'),
    *(b"%41", b"\r\n", b"\r\n ", b"[::1]", b"sip:", b"sips:", b"tel:1", b"99999999999", b"-1", b"\xc3\xa9", b"a" * 300),
    *(b";lr", b";tag=", b";branch=", b";rport", b";maddr=1.2.3.4", b";expires=0", b";reg-id=1", b";ob", b";gr"),
    *(
        b';+sip.instance="<urn:x>"',
        b";transport=ws",
        b";transport=tcp",
        b"z9hG4bK",
        b"SIP/2.0/UDP ",
        b"gate.example.org",
    ),
    *(
        TOKEN,
        b"<sip:" + TOKEN + b"@192.0.2.1;lr>",
        b"sip:x@198.51.100.7",
        b"<sip:198.51.100.7;lr>",
        b"<sip:203.0.113.9>",
    ),
]
LINES = [
    *(b"Route: <sip:" + TOKEN + b"@192.0.2.1;lr>", b'Route: "', b"Route: <sip:", b"Record-Route: <", b"Contact: *"),
    *(b'Contact: "<sip:x', b'Require: "outbound', b"Require: outbound", b'Supported: "path', b'Proxy-Require: "a'),
    *(b"Max-Forwards: 0", b"Max-Forwards: 1", b"Content-Length: 0", b"Content-Length: 9999", b"Expires: \xb2"),
    *(b"Max-Breadth: 1", b"Subscription-State: terminated", b'WWW-Authenticate: "', b'Via: "', b"Via: ,", b"To: <"),
    *(b'From: "a" <sip:a@b>;tag=1;tag=2', b"Call-ID: ", b"CSeq: 1", b'Path: "', b"Proxy-Authorization: Digest a="),
    b'Authorization: Digest username="\xff", realm="example.com", nonce="x", uri="sip:", response=""',
    *(b"Flow-Timer: x", b"RSeq: x", b'Reason: "', b" folded", b"\t", b"X\r: y", b"Session-Expires: 1", b"Identity: x"),
]


class Fuzzed:
    """A world with calls in progress, the messages that both sides sent so far, and the hand that spoils them."""

    def __init__(self, seed: int, world: World) -> None:
        self.chance = random.Random(seed)
        self.world = world
        self.flows = [world.browser(port=40000), world.browser(port=40001)]
        self.said: list[bytes] = []
        self.is_listening = True
        self.number = 0
        self._listen(world)

    def _listen(self, world: World) -> None:
        def recorded(apply: Callable[..., list]) -> Callable[..., list]:
            def heard(*arguments: object) -> list:
                if self.is_listening:
                    self.said += [data for data in arguments if isinstance(data, bytes) and b"\r\n" in data]
                return apply(*arguments)

            return heard

        world.edge.from_browser = recorded(world.edge.from_browser)  # type: ignore[method-assign]
        world.edge.from_backend = recorded(world.edge.from_backend)  # type: ignore[method-assign]

    def spoil(self, data: bytes) -> bytes:
        """Something else than what was said: mostly new as a transaction, with one or more values changed."""
        self.number += 1
        chance = self.chance
        if chance.random() < 0.8:
            data = data.replace(b"branch=z9hG4bK", b"branch=z9hG4bK%df" % self.number, 1)
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            kind = chance.random()
            if kind < 0.6:
                data = self._spoil_line(data)
            elif kind < 0.8:
                data = data.replace(b"\r\n", b"\r\n" + chance.choice(LINES) + b"\r\n", 1)
            elif kind < 0.9:
                place = chance.randrange(len(data) + 1)
                data = data[:place] + chance.choice(PIECES) + data[place + chance.randrange(12) :]
            else:
                place = chance.randrange(len(data) + 1)
                data = data[:place] + data[place + chance.randrange(1, 40) :]
        return data

    def _spoil_line(self, data: bytes) -> bytes:
        """Change one header line: a piece in its value, or the value of that header elsewhere."""
        chance = self.chance
        lines = data.split(b"\r\n")
        place = chance.randrange(len(lines))
        name, _, value = lines[place].partition(b": ")
        if chance.random() < 0.5:
            within = chance.randrange(len(value) + 1)
            cut = chance.choice((0, 0, 1, 5))
            value = value[:within] + chance.choice(PIECES) + value[within + cut :]
        else:
            others = [line for line in chance.choice(self.said).split(b"\r\n") if line.startswith(name + b": ")]
            value = chance.choice(others).partition(b": ")[2] if others else value + b", " + value
        lines[place] = name + b": " + value if name else value
        return b"\r\n".join(lines)

    def run(self, rounds: int) -> None:
        world, chance = self.world, self.chance
        self.is_listening = False
        for _ in range(rounds):
            data = self.spoil(chance.choice(self.said))
            way = chance.randrange(12)
            if way < 5:
                world.from_browser(chance.choice(self.flows), data)
            elif way < 9:
                world.from_backend(
                    data, PBX, chance.choice((Transport.UDP, Transport.UDP, Transport.TCP, Transport.WS))
                )
            elif way == 9:
                world.from_backend(data, Address("203.0.113.77", 5060))
            elif way == 10:
                self._happen()
            else:
                self._answer()
            self._check()
        world.move(400)
        self._check()

    def _answer(self) -> None:
        """The far end answers something that it got, with something spoiled."""
        for hop, data in self.world.sent[-3:]:
            if not data.startswith(b"SIP/2.0"):
                status = self.chance.choice((180, 183, 200, 202, 302, 401, 407, 486, 503, 603))
                answer = response(Message.parse(data), status, "x", BOB, to_tag=self.chance.choice(("b1", "b2", "")))
                answer = self.spoil(answer) if self.chance.random() < 0.5 else answer
                if hop.connection:
                    self.world.apply(self.world.edge.from_browser(hop.connection, answer, self.world.now))
                else:
                    self.world.apply(self.world.edge.from_backend(hop, answer, self.world.now))

    def _happen(self) -> None:
        world, chance = self.world, self.chance
        number = chance.randrange(4)
        if number == 0:
            world.move(chance.choice((0.5, 4, 33, 200)))
        elif number == 1:
            world.apply(world.edge.failed(Hop(chance.choice((Transport.UDP, Transport.TCP)), PBX), "x", world.now))
        elif number == 2 and chance.random() < 0.3:
            place = chance.randrange(2)
            world.apply(world.edge.flow_closed(self.flows[place].id, world.now))
            self.flows[place] = world.browser(port=40000 + place)
        else:
            world.apply(world.edge.refused(self.flows[0].id, self.spoil(chance.choice(self.said))))

    def _check(self) -> None:
        for hop, data in self.world.sent:
            message = Message.parse(data)
            assert not message.flaw or not message.is_request, (message.flaw, data)
            if not hop.connection and message.is_request:
                assert hop.address == PBX, hop
            assert message.header(b"content-length") is not None or hop.connection, data
        self.world.sent = self.world.sent[-6:]
        self.world.asked = []


def busy(seed: int, world: World) -> Fuzzed:
    fuzzed = Fuzzed(seed, world)
    alice, bob = fuzzed.flows
    register(world, alice, 'Contact: <sip:alice@abc.invalid;transport=ws>;+sip.instance="<urn:1>";reg-id=1')
    path = register(world, bob, user="bob").header(b"path").decode()
    call = Call(world, alice)
    for method in ("ACK", "INFO", "INVITE", "REFER"):
        world.from_browser(alice, call.request(method, cseq="3"))
    world.from_backend(call.backend_request("NOTIFY", "Subscription-State: active"))
    world.from_backend(call.backend_request("UPDATE", BOB))
    world.from_backend(backend_request("INVITE", "sip:bob@bob.invalid", f"Route: {path}", BOB, body=b"v=0\r\n"))
    world.from_browser(alice, request("MESSAGE", "sip:bob@example.com", body=b"hello"))
    world.from_browser(alice, request("SUBSCRIBE", "sip:bob@example.com", CONTACT))
    fuzzed.said += [data for _, data in world.sent]
    world.sent = []
    return fuzzed


@pytest.mark.parametrize("seed", range(3))
def test_spoiled_messages_of_both_sides_break_nothing_and_reach_nobody_else(seed):
    """Table A: an answer or a count, and nothing else is lost; D1: and no packet to anybody else."""
    direct = ((parse_network("192.0.2.128/25"), None),)
    fuzzed = busy(seed, World(add_received=seed == 1, direct_targets=direct))
    fuzzed.run(ROUNDS)
    healthy(fuzzed.world, fuzzed.world.browser(port=45000))


def test_spoiled_messages_break_no_embedded_registrar():
    office = Office()
    fuzzed = Fuzzed(7, office)
    fuzzed.flows = [office.phone("alice"), office.phone("bob", port=40001)]
    office.call(fuzzed.flows[0])
    office.call(fuzzed.flows[1], "MESSAGE")
    fuzzed.said += [data for _, data in office.sent]
    office.sent = []
    fuzzed.run(ROUNDS)
    assert office.phone("carol", port=45001).id


def healthy(world: World, flow: Flow) -> None:
    """After all that a call still works, and nothing was left behind."""
    world.move(50000)
    world.sent = []
    counts = world.edge.counts()
    assert (counts["transactions"], counts["dialogs"]) == (counts["probes"], 0)
    Call(world, flow, call_id="healthy")
