"""`http_fallback` over sockets, with a server behind that says exactly the bytes it is told."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import psutil
import pytest
from gevent import socket as gevent_socket
from gevent.pool import Group

from tests.loopback.websocket_peer import LOOPBACK, Browser, Recorder, Running, echo, head, running, server_context
from tests.loopback.websocket_peer import wait_until as wait
from wsgate.addr import Address
from wsgate.errors import WsgateError
from wsgate.guard import LimitSettings, Places
from wsgate.http.body import BodyReader, chunk
from wsgate.http.head import Body, RequestHead, field_line, request_body, request_line
from wsgate.net import fallback, tunnel
from wsgate.settings import Switch
from wsgate.ws.frames import Opcode
from wsgate.ws.handshake import values

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Own: 1\r\n\r\nhello"
GET = b"GET /site HTTP/1.1\r\nHost: www.test\r\n\r\n"
LARGE = 50 * 1024 * 1024
MEGABYTE = 1024 * 1024


class Behind:
    """The web server behind: `act` gets each connection and what came of the request up to its blank line."""

    def __init__(self, act: Callable[[Any, bytes], None], host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listening = gevent_socket.socket(family, socket.SOCK_STREAM)
        self.listening.bind((host, 0))
        self.listening.listen(100)
        self.address = Address(host, self.listening.getsockname()[1])
        self.heads: list[bytes] = []
        self.failures: list[Exception] = []
        self.act = act
        self._connections = Group()
        self._acceptor = gevent.spawn(self._accept)

    def _accept(self) -> None:
        while True:
            sock, _ = self.listening.accept()
            self._connections.spawn(self._serve, sock)

    def _serve(self, sock: Any) -> None:
        try:
            data = b""
            while b"\r\n\r\n" not in data:
                more = sock.recv(65536)
                if not more:
                    return
                data += more
            text, _, rest = data.partition(b"\r\n\r\n")
            self.heads.append(text)
            self.act(sock, rest)
        except OSError:
            return
        except (AssertionError, ValueError, WsgateError) as error:
            self.failures.append(error)
        finally:
            sock.close()

    def stop(self) -> None:
        self._acceptor.kill()
        self._connections.kill()
        self.listening.close()


@contextmanager
def site(act: Callable[[Any, bytes], None] | bytes, host: str = "127.0.0.1", **options: Any) -> Iterator[Site]:
    """A listener with a server behind; bytes are what that answers to each request."""
    answer = act if callable(act) else lambda sock, _rest: sock.sendall(act)
    behind = Behind(answer, host)
    try:
        with running(Recorder(echo), http_fallback=behind.address, **options) as server:
            yield Site(server, behind)
            wait(lambda: server.listener.passing == 0)
    finally:
        behind.stop()


class Site:
    def __init__(self, server: Running, behind: Behind) -> None:
        self.server, self.behind = server, behind

    def browser(self, tls: bool = False) -> Browser:
        return Browser(self.server.connect_tls() if tls else self.server.connect())

    def ask(self, request: bytes = GET) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own, and the body up to the end of TCP or of its length."""
        browser = self.browser()
        try:
            status, fields = browser.ask(request)
            length = fields.get("content-length")
            body = browser.read_to_end() if length is None else browser.read_body(int(length))
            return status, fields, body
        finally:
            browser.close()

    @property
    def count(self) -> dict[str, int]:
        return self.server.counters.values


def receive_exactly(sock: Any, data: bytes, size: int) -> bytes:
    while len(data) < size:
        more = sock.recv(65536)
        assert more
        data += more
    return data


def test_the_request_reaches_the_server_as_it_was_and_the_connection_is_kept() -> None:
    with site(HELLO) as found:
        browser = found.browser()
        for _ in range(3):
            browser.send(b"GET /a%2fb//../\xe4?x=%zz HTTP/1.1\r\nhost: www.test\r\nX-B: \xff\r\nX-A: 1\r\n\r\n")
            status, fields = browser.read_head()
            assert (status, fields["x-own"], browser.read_body(5)) == (200, "1", b"hello")
            assert "connection" not in fields
        browser.close()
        assert len(found.behind.heads) == 3
        assert found.behind.heads[0].split(b"\r\n") == [
            b"GET /a%2fb//../\xe4?x=%zz HTTP/1.1",
            b"Host: www.test",
            b"X-B: \xff",
            b"X-A: 1",
            b"X-Forwarded-For: 127.0.0.1",
            b"X-Forwarded-Proto: http",
            b"X-Forwarded-Host: www.test",
            b"X-Real-IP: 127.0.0.1",
            b"Via: 1.1 wsgate",
            b"Connection: close",
        ]


