"""NAT behaviour discovery by bytes (RFC 5780; rules S1, S3, S4)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.turn_world import UDP, Phone, World, code
from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.alternates import alternates, fault
from wsgate.turn.discovery import Discovery, Place
from wsgate.turn.effects import Client, Reply
from wsgate.turn.stun import MessageClass, Method

HOSTS = (("192.0.2.10", "192.0.2.20"), ("2001:db8::10", "2001:db8::20"))
CLIENTS = ("198.51.100.1", "2001:db8:1::1")
PORTS = (3478, 3479)
PATHS = range(4)
CHANGES = {"none": 0, "port": 2, "address": 4, "both": 6}


class Discovering:
    """A server with four sockets of each family: paths 0 to 3 IPv4, 4 to 7 IPv6, 8 a stream."""

    def __init__(self, **options: Any) -> None:
        self.world = World(**options)
        places = [Address(host, port) for hosts in HOSTS for host in hosts for port in PORTS]
        fours = [[Place(path, places[path]) for path in range(first, first + 4)] for first in (0, 4)]
        self.places = places
        self.world.server.discovery = Discovery(fours)

    def ask(self, path: int, *fields: Any, six: bool = False, **options: Any) -> tuple[Client, stun.Message, int]:
        """Whom the answer to a Binding request goes to, the answer, and how many bytes more than the request it has."""
        client = Client(path, Address(CLIENTS[six], 40000))
        data = stun.encode(Method.BINDING, MessageClass.REQUEST, b"discovery123", fields, **options)
        bytes_max = self.world.server.datagram_bytes_max
        (reply,) = self.world.server.receive(data, client, self.world.now, bytes_max)
        assert isinstance(reply, Reply)
        return reply.client, stun.parse(reply.data), len(reply.data) - len(data)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("six", [False, True])
def test_the_answer_comes_from_where_the_flags_say(change: str, path: int, six: bool) -> None:
    """RFC 5780 §6.1, table 1."""
    world = Discovering()
    own = world.places[path + 4 * six]
    ports, hosts = set(PORTS), set(HOSTS[six])
    (other_port,), (other_host,) = ports - {own.port}, hosts - {own.host}
    expected = Address(other_host if change in ("address", "both") else own.host,
                       other_port if change in ("port", "both") else own.port)  # fmt: skip
    client, answer, _ = world.ask(path + 4 * six, stun.CHANGE_REQUEST(CHANGES[change]), six=six)
    assert world.places[client.path] == expected
    assert client.address == Address(CLIENTS[six], 40000)
    assert answer.get(stun.RESPONSE_ORIGIN) == expected
    assert answer.get(stun.OTHER_ADDRESS) == Address(other_host, other_port)
    assert answer.get(stun.MAPPED_ADDRESS) == answer.get(stun.XOR_MAPPED_ADDRESS) == client.address


@pytest.mark.parametrize(("six", "size"), [(False, 68), (True, 116)])
def test_a_plain_request_is_told_of_the_other_address_in_few_bytes(six: bool, size: int) -> None:
    """RFC 5780 §6.1 wants four addresses; rule S4 bounds the rest."""
    client, answer, more = Discovering().ask(4 * six, six=six)
    assert client.path == 4 * six
    assert answer.get(stun.OTHER_ADDRESS) == Address(HOSTS[six][1], PORTS[1])
    assert more + 20 == size == answer.size_bytes


def test_response_port_takes_the_answer_to_another_port_of_the_same_host() -> None:
    """RFC 5780 §7.5."""
    client, answer, _ = Discovering().ask(0, stun.RESPONSE_PORT(50000))
    assert client == Client(0, Address(CLIENTS[0], 50000))
    assert answer.get(stun.XOR_MAPPED_ADDRESS) == Address(CLIENTS[0], 40000)


@pytest.mark.parametrize("fingerprint", [False, True])
@pytest.mark.parametrize("size", [0, 4, 60, 500, 1500, 2000])
def test_a_padded_answer_is_padded_and_never_longer_than_its_request(size: int, fingerprint: bool) -> None:
    """RFC 5780 §6.1, §7.6; rule S4: as long as the request where that can be, never amplified by it."""
    _, answer, more = Discovering(unauthenticated_rate=10**6).ask(
        0, stun.PADDING(bytes(size)), stun.CHANGE_REQUEST(6), fingerprint=fingerprint
    )
    assert answer.get(stun.PADDING) is not None
    assert more <= 0 or answer.get(stun.PADDING) == b""
    if size >= 500:
        assert -4 < more <= 0


def test_padding_with_response_port_is_400() -> None:
    """RFC 5780 §6.1: it could be aimed at somebody."""
    client, answer, _ = Discovering().ask(0, stun.PADDING(bytes(100)), stun.RESPONSE_PORT(50000))
    assert code(answer) == 400
    assert client.address.port == 40000


@pytest.mark.parametrize("number", [0x0003, 0x0027])
def test_values_that_cannot_be_read_are_400(number: int) -> None:
    foreign = stun.Attribute(number, "FOREIGN", lambda value, _: value, lambda value, _: value)
    assert code(Discovering().ask(0, foreign(b"x"))[1]) == 400


def test_there_is_no_port_0_to_answer_to() -> None:
    assert code(Discovering().ask(0, stun.RESPONSE_PORT(0))[1]) == 400


def test_all_of_it_stays_under_the_unauthenticated_rate() -> None:
    """Rule S4: by the source's address, whatever port the answers go to and wherever they come from."""
    world = Discovering(unauthenticated_rate=4096)
    sent = 0
    for attempt in range(1000):
        fields = (stun.PADDING(bytes(1000)),) if attempt % 2 else (stun.RESPONSE_PORT(1000 + attempt),)
        data = stun.encode(Method.BINDING, MessageClass.REQUEST, bytes(12), (*fields, stun.CHANGE_REQUEST(attempt % 8)))
        effects = world.world.server.receive(data, Client(attempt % 4, Address(CLIENTS[0], attempt + 1)), 1000.0)
        sent += sum(len(effect.data) for effect in effects if isinstance(effect, Reply))
    assert 0 < sent <= 4096
    assert world.world.counters.values["turn_unauthenticated_limited"] > 900


