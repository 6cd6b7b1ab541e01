"""Which sockets NAT behaviour discovery needs beside those of `udp` (RFC 5780 §6), and what stands in its way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wsgate.addr import Address, is_numeric

WILDCARDS = ("0.0.0.0", "::")
PORT_MAX = 65535


class Fault(NamedTuple):
    """What is wrong with an option, and what it may be."""

    option: str
    problem: str
    allowed: str


def alternates(udp: Sequence[Address], hosts: Sequence[str], port: int | None) -> Iterator[Address]:
    """Three addresses for each of `hosts`: the first of `udp` with the other port, the host, and that with both."""
    for host in hosts:
        primary = _primary(udp, host)
        if primary is not None:
            other = _other_port(primary, port)
            yield from (Address(primary.host, other), Address(host, primary.port), Address(host, other))


def fault(udp: Sequence[Address], hosts: Sequence[str], port: int | None) -> Fault | None:
    """An answer must come from the address that was asked, or from the other: both must be named, with their ports."""
    families = set()
    for host in hosts:
        if not is_numeric(host):
            return Fault("alternate_address", f"{host!r} is no IP address", "IP addresses, one per family")
        primary = _primary(udp, host)
        if primary is None:
            problem = f"there is no address of the family of alternate_address {host}"
            return Fault("udp", problem, "the IP address and port that clients reach")
        if primary.host in WILDCARDS or not primary.port:
            problem = f"{primary} does not say what clients reach, which alternate_address {host} needs"
            return Fault("udp", problem, "the IP address and port that clients reach")
        if primary.host == host or (":" in host) in families:
            problem = f"{host} is not a second address of its family"
            return Fault("alternate_address", problem, "one address per family, not that of udp")
        if _other_port(primary, port) in (primary.port, PORT_MAX + 1):
            return Fault("alternate_port", f"there is no second port beside {primary}", "another port than that of udp")
        families.add(":" in host)
    return None


def _primary(udp: Sequence[Address], alternate: str) -> Address | None:
    return next((address for address in udp if (":" in address.host) == (":" in alternate)), None)


def _other_port(primary: Address, port: int | None) -> int:
    return primary.port + 1 if port is None else port