def test_own_paths_stay_ours_and_the_websocket_works_on_a_kept_connection() -> None:
    with site(HELLO, owns=lambda path: path == "/healthz") as found:
        browser = found.browser()
        _, fields = browser.ask(b"GET /healthz?x HTTP/1.1\r\nHost: www.test\r\n\r\n")
        assert browser.read_body(int(fields["content-length"])).startswith(b"127.0.0.1")
        assert browser.ask(GET)[0] == 200
        assert browser.read_body(5) == b"hello"
        assert browser.ask(head())[0] == 101
        browser.send_frame(Opcode.TEXT, b"mine")
        assert browser.read_frame() == (Opcode.TEXT, b"mine")
        browser.close()
        assert [text.split(b" ")[1] for text in found.behind.heads] == [b"/site"]
        # Rule H1 counts as before on the path that is ours.
        assert found.ask(head(Origin="https://evil.test"))[0] == 403
        assert len(found.behind.heads) == 1


def test_over_tls_and_to_ipv6(tmp_path: Path) -> None:
    with site(HELLO, "::1", context=server_context(tmp_path), tls=Switch.AUTO) as found:
        browser = found.browser(tls=True)
        for _ in range(2):
            assert browser.ask(GET)[0] == 200
            assert browser.read_body(5) == b"hello"
        browser.close()
        assert b"X-Forwarded-Proto: https" in found.behind.heads[0]
        old = b"GET / HTTP/1.0\r\n\r\n"
        assert found.ask(old)[2] == b"hello"
        assert f"Host: [::1]:{found.behind.address.port}".encode() in found.behind.heads[2]


def test_who_the_client_is_comes_from_trusted_relays_alone() -> None:
    forged = b"X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n"
    request = GET[:-2] + forged + b"\r\n"
    with site(HELLO) as found:
        found.ask(request)
        assert b"6.6.6.6" not in found.behind.heads[0]
        assert b"X-Forwarded-For: 127.0.0.1" in found.behind.heads[0]
    with site(HELLO, trusted_proxies=LOOPBACK, tls_at_relay=True) as found:
        found.ask(request)
        assert b"X-Forwarded-For: 6.6.6.6, 127.0.0.1\r\n" in found.behind.heads[0]
        assert b"X-Real-IP: 6.6.6.6\r\n" in found.behind.heads[0]
        assert b"Forwarded: for=6.6.6.6, for=127.0.0.1;" in found.behind.heads[0]


