"""Third-party tokens: the key file, what is believed, and what a token opens (RFC 7635; rules A4, A1, S4)."""

from __future__ import annotations

import base64
import random
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.turn_world import PEER, REALM, UDP, Phone, World, code
from wsgate.addr import Address
from wsgate.credentials import CredentialsError
from wsgate.turn import stun
from wsgate.turn.auth import Credentials
from wsgate.turn.effects import Client, CloseRelay, Effect, JoinConnection, OpenConnection, Reply
from wsgate.turn.stun import Integrity, Method
from wsgate.turn.tokens import Opened, TokenKey, TokenKeys, parse_keys
from wsgate.turn.values import EvenPort

AES_128, AES_256 = bytes(range(16)), bytes(range(32))
KEYS = {"kid": TokenKey(AES_256, None), "small": TokenKey(AES_128, None), "old": TokenKey(AES_256, 900.0)}
MAC_KEY = b"m" * 20
NONCE = b"n" * 12
NOW = 1000.0


def seal(
    secret: bytes = AES_256,
    name: str = REALM,
    mac_key: bytes = MAC_KEY,
    made: float = NOW,
    lifetime: int = 600,
    nonce: bytes = NONCE,
) -> bytes:
    """A token as an authorization server makes it."""
    stamp = int(made) << 16 | int(made % 1 * 64000)
    block = struct.pack("!H", len(mac_key)) + mac_key + struct.pack("!QI", stamp, lifetime)
    return struct.pack("!H", len(nonce)) + nonce + AESGCM(secret).encrypt(nonce, block, name.encode())


def opened(token: bytes, kid: str = "kid", now: float = NOW) -> Opened | None:
    return TokenKeys(KEYS, REALM).open(kid, token, now)


def test_both_key_sizes_open_their_tokens() -> None:
    assert opened(seal()) == Opened(MAC_KEY, 600)
    assert opened(seal(AES_128), "small") == Opened(MAC_KEY, 600)
    assert opened(seal(mac_key=b"k" * 32, nonce=b"x" * 16)) == Opened(b"k" * 32, 600)


@pytest.mark.parametrize(
    ("token", "kid"),
    [
        (seal(), "nobody"),
        (seal(), "small"),
        (seal(), "old"),
        (seal(name="other.server"), "kid"),
        (seal()[:-1] + b"!", "kid"),
        (seal()[:-1], "kid"),
        (seal() + b"x", "kid"),
        (seal(mac_key=b"short"), "kid"),
        (seal(mac_key=b"l" * 65), "kid"),
        (b"\x00\xc8" + bytes(300), "kid"),
        (b"", "kid"),
        (b"\xff\xff", "kid"),
        (b"\x00\x0c" + NONCE, "kid"),
        (b"\x00\x00" + bytes(40), "kid"),
        (bytes(100000), "kid"),
    ],
)
def test_what_is_not_whole_is_not_believed(token: bytes, kid: str) -> None:
    """Another key, another server, any other bit, an expired key, lengths that are not so."""
    assert opened(token, kid) is None


@pytest.mark.parametrize(
    ("made", "lifetime", "seconds"),
    [
        (NOW - 100, 600, 500),
        (NOW - 599.5, 600, 1),
        (NOW - 604, 600, 1),
        (NOW - 606, 600, None),
        (NOW + 4, 600, 604),
        (NOW + 6, 600, None),
        (NOW, 0, None),
        (NOW + 0.75, 10, 10),
    ],
)
def test_a_token_has_its_time_and_clocks_may_differ_by_5_seconds(made: float, lifetime: int, seconds: int) -> None:
    """RFC 7635 §6.2."""
    found = opened(seal(made=made, lifetime=lifetime))
    assert (None if found is None else found.seconds) == seconds


def test_key_files() -> None:
    text = "# shared with the authorization server\n\nkid:{}\n ; more\nsmall:{}:1700000000\n"
    keys = parse_keys(text.format(*(base64.b64encode(key).decode() for key in (AES_256, AES_128))))
    assert keys == {"kid": TokenKey(AES_256, None), "small": TokenKey(AES_128, 1700000000.0)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kid", "line 1: not kid:base64key"),
        ("\nkid:c2VjcmV0:1:2", "line 2: not kid"),
        (":AAAAAAAAAAAAAAAAAAAAAA==", "the kid is empty"),
        ("kid:c2VjcmV0!", "line 1: the key is not base64"),
        ("kid:c2VjcmV0", "neither 16 nor 32"),
        ("kid:AAAAAAAAAAAAAAAAAAAAAA==:soon", "expiry"),
        ("kid:AAAAAAAAAAAAAAAAAAAAAA==\nkid:AAAAAAAAAAAAAAAAAAAAAA==", "line 2: kid stands here twice"),
        ("# nothing", "0 keys"),
    ],
)
def test_a_wrong_key_file_is_told_without_its_secrets(text: str, problem: str) -> None:
    with pytest.raises(CredentialsError, match=problem) as caught:
        parse_keys(text)
    assert "c2VjcmV0" not in str(caught.value)
    assert "AAAA" not in str(caught.value)


