"""Digest authentication by G3: vectors of the RFCs, replay, stale nonces, unknown users."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.credentials import Hashes, Users, hashes_of
from wsgate.errors import ProtocolError
from wsgate.sip.digest import (
    NONCE_LIFETIME_SECONDS,
    Credentials,
    Digest,
    DigestAlgorithm,
    Result,
    parse_credentials,
    response,
)

REALM = "example.com"
URI = b"sip:example.com"
ALICE = hashes_of("alice", REALM, "wonder")
USERS = Users({("alice", REALM): ALICE, ("bob", REALM): Hashes(hashes_of("bob", REALM, "build").md5)})


class Bytes:
    """Random bytes that a test can repeat."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, size: int) -> bytes:
        self.calls += 1
        return hashlib.shake_128(b"%d" % self.calls).digest(size)


def machine(users=USERS, **options) -> Digest:
    return Digest(users, tuple(DigestAlgorithm), b"k" * 32, Bytes(), 1.7e9, **options)


def nonce_of(lines) -> bytes:
    return re.search(rb'nonce="([^"]*)"', lines[0][1])[1]


def authorization(
    nonce: bytes,
    *,
    user="alice",
    password="wonder",
    algorithm=DigestAlgorithm.MD5,
    method=b"REGISTER",
    uri=URI,
    count: int | None = 1,
    realm=REALM,
) -> bytes:
    """What a client answers to a challenge."""

    def hexdigest(data: bytes) -> bytes:
        return hashlib.new(algorithm.value.replace("-", ""), data).hexdigest().encode()

    first = hexdigest(f"{user}:{realm}:{password}".encode())
    second = hexdigest(method + b":" + uri)
    parts = [b'username="%b", realm="%b", nonce="%b", uri="%b"' % (user.encode(), realm.encode(), nonce, uri)]
    if count is None:
        answer = hexdigest(b"%b:%b:%b" % (first, nonce, second))
    else:
        answer = hexdigest(b"%b:%b:%08x:c0:auth:%b" % (first, nonce, count, second))
        parts.append(b'qop=auth, nc=%08x, cnonce="c0"' % count)
    parts.append(b'response="%b", algorithm=%b' % (answer, algorithm.value.encode()))
    return b"Digest " + b", ".join(parts)


def verify(digest: Digest, value: bytes, now=0.0, *, method=b"REGISTER", uri=URI) -> Result:
    return digest.verify([value], method, uri, REALM, now)


RFC2617 = (
    b'Digest username="Mufasa", realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", '
    b'uri="/dir/index.html", qop=auth, nc=00000001, cnonce="0a4f113b", '
    b'response="6629fae49393a05397450978507c4ef1", opaque="5ccc069c403ebaf9f0171e9517f40e41"'
)
RFC7616 = (
    b'Digest username="Mufasa", realm="http-auth@example.org", uri="/dir/index.html", algorithm=%b, '
    b'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", nc=00000001, '
    b'cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ", qop=auth, response="%b", '
    b'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
)


