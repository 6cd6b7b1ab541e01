"""The STUN/TURN server as a pure machine: requests in, effects out (RFC 8489, RFC 8656)."""

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


class SecretHash(enum.Enum):
    """HMAC of time-limited credentials (rule A4)."""

    SHA1 = "sha1"
    SHA256 = "sha256"


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
    tcp: tuple[Address, ...] = option(TURN_ADDRESSES, ADDRESSES, later="TURN over TCP")
    tls: tuple[Address, ...] = option((), ADDRESSES, later="TURN over TLS")
    dtls: bool = option(True, BOOLEAN, later="TURN over DTLS")
    certificate: str = option("", TEXT, later="TURN over TLS")
    private_key: str = option("", TEXT, later="TURN over TLS")
    realm: str = option("example.com", TEXT)
    relay_address: tuple[str, ...] | None = option(None, auto(STRINGS))
    external_address: tuple[str, ...] = option((), STRINGS)
    relay_ports: tuple[int, int] = option((49152, 65535), PORT_RANGE)
    alternate_address: str = option("", TEXT, later="RFC 5780 behaviour discovery")
    users: str = option("", TEXT)
    shared_secret: tuple[str, ...] = option((), STRINGS)
    shared_secret_file: str = option("", TEXT)
    shared_secret_hash: SecretHash = option(SecretHash.SHA1, choice(SecretHash))
    credentials_with_register: bool = option(True, BOOLEAN, later="credentials with the registration")
    credential_ttl: int = option(3600, integer(60, 2592000))
    uris: tuple[str, ...] | None = option(None, auto(STRINGS))
    peer_policy: PeerPolicy = option(PeerPolicy.ANY, choice(PeerPolicy), later="peers by call")
    allow_peers: tuple[Network, ...] = option((), NETWORKS)
    deny_peers: tuple[Network, ...] = option((), NETWORKS)
    relay_engine: RelayEngine = option(RelayEngine.AUTO, choice(RelayEngine))
    relay_tick: float = option(0.001, seconds(0, 0.1))
    min_lifetime: int = option(600, integer(1, 3600))
    max_lifetime: int = option(3600, integer(60, 86400))
    nonce_lifetime: int = option(600, integer(1, 86400))
    user_quota: int = option(50, integer(1, 1000000))
    user_bandwidth: int = option(0, integer(0, 10**12), later="bandwidth per user")
    total_quota: int = option(10000, integer(1, 1000000))
    channel_range: ChannelRange = option(ChannelRange.RFC8656, choice(ChannelRange))
    permissions_per_allocation: int = option(1024, integer(1, 65536))
    channels_per_allocation: int = option(1024, integer(1, 4096))
    unauthenticated_rate: int = option(4096, integer(128, 10**9))
    mobility: bool = option(False, BOOLEAN, later="mobility tickets")
    oauth_keys: str = option("", TEXT, later="third-party tokens")
    software: str = option("", TEXT)
