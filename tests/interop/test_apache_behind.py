"""Apache behind wsgate with the shipped include: its pages, uploads and WebSockets pass, wsgate's own paths stay."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.interop.apache import ApacheBehind
from tests.interop.chromium import Chromium, WebPhone, assert_call
from tests.interop.daemon import Daemon
from tests.interop.phone_system import PASSWORD, PhoneSystem
from tests.interop.process import free_port, wait_for
from tests.interop.raw import TEXT, HandshakeRefused, RawWebSocket
from wsgate.ws.handshake import accept_key

BROWSER = "127.0.0.2"
LARGE_BYTES = 50 * 1024 * 1024
MEGABYTE = 1024 * 1024


class Application:
    """A WebSocket server of somebody else: takes the upgrade up and sends every byte back."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            data = b""
            while b"\r\n\r\n" not in data:
                data += sock.recv(65536) or b"\r\n\r\n"
            fields = dict(line.split(": ", 1) for line in data.decode("latin-1").split("\r\n")[1:] if ": " in line)
            accept = accept_key(fields.get("Sec-WebSocket-Key", ""))
            answer = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + answer.encode())
            while data := sock.recv(65536):
                # A server's frames are not masked: payloads of up to 125 bytes are taken apart.
                while len(data) >= 6 and len(data) >= 6 + (data[1] & 0x7F):
                    size = data[1] & 0x7F
                    mask, payload = data[2:6], data[6 : 6 + size]
                    plain = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
                    sock.sendall(data[:1] + bytes((size,)) + plain)
                    data = data[6 + size :]


class Site(NamedTuple):
    """wsgate with TLS on `port`, Apache behind it."""

    apache: ApacheBehind
    gateway: Daemon
    port: int
    tls: ssl.SSLContext

    def connect(self, source: str = BROWSER) -> http.client.HTTPSConnection:
        """A client that keeps its connection."""
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=self.tls, timeout=30, source_address=(source, 0)
        )

    def get(self, path: str, method: str = "GET", **fields: str) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        connection = self.connect()
        try:
            headers = {name.replace("_", "-"): value for name, value in fields.items()}
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("behind")
    with ExitStack() as stack:
        application = Application()
        stack.callback(application.listening.close)
        apache = ApacheBehind(application.port)
        stack.callback(apache.close)
        port = free_port()
        text = f"""
            [listener secure]
            bind = 127.0.0.1:{port}
            tls = on
            http_fallback = 127.0.0.1:{apache.port}
            [web]
            phone = off
            [backend example.test]
            target = sip:127.0.0.1:9
            """
        gateway = Daemon(directory / "wsgate", text)
        stack.callback(gateway.stop)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        yield Site(apache, gateway, port, tls)
        wait_for(lambda: gateway.status()["http_fallback"] == 0, "every request to be over")


def test_pages_of_apache_and_paths_of_wsgate_on_one_kept_connection(site: Site) -> None:
    connection = site.connect()
    seen = []
    for path in ("/", "/healthz", "/below/", "/nothing", "/"):
        connection.request("GET", path)
        answer = connection.getresponse()
        seen.append((answer.status, answer.read()))
        # The same TCP connection throughout.
        assert connection.sock is not None, (path, answer.getheaders())
    connection.close()
    page = (200, (site.apache.site / "index.html").read_bytes())
    assert seen[0] == seen[4] == page
    assert seen[1] == (200, b"ok\n")
    assert b"<title>Below</title>" in seen[2][1]
    assert seen[3][0] == 404


def test_conditional_partial_and_head_requests(site: Site) -> None:
    _, fields, body = site.get("/")
    status, _, rest = site.get("/", If_None_Match=fields["etag"])
    assert (status, rest) == (304, b"")
    status, head, rest = site.get("/", "HEAD")
    assert (status, rest, head["content-length"]) == (200, b"", str(len(body)))
    status, part, rest = site.get("/", Range="bytes=2-5")
    assert (status, rest, part["content-range"]) == (206, body[2:6], f"bytes 2-5/{len(body)}")


def test_apache_sees_the_browser_whatever_it_says(site: Site) -> None:
    forged = {"X_Forwarded_For": "6.6.6.6", "Forwarded": "for=6.6.6.6", "X_Real_IP": "6.6.6.6"}
    _, _, body = site.get("/cgi/echo?who=%2f", Host="www.example.com", **forged)
    lines = body.decode().splitlines()
    assert lines[1:] == [
        f"REMOTE_ADDR {BROWSER}",
        "HTTPS on",
        f"HTTP_X_REAL_IP {BROWSER}",
        "HTTP_X_FORWARDED_HOST www.example.com",
        "HTTP_FORWARDED -",
        "REQUEST_URI /cgi/echo?who=%2f",
    ]
    # Apache writes its line once the answer is out.
    wait_for(lambda: f"{BROWSER} 200 GET /cgi/echo?who=%2f HTTP/1.1" in site.apache.access_log, "the line of the log")
    assert "6.6.6.6" not in site.apache.access_log


