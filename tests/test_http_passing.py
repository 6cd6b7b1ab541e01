"""http/passing: which fields pass, which are ours, and what a stranger can say of himself."""

import pytest

from wsgate.errors import ProtocolError
from wsgate.http.head import NO_BODY, AnswerHead, Body, BodyKind, Fields, HeadError, RequestHead
from wsgate.http.passing import (
    MAX_PASSES,
    VIA,
    Client,
    passed_answer,
    passed_request,
    passed_trailers,
    passed_upgrade,
)

STRANGER = Client("198.51.100.7", "198.51.100.7", False, True)
RELAYED = Client("10.0.0.1", "198.51.100.7", True, True)
OURS = [
    "X-Forwarded-For: 198.51.100.7",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: www.test",
    "X-Real-IP: 198.51.100.7",
    f"Via: {VIA}",
    "Connection: close",
]


def passed(
    *fields: tuple[str, str], client: Client = STRANGER, body: Body = NO_BODY, version: str = "HTTP/1.1"
) -> list[str]:
    """The lines of a GET as it is passed on, without the blank one."""
    head = RequestHead("GET", "/a%2Fb?c", version, (("Host", "www.test"), *fields))
    text = passed_request(head, body, client, "127.0.0.1:8080").decode("latin-1")
    assert text.endswith("\r\n\r\n")
    return text[:-4].split("\r\n")


def answered(*fields: tuple[str, str], status: int = 200) -> AnswerHead:
    return AnswerHead("HTTP/1.1", status, "Some Reason", fields)


def test_what_is_the_clients_own_stays_byte_for_byte_and_in_its_order():
    fields = (("accept", "*/*"), ("Cookie", "a=b; c"), ("X-\xb4".replace("\xb4", "~"), "\xe4 \xff"), ("accept", "x"))
    assert passed(*fields) == [
        "GET /a%2Fb?c HTTP/1.1",
        "Host: www.test",
        *(f"{name}: {value}" for name, value in fields),
        *OURS,
    ]


@pytest.mark.parametrize(
    "name",
    [
        "X-Forwarded-For",
        "x-forwarded-for",
        "X_Forwarded_For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Server",
        "X-Forwarded-Port",
        "X-Forwarded-Anything",
        "Forwarded",
        "X-Real-IP",
        "X_Real-ip",
    ],
)
def test_a_stranger_says_nothing_about_himself(name: str):
    assert passed((name, "6.6.6.6")) == ["GET /a%2Fb?c HTTP/1.1", "Host: www.test", *OURS]


