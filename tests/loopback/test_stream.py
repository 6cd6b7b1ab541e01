"""net/stream over sockets, plain and TLS: rules H3 to H7 by bytes, and that one stream never costs another."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from tests.loopback.websocket_peer import Recorder, Running, echo, head, running, server_context, wait_until
from wsgate import guard
from wsgate.guard import LimitSettings
from wsgate.net import stream as stream_module
from wsgate.net.readers import MAX_READERS
from wsgate.net.stream import WebSocketStream
from wsgate.settings import Switch
from wsgate.ws.connection import WebSocketSettings
from wsgate.ws.frames import Opcode, close_body

Start = Callable[..., contextlib.AbstractContextManager[Running]]


@pytest.fixture(params=[False, True], ids=["ws", "wss"])
def tls(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def start(tls: bool, tmp_path: Path) -> Start:
    @contextlib.contextmanager
    def with_or_without_tls(handler: Recorder | None = None, **options: object) -> Iterator[Running]:
        if tls:
            options |= {"context": server_context(tmp_path), "tls": Switch.ON}
        with running(handler, **options) as server:
            yield server

    return with_or_without_tls


@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536, 200000])
def test_messages_of_every_length_come_and_go(start: Start, tls: bool, size: int) -> None:
    with start(Recorder(echo)) as server:
        browser = server.browser(tls)
        for _ in range(3):
            browser.send_frame(Opcode.TEXT, b"x" * size)
            assert browser.read_frame() == (Opcode.TEXT, b"x" * size)
        browser.close()


def test_h4_text_when_it_is_utf_8_else_binary(start: Start, tls: bool) -> None:
    with start(Recorder(echo)) as server:
        browser = server.browser(tls)
        browser.send_frame(Opcode.BINARY, b"text in a binary frame")
        assert browser.read_frame() == (Opcode.TEXT, b"text in a binary frame")
        browser.send_frame(Opcode.BINARY, b"\xff\xfe")
        assert browser.read_frame() == (Opcode.BINARY, b"\xff\xfe")
        browser.close()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xc1\x80\0\0\0\0", 1002),
        (b"\x81\x05Hello", 1002),
        (b"\x81\x81\0\0\0\0\xff", 1007),
        (b"\x82\xff\0\0\0\0\x40\0\0\0", 1009),
    ],
)
def test_h3_the_close_code_arrives_although_more_was_sent_behind(
    start: Start, tls: bool, data: bytes, code: int
) -> None:
    with start() as server:
        browser = server.browser(tls)
        browser.send(data + b"\x81\x85\0\0\0\0after" * 1000)
        assert browser.read_close() == code
        wait_until(lambda: server.handler.ended)
        assert server.handler.messages == []
        assert server.counters.values[f"websocket_closed_{code}"] == 1
        browser.close()


def test_h3_a_close_is_answered_and_tcp_closes(start: Start, tls: bool) -> None:
    with start() as server:
        browser = server.browser(tls)
        browser.send_frame(Opcode.CLOSE, close_body(3000, "bye"))
        assert browser.read_close() == 3000
        browser.close()
        wait_until(lambda: server.guard.connections == 0)


def test_the_handler_need_not_wait_for_a_peer_that_keeps_tcp_open(
    start: Start, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "LINGER_TIMEOUT", 0.3)
    with start() as server:
        browser = server.browser(tls)
        browser.send_frame(Opcode.CLOSE, close_body(1000))
        wait_until(lambda: server.handler.ended)
        assert server.guard.connections == 1
        browser.send(b"thrown away")
        wait_until(lambda: server.guard.connections == 0)
        assert len(server.handler.ended) == 1
        browser.close()


def test_stop_sends_what_is_queued_and_tells_the_handler(start: Start, tls: bool) -> None:
    with start() as server:
        browser = server.browser(tls)
        server.listener.close(1001, "")
        server.listener.stop()
        assert len(server.handler.ended) == 1
        assert browser.read_frame() == (Opcode.CLOSE, close_body(1001))
        browser.close()


def test_h5_keep_alives(start: Start, tls: bool) -> None:
    with start(Recorder(echo)) as server:
        browser = server.browser(tls)
        browser.send_frame(Opcode.PING, b"payload")
        assert browser.read_frame() == (Opcode.PONG, b"payload")
        browser.send_frame(Opcode.TEXT, b"\r\n")
        browser.send_frame(Opcode.TEXT, b"")
        browser.send_frame(Opcode.BINARY, b"\r\n\r\n")
        assert browser.read_frame() == (Opcode.BINARY, b"\r\n")
        browser.send_frame(Opcode.TEXT, b"\r\n\r\n")
        assert browser.read_frame() == (Opcode.TEXT, b"\r\n")
        assert server.handler.messages == []
        browser.close()


def test_h5_pings_and_a_silent_peer_is_dropped(start: Start, tls: bool) -> None:
    with start(websocket=WebSocketSettings(ping_interval=0.2, ping_misses=2)) as server:
        silent, lively = server.browser(tls), server.browser(tls)
        for _ in range(6):
            assert lively.read_frame() == (Opcode.PING, b"")
            lively.send_frame(Opcode.PONG)
        assert server.handler.ended == server.handler.streams[:1]
        assert [silent.read_frame() for _ in range(2)] == [(Opcode.PING, b"")] * 2
        assert silent.is_cut()
        assert server.handler.streams[1].is_open
        lively.close()


def test_h6_a_peer_that_does_not_read_is_cut_off_and_nobody_else(start: Start, tls: bool) -> None:
    """H6: once its queue passes max_send_queue."""

    def send_much(stream: WebSocketStream, data: bytes) -> None:
        if data == b"much":
            results.append([stream.send(b"y" * 60000) for _ in range(1000)][-1])
        else:
            stream.send(data)

    results: list[bool] = []
    with start(Recorder(send_much), websocket=WebSocketSettings(max_send_queue=500000)) as server:
        deaf, other = server.browser(tls), server.browser(tls)
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.send_frame(Opcode.TEXT, b"much")
        wait_until(lambda: server.handler.ended)
        assert results == [False]
        assert server.counters.values["websocket_send_queue_cut"] == 1
        assert server.guard.connections == 1
        other.send_frame(Opcode.TEXT, b"still there")
        assert other.read_frame() == (Opcode.TEXT, b"still there")
        other.close()
        deaf.close()


def test_h6_frames_of_many_writers_never_interleave(start: Start, tls: bool) -> None:
    """H6: one writer at a time."""

    with start(websocket=WebSocketSettings(max_send_queue=8000000)) as server:
        browser = server.browser(tls)
        stream = server.handler.streams[0]

        def write(letter: bytes) -> None:
            for number in range(20):
                assert stream.send(letter * (1000 + 997 * number))
                gevent.sleep(0)

        writers = [gevent.spawn(write, bytes((letter,))) for letter in b"abcdefgh"]
        frames = []
        for _ in range(160):
            frames.append(browser.read_frame()[1])
            gevent.sleep(0)
        gevent.joinall(writers, raise_error=True)
        assert all(frame == frame[:1] * len(frame) for frame in frames)
        assert sorted(map(len, frames)) == sorted(1000 + 997 * number for number in range(20) for _ in range(8))
        browser.close()


def test_h7_tcp_nodelay_is_set_on_every_stream(start: Start, tls: bool) -> None:
    with start() as server:
        browser = server.browser(tls)
        wait_until(lambda: server.handler.streams)
        sock = server.handler.streams[0]._socket
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        browser.close()


@pytest.mark.parametrize("code", [1001, 1012])
def test_our_close_carries_its_code_and_waits_for_the_peer(start: Start, tls: bool, code: int) -> None:
    with start() as server:
        browser = server.browser(tls)
        server.listener.close(code, "shutting down")
        assert not server.handler.streams[0].send(b"too late")
        assert browser.read_frame() == (Opcode.CLOSE, close_body(code, "shutting down"))
        assert server.handler.ended == []
        browser.send_frame(Opcode.CLOSE, close_body(code))
        assert browser.read_to_end() == b""
        wait_until(lambda: server.handler.ended)
        browser.close()


def test_too_many_messages_are_refused_then_closed_with_1008(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "EXCESS_ALLOWED", 0.3)
    with running(limits=LimitSettings(messages_per_second=10)) as server:
        browser, other = server.browser(), server.browser()
        while not server.counters.values["websocket_floods_closed"]:
            browser.send_frame(Opcode.TEXT, b"flood")
            gevent.sleep(0.001)
        opcode, payload = browser.read_frame()
        assert (opcode, payload[:2]) == (Opcode.CLOSE, (1008).to_bytes(2, "big"))
        assert 20 <= len(server.handler.messages) <= 30
        assert len(server.handler.refusals) > 20
        other.send_frame(Opcode.TEXT, b"other")
        wait_until(lambda: server.handler.messages[-1] == b"other")
        browser.close()
        other.close()


def test_a_flood_of_pings_counts_as_one_of_messages() -> None:
    with running(limits=LimitSettings(messages_per_second=10)) as server:
        browser = server.browser()
        for _ in range(30):
            browser.send_frame(Opcode.PING)
        browser.send_frame(Opcode.TEXT, b"one more")
        wait_until(lambda: server.handler.refusals == [b"one more"])
        browser.close()


def test_an_error_of_the_handler_closes_one_stream_with_1011() -> None:
    def fail(stream: WebSocketStream, data: bytes) -> None:
        if data == b"fail":
            raise RuntimeError("a bug")
        stream.send(data)

    with running(Recorder(fail)) as server:
        broken, other = server.browser(), server.browser()
        broken.send_frame(Opcode.TEXT, b"fail")
        opcode, payload = broken.read_frame()
        assert (opcode, payload[:2]) == (Opcode.CLOSE, (1011).to_bytes(2, "big"))
        other.send_frame(Opcode.TEXT, b"hello")
        assert other.read_frame() == (Opcode.TEXT, b"hello")
        assert server.counters.values["internal_errors"] == 1
        broken.close()
        other.close()


def test_a_handler_that_blocks_holds_up_its_own_stream_only() -> None:
    go = Event()

    def block(stream: WebSocketStream, data: bytes) -> None:
        if data == b"block":
            go.wait()
        stream.send(data)

    with running(Recorder(block)) as server:
        blocked, other = server.browser(), server.browser()
        blocked.send_frame(Opcode.TEXT, b"block")
        wait_until(lambda: server.handler.messages == [b"block"])
        blocked.send_frame(Opcode.TEXT, b"after")
        for _ in range(5):
            other.send_frame(Opcode.TEXT, b"hello")
            assert other.read_frame() == (Opcode.TEXT, b"hello")
        assert b"after" not in server.handler.messages
        go.set()
        assert blocked.read_frame() == (Opcode.TEXT, b"block")
        assert blocked.read_frame() == (Opcode.TEXT, b"after")
        assert len(server.listener.streams._readers) <= 3 < MAX_READERS
        blocked.close()
        other.close()


def test_abort_and_loss_are_told_once(start: Start, tls: bool) -> None:
    with start() as server:
        aborted, lost = server.browser(tls), server.browser(tls)
        server.handler.streams[0].abort()
        server.handler.streams[0].abort()
        assert aborted.is_cut()
        lost.close()
        wait_until(lambda: len(server.handler.ended) == 2)
        assert server.guard.claimed("127.0.0.1") == 0


def test_sending_from_within_closed_and_after_it_is_harmless() -> None:
    class Sends(Recorder):
        def closed(self, stream: WebSocketStream) -> None:
            super().closed(stream)
            assert not stream.send(b"gone")
            stream.close(1000, "gone")

    with running(Sends()) as server:
        server.browser().close()
        wait_until(lambda: server.handler.ended)
        assert server.counters.values["internal_errors"] == 0


def test_one_message_of_64_kb_after_another_leaves_the_others_their_turn() -> None:
    with running(Recorder(lambda stream, data: len(data) < 100 and stream.send(data))) as server:
        heavy, light = server.browser(), server.browser()

        def load() -> None:
            for _ in range(100):
                heavy.send_frame(Opcode.BINARY, b"z" * 65536)

        loader = gevent.spawn(load)
        for _ in range(20):
            light.send_frame(Opcode.TEXT, b"light")
            assert light.read_frame() == (Opcode.TEXT, b"light")
        loader.join()
        wait_until(lambda: len(server.handler.messages) + len(server.handler.refusals) == 120)
        heavy.close()
        light.close()


def test_half_a_head_behind_an_open_stream_is_nothing() -> None:
    with running() as server:
        browser = server.browser()
        browser.send(head())
        assert browser.read_close() == 1002
        browser.close()
