"""http/body: every kind of body, cut at every boundary, and what is no chunked body."""

import pytest

from wsgate.errors import ProtocolError
from wsgate.http.body import (
    MAX_CHUNK_LINE_BYTES,
    MAX_EXTENSION_BYTES,
    MAX_TRAILER_BYTES,
    BodyReader,
    chunk,
    last_chunk,
)
from wsgate.http.head import MAX_FIELDS, NO_BODY, Body, BodyKind

CHUNKED = Body(BodyKind.CHUNKED)
WHOLE = b'5\r\nhello\r\n1;a=b;c="d"\r\n,\r\n00006;\r\n world\r\n0;last\r\nX-Sum: 1\r\nX-B:\r\n\r\nGET /next'


def feed(body: Body, data: bytes, size: int) -> tuple[bytes, BodyReader]:
    reader = BodyReader(body)
    pieces = [reader.receive(data[at : at + size]) for at in range(0, len(data), size)]
    return b"".join(pieces), reader


@pytest.mark.parametrize("size", range(1, len(WHOLE) + 1))
def test_a_chunked_body_in_any_cut(size: int):
    payload, reader = feed(CHUNKED, WHOLE, size)
    assert (payload, reader.complete, reader.rest) == (b"hello, world", True, b"GET /next")
    assert reader.trailers == (("X-Sum", "1"), ("X-B", ""))


@pytest.mark.parametrize("cut", range(len(WHOLE)))
def test_a_chunked_body_cut_in_two(cut: int):
    reader = BodyReader(CHUNKED)
    assert reader.receive(WHOLE[:cut]) + reader.receive(WHOLE[cut:]) == b"hello, world"
    assert (reader.complete, reader.rest) == (True, b"GET /next")


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_a_body_of_known_length(size: int):
    payload, reader = feed(Body(BodyKind.LENGTH, 5), b"helloNEXT", size)
    assert (payload, reader.complete, reader.rest) == (b"hello", True, b"NEXT")


def test_no_body_and_one_until_the_end():
    payload, reader = feed(NO_BODY, b"NEXT", 2)
    assert (payload, reader.complete, reader.rest) == (b"", True, b"NEXT")
    payload, reader = feed(Body(BodyKind.UNTIL_END), b"hello", 2)
    assert (payload, reader.complete) == (b"hello", False)
    reader.receive_eof()
    assert reader.complete


@pytest.mark.parametrize("data", [b"", b"5", b"5\r\nhel", b"5\r\nhello", b"5\r\nhello\r\n", b"0\r\n", b"0\r\nA: b\r\n"])
def test_a_chunked_body_that_ends_early(data: bytes):
    reader = BodyReader(CHUNKED)
    reader.receive(data)
    with pytest.raises(ProtocolError):
        reader.receive_eof()


def test_a_length_that_is_not_reached():
    reader = BodyReader(Body(BodyKind.LENGTH, 5))
    reader.receive(b"hell")
    with pytest.raises(ProtocolError):
        reader.receive_eof()


@pytest.mark.parametrize(
    "data",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhelloX",
        b"5\r\nhello\rX",
        b"5\r\nhello\r\n0\r\n\n",
        b"5\r\nhello\r\n0\r\nA: b\n\r\n",
        b"5 \r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"-5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5h\r\nhello\r\n",
        b"\r\nhello\r\n",
        b";a\r\nhello\r\n",
        b"5\rhello\r\n",
        b"5;a\rb\r\nhello\r\n",
        b"5;a\nb\r\nhello\r\n",
        b"5;\0\r\nhello\r\n",
        b"5_0\r\nhello\r\n",
        b"123456789\r\n",
        b"000000000\r\n\r\n",
        b"f" * 300,
        b"5;" + b"a" * MAX_CHUNK_LINE_BYTES + b"\r\n",
        (b"1;" + b"a" * 200 + b"\r\nx\r\n") * (MAX_EXTENSION_BYTES // 200 + 1),
        b"0\r\n" + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n",
        b"0\r\nA: " + b"b" * MAX_TRAILER_BYTES + b"\r\n\r\n",
        b"0\r\n" + (b"A: " + b"b" * 1000 + b"\r\n") * 9 + b"\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\n folded\r\n\r\n",
        b"0\r\nno colon\r\n\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 7, 100000])
def test_what_is_no_chunked_body(data: bytes, size: int):
    with pytest.raises(ProtocolError):
        feed(CHUNKED, data, size)


def test_chunks_of_our_own_are_read_back():
    data = chunk(b"a" * 70000) + chunk(b"b") + last_chunk((("X-Sum", "\xe4"),))
    payload, reader = feed(CHUNKED, data, 4096)
    assert payload == b"a" * 70000 + b"b"
    assert (reader.complete, reader.rest, reader.trailers) == (True, b"", (("X-Sum", "\xe4"),))
