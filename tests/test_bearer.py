"""Bearer tokens: which keys count, which algorithms they verify, what a token must say (RFC 7515, 7517, 7518, 7519)."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from wsgate import bearer
from wsgate.bearer import Claims, TokenError, VerificationKey, parse_keys, verify
from wsgate.certificate import self_signed

WALL = 1_800_000_000.0
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
HMAC = b"0123456789abcdef0123456789abcdef"
GOOD: dict[str, Any] = {"sub": "alice@example.com", "exp": int(WALL) + 600}


def pem(private: Any) -> bytes:
    data: bytes = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data


def private_pem(private: Any) -> bytes:
    data: bytes = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return data


def text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwk(private: Any, **members: Any) -> dict[str, Any]:
    kinds: list[tuple[type, Any]] = [
        (rsa.RSAPrivateKey, jwt.algorithms.RSAAlgorithm),
        (ec.EllipticCurvePrivateKey, jwt.algorithms.ECAlgorithm),
        (ed25519.Ed25519PrivateKey, jwt.algorithms.OKPAlgorithm),
    ]
    algorithm = next(algorithm for kind, algorithm in kinds if isinstance(private, kind))
    return {**algorithm.to_jwk(private.public_key(), as_dict=True), **members}


def jwks(*members: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(members)}).encode()


def token(key: Any = RSA, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **claims: Any) -> str:
    return jwt.encode({**GOOD, **claims}, key, algorithm, headers)


def refused(given_token: str, keys: bytes = b"", audience: tuple[str, ...] = (), wall: float = WALL) -> str:
    with pytest.raises(TokenError) as caught:
        verify(given_token, parse_keys(keys or pem(RSA)), audience, wall)
    assert "alice" not in caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize(
    ("private", "algorithms"),
    [
        (RSA, ["PS256", "PS384", "PS512", "RS256", "RS384", "RS512"]),
        (EC, ["ES256"]),
        (ec.generate_private_key(ec.SECP384R1()), ["ES384"]),
        (ec.generate_private_key(ec.SECP521R1()), ["ES512"]),
        (ED, ["EdDSA"]),
    ],
)
def test_a_key_verifies_the_algorithms_of_its_kind_from_pem_and_jwk(private: Any, algorithms: list[str]) -> None:
    for data in (pem(private), jwks(jwk(private, kid="one"))):
        (key,) = parse_keys(data)
        assert sorted(key.algorithms) == algorithms
        for algorithm in algorithms:
            found = verify(token(private, algorithm), [key], (), WALL)
            assert found == Claims(("alice@example.com",), WALL + 600)


def test_a_certificate_and_several_pem_blocks_are_keys() -> None:
    pair = self_signed(["issuer.test"], datetime.datetime.now(datetime.timezone.utc))
    keys = parse_keys(b"# who signs\n" + pair.certificate + b"\n" + pem(RSA) + pem(EC))
    assert len(keys) == 3
    assert verify(token(EC, "ES256"), keys, (), WALL).addresses == ("alice@example.com",)


def test_a_public_key_is_never_an_hmac_secret_and_none_is_no_algorithm() -> None:
    """The classic confusion: HS256 with the public key's own text as the secret."""
    head, claims = text(b'{"alg":"HS256","typ":"JWT"}'), text(json.dumps(GOOD).encode())
    for secret in (pem(RSA), pem(RSA).strip(), json.dumps(jwk(RSA)).encode()):
        mac = hmac.new(secret, f"{head}.{claims}".encode(), hashlib.sha256).digest()
        for keys in (pem(RSA), jwks(jwk(RSA))):
            assert "no key of jwt_keys" in refused(f"{head}.{claims}.{text(mac)}", keys)
    for name in ("none", "None", "NONE", ""):
        unsigned = text(json.dumps({"alg": name}).encode())
        assert "no key of jwt_keys" in refused(f"{unsigned}.{claims}.")
    assert "no key of jwt_keys" in refused(f"{text(b'{}')}.{claims}.AAAA")
    # Nor does a key of one kind verify what another kind signed.
    assert "no key of jwt_keys" in refused(token(EC, "ES256"), pem(RSA))


def test_a_symmetric_key_is_one_only_from_a_key_set() -> None:
    keys = parse_keys(jwks({"kty": "oct", "k": text(HMAC)}))
    assert sorted(keys[0].algorithms) == ["HS256"]
    assert verify(token(HMAC, "HS256"), keys, (), WALL).expires_at == WALL + 600
    assert sorted(parse_keys(jwks({"kty": "oct", "k": text(HMAC * 2)}))[0].algorithms) == ["HS256", "HS384", "HS512"]
    with pytest.raises(ValueError, match="at least 32"):
        parse_keys(jwks({"kty": "oct", "k": text(b"short")}))


