"""`peer_policy = call`: credentials of a registration reach what its calls allow, and nothing else (rule P6)."""

from __future__ import annotations

import pytest

from tests.turn_world import PEER, REALM, RELAY, SECRET, Phone, World, code
from wsgate.addr import ANY_PORT, Address, parse_network
from wsgate.call_peers import CallPeers
from wsgate.turn.auth import Credentials, Registrations, SecretHash, UserKeys, long_term_key, time_limited_password
from wsgate.turn.effects import Bind, Permit, Revoke, SendToPeer, Unbind
from wsgate.turn.peers import Peers
from wsgate.turn.settings import PeerPolicy
from wsgate.turn.values import PasswordAlgorithm

ID = "0123456789abcdef01234567"
OTHER_PORT = Address(PEER.host, PEER.port + 1)
STRANGER = Address("8.8.4.4", 4000)
BESIDE = Address(RELAY, 50001)
"""Where the allocation of another client of the same server may be."""


class CallWorld(World):
    """A server with `peer_policy = call`, for users of a file, of a shared secret, and of registrations."""

    def __init__(self, policy: PeerPolicy = PeerPolicy.CALL) -> None:
        self.calls = CallPeers()
        super().__init__(calls=self.calls, peer_policy=policy)
        keys = {"alice": UserKeys(long_term_key("alice", REALM, "pw", PasswordAlgorithm.MD5))}
        self.registered_ids = {ID}
        registrations = Registrations((b"own",), self.registered_ids.__contains__)
        self.server.reload(Credentials(REALM, keys, [SECRET], registrations=registrations))

    def registered(self, port: int = 40000) -> Phone:
        """A client with credentials of the registration ID, and its allocation."""
        username = f"{int(self.now) + 600}:{ID}"
        phone = Phone(self, port, username, time_limited_password(b"own", username, SecretHash.SHA1))
        phone.relayed()
        return phone


def tried(phone: Phone, number: int, peer: Address) -> tuple[int, int, int]:
    """What CreatePermission and ChannelBind say (0: success), and how many packets a Send gives."""
    permit, bind = phone.permit(peer), phone.bind(number, peer)
    return code(permit), code(bind), sum(isinstance(effect, SendToPeer) for effect in phone.send(peer, b"x"))


def test_without_a_call_nothing_but_the_relay_range() -> None:
    world = CallWorld()
    phone = world.registered()
    assert tried(phone, 0x4000, PEER) == (403, 403, 0)
    assert world.counters.values["turn_peers_refused"] == 2
    assert tried(phone, 0x4000, BESIDE) == (0, 0, 1)
    assert tried(phone, 0x4001, Address(RELAY, 22)) == (0, 403, 0)


def test_a_call_may_be_longer_than_its_credentials_but_not_than_the_registration() -> None:
    """Rule A5: a browser keeps those that the call began with; only the end of the registration revokes them."""
    world = CallWorld(PeerPolicy.ANY)
    phone = world.registered()
    for _ in range(30):
        world.wait(299)
        assert code(phone.refresh()) in (0, 438)
        phone.nonce = b""
        assert tried(phone, 0x4000, PEER) == (0, 0, 1)
    assert code(Phone(world, 40001, phone.user, "guess").allocate()) == 401
    world.registered_ids.clear()
    assert code(phone.refresh()) == code(phone.permit(PEER)) == 401


def test_what_the_call_names_is_open_by_address_and_port() -> None:
    world = CallWorld()
    phone = world.registered()
    world.calls.open(ID, [PEER])
    assert tried(phone, 0x4000, PEER) == (0, 0, 1)
    assert tried(phone, 0x4001, OTHER_PORT) == (0, 403, 0)
    assert tried(phone, 0x4001, STRANGER) == (403, 403, 0)
    assert tried(phone, 0x4001, Address(f"::ffff:{PEER.host}", PEER.port))[:2] == (443, 443)


def test_a_candidate_behind_a_nat_is_open_on_any_port() -> None:
    world = CallWorld()
    phone = world.registered()
    world.calls.open(ID, [Address(PEER.host, ANY_PORT)])
    assert tried(phone, 0x4000, OTHER_PORT) == (0, 0, 1)


def test_all_or_none_of_a_list() -> None:
    world = CallWorld()
    phone = world.registered()
    world.calls.open(ID, [PEER])
    assert code(phone.permit(PEER, STRANGER)) == 403
    assert phone.effects == []


