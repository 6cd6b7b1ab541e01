"""The embedded registrar and location service (RFC 3261 §10, rules G1 to G6), pure."""

from __future__ import annotations

import dataclasses
import enum

from wsgate.settings import TEXT, choice, integer, listed, option


class DigestAlgorithm(enum.Enum):
    """Hash functions of HTTP digest that wsgate speaks (RFC 7616, RFC 8760)."""

    MD5 = "MD5"
    SHA256 = "SHA-256"


@dataclasses.dataclass(frozen=True)
class RegistrarSettings:
    """[registrar]"""

    realm: str = option("example.com", TEXT)
    users: str = option("users.htdigest", TEXT)
    digest_algorithms: tuple[DigestAlgorithm, ...] = option(tuple(DigestAlgorithm), listed(choice(DigestAlgorithm)))
    store: str = option("memory", TEXT, later="a store that survives a restart")
    min_expires: int = option(60, integer(1, 86400))
    max_expires: int = option(3600, integer(1, 2592000))
    max_contacts: int = option(10, integer(1, 1000))
