"""Messages cut out of a stream: any cut, keep-alives between them, limits judged before buffering."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.errors import ProtocolError
from wsgate.sip.framing import Broken, Event, Framed, Ping, Pong, StreamFramer, content_length


def request(body: bytes = b"", length: bytes | None = None, method: bytes = b"MESSAGE") -> bytes:
    if length is None:
        length = b"Content-Length: %d" % len(body)
    return (
        method + b" sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/TCP a.example.com;branch=z9hG4bKx\r\n"
        b"Call-ID: 1@a\r\n" + length + b"\r\n\r\n" + body
    )


def framer(max_header_bytes: int = 16384, max_message_bytes: int = 262144) -> StreamFramer:
    return StreamFramer(max_header_bytes, max_message_bytes)


WIRE = (
    request(b"hello"),
    b"\r\n\r\n",
    request(b""),
    request(b"\r\n\r\nContent-Length: 99\r\n\r\n"),
    b"\r\n\r\n",
    b"\r\n\r\n",
    request(b"\0\xff" * 700, method=b"x.y"),
)
EXPECTED: list[Event] = [Ping() if piece == b"\r\n\r\n" else Framed(piece) for piece in WIRE]


@given(st.lists(st.integers(0, len(b"".join(WIRE))), max_size=40))
def test_any_cut_gives_the_same_messages(cuts: list[int]) -> None:
    wire = b"".join(WIRE)
    machine = framer()
    events: list[Event] = []
    edges = [0, *sorted(cuts), len(wire)]
    for start, end in itertools.pairwise(edges):
        events += machine.receive(wire[start:end])
    assert events == EXPECTED
    assert not machine.unfinished


def test_byte_by_byte() -> None:
    machine = framer()
    events: list[Event] = []
    for byte in b"".join(WIRE):
        events += machine.receive(bytes((byte,)))
    assert events == EXPECTED


@pytest.mark.parametrize(
    "length",
    [
        b"l: 5",
        b"L:5",
        b"content-length : 5",
        b"CONTENT-LENGTH\t:\t5\t",
        b"Content-Length:\r\n 5",
        b"Content-Length\r\n : \r\n\t 005 ",
        b"l: 5\r\nContent-Length: 05",
    ],
)
def test_spellings_of_content_length(length: bytes) -> None:
    wire = request(b"12345", length)
    assert framer().receive(wire + b"\r\n\r\n") == [Framed(wire), Ping()]


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (b"Max-Forwards: 70", "missing"),
        (b"X-Content-Length: 5\r\nall: 5\r\nS: a\r\n l: 5", "missing"),
        (b"l: 5\r\nContent-Length: 6", "two values"),
        (b"l: -1", "not a number"),
        (b"l: 1, 1", "not a number"),
        (b"l:", "not a number"),
        (b"l: 5x", "not a number"),
        (b"l: " + b"9" * 4400, "not a number"),
        (b"Content-Length: 1073741824", "too large"),
    ],
)
def test_a_length_that_cannot_be_believed_ends_the_stream(length: bytes, reason: str) -> None:
    machine = framer()
    [event] = machine.receive(request(b"12345", length))
    assert isinstance(event, Broken)
    assert reason in event.reason
    assert event.head == request(b"", length)
    assert machine.receive(request()) == []


def test_what_came_whole_before_the_broken_byte_is_not_lost() -> None:
    events = framer().receive(request() + b"\r\n\r\n" + b"\0" + request())
    assert events == [Framed(request()), Ping(), Broken("not a SIP message")]


def test_a_field_in_the_start_line_is_not_a_field() -> None:
    with pytest.raises(ProtocolError, match="missing"):
        content_length(b"l: 5\r\nVia: x\r\n")


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00", b"\r\nGET", b"\rINVITE", b" INVITE", b"\n\n", b"\r\n\r\n\r\0"]
)
def test_garbage_is_noticed_at_its_first_byte(garbage: bytes) -> None:
    machine = framer()
    if garbage == b"\r\nGET":  # a token: only the head will tell
        assert machine.receive(garbage) == []
        return
    assert isinstance(machine.receive(garbage)[-1], Broken)


def test_lone_crlf_before_a_message_is_ignored() -> None:
    assert framer().receive(b"\r\n" + request()) == [Framed(request())]
    assert framer().receive(b"\r\n\r\n\r\n" + request()) == [Ping(), Framed(request())]


def test_a_ping_cut_in_the_middle_is_a_ping() -> None:
    machine = framer()
    assert machine.receive(b"\r\n") == []
    assert machine.receive(b"\r") == []
    assert machine.receive(b"\n") == [Ping()]


def test_the_answer_to_our_ping_is_a_pong_and_two_of_them_are_no_ping() -> None:
    machine = framer()
    for _ in range(2):
        machine.ping_sent()
        assert machine.receive(b"\r\n") == [Pong()]
    assert machine.receive(request()) == [Framed(request())]


def test_limits_are_judged_before_buffering() -> None:
    machine = framer(max_header_bytes=1000)
    start = b"INVITE sip:a SIP/2.0\r\nSubject: "
    machine.receive(start + b"a" * (1000 - len(start)))
    assert machine.receive(b"a") == [Broken("header section too large", b"INVITE sip:a SIP/2.0\r\n\r\n")]
    [event] = framer(max_header_bytes=50).receive(request())
    assert isinstance(event, Broken)
    assert event.reason == "header section too large"
    whole = request(b"x" * 100)
    assert framer(max_message_bytes=len(whole)).receive(whole) == [Framed(whole)]
    assert framer(max_message_bytes=len(whole) - 1).receive(whole[:-100]) == [Broken("message too large", whole[:-100])]


def test_a_long_head_in_small_pieces_is_searched_once() -> None:
    machine = framer(1 << 20, 1 << 20)
    machine.receive(b"INVITE sip:a SIP/2.0\r\nSubject: ")
    piece = b"\r\n a" * 2
    begin = time.process_time()
    for _ in range(100_000):
        machine.receive(piece)
    # Rescanning 800 KB from its start 100 000 times would take a minute.
    assert time.process_time() - begin < 5
    assert machine.receive(b"\r\nl: 0\r\n\r\n")[0].data.endswith(b"l: 0\r\n\r\n")  # type: ignore[union-attr]


def test_a_hostile_head_is_matched_in_linear_time() -> None:
    begin = time.process_time()
    for head in (b"\r\nl" + b"\r\n " * 80_000, b"\r\nl:" + b"\r\n " * 80_000 + b"x", b"\r\nl" * 80_000):
        with pytest.raises(ProtocolError):
            content_length(head)
    assert time.process_time() - begin < 2
