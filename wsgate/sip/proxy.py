"""What a SIP edge proxy decides about a request or response (RFC 3261 §16): routing and header edits, pure."""

from __future__ import annotations

import dataclasses

from wsgate.addr import Address, Network, parse_network
from wsgate.settings import (
    ADDRESS,
    ADDRESSES,
    BOOLEAN,
    NETWORK,
    STRINGS,
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
        inside, _, rest = text[1:].partition("]")
        return parse_network(inside), int(rest[1:]) if rest else None
    if text.count(":") == 1:
        network, _, port = text.partition(":")
        return parse_network(network), int(port)
    return parse_network(text), None


DIRECT_TARGETS: Parser[tuple[tuple[Network, int | None], ...]] = listed((_direct_target, "CIDR[:port]"))


@dataclasses.dataclass(frozen=True)
class SipSettings:
    """[sip]"""

    bind: tuple[Address, ...] = option((Address("0.0.0.0", 5060),), ADDRESSES)
    tls_bind: tuple[Address, ...] = option((), ADDRESSES, later="SIP over TLS towards backends")
    advertise: tuple[str, ...] | None = option(None, auto(STRINGS))
    public: Address | None = option(None, auto(ADDRESS))
    aliases: tuple[str, ...] = option((), STRINGS)
    trusted_sources: tuple[Network, ...] = option((), listed(NETWORK))
    direct_targets: tuple[tuple[Network, int | None], ...] = option((), DIRECT_TARGETS)
    udp_max_bytes: int = option(1300, integer(0, 65507))
    max_header_bytes: int = option(16384, integer(1024, 262144))
    add_received: bool = option(False, BOOLEAN)
    flow_timer: int = option(120, integer(10, 86400))
    timer_c: float = option(200.0, seconds(181, 86400))
    flow_rebind: bool = option(True, BOOLEAN, later="rebinding of flows")
    orphan_cleanup: bool = option(True, BOOLEAN, later="ending orphaned calls")
    orphan_grace: float = option(2.0, seconds(0, 600))
    reconnect_grace: float = option(60.0, seconds(0, 3600))
    dialog_lifetime: float = option(43200.0, seconds(60, 604800))
    state_file: str = option("", TEXT, later="calls that survive a restart")
