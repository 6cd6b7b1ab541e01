"""STUN and TURN: the codec, streams, and the server as a whole with several clients, peers and time."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.chance import INTERESTING, Choices, cuts, spoil
from tests.fuzz.target import Target, require
from tests.turn_world import REALM, RELAY, World
from wsgate.addr import Address
from wsgate.errors import ProtocolError
from wsgate.turn import stun
from wsgate.turn.auth import long_term_key
from wsgate.turn.connections import DEADLINES_STALE_MAX
from wsgate.turn.effects import (
    Bind,
    Client,
    CloseConnection,
    CloseRelay,
    Effect,
    Join,
    JoinConnection,
    OpenConnection,
    Part,
    Permit,
    RelayAddress,
    Reply,
    Revoke,
    SendToPeer,
    Unbind,
)
from wsgate.turn.framing import Frames
from wsgate.turn.stun import Integrity, MessageClass, Method
from wsgate.turn.values import MAGIC_COOKIE, ErrorCode, EvenPort, Icmp, PasswordAlgorithm

VECTORS = Path(__file__).resolve().parent.parent / "vectors" / "rfc5769"
MESSAGES = [bytes.fromhex(re.sub(r"#.*|\s", "", path.read_text())) for path in sorted(VECTORS.glob("*.hex"))]
COOKIE = MAGIC_COOKIE.to_bytes(4, "big")


def raw(number: int) -> stun.Attribute[bytes]:
    """An attribute with any bytes for its value."""
    return stun.Attribute(number, "RAW", lambda value, _: value, lambda value, _: value)


def codec(data: bytes) -> None:
    """What is parsed can be written and is read the same; every value is read alike once it was written (S1, S2)."""
    try:
        message = stun.parse(data)
    except ProtocolError:
        # Nearly everything fails on length and FINGERPRINT: with the length put right more is read.
        data = data[:2] + (max(0, len(data) - 20) & 0xFFFC).to_bytes(2, "big") + COOKIE + data[8:]
        data = bytes((data[0] & 0x3F,)) + data[1 : 20 + (max(0, len(data) - 20) & 0xFFFC)]
        try:
            message = stun.parse(data)
        except ProtocolError:
            return
    require(len(message.unknown) <= stun.UNKNOWN_LISTED_MAX and message.integrity in (None, *Integrity), "S3")
    fields = [(raw(number), value) for number, value in message.values]
    fields += [(raw(number), b"") for number in message.unknown]
    again = stun.parse(stun.encode(message.method, message.message_class, message.transaction_id, fields))
    require(again.values == message.values and again.unknown == message.unknown, "written it is another message")
    require(again.method == message.method and again.message_class is message.message_class, "another type")
    for attribute in stun.ATTRIBUTES.values():
        try:
            value = message.get(attribute)
        except ProtocolError:
            continue
        if value is not None and not isinstance(value, ErrorCode | Icmp | tuple):
            packed = attribute.pack(value, message.transaction_id)
            require(attribute.unpack(packed, message.transaction_id) == value, attribute.name, value)
    message.verify(b"key")


def frames(data: bytes) -> None:
    """Any cut of a stream gives the same frames; no more is kept than the longest may have (E3)."""
    whole = _frames([data])
    require(whole == _frames(cuts(data, [1])) == _frames(cuts(data, [3, 5, 64])), "another cut, other frames", whole)
    for frame in whole[0]:
        require(frame[0] & 0xC0 == 0x40 or len(frame) >= 20, "no frame", frame)


def _frames(pieces: list[bytes]) -> tuple[list[bytes], bytes, bool]:
    reader = Frames(1500)
    found: list[bytes] = []
    for number, piece in enumerate(pieces):
        try:
            found += reader.receive(piece, 1.0)
        except ProtocolError:
            # Which frames were given out before depends on the cut; that the stream is to be closed does not.
            return [], b"", True
        require(len(reader._buffer) <= 1500 + 3 or reader.is_held or len(piece) > 1500, "more is kept than is allowed")
        require((reader.partial_since is None) == (not reader._buffer), "a frame without beginning")
        if reader.is_held:
            return found, reader.take() + b"".join(pieces[number + 1 :]), False
    return found, reader.take(), False


PEERS = [
    *(Address("8.8.8.8", 4000 + number) for number in range(4)),
    Address("9.9.9.9", 1),
    Address("2001:4860::8", 53),
]
BAD_PEERS = [Address("127.0.0.1", 22), Address("10.0.0.1", 1), Address("::ffff:127.0.0.1", 1), Address(RELAY, 80)]
METHODS = [
    *(Method.ALLOCATE, Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CREATE_PERMISSION),
    *(Method.CHANNEL_BIND, Method.CHANNEL_BIND, Method.CONNECT, Method.CONNECTION_BIND, Method.BINDING),
    *(Method.SEND, Method.SEND, Method.DATA, 0x00D, 0x7FF),
]
LIMITS = {
    "user_quota": 3,
    "total_quota": 5,
    "permissions_per_allocation": 5,
    "channels_per_allocation": 3,
    "connections_per_allocation": 3,
    "connections_per_user": 2,
    "total_connections": 3,
    "relay_ports": (50000, 50019),
    "unauthenticated_rate": 4096,
    "nonce_lifetime": 600,
}
UNAUTHENTICATED_BYTES_MAX = 128
BINDING_BYTES_MAX = 44
FINGERPRINT_BYTES = 8
HOURS = 3 * 3600.0


class Caller:
    """A client as the script has it: where it is, what it can show, what it was told."""

    def __init__(self, path: int, user: str, password: str, *, is_stream: bool) -> None:
        self.client = Client(path, Address(f"192.0.2.{path}", 40000 + path))
        self.user = user
        self.key = long_term_key(user, REALM, password, PasswordAlgorithm.MD5)
        self.is_stream = is_stream
        self.nonce = b"x"
        self.known: list[tuple[stun.Attribute[Any], Any]] = [stun.CONNECTION_ID(1)]


class Engine:
    """What a relay engine would hold by the effects it was given: the model that the server is judged by."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.joined: dict[Address, Client | None] = {}
        self.permitted: set[tuple[Address, str]] = set()
        self.channels: dict[tuple[Address, int], Address] = {}
        self.connections: set[int] = set()
        self.connecting: list[int] = []

    def apply(self, effect: Effect) -> None:
        """One effect that is no Reply. Raises Finding for one that does not fit the others."""
        if isinstance(effect, CloseRelay):
            self.joined.pop(effect.relay, None)
            self.permitted = {one for one in self.permitted if one[0] != effect.relay}
            self.channels = {key: peer for key, peer in self.channels.items() if key[0] != effect.relay}
        elif isinstance(effect, Join):
            self.joined[effect.relay] = effect.client
        elif isinstance(effect, Part):
            self.joined[effect.relay] = None
        elif isinstance(effect, Permit):
            require((effect.relay, effect.host) not in self.permitted, "permitted twice", effect)
            self.permitted.add((effect.relay, effect.host))
        elif isinstance(effect, Revoke):
            self.permitted.remove((effect.relay, effect.host))
        elif isinstance(effect, Bind):
            require((effect.relay, effect.number) not in self.channels, "bound twice", effect)
            require((effect.relay, effect.peer.host) in self.permitted, "a channel without permission", effect)
            self.channels[effect.relay, effect.number] = effect.peer
        elif isinstance(effect, Unbind):
            require(self.channels.pop((effect.relay, effect.number)) == effect.peer, "another channel", effect)
        elif isinstance(effect, SendToPeer):
            require((effect.relay, effect.peer.host) in self.permitted, "sent without permission (P3)", effect)
            require(effect.peer not in BAD_PEERS, "sent to a forbidden peer (P5)", effect)
        else:
            self._connection(effect)
        if isinstance(effect, Permit | Bind | SendToPeer):
            require(effect.relay in self.world.open, "of a relay that is not open", effect)

    def _connection(self, effect: Effect) -> None:
        if isinstance(effect, OpenConnection):
            require(effect.peer not in BAD_PEERS, "connects to a forbidden peer (P5)", effect)
            self.connections.add(effect.connection)
            self.connecting.append(effect.connection)
        elif isinstance(effect, JoinConnection):
            require(effect.connection in self.connections, "joined to nothing", effect)
        elif isinstance(effect, CloseConnection):
            self.connections.discard(effect.connection)


