"""Third-party tokens: the keys shared with an authorization server, and what a token says (RFC 7635; rule A4).

A token is `nonce length, nonce, AES-GCM(mac key length, mac key, timestamp, lifetime)`, with the server's name as
additional data; the length of the key tells AES-128 from AES-256.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from wsgate.credentials import CredentialsError, check_name, is_comment

KEY_BYTES = (16, 32)
"""AES-128 and AES-256 (RFC 7635 §6.2, RFC 5116 §5)."""
KEYS_MAX = 1024
NONCE_BYTES = range(8, 129)
"""What AES-GCM takes; 12 is usual (RFC 5116 §5.1)."""
MAC_KEY_BYTES = range(20, 65)
"""At least 160 bits, for HMAC-SHA1 (RFC 7635 §6.2); no more than a block of either hash."""
TOKEN_BYTES_MAX = 512
SKEW_SECONDS = 5.0
"""How far the clocks of the two servers may be apart (RFC 7635 §6.2)."""

_UNKNOWN_KEY = bytes(32)
_FRACTIONS = 64000
_TIMES = struct.Struct("!QI")


class TokenKey(NamedTuple):
    """A key by which tokens are opened; `expires` in seconds since 1970, None for never. Shows itself to nobody."""

    secret: bytes
    expires: float | None

    def __repr__(self) -> str:
        return f"TokenKey({8 * len(self.secret)} bits)"


class Opened(NamedTuple):
    """A good token: the key of its holder's messages, and how many seconds it has left."""

    mac_key: bytes
    seconds: int


class TokenKeys:
    """The keys of a file by their ids (`kid`), and the name of the server that tokens are made for."""

    def __init__(self, keys: Mapping[str, TokenKey], server_name: str) -> None:
        self.server_name = server_name
        self._keys = dict(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def open(self, kid: str, token: bytes, unix_time: float) -> Opened | None:
        """What the token says; None when it is not to be believed. An unknown `kid` costs what a wrong token does."""
        key = self._keys.get(kid)
        block = _decrypted(_UNKNOWN_KEY if key is None else key.secret, token, self.server_name.encode())
        if block is None or key is None or (key.expires is not None and key.expires <= unix_time):
            return None
        return _judged(block, unix_time)


def _decrypted(secret: bytes, token: bytes, server_name: bytes) -> bytes | None:
    size = int.from_bytes(token[:2], "big")
    nonce, sealed = token[2 : 2 + size], token[2 + size :]
    if len(token) > TOKEN_BYTES_MAX or size not in NONCE_BYTES or len(nonce) < size:
        return None
    try:
        return AESGCM(secret).decrypt(nonce, sealed, server_name)
    except InvalidTag:
        return None


def _judged(block: bytes, unix_time: float) -> Opened | None:
    """The decrypted block within its time (RFC 7635 §6.2)."""
    size = int.from_bytes(block[:2], "big")
    if size not in MAC_KEY_BYTES or len(block) != 2 + size + _TIMES.size:
        return None
    stamp, lifetime = _TIMES.unpack_from(block, 2 + size)
    made = (stamp >> 16) + (stamp & 0xFFFF) / _FRACTIONS
    left = made + lifetime - unix_time
    if made > unix_time + SKEW_SECONDS or left + SKEW_SECONDS <= 0 or not lifetime:
        return None
    return Opened(block[2 : 2 + size], max(1, int(left)))


def parse_keys(text: str) -> dict[str, TokenKey]:
    """The keys of a file with lines `kid:base64key[:expiry]`. Raises CredentialsError, which names the line alone."""
    keys: dict[str, TokenKey] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if is_comment(line):
            continue
        try:
            kid, key = _parse_line(line.strip())
        except CredentialsError as error:
            raise CredentialsError(f"line {number}: {error}") from None
        if kid in keys:
            raise CredentialsError(f"line {number}: {kid} stands here twice")
        keys[kid] = key
    if not 1 <= len(keys) <= KEYS_MAX:
        raise CredentialsError(f"it holds {len(keys)} keys; allowed are 1 to {KEYS_MAX}")
    return keys


def _parse_line(line: str) -> tuple[str, TokenKey]:
    fields = line.split(":")
    if len(fields) not in (2, 3):
        raise CredentialsError("not kid:base64key[:expiry]")
    kid, encoded, expiry = (*fields, "")[:3]
    check_name("kid", kid)
    try:
        secret = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise CredentialsError("the key is not base64") from None
    if len(secret) not in KEY_BYTES:
        raise CredentialsError("the key has neither 16 nor 32 bytes")
    if expiry and not (expiry.isascii() and expiry.isdigit() and len(expiry) <= 15):
        raise CredentialsError("the expiry is not a number of seconds since 1970")
    return kid, TokenKey(secret, float(expiry) if expiry else None)