def test_keys_show_themselves_to_nobody() -> None:
    assert repr(KEYS["kid"]) == "TokenKey(256 bits)"


def token_world(**options: Any) -> World:
    world = World(unauthenticated_rate=10**6, **options)
    old = world.server.credentials
    world.server.reload(Credentials(REALM, old.users, old.secrets, token_keys=TokenKeys(KEYS, REALM)))
    return world


class TokenPhone(Phone):
    """A client with a token: `shows` it in Allocate and Refresh, and signs all with its key."""

    def __init__(self, world: World, port: int = 40000, kid: str = "kid", mac_key: bytes = MAC_KEY) -> None:
        super().__init__(world, port, user=kid)
        self.key = mac_key
        self.access = seal(KEYS[kid].secret, mac_key=mac_key, made=world.now)

    def ask(self, method: int, *fields: Any, **options: Any) -> stun.Message:
        if method in (Method.ALLOCATE, Method.REFRESH):
            fields = (stun.ACCESS_TOKEN(self.access), *fields)
        return super().ask(method, *fields, **options)


def test_the_401_names_the_server_and_stays_within_128_bytes() -> None:
    """RFC 7635 §6.1; rule S4 with a realm of 16 characters."""
    phone = Phone(token_world())
    answer = phone.raw(Method.ALLOCATE, UDP)
    assert code(answer) == 401
    assert answer is not None
    assert answer.get(stun.THIRD_PARTY_AUTHORIZATION) == REALM
    assert answer.get(stun.REALM) == REALM
    assert len(phone.bytes) <= 128
    plain = Phone(World()).raw(Method.ALLOCATE, UDP)
    assert plain is not None
    assert plain.get(stun.THIRD_PARTY_AUTHORIZATION) is None


def test_a_token_allocates_and_its_key_signs_the_rest_and_the_answers() -> None:
    phone = TokenPhone(token_world())
    answer = phone.allocate()
    assert code(answer) == 0
    assert answer.integrity is Integrity.SHA1
    assert answer.verify(MAC_KEY)
    assert code(phone.permit(PEER)) == 0
    assert code(phone.bind(0x4000, PEER)) == 0
    assert code(phone.refresh()) == 0
    assert code(phone.refresh(stun.LIFETIME(0))) == 0
    assert any(isinstance(effect, CloseRelay) for effect in phone.effects)


def test_the_key_cut_to_16_bytes_counts_as_coturns_library_has_it() -> None:
    phone = TokenPhone(token_world(), mac_key=bytes(range(20)))
    phone.key = phone.key[:16]
    assert code(phone.allocate()) == 0
    assert code(phone.permit(PEER)) == 0
    phone.key = bytes(range(15))
    assert code(phone.refresh()) == 401


def test_no_lifetime_is_longer_than_the_token() -> None:
    """RFC 7635 §9, min_lifetime notwithstanding."""
    phone = TokenPhone(token_world())
    phone.access = seal(made=phone.world.now, lifetime=90)
    assert phone.allocate(stun.LIFETIME(3000)).get(stun.LIFETIME) == 90
    phone.world.now += 30
    assert phone.refresh().get(stun.LIFETIME) == 60
    phone.world.wait(70)
    phone.nonce = b""
    assert code(phone.refresh()) == 401
    assert phone.world.server.allocations == 0


def test_a_renewed_token_of_another_key_goes_on_with_the_allocation() -> None:
    """Authorization servers rotate keys; the older token's key then signs nothing more."""
    phone = TokenPhone(token_world())
    phone.relayed()
    old = phone.key, phone.user
    phone.user, phone.key = "small", b"another key of 20 b."
    phone.access = seal(AES_128, mac_key=phone.key)
    assert code(phone.refresh()) == 0
    assert code(phone.permit(PEER)) == 0
    phone.key, phone.user = old
    assert code(phone.permit(PEER)) == 401


def test_without_the_token_its_key_opens_neither_allocate_nor_refresh() -> None:
    phone = TokenPhone(token_world())
    phone.relayed()
    assert code(Phone.ask(phone, Method.REFRESH)) == 401
    phone.client = Client(0, Address("192.0.2.1", 47000))
    phone.nonce = b""
    assert code(Phone.ask(phone, Method.ALLOCATE, UDP)) == 401
    assert code(phone.permit(PEER)) == 401, "there is no allocation whose token it could be"


@pytest.mark.parametrize("change", ["user", "key", "access"])
def test_what_does_not_fit_together_is_401(change: str) -> None:
    """Rule A1: kid, token and integrity."""
    phone = TokenPhone(token_world())
    setattr(phone, change, {"user": "small", "key": b"x" * 20, "access": seal(AES_128)}[change])
    assert code(phone.allocate()) == 401