class Session:
    """A server, its callers and its engine, driven by decisions."""

    def __init__(self, chance: Choices) -> None:
        self.chance = chance
        relays = (RelayAddress(RELAY, RELAY), RelayAddress("2001:db8::9", "2001:db8::9"))
        self.world = World(relays, mobility=chance.percent(50), **LIMITS)
        self.engine = Engine(self.world)
        self.callers = [
            Caller(1, "alice", "pw", is_stream=False),
            Caller(2, "alice", "pw", is_stream=True),
            Caller(3, "bob", "pw", is_stream=True),
            Caller(4, "bob", "pw", is_stream=False),
            Caller(5, "mallory", "pw", is_stream=False),
        ]
        self.number = 0

    def run(self) -> None:
        """Until no decision is left, and then until everything has expired."""
        chance, world = self.chance, self.world
        for caller in self.callers:
            self._ask(caller, shows_login=False)
        while not chance.is_over:
            kind = chance.number(40)
            if kind == 0:
                self._apply(None, world.wait(chance.pick((1.0, 1.0, 1.0, 29.0, 31.0, 130.0, 301.0, 601.0))))
            elif kind < 5:
                self._engine_speaks()
            elif kind == 5:
                world.exhausted = chance.percent(10)
                world.busy = {Address(RELAY, 50000 + chance.number(20))} if chance.percent(50) else set()
            elif kind == 6 and chance.percent(30):
                caller = chance.pick(self.callers)
                self._apply(None, world.settle(world.server.client_closed(caller.client, world.now)))
            else:
                self._ask(chance.pick(self.callers))
            self._check()
        world.exhausted, world.busy = False, set()
        self._apply(None, world.wait(HOURS))
        for connection in list(self.engine.connections):
            world.server.connection_closed(connection)
        self._check()
        held = world.server.allocations, len(world.open), len(self.engine.permitted), len(self.engine.channels)
        require(held == (0, 0, 0, 0) and not world.server.users(), "left behind", held)
        require(not len(world.server._connections), "connections left behind")

    def _engine_speaks(self) -> None:
        chance, world, server = self.chance, self.world, self.world.server
        kind = chance.number(4)
        if kind == 0 and self.engine.joined:
            relay = chance.pick(sorted(self.engine.joined))
            client = self.engine.joined[relay]
            if client is not None:
                peer = chance.pick(PEERS)
                number, effects = server.accepted(client, peer, world.now)
                if number:
                    hosts = {host for _, host in self.engine.permitted}
                    require(peer.host in hosts, "taken from a peer without permission (C1)", peer)
                    self.engine.connections.add(number)
                self._apply(None, world.settle(effects), may_indicate=True)
        elif self.engine.connecting:
            connection = self.engine.connecting.pop(chance.number(len(self.engine.connecting)))
            if kind == 1:
                self.engine.connections.discard(connection)
                effects = server.connect_failed(connection, world.now, exhausted=chance.percent(30))
            else:
                effects = server.connected(connection, world.now)
            self._apply(None, world.settle(effects), may_indicate=True)
        elif self.engine.connections:
            connection = chance.pick(sorted(self.engine.connections))
            self.engine.connections.discard(connection)
            server.connection_closed(connection)

    def _fields(self, caller: Caller, method: int) -> list[tuple[stun.Attribute[Any], Any]]:
        chance = self.chance
        peer = stun.XOR_PEER_ADDRESS(chance.pick([*PEERS, *PEERS, *BAD_PEERS]))
        usual: dict[int, list[tuple[stun.Attribute[Any], Any]]] = {
            Method.ALLOCATE: [
                stun.REQUESTED_TRANSPORT(chance.pick((6, 6, 6, 17, 1) if caller.is_stream else (17, 17, 17, 17, 6)))
            ],
            Method.CREATE_PERMISSION: [peer],
            Method.CHANNEL_BIND: [stun.CHANNEL_NUMBER(chance.pick((0x4000, 0x4001, 0x4FFF, 0x5000))), peer],
            Method.CONNECT: [peer],
            Method.CONNECTION_BIND: [chance.pick([one for one in caller.known if one[0] is stun.CONNECTION_ID])],
            Method.SEND: [peer, stun.DATA(chance.take(chance.pick((0, 1, 5))))],
        }
        fields = usual.get(method, [])
        more = [
            stun.LIFETIME(chance.pick((0, 1, 600, 3600, 0xFFFFFFFF))),
            *(stun.EVEN_PORT(EvenPort(True)), stun.EVEN_PORT(EvenPort(False)), stun.DONT_FRAGMENT(True)),
            *(stun.REQUESTED_ADDRESS_FAMILY(2), stun.REQUESTED_ADDRESS_FAMILY(1), stun.ADDITIONAL_ADDRESS_FAMILY(2)),
            *(stun.RESERVATION_TOKEN(bytes(8)), stun.MOBILITY_TICKET(b""), peer, raw(0x7F01)(b""), raw(0xFF01)(b"?")),
            *(raw(chance.number(0x40))(chance.take(chance.number(9))), stun.USERHASH(bytes(32)), *caller.known),
        ]
        for _ in range(chance.pick((0, 0, 0, 0, 0, 0, 1, 2, 5))):
            fields = [*fields, chance.pick(more)]
        return fields

    def _ask(self, caller: Caller, *, shows_login: bool = True) -> None:
        """One request or indication, sometimes spoiled on its way."""
        chance = self.chance
        method = chance.pick(METHODS)
        if not shows_login or (chance.percent(60) and not self.world.server.has_allocation(caller.client)):
            method = Method.ALLOCATE
        allocation = self.world.server._allocator.get(caller.client)
        if allocation is not None and allocation.is_tcp and chance.percent(60):
            method = Method.CONNECT
        kind = MessageClass.INDICATION if method in (Method.SEND, Method.DATA) else MessageClass.REQUEST
        if chance.percent(4):
            kind = chance.pick(list(MessageClass))
        fields = self._fields(caller, method)
        integrity = None
        if method not in (Method.BINDING, Method.SEND) and shows_login and chance.percent(95):
            login = [stun.USERNAME(caller.user), stun.REALM(REALM), stun.NONCE(caller.nonce)]
            fields = [*login, *fields]
            integrity = (Integrity.SHA1, caller.key)
        self.number += 0 if chance.percent(5) else 1
        transaction_id = self.number.to_bytes(12, "big")
        data = stun.encode(method, kind, transaction_id, fields, integrity=integrity, fingerprint=chance.percent(20))
        if chance.percent(12):
            data = spoil(chance, data, INTERESTING)
            data = data[:2] + ((len(data) - 20) & 0xFFFC).to_bytes(2, "big") + data[4:]
        effects = self.world.settle(
            self.world.server.receive(data, caller.client, self.world.now, is_stream=caller.is_stream)
        )
        self._apply((caller, data), effects)

    def _apply(self, asked: tuple[Caller, bytes] | None, effects: list[Effect], *, may_indicate: bool = False) -> None:
        replies = 0
        for effect in effects:
            if not isinstance(effect, Reply):
                self.engine.apply(effect)
                continue
            answer = stun.parse(effect.data)
            if answer.message_class is MessageClass.INDICATION:
                require(may_indicate and answer.method == Method.CONNECTION_ATTEMPT, "an indication of nothing")
            if asked is None:
                self._learn(effect, answer)
                continue
            caller, data = asked
            if answer.transaction_id == data[8:20]:
                replies += 1
                self._judge(caller, data, effect, answer)
            self._learn(effect, answer)
        require(replies <= 1, "two answers", effects)

    def _judge(self, caller: Caller, data: bytes, effect: Reply, answer: stun.Message) -> None:
        """An answer to a request: to who asked, no longer than rule S4 allows, signed where it matters (S5)."""
        request = stun.parse(data)
        require(request.message_class is MessageClass.REQUEST, "an answer to no request", data)
        require(effect.client == caller.client and answer.method == request.method, "another's answer", effect)
        require(answer.message_class in (MessageClass.SUCCESS, MessageClass.ERROR) and not answer.unknown, "no answer")
        require(answer.fingerprint == request.fingerprint, "FINGERPRINT (S5)")
        if answer.integrity is not None:
            require(answer.verify(caller.key) and request.verify(caller.key), "signed for nobody (S5)")
            return
        size = len(effect.data) - FINGERPRINT_BYTES * answer.fingerprint
        is_mapped = answer.message_class is MessageClass.SUCCESS
        require(not is_mapped or answer.method == Method.BINDING, "served without authentication (A1)", effect)
        require(size <= (BINDING_BYTES_MAX if is_mapped else UNAUTHENTICATED_BYTES_MAX), "too long (S4)", size)
        require(answer.get(stun.SOFTWARE) is None, "SOFTWARE to a stranger (S5)")

    def _learn(self, effect: Reply, answer: stun.Message) -> None:
        for caller in self.callers:
            if caller.client == effect.client:
                caller.nonce = answer.get(stun.NONCE) or caller.nonce
                for attribute in (stun.RESERVATION_TOKEN, stun.MOBILITY_TICKET, stun.CONNECTION_ID):
                    value = answer.get(attribute)
                    if value is not None:
                        caller.known = [*caller.known[-6:], attribute(value), stun.CONNECTION_ID(1)]

    def _check(self) -> None:
        server = self.world.server
        users = server.users()
        require(sum(users.values()) == server.allocations <= LIMITS["total_quota"], "too many allocations (Q1)", users)
        require(all(count <= LIMITS["user_quota"] for count in users.values()), "too many of one user (Q1)", users)
        require(len(self.world.open) <= 3 * LIMITS["total_quota"], "too many relays")
        permissions = Counter(relay for relay, _ in self.engine.permitted)
        channels = Counter(relay for relay, _ in self.engine.channels)
        require(max(permissions.values(), default=0) <= LIMITS["permissions_per_allocation"], "too many permissions")
        require(max(channels.values(), default=0) <= LIMITS["channels_per_allocation"], "too many channels")
        require(len(self.engine.connections) <= LIMITS["total_connections"], "too many connections (Q1)")
        held = server._connections
        require(all(count <= LIMITS["connections_per_user"] for count in held._held.values()), "of one user (Q1)")
        require(
            len(held._deadlines) <= 2 * len(held) + DEADLINES_STALE_MAX, "deadlines of what is over", held._deadlines
        )


def server(data: bytes) -> None:
    """Several clients of the server, its engine, and time."""
    Session(Choices(data)).run()


CHANNEL_DATA = b"\x40\x00\x00\x05hello\0\0\0" + b"\x4f\xff\x00\x00"
BIND = b"\x00\x0b\x00\x08" + COOKIE + bytes(12) + b"\x00\x2a\x00\x04\0\0\0\1"
LONG = [b"\x40\x00\x07\xd0" + bytes(2000) + CHANNEL_DATA, b"\x00\x01\x06\x40" + COOKIE + bytes(12 + 1600)]
STREAMS = [MESSAGES[0] + CHANNEL_DATA, CHANNEL_DATA * 3 + MESSAGES[1], BIND + b"of the peer", *LONG, *MESSAGES]
PIECES = [
    COOKIE,
    b"\x00\x01\x00\x00" + COOKIE,
    b"\x40\x00",
    b"\x00\x08\x00\x14",
    b"\x80\x28\x00\x04",
    b"\x00\x06\x00\x03",
]

TARGETS = [
    Target("stun", codec, MESSAGES, PIECES, test_inputs=800),
    Target("turn-frames", frames, STREAMS, PIECES, test_inputs=300),
    Target("turn-server", server, test_inputs=60),
]