def test_alg_kid_use_and_key_ops_of_a_key_count() -> None:
    keys = parse_keys(jwks(jwk(RSA, kid="a", alg="RS256"), jwk(OTHER_RSA, kid="b")))
    assert verify(token(RSA, headers={"kid": "a"}), keys, (), WALL)
    assert verify(token(OTHER_RSA), keys, (), WALL), "a token without kid is tried with each key"
    for wrong in (
        token(RSA, "RS512", {"kid": "a"}),
        token(RSA, headers={"kid": "b"}),
        token(RSA, headers={"kid": "c"}),
    ):
        with pytest.raises(TokenError):
            verify(wrong, keys, (), WALL)
    encryption = jwk(OTHER_RSA, use="enc"), jwk(OTHER_RSA, key_ops=["encrypt"]), {"kty": "new"}
    assert len(parse_keys(jwks(jwk(RSA, use="sig", key_ops=["verify"]), *encryption))) == 1
    with pytest.raises(ValueError, match="no key that can verify"):
        parse_keys(jwks(*encryption))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no key"),
        (b"hello", "no key"),
        (b'{"keys": 7}', "no JWK Set"),
        (b'{"keys": [7]}', "no JWK Set"),
        (b"{nonsense", "neither PEM nor JSON"),
        (b'{"a":' + b"[" * 100_000, "neither PEM nor JSON"),
        (private_pem(RSA), "private key"),
        (jwks({**jwk(RSA), "d": "AAAA"}), "private key"),
        (jwks({"kty": "RSA", "n": "!", "e": "AQAB"}), "RSA cannot be read"),
        (jwks({"kty": "EC", "crv": "P-256"}), "EC cannot be read"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot be read"),
        (pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)), "1024 bits"),
        (pem(ec.generate_private_key(ec.SECP256K1())), "curve"),
        (pem(ED) * (bearer.MAX_KEYS + 1), "33 keys"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_and_quotes_nothing(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_keys(data)
    assert "AAAA" not in str(caught.value)


def test_time_counts_by_the_clock_that_was_handed_in() -> None:
    assert verify(token(exp=WALL + 1.5), parse_keys(pem(RSA)), (), WALL).expires_at == WALL + 1.5
    assert refused(token(exp=int(WALL))) == "the token has expired"
    assert refused(token(nbf=int(WALL) + 61)) == "the token is not valid yet"
    assert verify(token(nbf=int(WALL) + 60), parse_keys(pem(RSA)), (), WALL)
    assert verify(token(iat=int(WALL) + 5000), parse_keys(pem(RSA)), (), WALL)
    expiring = jwt.encode({"sub": "alice@example.com"}, RSA, "RS256")
    assert refused(expiring) == "the token has no exp"
    for odd in ("soon", True, None, [1], 10**400, float("inf"), float("nan"), -(10**30)):
        assert "exp" in refused(token(exp=odd)), odd
    assert "nbf is no date" in refused(token(nbf="now"))


def test_the_audience_must_be_ours_where_either_side_speaks_of_one() -> None:
    keys = parse_keys(pem(RSA))
    assert verify(token(aud="phone"), keys, ("phone", "other"), WALL)
    assert verify(token(aud=["x", "phone"]), keys, ("phone",), WALL)
    assert "jwt_audience" in refused(token(aud="another"), audience=("phone",))
    assert "jwt_audience" in refused(token(aud="phone"))
    assert "no aud" in refused(token(), audience=("phone",))


@pytest.mark.parametrize(
    ("claims", "addresses"),
    [
        ({"sip": "sip:alice@example.com"}, ("sip:alice@example.com",)),
        ({"sub": "42", "aor": ["a@x.test", "b@x.test"]}, ("a@x.test", "b@x.test")),
        ({"sip": "a@x.test", "aor": "b@x.test"}, ("a@x.test", "b@x.test")),
        ({}, ("alice@example.com",)),
    ],
)
def test_sip_and_aor_name_the_addresses_and_sub_where_they_are_absent(
    claims: dict[str, Any], addresses: tuple[str, ...]
) -> None:
    assert verify(token(**claims), parse_keys(pem(RSA)), (), WALL).addresses == addresses


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": ""},
        {"sip": []},
        {"sip": 7},
        {"sip": [7]},
        {"aor": {"a": "b"}},
        {"aor": None},
        {"sip": "a" * 1025},
        {"sip": ["a@b.test"] * (bearer.MAX_ADDRESSES + 1)},
    ],
)
def test_a_token_that_names_nobody_is_refused(claims: dict[str, Any]) -> None:
    assert "address" in refused(token(**claims))


def test_a_token_without_sub_is_refused() -> None:
    assert "names no address" in refused(jwt.encode({"exp": WALL + 9}, RSA, "RS256"))


def test_what_is_critical_is_not_understood() -> None:
    """RFC 7515 §4.1.11."""
    assert "malformed" in refused(token(headers={"crit": ["exp"], "exp": 1}))
    assert "malformed" in refused(token(headers={"crit": []}))


def test_a_token_changed_anywhere_is_refused() -> None:
    good = token()
    for place in range(0, len(good), 7):
        changed = good[:place] + ("A" if good[place] != "A" else "B") + good[place + 1 :]
        # The last character of a signature carries bits that no byte uses.
        if place < len(good) - 1:
            assert refused(changed)


def test_odd_tokens_cost_nothing_but_the_refusal() -> None:
    deep = text(b'{"alg":"RS256","x":' + b"[" * 3000 + b"]" * 3000 + b"}")
    assert refused("a" * (bearer.MAX_TOKEN_BYTES + 1)) == "the token is too long"
    for odd in (f"{deep}.AAAA.AAAA", "..", "a.b", "\udc80.b.c", "é.é.é", text(b"[]") + ".e30.AAAA"):
        assert refused(odd)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(st.binary(max_size=60), min_size=3, max_size=3)))
def test_nothing_but_a_token_error_ever_comes_of_a_token(given_token: str | list[bytes]) -> None:
    if isinstance(given_token, list):
        given_token = ".".join(map(text, given_token))
    assert refused(given_token)


def test_a_key_shows_nothing_of_itself() -> None:
    assert repr(VerificationKey("one", frozenset({"HS256"}), HMAC)) == "VerificationKey('one', ['HS256'])"