@pytest.mark.parametrize(
    ("answer", "method", "status", "body"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", 204, b""),
        (b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 9\r\n\r\n', b"GET", 304, b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HEAD", 200, b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HEAD", 200, b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"GET", 200, b""),
    ],
)
def test_answers_without_a_body_leave_the_connection_usable(
    answer: bytes, method: bytes, status: int, body: bytes
) -> None:
    with site(answer) as found:
        browser = found.browser()
        for _ in range(2):
            assert browser.ask(GET.replace(b"GET", method))[0] == status
            assert browser.buffer == b""
        browser.close()


def test_chunked_answers_trailers_and_answers_that_end_with_tcp() -> None:
    body = b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Sum: 1\r\nHost: x\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    with site(chunked) as found:
        browser = found.browser()
        for _ in range(2):
            assert browser.ask(GET)[1]["transfer-encoding"] == "chunked"
            assert browser.read_body(25).endswith(b"0\r\nX-Sum: 1\r\n\r\n")
        browser.close()
        _, fields, body = found.ask(b"GET / HTTP/1.0\r\n\r\n")
        assert (fields.get("transfer-encoding"), body) == (None, b"hello")
    with site(b"HTTP/1.0 200 OK\r\n\r\nhello") as found:
        browser = found.browser()
        for _ in range(2):
            assert browser.ask(GET)[1]["transfer-encoding"] == "chunked"
            assert browser.read_body(15) == b"5\r\nhello\r\n0\r\n\r\n"
        browser.close()
        assert found.ask(b"GET / HTTP/1.0\r\n\r\n")[2] == b"hello"


def test_an_old_connection_is_closed_and_so_is_one_that_asks_for_it() -> None:
    with site(HELLO) as found:
        for request in (b"GET / HTTP/1.0\r\n\r\n", GET[:-2] + b"Connection: close\r\n\r\n"):
            browser = found.browser()
            browser.send(request)
            answer = browser.read_to_end()
            assert b"Connection: close" in answer
            assert answer.endswith(b"hello")
            browser.close()


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_in_any_cut_with_the_next_request_behind_it(size: int, chunked: bool) -> None:
    def act(sock: Any, rest: bytes) -> None:
        if b"POST" in found.behind.heads[-1]:
            end = b"5\r\nhello\r\n0\r\n\r\n" if chunked else b"hello"
            if chunked:
                while not rest.endswith(b"0\r\n\r\n"):
                    rest += sock.recv(1000)
            else:
                rest = receive_exactly(sock, rest, len(end))
            bodies.append(rest)
        sock.sendall(HELLO)

    bodies: list[bytes] = []
    framing = (
        b"Transfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\n\r\n" if chunked else b"Content-Length: 5\r\n\r\nhello"
    )
    stream = b"POST /up HTTP/1.1\r\nHost: a\r\n" + framing + GET
    with site(act) as found:
        browser = found.browser()
        for at in range(0, len(stream), size):
            browser.send(stream[at : at + size])
        for _ in range(2):
            assert browser.read_head()[0] == 200
            assert browser.read_body(5) == b"hello"
        browser.close()
        assert len(found.behind.heads) == 2
        assert b"".join(bodies).replace(b"\r\n", b"").replace(b"0", b"").lstrip(b"123456789") == b"hello"


def test_100_continue_comes_from_the_server() -> None:
    def act(sock: Any, rest: bytes) -> None:
        assert rest == b""
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert receive_exactly(sock, b"", 5) == b"hello"
        sock.sendall(HELLO)

    request = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    with site(act) as found:
        browser = found.browser()
        assert browser.ask(request)[0] == 100
        assert browser.ask(b"hello")[0] == 200
        assert browser.read_body(5) == b"hello"
        assert browser.ask(request)[0] == 100
        browser.close()
    with site(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n") as found:
        browser = found.browser()
        status, fields = browser.ask(request)
        assert (status, fields["connection"]) == (413, "close")
        browser.close()


def test_an_answer_before_the_end_of_the_upload_is_read_by_the_client() -> None:
    """Closing TCP at once would reset it, and the answer would be lost."""
    with site(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge") as found:
        browser = found.browser()
        browser.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\nhello")
        assert browser.read_head()[0] == 413
        browser.send(bytes(200000))
        browser.sock.shutdown(socket.SHUT_WR)
        assert browser.read_to_end() == b"large"
        browser.close()


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 40\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 40\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n 40\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 501),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://other.test/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT other.test:25 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET /\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 17000 + b"\r\n\r\n", 431),
    ],
)
def test_what_could_smuggle_never_reaches_the_server(request_bytes: bytes, status: int) -> None:
    with site(HELLO) as found:
        browser = found.browser()
        answer, fields = browser.ask(request_bytes + SMUGGLED)
        assert (answer, fields["connection"]) == (status, "close")
        browser.read_body(int(fields["content-length"]))
        assert browser.is_cut()
        browser.close()
        assert found.behind.heads == []


@pytest.mark.parametrize(
    "broken", [b"5\nhello\r\n", b"5 \r\nhello\r\n", b"-1\r\n", b"5\r\nhelloXX", b"0\r\nA : b\r\n\r\n"]
)
def test_a_broken_chunk_ends_the_request_and_the_connection(broken: bytes) -> None:
    seen: list[bytes] = []

    def act(sock: Any, rest: bytes) -> None:
        while data := sock.recv(65536):
            rest += data
        seen.append(rest)

    with site(act) as found:
        browser = found.browser()
        browser.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + broken + SMUGGLED)
        assert browser.read_head()[0] == 400
        browser.close()
        wait(lambda: seen)
        assert len(found.behind.heads) == 1
        assert not seen[0].endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/2 200 OK\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\n\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 20000,
    ],
)
def test_a_malformed_answer_is_502(answer: bytes) -> None:
    with site(answer) as found:
        status, fields, body = found.ask()
        assert (status, fields["connection"]) == (502, "close")
        assert body.startswith(b"The web server behind ")
        assert found.count["http_fallback_failed_502"] == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5 \r\nhello\r\n0\r\n\r\n",
    ],
)
def test_a_body_that_breaks_off_is_cut_off(answer: bytes) -> None:
    with site(answer) as found:
        browser = found.browser()
        assert browser.ask(GET)[0] == 200
        assert not browser.read_to_end().endswith(b"0\r\n\r\n")
        browser.close()


def test_502_when_nobody_is_there_and_504_when_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "ANSWER_TIMEOUT", 0.2)
    with site(lambda sock, _rest: gevent.sleep(30)) as found:
        status, _, body = found.ask()
        assert (status, body) == (504, b"The web server behind does not answer.\n")
        found.behind.listening.close()
        found.behind._acceptor.kill()
        status, _, body = found.ask()
        assert (status, body) == (502, b"The web server behind cannot be reached.\n")
        assert found.count["http_fallback_failed_504"] == found.count["http_fallback_failed_502"] == 1


