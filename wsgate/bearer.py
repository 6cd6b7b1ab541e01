"""Bearer tokens as JSON Web Tokens (RFC 7519, RFC 6750, RFC 8898): which keys may sign them, what they say. Pure.

Which algorithm a key verifies follows from the key, never from the token: a public key is no HMAC secret, and `none`
is no algorithm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jwt
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm

MAX_TOKEN_BYTES = 8192
"""A longer token is refused unread."""

MAX_KEYS = 32
"""Keys of one file; each may cost one verification for a token that names none."""

MAX_ADDRESSES = 32
"""Addresses of record that one token may name; the flow keeps them."""

MAX_ADDRESS_BYTES = 1024

CLOCK_SKEW_SECONDS = 60
"""By so much the clock of who signed may be ahead of ours (RFC 7519 §4.1.5); an expiry is meant as it stands."""

MIN_RSA_BITS = 2048
"""RFC 7518 §3.3."""

MAX_WALL_SECONDS = 2**53
"""A date beyond this is none."""

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_HMAC = ((32, "HS256"), (48, "HS384"), (64, "HS512"))
_PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_ADDRESS_CLAIMS = ("sip", "aor")


class TokenError(Exception):
    """A token that does not count; `reason` may be told to whoever sent it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class VerificationKey(NamedTuple):
    """A key of the file: its id (empty: none), the algorithms it verifies, and the key itself."""

    id: str
    algorithms: frozenset[str]
    key: Any

    def __repr__(self) -> str:
        return f"VerificationKey({self.id!r}, {sorted(self.algorithms)})"


class Claims(NamedTuple):
    """What a good token says: the addresses of record as written, and when it ends in seconds since 1970."""

    addresses: tuple[str, ...]
    expires_at: float


def parse_keys(data: bytes) -> tuple[VerificationKey, ...]:
    """The keys in a file: PEM public keys and certificates one behind the other, or a JWK Set (RFC 7517).

    Raises ValueError, with a reason that quotes nothing of the file.
    """
    keys = _jwk_set(data) if data.lstrip()[:1] == b"{" else _pem(data)
    if not keys:
        raise ValueError("it holds no key that can verify a signature")
    if len(keys) > MAX_KEYS:
        raise ValueError(f"it holds {len(keys)} keys; allowed are {MAX_KEYS}")
    return tuple(keys)