@pytest.mark.parametrize(
    ("value", "algorithm", "realm", "password"),
    [
        (RFC2617, DigestAlgorithm.MD5, "testrealm@host.com", "Circle Of Life"),
        (
            RFC7616 % (b"MD5", b"8ca523f5e9506fed4657c9700eebdbec"),
            DigestAlgorithm.MD5,
            "http-auth@example.org",
            "Circle of Life",
        ),
        (
            RFC7616 % (b"SHA-256", b"753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
            DigestAlgorithm.SHA256,
            "http-auth@example.org",
            "Circle of Life",
        ),
    ],
)
def test_vectors_of_rfc_2617_and_rfc_7616(value, algorithm, realm, password):
    """RFC 2617 §3.5 and RFC 7616 §3.9.1: the response is theirs; their nonce is not ours, so it is stale."""
    hashes = hashes_of("Mufasa", realm, password)
    credentials = parse_credentials(value)
    secret = hashes.md5 if algorithm is DigestAlgorithm.MD5 else hashes.sha256
    assert response(algorithm, secret.encode(), credentials, b"GET") == credentials.response
    digest = machine(Users({("Mufasa", realm): hashes}))
    assert digest.verify([value], b"GET", b"/dir/index.html", realm, 0.0) == Result(None, stale=True)
    assert digest.verify([value], b"POST", b"/dir/index.html", realm, 0.0) == Result(None)


def test_sha256_stands_first_and_md5_last():
    """G3, RFC 8760 §2.4: the strongest on top; of several challenges JsSIP and SIP.js keep only the last."""
    lines = machine().challenge(REALM, False, False, 0.0)
    assert [name for name, _ in lines] == [b"WWW-Authenticate"] * 2
    assert [re.search(rb"algorithm=([^,]*)", value)[1] for _, value in lines] == [b"SHA-256", b"MD5"]
    assert all(b'qop="auth"' in value and b'realm="example.com"' in value for _, value in lines)
    assert all(b"stale" not in value for _, value in lines)


def test_no_sha256_challenge_where_the_file_does_not_store_it():
    digest = machine(Users({("bob", REALM): USERS["bob", REALM]}))
    assert len(digest.challenge(REALM, False, False, 0.0)) == 1


def test_only_the_algorithms_of_the_settings_are_offered_and_taken():
    digest = Digest(USERS, (DigestAlgorithm.SHA256,), b"k" * 32, Bytes())
    lines = digest.challenge(REALM, True, True, 0.0)
    assert [name for name, _ in lines] == [b"Proxy-Authenticate"]
    assert b"SHA-256" in lines[0][1]
    assert lines[0][1].endswith(b", stale=true")
    nonce = nonce_of(lines)
    assert verify(digest, authorization(nonce)) == Result(None)
    assert verify(digest, authorization(nonce, algorithm=DigestAlgorithm.SHA256)) == Result("alice")


def test_a_realm_with_quotes_is_escaped():
    assert rb'realm="a\"b\\c"' in machine().challenge('a"b\\c', False, False, 0.0)[0][1]


@pytest.mark.parametrize("algorithm", list(DigestAlgorithm))
def test_the_right_password_passes(algorithm):
    digest = machine()
    nonce = nonce_of(digest.challenge(REALM, False, False, 0.0))
    assert verify(digest, authorization(nonce, algorithm=algorithm), 1.0) == Result("alice")


def test_wrong_password_unknown_user_and_no_sha256_look_the_same():
    digest = machine()
    nonce = nonce_of(digest.challenge(REALM, False, False, 0.0))
    assert verify(digest, authorization(nonce, password="wrong")) == Result(None)
    assert verify(digest, authorization(nonce, user="nobody")) == Result(None)
    sha = DigestAlgorithm.SHA256
    assert verify(digest, authorization(nonce, user="bob", password="build", algorithm=sha)) == Result(None)
    assert verify(digest, authorization(nonce, user="bob", password="build")) == Result("bob")


def test_an_unknown_user_costs_the_same_hashes(monkeypatch):
    """G3: counted, not timed: the same hash functions over the same number of bytes."""
    digest = machine()
    nonce = nonce_of(digest.challenge(REALM, False, False, 0.0))
    seen: list[int] = []
    real = hashlib.md5
    monkeypatch.setattr(hashlib, "md5", lambda data, **options: seen.append(len(data)) or real(data, **options))
    values = [
        authorization(nonce, user="alice", password="wrong"),
        authorization(nonce, user="ghost", password="wrong"),
    ]
    costs = []
    for value in values:
        seen.clear()
        verify(digest, value)
        costs.append(list(seen))
    assert costs[0] == costs[1]
    assert len(costs[0]) == 2


def test_a_replay_fails_and_a_higher_count_passes():
    """G3: nonce counts only rise."""
    digest = machine()
    nonce = nonce_of(digest.challenge(REALM, False, False, 0.0))
    assert verify(digest, authorization(nonce, count=1)).user == "alice"
    assert verify(digest, authorization(nonce, count=1)) == Result(None, stale=True)
    assert verify(digest, authorization(nonce, count=3)).user == "alice"
    assert verify(digest, authorization(nonce, count=2)).user is None
    assert verify(digest, authorization(nonce, count=0xFFFFFFFF)).user == "alice"
    assert verify(digest, authorization(nonce, count=None)).user is None


def test_count_zero_is_none():
    digest = machine()
    nonce = nonce_of(digest.challenge(REALM, False, False, 0.0))
    assert verify(digest, authorization(nonce, count=0)).user is None


def test_without_qop_a_nonce_serves_once():
    """RFC 2069 style: there is no count, so there is no second use."""
    digest = machine()
    nonce = nonce_of(digest.challenge(REALM, False, False, 0.0))
    assert verify(digest, authorization(nonce, count=None)).user == "alice"
    assert verify(digest, authorization(nonce, count=None)) == Result(None, stale=True)
    assert verify(digest, authorization(nonce, count=9)) == Result(None, stale=True)


def test_a_replay_fails_as_long_as_the_nonce_lives():
    digest = machine()
    for step in range(0, 900, 7):
        now = float(step)
        nonce = nonce_of(digest.challenge(REALM, False, False, now))
        value = authorization(nonce)
        assert verify(digest, value, now + 1.0).user == "alice"
        for later in (2.0, 150.0, 299.0, 300.0, 301.0):
            assert digest.verify([value], b"REGISTER", URI, REALM, now + later).user is None


def test_an_old_nonce_is_stale_only_for_who_knows_the_password():
    digest = machine()
    nonce = nonce_of(digest.challenge(REALM, False, False, 0.0))
    late = NONCE_LIFETIME_SECONDS + 1
    assert verify(digest, authorization(nonce), NONCE_LIFETIME_SECONDS - 1).user == "alice"
    assert verify(digest, authorization(nonce, count=2), late) == Result(None, stale=True)
    assert verify(digest, authorization(nonce, count=2, password="wrong"), late) == Result(None)


def test_forged_and_foreign_nonces_are_stale():
    digest = machine()
    nonce = nonce_of(digest.challenge(REALM, False, False, 0.0))
    forged = nonce[:12] + (b"A" if nonce[12:13] != b"A" else b"B") + nonce[13:]
    other_realm = nonce_of(digest.challenge("example.org", False, False, 0.0))
    restarted = Digest(USERS, tuple(DigestAlgorithm), b"k" * 32, lambda size: b"z" * size, 1.7e9)
    for wrong in (
        forged,
        other_realm,
        b"plain",
        b"!",
        nonce + b"AAAA",
        nonce_of(restarted.challenge(REALM, False, False, 0.0)),
    ):
        assert verify(digest, authorization(wrong)) == Result(None, stale=True)


def test_a_full_table_answers_stale_and_heals_at_once_without_letting_a_replay_pass():
    """G3: a full table answers stale with a new nonce."""
    digest = machine(max_nonces=3)
    used = []
    for _ in range(3):
        value = authorization(nonce_of(digest.challenge(REALM, False, False, 0.0)))
        assert verify(digest, value).user == "alice"
        used.append(value)
    fourth = authorization(nonce_of(digest.challenge(REALM, False, False, 0.0)))
    assert verify(digest, fourth) == Result(None, stale=True)
    assert all(verify(digest, value) == Result(None, stale=True) for value in used)
    assert verify(digest, authorization(nonce_of(digest.challenge(REALM, False, True, 0.0)))).user == "alice"


def test_the_uri_may_differ_in_what_proxies_change_but_not_in_whom_it_names():
    """RFC 3261 §22.4."""
    digest = machine()

    def judged(digest_uri: bytes, request_uri: bytes) -> str | None:
        nonce = nonce_of(digest.challenge(REALM, False, False, 0.0))
        return verify(
            digest, authorization(nonce, method=b"INVITE", uri=digest_uri), method=b"INVITE", uri=request_uri
        ).user

    assert judged(b"sip:bob@example.com", b"sip:bob@EXAMPLE.com:5060;transport=ws") == "alice"
    assert judged(b"sip:b%6Fb@example.com", b"sip:bob@example.com") == "alice"
    assert judged(b"sip:bob@example.com", b"sip:eve@example.com") is None
    assert judged(b"sip:bob@example.com", b"sip:bob@example.org") is None
    assert judged(b"*", b"sip:bob@example.com") is None


def test_the_method_is_part_of_it():
    digest = machine()
    nonce = nonce_of(digest.challenge(REALM, False, False, 0.0))
    assert verify(digest, authorization(nonce, method=b"INVITE")).user is None


def test_other_schemes_and_realms_are_passed_over():
    digest = machine()
    nonce = nonce_of(digest.challenge(REALM, False, False, 0.0))
    values = [b"Bearer abc", b"Digest nonsense", authorization(nonce, realm="example.org"), authorization(nonce)]
    assert digest.verify(values, b"REGISTER", URI, REALM, 0.0) == Result("alice")
    assert digest.verify([], b"REGISTER", URI, REALM, 0.0) == Result(None)


def test_user_names_with_quotes_escapes_and_umlauts():
    user = 'a"b\\c Ärger'
    digest = machine(Users({(user, REALM): hashes_of(user, REALM, "wonder")}))
    nonce = nonce_of(digest.challenge(REALM, False, False, 0.0))
    plain = authorization(nonce, user=user)
    escaped = plain.replace(user.encode(), user.encode().replace(b"\\", b"\\\\").replace(b'"', b'\\"'))
    assert verify(digest, escaped).user == user
    extended = authorization(nonce, user=user, count=2).replace(
        b'username="%b"' % user.encode(), b"username*=UTF-8''a%22b%5Cc%20%C3%84rger"
    )
    assert verify(digest, extended).user == user


def test_auth_int_and_unknown_algorithms_are_refused():
    digest = machine()
    nonce = nonce_of(digest.challenge(REALM, False, False, 0.0))
    value = authorization(nonce)
    assert verify(digest, value.replace(b"qop=auth,", b"qop=auth-int,")).user is None
    assert verify(digest, value.replace(b"algorithm=MD5", b"algorithm=MD5-sess")).user is None
    assert verify(digest, value.replace(b"algorithm=MD5", b'algorithm="md5"')).user == "alice"


@pytest.mark.parametrize(
    "value",
    [
        b"Basic QWxhZGRpbg==",
        b"Digest",
        b'Digest username="a", username="b", realm="r", nonce="n", uri="u", response="r"',
        b'Digest username="a", realm="r", uri="u", response="r"',
        b'Digest username="a", realm="r", nonce="n", uri="u", response="r", qop=auth',
        b'Digest username="a", realm="r", nonce="n", uri="u", response="r", qop=auth, nc=1, cnonce="c"',
        b'Digest username="a", realm="r", nonce="n", uri="u", response="r", qop=auth, nc=00000001',
        b'Digest username="unclosed, realm="r", nonce="n", uri="u", response="r"',
        b'Digest username="a" realm="r"',
    ],
)
def test_malformed_credentials(value):
    with pytest.raises(ProtocolError):
        parse_credentials(value)


@given(st.binary(max_size=200))
def test_any_bytes_are_credentials_or_an_error(data):
    try:
        assert isinstance(parse_credentials(b"Digest " + data), Credentials)
    except ProtocolError:
        return
