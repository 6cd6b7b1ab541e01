"""The TURN client machine: against the server in memory, and by bytes (rules A1, A3; RFC 8489 §6.2, §9.2)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.turn_world import REALM, RELAY, UDP, World
from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.auth import Credentials, UserKeys, long_term_key
from wsgate.turn.client import Answered, FromPeer, Refused, Transmit, TurnClient, Unanswered
from wsgate.turn.effects import Client, Effect, Reply, SendToPeer
from wsgate.turn.stun import Integrity, Message, MessageClass, Method
from wsgate.turn.uri import TurnUri, parse_uri
from wsgate.turn.values import ErrorCode, PasswordAlgorithm


class Pair:
    """A client and the server it talks to; `requests` is what the server got."""

    def __init__(self, user: str = "alice", password: str = "pw", **options: Any) -> None:
        self.world = World(**options)
        self.machine = TurnClient(user, password, random.Random(5).randbytes, reliable=False)
        self.client = Client(0, Address("192.0.2.1", 40000))
        self.requests: list[Message] = []

    def call(self, method: int, *fields: Any) -> Any:
        """The end of a request."""
        effects: list[Any] = self.machine.request(method, fields, self.world.now)
        while effects:
            effect = effects.pop(0)
            if not isinstance(effect, Transmit):
                return effect
            self.requests.append(stun.parse(effect.data))
            for answer in self.world.receive(effect.data, self.client):
                if isinstance(answer, Reply):
                    effects += self.machine.receive(answer.data, self.world.now)
        return None


def open_request(machine: TurnClient, method: int, now: float = 0.0) -> Message:
    """Begin a request; the message that was sent."""
    (sent,) = machine.request(method, (), now)
    assert isinstance(sent, Transmit)
    return stun.parse(sent.data)


def lone(user: str = "alice", *, reliable: bool = False) -> TurnClient:
    return TurnClient(user, "pw", random.Random(6).randbytes, reliable=reliable)


def test_a_challenge_is_answered_with_the_algorithm_that_the_server_wants_most() -> None:
    """Rules A1, A3."""
    pair = Pair()
    end = pair.call(Method.ALLOCATE, UDP)
    assert isinstance(end, Answered)
    assert end.message.get(stun.XOR_RELAYED_ADDRESS) is not None
    bare, signed = pair.requests
    assert bare.integrity is None
    assert signed.integrity is Integrity.SHA256
    assert signed.get(stun.PASSWORD_ALGORITHM) == PasswordAlgorithm.SHA256
    assert bare.transaction_id != signed.transaction_id
    assert isinstance(pair.call(Method.REFRESH, stun.LIFETIME(0)), Answered)
    assert len(pair.requests) == 3, "the nonce is used again"


def test_md5_where_a_user_has_no_other_key_and_a_user_hash_where_names_are_listed() -> None:
    """Rule A3; RFC 8489 §9.2.3 wants USERHASH where the nonce says so."""
    pair = Pair()
    keys = UserKeys(long_term_key("alice", REALM, "pw", PasswordAlgorithm.MD5))
    pair.world.server.reload(Credentials(REALM, {"alice": keys}))
    assert isinstance(pair.call(Method.ALLOCATE, UDP), Answered)
    assert pair.requests[-1].get(stun.PASSWORD_ALGORITHM) == PasswordAlgorithm.MD5
    assert pair.requests[-1].get(stun.USERNAME) is None
    assert pair.requests[-1].get(stun.USERHASH) is not None


def test_a_wrong_password_is_one_refusal() -> None:
    pair = Pair(password="wrong")
    end = pair.call(Method.ALLOCATE, UDP)
    assert isinstance(end, Refused)
    assert end.error.code == 401
    assert len(pair.requests) == 2


def test_without_a_user_the_challenge_is_the_end() -> None:
    end = Pair(user="").call(Method.ALLOCATE, UDP)
    assert isinstance(end, Refused)
    assert end.error.code == 401


def test_a_stale_nonce_is_taken_anew() -> None:
    """Rule A2 from the other side."""
    pair = Pair()
    pair.call(Method.ALLOCATE, UDP)
    pair.world.now += 601
    pair.world.server.handle_timer(pair.world.now)
    end = pair.call(Method.ALLOCATE, UDP)
    assert isinstance(end, Answered), "438, then with the new nonce"
    assert len(pair.requests) == 4


def test_a_server_that_calls_every_nonce_stale_is_given_up() -> None:
    machine = lone()
    fields = (stun.ERROR_CODE(ErrorCode(438, "Stale")), stun.REALM("r"), stun.NONCE(b"n"))
    effects: list[Any] = machine.request(Method.ALLOCATE, (), 0.0)
    sent = 0
    while isinstance(effects[0], Transmit):
        sent += 1
        request = stun.parse(effects[0].data)
        effects = machine.receive(
            stun.encode(Method.ALLOCATE, MessageClass.ERROR, request.transaction_id, fields), 0.0
        )  # fmt: skip
    assert isinstance(effects[0], Refused)
    assert sent == 4


def test_a_list_of_algorithms_that_was_taken_out_is_not_believed() -> None:
    """RFC 8489 §9.2.5: the nonce says that there is one."""
    machine = lone()
    request = open_request(machine, Method.ALLOCATE)
    fields = (stun.ERROR_CODE(ErrorCode(401, "Who")), stun.REALM("r"), stun.NONCE(b"obMatJos2AAABxyz"))
    (end,) = machine.receive(stun.encode(Method.ALLOCATE, MessageClass.ERROR, request.transaction_id, fields), 0.0)
    assert isinstance(end, Refused)


def test_a_server_of_rfc_5389_gets_md5_and_sha1_and_must_sign_its_success() -> None:
    """RFC 8489 §9.2.5; a forged success is no answer."""
    machine = lone()
    request = open_request(machine, Method.ALLOCATE)
    fields = (stun.ERROR_CODE(ErrorCode(401, "Who")), stun.REALM("r"), stun.NONCE(b"n"))
    (again,) = machine.receive(stun.encode(Method.ALLOCATE, MessageClass.ERROR, request.transaction_id, fields), 0.0)
    assert isinstance(again, Transmit)
    signed = stun.parse(again.data)
    key = long_term_key("alice", "r", "pw", PasswordAlgorithm.MD5)
    assert signed.integrity is Integrity.SHA1
    assert signed.verify(key)
    assert signed.get(stun.USERNAME) == "alice"

    def answer(**options: Any) -> list[Any]:
        data = stun.encode(Method.ALLOCATE, MessageClass.SUCCESS, signed.transaction_id, (), **options)
        return list(machine.receive(data, 1.0))

    assert answer() == []
    assert answer(integrity=(Integrity.SHA1, bytes(16))) == []
    (end,) = answer(integrity=(Integrity.SHA1, key))
    assert isinstance(end, Answered)
    assert end.seconds == 1.0
    assert answer(integrity=(Integrity.SHA1, key)) == [], "nothing is open any more"


def test_forged_answers_are_told_of_when_nothing_better_comes() -> None:
    machine = lone()
    request = open_request(machine, Method.ALLOCATE)
    fields = (stun.ERROR_CODE(ErrorCode(401, "Who")), stun.REALM("r"), stun.NONCE(b"n"))
    (again,) = machine.receive(stun.encode(Method.ALLOCATE, MessageClass.ERROR, request.transaction_id, fields), 0.0)
    assert isinstance(again, Transmit)
    transaction_id = stun.parse(again.data).transaction_id
    machine.receive(stun.encode(Method.ALLOCATE, MessageClass.SUCCESS, transaction_id, ()), 1.0)
    assert machine.handle_timer(39.5) == [Unanswered(39.5, 1)]


def test_retransmissions_come_by_rfc_8489() -> None:
    """RFC 8489 §6.2.1: 0, 500, 1500, 3500, 7500, 15500, 31500 ms, and the end at 39.5 s."""
    machine = lone()
    first = machine.request(Method.BINDING, (), 0.0)
    times, effects = [0.0], list[Any]()
    while (at := machine.next_timer()) is not None:
        assert machine.handle_timer(at - 0.01) == []
        effects = list(machine.handle_timer(at))
        if isinstance(effects[0], Transmit):
            assert effects == first
            times.append(at)
    assert times == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert effects == [Unanswered(39.5, 0)]


def test_over_a_stream_nothing_is_sent_twice() -> None:
    """RFC 8489 §6.2.2."""
    machine = lone(reliable=True)
    machine.request(Method.BINDING, (), 0.0)
    assert machine.next_timer() == 39.5
    assert machine.handle_timer(39.5) == [Unanswered(39.5, 0)]
    assert machine.next_timer() is None


def test_data_of_peers_comes_by_indication_and_by_channel() -> None:
    machine = lone()
    peer = Address("192.0.2.9", 9)
    fields = (stun.XOR_PEER_ADDRESS(peer), stun.DATA(b"abc"))
    data = stun.encode(Method.DATA, MessageClass.INDICATION, bytes(12), fields)
    assert machine.receive(data, 0.0) == [FromPeer(peer, 0, b"abc")]
    assert machine.receive(b"\x40\x01\x00\x03abc\x00", 0.0) == [FromPeer(None, 0x4001, b"abc")]
    assert machine.receive(b"\x40\x01\x00\x09abc", 0.0) == []


@pytest.mark.parametrize("data", [b"", b"x", b"\x00\x01\x00\x00", bytes(40), b"\xff" * 30])
def test_garbage_is_dropped(data: bytes) -> None:
    machine = lone()
    machine.request(Method.BINDING, (), 0.0)
    assert machine.receive(data, 0.0) == []


def test_what_it_sends_to_peers_the_server_relays() -> None:
    pair = Pair()
    pair.call(Method.ALLOCATE, UDP)
    peer = Address("8.8.8.8", 99)
    pair.call(Method.CREATE_PERMISSION, stun.XOR_PEER_ADDRESS(peer))
    effects: list[Effect] = pair.world.receive(pair.machine.send(peer, b"hello").data, pair.client)
    (sent,) = effects
    assert isinstance(sent, SendToPeer)
    assert (sent.relay.host, sent.peer, sent.data) == (RELAY, peer, b"hello")
    assert pair.machine.send_on_channel(0x4000, b"abc").data == b"\x40\x00\x00\x03abc"
    assert lone(reliable=True).send_on_channel(0x4000, b"abc").data == b"\x40\x00\x00\x03abc\x00"


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("stun:a.test", TurnUri("stun", "a.test", 3478, "udp")),
        ("turn:a.test", TurnUri("turn", "a.test", 3478, "udp")),
        ("turn:A.test:99?transport=tcp", TurnUri("turn", "a.test", 99, "tcp")),
        ("turns:a.test", TurnUri("turns", "a.test", 5349, "tcp")),
        ("turns:[::1]:443?transport=udp", TurnUri("turns", "::1", 443, "udp")),
        ("TURN:192.0.2.1", TurnUri("turn", "192.0.2.1", 3478, "udp")),
    ],
)
def test_uris(text: str, uri: TurnUri) -> None:
    """RFC 7064 §3.1, RFC 7065 §3.1."""
    assert parse_uri(text) == uri
    assert parse_uri(str(uri)) == uri


@pytest.mark.parametrize(
    "text", ["", "a.test", "http://a.test", "turn://a.test", "turn:", "turn:a?transport=sctp", "stun:a?transport=udp",
             "turn:a:0", "turn:a:99999", "turn:[::1", "turn:a b"],
)  # fmt: skip
def test_what_is_no_uri_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_uri(text)