def verify(token: str, keys: Sequence[VerificationKey], audience: Sequence[str], wall: float) -> Claims:
    """Judge a token at `wall`, seconds since 1970. Raises TokenError.

    The signature must be that of one of `keys`; `exp` must be there and to come, `nbf` past; `aud`, where it stands or
    `audience` is not empty, must name one of `audience` (RFC 7519 §4.1.3). The addresses of record are those of the
    claims `sip` and `aor` (a text or a list of texts), and of `sub` where neither stands.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenError("the token is too long")
    try:
        claims = _verified(token, keys, audience)
    except jwt.InvalidAudienceError:
        raise TokenError("the token is not for this audience (jwt_audience)") from None
    except jwt.MissingRequiredClaimError as error:
        raise TokenError(f"the token has no {error.claim}") from None
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise TokenError("the token is malformed, or no key of jwt_keys has signed it") from None
    expires_at = _date(claims, "exp")
    if expires_at <= wall:
        raise TokenError("the token has expired")
    if "nbf" in claims and _date(claims, "nbf") > wall + CLOCK_SKEW_SECONDS:
        raise TokenError("the token is not valid yet")
    return Claims(_addresses(claims), expires_at)


def _verified(token: str, keys: Sequence[VerificationKey], audience: Sequence[str]) -> dict[str, Any]:
    """The claims of a token that one of the keys has signed. Raises jwt.PyJWTError and others."""
    header = jwt.get_unverified_header(token)
    if "crit" in header:
        # RFC 7515 §4.1.11: nothing critical is understood here.
        raise jwt.InvalidTokenError("crit")
    named = header.get("kid")
    candidates = [key for key in keys if header.get("alg") in key.algorithms and key.id in ("", named or key.id)]
    failure: Exception = jwt.InvalidSignatureError("no key")
    for key in candidates:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=sorted(key.algorithms),
                audience=list(audience) or None,
                # What depends on the time is judged by the clock that was handed in.
                options={"require": ["exp"], "verify_exp": False, "verify_nbf": False, "verify_iat": False},
            )
            return claims
        except jwt.InvalidSignatureError as error:
            failure = error
    raise failure


def _date(claims: dict[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_WALL_SECONDS:
        raise TokenError(f"the token's {name} is no date")
    return float(value)


def _addresses(claims: dict[str, Any]) -> tuple[str, ...]:
    found: list[Any] = []
    for name in _ADDRESS_CLAIMS:
        value = claims.get(name, [])
        found += value if isinstance(value, list) else [value]
    if not any(name in claims for name in _ADDRESS_CLAIMS):
        found = [claims.get("sub")]
    if not found or not all(isinstance(text, str) and 0 < len(text) <= MAX_ADDRESS_BYTES for text in found):
        raise TokenError("the token names no address of record (claims sip, aor, sub)")
    if len(found) > MAX_ADDRESSES:
        raise TokenError("the token names too many addresses of record")
    return tuple(found)


# Keys


def _pem(data: bytes) -> list[VerificationKey]:
    keys = []
    for found in _PEM_BLOCK.finditer(data):
        kind = found[1].decode()
        if "PRIVATE" in kind:
            raise ValueError("it holds a private key; only public keys and certificates belong here")
        try:
            if kind == "CERTIFICATE":
                key: Any = x509.load_pem_x509_certificate(found[0]).public_key()
            else:
                key = load_pem_public_key(found[0])
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError(f"a PEM block ({kind.lower()}) cannot be read") from None
        algorithms = _algorithms(key)
        if not algorithms:
            raise ValueError("a key is on a curve that signs no tokens: P-256, P-384 and P-521 do")
        keys.append(VerificationKey("", algorithms, key))
    return keys


def _jwk_set(data: bytes) -> list[VerificationKey]:
    try:
        document = json.loads(data)
        members = document.get("keys", [document])
    except (ValueError, RecursionError):
        raise ValueError("it is neither PEM nor JSON") from None
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise ValueError("it is no JWK Set: `keys` is not a list of keys")
    return [key for member in members if (key := _jwk(member)) is not None]


def _jwk(member: dict[str, Any]) -> VerificationKey | None:
    """One key of a set; None for what is not for signatures or not known here (RFC 7517 §5). Raises ValueError."""
    kind = member.get("kty")
    operations = member.get("key_ops", ["verify"])
    if member.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    readers: dict[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm, "oct": HMACAlgorithm}
    if not isinstance(kind, str) or kind not in readers:
        return None
    if "d" in member:
        raise ValueError("it holds a private key; only public keys belong here")
    identifier = member.get("kid", "")
    try:
        key = readers[kind].from_jwk(member)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm):
        raise ValueError(f"a key of the kind {kind} cannot be read") from None
    algorithms = _algorithms(key)
    if "alg" in member:
        algorithms &= {str(member["alg"])}
    if not algorithms:
        return None
    return VerificationKey(identifier if isinstance(identifier, str) else "", algorithms, key)


def _algorithms(key: Any) -> frozenset[str]:
    """The algorithms that this kind of key verifies (RFC 7518 §3.1, RFC 8037 §3.1). Raises ValueError."""
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise ValueError(f"an RSA key has {key.key_size} bits; at least {MIN_RSA_BITS} are needed")
        return frozenset(_RSA)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return frozenset({_CURVES[key.curve.name]} if key.curve.name in _CURVES else ())
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return frozenset({"EdDSA"})
    if isinstance(key, bytes):
        if len(key) < _HMAC[0][0]:
            raise ValueError(f"a symmetric key has {len(key)} bytes; at least {_HMAC[0][0]} are needed")
        return frozenset(name for size, name in _HMAC if len(key) >= size)
    raise ValueError("a key is of a kind that signs no tokens: RSA, EC and Ed25519 do")