def test_who_is_slow_loses_his_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "IDLE_TIMEOUT", 0.2)

    def endless(sock: Any, rest: bytes) -> None:
        if b"GET" in found.behind.heads[-1]:
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                sock.sendall(bytes(65536))
        while sock.recv(65536):
            pass

    with site(endless) as found:
        reader, writer = found.browser(), found.browser()
        reader.send(GET)
        writer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nhello")
        assert writer.read_head()[0] == 408
        wait(lambda: len(found.behind.heads) == 2 and found.server.listener.passing == 0)
        assert found.count["http_fallback_clients_gone"] == 1
        reader.close()
        writer.close()


def test_places_are_limited_in_all_and_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "REQUESTS_PER_ADDRESS", 2)
    with site(lambda sock, _rest: sock.recv(1)) as found:
        kept = [found.browser() for _ in range(2)]
        for browser in kept:
            browser.send(GET)
        wait(lambda: found.server.listener.passing == 2)
        status, fields, _ = found.ask()
        assert (status, fields["retry-after"]) == (503, "10")
        assert found.count["http_fallback_refused"] == 1
        for browser in kept:
            browser.close()
        found.behind.stop()
    places = Places(3, 2)
    assert [places.enter(host) for host in ("a", "a", "a", "b", "c")] == [True, True, False, True, False]
    places.leave("a")
    assert places.enter("c")
    assert places.taken == 3


def test_503_when_overloaded() -> None:
    with site(HELLO, limits=LimitSettings(connections=5)) as found:
        found.server.guard.memory_used = 0.99
        assert found.ask()[0] == 503
        assert found.behind.heads == []
        found.server.guard.memory_used = 0.1
        assert found.ask()[0] == 200


def test_large_uploads_and_downloads_stream_with_flat_memory() -> None:
    piece = hashlib.sha256(b"seed").digest() * 2048  # 64 KiB

    def act(sock: Any, rest: bytes) -> None:
        if b"POST" in found.behind.heads[-1]:
            size = len(rest)
            while size < LARGE:
                data = sock.recv(65536)
                assert data
                size += len(data)
            sock.sendall(HELLO)
        else:
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for _ in range(LARGE // len(piece)):
                sock.sendall(piece)

    def upload(browser: Browser) -> None:
        for _ in range(LARGE // len(piece)):
            browser.send(piece)

    with site(act) as found:
        process = psutil.Process()
        browser = found.browser()
        before = process.memory_info().rss
        browser.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % LARGE)
        upload(browser)
        assert browser.read_head()[0] == 200
        assert browser.read_body(5) == b"hello"
        # HTTP/1.0, so that the body ends with TCP.
        browser = found.browser()
        browser.send(b"GET / HTTP/1.0\r\n\r\n")
        browser.read_head()
        size = len(browser.buffer)
        while data := browser.sock.recv(65536):
            size += len(data)
        assert size == LARGE
        assert process.memory_info().rss - before < 8 * MEGABYTE
        browser.close()


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_side_that_does_not_read_holds_the_other_up_and_nobody_else(method: bytes) -> None:
    passed = [0]

    def act(sock: Any, rest: bytes) -> None:
        if b"/site" in found.behind.heads[-1]:
            sock.sendall(HELLO)
        elif method == b"GET":
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                sock.sendall(chunk(bytes(65536)))
                passed[0] += 65536
        else:
            stop.wait()

    def flood(browser: Browser) -> None:
        while True:
            browser.send(bytes(65536))
            passed[0] += 65536

    stop = gevent.event.Event()
    with site(act) as found:
        browser = found.browser()
        length = b"" if method == b"GET" else b"Content-Length: 100000000000\r\n"
        browser.send(method + b" /slow HTTP/1.1\r\nHost: a\r\n" + length + b"\r\n")
        flooding = gevent.spawn(flood, browser) if method == b"POST" else None
        wait(lambda: passed[0] > 100000)
        seen = -1
        while seen != passed[0]:
            seen = passed[0]
            assert found.ask()[2] == b"hello"
            gevent.sleep(0.3)
        # What the kernel's buffers hold of four sockets, and not more.
        assert seen < 40 * MEGABYTE
        if flooding is not None:
            flooding.kill()
        browser.close()
        stop.set()
        found.behind.stop()


def upgrade(sock: Any, rest: bytes) -> None:
    """A server that takes the upgrade up, says something first, and echoes."""
    sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-A: 1\r\n\r\nfirst"
    )
    if rest:
        sock.sendall(rest)
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.sendall(b"last")


