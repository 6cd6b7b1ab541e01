"""No refused address is reached through the relay on real sockets, in whatever notation it is asked for (rule P5)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.loopback.test_turn_credentials import status
from tests.loopback.turn_site import Phone, Site, silent, udp
from tests.test_peers import BROADCAST, METADATA, REFUSED_HOSTS, embeddings
from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.stun import Method
from wsgate.turn.values import Family

OWN_HOSTS = ("127.0.0.1", "::1")
ALLOWED_HOST, REFUSED_HOST = "127.0.0.5", "127.0.0.2"


@pytest.fixture
def site() -> Iterator[Site]:
    """A relay of both families, with the list as it is but for one address."""
    relays = tuple((host, host) for host in OWN_HOSTS)
    made = Site(relays=relays, allow=(ALLOWED_HOST + "/32",), relay_ports=(61500, 61999))
    yield made
    made.close()


class Attacker(Phone):
    """A user with an allocation of both families."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.site = site
        self.allocate(stun.ADDITIONAL_ADDRESS_FAMILY(Family.IPV6))

    def try_all(self, peer: Address) -> tuple[int, int]:
        """CreatePermission, ChannelBind and Send; what was answered."""
        permitted = status(self.ask(Method.CREATE_PERMISSION, stun.XOR_PEER_ADDRESS(peer)))
        bound = status(self.ask(Method.CHANNEL_BIND, stun.CHANNEL_NUMBER(0x4000), stun.XOR_PEER_ADDRESS(peer)))
        self.send(peer, b"GET / HTTP/1.0\r\n\r\n")
        self.channel(0x4000, b"GET / HTTP/1.0\r\n\r\n")
        return permitted, bound

    def sent(self) -> int:
        """How many packets left for peers, once all that was asked is done."""
        assert status(self.ask(Method.REFRESH)) == 0
        return self.site.relay.to_peers + self.site.counters.get("turn_packets_to_peers", 0)


def test_what_is_allowed_is_reached(site: Site) -> None:
    attacker, peer = Attacker(site), udp(ALLOWED_HOST)
    assert attacker.try_all(Address(*peer.getsockname())) == (0, 0)
    assert attacker.sent() == 2
    assert peer.recv(100) == peer.recv(100) == b"GET / HTTP/1.0\r\n\r\n"


def test_no_refused_range_is_reached(site: Site) -> None:
    attacker, victim = Attacker(site), udp(REFUSED_HOST)
    port = victim.getsockname()[1]
    hosts = [host for host in (*REFUSED_HOSTS, *METADATA, *BROADCAST, REFUSED_HOST) if host not in OWN_HOSTS]
    assert [host for host in hosts if attacker.try_all(Address(host, port)) != (403, 403)] == []
    assert attacker.sent() == 0
    assert silent(victim)
    assert site.counters["turn_peers_refused"] == 2 * len(hosts)


def test_nor_in_another_notation(site: Site) -> None:
    """Mapped, compatible, translated, both NAT64 prefixes, 6to4, Teredo, ISATAP."""
    attacker, victim = Attacker(site), udp(REFUSED_HOST)
    port = victim.getsockname()[1]
    inner = [REFUSED_HOST, *(host for host in (*REFUSED_HOSTS, *METADATA, *BROADCAST) if ":" not in host)]
    hosts = [host for one in inner for host in embeddings(one)]
    assert len(hosts) > 300
    assert [host for host in hosts if attacker.try_all(Address(host, port)) != (403, 403)] == []
    assert attacker.sent() == 0
    assert silent(victim)


@pytest.mark.parametrize("own", OWN_HOSTS)
def test_of_the_relays_own_address_nothing_but_the_relay_range(site: Site, own: str) -> None:
    """A port outside relay_ports: dropped on Send, 403 on ChannelBind."""
    attacker, service = Attacker(site), udp(own)
    place = Address(own, service.getsockname()[1])
    assert not 61500 <= place.port <= 61999
    assert attacker.try_all(place) == (0, 403)
    if own == "127.0.0.1":
        codes = [attacker.try_all(Address(host, place.port)) for host in embeddings(own)]
        assert {bound for _, bound in codes} == {403}
    assert attacker.sent() == 0
    assert silent(service)
    other = Phone(site)
    inside = other.allocate(stun.REQUESTED_ADDRESS_FAMILY(Family.IPV6 if ":" in own else Family.IPV4))
    assert attacker.try_all(inside) == (0, 0)
    assert attacker.sent() == 2
