"""net/upgrade over sockets: rules H1 and H2, limits of the head, who the client is, and that nothing stays behind."""

from __future__ import annotations

import contextlib
import gc
import random
import socket

import pytest

from tests.loopback.websocket_peer import ACCEPT, LOOPBACK, MASK, Browser, Recorder, echo, head, running, wait_until
from wsgate.guard import LimitSettings
from wsgate.net import upgrade as upgrade_module
from wsgate.net.upgrade import UpgradeHandler
from wsgate.ws.connection import WebSocketSettings
from wsgate.ws.frames import Opcode, serialize


@pytest.mark.parametrize(
    ("request_bytes", "status", "field"),
    [
        (head(Host=None), 400, None),
        (head(Upgrade=None), 400, None),
        (head(Connection="keep-alive"), 400, None),
        (head(version="HTTP/1.0"), 400, None),
        (head(Sec_WebSocket_Key="short"), 400, None),
        (head(Sec_WebSocket_Protocol=None), 400, None),
        (head(Sec_WebSocket_Protocol="SIP"), 400, None),
        (head(Sec_WebSocket_Version=None), 426, ("sec-websocket-version", "13")),
        (head(Sec_WebSocket_Version="8"), 426, ("sec-websocket-version", "13")),
        (head(method="POST"), 405, ("allow", "GET")),
        (head(path="/other"), 404, None),
        (head(Origin="https://evil.example"), 403, None),
        (head(X_Forwarded_Host="evil.example", Origin="https://evil.example"), 403, None),
        (head(Content_Length="5"), 400, None),
        (head(Transfer_Encoding="chunked"), 501, None),
        (head(Content_Length="99999999"), 413, None),
        (head(Bad="a\x00b"), 400, None),
        (head().replace(b"Host:", b"Host :"), 400, None),
        (head().replace(b"\r\nHost", b"\r\n folded\r\nHost"), 400, None),
        (b"GET /ws\r\n\r\n", 400, None),
        (b"GET  /ws HTTP/1.1\r\n\r\n", 400, None),
        (b"GET http://phone.test/ws HTTP/1.1\r\n\r\n", 400, None),
        (head(X="y" * 16384), 431, None),
        (b"GET /ws HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431, None),
        (b"GET /" + b"w" * 9000 + b" HTTP/1.1\r\n\r\n", 414, None),
    ],
)
def test_h1_h2_refusals(request_bytes: bytes, status: int, field: tuple[str, str] | None) -> None:
    with running() as server:
        browser = Browser(server.connect())
        answer, fields = browser.ask(request_bytes)
        assert answer == status
        assert fields["connection"].lower() == "close"
        assert field is None or fields[field[0]] == field[1]
        browser.read_body(int(fields["content-length"]))
        assert browser.is_cut()
        assert server.handler.streams == []


def test_h2_the_answer_is_exactly_sip_without_any_extension_and_first_frames_may_be_glued_on() -> None:
    with running(Recorder(echo)) as server:
        browser = Browser(server.connect())
        request = head(
            Sec_WebSocket_Protocol="chat, sip",
            Sec_WebSocket_Extensions="permessage-deflate",
            Origin="https://phone.test",
            Upgrade="h2c, WebSocket",
        )
        status, fields = browser.ask(request + serialize(Opcode.TEXT, b"first", MASK))
        assert status == 101
        assert fields == {
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-accept": ACCEPT,
            "sec-websocket-protocol": "sip",
        }
        assert browser.read_frame() == (Opcode.TEXT, b"first")
        browser.send_frame(Opcode.TEXT, b"second")
        assert browser.read_frame() == (Opcode.TEXT, b"second")
        assert server.handler.messages == [b"first", b"second"]
        browser.close()


def test_damaged_requests_get_an_answer_or_the_end_and_harm_nothing() -> None:
    choose = random.Random(7)
    answers = set()
    with running(Recorder(echo), limits=LimitSettings(upgrades_per_second=1000)) as server:
        for _ in range(300):
            request = bytearray(head(Origin="https://phone.test", X_Forwarded_For="192.0.2.1"))
            for _ in range(choose.randint(1, 4)):
                place = choose.randrange(len(request))
                request[place : place + choose.randint(0, 3)] = choose.randbytes(choose.randint(0, 3))
            browser = Browser(server.connect())
            browser.send(bytes(request) + b"\r\n\r\n")
            browser.sock.shutdown(socket.SHUT_WR)
            # What is no HTTP by its first byte is closed unread.
            with contextlib.suppress(ConnectionResetError):
                browser.read_to_end()
            answers.add(browser.buffer[:12])
            browser.close()
        assert server.counters.values["internal_errors"] == 0
        assert server.counters.values["http_malformed"] > 0
        assert {b"HTTP/1.1 400", b"HTTP/1.1 101"} <= answers
        assert all(answer == b"" or answer.startswith(b"HTTP/1.1 ") for answer in answers)


@pytest.mark.parametrize("end", [b"\n", b"\r\r\n", b"\r"])
def test_h1_a_line_of_the_head_ends_with_crlf_alone(end: bytes) -> None:
    """No relay's judgement is got round by a field that it saw as part of another's value."""
    with running() as server:
        for part in (b" HTTP/1.1", b"Upgrade: websocket"):
            browser = Browser(server.connect())
            assert browser.ask(head().replace(part + b"\r\n", part + end, 1))[0] == 400
            browser.close()


def test_a_request_byte_by_byte() -> None:
    with running() as server:
        browser = Browser(server.connect())
        for byte in head()[:-1]:
            browser.send(bytes((byte,)))
        assert browser.ask(b"\n")[0] == 101
        browser.close()


def test_other_paths_go_to_the_application_and_connections_are_kept() -> None:
    with running() as server:
        browser = Browser(server.connect())
        for _ in range(3):
            status, fields = browser.ask(b"GET / HTTP/1.1\r\nHost: phone.test\r\n\r\n")
            assert status == 200
            assert browser.read_body(int(fields["content-length"])) == b"127.0.0.1 127.0.0.1 False"
        browser.send(b"GET / HTTP/1.1\r\nHost: phone.test\r\nConnection: foo, close\r\n\r\n")
        assert b"200 OK" in browser.read_to_end()


def test_a_websocket_may_follow_on_a_kept_connection() -> None:
    with running(Recorder(echo)) as server:
        browser = Browser(server.connect())
        status, fields = browser.ask(b"GET / HTTP/1.1\r\nHost: phone.test\r\n\r\n")
        browser.read_body(int(fields["content-length"]))
        assert (status, browser.ask(head())[0]) == (200, 101)
        browser.send_frame(Opcode.TEXT, b"hello")
        assert browser.read_frame() == (Opcode.TEXT, b"hello")
        browser.close()


def test_an_error_of_the_application_is_a_500_and_costs_nobody_else() -> None:
    def broken(environ: object, start_response: object) -> list[bytes]:
        raise RuntimeError("a bug")

    with running(application=broken) as server:
        browser = Browser(server.connect())
        assert browser.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 500
        assert server.counters.values["internal_errors"] == 1
        server.browser().close()


def test_the_client_behind_a_relay() -> None:
    with running(trusted_proxies=LOOPBACK, tls_at_relay=True) as server:
        browser = server.browser(
            X_Forwarded_For="6.6.6.6, 198.51.100.7",
            X_Forwarded_Host="Phone.Example.com",
            Origin="https://phone.example.com",
        )
        upgrade = server.handler.upgrades[0]
        assert (upgrade.remote.host, upgrade.secure, upgrade.host) == ("198.51.100.7", True, "phone.example.com")
        assert ("Host", "phone.test") in upgrade.headers
        assert server.guard.claimed("198.51.100.7") == 1
        assert server.guard.claimed("6.6.6.6") == 0
        assert server.guard.claimed("127.0.0.1") == 0
        browser.close()
        wait_until(lambda: server.guard.claimed("198.51.100.7") == 0)
        asked = Browser(server.connect())
        fields = "Host: x\r\nX-Forwarded-For: 198.51.100.8\r\n"
        asked.ask(f"GET / HTTP/1.1\r\n{fields}\r\n".encode())
        assert asked.read_body(30).startswith(b"198.51.100.8 198.51.100.8 True")
        asked.close()


def test_a_stranger_is_not_believed() -> None:
    with running() as server:
        server.browser(X_Forwarded_For="198.51.100.7", Forwarded="for=198.51.100.7").close()
        assert server.handler.upgrades[0].remote.host == "127.0.0.1"
        assert not server.handler.upgrades[0].secure


def test_h1_503_with_retry_after_for_one_address_too_many_behind_a_relay() -> None:
    with running(trusted_proxies=LOOPBACK, limits=LimitSettings(connections_per_address=2)) as server:
        kept = [server.browser(X_Forwarded_For=f"6.6.6.{n}, 198.51.100.7") for n in range(2)]
        browser = Browser(server.connect())
        status, fields = browser.ask(head(X_Forwarded_For="6.6.6.9, 198.51.100.7"))
        assert status == 503
        assert int(fields["retry-after"]) > 0
        kept.append(server.browser(X_Forwarded_For="198.51.100.8"))
        wait_until(lambda: server.guard.claimed("198.51.100.7") == 2)
        for one in kept:
            one.close()


def test_h1_503_with_retry_after_when_overloaded() -> None:
    with running(limits=LimitSettings(connections=1)) as server:
        kept = server.browser()
        status, fields = Browser(server.connect()).ask(head())
        assert status == 503
        assert int(fields["retry-after"]) > 0
        kept.close()
        wait_until(lambda: server.guard.connections == 0)
        server.guard.memory_used = 0.99
        assert Browser(server.connect()).ask(head())[0] == 503
        server.guard.memory_used = 0.1
        server.guard.draining = True
        assert Browser(server.connect()).ask(head())[0] == 503
        server.guard.draining = False
        server.browser().close()


def test_upgrades_per_second() -> None:
    with running(limits=LimitSettings(upgrades_per_second=1)) as server:
        statuses: list[int] = []
        while 503 not in statuses and len(statuses) < 100:
            browser = Browser(server.connect())
            statuses.append(browser.ask(head())[0])
            browser.close()
        assert statuses[:2] == [101, 101]
        assert statuses[-1] == 503


@pytest.mark.parametrize("start", [b"", b"G", b"GET /ws HTTP/1.1\r\nHost: x\r\n"])
def test_handshake_timeout(start: bytes) -> None:
    with running(websocket=WebSocketSettings(handshake_timeout=0.1)) as server:
        browser = Browser(server.connect())
        browser.send(start)
        assert browser.is_cut()
        assert server.counters.values["listener_timeouts"] == 1


def test_a_kept_connection_ends_when_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade_module, "KEEP_ALIVE_TIMEOUT", 0.1)
    with running() as server:
        browser = Browser(server.connect())
        _, fields = browser.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        browser.read_body(int(fields["content-length"]))
        assert browser.is_cut()