def test_the_end_of_the_call_takes_away_what_was_installed() -> None:
    world = CallWorld()
    phone, second = world.registered(), world.registered(40001)
    opened = world.calls.open(ID, [PEER])
    for one in (phone, second):
        assert tried(one, 0x4000, PEER) == (0, 0, 1)
    assert tried(phone, 0x4001, BESIDE) == (0, 0, 1)
    world.calls.close(ID, opened)
    # A Send is asked at once, before anything is taken away.
    assert phone.send(PEER, b"x") == []
    effects = world.server.reconsider_registrations(world.calls.take_narrowed())
    assert [type(effect) for effect in effects] == [Revoke, Unbind, Revoke, Unbind]
    assert {effect.host for effect in effects if isinstance(effect, Revoke)} == {PEER.host}
    assert tried(phone, 0x4002, PEER) == (403, 403, 0)
    assert tried(phone, 0x4001, BESIDE) == (0, 0, 1)


def test_media_that_moves_leaves_the_old_port() -> None:
    """A re-INVITE to another port of the same host: the permission stays, the channel goes."""
    world = CallWorld()
    phone = world.registered()
    opened = world.calls.open(ID, [PEER])
    phone.permit(PEER)
    phone.bind(0x4000, PEER)
    world.calls.open(ID, [OTHER_PORT])
    world.calls.close(ID, opened)
    (effect,) = world.server.reconsider_registrations(world.calls.take_narrowed())
    assert isinstance(effect, Unbind)
    assert code(phone.bind(0x4001, OTHER_PORT)) == 0
    assert any(isinstance(one, Bind) for one in phone.effects)


def test_the_calls_of_one_are_not_those_of_another() -> None:
    world = CallWorld()
    phone = world.registered()
    world.calls.open("f" * 24, [PEER])
    assert tried(phone, 0x4000, PEER) == (403, 403, 0)


@pytest.mark.parametrize("is_static", [True, False])
def test_who_has_no_registration_has_no_calls_here(is_static: bool) -> None:
    """Users of the file and of shared secrets reach the relay range, whatever calls there are, even ones of that id."""
    world = CallWorld()
    username = f"{int(world.now) + 600}:{ID}"
    secret = time_limited_password(SECRET, username, SecretHash.SHA1)
    phone = Phone(world) if is_static else Phone(world, 40000, username, secret)
    phone.relayed()
    world.calls.open(ID, [PEER])
    assert tried(phone, 0x4000, PEER) == (403, 403, 0)
    assert tried(phone, 0x4000, BESIDE) == (0, 0, 1)


def test_it_never_widens() -> None:
    """Rule P5 comes first: a refused address stays refused, whoever's SDP it stands in."""
    world = CallWorld()
    phone = world.registered()
    refused = [Address("127.0.0.1", 5060), Address("10.1.1.1", 4000), Address("169.254.169.254", 80)]
    world.calls.open(ID, [*refused, Address(RELAY, 5060)])
    world.server.peers.forbid([PEER])
    world.calls.open(ID, [PEER])
    for peer in refused:
        assert tried(phone, 0x4000, peer) == (403, 403, 0)
    for peer in (PEER, Address(RELAY, 5060)):
        assert tried(phone, 0x4000, peer) == (0, 403, 0)
    world.server.peers = Peers(own_hosts=[RELAY], relay_ports=(50000, 50999), allow=(parse_network("10.0.0.0/8"),))
    assert tried(phone, 0x4000, refused[1]) == (0, 0, 1)
    assert tried(phone, 0x4001, Address("10.1.1.2", 4000)) == (403, 403, 0)


def test_the_relays_host_named_in_allow_peers_is_no_relay_range() -> None:
    world = CallWorld()
    phone = world.registered()
    world.server.peers = Peers(own_hosts=[RELAY], relay_ports=(50000, 50999), allow=(parse_network(RELAY),))
    assert tried(phone, 0x4000, Address(RELAY, 4000)) == (0, 403, 0)
    world.calls.open(ID, [Address(RELAY, 4000)])
    assert tried(phone, 0x4000, Address(RELAY, 4000)) == (0, 0, 1)


def test_any_asks_rule_p5_alone() -> None:
    world = CallWorld(PeerPolicy.ANY)
    phone = world.registered()
    assert code(phone.permit(PEER)) == 0
    assert any(isinstance(effect, Permit) for effect in phone.effects)
    assert tried(phone, 0x4000, STRANGER) == (0, 0, 1)
