"""ws/connection: rules H3 to H5 by bytes, both roles, the clock moved by hand."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.ws.connection import (
    CLOSE_TIMEOUT,
    Closed,
    Connection,
    KeepAlive,
    Message,
    Ping,
    Pong,
    Role,
    State,
    WebSocketSettings,
)
from wsgate.ws.frames import Opcode, close_body, serialize

MASK = b"\x11\x22\x33\x44"
SETTINGS = WebSocketSettings(max_message_bytes=1024, max_fragments=4, ping_interval=25, ping_misses=2)


def server(settings: WebSocketSettings = SETTINGS) -> Connection:
    return Connection(Role.SERVER, settings, lambda count: b"\0" * count, 0.0)


def client(settings: WebSocketSettings = SETTINGS) -> Connection:
    return Connection(Role.CLIENT, settings, lambda count: MASK[:count], 0.0)


def masked(opcode: Opcode, payload: bytes = b"", final: bool = True) -> bytes:
    return serialize(opcode, payload, MASK, final)


def test_text_and_binary_are_messages() -> None:
    data = masked(Opcode.TEXT, b"OPTIONS") + masked(Opcode.BINARY, b"\xff\x00")
    assert server().receive(data, 0.0) == [Message(b"OPTIONS", True), Message(b"\xff\x00", False)]


@pytest.mark.parametrize("size", [0, 1, 5, 125, 126, 1000, 1024])
def test_byte_by_byte_gives_the_same(size: int) -> None:
    connection, events = server(), []
    for byte in masked(Opcode.BINARY, b"x" * size) + masked(Opcode.TEXT, b"next"):
        events += connection.receive(bytes((byte,)), 0.0)
    assert [event.data for event in events] == [b"x" * size, b"next"]


def test_fragments_are_joined_and_a_ping_between_them_is_answered_h5() -> None:
    connection = server()
    events = connection.receive(masked(Opcode.TEXT, b"Hel", final=False), 0.0)
    events += connection.receive(masked(Opcode.PING, b"p") + masked(Opcode.CONTINUATION, b"lo"), 0.0)
    assert events == [Ping(b"p"), Message(b"Hello", True)]
    assert connection.data_to_send() == serialize(Opcode.PONG, b"p")
    assert connection.data_to_send() == b""


def test_a_character_may_be_cut_by_a_fragment() -> None:
    connection = server()
    assert connection.receive(masked(Opcode.TEXT, b"\xc3", final=False), 0.0) == []
    assert connection.receive(masked(Opcode.CONTINUATION, b"\xbc"), 0.0) == [Message("ü".encode(), True)]


H3_CASES = {
    "reserved bit": (b"\xc1\x80", 1002),
    "unknown opcode": (b"\x83\x80", 1002),
    "unmasked": (b"\x81\x05Hello", 1002),
    "fragmented control": (b"\x09\x80", 1002),
    "long control": (b"\x89\xfe\x00\x7e", 1002),
    "continuation without start": (masked(Opcode.CONTINUATION, b"x"), 1002),
    "data inside a message": (masked(Opcode.TEXT, b"a", final=False) + masked(Opcode.TEXT, b"b"), 1002),
    "long form of a short length": (b"\x81\xfe\x00\x05" + MASK, 1002),
    "bad close code": (masked(Opcode.CLOSE, b"\x03\xed"), 1002),
    "one byte close": (masked(Opcode.CLOSE, b"\x03"), 1002),
    "close reason not utf-8": (masked(Opcode.CLOSE, b"\x03\xe8\xff"), 1007),
    "text not utf-8": (masked(Opcode.TEXT, b"a\xff"), 1007),
    "utf-8 broken across fragments": (
        masked(Opcode.TEXT, b"\xc3", final=False) + masked(Opcode.CONTINUATION, b"a", final=False),
        1007,
    ),
    "utf-8 not finished": (masked(Opcode.TEXT, b"\xc3", final=False) + masked(Opcode.CONTINUATION, b""), 1007),
    "surrogate": (masked(Opcode.TEXT, b"\xed\xa0\x80"), 1007),
    "frame too big by its header": (b"\x82\xfe\x04\x01", 1009),
    "sum of fragments too big by its header": (
        masked(Opcode.BINARY, b"x" * 1000, final=False) + b"\x80\x99",
        1009,
    ),
    "too many fragments": (
        masked(Opcode.BINARY, b"", final=False) + masked(Opcode.CONTINUATION, b"", final=False) * 4,
        1009,
    ),
}


@pytest.mark.parametrize(("data", "code"), H3_CASES.values(), ids=H3_CASES)
def test_h3_closes_with_the_code_and_reads_nothing_behind(data: bytes, code: int) -> None:
    connection = server()
    events = connection.receive(data + masked(Opcode.TEXT, b"behind"), 0.0)
    assert isinstance(events[-1], Closed)
    assert events[-1].code == code
    assert Message(b"behind", True) not in events
    sent = connection.data_to_send()
    assert sent[0] == 0x88
    assert sent[2:4] == code.to_bytes(2, "big")
    assert connection.state is State.CLOSED
    assert connection.receive(masked(Opcode.TEXT, b"later"), 0.0) == []
    assert connection.next_timer() is None


def test_h3_a_header_that_claims_1_gib_costs_no_memory() -> None:
    connection = server(WebSocketSettings())
    tracemalloc.start()
    events = connection.receive(b"\x82\xff\x00\x00\x00\x00\x40\x00\x00\x00", 0.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert events == [Closed(1009, "message is too big")]
    assert peak < 16384


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
def test_h3_a_close_is_answered_with_the_same_code_and_nothing_behind_it_is_read(code: int) -> None:
    connection = server()
    data = masked(Opcode.CLOSE, close_body(code, "bye")) + masked(Opcode.PING, b"behind")
    assert connection.receive(data, 0.0) == [Closed(code, "bye")]
    assert connection.data_to_send() == serialize(Opcode.CLOSE, code.to_bytes(2, "big"))


def test_an_empty_close_is_answered_empty() -> None:
    connection = server()
    assert connection.receive(masked(Opcode.CLOSE), 0.0) == [Closed(1005, "")]
    assert connection.data_to_send() == b"\x88\x00"


def test_our_close_waits_for_the_peers_and_passes_no_message_on() -> None:
    connection = server()
    connection.close(1001, "shutting down", 10.0)
    assert connection.data_to_send() == serialize(Opcode.CLOSE, close_body(1001, "shutting down"))
    assert connection.state is State.CLOSING
    connection.send_message(b"too late")
    connection.close(1012, "again", 10.0)
    assert connection.receive(masked(Opcode.TEXT, b"in flight"), 11.0) == []
    assert connection.receive(masked(Opcode.CLOSE, close_body(1001)), 11.0) == [Closed(1001, "")]
    assert connection.data_to_send() == b""


def test_our_close_without_an_answer_ends() -> None:
    connection = server()
    connection.close(1012, "", 10.0)
    assert connection.next_timer() == 10.0 + CLOSE_TIMEOUT
    assert connection.handle_timer(14.9) == []
    assert connection.handle_timer(15.0) == [Closed(1006, "no answer to close")]


def test_h4_text_when_it_is_utf_8_else_binary() -> None:
    connection = server()
    connection.send_message("grüß".encode())
    connection.send_message(b"\xff")
    connection.send_message(b"ascii")
    assert connection.data_to_send() == (
        serialize(Opcode.TEXT, "grüß".encode()) + serialize(Opcode.BINARY, b"\xff") + serialize(Opcode.TEXT, b"ascii")
    )


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
def test_h5_crlfcrlf_gets_crlf_in_the_same_type(opcode: Opcode) -> None:
    connection = server()
    assert connection.receive(masked(opcode, b"\r\n\r\n"), 0.0) == [KeepAlive(b"\r\n\r\n")]
    assert connection.data_to_send() == serialize(opcode, b"\r\n")


@pytest.mark.parametrize("data", [b"", b"\r\n"])
def test_h5_a_lone_crlf_and_an_empty_message_are_ignored(data: bytes) -> None:
    connection = server()
    assert connection.receive(masked(Opcode.TEXT, data), 0.0) == [KeepAlive(data)]
    assert connection.data_to_send() == b""


def test_h5_pings_and_a_peer_that_missed_them_is_dropped() -> None:
    connection = server()
    assert connection.next_timer() == 25.0
    assert connection.handle_timer(24.0) == []
    assert connection.data_to_send() == b""
    for now in (25.0, 50.0):
        assert connection.handle_timer(now) == []
        assert connection.data_to_send() == b"\x89\x00"
    assert connection.handle_timer(75.0) == [Closed(1006, "no answer to ping")]
    assert connection.data_to_send() == b""


def test_h5_a_pong_saves_the_peer() -> None:
    connection = server()
    for round_number in range(1, 10):
        now = 25.0 * round_number
        assert connection.handle_timer(now) == []
        assert connection.receive(masked(Opcode.PONG), now + 1) == [Pong(b"")]
    assert connection.state is State.OPEN


def test_the_end_of_tcp_is_1006() -> None:
    connection = server()
    assert connection.receive_eof() == [Closed(1006, "connection lost")]
    assert connection.receive_eof() == []
    assert connection.handle_timer(1000.0) == []


def test_client_role_masks_and_refuses_masked_frames() -> None:
    connection = client()
    connection.send_message(b"REGISTER")
    assert connection.data_to_send() == masked(Opcode.TEXT, b"REGISTER")
    assert connection.receive(serialize(Opcode.TEXT, b"200"), 0.0) == [Message(b"200", True)]
    assert connection.receive(masked(Opcode.TEXT, b"200"), 0.0) == [Closed(1002, "frame is masked")]


@given(st.lists(st.tuples(st.binary(max_size=200), st.integers(1, 60)), max_size=8), st.integers(1, 97))
def test_two_machines_joined_in_any_chunks(messages: list[tuple[bytes, int]], step: int) -> None:
    sender, receiver = client(), server()
    for data, _ in messages:
        sender.send_message(data)
    wire, received = sender.data_to_send(), []
    for start in range(0, len(wire), step):
        received += receiver.receive(wire[start : start + step], 0.0)
    assert [event.data for event in received] == [data for data, _ in messages]


@given(st.lists(st.binary(max_size=64), max_size=6))
def test_any_bytes_end_in_events_never_in_an_exception(chunks: list[bytes]) -> None:
    connection = server()
    for chunk in chunks:
        for event in connection.receive(chunk, 0.0):
            assert isinstance(event, Message | KeepAlive | Ping | Pong | Closed)
    assert len(connection.data_to_send()) < 4096
