"""Credentials, nonces and the bucket of unauthenticated answers (rules A1 to A4, S4)."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import pytest

from wsgate import credentials as user_files
from wsgate.addr import Address
from wsgate.turn import auth, stun
from wsgate.turn.auth import Accepted, Authenticator, Credentials, Refused, SecretHash, UnauthenticatedRate, UserKeys
from wsgate.turn.stun import Integrity, MessageClass, Method
from wsgate.turn.values import PasswordAlgorithm

REALM = "wsgate.test"
CLIENT = Address("192.0.2.1", 40000)
MD5, SHA256 = PasswordAlgorithm.MD5, PasswordAlgorithm.SHA256
KEYS = UserKeys(*(auth.long_term_key("alice", REALM, "secret", one) for one in (MD5, SHA256)))


class Clock:
    """Seconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def authenticator(
    clock: Clock, *, keys: UserKeys = KEYS, secrets: tuple[str, ...] = (), nonce_keys: tuple[bytes, ...] = (b"k" * 32,)
) -> Authenticator:
    return Authenticator(Credentials(REALM, {"alice": keys}, secrets), nonce_keys, 600, clock)


def signed(nonce: bytes, *extra: Any, key: bytes = KEYS.md5, name: str = "alice", kind: Integrity = Integrity.SHA1):
    fields = [stun.USERNAME(name), stun.REALM(REALM), stun.NONCE(nonce), *extra]
    return request(*fields, integrity=(kind, key))


def request(*fields: Any, **options: Any) -> stun.Message:
    return stun.parse(stun.encode(Method.ALLOCATE, MessageClass.REQUEST, bytes(12), fields, **options))


def test_a_good_request_is_accepted() -> None:
    judge = authenticator(Clock())
    assert judge.check(signed(judge.nonce(CLIENT)), CLIENT) == Accepted("alice", KEYS.md5)


def test_without_integrity_a_challenge() -> None:
    assert authenticator(Clock()).check(request(), CLIENT) == Refused(401, True)


@pytest.mark.parametrize("missing", [stun.USERNAME, stun.REALM, stun.NONCE], ids=lambda one: one.name)
def test_integrity_without_the_rest_is_400(missing: Any) -> None:
    judge = authenticator(Clock())
    fields = [stun.USERNAME("alice"), stun.REALM(REALM), stun.NONCE(judge.nonce(CLIENT))]
    kept = [field for field in fields if field[0] is not missing]
    assert judge.check(request(*kept, integrity=(Integrity.SHA1, KEYS.md5)), CLIENT) == Refused(400, False)


def test_wrong_password_unknown_user_and_foreign_realm_are_401() -> None:
    judge = authenticator(Clock())
    nonce = judge.nonce(CLIENT)
    assert judge.check(signed(nonce, key=b"wrong" * 4), CLIENT) == Refused(401, True)
    assert judge.check(signed(nonce, name="mallory"), CLIENT) == Refused(401, True)
    assert judge.check(signed(nonce, name="\x07"), CLIENT) == Refused(401, True)
    other = [stun.USERNAME("alice"), stun.REALM("other"), stun.NONCE(nonce)]
    assert judge.check(request(*other, integrity=(Integrity.SHA1, KEYS.md5)), CLIENT) == Refused(401, True)


def test_the_key_that_stands_in_for_an_unknown_user_opens_nothing() -> None:
    """Rule A1: the same number of comparisons, and none of them can succeed."""
    judge = authenticator(Clock(), secrets=("one", "two"))
    nonce = judge.nonce(CLIENT)
    assert judge.check(signed(nonce, name="mallory", key=bytes(16)), CLIENT) == Refused(401, True)
    known = judge.credentials.candidates("alice", MD5, 0)
    unknown = judge.credentials.candidates("mallory", MD5, 0)
    assert [len(key) for key, _ in known] == [len(key) for key, _ in unknown]
    assert [user for _, user in unknown] == ["", "", ""]


