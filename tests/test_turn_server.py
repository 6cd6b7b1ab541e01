"""The TURN server by bytes: answers, codes, sizes and effects (rules S3 to S5, A1, A2, L1 to L4, P1 to P3, P5, Q1)."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from wsgate.addr import Address
from wsgate.call_peers import CallPeers
from wsgate.metrics import Counters
from wsgate.turn import stun
from wsgate.turn.allocation import (
    Bind,
    Client,
    CloseRelay,
    Effect,
    Join,
    OpenRelays,
    Permit,
    RelayAddress,
    Reply,
    Revoke,
    SendToPeer,
    Unbind,
)
from wsgate.turn.auth import Credentials, SecretHash, UserKeys, long_term_key, time_limited_password
from wsgate.turn.peers import Peers
from wsgate.turn.server import TurnServer
from wsgate.turn.settings import ChannelRange, TurnSettings
from wsgate.turn.stun import Integrity, MessageClass, Method
from wsgate.turn.values import EvenPort, Family, PasswordAlgorithm

REALM = "sixteen.char.rlm"
RELAY = "198.41.0.9"
PEER = Address("8.8.8.8", 4000)
UDP = stun.REQUESTED_TRANSPORT(17)
USERS = ("alice", "bob")
SECRET = b"secret"


class World:
    """A server, its one opener of sockets, and a clock moved by hand."""

    def __init__(
        self,
        relay_addresses: tuple[RelayAddress, ...] = (RelayAddress(RELAY, RELAY),),
        calls: CallPeers | None = None,
        share: tuple[int, int] = (0, 1),
        **options: Any,
    ) -> None:
        self.now = 1000.0
        self.settings = dataclasses.replace(TurnSettings(realm=REALM, relay_ports=(50000, 50999)), **options)
        keys = {user: UserKeys(*(long_term_key(user, REALM, "pw", one) for one in PasswordAlgorithm)) for user in USERS}
        self.peers = Peers(own_hosts=[RELAY], relay_ports=self.settings.relay_ports)
        self.counters = Counters()
        self.open: set[Address] = set()
        self.busy: set[Address] = set()
        self.exhausted = False
        self.server = TurnServer(
            self.settings,
            credentials=Credentials(REALM, keys, [SECRET]),
            peers=self.peers,
            relay_addresses=relay_addresses,
            nonce_keys=[b"k" * 32],
            unix_time=lambda: self.now,
            random_bytes=random.Random(7).randbytes,
            counters=self.counters,
            calls=calls,
            share=share,
        )

    def settle(self, effects: list[Effect]) -> list[Effect]:
        """Open and close relay addresses as an engine would; returns the other effects."""
        rest: list[Effect] = []
        for effect in effects:
            if isinstance(effect, OpenRelays):
                if self.exhausted or self.busy & set(effect.relays):
                    more = self.server.relays_refused(effect.relays, self.exhausted, self.now)
                else:
                    assert not self.open & set(effect.relays)
                    self.open |= set(effect.relays)
                    more = self.server.relays_opened(effect.relays, self.now)
                rest += self.settle(more)
            else:
                if isinstance(effect, CloseRelay):
                    self.open.remove(effect.relay)
                rest.append(effect)
        return rest

    def receive(self, data: bytes, client: Client) -> list[Effect]:
        return self.settle(self.server.receive(data, client, self.now))

    def wait(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.settle(self.server.handle_timer(self.now))


class Phone:
    """A client of the server: knows its credentials and counts its transactions."""

    def __init__(self, world: World, port: int = 40000, user: str = "alice", password: str = "pw") -> None:
        self.world = world
        self.client = Client(0, Address("192.0.2.1", port))
        self.user = user
        self.key = long_term_key(user, REALM, password, PasswordAlgorithm.MD5)
        self.nonce = b""
        self.transaction = port << 16
        self.effects: list[Effect] = []

    def raw(self, method: int, *fields: Any, fresh: bool = True, **options: Any) -> stun.Message | None:
        """Send one request as it is; the answer, or None. All other effects stand in `effects`."""
        self.transaction += fresh
        transaction_id = self.transaction.to_bytes(12, "big")
        data = stun.encode(method, MessageClass.REQUEST, transaction_id, fields, **options)
        effects = self.world.receive(data, self.client)
        replies = [effect for effect in effects if isinstance(effect, Reply)]
        self.effects = [effect for effect in effects if not isinstance(effect, Reply)]
        assert len(replies) <= 1
        if not replies:
            return None
        assert replies[0].client == self.client
        self.bytes = replies[0].data
        answer = stun.parse(replies[0].data)
        assert (answer.method, answer.transaction_id) == (method, transaction_id)
        return answer

    def ask(self, method: int, *fields: Any, **options: Any) -> stun.Message:
        """Send an authenticated request, with a nonce asked for when there is none."""
        if not self.nonce:
            challenge = self.raw(method)
            assert challenge is not None
            self.nonce = challenge.get(stun.NONCE) or b""
        login = (stun.USERNAME(self.user), stun.REALM(REALM), stun.NONCE(self.nonce))
        answer = self.raw(method, *login, *fields, integrity=(Integrity.SHA1, self.key), **options)
        assert answer is not None
        return answer

    def allocate(self, *fields: Any, **options: Any) -> stun.Message:
        return self.ask(Method.ALLOCATE, UDP, *fields, **options)

    def relayed(self) -> Address:
        """Allocate and return the relayed address."""
        address = self.allocate().get(stun.XOR_RELAYED_ADDRESS)
        assert address is not None
        return address

    def permit(self, *peers: Address) -> stun.Message:
        return self.ask(Method.CREATE_PERMISSION, *map(stun.XOR_PEER_ADDRESS, peers))

    def bind(self, number: int, peer: Address) -> stun.Message:
        return self.ask(Method.CHANNEL_BIND, stun.CHANNEL_NUMBER(number), stun.XOR_PEER_ADDRESS(peer))

    def refresh(self, *fields: Any) -> stun.Message:
        return self.ask(Method.REFRESH, *fields)

    def send(self, peer: Address, data: bytes, *fields: Any) -> list[Effect]:
        indication = [stun.XOR_PEER_ADDRESS(peer), stun.DATA(data), *fields]
        return self.world.receive(stun.encode(Method.SEND, MessageClass.INDICATION, bytes(12), indication), self.client)


def code(answer: stun.Message | None) -> int:
    """The error code, 0 for success."""
    assert answer is not None
    if answer.message_class is MessageClass.SUCCESS:
        return 0
    error = answer.get(stun.ERROR_CODE)
    assert error is not None
    return error.code


# Binding and what is answered without authentication


@pytest.mark.parametrize(
    ("host", "mapped", "size"),
    [("192.0.2.1", "192.0.2.1", 32), ("2001:db8::7", "2001:db8::7", 44), ("::ffff:192.0.2.1", "192.0.2.1", 32)],
)
def test_binding_is_answered_to_anybody_in_44_bytes(host: str, mapped: str, size: int) -> None:
    """Rule S4."""
    phone = Phone(World(software="wsgate with a long name"))
    phone.client = Client(0, Address(host, 40000))
    answer = phone.raw(Method.BINDING)
    assert answer is not None
    assert answer.get(stun.XOR_MAPPED_ADDRESS) == Address(mapped, 40000)
    assert len(phone.bytes) == size <= 44


@pytest.mark.parametrize("number", [0x0003, 0x0026, 0x0027, 0x0024])
def test_attributes_of_rfc_5780_and_of_ice_are_420_without_a_second_address(number: int) -> None:
    """Rules S3, S4."""
    foreign = stun.Attribute(number, "FOREIGN", lambda value, _: value, lambda value, _: value)
    answer = Phone(World()).raw(Method.BINDING, foreign(bytes(4)))
    assert code(answer) == 420
    assert answer is not None
    assert answer.get(stun.UNKNOWN_ATTRIBUTES) == (number,)


def test_unknown_required_attributes_are_420_to_a_request_and_silence_to_an_indication() -> None:
    """Rule S3; in a request after authentication (RFC 8489 §6.3.1)."""
    phone = Phone(World())
    foreign = stun.Attribute(0x7F00, "FOREIGN", lambda value, _: value, lambda value, _: value)
    assert code(phone.raw(Method.ALLOCATE, UDP, foreign(b""))) == 401
    assert code(phone.allocate(foreign(b""))) == 420
    phone.relayed()
    phone.permit(PEER)
    assert phone.send(PEER, b"x") != []
    assert phone.send(PEER, b"x", foreign(b"")) == []


def test_challenges_have_at_most_128_bytes() -> None:
    """Rule S4: with a realm of 16 characters, FINGERPRINT apart; SOFTWARE only to whom is known."""
    world = World(software="wsgate with a long name", nonce_lifetime=1)
    phone = Phone(world)
    assert code(phone.raw(Method.ALLOCATE)) == 401
    assert len(phone.bytes) <= 128
    assert code(phone.raw(Method.ALLOCATE, fingerprint=True)) == 401
    assert len(phone.bytes) - 8 <= 128
    phone.relayed()
    assert stun.parse(phone.bytes).get(stun.SOFTWARE) == "wsgate with a long name"
    world.now += 10
    stale = phone.refresh()
    assert code(stale) == 438
    assert len(phone.bytes) <= 128
    assert stale.get(stun.SOFTWARE) is None
    assert stale.get(stun.NONCE) not in (None, phone.nonce)


def test_a_challenge_has_realm_nonce_and_algorithms() -> None:
    """Rule A1, RFC 8489 §9.2.4."""
    answer = Phone(World()).raw(Method.ALLOCATE, UDP)
    assert answer is not None
    assert answer.get(stun.REALM) == REALM
    assert (answer.get(stun.NONCE) or b"").startswith(b"obMatJos2")
    assert answer.get(stun.PASSWORD_ALGORITHMS) == (PasswordAlgorithm.SHA256, PasswordAlgorithm.MD5)
    assert answer.integrity is None


def test_the_bucket_bounds_the_bytes_of_a_source_and_counts() -> None:
    """Rule S4, Q2: other sources and the authenticated go on."""
    world = World(unauthenticated_rate=4096)
    phone = Phone(world)
    phone.relayed()
    phone.raw(Method.ALLOCATE)
    size = len(phone.bytes)
    world.now += 10
    phone.raw(Method.BINDING)
    sent = 32
    for _ in range(100):
        if phone.raw(Method.ALLOCATE) is not None:
            sent += size
    assert 4096 - size < sent <= 4096
    assert world.counters.values["turn_unauthenticated_limited"] == 100 - (sent - 32) // size
    assert code(phone.refresh()) == 0
    other = Phone(world)
    other.client = Client(0, Address("192.0.2.2", 1))
    assert code(other.raw(Method.ALLOCATE)) == 401
    world.now += 1
    assert code(phone.raw(Method.ALLOCATE)) == 401


def test_twenty_wrong_requests_get_twenty_answers() -> None:
    """Rule A2."""
    phone = Phone(World(), password="wrong")
    assert [code(phone.allocate()) for _ in range(20)] == [401] * 20


def test_unauthenticated_packets_leave_no_state() -> None:
    world = World()
    for port in range(1, 200):
        phone = Phone(world, port=port)
        phone.client = Client(0, Address(f"192.0.2.{port % 250}", port))
        phone.raw(Method.ALLOCATE, UDP)
        phone.send(PEER, b"x")
    assert world.server.allocations == 0
    assert world.server.next_timer() is None
    assert world.open == set()


@pytest.mark.parametrize("missing", [stun.USERNAME, stun.REALM, stun.NONCE], ids=lambda one: one.name)
def test_integrity_without_the_rest_is_400_without_integrity(missing: Any) -> None:
    phone = Phone(World())
    fields = [stun.USERNAME("alice"), stun.REALM(REALM), stun.NONCE(b"x")]
    kept = [field for field in fields if field[0] is not missing]
    answer = phone.raw(Method.ALLOCATE, *kept, integrity=(Integrity.SHA1, phone.key))
    assert code(answer) == 400
    assert answer is not None
    assert answer.integrity is None


def test_a_stale_nonce_is_438_and_the_new_one_good() -> None:
    world = World()
    phone = Phone(world)
    phone.relayed()
    world.now += 601 - 300
    assert code(phone.refresh()) == 0
    world.now += 300
    stale = phone.refresh()
    assert code(stale) == 438
    phone.nonce = stale.get(stun.NONCE) or b""
    assert code(phone.refresh()) == 0


def test_unreadable_values_are_400() -> None:
    phone = Phone(World())
    broken = stun.Attribute(stun.USERNAME.number, "BROKEN", lambda value, _: value, lambda value, _: value)
    answer = phone.raw(
        Method.ALLOCATE,
        broken(b"\xff"),
        stun.REALM(REALM),
        stun.NONCE(b"x"),
        integrity=(Integrity.SHA1, phone.key),
    )
    assert code(answer) == 400
    odd = stun.Attribute(stun.LIFETIME.number, "BROKEN", lambda value, _: value, lambda value, _: value)
    assert code(phone.allocate(odd(b"x"))) == 400
    assert stun.parse(phone.bytes).verify(phone.key)


@pytest.mark.parametrize(
    ("message_class", "method"),
    [
        (MessageClass.SUCCESS, Method.ALLOCATE),
        (MessageClass.ERROR, Method.BINDING),
        (MessageClass.INDICATION, Method.DATA),
        (MessageClass.INDICATION, Method.BINDING),
        (MessageClass.REQUEST, Method.SEND),
        (MessageClass.REQUEST, 0x00D),
        (MessageClass.REQUEST, 0x7FF),
    ],
)
def test_what_no_client_asks_is_dropped(message_class: MessageClass, method: int) -> None:
    world = World()
    assert world.receive(stun.encode(method, message_class, bytes(12), ()), Phone(world).client) == []


def test_malformed_and_oversized_messages_are_dropped_and_counted() -> None:
    """Rule S1: nothing over 1,500 bytes."""
    world = World()
    phone = Phone(world)
    assert world.receive(b"\0\1garbage", phone.client) == []
    assert phone.raw(Method.BINDING, stun.SOFTWARE("x" * 700), stun.SOFTWARE("x" * 740)) is not None
    assert phone.raw(Method.BINDING, stun.SOFTWARE("x" * 760), stun.SOFTWARE("x" * 760)) is None
    assert world.counters.values["turn_malformed_dropped"] == 2


@pytest.mark.parametrize("fingerprint", [False, True])
@pytest.mark.parametrize("kind", list(Integrity))
def test_answers_carry_what_the_request_carried(kind: Integrity, fingerprint: bool) -> None:
    """Rule S5."""
    phone = Phone(World())
    challenge = phone.raw(Method.ALLOCATE, fingerprint=fingerprint)
    assert challenge is not None
    assert challenge.fingerprint is fingerprint
    login = (stun.USERNAME("alice"), stun.REALM(REALM), stun.NONCE(challenge.get(stun.NONCE) or b""))
    answer = phone.raw(Method.ALLOCATE, *login, UDP, integrity=(kind, phone.key), fingerprint=fingerprint)
    assert answer is not None
    assert code(answer) == 0
    assert answer.integrity is kind
    assert answer.verify(phone.key)
    assert answer.fingerprint is fingerprint
    assert answer.get(stun.SOFTWARE) is None


def test_sha256_from_challenge_to_answer() -> None:
    """Rules A1, A3."""
    phone = Phone(World())
    challenge = phone.raw(Method.ALLOCATE)
    assert challenge is not None
    algorithms = challenge.get(stun.PASSWORD_ALGORITHMS)
    key = long_term_key("alice", REALM, "pw", PasswordAlgorithm.SHA256)
    login = (stun.USERNAME("alice"), stun.REALM(REALM), stun.NONCE(challenge.get(stun.NONCE) or b""))
    chosen = (stun.PASSWORD_ALGORITHMS(algorithms), stun.PASSWORD_ALGORITHM(PasswordAlgorithm.SHA256))
    answer = phone.raw(Method.ALLOCATE, *login, *chosen, UDP, integrity=(Integrity.SHA256, key))
    assert code(answer) == 0
    assert answer is not None
    assert answer.verify(key)


# Allocate


def test_an_allocation_is_made_and_joined() -> None:
    phone = Phone(World(relay_addresses=(RelayAddress(RELAY, "203.0.113.99"),)))
    answer = phone.allocate()
    relayed = answer.get(stun.XOR_RELAYED_ADDRESS)
    assert relayed is not None
    assert relayed.host == "203.0.113.99"
    assert 50000 <= relayed.port <= 50999
    assert answer.get(stun.XOR_MAPPED_ADDRESS) == phone.client.address
    assert answer.get(stun.LIFETIME) == 600
    assert answer.get(stun.RESERVATION_TOKEN) is None
    assert phone.effects == [Join(Address(RELAY, relayed.port), phone.client)]
    assert phone.world.server.allocations == 1
    assert phone.world.server.users() == {"alice": 1}


@pytest.mark.parametrize(
    ("asked", "granted"), [(None, 600), (0, 600), (1, 600), (700, 700), (3600, 3600), (2**32 - 1, 3600)]
)
def test_lifetimes_lie_between_min_and_max(asked: int | None, granted: int) -> None:
    """Rule L2."""
    fields = [] if asked is None else [stun.LIFETIME(asked)]
    assert Phone(World()).allocate(*fields).get(stun.LIFETIME) == granted


def test_the_same_transaction_gets_the_same_answer_and_another_437() -> None:
    """Rule L1."""
    phone = Phone(World())
    phone.allocate()
    first = phone.bytes
    phone.allocate(fresh=False)
    assert phone.bytes == first
    assert phone.world.server.allocations == 1
    assert code(phone.allocate()) == 437
    stranger = Phone(phone.world, user="bob")
    stranger.transaction = phone.transaction
    stranger.allocate(fresh=False)
    assert stranger.bytes != first


def test_the_order_of_checks() -> None:
    """Rule L1: each request is wrong in everything that comes later as well."""
    world = World(user_quota=1)
    first = Phone(world, port=1)
    first.relayed()
    wrong_families = [stun.REQUESTED_ADDRESS_FAMILY(2)]
    token = [stun.RESERVATION_TOKEN(bytes(8)), stun.EVEN_PORT(EvenPort(False))]
    assert code(first.ask(Method.ALLOCATE, *wrong_families, *token)) == 437
    phone = Phone(world, port=2)
    assert code(phone.raw(Method.ALLOCATE)) == 401
    assert code(phone.ask(Method.ALLOCATE, *wrong_families, *token)) == 400
    assert code(phone.ask(Method.ALLOCATE, stun.REQUESTED_TRANSPORT(99), *wrong_families, *token)) == 442
    assert code(phone.allocate(*wrong_families, *token)) == 400
    assert code(phone.allocate(*wrong_families, stun.RESERVATION_TOKEN(bytes(8)))) == 400
    assert code(phone.allocate(*wrong_families)) == 440
    assert code(phone.allocate()) == 486
    world.exhausted = True
    assert code(Phone(world, port=3, user="bob").allocate()) == 508


def test_dont_fragment_is_honoured() -> None:
    phone = Phone(World())
    assert code(phone.allocate(stun.DONT_FRAGMENT(True))) == 0
    phone.permit(PEER)
    (sent,) = phone.send(PEER, b"x", stun.DONT_FRAGMENT(True))
    assert isinstance(sent, SendToPeer)
    assert sent.dont_fragment


def test_quotas_of_a_user_and_in_total() -> None:
    """Rules L1, Q1."""
    world = World(user_quota=2, total_quota=3)
    phones = [Phone(world, port=port) for port in range(1, 5)]
    assert [code(phone.allocate()) for phone in phones] == [0, 0, 486, 486]
    others = [Phone(world, port=port, user="bob") for port in range(10, 12)]
    assert [code(phone.allocate()) for phone in others] == [0, 486]
    assert code(phones[0].refresh(stun.LIFETIME(0))) == 0
    assert code(others[1].allocate()) == 0
    assert world.server.users() == {"alice": 1, "bob": 2}


def test_a_busy_port_makes_another_be_tried_and_exhaustion_508() -> None:
    """Rules L1, Q1: the server goes on."""
    world = World(relay_ports=(50000, 50019))
    world.busy = {Address(RELAY, port) for port in range(50000, 50010)}
    relayed = Phone(world).relayed()
    assert relayed.port >= 50010
    world.exhausted = True
    assert code(Phone(world, port=2).allocate()) == 508
    world.exhausted = False
    assert code(Phone(world, port=2).allocate()) == 0
    world.busy = {Address(RELAY, port) for port in range(50000, 50020)}
    assert code(Phone(world, port=3).allocate()) == 508
    assert world.server.allocations == 2


def test_ports_used_up_are_508() -> None:
    world = World(relay_ports=(50000, 50001))
    assert [code(Phone(world, port=port).allocate()) for port in range(1, 5)] == [0, 0, 508, 508]


def test_a_freed_port_is_not_given_to_another_user_for_two_minutes() -> None:
    """Rule L4."""
    world = World(relay_ports=(50000, 50000))
    alice, bob = Phone(world, port=1), Phone(world, port=2, user="bob")
    alice.relayed()
    alice.refresh(stun.LIFETIME(0))
    assert code(bob.allocate()) == 508
    assert code(alice.allocate()) == 0
    alice.refresh(stun.LIFETIME(0))
    world.now += 119
    assert code(bob.allocate()) == 508
    world.now += 1
    assert code(bob.allocate()) == 0


def test_even_port_with_and_without_reservation() -> None:
    """Rules L2, L3: without the R bit nothing is reserved; a token is 8 bytes and good for 30 s."""
    world = World()
    plain = Phone(world, port=1)
    answer = plain.allocate(stun.EVEN_PORT(EvenPort(False)))
    assert answer.get(stun.RESERVATION_TOKEN) is None
    assert len(world.open) == 1
    assert next(iter(world.open)).port % 2 == 0

    first = Phone(world, port=2)
    answer = first.allocate(stun.EVEN_PORT(EvenPort(True)))
    token, relayed = answer.get(stun.RESERVATION_TOKEN), answer.get(stun.XOR_RELAYED_ADDRESS)
    assert token is not None
    assert relayed is not None
    assert relayed.port % 2 == 0
    assert Address(RELAY, relayed.port + 1) in world.open

    assert code(Phone(world, port=3, user="bob").allocate(stun.RESERVATION_TOKEN(token))) == 508
    second = Phone(world, port=4).allocate(stun.RESERVATION_TOKEN(token))
    assert second.get(stun.XOR_RELAYED_ADDRESS) == Address(relayed.host, relayed.port + 1)
    assert code(Phone(world, port=5).allocate(stun.RESERVATION_TOKEN(token))) == 508

    late = Phone(world, port=6)
    token = late.allocate(stun.EVEN_PORT(EvenPort(True))).get(stun.RESERVATION_TOKEN)
    assert len(world.open) == 5
    effects = world.wait(30)
    assert [type(effect) for effect in effects] == [CloseRelay]
    assert len(world.open) == 4
    assert code(Phone(world, port=7).allocate(stun.RESERVATION_TOKEN(token or b""))) == 508
    reserving = Phone(world, port=8)
    reserving.allocate(stun.EVEN_PORT(EvenPort(True)))
    reserving.refresh(stun.LIFETIME(0))
    assert len(world.open) == 4


def test_families() -> None:
    """Rules L1, L2 with one and with two relay addresses."""
    one = World()
    assert code(Phone(one, port=1).allocate(stun.REQUESTED_ADDRESS_FAMILY(1))) == 0
    assert code(Phone(one, port=2).allocate(stun.REQUESTED_ADDRESS_FAMILY(2))) == 440
    assert code(Phone(one, port=2).allocate(stun.REQUESTED_ADDRESS_FAMILY(3))) == 440
    answer = Phone(one, port=2).allocate(stun.ADDITIONAL_ADDRESS_FAMILY(2))
    assert answer.get(stun.ADDRESS_ERROR_CODE) == (2, (440, "Address Family not Supported"))
    assert len(answer.all(stun.XOR_RELAYED_ADDRESS)) == 1
    assert code(Phone(one, port=3).allocate(stun.ADDITIONAL_ADDRESS_FAMILY(1))) == 400

    six = World(relay_addresses=(RelayAddress("2001:db8::9", "2001:db8::9"),))
    assert code(Phone(six, port=1).allocate()) == 440
    answer = Phone(six, port=1).allocate(stun.ADDITIONAL_ADDRESS_FAMILY(2))
    assert answer.get(stun.ADDRESS_ERROR_CODE) == (1, (440, "Address Family not Supported"))
    assert [relayed.host for relayed in answer.all(stun.XOR_RELAYED_ADDRESS)] == ["2001:db8::9"]

    two = World(relay_addresses=(RelayAddress(RELAY, RELAY), RelayAddress("2001:db8::9", "2001:db8::9")))
    phone = Phone(two, port=1)
    hosts = [
        address.host for address in phone.allocate(stun.ADDITIONAL_ADDRESS_FAMILY(2)).all(stun.XOR_RELAYED_ADDRESS)
    ]
    assert hosts == [RELAY, "2001:db8::9"]
    assert code(phone.permit(PEER, Address("2a00:1450::1", 1))) == 0
    assert code(phone.refresh(stun.REQUESTED_ADDRESS_FAMILY(2), stun.LIFETIME(0))) == 0
    assert {address.host for address in two.open} == {RELAY}
    assert code(phone.permit(Address("2a00:1450::1", 1))) == 443
    assert code(phone.refresh(stun.REQUESTED_ADDRESS_FAMILY(2))) == 443
    assert code(phone.refresh()) == 0


@pytest.mark.parametrize("trouble", ["no port left", "all ports busy"])
def test_one_of_two_families_without_a_port(trouble: str) -> None:
    """Rule L2: ADDRESS-ERROR-CODE 508 for that one, the other is allocated (RFC 8656 §7.2)."""
    six = "2001:db8::9"
    both = (RelayAddress(RELAY, RELAY), RelayAddress(six, six))
    world = World(relay_addresses=both, relay_ports=(50000, 50039), unauthenticated_rate=10**6)
    if trouble == "no port left":
        for port in range(40):
            assert code(Phone(world, port=port).allocate(stun.REQUESTED_ADDRESS_FAMILY(2))) == 0
    else:
        world.busy = {Address(six, port) for port in range(50000, 50040)}
    answer = Phone(world, port=90).allocate(stun.ADDITIONAL_ADDRESS_FAMILY(2))
    assert [address.host for address in answer.all(stun.XOR_RELAYED_ADDRESS)] == [RELAY]
    assert answer.get(stun.ADDRESS_ERROR_CODE) == (2, (508, "Insufficient Capacity"))
    world.exhausted = True
    assert code(Phone(world, port=91).allocate(stun.ADDITIONAL_ADDRESS_FAMILY(2))) == 508


# Refresh and the end


def test_refresh_codes() -> None:
    """Rule L3."""
    world = World()
    phone = Phone(world)
    assert code(phone.refresh()) == 437
    phone.relayed()
    assert code(Phone(world, user="bob").refresh()) == 441
    assert code(Phone(world, user="bob").permit(PEER)) == 441
    assert code(Phone(world, user="bob").bind(0x4000, PEER)) == 441
    assert code(phone.refresh(stun.REQUESTED_ADDRESS_FAMILY(Family.IPV6))) == 443
    assert phone.refresh(stun.LIFETIME(1200)).get(stun.LIFETIME) == 1200
    ended = phone.refresh(stun.LIFETIME(0))
    assert ended.get(stun.LIFETIME) == 0
    assert [type(effect) for effect in phone.effects] == [CloseRelay]
    assert world.open == set()
    for answer in (phone.refresh(), phone.permit(PEER), phone.bind(0x4000, PEER)):
        assert code(answer) == 437
    assert phone.send(PEER, b"x") == []


def test_an_allocation_ends_with_its_lifetime_and_everything_is_freed() -> None:
    """Rule L4."""
    world = World()
    phone = Phone(world)
    phone.relayed()
    phone.bind(0x4000, PEER)
    world.wait(599)
    assert world.server.allocations == 1
    assert [type(effect) for effect in world.wait(1)] == [CloseRelay]
    assert (world.server.allocations, world.server.users(), world.open) == (0, {}, set())
    assert world.server.next_timer() is None or world.wait(10000) == []
    assert world.server.next_timer() is None


def test_a_refresh_moves_the_end() -> None:
    world = World()
    phone = Phone(world)
    phone.relayed()
    world.wait(500)
    phone.refresh(stun.LIFETIME(1000))
    assert world.wait(999) == []
    assert [type(effect) for effect in world.wait(1)] == [CloseRelay]


def test_an_allocation_ends_with_its_stream() -> None:
    """Rule L4."""
    world = World()
    phone = Phone(world)
    phone.relayed()
    assert [type(effect) for effect in world.settle(world.server.client_closed(phone.client, world.now))] == [
        CloseRelay
    ]
    assert world.server.client_closed(phone.client, world.now) == []


def test_what_expired_is_gone_for_the_next_message_even_before_the_timer() -> None:
    world = World()
    phone = Phone(world)
    phone.relayed()
    phone.permit(PEER)
    world.now += 300
    assert phone.send(PEER, b"x") == [Revoke(next(iter(world.open)), PEER.host)]


def test_timers_stay_bounded_when_allocations_come_and_go() -> None:
    world = World()
    phone = Phone(world)
    for _ in range(200):
        phone.allocate()
        phone.permit(PEER)
        phone.refresh(stun.LIFETIME(0))
    assert world.server.allocations == 0
    assert len(world.server._allocator._timers) < 100


# Permissions, channels, Send


def test_permissions() -> None:
    """Rule P1."""
    world = World()
    phone = Phone(world)
    relay = phone.relayed()
    assert code(phone.permit()) == 400
    assert code(phone.permit(PEER, Address("9.9.9.9", 0))) == 0
    assert phone.effects == [Permit(relay, PEER.host), Permit(relay, "9.9.9.9")]
    assert code(phone.permit(Address("2001:4860::1", 1))) == 443
    assert code(phone.permit(PEER)) == 0
    assert phone.effects == []
    assert world.wait(300) == [Revoke(relay, "9.9.9.9"), Revoke(relay, PEER.host)]


def test_one_forbidden_peer_and_none_is_installed() -> None:
    """Rules P1, P5."""
    phone = Phone(World())
    phone.relayed()
    assert code(phone.permit(PEER, Address("127.0.0.1", 4000))) == 403
    assert phone.effects == []
    assert phone.send(PEER, b"x") == []


def test_permissions_are_not_refreshed_by_traffic() -> None:
    """Rule P1."""
    world = World()
    phone = Phone(world)
    phone.relayed()
    phone.permit(PEER)
    for _ in range(2):
        world.wait(149)
        assert len(phone.send(PEER, b"x")) == 1
    world.wait(2)
    assert phone.send(PEER, b"x") == []


def test_permissions_and_channels_are_bounded() -> None:
    """Rules P1, Q1: 508; what is there can be refreshed."""
    phone = Phone(World(permissions_per_allocation=10, channels_per_allocation=5))
    phone.relayed()
    hosts = [Address(f"8.8.8.{number}", 1000) for number in range(12)]
    assert code(phone.permit(*hosts)) == 508
    assert code(phone.permit(*hosts[:9])) == 0
    assert code(phone.permit(*hosts[9:11])) == 508
    assert code(phone.permit(hosts[9])) == 0
    assert code(phone.permit(*hosts[:10])) == 0
    assert code(phone.bind(0x4000, hosts[11])) == 508
    for number in range(5):
        assert code(phone.bind(0x4000 + number, hosts[number])) == 0
    assert code(phone.bind(0x4005, hosts[5])) == 508
    assert code(phone.bind(0x4004, hosts[4])) == 0


def test_channels() -> None:
    """Rule P2."""
    world = World()
    phone = Phone(world)
    relay = phone.relayed()
    assert code(phone.ask(Method.CHANNEL_BIND, stun.CHANNEL_NUMBER(0x4000))) == 400
    assert code(phone.ask(Method.CHANNEL_BIND, stun.XOR_PEER_ADDRESS(PEER))) == 400
    for number in (0x0000, 0x3FFF, 0x5000, 0x7FFE, 0x7FFF, 0xFFFF):
        assert code(phone.bind(number, PEER)) == 400
    assert code(phone.bind(0x4000, PEER)) == 0
    assert phone.effects == [Permit(relay, PEER.host), Bind(relay, 0x4000, PEER)]
    assert code(phone.bind(0x4000, PEER)) == 0
    assert phone.effects == []
    assert code(phone.bind(0x4000, Address("8.8.8.8", 4001))) == 400
    assert code(phone.bind(0x4001, PEER)) == 400
    assert code(phone.bind(0x4FFF, Address("8.8.8.8", 4001))) == 0
    assert code(phone.bind(0x4FFE, Address("2001:4860::1", 1))) == 443
    assert code(phone.bind(0x4FFE, Address("10.0.0.1", 1))) == 403
    phone.refresh(stun.LIFETIME(3000))
    world.wait(599)
    phone.nonce = b""
    assert world.wait(1) == [Unbind(relay, 0x4000, PEER), Unbind(relay, 0x4FFF, Address("8.8.8.8", 4001))]
    assert code(phone.bind(0x4001, PEER)) == 0


def test_old_clients_may_use_the_channels_of_rfc_5766() -> None:
    """Rule P2."""
    phone = Phone(World(channel_range=ChannelRange.RFC5766))
    phone.relayed()
    assert code(phone.bind(0x7FFE, PEER)) == 0
    assert code(phone.bind(0x7FFF, Address("8.8.8.8", 1))) == 400


def test_send_needs_allocation_permission_and_completeness() -> None:
    """Rule P3."""
    world = World()
    phone = Phone(world)
    assert phone.send(PEER, b"x") == []
    relay = phone.relayed()
    assert phone.send(PEER, b"x") == []
    phone.permit(PEER)
    assert phone.send(PEER, b"x") == [SendToPeer(relay, PEER, b"x", False)]
    assert phone.send(Address(PEER.host, 9), b"") == [SendToPeer(relay, Address(PEER.host, 9), b"", False)]
    for fields in ([stun.DATA(b"x")], [stun.XOR_PEER_ADDRESS(PEER)]):
        data = stun.encode(Method.SEND, MessageClass.INDICATION, bytes(12), fields)
        assert world.receive(data, phone.client) == []
    assert phone.send(Address("2001:4860::1", 1), b"x") == []
    assert world.counters.values["turn_send_dropped"] == 5


def test_a_backend_is_a_peer_but_not_at_its_sip_port() -> None:
    """Rule P5: by address for CreatePermission; by address and port for ChannelBind and each Send."""
    world = World()
    phone = Phone(world)
    relay = phone.relayed()
    world.peers.forbid([Address(PEER.host, 5060)])
    assert code(phone.permit(Address(PEER.host, 5060))) == 0
    assert phone.send(Address(PEER.host, 5060), b"INVITE") == []
    assert phone.send(PEER, b"rtp") == [SendToPeer(relay, PEER, b"rtp", False)]
    assert code(phone.bind(0x4000, Address(PEER.host, 5060))) == 403
    assert code(phone.bind(0x4000, PEER)) == 0


def test_lists_are_asked_again_when_they_changed() -> None:
    """Rule P5."""
    world = World()
    phone = Phone(world)
    relay = phone.relayed()
    phone.bind(0x4000, PEER)
    world.peers.forbid([PEER])
    assert world.server.reconsider() == [Unbind(relay, 0x4000, PEER)]
    assert phone.send(PEER, b"x") == []


def test_two_clients_of_one_server_reach_each_other_and_nothing_else_there() -> None:
    """Rule P5."""
    world = World()
    first, second = Phone(world, port=1), Phone(world, port=2)
    first.relayed()
    address = second.relayed()
    assert code(first.bind(0x4000, address)) == 0
    assert code(first.permit(address)) == 0
    assert code(first.bind(0x4001, Address(RELAY, 3478))) == 403
    assert first.send(Address(RELAY, 5060), b"x") == []


def test_time_limited_credentials_through_the_server() -> None:
    """Rule A4: expired ones neither allocate nor refresh; renewed ones of the same id do."""
    world = World()

    def phone_with(expiry: int, port: int = 40000) -> Phone:
        name = f"{expiry}:phone7"
        return Phone(world, port, name, time_limited_password(SECRET, name, SecretHash.SHA1))

    phone = phone_with(int(world.now) + 100)
    phone.relayed()
    assert world.server.users() == {":phone7": 1}
    world.now += 100
    assert code(phone.refresh()) == 401
    assert code(phone_with(int(world.now) + 100).refresh()) == 0
    other = Phone(world, user=f"{int(world.now) + 9}:x", password="guess")
    assert code(other.refresh()) == 401


def test_a_reload_takes_users_away() -> None:
    world = World()
    phone = Phone(world)
    phone.relayed()
    world.server.reload(Credentials(REALM, {}, ["new"]))
    assert code(phone.refresh()) == 401
    assert world.server.allocations == 1
