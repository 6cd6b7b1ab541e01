"""Which peers are refused: the table of rule P5, every embedding, both questions."""

from __future__ import annotations

import ipaddress

import pytest

from wsgate.addr import Address, Network
from wsgate.turn.peers import REFUSED_NETWORKS, Peers, embedded

RELAY = "198.41.0.9"
PORTS = (50000, 50100)


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def peers(
    allow: tuple[str, ...] = (), deny: tuple[str, ...] = (), forbidden: tuple[Address, ...] = (), own: str = RELAY
) -> Peers:
    return Peers(own_hosts=[own], relay_ports=PORTS, allow=networks(*allow), deny=networks(*deny), forbidden=forbidden)


def embeddings(host: str) -> list[str]:
    """Every way in which an IPv6 address stands for an IPv4 one (rule P5)."""
    packed = ipaddress.IPv4Address(host).packed
    inverted = bytes(255 - one for one in packed)
    other = ipaddress.IPv4Address("8.8.4.4").packed
    raw = {
        "mapped": bytes(10) + b"\xff\xff" + packed,
        "compatible": bytes(12) + packed,
        "translated": bytes(8) + b"\xff\xff\0\0" + packed,
        "nat64": bytes.fromhex("0064ff9b") + bytes(8) + packed,
        "nat64 local /96": bytes.fromhex("0064ff9b0001") + bytes(6) + packed,
        "nat64 local /48": bytes.fromhex("0064ff9b0001") + packed[:2] + b"\0" + packed[2:] + bytes(5),
        "6to4": b"\x20\x02" + packed + bytes(9) + b"\1",
        "teredo client": bytes.fromhex("20010000") + other + bytes(4) + inverted,
        "teredo server": bytes.fromhex("20010000") + packed + bytes(4) + bytes(255 - one for one in other),
        "isatap": bytes.fromhex("2a00145040070810" + "00005efe") + packed,
        "isatap universal": bytes.fromhex("2a00145040070810" + "02005efe") + packed,
    }
    return [str(ipaddress.IPv6Address(value)) for value in raw.values()]


def first_and_last(text: str) -> list[str]:
    network = ipaddress.ip_network(text)
    return [str(network[0]), str(network[-1])]


REFUSED_HOSTS = [host for text, _ in REFUSED_NETWORKS for host in first_and_last(text)]
METADATA = ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"]
BROADCAST = ["255.255.255.255"]
RESERVED = ["201:5ade::1", "300::1", "5f00::1", "6000::1", "bfff::1", "dfff::1", "fbff::1", "fe00::1"]
"""Of IPv6 only 2000::/3 is in use as global unicast (RFC 4291 §2.4); overlay networks take what they like."""


@pytest.mark.parametrize("host", REFUSED_HOSTS + METADATA + BROADCAST + RESERVED)
def test_refused_by_default(host: str) -> None:
    assert not peers().host_allowed(host)
    assert not peers().allowed(Address(host, 4000))


@pytest.mark.parametrize(
    "host", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2a00:1450:4007:810::1", "11.0.0.1"]
)
def test_ordinary_peers_are_allowed(host: str) -> None:
    assert peers().host_allowed(host)
    assert peers().allowed(Address(host, 4000))


@pytest.mark.parametrize(
    "inner",
    [host for text, _ in REFUSED_NETWORKS if ":" not in text for host in first_and_last(text)] + ["169.254.169.254"],
)
def test_every_embedding_of_a_refused_address_is_refused(inner: str) -> None:
    table = peers()
    assert [host for host in embeddings(inner) if table.host_allowed(host)] == []


def test_embeddings_of_an_ordinary_address_are_allowed_but_for_the_local_prefix() -> None:
    table = peers()
    refused = [host for host in embeddings("8.8.8.8") if not table.host_allowed(host)]
    assert all(host.startswith("64:ff9b:1:") for host in refused)
    assert len(refused) == 2


def test_embedded_finds_server_and_client_of_teredo() -> None:
    """RFC 4380 §4: the example of §5.2.1's form."""
    address = ipaddress.IPv6Address("2001:0:4136:e378:8000:63bf:3fff:fdd2")
    assert set(map(str, embedded(address))) == {"65.54.227.120", "192.0.2.45"}


@pytest.mark.parametrize("host", ["", "name.example", "10.0.0.1.2", "999.1.1.1", "::g"])
def test_what_is_no_address_is_refused(host: str) -> None:
    assert not peers().host_allowed(host)