def test_users_and_tokens_are_not_each_other() -> None:
    """Rule L3: 441; a quota for each token (rule Q1)."""
    world = token_world(user_quota=1)
    phone = TokenPhone(world)
    phone.relayed()
    alice = Phone(world, port=40000)
    assert code(alice.refresh()) == 441
    assert code(TokenPhone(world, port=40001).allocate()) == 486
    assert code(TokenPhone(world, port=40002, mac_key=b"o" * 20).allocate()) == 0
    assert code(Phone(world, port=40003).allocate()) == 0
    assert all(user == "alice" or user.startswith(";kid:") for user in world.server.users())


def test_a_reservation_and_a_mobility_ticket_work_with_tokens() -> None:
    """Rules L2, E4."""
    world = token_world(mobility=True)
    phone = TokenPhone(world)
    answer = phone.allocate(stun.EVEN_PORT(EvenPort(True)), stun.MOBILITY_TICKET(b""))
    reserved, ticket = answer.get(stun.RESERVATION_TOKEN), answer.get(stun.MOBILITY_TICKET)
    assert reserved is not None
    assert ticket is not None
    other = TokenPhone(world, port=41000, kid="small", mac_key=b"s" * 32)
    assert code(other.allocate(stun.RESERVATION_TOKEN(reserved))) == 0
    phone.client = Client(3, Address("198.51.100.9", 1))
    phone.nonce = b""
    assert code(phone.refresh(stun.MOBILITY_TICKET(ticket))) == 0
    assert code(phone.permit(PEER)) == 0


def test_a_stream_for_a_connection_needs_the_key_alone() -> None:
    """Rule C1: as every request about an allocation that stands; a renewed token of another key serves as well."""
    world = token_world()

    def ask(phone: Phone, method: Method, *fields: Any) -> list[Effect]:
        login = (stun.USERNAME(phone.user), stun.REALM(REALM), stun.NONCE(phone.nonce))
        integrity = Integrity.SHA1, phone.key
        data = stun.encode(method, stun.MessageClass.REQUEST, bytes(12), (*login, *fields), integrity=integrity)
        return world.settle(world.server.receive(data, phone.client, world.now, is_stream=True))

    control = TokenPhone(world)
    control.nonce = nonce_for(control)
    shown = stun.ACCESS_TOKEN(control.access)
    ask(control, Method.ALLOCATE, stun.REQUESTED_TRANSPORT(6), shown)
    [opening] = ask(control, Method.CONNECT, stun.XOR_PEER_ADDRESS(PEER))
    assert isinstance(opening, OpenConnection)
    world.server.connected(opening.connection, world.now)
    holder = next(iter(world.server.users()))
    claim = stun.CONNECTION_ID(opening.connection)
    data = TokenPhone(world, port=40001)
    data.nonce = nonce_for(data)
    [_, joined] = ask(data, Method.CONNECTION_BIND, claim)
    assert joined == JoinConnection(opening.connection, data.client, holder)

    [opening] = ask(control, Method.CONNECT, stun.XOR_PEER_ADDRESS(Address("8.8.4.4", 80)))
    assert isinstance(opening, OpenConnection)
    world.server.connected(opening.connection, world.now)
    renewed = TokenPhone(world, port=40002, kid="small", mac_key=b"another key of 20 b.")
    renewed.access = seal(AES_128, mac_key=renewed.key)
    renewed.nonce = nonce_for(renewed)
    claim = stun.CONNECTION_ID(opening.connection)
    [refused] = ask(renewed, Method.CONNECTION_BIND, claim)
    assert isinstance(refused, Reply)
    assert code(stun.parse(refused.data)) == 401, "its key alone says nothing"
    [_, joined] = ask(renewed, Method.CONNECTION_BIND, claim, stun.ACCESS_TOKEN(renewed.access))
    assert joined == JoinConnection(opening.connection, renewed.client, holder)


def nonce_for(phone: Phone) -> bytes:
    challenge = phone.raw(Method.REFRESH)
    assert challenge is not None
    return challenge.get(stun.NONCE) or b""


def test_without_keys_the_attribute_is_unknown() -> None:
    """Rule S3."""
    phone = Phone(World())
    assert code(phone.allocate(stun.ACCESS_TOKEN(seal()))) == 420
    assert code(phone.allocate()) == 0


def test_keys_that_are_taken_away_open_nothing_more() -> None:
    """Rule A4: what is allocated stays until a token has to be shown."""
    world = token_world()
    phone = TokenPhone(world)
    phone.relayed()
    world.server.reload(Credentials(REALM, token_keys=TokenKeys({"new": KEYS["kid"]}, REALM)))
    phone.nonce = b""
    assert code(phone.permit(PEER)) == 0
    assert code(phone.refresh()) == 401
    world.wait(601)
    assert world.server.allocations == 0


def test_random_bytes_are_never_a_token() -> None:
    rng = random.Random(7)
    assert not any(opened(rng.randbytes(rng.randrange(200))) for _ in range(2000))
