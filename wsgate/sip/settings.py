"""What an operator says of SIP: the section [sip]."""

from __future__ import annotations

import dataclasses

from wsgate.addr import Address, Network, parse_network
from wsgate.settings import (
    ADDRESS,
    ADDRESSES,
    BOOLEAN,
    HOST,
    NAMES,
    NETWORK,
    TEXT,
    Parser,
    auto,
    integer,
    listed,
    option,
    seconds,
)


def _direct_target(text: str) -> tuple[Network, int | None]:
    """`CIDR[:port]`, IPv6 with a port in brackets."""
    if text.startswith("["):
        network, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not [CIDR]:port")
        port = rest[1:] if rest else None
    elif text.count(":") == 1:
        network, _, port = text.partition(":")
    else:
        network, port = text, None
    if port is not None and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is no port")
    return parse_network(network), None if port is None else int(port)


def _advertised(text: str) -> tuple[str, ...]:
    parse, _ = listed(HOST)
    hosts = parse(text)
    if len({":" in host for host in hosts}) < len(hosts):
        raise ValueError("two of one family")
    return hosts


ADVERTISED: Parser[tuple[str, ...]] = (_advertised, f"{HOST[1]}; one, or one IPv4 and one IPv6")
DIRECT_TARGETS: Parser[tuple[tuple[Network, int | None], ...]] = listed((_direct_target, "CIDR[:port]"))


@dataclasses.dataclass(frozen=True)
class SipSettings:
    """[sip]"""

    bind: tuple[Address, ...] = option((Address("0.0.0.0", 5060),), ADDRESSES)
    tls_bind: tuple[Address, ...] = option((), ADDRESSES)
    advertise: tuple[str, ...] | None = option(None, auto(ADVERTISED))
    public: Address | None = option(None, auto(ADDRESS))
    aliases: tuple[str, ...] = option((), NAMES)
    trusted_sources: tuple[Network, ...] = option((), listed(NETWORK))
    direct_targets: tuple[tuple[Network, int | None], ...] = option((), DIRECT_TARGETS)
    udp_max_bytes: int = option(1300, integer(0, 65507))
    max_header_bytes: int = option(16384, integer(1024, 262144))
    add_received: bool = option(False, BOOLEAN)
    flow_timer: int = option(120, integer(10, 86400))
    timer_c: float = option(200.0, seconds(181, 86400))
    flow_rebind: bool = option(True, BOOLEAN)
    orphan_cleanup: bool = option(True, BOOLEAN)
    orphan_grace: float = option(2.0, seconds(0, 600))
    reconnect_grace: float = option(60.0, seconds(0, 3600))
    dialog_lifetime: float = option(43200.0, seconds(60, 604800))
    state_file: str = option("", TEXT)