def test_comparisons_are_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule A1: every secret is compared by hmac.compare_digest, as often for an unknown user as for a known one."""
    compared: list[int] = []
    original = hmac.compare_digest

    def counting(first: bytes, second: bytes) -> bool:
        compared.append(len(first))
        return original(first, second)

    judge = authenticator(Clock(), secrets=("one", "two"))
    nonce = judge.nonce(CLIENT)
    monkeypatch.setattr(hmac, "compare_digest", counting)
    tries = [signed(nonce), signed(nonce, key=b"wrong"), signed(nonce, name="mallory")]
    counts = []
    for one in tries:
        compared.clear()
        judge.check(one, CLIENT)
        counts.append(list(compared))
    assert counts[0] == counts[1] == counts[2] == [40, 20, 20, 20]


def test_nonces_are_of_a_client_and_of_their_time_and_survive_a_restart() -> None:
    """Rule A2: 600 s, no state."""
    clock = Clock()
    nonce = authenticator(clock).nonce(CLIENT)
    again = authenticator(clock)
    assert isinstance(again.check(signed(nonce), CLIENT), Accepted)
    assert again.check(signed(nonce), Address(CLIENT.host, 1)) == Refused(438, True)
    assert again.check(signed(nonce), Address("192.0.2.2", CLIENT.port)) == Refused(438, True)
    clock.now += 600
    assert isinstance(again.check(signed(nonce), CLIENT), Accepted)
    clock.now += 1
    assert again.check(signed(nonce), CLIENT) == Refused(438, True)


def test_a_clock_that_was_set_back_a_little_spoils_no_nonce() -> None:
    clock = Clock()
    judge = authenticator(clock)
    nonce = judge.nonce(CLIENT)
    clock.now -= 2
    assert isinstance(judge.check(signed(nonce), CLIENT), Accepted)
    clock.now -= 3600
    assert judge.check(signed(nonce), CLIENT) == Refused(438, True)


@pytest.mark.parametrize("nonce", [b"", b"x", b"obMatJos2AAAD", b"obMatJos2AAAD" + b"A" * 27, b"\xff" * 40, b"A" * 700])
def test_nonces_that_are_not_ours_are_438(nonce: bytes) -> None:
    judge = authenticator(Clock())
    assert judge.check(signed(nonce), CLIENT) == Refused(438, True)


def test_every_bit_of_a_nonce_counts() -> None:
    judge = authenticator(Clock())
    nonce = judge.nonce(CLIENT)
    for place in range(len(nonce)):
        changed = nonce[:place] + bytes([nonce[place] ^ 1]) + nonce[place + 1 :]
        assert judge.check(signed(changed), CLIENT) == Refused(438, True)


def test_the_key_before_still_opens_its_nonces() -> None:
    clock = Clock()
    nonce = authenticator(clock, nonce_keys=(b"old" * 11,)).nonce(CLIENT)
    rotated = authenticator(clock, nonce_keys=(b"new" * 11, b"old" * 11))
    assert isinstance(rotated.check(signed(nonce), CLIENT), Accepted)
    assert rotated.nonce(CLIENT) != nonce
    assert authenticator(clock, nonce_keys=(b"new" * 11,)).check(signed(nonce), CLIENT) == Refused(438, True)


def test_the_nonce_says_what_the_server_can() -> None:
    """RFC 8489 §9.2: cookie, then 24 bits; names cannot be hashed where secrets make them (A4)."""
    judge = authenticator(Clock())
    assert judge.nonce(CLIENT)[:13] == b"obMatJos2" + base64.b64encode(b"\0\0\3")
    assert len(judge.nonce(CLIENT)) == 40
    assert authenticator(Clock(), secrets=("s",)).nonce(CLIENT)[9:13] == base64.b64encode(b"\0\0\1")


def test_sha256_when_it_is_chosen_from_what_was_offered() -> None:
    """Rule A3, RFC 8489 §9.2.4."""
    judge = authenticator(Clock())
    nonce = judge.nonce(CLIENT)
    algorithms = stun.PASSWORD_ALGORITHMS(judge.credentials.algorithms)
    chosen = [algorithms, stun.PASSWORD_ALGORITHM(SHA256)]
    good = signed(nonce, *chosen, key=KEYS.sha256, kind=Integrity.SHA256)
    assert judge.check(good, CLIENT) == Accepted("alice", KEYS.sha256)
    assert judge.check(signed(nonce, *chosen, key=KEYS.md5), CLIENT) == Refused(401, True)


@pytest.mark.parametrize(
    "fields",
    [
        [stun.PASSWORD_ALGORITHM(SHA256)],
        [stun.PASSWORD_ALGORITHMS((SHA256, MD5))],
        [stun.PASSWORD_ALGORITHMS((MD5,)), stun.PASSWORD_ALGORITHM(MD5)],
        [stun.PASSWORD_ALGORITHMS((SHA256, MD5)), stun.PASSWORD_ALGORITHM(3)],
    ],
    ids=["alone", "none chosen", "bid down", "not offered"],
)
def test_algorithms_that_do_not_fit_the_offer_are_400(fields: list[Any]) -> None:
    judge = authenticator(Clock())
    assert judge.check(signed(judge.nonce(CLIENT), *fields), CLIENT) == Refused(400, False)


def test_algorithms_are_judged_before_the_age_of_a_nonce_of_ours() -> None:
    """RFC 8489 §9.2.4 in its order, rule A1: to bid down is 400, and no new nonce takes that away."""
    clock = Clock()
    judge = authenticator(clock)
    old = judge.nonce(CLIENT)
    clock.now += 601
    for offered, chosen in (((MD5,), MD5), ((SHA256, MD5), 3)):
        fields = [stun.PASSWORD_ALGORITHMS(offered), stun.PASSWORD_ALGORITHM(chosen)]
        assert judge.check(signed(old, *fields), CLIENT) == Refused(400, False)
    good = [stun.PASSWORD_ALGORITHMS((SHA256, MD5)), stun.PASSWORD_ALGORITHM(MD5)]
    assert judge.check(signed(old, *good), CLIENT) == Refused(438, True)


def test_a_nonce_that_offered_other_algorithms_is_stale() -> None:
    """RFC 8489 §9.2.4: they are compared with what was sent with the nonce. A reload may change what is offered."""
    clock = Clock()
    before, after = authenticator(clock), authenticator(clock, keys=UserKeys(KEYS.md5))
    fields = [stun.PASSWORD_ALGORITHMS((SHA256, MD5)), stun.PASSWORD_ALGORITHM(MD5)]
    assert after.check(signed(before.nonce(CLIENT), *fields), CLIENT) == Refused(438, True)


def test_sha256_is_offered_only_when_every_user_has_it() -> None:
    assert authenticator(Clock()).credentials.algorithms == (SHA256, MD5)
    assert authenticator(Clock(), keys=UserKeys(KEYS.md5)).credentials.algorithms == (MD5,)


def test_userhash_stands_for_the_name() -> None:
    """RFC 8489 §9.2.4."""
    judge = authenticator(Clock())
    for hashed, verdict in (
        (auth.user_hash("alice", REALM), Accepted("alice", KEYS.md5)),
        (auth.user_hash("mallory", REALM), Refused(401, True)),
    ):
        fields = [stun.USERHASH(hashed), stun.REALM(REALM), stun.NONCE(judge.nonce(CLIENT))]
        assert judge.check(request(*fields, integrity=(Integrity.SHA1, KEYS.md5)), CLIENT) == verdict


def time_limited(judge: Authenticator, name: str, secret: str) -> Accepted | Refused:
    password = base64.b64encode(hmac.new(secret.encode(), name.encode(), hashlib.sha1).digest()).decode()
    key = hashlib.md5(f"{name}:{REALM}:{password}".encode()).digest()
    return judge.check(signed(judge.nonce(CLIENT), name=name, key=key), CLIENT)


def test_time_limited_credentials_of_every_secret_until_they_expire() -> None:
    """Rule A4."""
    clock = Clock()
    judge = authenticator(clock, secrets=("new", "old"))
    name = f"{int(clock.now) + 60}:phone7"
    for secret in ("new", "old"):
        verdict = time_limited(judge, name, secret)
        assert isinstance(verdict, Accepted)
        assert verdict.user == ":phone7"
    assert time_limited(judge, name, "other") == Refused(401, True)
    clock.now += 60
    assert time_limited(judge, name, "new") == Refused(401, True)


@pytest.mark.parametrize("name", ["phone7", "soon:phone7", "-5:phone7", "٣:phone7", "9" * 400 + ":x", ":x", ""])
def test_names_without_an_expiry_open_nothing_by_a_secret(name: str) -> None:
    assert time_limited(authenticator(Clock(), secrets=("s",)), name, "s") == Refused(401, True)


def test_a_bare_expiry_is_its_own_user() -> None:
    clock = Clock()
    verdict = time_limited(authenticator(clock, secrets=("s",)), str(int(clock.now) + 9), "s")
    assert isinstance(verdict, Accepted)
    assert verdict.user == f":{int(clock.now) + 9}"


def test_time_limited_passwords_by_sha256() -> None:
    expected = base64.b64encode(hmac.new(b"s", b"1:x", hashlib.sha256).digest()).decode()
    assert auth.time_limited_password(b"s", "1:x", SecretHash.SHA256) == expected


def test_users_come_from_the_file_of_the_registrar() -> None:
    ours, other = (user_files.hashes_of("bob", realm, "secret") for realm in (REALM, "other"))
    text = "# users\n" + user_files.format_line("bob", REALM, ours) + "\n"
    text += user_files.format_line("bob", "other", other) + "\n"
    text += user_files.format_line("carol", REALM, user_files.Hashes(ours.md5)) + "\n"
    users = auth.users_of_realm(user_files.parse_users(text), REALM)
    assert sorted(users) == ["bob", "carol"]
    assert users["bob"].md5 == auth.long_term_key("bob", REALM, "secret", MD5)
    assert users["bob"].sha256 == auth.long_term_key("bob", REALM, "secret", SHA256)
    assert users["carol"].sha256 == b""


def test_names_and_passwords_have_one_spelling() -> None:
    """Rule A3: OpaqueString (RFC 8265 §4.2)."""
    assert auth.opaque_string("a\u0301") == "\u00e1"
    assert auth.opaque_string("no\u00a0break") == "no break"
    assert auth.opaque_string("Case") == "Case"
    with pytest.raises(ValueError, match="may not"):
        auth.opaque_string("bell\x07")
    assert auth.long_term_key("a\u0301", "r", "p", MD5) == auth.long_term_key("\u00e1", "r", "p", MD5)


def test_the_bucket_holds_a_second_of_its_rate_and_refills() -> None:
    """Rule S4: bytes per source and second."""
    rate = UnauthenticatedRate(1000)
    assert rate.take("192.0.2.1", 600, 0.0)
    assert not rate.take("192.0.2.1", 600, 0.0)
    assert rate.take("192.0.2.1", 400, 0.0)
    assert rate.take("192.0.2.2", 1000, 0.0)
    assert not rate.take("192.0.2.1", 600, 0.5)
    assert rate.take("192.0.2.1", 600, 0.6)


def test_an_answer_longer_than_the_bucket_goes_out_of_a_full_one_and_is_paid_for() -> None:
    """Rule S4: a long realm with a low `unauthenticated_rate` would otherwise never be challenged."""
    rate = UnauthenticatedRate(128)
    assert rate.take("192.0.2.1", 256, 0.0)
    assert not rate.take("192.0.2.1", 1, 0.9)
    assert not rate.take("192.0.2.1", 256, 1.9)
    assert rate.take("192.0.2.1", 256, 2.0)


def test_ipv6_sources_are_a_64_and_mapped_ones_ipv4() -> None:
    rate = UnauthenticatedRate(1000)
    assert rate.take("2001:db8:1:2::1", 1000, 0.0)
    assert not rate.take("2001:db8:1:2:ffff::9", 1, 0.0)
    assert rate.take("2001:db8:1:3::1", 1000, 0.0)
    assert rate.take("::ffff:192.0.2.1", 1000, 0.0)
    assert not rate.take("192.0.2.1", 1, 0.0)


def test_the_table_of_sources_is_bounded_and_forgets_the_quietest() -> None:
    rate = UnauthenticatedRate(100, sources_max=10)
    for number in range(10):
        rate.take(f"192.0.2.{number}", 100, 0.0)
    rate.take("192.0.2.0", 1, 0.1)
    rate.take("192.0.2.99", 1, 0.2)
    assert len(rate) == 10
    assert not rate.take("192.0.2.0", 100, 0.2)
    assert rate.take("192.0.2.1", 100, 0.2)


def test_credentials_of_a_registration_until_it_ends() -> None:
    """Rule A5: good for as long as the registration lasts and no longer than they say; each key of wsgate opens."""
    lasting = {"r1"}
    registered = auth.Registrations((b"new", b"old"), lasting.__contains__)
    credentials = Credentials(REALM, {"alice": KEYS}, ["other"], registrations=registered)
    judge = Authenticator(credentials, [b"k"], 600, Clock())
    handed_out = credentials.hand_out("r1", 60, 1_700_000_000.0)
    assert handed_out is not None
    assert handed_out.username == "1700000060:r1"

    def verdict(
        judge: Authenticator = judge, username: str = handed_out.username, password: str = handed_out.password
    ) -> Any:
        key = auth.long_term_key(username, REALM, password, PasswordAlgorithm.MD5)
        return judge.check(signed(judge.nonce(CLIENT), key=key, name=username), CLIENT)

    accepted = verdict()
    assert isinstance(accepted, Accepted)
    assert accepted.user == "@r1"
    old = auth.time_limited_password(b"old", handed_out.username, SecretHash.SHA1)
    assert isinstance(verdict(password=old), Accepted)
    assert verdict(username="1700000061:r1") == Refused(401, challenge=True)
    late = Authenticator(credentials, [b"k"], 600, lambda: 1_700_000_061.0)
    assert verdict(late) == Refused(401, challenge=True)
    lasting.clear()
    assert verdict() == Refused(401, challenge=True)
    assert Credentials(REALM).hand_out("r1", 60, 1_700_000_000.0) is None