def test_redirects_of_apache_name_https_and_the_host_asked_for(site: Site) -> None:
    status, fields, _ = site.get("/below", Host="www.example.com")
    assert (status, fields["location"]) == (301, "https://www.example.com/below/")


def test_a_large_file_and_a_large_upload_pass_with_memory_flat(site: Site) -> None:
    piece = os.urandom(MEGABYTE)
    digest = hashlib.sha256(piece * (LARGE_BYTES // MEGABYTE)).hexdigest()
    with (site.apache.site / "large").open("wb") as file:
        for _ in range(LARGE_BYTES // MEGABYTE):
            file.write(piece)
    site.get("/")
    before = site.gateway.status()["memory_bytes"]
    connection = site.connect()
    connection.request("GET", "/large")
    answer, found = connection.getresponse(), hashlib.sha256()
    while data := answer.read(MEGABYTE):
        found.update(data)
    assert found.hexdigest() == digest
    pieces = (piece for _ in range(LARGE_BYTES // MEGABYTE))
    connection.request("POST", "/cgi/echo", pieces, {"Content-Length": str(LARGE_BYTES)})
    assert connection.getresponse().read().decode().splitlines()[0] == f"{LARGE_BYTES} {digest}"
    chunks = (piece for _ in range(5))
    connection.request("POST", "/cgi/echo", chunks, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    part = hashlib.sha256(piece * 5).hexdigest()
    assert connection.getresponse().read().decode().splitlines()[0] == f"{5 * MEGABYTE} {part}"
    connection.close()
    assert site.gateway.status()["memory_bytes"] - before < 10 * MEGABYTE


def test_expect_100_continue_is_answered_by_apache(site: Site) -> None:
    with site.tls.wrap_socket(socket.create_connection(("127.0.0.1", site.port), 20)) as sock:
        sock.sendall(b"POST /cgi/echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hello")
        answer = sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 ")


def test_websockets_of_another_application_and_ours_on_one_port(site: Site) -> None:
    address = ("127.0.0.1", site.port)
    with ExitStack() as stack:
        chat = RawWebSocket(address, "/chat", tls=site.tls, protocol="", source=BROWSER)
        stack.callback(chat.close)
        ours = RawWebSocket(address, tls=site.tls, source=BROWSER)
        stack.callback(ours.close)
        for number in range(20):
            chat.send_frame(TEXT, f"message {number}".encode())
            assert chat.receive() == f"message {number}".encode()
        assert b"Sec-WebSocket-Protocol: sip" in ours.head
        assert [flow["remote"].rpartition(":")[0] for flow in site.gateway.status()["flows"]] == [BROWSER]
        assert site.gateway.status()["http_fallback"] == 1
    wait_for(lambda: site.gateway.status()["http_fallback"] == 0, "the tunnel to end")
    with pytest.raises(HandshakeRefused) as refused:
        RawWebSocket(address, "/", tls=site.tls, protocol="")
    assert refused.value.status == 200


def test_502_while_apache_is_down(site: Site) -> None:
    site.apache.stop()
    try:
        status, _, body = site.get("/")
        assert (status, body) == (502, b"The web server behind cannot be reached.\n")
        assert site.get("/healthz")[0] == 200
    finally:
        site.apache.start()
    assert site.get("/")[0] == 200


@pytest.mark.timeout(180)
def test_chromium_phones_by_turns_on_the_port_of_apaches_pages(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Page of Apache, web phone, WSS and TURN over TLS: one port (rule E1)."""
    with ExitStack() as stack:
        apache = ApacheBehind()
        stack.callback(apache.close)
        system = PhoneSystem(tmp_path, one_port=True, http_fallback=f"127.0.0.1:{apache.port}")
        stack.callback(system.stop)
        browser = stack.enter_context(
            Chromium(tmp_path_factory.mktemp("browser"), flags=["--ignore-certificate-errors"])
        )
        page = browser.open(f"{system.secure}/below/")
        assert page.response["status"] == 200
        assert page.evaluate("document.title") == "Below"
        alice, bob = (
            WebPhone(browser, system.secure, {"relay": "1"}).register(user, PASSWORD) for user in ("alice", "bob")
        )
        alice.call("bob")
        bob.answer()
        assert_call(alice, bob, "relay")
        for one in (alice, bob):
            assert one.stats()["relayProtocol"] == "tls"
        assert page.evaluate("fetch('/index.html?during').then(answer => answer.status)") == 200
        alice.hang_up()
        bob.wait_message("hung-up")
        assert "GET /below/ HTTP/1.1" in apache.access_log
