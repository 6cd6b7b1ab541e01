"""Which peers a client may relay to: one table, two questions (rule P5).

*Is any port of this address allowed?* `host_allowed`, for CreatePermission. *Is this address and port allowed?*
`allowed`, for ChannelBind, Send and what arrives. Admittance asks both for a user, and its calls as well (rule P6).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from wsgate.addr import Address, IPAddress, Network, canonical_host, canonical_ip
from wsgate.call_peers import CallPeers
from wsgate.turn.auth import REGISTERED_MARK

REFUSED_NETWORKS: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "unspecified, this network (RFC 791 §3.2)"),
    ("10.0.0.0/8", "private (RFC 1918)"),
    ("100.64.0.0/10", "carrier (RFC 6598); a metadata address of one cloud"),
    ("127.0.0.0/8", "loopback (RFC 1122 §3.2.1.3)"),
    ("168.63.129.16/32", "metadata of one cloud"),
    ("169.254.0.0/16", "link-local, metadata of most clouds (RFC 3927)"),
    ("172.16.0.0/12", "private (RFC 1918)"),
    ("192.0.0.0/24", "protocol assignments, metadata of one cloud (RFC 6890)"),
    ("192.0.2.0/24", "documentation (RFC 5737)"),
    ("192.88.99.0/24", "6to4 relays, withdrawn (RFC 7526)"),
    ("192.168.0.0/16", "private (RFC 1918)"),
    ("198.18.0.0/15", "benchmarks (RFC 2544)"),
    ("198.51.100.0/24", "documentation (RFC 5737)"),
    ("203.0.113.0/24", "documentation (RFC 5737)"),
    ("224.0.0.0/4", "multicast (RFC 5771)"),
    ("240.0.0.0/4", "reserved and broadcast (RFC 1112, RFC 919)"),
    ("::/128", "unspecified (RFC 4291)"),
    ("::1/128", "loopback (RFC 4291)"),
    ("64:ff9b:1::/48", "NAT64 of this site: where its IPv4 address stands is local knowledge (RFC 8215)"),
    ("100::/63", "discard, dummy (RFC 6666, RFC 9780)"),
    ("200::/7", "reserved (RFC 4048); overlay networks are made of it"),
    ("400::/6", "reserved (RFC 4291 §2.4)"),
    ("800::/5", "reserved"),
    ("1000::/4", "reserved"),
    ("2001:2::/48", "benchmarks (RFC 5180)"),
    ("2001:10::/28", "ORCHID (RFC 4843)"),
    ("2001:20::/28", "ORCHIDv2 (RFC 7343)"),
    ("2001:db8::/32", "documentation (RFC 3849)"),
    ("3fff::/20", "documentation (RFC 9637)"),
    ("4000::/2", "reserved; segment routing in 5f00::/16 (RFC 9602)"),
    ("8000::/2", "reserved"),
    ("c000::/3", "reserved"),
    ("e000::/4", "reserved"),
    ("f000::/5", "reserved"),
    ("f800::/6", "reserved"),
    ("fc00::/7", "unique local, metadata (RFC 4193)"),
    ("fe00::/9", "reserved"),
    ("fe80::/10", "link-local (RFC 4291)"),
    ("fec0::/10", "site-local, withdrawn (RFC 3879)"),
    ("ff00::/8", "multicast (RFC 4291)"),
)

_Range = tuple[int, int, int]  # IP version, mask, network

_COMPATIBLE = ipaddress.IPv6Network("::/96")
_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP_INTERFACE = 0x00005EFE
_UNIVERSAL_BIT = 0x02000000


def _ranges(networks: Iterable[Network]) -> tuple[_Range, ...]:
    return tuple((network.version, int(network.netmask), int(network.network_address)) for network in networks)


_REFUSED = _ranges(ipaddress.ip_network(text) for text, _ in REFUSED_NETWORKS)


def _lies_in(address: IPAddress, ranges: tuple[_Range, ...]) -> bool:
    value, version = int(address), address.version
    return any(value & mask == network for of_version, mask, network in ranges if of_version == version)


def embedded(address: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, ...]:
    """Every IPv4 address that `address` stands for on its way (rule P5).

    Mapped and compatible (RFC 4291 §2.5.5), translated (RFC 2765), NAT64 (RFC 6052), 6to4 (RFC 3056), Teredo with its
    server and its client (RFC 4380 §4), ISATAP (RFC 5214 §6.1).
    """
    found: list[ipaddress.IPv4Address] = []
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None:
        found.append(address.ipv4_mapped)
    elif address in _NAT64 or address in _TRANSLATED or (address in _COMPATIBLE and int(address) > 1):
        found.append(low)
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found.extend(address.teredo)
    if int(address) >> 32 & 0xFFFFFFFF & ~_UNIVERSAL_BIT == _ISATAP_INTERFACE:
        found.append(low)
    return tuple(found)


class Peers:
    """The table of rule P5 for one server.

    `allow` makes exceptions to the built-in list, `deny` adds to it and wins. `own_hosts` are the relay's addresses (as
    bound and as seen from outside): of them only `relay_ports` are allowed, unless `allow` names exactly that host. Of
    `machine_hosts`, the other addresses of this machine, nothing is: what listens behind its firewall would take the
    relay for a neighbour. A backend among them stays a peer like any other: it sends RTP from there.
    """

    def __init__(
        self,
        *,
        own_hosts: Iterable[str],
        relay_ports: tuple[int, int],
        allow: tuple[Network, ...] = (),
        deny: tuple[Network, ...] = (),
        forbidden: Iterable[Address] = (),
        machine_hosts: Iterable[str] = (),
    ) -> None:
        self._own = frozenset(str(ipaddress.ip_address(host)) for host in own_hosts)
        self._low_port, self._high_port = relay_ports
        self._allow = _ranges(allow)
        self._deny = _ranges(deny)
        named = {str(network.network_address) for network in allow if network.num_addresses == 1}
        self._closed = self._own - named
        self._machine = frozenset(str(ipaddress.ip_address(host)) for host in machine_hosts) - self._own - named
        self._forbidden: frozenset[tuple[str, int]] = frozenset()
        self._backends: frozenset[str] = frozenset()
        self.forbid(forbidden)

    def forbid(self, listeners: Iterable[Address], backends: Iterable[Address] = ()) -> None:
        """Take these as the addresses and ports that no list opens: own listeners, control and metrics ports, SIP
        transport addresses of backends. Hosts are numeric and each interface is named; replaces what was there."""
        of_backends = frozenset((str(canonical_ip(ipaddress.ip_address(host))), port) for host, port in backends)
        self._backends = frozenset(host for host, _ in of_backends)
        self._forbidden = of_backends.union(
            (str(canonical_ip(ipaddress.ip_address(host))), port) for host, port in listeners
        )

    def host_allowed(self, host: str) -> bool:
        """Is any port of this address allowed? `host` is numeric; anything else is refused."""
        try:
            faces = self._faces(host)
        except ValueError:
            return False
        return all(self._face_allowed(face) for face in faces)

    def port_allowed(self, host: str, port: int) -> bool:
        """Is this port of an address allowed whose host is? Two set look-ups for an IPv4 host."""
        hosts = [str(face) for face in self._faces(host)] if ":" in host else (host,)
        for one in hosts:
            if (one, port) in self._forbidden:
                return False
            if one in self._closed and not self._low_port <= port <= self._high_port:
                return False
        return port > 0

    def allowed(self, peer: Address) -> bool:
        """Is this address and port allowed?"""
        return self.host_allowed(peer.host) and self.port_allowed(peer.host, peer.port)

    def is_relay_host(self, host: str) -> bool:
        """True for an address of the relay itself; `host` is canonical."""
        return host in self._own

    def is_relay(self, host: str, port: int) -> bool:
        """True for the relay range: where the allocations of others are; `host` is canonical."""
        return host in self._own and self._low_port <= port <= self._high_port

    @staticmethod
    def _faces(host: str) -> tuple[IPAddress, ...]:
        """The address and all that it embeds, in canonical form. Raises ValueError."""
        address = ipaddress.ip_address(host)
        if isinstance(address, ipaddress.IPv4Address):
            return (address,)
        if address.ipv4_mapped is not None:
            return (address.ipv4_mapped,)
        return (address, *embedded(address))

    def _face_allowed(self, address: IPAddress) -> bool:
        host = str(address)
        if host in self._own:
            return True
        if host in self._machine and host not in self._backends:
            return False
        if _lies_in(address, self._deny):
            return False
        return _lies_in(address, self._allow) or not _lies_in(address, _REFUSED)


class Admittance:
    """Rule P5 for everybody; with `calls` also rule P6: the relay range, and what the user's own calls allow.

    A user is `@` and a registration id where the credentials came with a registration; any other has no calls here
    and reaches the relay range alone.
    """

    def __init__(self, peers: Peers, calls: CallPeers | None = None) -> None:
        self.peers = peers
        self._calls = calls

    def host_allowed(self, user: str, host: str) -> bool:
        """Is any port of this address allowed to this user?"""
        if not self.peers.host_allowed(host):
            return False
        if self._calls is None:
            return True
        host = canonical_host(host) if ":" in host else host
        return self.peers.is_relay_host(host) or self._calls.allows_host(_registration(user), host)

    def port_allowed(self, user: str, host: str, port: int) -> bool:
        """Is this port of an address allowed to this user whose host is?"""
        if not self.peers.port_allowed(host, port):
            return False
        if self._calls is None:
            return True
        host = canonical_host(host) if ":" in host else host
        return self.peers.is_relay(host, port) or self._calls.allows(_registration(user), host, port)

    def allowed(self, user: str, peer: Address) -> bool:
        """Is this address and port allowed to this user?"""
        return self.host_allowed(user, peer.host) and self.port_allowed(user, *peer)


def _registration(user: str) -> str:
    """The id of the registration behind a user; no registration has an empty one."""
    return user[1:] if user.startswith(REGISTERED_MARK) else ""