def test_a_trusted_relay_is_kept_and_appended_to():
    lines = passed(
        ("X-Forwarded-For", "6.6.6.6, 198.51.100.7"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Host", "shop.test"),
        ("X-Real-IP", "6.6.6.6"),
        ("Forwarded", "for=198.51.100.7"),
        ("Connection", "X-Forwarded-For"),
        client=RELAYED,
    )
    assert lines[2:] == [
        "X-Forwarded-For: 6.6.6.6, 198.51.100.7, 10.0.0.1",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Host: shop.test, www.test",
        "X-Real-IP: 198.51.100.7",
        'Forwarded: for=198.51.100.7, for=10.0.0.1;host="www.test";proto=https',
        f"Via: {VIA}",
        "Connection: close",
    ]


def test_an_ipv6_relay_in_forwarded():
    lines = passed(("Forwarded", "for=_x"), client=Client("2001:db8::1", "2001:db8::1", True, False))
    assert 'Forwarded: for=_x, for="[2001:db8::1]";host="www.test";proto=http' in lines
    assert "X-Forwarded-For: 2001:db8::1" in lines


@pytest.mark.parametrize(
    "field",
    [
        ("Connection", "keep-alive, X-Own"),
        ("X-Own", "named by Connection"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Trailer", "X-Sum"),
        ("Upgrade", "websocket"),
        ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
        ("Proxy", "http://evil.test"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic eDp5"),
    ],
)
def test_hop_by_hop_fields_end_here(field: tuple[str, str]):
    assert passed(("Connection", "x-own"), field) == ["GET /a%2Fb?c HTTP/1.1", "Host: www.test", *OURS]


def test_framing_is_written_anew():
    assert "Transfer-Encoding: chunked" in passed(("Transfer-Encoding", "Chunked"), body=Body(BodyKind.CHUNKED))
    length = passed(("Content-Length", "007"), ("Connection", "Content-Length"), body=Body(BodyKind.LENGTH, 7))
    assert [line for line in length if "ength" in line] == ["Content-Length: 7"]
    assert "Content-Length: 0" in passed(("Content-Length", "0"))
    assert not any("ength" in line or "ncoding" in line for line in passed())


def test_100_continue_passes_only_where_somebody_waits_for_it():
    expect, body = ("Expect", "100-continue"), Body(BodyKind.LENGTH, 5)
    assert "Expect: 100-continue" in passed(expect, ("Content-Length", "5"), body=body)
    assert not any("Expect" in line for line in passed(expect))
    assert not any("Expect" in line for line in passed(expect, ("Content-Length", "5"), body=body, version="HTTP/1.0"))


def test_an_old_client_without_host_asks_for_the_server_itself():
    head = RequestHead("GET", "/", "HTTP/1.0", ())
    lines = passed_request(head, NO_BODY, STRANGER, "127.0.0.1:8080").decode().split("\r\n")
    assert lines[:2] == ["GET / HTTP/1.1", "Host: 127.0.0.1:8080"]


def test_an_upgrade_keeps_its_two_fields():
    lines = passed(("Connection", "Upgrade"), ("Upgrade", "h2c, websocket"), ("Sec-WebSocket-Key", "x"))
    assert lines[-2:] == ["Connection: Upgrade", "Upgrade: websocket"]
    assert "Sec-WebSocket-Key: x" in lines
    assert passed(("Connection", "Upgrade"), ("Upgrade", "h2c"))[-1] == "Connection: close"


def test_via_is_kept_and_ends_a_loop():
    assert f"Via: 1.0 other, {VIA}" in passed(("Via", "1.0 other"))
    with pytest.raises(HeadError) as error:
        passed(*[("Via", VIA)] * MAX_PASSES)
    assert error.value.status == 508


@pytest.mark.parametrize(
    ("body", "chunked", "close", "last"),
    [
        (Body(BodyKind.LENGTH, 3), False, False, ["Content-Length: 3"]),
        (Body(BodyKind.LENGTH, 3), False, True, ["Content-Length: 3", "Connection: close"]),
        (Body(BodyKind.CHUNKED), True, False, ["Transfer-Encoding: chunked"]),
        (Body(BodyKind.UNTIL_END), False, True, ["Connection: close"]),
    ],
)
def test_answers(body: Body, chunked: bool, close: bool, last: list[str]):
    fields: Fields = (
        ("Set-Cookie", "a"),
        ("Set-Cookie", "b"),
        ("Connection", "Upgrade, x-hop"),
        ("Upgrade", "h2,h2c"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authenticate", "Basic"),
    )
    head = passed_answer(answered(*fields), body, chunked=chunked, close=close).decode()
    assert head[:-4].split("\r\n") == ["HTTP/1.1 200 Some Reason", "Set-Cookie: a", "Set-Cookie: b", *last]


@pytest.mark.parametrize(("status", "said"), [(200, True), (304, True), (204, False), (103, False)])
def test_the_length_of_what_is_not_sent(status: int, said: bool):
    head = passed_answer(answered(("Content-Length", "9"), status=status), NO_BODY, chunked=False, close=False)
    assert (b"Content-Length: 9" in head) is said


def test_a_101_must_take_up_what_was_offered():
    head = RequestHead("GET", "/", "HTTP/1.1", (("Host", "a"), ("Connection", "upgrade"), ("Upgrade", "WebSocket")))
    good = answered(("Upgrade", "websocket"), ("Connection", "upgrade"), ("Sec-WebSocket-Accept", "x"), status=101)
    assert passed_upgrade(head, good).decode()[:-4].split("\r\n") == [
        "HTTP/1.1 101 Some Reason",
        "Sec-WebSocket-Accept: x",
        "Connection: Upgrade",
        "Upgrade: websocket",
    ]
    for other in (answered(status=101), answered(("Upgrade", "h2c"), status=101)):
        with pytest.raises(ProtocolError):
            passed_upgrade(head, other)
    plain = RequestHead("GET", "/", "HTTP/1.1", (("Host", "a"),))
    with pytest.raises(ProtocolError):
        passed_upgrade(plain, good)


def test_trailers_that_may_pass():
    fields = tuple((name, "1") for name in ("Host", "Content-Length", "Transfer-Encoding", "X-Forwarded-For", "Cookie"))
    assert passed_trailers((*fields, ("X-Sum", "1"), ("Authorization", "1"), ("Connection", "x"))) == (("X-Sum", "1"),)
