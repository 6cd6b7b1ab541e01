"""Permissions, channels and Send by bytes (rules P1 to P3, P5)."""

from __future__ import annotations

from tests.turn_world import PEER, RELAY, Phone, World, code
from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.effects import Bind, Permit, Revoke, SendToPeer, Unbind
from wsgate.turn.settings import ChannelRange
from wsgate.turn.stun import MessageClass, Method


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
