"""Addresses as the rest of the house speaks of them: numeric hosts, ports, networks, transports and hops."""

from __future__ import annotations

import enum
import ipaddress
import re
from typing import NamedTuple

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?:{_OCTET}\.){{3}}{_OCTET}\Z")
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?")

ANY_PORT = 0
"""In place of a port: every port of that host."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Address(NamedTuple):
    """A transport address: `host` is an IP address or a name without brackets, `port` 0 to 65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)


class Transport(enum.Enum):
    """A SIP transport (RFC 3261 §18, RFC 7118 §5.2); the value is the word in a Via."""

    UDP = "UDP"
    TCP = "TCP"
    TLS = "TLS"
    WS = "WS"
    WSS = "WSS"

    reliable: bool
    """True where the transport itself retransmits (RFC 3261 §17)."""
    secure: bool
    """True for TLS and WSS."""
    is_websocket: bool
    """True for WS and WSS."""
    default_port: int
    """The port where a URI leaves it out (RFC 3261 §19.1.2, RFC 7118 §5.2.2)."""
    word: bytes
    """As in a Via."""

    def __init__(self, word: str) -> None:
        self.reliable = word != "UDP"
        self.secure = word in ("TLS", "WSS")
        self.is_websocket = word in ("WS", "WSS")
        self.default_port = {"TLS": 5061, "WS": 80, "WSS": 443}.get(word, 5060)
        self.word = word.encode()

    # Each is there once. By the word, as an Enum does it, every look into a table of hops would run a function.
    __hash__ = object.__hash__


class Hop(NamedTuple):
    """One neighbour: how and where bytes go to it or came from it.

    `connection` is the id of the browser flow (8 bytes) or of the stream to a backend; empty for UDP and for
    "open a connection or take the one that is there".
    """

    transport: Transport
    address: Address
    connection: bytes = b""


def join_host_port(host: str, port: int) -> str:
    """`host:port` with brackets around IPv6 (RFC 3986 §3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def uri_host(host: str) -> str:
    """`host` as it stands in a URI or Via: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def canonical_host(host: str) -> str:
    """An IP address in its one spelling (IPv4-mapped IPv6 as IPv4), a name in lower case without final dot.

    The three colons in front of an IPv4 part that the grammar of RFC 3261 asked for count as two (RFC 5118 §4.10).
    """
    if host[-1:].isalpha() and ":" not in host and "%" not in host:
        # Neither IPv6 nor IPv4: a name is told at once, without the cost of a failed parse.
        return host.lower().rstrip(".")
    if _IPV4.match(host):
        # There is but one spelling of an IPv4 address, and most hosts are one.
        return host
    try:
        return str(canonical_ip(ipaddress.ip_address(host.strip("[]").partition("%")[0].replace(":::", "::"))))
    except ValueError:
        return host.lower().rstrip(".")


def canonical_ip(address: IPAddress) -> IPAddress:
    """The IPv4 address inside an IPv4-mapped IPv6 one (RFC 4291 §2.5.5.2), else the address itself."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_numeric(host: str) -> bool:
    """True when `host` is an IP address, bracketed or not."""
    if _IPV4.match(host):
        return True
    if host[-1:].isalpha() and ":" not in host and "%" not in host:
        return False
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def is_host(host: str) -> bool:
    """True for an IP address, bracketed or not, and for what can be a host name."""
    return is_numeric(host) or _HOST_NAME.fullmatch(host) is not None


def _check_ipv6(host: str, text: str) -> None:
    try:
        ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        raise ValueError(f"not host:port: {text!r}") from None


def split_host_port(text: str, default_port: int | None = None) -> Address:
    """`host:port`, `[v6]:port`, or `host` alone where `default_port` is given. Raises ValueError."""
    text = text.strip()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"not host:port: {text!r}")
        _check_ipv6(host, text)
        port_text = rest[1:] if rest else ""
    elif text.count(":") > 1:
        host, port_text = text, ""
        _check_ipv6(host, text)
    else:
        host, _, port_text = text.partition(":")
    if not host or any(character.isspace() for character in host):
        raise ValueError(f"not host:port: {text!r}")
    if not port_text:
        if default_port is None:
            raise ValueError(f"the port is missing in {text!r}")
        return Address(canonical_host(host), default_port)
    if not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65535:
        raise ValueError(f"not a port: {port_text!r}")
    return Address(canonical_host(host), int(port_text))


def parse_network(text: str) -> Network:
    """A CIDR or a single address. Raises ValueError."""
    return ipaddress.ip_network(text.strip(), strict=False)


def in_networks(host: str, networks: tuple[Network, ...]) -> bool:
    """True when the IP address `host` lies in one of `networks`; a name lies in none."""
    if not networks:
        return False
    try:
        address = canonical_ip(ipaddress.ip_address(host))
    except ValueError:
        return False
    return any(address.version == network.version and address in network for network in networks)
