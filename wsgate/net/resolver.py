"""DNS questions over gevent sockets with a cache; dnspython encodes, decodes and validates (rule N5)."""

from __future__ import annotations

import dataclasses

from wsgate.addr import Address, split_host_port
from wsgate.settings import Parser, integer, listed, option, seconds

NAMESERVERS: Parser[tuple[Address, ...]] = listed((lambda text: split_host_port(text, 53), "host:port"))


@dataclasses.dataclass(frozen=True)
class ResolverSettings:
    """[dns]"""

    nameservers: tuple[Address, ...] = option((), NAMESERVERS)
    timeout: float = option(2.0, seconds(0.1, 60))
    cache_size: int = option(10000, integer(10, 10000000))
    negative_ttl: float = option(30.0, seconds(0, 86400))
    stale_for: float = option(3600.0, seconds(0, 604800))
