"""http/head: what a request or an answer may look like, and how its body ends."""

import pytest

from wsgate.errors import ProtocolError
from wsgate.http.head import (
    MAX_FIELDS,
    MAX_INTERIM_ANSWERS,
    NO_BODY,
    AnswerHead,
    AnswerReader,
    Body,
    BodyKind,
    Fields,
    HeadError,
    RequestHead,
    answer_body,
    field_line,
    request_body,
    request_line,
    upgrades,
)

HOST = ("Host", "www.test")


def request(*fields: tuple[str, str], method: str = "POST", version: str = "HTTP/1.1") -> RequestHead:
    return RequestHead(method, "/", version, (HOST, *fields))


def answer(*fields: tuple[str, str], status: int = 200, version: str = "HTTP/1.1") -> AnswerHead:
    return AnswerHead(version, status, "OK", fields)


def test_a_target_stays_as_it_was_written():
    target = "/a%2fb/../c;d?e=%zz&\xe4#f"
    assert request_line(f"GET {target} HTTP/1.1\r\n") == ("GET", target, "HTTP/1.1")
    assert request_line("QUERY / HTTP/1.0\r\n") == ("QUERY", "/", "HTTP/1.0")


@pytest.mark.parametrize(
    "line",
    [
        "GET / HTTP/1.1\n",
        "GET / HTTP/1.1",
        "GET  / HTTP/1.1\r\n",
        "GET /  HTTP/1.1\r\n",
        "GET\t/ HTTP/1.1\r\n",
        " GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1 \r\n",
        "GET / b HTTP/1.1\r\n",
        "GET /\x00 HTTP/1.1\r\n",
        "GET /\r HTTP/1.1\r\n",
        "GET /\x0b HTTP/1.1\r\n",
        "G(T / HTTP/1.1\r\n",
        "GET /\r\n",
        "GET / HTTP/0.9\r\n",
        "GET / HTTP/1.2\r\n",
        "GET / HTTP/2.0\r\n",
        "GET / http/1.1\r\n",
        "PRI * HTTP/2.0\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "GET http://www.test/ HTTP/1.1\r\n",
        "CONNECT www.test:443 HTTP/1.1\r\n",
        "GET www.test HTTP/1.1\r\n",
    ],
)
def test_request_lines_that_two_readers_could_read_differently(line: str):
    with pytest.raises(HeadError) as error:
        request_line(line)
    assert error.value.status == 400


def test_fields():
    assert field_line(b"X-A:b\r\n") == ("X-A", "b")
    assert field_line(b"X-A: \t b c:d\xff \t\r\n") == ("X-A", "b c:d\xff")
    assert field_line(b"X-A:\r\n") == ("X-A", "")


@pytest.mark.parametrize(
    "line",
    [
        b"X\r\n",
        b"X : y\r\n",
        b" X: y\r\n",
        b"\tfolded\r\n",
        b": y\r\n",
        b"X: y\n",
        b"X: y",
        b"X: a\rb\r\n",
        b"X: \0\r\n",
        b"X: a\nb\r\n",
        b"X\xe4: y\r\n",
        b"X y: z\r\n",
        b"X\0: z\r\n",
        b"X: y\r\r\n",
        b"X: \x7f\r\n",
    ],
)
def test_fields_that_two_readers_could_read_differently(line: bytes):
    with pytest.raises(HeadError):
        field_line(line)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (request(), NO_BODY),
        (request(("content-length", "0")), NO_BODY),
        (request(("Content-Length", "007")), Body(BodyKind.LENGTH, 7)),
        (request(("Content-Length", "9" * 18)), Body(BodyKind.LENGTH, 10**18 - 1)),
        (request(("TRANSFER-encoding", "Chunked")), Body(BodyKind.CHUNKED)),
        (request(("Expect", "100-Continue"), ("Content-Length", "5")), Body(BodyKind.LENGTH, 5)),
        (RequestHead("GET", "/", "HTTP/1.0", ()), NO_BODY),
        (RequestHead("GET", "/", "HTTP/1.1", (("Host", "[2001:db8::1]:443"),)), NO_BODY),
    ],
)
def test_how_the_body_of_a_request_ends(head: RequestHead, body: Body):
    assert request_body(head) == body


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((("Content-Length", "5"), ("Content-Length", "5")), 400),
        ((("Content-Length", "5"), ("Content-Length", "6")), 400),
        ((("Content-Length", "5, 5"),), 400),
        ((("Content-Length", "+5"),), 400),
        ((("Content-Length", "-5"),), 400),
        ((("Content-Length", "0x5"),), 400),
        ((("Content-Length", "5 5"),), 400),
        ((("Content-Length", "5_0"),), 400),
        ((("Content-Length", "\xb2"),), 400),
        ((("Content-Length", ""),), 400),
        ((("Content-Length", "9" * 19),), 400),
        ((("Content-Length", "5"), ("Transfer-Encoding", "chunked")), 400),
        ((("Transfer-Encoding", "chunked"), ("Content-Length", "0")), 400),
        ((("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")), 400),
        ((("Transfer-Encoding", "chunked, chunked"),), 400),
        ((("Transfer-Encoding", "gzip, chunked"),), 400),
        ((("Transfer-Encoding", "chunked, identity"),), 400),
        ((("Transfer-Encoding", "xchunked"),), 400),
        ((("Transfer-Encoding", "\x0bchunked"),), 400),
        ((("Transfer-Encoding", "chunked;q=1"),), 400),
        ((("Transfer-Encoding", '"chunked"'),), 400),
        ((("Transfer-Encoding", "gzip"),), 501),
        ((("Transfer-Encoding", "identity"), ("Content-Length", "5")), 400),
        ((("Host", "www.test"),), 400),
        ((("Host", "other.test"),), 400),
        ((("Expect", "200-ok"),), 417),
        ((("Expect", "100-continue"), ("Expect", "100-continue")), 417),
    ],
)
def test_smuggling_is_refused(fields: Fields, status: int):
    with pytest.raises(HeadError) as error:
        request_body(request(*fields))
    assert error.value.status == status


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request(method="CONNECT"), 405),
        (request(method="TRACE"), 405),
        (RequestHead("GET", "/", "HTTP/1.1", ()), 400),
        (RequestHead("GET", "/", "HTTP/1.1", (("Host", ""),)), 400),
        (RequestHead("GET", "/", "HTTP/1.1", (("Host", "a/b"),)), 400),
        (RequestHead("GET", "/", "HTTP/1.1", (("Host", "a@b"),)), 400),
        (RequestHead("GET", "/", "HTTP/1.1", (("Host", "a, b"),)), 400),
        (request(("Transfer-Encoding", "chunked"), version="HTTP/1.0"), 400),
    ],
)
def test_what_is_not_passed_on(head: RequestHead, status: int):
    with pytest.raises(HeadError) as error:
        request_body(head)
    assert error.value.status == status


