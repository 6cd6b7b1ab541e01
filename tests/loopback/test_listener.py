"""net/listener and net/tls over sockets: first byte, TLS, PROXY, limits, and rule H7 with few descriptors."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
from gevent import ssl

from tests.loopback.websocket_peer import (
    LOOPBACK,
    Browser,
    Recorder,
    echo,
    head,
    running,
    server_context,
    wait_until,
)
from wsgate.errors import StartError
from wsgate.guard import ANSWERED_ABOVE_LIMIT, LimitSettings
from wsgate.net.forwarded import PROXY_V2_SIGNATURE
from wsgate.net.tls import client_context
from wsgate.settings import Switch
from wsgate.ws.connection import WebSocketSettings
from wsgate.ws.frames import Opcode


def test_ipv6() -> None:
    with running(Recorder(echo), host="::1") as server:
        browser = server.browser()
        assert server.handler.upgrades[0].remote.host == "::1"
        browser.close()


@pytest.mark.parametrize("tls", [Switch.ON, Switch.AUTO])
def test_wss(tmp_path: Path, tls: Switch) -> None:
    with running(Recorder(echo), context=server_context(tmp_path), tls=tls) as server:
        browser = server.browser(tls=True)
        assert server.handler.upgrades[0].secure
        browser.send_frame(Opcode.TEXT, b"hello")
        assert browser.read_frame() == (Opcode.TEXT, b"hello")
        assert server.guard.tls_handshakes == 0
        browser.close()


def test_both_on_one_port(tmp_path: Path) -> None:
    with running(context=server_context(tmp_path), tls=Switch.AUTO) as server:
        secure, clear = server.browser(tls=True), server.browser()
        assert [upgrade.secure for upgrade in server.handler.upgrades] == [True, False]
        secure.close()
        clear.close()


@pytest.mark.parametrize(
    ("tls", "data", "counter"),
    [
        (Switch.OFF, b"\x16\x03\x01", "listener_unknown_first_byte"),
        (Switch.ON, head(), "listener_unknown_first_byte"),
        (Switch.OFF, b"\x00\x01\x00\x00\x21\x12\xa4\x42", "listener_refused_stun"),
        (Switch.AUTO, b"\x00\x01\x00\x00\x21\x12\xa4\x42", "listener_refused_stun"),
        (Switch.OFF, b"\x80garbage", "listener_unknown_first_byte"),
        (Switch.ON, b"\x16garbage that is no hello", "listener_tls_failed"),
    ],
)
def test_what_is_not_spoken_here_is_closed_and_counted(tmp_path: Path, tls: Switch, data: bytes, counter: str) -> None:
    with running(context=server_context(tmp_path), tls=tls) as server:
        browser = Browser(server.connect())
        browser.send(data)
        wait_until(lambda: server.counters.values[counter] == 1)
        wait_until(lambda: server.guard.connections == 0)
        browser.close()


def test_stun_within_tls_is_closed_and_counted(tmp_path: Path) -> None:
    with running(context=server_context(tmp_path), tls=Switch.ON) as server:
        Browser(server.connect_tls()).send(b"\x00\x01\x00\x00\x21\x12\xa4\x42")
        wait_until(lambda: server.counters.values["listener_refused_stun"] == 1)


def test_tls_below_1_2_is_refused(tmp_path: Path) -> None:
    body = b"\x03\x02" + bytes(32) + b"\x00" + b"\x00\x04\xc0\x09\xc0\x0a" + b"\x01\x00"
    hello = b"\x01" + len(body).to_bytes(3, "big") + body
    with running(context=server_context(tmp_path), tls=Switch.ON) as server:
        browser = Browser(server.connect())
        browser.send(b"\x16\x03\x01" + len(hello).to_bytes(2, "big") + hello)
        answer = browser.read_body(7)
        # Alert, fatal, protocol_version (RFC 5246 §7.2).
        assert (answer[:1], answer[5:]) == (b"\x15", b"\x02\x46")
        wait_until(lambda: server.counters.values["listener_tls_failed"] == 1)
        browser.close()


def test_alpn_is_http_1_1(tmp_path: Path) -> None:
    with running(context=server_context(tmp_path), tls=Switch.ON) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        sock = context.wrap_socket(server.connect())
        assert sock.selected_alpn_protocol() == "http/1.1"
        sock.close()


def certificate_of(browser: Browser) -> bytes:
    der = browser.sock.getpeercert(binary_form=True)
    assert isinstance(der, bytes)
    return der


def test_reload_of_the_certificate_keeps_running_connections(tmp_path: Path) -> None:
    context = server_context(tmp_path)
    with running(Recorder(echo), context=context, tls=Switch.ON) as server:
        before = server.browser(tls=True)
        server_context(tmp_path, "other.test")
        context.reload(str(tmp_path / "other.test.pem"), str(tmp_path / "other.test.key"))
        after = server.browser(tls=True)
        assert certificate_of(before) != certificate_of(after)
        for browser in (before, after):
            browser.send_frame(Opcode.TEXT, b"hello")
            assert browser.read_frame() == (Opcode.TEXT, b"hello")
            browser.close()


def test_a_reload_that_fails_says_why_and_keeps_the_old_certificate(tmp_path: Path) -> None:
    context = server_context(tmp_path)
    kept = context()
    with pytest.raises(StartError, match=r"missing\.pem"):
        context.reload(str(tmp_path / "missing.pem"))
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(StartError, match=r"bad\.pem"):
        context.reload(str(tmp_path / "bad.pem"))
    assert context() is kept


def test_a_certificate_from_a_memory_file(tmp_path: Path) -> None:
    context = server_context(tmp_path)
    paths = []
    for name in ("phone.test.pem", "phone.test.key"):
        descriptor = os.memfd_create(name)
        os.write(descriptor, (tmp_path / name).read_bytes())
        paths.append(f"/proc/self/fd/{descriptor}")
    old = context()
    context.reload(*paths)
    assert context() is not old
    for path in paths:
        os.close(int(path.rpartition("/")[2]))


def test_client_context_verifies_chain_and_name(tmp_path: Path) -> None:
    with running(context=server_context(tmp_path), tls=Switch.ON) as server:
        trusting = client_context(str(tmp_path / "phone.test.pem"))
        trusting.wrap_socket(server.connect(), server_hostname="phone.test").close()
        with pytest.raises(ssl.SSLCertVerificationError):
            trusting.wrap_socket(server.connect(), server_hostname="other.test")
        with pytest.raises(ssl.SSLCertVerificationError):
            client_context().wrap_socket(server.connect(), server_hostname="phone.test")
    with pytest.raises(StartError, match="CA file"):
        client_context(str(tmp_path / "missing.pem"))


@pytest.mark.parametrize("stuck", [b"", b"\x16", b"\x16\x03\x01\x02\x00"])
def test_handshake_timeout_covers_tls(tmp_path: Path, stuck: bytes) -> None:
    settings = WebSocketSettings(handshake_timeout=0.1)
    with running(context=server_context(tmp_path), tls=Switch.ON, websocket=settings) as server:
        browser = Browser(server.connect())
        browser.send(stuck)
        assert browser.is_cut()
        assert server.counters.values["listener_timeouts"] == 1
        assert server.guard.tls_handshakes == 0


def test_tls_handshakes_in_progress_are_limited(tmp_path: Path) -> None:
    limits = LimitSettings(tls_handshakes=1)
    with running(context=server_context(tmp_path), tls=Switch.ON, limits=limits) as server:
        slow = Browser(server.connect())
        slow.send(b"\x16\x03\x01")
        wait_until(lambda: server.guard.tls_handshakes == 1)
        dropped = Browser(server.connect())
        dropped.send(b"\x16\x03\x01")
        assert dropped.is_cut()
        assert server.counters.values["listener_dropped_tls"] == 1
        slow.close()
        wait_until(lambda: server.guard.tls_handshakes == 0)
        server.browser(tls=True).close()


def test_connections_beyond_what_is_answered_are_dropped() -> None:
    with running(limits=LimitSettings(connections=1)) as server:
        held = [server.connect() for _ in range(1 + ANSWERED_ABOVE_LIMIT)]
        wait_until(lambda: server.guard.connections == len(held))
        assert Browser(server.connect()).is_cut()
        assert server.counters.values["listener_dropped_connections"] == 1
        for sock in held:
            sock.close()
        wait_until(lambda: server.guard.connections == 0)
        server.browser().close()


def test_connections_per_address_beyond_what_is_answered_are_dropped() -> None:
    with running(limits=LimitSettings(connections_per_address=1)) as server:
        held = [server.connect() for _ in range(1 + ANSWERED_ABOVE_LIMIT)]
        wait_until(lambda: server.guard.claimed("127.0.0.1") == len(held))
        assert Browser(held[0]).ask(head())[0] == 503
        dropped = [server.connect() for _ in range(2)]
        assert Browser(dropped[1]).is_cut()
        for sock in [*held, *dropped]:
            sock.close()
        wait_until(lambda: server.guard.connections == 0)
        server.browser().close()


V1 = b"PROXY TCP4 198.51.100.7 192.0.2.2 56324 443\r\n"
V2_HEAD = PROXY_V2_SIGNATURE + b"\x21\x11\x00\x0c"
V2 = V2_HEAD + bytes([198, 51, 100, 7, 192, 0, 2, 2]) + b"\xdc\x04\x01\xbb"
V2_IPV6 = (
    PROXY_V2_SIGNATURE + b"\x21\x21\x00\x24" + ipaddress.ip_address("2001:db8::1").packed * 2 + b"\xdc\x04\x01\xbb"
)
V2_LOCAL = PROXY_V2_SIGNATURE + b"\x20\x00\x00\x00"
V2_EXTRA = PROXY_V2_SIGNATURE + b"\x21\x11\x00\x13" + V2[16:] + b"\x03\x00\x04abcd"


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize(
    ("header", "host"),
    [
        (V1, "198.51.100.7"),
        (V2, "198.51.100.7"),
        (V2_EXTRA, "198.51.100.7"),
        (V2_IPV6, "2001:db8::1"),
        (V2_LOCAL, "127.0.0.1"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    ],
)
def test_proxy_from_a_trusted_relay(tmp_path: Path, tls: bool, header: bytes, host: str) -> None:
    settings = {"tls": Switch.ON, "context": server_context(tmp_path)} if tls else {}
    with running(trusted_proxies=LOOPBACK, proxy_protocol=True, **settings) as server:
        sock = server.connect()
        sock.sendall(header)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            sock = context.wrap_socket(sock)
        browser = Browser(sock)
        assert browser.ask(head())[0] == 101
        assert server.handler.upgrades[0].remote.host == host
        assert server.guard.claimed(host) == 1
        browser.close()


@pytest.mark.parametrize("header", [V1, V2])
def test_proxy_byte_by_byte(header: bytes) -> None:
    with running(trusted_proxies=LOOPBACK, proxy_protocol=True) as server:
        browser = Browser(server.connect())
        for byte in header:
            browser.send(bytes((byte,)))
            gevent.sleep(0.001)
        assert browser.ask(head())[0] == 101
        assert server.handler.upgrades[0].remote.host == "198.51.100.7"
        browser.close()


@pytest.mark.parametrize(
    "header",
    [
        head(),
        b"PROXY TCP4 nonsense\r\n" + head(),
        b"PROXY " + b"x" * 200 + b"\r\n" + head(),
        PROXY_V2_SIGNATURE + b"\x21\x11\xff\xff" + bytes(70000),
        PROXY_V2_SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),
    ],
)
def test_a_malformed_proxy_header_is_closed_and_counted(header: bytes) -> None:
    with running(trusted_proxies=LOOPBACK, proxy_protocol=True) as server:
        browser = Browser(server.connect())
        browser.send(header)
        assert browser.is_cut()
        assert server.counters.values["listener_malformed"] == 1
        assert server.handler.streams == []


@pytest.mark.parametrize("settings", [{"proxy_protocol": True}, {"trusted_proxies": LOOPBACK}])
def test_proxy_from_anybody_else_is_no_proxy_header(settings: dict[str, object]) -> None:
    with running(**settings) as server:
        browser = Browser(server.connect())
        assert browser.ask(V1 + head())[0] == 400
        assert server.handler.streams == []


def test_reload_of_the_settings_counts_for_new_connections() -> None:
    with running() as server:
        kept = server.browser()
        server.listener.reload(server.listener._settings, WebSocketSettings(path="/sip"))
        assert Browser(server.connect()).ask(head())[0] == 404
        assert Browser(server.connect()).ask(head(path="/sip"))[0] == 101
        assert server.handler.streams[0].is_open
        kept.close()


def test_no_new_connections_after_stop_accepting() -> None:
    with running(Recorder(echo)) as server:
        browser = server.browser()
        server.listener.stop_accepting()
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        browser.send_frame(Opcode.TEXT, b"still open")
        assert browser.read_frame() == (Opcode.TEXT, b"still open")
        browser.close()


FEW_DESCRIPTORS = """
import gc, logging, resource, socket, sys
import gevent
from gevent import socket as gevent_socket
from tests.loopback.websocket_peer import Recorder, echo, running, wait_until
from wsgate.ws.frames import Opcode

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="LOG %(message)s")
LIMIT = 60
with running(Recorder(echo)) as server:
    first = server.browser()
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    spare = []
    while True:
        try:
            spare.append(socket.socket())
        except OSError:
            break
    # One descriptor for the client's end: the server has none for its own.
    for _ in range(20):
        spare.pop().close()
        sock = gevent_socket.create_connection(("127.0.0.1", server.port), timeout=10)
        try:
            refused = sock.recv(1) == b""
        except ConnectionError:
            refused = True
        sock.close()
        spare.append(socket.socket())
        assert refused
    refusals = server.counters.values["listener_refused_no_descriptors"]
    assert refusals == 20, refusals
    first.send_frame(Opcode.TEXT, b"still served")
    assert first.read_frame() == (Opcode.TEXT, b"still served")
    for sock in spare:
        sock.close()
    healed = [server.browser() for _ in range(5)]
    for browser in healed:
        browser.send_frame(Opcode.TEXT, b"healed")
        assert browser.read_frame() == (Opcode.TEXT, b"healed")
        browser.close()
    first.close()
print("DONE")
"""


def test_h7_without_descriptors_connections_are_refused_with_one_log_line_and_it_heals() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "DONE"
    assert [line for line in lines if line.startswith("LOG")] == [
        "LOG listener test refuses connections: Too many open files"
    ]


def test_a_connection_that_was_reset_before_it_was_served_is_nothing() -> None:
    with running() as server:
        for _ in range(20):
            sock = socket.create_connection((server.host, server.port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            sock.close()
        server.browser().close()
        wait_until(lambda: server.guard.connections == 0)
        assert "internal_errors" not in server.counters.values