def test_allow_peers_makes_exceptions_and_deny_peers_wins() -> None:
    table = peers(allow=("10.0.0.0/8",), deny=("10.9.0.0/16", "8.8.8.0/24", "2a00::/16"))
    assert table.allowed(Address("10.1.2.3", 30000))
    assert table.allowed(Address("::ffff:10.1.2.3", 30000))
    assert not table.host_allowed("10.9.1.1")
    assert not table.host_allowed("8.8.8.8")
    assert not table.host_allowed("64:ff9b::8.8.8.8")
    assert not table.host_allowed("2a00::1")
    assert not table.host_allowed("192.168.1.1")


@pytest.mark.parametrize("own", [RELAY, "10.0.0.5", "127.0.0.1"])
def test_of_the_relays_own_address_only_the_relay_range(own: str) -> None:
    """Two browsers behind the same server reach each other, and nothing else on it (rule P5)."""
    table = peers(own=own)
    assert table.host_allowed(own)
    assert table.allowed(Address(own, PORTS[0]))
    assert table.allowed(Address(own, PORTS[1]))
    assert not table.allowed(Address(own, PORTS[0] - 1))
    assert not table.allowed(Address(own, PORTS[1] + 1))
    assert not table.port_allowed(f"::ffff:{own}", 3478)
    assert table.port_allowed(f"::ffff:{own}", PORTS[0])


def test_a_network_around_the_relays_address_does_not_open_it_but_its_name_does() -> None:
    assert not peers(own="10.0.0.5", allow=("10.0.0.0/8",)).allowed(Address("10.0.0.5", 30000))
    assert peers(own="10.0.0.5", allow=("10.0.0.5/32",)).allowed(Address("10.0.0.5", 30000))


def test_the_other_addresses_of_this_machine_are_no_peers_but_by_name() -> None:
    """Rule P5: of this machine the relay range and nothing else. Its firewall does not see what it sends to itself."""
    others = ("198.41.0.10", "2600::7", "10.0.0.5")
    allow = networks("198.41.0.0/16", "10.0.0.0/8")
    table = Peers(own_hosts=[RELAY], relay_ports=PORTS, allow=allow, machine_hosts=(RELAY, *others))
    for host in (*others, "::ffff:198.41.0.10", "2002:c629:a::1", "64:ff9b::c629:a"):
        assert not table.host_allowed(host)
        assert not table.allowed(Address(host, PORTS[0]))
    assert table.allowed(Address(RELAY, PORTS[0]))
    assert table.allowed(Address("198.41.0.11", 6379))
    table.forbid([], [Address("198.41.0.10", 5060)])
    assert table.allowed(Address("198.41.0.10", 12000))  # a backend sends RTP from its SIP address
    assert not table.allowed(Address("198.41.0.10", 5060))
    assert not table.host_allowed("2600::7")
    named = Peers(own_hosts=[RELAY], relay_ports=PORTS, allow=networks("10.0.0.5/32"), machine_hosts=others)
    assert named.allowed(Address("10.0.0.5", 12000))


def test_forbidden_addresses_are_refused_with_their_port_and_no_list_opens_them() -> None:
    """Own listeners and the SIP transport addresses of backends; the rest of a backend is an ordinary peer (P5)."""
    backend, listener = Address("10.0.0.7", 5060), Address("10.0.0.5", 443)
    table = peers(own="10.0.0.5", allow=("10.0.0.7/32", "10.0.0.5/32"), forbidden=(backend, listener))
    assert table.host_allowed("10.0.0.7")
    assert not table.allowed(backend)
    assert not table.allowed(Address("::ffff:10.0.0.7", 5060))
    assert not table.allowed(listener)
    assert table.allowed(Address("10.0.0.7", 5061))
    assert table.allowed(Address("10.0.0.7", 12000))


def test_forbidden_addresses_inside_the_relay_range_are_refused() -> None:
    table = peers(forbidden=(Address(RELAY, 50001),))
    assert not table.allowed(Address(RELAY, 50001))
    assert table.allowed(Address(RELAY, 50002))


def test_forbid_replaces_the_set() -> None:
    table = peers(forbidden=(Address("8.8.8.8", 5060),))
    table.forbid([Address("::ffff:8.8.8.8", 5080)])
    assert table.allowed(Address("8.8.8.8", 5060))
    assert not table.allowed(Address("8.8.8.8", 5080))


def test_port_zero_is_nobody() -> None:
    assert not peers().allowed(Address("8.8.8.8", 0))