def test_an_open_websocket_outlives_the_handshake_timeout() -> None:
    settings = WebSocketSettings(handshake_timeout=1.0, ping_interval=1.5)
    with running(Recorder(echo), websocket=settings) as server:
        browser = server.browser()
        assert browser.read_frame() == (Opcode.PING, b"")
        browser.close()


def test_an_answer_that_nobody_reads_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade_module, "ANSWER_TIMEOUT", 0.2)

    def large(environ: object, start_response: object) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [bytes(1 << 20)] * 64

    with running(application=large) as server:
        browser = Browser(server.connect())
        browser.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: server.guard.connections == 1)
        wait_until(lambda: server.guard.connections == 0)
        browser.close()
        assert server.counters.values["internal_errors"] == 0


def test_nothing_of_the_request_stays_in_memory() -> None:
    def kept() -> list[object]:
        return [
            thing
            for thing in gc.get_objects()
            if isinstance(thing, UpgradeHandler) or (isinstance(thing, dict) and "wsgi.input" in thing)
        ]

    with running() as server:
        gc.collect()
        before = kept()
        gc.disable()
        try:
            browser = server.browser()
            wait_until(lambda: len(server.listener.port.serving) == 0)
            after = [thing for thing in kept() if not any(thing is old for old in before)]
        finally:
            gc.enable()
        assert after == []
        browser.close()