@pytest.mark.parametrize(
    ("method", "head", "body"),
    [
        ("GET", answer(), Body(BodyKind.UNTIL_END)),
        ("GET", answer(version="HTTP/1.0"), Body(BodyKind.UNTIL_END)),
        ("GET", answer(("Content-Length", "3")), Body(BodyKind.LENGTH, 3)),
        ("GET", answer(("Content-Length", "0")), NO_BODY),
        ("GET", answer(("Transfer-Encoding", "chunked")), Body(BodyKind.CHUNKED)),
        ("HEAD", answer(("Content-Length", "3")), NO_BODY),
        ("HEAD", answer(("Transfer-Encoding", "chunked")), NO_BODY),
        ("GET", answer(status=204), NO_BODY),
        ("GET", answer(("Content-Length", "3"), status=304), NO_BODY),
        ("GET", answer(status=103), NO_BODY),
    ],
)
def test_how_the_body_of_an_answer_ends(method: str, head: AnswerHead, body: Body):
    assert answer_body(method, head) == body


@pytest.mark.parametrize(
    "head",
    [
        answer(("Content-Length", "3"), ("Transfer-Encoding", "chunked")),
        answer(("Content-Length", "3"), ("Content-Length", "3")),
        answer(("Content-Length", "-3")),
        answer(("Transfer-Encoding", "gzip, chunked")),
        answer(("Transfer-Encoding", "chunked"), version="HTTP/1.0"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_answer_in_doubt_is_refused(method: str, head: AnswerHead):
    with pytest.raises(ProtocolError):
        answer_body(method, head)


ANSWERS = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 \r\nLink: </a>\r\n\r\nHTTP/1.0 200\r\nA: b\r\nA:c\r\n\r\nbody\r\n\r\n"
)


@pytest.mark.parametrize("size", [*range(1, 12), len(ANSWERS)])
def test_answers_in_any_cut(size: int):
    reader, found = AnswerReader(), []
    for at in range(0, len(ANSWERS), size):
        head = reader.receive(ANSWERS[at : at + size])
        while head is not None and (not found or found[-1].status < 200):
            found.append(head)
            head = reader.receive() if head.status < 200 else None
        if found and found[-1].status >= 200:
            assert reader.rest + ANSWERS[at + size :] == b"body\r\n\r\n"
            break
    assert found == [
        AnswerHead("HTTP/1.1", 100, "Continue", ()),
        AnswerHead("HTTP/1.1", 103, "", (("Link", "</a>"),)),
        AnswerHead("HTTP/1.0", 200, "", (("A", "b"), ("A", "c"))),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"<html>\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 20000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INTERIM_ANSWERS + 1),
    ],
)
def test_malformed_answers(data: bytes):
    reader = AnswerReader()

    def read() -> None:
        head = reader.receive(data)
        while head is not None:
            head = reader.receive()

    with pytest.raises(ProtocolError):
        read()


def test_what_may_become_a_tunnel():
    offer = (("Connection", "keep-alive, Upgrade"), ("Upgrade", "WebSocket, h2c, foo/1"))
    assert upgrades(request(*offer)) == ["WebSocket", "foo/1"]
    assert upgrades(request(("Upgrade", "websocket"))) == []
    assert upgrades(request(*offer, version="HTTP/1.0")) == []
    assert upgrades(request(*offer, ("Content-Length", "5"))) == []
    for name in ("h2c", "h2", "HTTP/2.0", "TLS/1.0", "a b", "h3"):
        assert upgrades(request(("Connection", "upgrade"), ("Upgrade", name))) == []
