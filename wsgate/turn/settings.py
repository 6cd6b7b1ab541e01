"""What an operator says of TURN: the section [turn], its enums, and what follows from it for one of several workers."""

from __future__ import annotations

import dataclasses
import enum

from wsgate.addr import Address, Network
from wsgate.settings import (
    ADDRESSES,
    BOOLEAN,
    NETWORKS,
    PORT_RANGE,
    STRINGS,
    TEXT,
    auto,
    choice,
    integer,
    option,
    seconds,
)
from wsgate.turn.auth import SecretHash


class PeerPolicy(enum.Enum):
    """Which peers a user may relay to (rules P5, P6)."""

    ANY = "any"
    CALL = "call"


class RelayEngine(enum.Enum):
    """Which engine moves the packets (rule F1)."""

    AUTO = "auto"
    PURE = "pure"
    COMPILED = "compiled"


class ChannelRange(enum.Enum):
    """Which channel numbers are accepted (rule P2)."""

    RFC8656 = "rfc8656"
    RFC5766 = "rfc5766"


TURN_ADDRESSES = (Address("0.0.0.0", 3478), Address("::", 3478))


@dataclasses.dataclass(frozen=True)
class TurnSettings:
    """[turn]"""

    enabled: bool = option(True, BOOLEAN)
    udp: tuple[Address, ...] = option(TURN_ADDRESSES, ADDRESSES)
    tcp: tuple[Address, ...] = option(TURN_ADDRESSES, ADDRESSES)
    tls: tuple[Address, ...] = option((), ADDRESSES)
    dtls: bool = option(True, BOOLEAN)
    certificate: str = option("", TEXT)
    private_key: str = option("", TEXT)
    realm: str = option("example.com", TEXT)
    relay_address: tuple[str, ...] | None = option(None, auto(STRINGS))
    external_address: tuple[str, ...] = option((), STRINGS)
    relay_ports: tuple[int, int] = option((49152, 65535), PORT_RANGE)
    alternate_address: tuple[str, ...] = option((), STRINGS)
    alternate_port: int | None = option(None, auto(integer(1, 65535)))
    users: str = option("", TEXT)
    shared_secret: tuple[str, ...] = option((), STRINGS)
    shared_secret_file: str = option("", TEXT)
    shared_secret_hash: SecretHash = option(SecretHash.SHA1, choice(SecretHash))
    credentials_with_register: bool = option(True, BOOLEAN)
    credential_ttl: int = option(3600, integer(60, 2592000))
    uris: tuple[str, ...] | None = option(None, auto(STRINGS))
    peer_policy: PeerPolicy = option(PeerPolicy.ANY, choice(PeerPolicy))
    allow_peers: tuple[Network, ...] = option((), NETWORKS)
    deny_peers: tuple[Network, ...] = option((), NETWORKS)
    relay_engine: RelayEngine = option(RelayEngine.AUTO, choice(RelayEngine))
    relay_tick: float = option(0.001, seconds(0, 0.1))
    min_lifetime: int = option(600, integer(1, 3600))
    max_lifetime: int = option(3600, integer(60, 86400))
    nonce_lifetime: int = option(600, integer(1, 86400))
    user_quota: int = option(50, integer(1, 1000000))
    user_bandwidth: int = option(0, integer(0, 10**12))
    total_quota: int = option(10000, integer(1, 1000000))
    connections_per_allocation: int = option(64, integer(1, 65536))
    connections_per_user: int = option(256, integer(1, 1000000))
    total_connections: int = option(4096, integer(1, 1000000))
    connects_per_second: int = option(20, integer(1, 1000000))
    channel_range: ChannelRange = option(ChannelRange.RFC8656, choice(ChannelRange))
    permissions_per_allocation: int = option(1024, integer(1, 65536))
    channels_per_allocation: int = option(1024, integer(1, 4096))
    unauthenticated_rate: int = option(4096, integer(128, 10**9))
    mobility: bool = option(False, BOOLEAN)
    oauth_keys: str = option("", TEXT)
    software: str = option("", TEXT)


CHANNEL_NUMBERS = {
    ChannelRange.RFC8656: range(0x4000, 0x5000),
    ChannelRange.RFC5766: range(0x4000, 0x7FFF),
}
"""Which channel numbers are accepted (RFC 8656 §12, RFC 5766 §11; rule P2)."""


def part_of_ports(ports: tuple[int, int], number: int, workers: int) -> tuple[int, int]:
    """The ports of one of several workers: parts of the same size, no two with a port in common.

    With an even number of ports each, so that pairs (EVEN-PORT, RFC 8656 §7.2) lie in one part. What is left over
    belongs to nobody.
    """
    low, high = ports
    if workers == 1:
        return ports
    low += low % 2
    size = max(1, (high - low + 1) // workers // 2 * 2)
    return low + number * size, low + (number + 1) * size - 1
