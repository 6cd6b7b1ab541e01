"""ws/handshake: rules H1 and H2 as answers to one request, and the client's side."""

from __future__ import annotations

import pytest

from wsgate.errors import ProtocolError
from wsgate.ws.handshake import MAX_HEAD_BYTES, ClientHandshake, UpgradeRequest, accept_key, refusal

GOOD = {
    "Host": "phone.example.com",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "sip",
}


def judge(
    changes: dict[str, str | None] | None = None,
    method: str = "GET",
    version: str = "HTTP/1.1",
    origins: tuple[str, ...] = ("same",),
    twice: str = "",
) -> str:
    fields = {**GOOD, **(changes or {})}
    pairs = [(name, value) for name, value in fields.items() if value is not None]
    pairs += [pair for pair in pairs if pair[0] == twice]
    answer = refusal(UpgradeRequest(method, version, tuple(pairs)), fields["Host"] or "", origins)
    return "101" if answer is None else answer.status[:3]


def test_accept_key_of_the_rfc() -> None:
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({}, "101"),
        ({"Upgrade": "WebSocket"}, "101"),
        ({"Upgrade": "h2c, websocket"}, "101"),
        ({"Connection": "UPGRADE"}, "101"),
        ({"Sec-WebSocket-Protocol": "chat, sip"}, "101"),
        ({"Sec-WebSocket-Extensions": "permessage-deflate"}, "101"),
        ({"Host": None}, "400"),
        ({"Host": "a b"}, "400"),
        ({"Host": "<script>"}, "400"),
        ({"Upgrade": None}, "400"),
        ({"Upgrade": "websockets"}, "400"),
        ({"Connection": "keep-alive"}, "400"),
        ({"Connection": "upgraded"}, "400"),
        ({"Sec-WebSocket-Version": None}, "426"),
        ({"Sec-WebSocket-Version": "8"}, "426"),
        ({"Sec-WebSocket-Version": "013"}, "426"),
        ({"Sec-WebSocket-Key": None}, "400"),
        ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ="}, "400"),
        ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25j"}, "400"),
        ({"Sec-WebSocket-Key": "dGhl!HNhbXBsZSBub25jZQ=="}, "400"),
        ({"Sec-WebSocket-Protocol": None}, "400"),
        ({"Sec-WebSocket-Protocol": "SIP"}, "400"),
        ({"Sec-WebSocket-Protocol": "sip.instant"}, "400"),
        ({"Sec-WebSocket-Protocol": "xsip"}, "400"),
        ({"Transfer-Encoding": "chunked"}, "400"),
        ({"Content-Length": "5"}, "400"),
        ({"Content-Length": "0"}, "101"),
    ],
)
def test_h1_and_h2(changes: dict[str, str | None], answer: str) -> None:
    assert judge(changes) == answer


@pytest.mark.parametrize(
    ("name", "answer"), [("Host", "400"), ("Sec-WebSocket-Key", "400"), ("Sec-WebSocket-Version", "426")]
)
def test_h1_what_may_stand_once(name: str, answer: str) -> None:
    assert judge(twice=name) == answer


def test_h1_method_and_version() -> None:
    assert judge(method="POST") == "405"
    assert judge(version="HTTP/1.0") == "400"


def test_h1_426_says_13() -> None:
    answer = refusal(
        UpgradeRequest("GET", "HTTP/1.1", (("Host", "h"), ("Upgrade", "websocket"), ("Connection", "upgrade"))), "h", ()
    )
    assert answer is not None
    assert answer.fields == (("Sec-WebSocket-Version", "13"),)


@pytest.mark.parametrize(
    ("origin", "origins", "answer"),
    [
        (None, ("same",), "101"),
        ("https://phone.example.com", ("same",), "101"),
        ("https://PHONE.example.com:8443", ("same",), "101"),
        ("https://evil.example", ("same",), "403"),
        ("https://phone.example.com.evil.example", ("same",), "403"),
        ("null", ("same",), "403"),
        ("", ("same",), "403"),
        ("https://[", ("same",), "403"),
        ("https://evil.example", ("*",), "101"),
        (None, ("https://app.example",), "403"),
        ("https://app.example", ("https://app.example",), "101"),
        ("https://APP.example", ("https://app.example/",), "101"),
        ("http://app.example", ("https://app.example",), "403"),
        ("https://phone.example.com", ("https://app.example",), "403"),
        ("https://phone.example.com", ("https://app.example", "same"), "101"),
        ("same", ("same",), "403"),
    ],
)
def test_h1_origin(origin: str | None, origins: tuple[str, ...], answer: str) -> None:
    assert judge({"Origin": origin}, origins=origins) == answer


def test_h1_two_origins_are_none() -> None:
    assert judge({"Origin": "https://phone.example.com"}, twice="Origin") == "403"


RANDOM = bytes(range(16))


def answer_to(handshake: ClientHandshake, **changes: str) -> bytes:
    key = dict(line.split(": ", 1) for line in handshake.request.decode().split("\r\n")[1:-2])["Sec-WebSocket-Key"]
    fields = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": accept_key(key),
        "Sec-WebSocket-Protocol": "sip",
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value]
    return ("HTTP/1.1 101 Switching Protocols\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


def test_client_handshake_is_judged_good_by_our_own_server() -> None:
    request = ClientHandshake("pbx.example.com:8080", "/ws", lambda count: RANDOM[:count], [("X-A", "b")]).request
    head, *lines = request.decode().rstrip("\r\n").split("\r\n")
    fields = tuple(tuple(line.split(": ", 1)) for line in lines)
    assert head == "GET /ws HTTP/1.1"
    assert ("X-A", "b") in fields
    assert refusal(UpgradeRequest("GET", "HTTP/1.1", fields), "pbx.example.com:8080", ("same",)) is None


def test_client_takes_the_answer_byte_by_byte_and_keeps_what_is_behind_it() -> None:
    handshake = ClientHandshake("h", "/", lambda count: RANDOM[:count])
    answer = answer_to(handshake)
    for byte in answer[:-1]:
        assert handshake.receive(bytes((byte,))) is None
    assert handshake.receive(answer[-1:] + b"\x81\x00") == b"\x81\x00"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Sec_WebSocket_Accept": "wrong"}, "Accept"),
        ({"Sec_WebSocket_Protocol": ""}, "subprotocol"),
        ({"Sec_WebSocket_Protocol": "chat"}, "subprotocol"),
        ({"Sec_WebSocket_Extensions": "permessage-deflate"}, "extension"),
        ({"Upgrade": ""}, "no upgrade"),
        ({"Connection": "close"}, "no upgrade"),
        ({"Bad Field ": "x"}, "malformed"),
    ],
)
def test_client_refuses_a_wrong_answer(changes: dict[str, str], reason: str) -> None:
    handshake = ClientHandshake("h", "/", lambda count: RANDOM[:count])
    with pytest.raises(ProtocolError, match=reason):
        handshake.receive(answer_to(handshake, **changes))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403"),
        (b"HTTP/1.0 101 Switching\r\n\r\n", "does not speak"),
        (b"SIP/2.0 200 OK\r\n\r\n", "does not speak"),
        (b"x" * (MAX_HEAD_BYTES + 1), "too long"),
    ],
)
def test_client_refuses_what_is_no_101(answer: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        ClientHandshake("h", "/", lambda count: RANDOM[:count]).receive(answer)
