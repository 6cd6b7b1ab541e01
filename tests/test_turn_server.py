"""The TURN server by bytes: answers, codes and sizes, who is let in (rules S3 to S5, A1, A2, A4)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.turn_world import PEER, REALM, SECRET, UDP, Phone, World, code
from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.auth import Credentials, SecretHash, long_term_key, time_limited_password
from wsgate.turn.effects import Client
from wsgate.turn.stun import Integrity, MessageClass, Method
from wsgate.turn.values import PasswordAlgorithm


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


def test_time_limited_credentials_through_the_server() -> None:
    """Rule A4: expired ones allocate nothing, but go on with what they began; so do renewed ones of the same id."""
    world = World()

    def phone_with(expiry: int, port: int = 40000) -> Phone:
        name = f"{expiry}:phone7"
        return Phone(world, port, name, time_limited_password(SECRET, name, SecretHash.SHA1))

    phone = phone_with(int(world.now) + 100)
    phone.relayed()
    assert world.server.users() == {":phone7": 1}
    world.now += 100
    assert code(phone.allocate()) == 401
    assert code(phone.refresh()) == code(phone.permit(PEER)) == code(phone.bind(0x4000, PEER)) == 0
    elsewhere = phone_with(int(world.now), 40001)
    assert code(elsewhere.allocate()) == code(elsewhere.refresh()) == 401
    assert code(phone_with(int(world.now) + 100).refresh()) == 0
    assert code(Phone(world, user=f"{int(world.now)}:phone7", password="guess").refresh()) == 401
    assert code(phone.refresh(stun.LIFETIME(0))) == 0
    assert code(phone.refresh()) == 401, "nothing stands that could go on"
    other = Phone(world, user=f"{int(world.now) + 9}:x", password="guess")
    assert code(other.refresh()) == 401


def test_a_reload_takes_users_away() -> None:
    world = World()
    phone = Phone(world)
    phone.relayed()
    world.server.reload(Credentials(REALM, {}, ["new"]))
    assert code(phone.refresh()) == 401
    assert world.server.allocations == 1