@pytest.mark.parametrize("tls", [False, True])
def test_upgrades_of_other_applications_are_tunnelled(tmp_path: Path, tls: bool) -> None:
    with site(upgrade, context=server_context(tmp_path), tls=Switch.AUTO) as found:
        browser = found.browser(tls)
        status, fields = browser.ask(head(path="/chat", Sec_WebSocket_Protocol="chat") + b"early")
        assert (status, fields["upgrade"], fields["connection"], fields["x-a"]) == (101, "websocket", "Upgrade", "1")
        assert browser.read_body(10) == b"firstearly"
        for _ in range(3):
            browser.send(b"x" * 300000)
            assert browser.read_body(300000) == b"x" * 300000
        assert found.server.listener.passing == 1
        assert b"Sec-WebSocket-Protocol: chat" in found.behind.heads[0]
        if not tls:
            browser.sock.shutdown(socket.SHUT_WR)
            assert browser.read_to_end() == b"last"
        browser.close()
        wait(lambda: found.server.listener.passing == 0)
        assert found.count["http_fallback_tunnels"] == 1


def test_a_refused_upgrade_is_an_answer_like_others() -> None:
    with site(HELLO) as found:
        browser = found.browser()
        assert browser.ask(head(path="/chat"))[0] == 200
        assert browser.read_body(5) == b"hello"
        # What follows is a request, not the tunnel's.
        assert browser.ask(b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 405
        browser.close()


def test_an_idle_tunnel_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "TUNNEL_IDLE_TIMEOUT", 0.2)
    with site(upgrade) as found:
        browser = found.browser()
        assert browser.ask(head(path="/chat"))[0] == 101
        assert browser.read_to_end() == b"first"
        browser.close()


def test_what_reaches_the_server_is_one_well_formed_request_whatever_was_sent() -> None:
    """Damaged and glued requests: a connection behind carries one that is beyond doubt, and who asks is true."""

    def act(sock: Any, rest: bytes) -> None:
        texts.append(found.behind.heads[-1])
        sock.settimeout(0.5)
        body = BodyReader(judged(texts[-1])[1])
        body.receive(rest)
        while not body.complete and (data := sock.recv(65536)):
            body.receive(data)
        assert body.rest == b""
        sock.sendall(HELLO)

    def judged(text: bytes) -> tuple[RequestHead, Body]:
        line, *lines = [part + b"\r\n" for part in text.split(b"\r\n")]
        request = RequestHead(*request_line(line.decode("latin-1")), tuple(map(field_line, lines)))
        return request, request_body(request)

    seeds = (
        b"POST /a HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nContent-Length: 5\r\n\r\nhello" + GET,
        b"POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: x\r\n\r\n5;x\r\nhello\r\n0\r\n\r\n"
        + GET,
        b"GET /c HTTP/1.0\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\r\n" + GET,
    )
    pieces = (
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"0",
        b"\0",
        b"Content-Length: 3\r\n",
        b"chunked",
        b";",
        b"\x0b",
    )
    choose, texts = random.Random(11), list[bytes]()
    with site(act) as found:
        for _ in range(400):
            request = bytearray(choose.choice(seeds))
            for _ in range(choose.randint(1, 3)):
                place = choose.randrange(len(request))
                request[place : place + choose.randint(0, 2)] = choose.choice(pieces)
            browser = found.browser()
            browser.send(bytes(request))
            browser.sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                browser.read_to_end()
            browser.close()
        assert found.count["internal_errors"] == 0
        assert len(texts) > 100
        assert found.behind.failures == []
        for text in texts:
            fields = judged(text)[0].fields
            assert values(fields, "x-forwarded-for") == ["127.0.0.1"]
            assert values(fields, "x-real-ip") == ["127.0.0.1"]
            assert values(fields, "forwarded") == []


def test_the_listener_stops_in_the_middle_of_everything() -> None:
    def act(sock: Any, rest: bytes) -> None:
        if b"/chat" in found.behind.heads[-1]:
            upgrade(sock, rest)
        while sock.recv(65536):
            pass

    with site(act) as found:
        tunnelled, waiting = found.browser(), found.browser()
        assert tunnelled.ask(head(path="/chat"))[0] == 101
        waiting.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nhello")
        wait(lambda: found.server.listener.passing == 2)
        found.server.listener.stop()
        assert found.server.listener.passing == 0
        tunnelled.close()
        waiting.close()