@pytest.mark.parametrize("field", [stun.CHANGE_REQUEST(2), stun.RESPONSE_PORT(9), stun.PADDING(bytes(4))])
def test_420_on_every_other_way_in_and_for_every_other_method(field: Any) -> None:
    """RFC 5780 §6: streams and DTLS have no second port; rules S3, S4."""
    world = Discovering()
    assert code(world.ask(8, field)[1]) == 420
    assert world.ask(8)[1].get(stun.OTHER_ADDRESS) is None
    phone = Phone(world.world)
    assert code(phone.allocate(field)) == 420
    assert code(phone.ask(Method.ALLOCATE, UDP)) == 0


def test_requests_over_an_mtu_are_read_for_discovery_alone() -> None:
    """Rule S1 and the exception of RFC 5780 §7.6."""
    world, plain = Discovering(), World()
    assert plain.server.datagram_bytes_max == 1500
    data = stun.encode(Method.BINDING, MessageClass.REQUEST, bytes(12), (stun.PADDING(bytes(2100)),))
    assert world.world.server.receive(data, Client(0, Address(CLIENTS[0], 1)), 1.0, 2048) == []
    assert world.world.counters.values["turn_malformed_dropped"] == 1


FIRST = Address("192.0.2.1", 3478)


def test_three_sockets_stand_beside_the_first() -> None:
    udp = (FIRST, Address("192.0.2.1", 443), Address("2001:db8::1", 3478))
    found = list(alternates(udp, ("192.0.2.2", "2001:db8::2"), None))
    assert list(map(str, found)) == [
        "192.0.2.1:3479", "192.0.2.2:3478", "192.0.2.2:3479",
        "[2001:db8::1]:3479", "[2001:db8::2]:3478", "[2001:db8::2]:3479",
    ]  # fmt: skip
    assert fault(udp, ("192.0.2.2", "2001:db8::2"), None) is None
    assert [address.port for address in alternates((FIRST,), ("192.0.2.2",), 53)] == [53, 3478, 53]


@pytest.mark.parametrize(
    ("udp", "hosts", "port", "option"),
    [
        ((FIRST,), ("host.test",), None, "alternate_address"),
        ((FIRST,), ("192.0.2.1",), None, "alternate_address"),
        ((FIRST,), ("192.0.2.2", "192.0.2.3"), None, "alternate_address"),
        ((FIRST,), ("2001:db8::2",), None, "udp"),
        ((Address("0.0.0.0", 3478),), ("192.0.2.2",), None, "udp"),
        ((Address("192.0.2.1", 0),), ("192.0.2.2",), None, "udp"),
        ((FIRST,), ("192.0.2.2",), 3478, "alternate_port"),
        ((Address("192.0.2.1", 65535),), ("192.0.2.2",), None, "alternate_port"),
    ],
)
def test_what_cannot_be_is_told(
    udp: tuple[Address, ...], hosts: tuple[str, ...], port: int | None, option: str
) -> None:
    found = fault(udp, hosts, port)
    assert found is not None
    assert found.option == option
