"""TCP ports that browsers and relays connect to: accept, guard, PROXY, first byte, TLS, then HTTP or TURN."""

from __future__ import annotations

import dataclasses

from wsgate.addr import Address, Network
from wsgate.settings import ADDRESS, ADDRESSES, BOOLEAN, NETWORKS, TEXT, Switch, choice, option, optional


@dataclasses.dataclass(frozen=True)
class ListenerSettings:
    """[listener NAME]"""

    bind: tuple[Address, ...] = option((), ADDRESSES)
    tls: Switch = option(Switch.ON, choice(Switch))
    certificate: str = option("", TEXT)
    private_key: str = option("", TEXT)
    turn: bool = option(False, BOOLEAN, later="TURN on a listener's port")
    http_fallback: Address | None = option(None, optional(ADDRESS), later="handing other paths to a web server")
    trusted_proxies: tuple[Network, ...] = option((), NETWORKS)
    tls_at_relay: bool = option(False, BOOLEAN)
    proxy_protocol: bool = option(False, BOOLEAN)
