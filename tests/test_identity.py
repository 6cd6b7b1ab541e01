"""Who a browser is by its upgrade: WSSession cookies, tokens, forwarded headers, and what an administrator may set."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any
from urllib.parse import quote, quote_plus

import jwt
import pytest

from tests.test_bearer import RSA, WALL, pem
from wsgate.bearer import TokenError, parse_keys
from wsgate.errors import ConfigurationError
from wsgate.identity import (
    FORWARD_HEADERS,
    MAX_FORWARDED_BYTES,
    AddressPattern,
    Admission,
    Admitted,
    ForwardedHeader,
    Identity,
    IdentitySettings,
    TokenPlace,
    find_token,
    parse_pattern,
    read_cookies,
    read_session,
)
from wsgate.ini import parse
from wsgate.sip.headers import parse_uri
from wsgate.ws.handshake import Refusal

SECRET = "a shared secret"
INFO = f"1:{int(WALL) - 60}:{int(WALL) + 600}:alice@example.com:*@example.com"
NOW = 5000.0


def mac(info: str = INFO, extra: str = "", secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), f"{info}:{extra}".encode(), hashlib.sha1).hexdigest()


def session(info: str = INFO, extra: str = "", secret: str = SECRET, encode: Any = quote_plus) -> dict[str, str]:
    cookies = {"WSSessionInfo": encode(info), "WSSessionMAC": mac(info, extra, secret)}
    return cookies | ({"WSSessionExtra": encode(extra)} if extra else {})


def cookie(cookies: dict[str, str]) -> tuple[str, str]:
    return "Cookie", "; ".join(f"{name}={value}" for name, value in cookies.items())


def judge(*fields: tuple[str, str], query: str = "", **options: Any) -> Admitted | Refusal:
    keys = parse_keys(pem(RSA)) if options.get("jwt_keys") else ()
    return Admission(IdentitySettings(**options), keys, lambda: WALL).judge(fields, query, NOW)


def identity(*fields: tuple[str, str], query: str = "", **options: Any) -> Identity:
    found = judge(*fields, query=query, **options)
    assert isinstance(found, Admitted), found
    assert found.identity is not None
    return found.identity


def refusal(*fields: tuple[str, str], query: str = "", **options: Any) -> Refusal:
    found = judge(*fields, query=query, **options)
    assert isinstance(found, Refusal), found
    return found


def token(**claims: Any) -> str:
    return jwt.encode({"sub": "alice@example.com", "exp": int(WALL) + 600, **claims}, RSA, "RS256")


# reSIProcate's cookies


def test_the_cookies_of_resiprocate_name_from_and_destination_until_they_expire() -> None:
    found = identity(cookie(session()), cookie_secret=SECRET)
    assert found == Identity((AddressPattern(b"alice", "example.com"),), AddressPattern(None, "example.com"), NOW + 600)
    assert found.is_own(parse_uri(b"sip:alice@EXAMPLE.com:5061;transport=ws"))
    assert not found.is_own(parse_uri(b"sip:bob@example.com"))
    assert not found.is_own(parse_uri(b"sip:Alice@example.com"))
    assert not found.is_own(parse_uri(b"sip:example.com"))
    assert found.may_reach(parse_uri(b"sip:anyone@example.com"))
    assert not found.may_reach(parse_uri(b"sip:anyone@example.org"))


@pytest.mark.parametrize("encode", [quote_plus, quote, lambda text: quote(text, safe=":@*+"), lambda text: f'"{text}"'])
def test_the_mac_is_over_what_the_url_encoding_stands_for(encode: Any) -> None:
    info = f"1:1:{int(WALL) + 9}:+4930123@example.com:*@*"
    cookies = read_cookies((cookie(session(info, "x y+z", encode=encode)),))
    assert read_session(cookies, SECRET.encode(), WALL).addresses == (AddressPattern(b"+4930123", "example.com"),)


def test_a_known_set_of_cookies() -> None:
    """HMAC-SHA1 in hex over info, a colon and extra, as a site in PHP makes it; here made by hand with openssl."""
    cookies = {
        "WSSessionInfo": "1%3A1387814798%3A1987814798%3Abob%40example.org%3Aalice%40example.org",
        "WSSessionExtra": "custom",
        "WSSessionMAC": KNOWN_MAC,
    }
    found = read_session(cookies, b"hello", 1_400_000_000)
    bob, alice = AddressPattern(b"bob", "example.org"), AddressPattern(b"alice", "example.org")
    assert found == Identity((bob,), alice, 1987814798.0)


KNOWN_MAC = "b8f913697e8ca41bd9aac461cf635da0f7310671"


@pytest.mark.parametrize(
    "changed",
    [
        {"WSSessionMAC": ""},
        {"WSSessionMAC": "0" * 40},
        {"WSSessionMAC": mac(secret="another")},
        {"WSSessionMAC": mac()[:20]},
        {"WSSessionMAC": mac()[:20] + "0" * 20},
        {"WSSessionMAC": mac()[:-1]},
        {"WSSessionMAC": "é" * 40},
        {"WSSessionInfo": quote_plus(INFO.replace("alice", "bob"))},
        {"WSSessionExtra": "added"},
    ],
)
def test_a_cookie_that_the_mac_does_not_cover_whole_is_refused(changed: dict[str, str]) -> None:
    """All 40 characters count: the first half alone is no proof."""
    answer = refusal(cookie(session() | changed), cookie_secret=SECRET)
    assert answer == Refusal("403 Forbidden", "WSSessionMAC does not fit the cookies and cookie_secret")


def test_the_mac_in_capitals_is_the_same_number() -> None:
    assert identity(cookie(session() | {"WSSessionMAC": mac().upper()}), cookie_secret=SECRET)


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (f"1:1:{int(WALL)}:alice@example.com:*@*", "expired"),
        (f"2:1:{int(WALL) + 9}:alice@example.com:*@*", "another version"),
        (f"1:1:{int(WALL) + 9}:alice@example.com", "malformed"),
        (f"1:1:{int(WALL) + 9}:alice@example.com:*@*:more", "malformed"),
        (f"1:1:-{int(WALL)}:alice@example.com:*@*", "malformed"),
        (f"1:1:{'9' * 16}:alice@example.com:*@*", "malformed"),
        ("", "malformed"),
        (f"1:1:{int(WALL) + 9}:alice:*@*", "user@host"),
        (f"1:1:{int(WALL) + 9}:@example.com:*@*", "user@host"),
        (f"1:1:{int(WALL) + 9}:alice@example.com:al ice@*", "user@host"),
        (f"1:1:{int(WALL) + 9}:alice@exa*.com:*@*", "user@host"),
        ("\ud800", "malformed"),
    ],
)
def test_what_cannot_be_read_or_is_over_is_403(info: str, reason: str) -> None:
    if info == "\ud800":
        cookies = {
            "WSSessionInfo": "%FF",
            "WSSessionMAC": hmac.new(SECRET.encode(), b"\xff:", hashlib.sha1).hexdigest(),
        }
    else:
        cookies = session(info)
    answer = refusal(cookie(cookies), cookie_secret=SECRET)
    assert answer.status == "403 Forbidden"
    assert reason in answer.reason


def test_missing_cookies_are_401() -> None:
    for fields in ((), (cookie({"WSSessionMAC": mac()}),), (("Cookie", "other=1"),)):
        assert refusal(*fields, cookie_secret=SECRET).status == "401 Unauthorized"
    assert refusal(cookie({"WSSessionInfo": quote_plus(INFO)}), cookie_secret=SECRET).status == "403 Forbidden"


def test_cookies_are_read_as_browsers_write_them() -> None:
    fields = (("cookie", ' a=1;b="two" ; c=x=y; =z;d'), ("Cookie", "a=2; e="), ("X", "f=1"))
    assert read_cookies(fields) == {"a": "1", "b": "two", "c": "x=y", "": "z", "e": ""}


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("sip:bob@Example.COM", AddressPattern(b"bob", "example.com")),
        ("sips:b%6Fb@example.com:5061;x=y", AddressPattern(b"bob", "example.com")),
        ("*@*", AddressPattern(None, None)),
        ("*@example.com", AddressPattern(None, "example.com")),
        ("bob@*", AddressPattern(b"bob", None)),
        ("*1@example.com", AddressPattern(b"*1", "example.com")),
    ],
)
def test_addresses_and_their_wildcards(text: str, pattern: AddressPattern) -> None:
    assert parse_pattern(text, wildcards=True) == pattern


def test_a_token_has_no_wildcards() -> None:
    assert parse_pattern("*@example.com", wildcards=False) == AddressPattern(b"*", "example.com")
    with pytest.raises(TokenError):
        parse_pattern("*@*", wildcards=False)


# Tokens


@pytest.mark.parametrize("place", list(TokenPlace))
def test_a_token_is_taken_from_header_query_and_cookie_where_jwt_from_says_so(place: TokenPlace) -> None:
    fields, query = {
        TokenPlace.HEADER: ([("Authorization", f"bearer  {token()}")], ""),
        TokenPlace.QUERY: ([], f"x=1&access_token={token()}"),
        TokenPlace.COOKIE: ([cookie({"access_token": token()})], ""),
    }[place]
    found = identity(*fields, query=query, jwt_keys="keys", jwt_from=(place,))
    assert found == Identity((AddressPattern(b"alice", "example.com"),), None, NOW + 600)
    others = tuple(other for other in TokenPlace if other is not place)
    assert refusal(*fields, query=query, jwt_keys="keys", jwt_from=others).status == "401 Unauthorized"


def test_a_missing_token_is_challenged_as_rfc_6750_says_and_a_wrong_one_is_403() -> None:
    missing = refusal(("Authorization", "Basic YTpi"), jwt_keys="keys")
    assert (missing.status, missing.fields) == ("401 Unauthorized", (("WWW-Authenticate", 'Bearer realm="wsgate"'),))
    wrong = refusal(("Authorization", "Bearer nonsense"), jwt_keys="keys")
    assert wrong.status == "403 Forbidden"
    assert refusal(("Authorization", f"Bearer {token(exp=1)}"), jwt_keys="keys").reason == "the token has expired"
    nobody = refusal(("Authorization", f"Bearer {token(sub='alice')}"), jwt_keys="keys")
    assert nobody == Refusal("403 Forbidden", "an address in it is not of the form user@host")
    assert "jwt_audience" in refusal(("Authorization", f"Bearer {token(aud='x')}"), jwt_keys="keys").reason


def test_what_was_sent_on_purpose_counts_before_a_cookie() -> None:
    fields = (("Authorization", "Bearer one"), cookie({"access_token": "three"}))
    assert find_token(TokenPlace, fields, "access_token=two", read_cookies(fields)) == "one"
    assert find_token(TokenPlace, (), "access_token=two&access_token=four", read_cookies(fields)) == "two"
    assert find_token(TokenPlace, (), "a=b", read_cookies(fields)) == "three"
    assert find_token(TokenPlace, (), "access_token=two" + "&a=b" * 200, {}) == ""
    assert find_token(TokenPlace, (("Authorization", "Bearer "),), "access_token=", {}) == ""


def test_with_both_kinds_one_is_enough_and_the_token_counts_first() -> None:
    both = {"cookie_secret": SECRET, "jwt_keys": "keys"}
    assert identity(cookie(session()), **both).destination is not None
    assert identity(cookie(session()), ("Authorization", f"Bearer {token()}"), **both).destination is None
    assert refusal(cookie(session()), ("Authorization", "Bearer wrong"), **both).status == "403 Forbidden"
    neither = refusal(**both)
    assert neither.status == "401 Unauthorized"
    assert "WSSession" in neither.reason


def test_nothing_is_asked_for_where_nothing_is_configured() -> None:
    assert judge(("Authorization", "Bearer x"), cookie({"WSSessionInfo": "x"})) == Admitted(None, ())


# Forwarded headers


def headers(text: str = "Cookie: X-WS-Cookie, Origin: X-WS-Origin") -> dict[str, Any]:
    return {"forward_headers": FORWARD_HEADERS[0](text)}


def test_fields_of_the_upgrade_become_header_lines() -> None:
    fields = (("Origin", "https://phone.test"), ("COOKIE", "a=1"), ("Cookie", "b=2"), ("X", "y"))
    found = judge(*fields, **headers())
    assert isinstance(found, Admitted)
    assert found.forwarded == ((b"X-WS-Cookie", b"a=1; b=2"), (b"X-WS-Origin", b"https://phone.test"))
    assert judge(("Origin", ""), **headers()) == Admitted(None, ())
    several = judge(("X-A", "1"), ("X-A", "2"), **headers("X-A: X-B"))
    assert several == Admitted(None, ((b"X-B", b"1, 2"),))


@pytest.mark.parametrize(
    "value", ["a\rb", "a\nb", "a\r\nFrom: b", "a\x00b", "a\tb", "a\x7fb", "\xff", "\xc2\x85", "\xc3"]
)
def test_no_control_byte_can_pass_into_a_header(value: str) -> None:
    answer = refusal(("Cookie", value), **headers())
    assert answer == Refusal("400 Bad Request", "cookie is not printable text in UTF-8")


def test_text_in_utf_8_passes_as_it_came() -> None:
    raw = "grüße".encode()
    assert judge(("Cookie", raw.decode("latin-1")), **headers()) == Admitted(None, ((b"X-WS-Cookie", raw),))


def test_what_is_forwarded_has_a_limit() -> None:
    room = MAX_FORWARDED_BYTES - len("X-WS-Cookie: \r\n")
    assert isinstance(judge(("Cookie", "a" * room), **headers()), Admitted)
    assert refusal(("Cookie", "a" * (room + 1)), **headers()).status == "431 Request Header Fields Too Large"


# What an administrator may set


def configured(text: str) -> IdentitySettings:
    return parse("[listener web]\nbind = 127.0.0.1:0\ntls = off\n" + text, "/etc/wsgate.ini").identity


def forbidden(text: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        configured(text)
    return caught.value


def test_the_options_are_typed() -> None:
    found = configured(
        "[identity]\nforward_headers = Cookie: X-WS-Cookie,Origin:X-O\njwt_keys = k.pem\njwt_from = query, header\n"
        "jwt_audience = a, b\n"
    )
    assert found.forward_headers == (ForwardedHeader("cookie", b"X-WS-Cookie"), ForwardedHeader("origin", b"X-O"))
    assert found.protected_headers == {b"x-ws-cookie", b"x-o"}
    assert found.jwt_from == (TokenPlace.QUERY, TokenPlace.HEADER)
    assert found.jwt_audience == ("a", "b")
    files = parse(
        "[listener web]\nbind = 127.0.0.1:0\ntls = off\n[identity]\njwt_keys = k.pem\n", "/etc/wsgate.ini"
    ).files()
    assert ("identity", "jwt_keys", "k.pem") in files


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("Cookie", "not of the form"),
        ("Cookie: X WS", "not of the form"),
        ("Coo kie: X-WS", "not of the form"),
        ("Cookie: X-Wé", "not of the form"),
        ("Cookie: via", "for itself"),
        ("Cookie: m", "for itself"),
        ("Cookie: Contact", "for itself"),
        ("Cookie: Content-Length", "for itself"),
        ("Cookie: X-A, Origin: x-a", "twice"),
        (", ".join(f"A: X-{number}" for number in range(17)), "more than 16"),
    ],
)
def test_headers_that_cannot_be_forwarded_are_named_with_what_is_allowed(value: str, problem: str) -> None:
    error = forbidden(f"[identity]\nforward_headers = {value}\n")
    assert (error.section, error.option) == ("identity", "forward_headers")
    assert problem in error.problem
    assert "SIP-Header" in error.allowed


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("forward_headers = Origin: X-O, cookie: X-WS-Cookie", "forward_headers"),
        ("cookie_secret = hush hush", "cookie_secret"),
        ("jwt_keys = keys.pem", "jwt_from"),
        ("jwt_keys = keys.pem\njwt_from = cookie", "jwt_from"),
    ],
)
def test_every_origin_beside_cookies_is_an_error(text: str, option: str) -> None:
    """A browser adds its cookies to a WebSocket that any page opens."""
    error = forbidden(f"[websocket]\norigins = https://a.test, *\n[identity]\n{text}\n")
    assert (error.section, error.option) == ("websocket", "origins")
    assert option in error.problem
    assert "same" in error.allowed
    assert "hush" not in str(error)
    assert configured(f"[websocket]\norigins = same, https://a.test\n[identity]\n{text}\n")


@pytest.mark.parametrize("text", ["forward_headers = Origin: X-O", "jwt_keys = k\njwt_from = header, query", ""])
def test_every_origin_without_cookies_is_allowed(text: str) -> None:
    assert configured(f"[websocket]\norigins = *\n[identity]\n{text}\n").cookie_option == ""


def test_a_token_must_come_from_somewhere() -> None:
    error = forbidden("[identity]\njwt_keys = k\njwt_from =\n")
    assert (error.section, error.option, error.allowed) == ("identity", "jwt_from", "header, query, cookie")
