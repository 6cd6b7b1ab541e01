"""Backends over every transport, found and lost: TLS verified, one wsgate in front of another, faults of the DNS.

Rules N1 to N6, I4, V1 and the 503 rows of table A with the daemon and real peers.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.certificates import Authority
from tests.dns_server import DnsServer, Fault
from tests.interop.daemon import ROOT, Daemon
from tests.interop.kamailio import PASSWORD, Kamailio
from tests.interop.process import free_port, wait_for
from tests.interop.raw import RawWebSocket, UdpPeer, answer, header, sip
from tests.interop.registration import EMBEDDED, write_users
from tests.interop.registration import PASSWORD as REGISTRAR_PASSWORD
from tests.interop.sipp import Sipp
from tests.interop.softphone import Softphone
from tests.interop.stream_server import Line, StreamServer
from tests.interop.test_kamailio import Company, assert_well_served, backend, call_through

T = TypeVar("T", bound=Any)
NUMBER = itertools.count(1)
SECURE_SERVICES = {"tls": ("SIPS+D2T", "_sips._tcp"), "wss": ("SIPS+D2W", "_sips._ws")}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the certificates of these companies."""
    return Authority(tmp_path_factory.mktemp("authority"))


def secure_zone(transport: str, port: int) -> str:
    """NAPTR and SRV records of example.test for TLS or WSS alone."""
    service, name = SECURE_SERVICES[transport]
    return f'@ NAPTR 10 10 "s" "{service}" "" {name}\n{name} SRV 10 10 {port} pbx\npbx A 127.0.0.1\n'


@pytest.fixture(params=["tls", "tls without tls_bind", "wss"])
def secure_company(request: pytest.FixtureRequest, tmp_path: Path, authority: Authority) -> Iterator[Company]:
    """A Kamailio with the certificate of example.test, and a gateway that trusts who signed it."""
    transport = request.param.partition(" ")[0]
    with ExitStack() as stack:
        kamailio = Kamailio(tmp_path / "kamailio", certificate=authority.issue("example.test"))
        stack.callback(kamailio.stop)
        dns = stack.enter_context(DnsServer(secure_zone(transport, kamailio.tls_port), "example.test"))
        sip_options, text = "", backend(dns, f"ca_file = {authority.ca_file}")
        if request.param == "tls":
            certificate, key = authority.issue("gate.example.test")
            sip_options = f"tls_bind = 127.0.0.1:{free_port()}"
            text += f"[listener secure]\nbind = 127.0.0.1:{free_port()}\ncertificate = {certificate}\n"
            text += f"private_key = {key}\n"
        gateway = Daemon(tmp_path / "wsgate", text, sip_options=sip_options)
        stack.callback(gateway.stop)
        yield Company(transport, dns, kamailio, gateway, tmp_path)


def test_calls_pass_over_tls_and_wss_both_ways(secure_company: Company) -> None:
    """N1, V1: verified by the company's own authority; its requests come to tls_bind, or back on our connection."""
    with ExitStack() as stack:
        call_through(secure_company, stack)
    log = secure_company.kamailio.log
    for method in ("REGISTER", "INVITE", "BYE"):
        assert f"GOT {method} from {secure_company.transport}:127.0.0.1:" in log
    has_port = "tls_bind" in secure_company.gateway.ini.read_text()
    counters = secure_company.gateway.status()["counters"]
    assert ("sip_connections_accepted" in counters) == has_port


@pytest.mark.parametrize("transport", ["tcp", "ws", "tls"])
def test_a_server_that_was_restarted_is_found_again_by_the_next_register(
    transport: str, tmp_path: Path, authority: Authority
) -> None:
    """V1: its connection is replaced, and the REGISTER heals the Path."""
    with ExitStack() as stack:
        kamailio = Kamailio(tmp_path / "kamailio", certificate=authority.issue("example.test"))
        stack.callback(kamailio.stop)
        port = kamailio.tls_port if transport == "tls" else kamailio.port
        lines = ["[backend example.test]", f"target = sip:127.0.0.1:{port};transport={transport}"]
        lines += [f"ca_file = {authority.ca_file}", "server_name = example.test", "probe_interval = 1"]
        gateway = Daemon(tmp_path / "wsgate", "\n".join(lines) + "\n")
        stack.callback(gateway.stop)
        phone = Softphone(gateway.url, "alice", PASSWORD)
        stack.callback(phone.close)
        phone.wait("registered")
        kamailio.stop()
        phone.do("message", target="sip:bob@example.test", body="anybody there?")
        phone.wait_sip("in", "SIP/2.0 503 ")
        kamailio.restart()
        wait_for(lambda: not gateway.status()["backends"]["example.test"]["dead"], "the server to be found alive")
        phone.do("register")
        phone.wait_sip("in", "SIP/2.0 200 ")
        desk = Sipp("uac_bye", f"127.0.0.1:{kamailio.port}", tmp_path, called="alice")
        stack.callback(desk.stop)
        phone.wait("session")
        phone.do("answer")
        phone.wait("ended")
        desk.done()


# A wsgate in front of another


@pytest.mark.parametrize("transport", ["ws", "wss"])
def test_a_wsgate_in_front_of_another_wsgate(transport: str, tmp_path: Path, authority: Authority) -> None:
    """V1: to the one behind, the one in front is a browser with many users; wss by server_name."""
    port = free_port()
    certificate, key = authority.issue("example.test")
    secure = f"[listener wss]\nbind = 127.0.0.1:{port}\ncertificate = {certificate}\nprivate_key = {key}\n"
    with ExitStack() as stack:
        write_users(tmp_path / "behind", "alice", "bob")
        behind = Daemon(tmp_path / "behind", EMBEDDED + (secure if transport == "wss" else ""))
        stack.callback(behind.stop)
        lines = ["[backend example.test]", "ws_path = /ws"]
        if transport == "ws":
            lines += [f"target = sip:127.0.0.1:{behind.http};transport=ws"]
        else:
            lines += [f"target = sips:127.0.0.1:{port};transport=ws", f"ca_file = {authority.ca_file}"]
            lines += ["server_name = example.test"]
        front = Daemon(tmp_path / "front", "\n".join(lines) + "\n")
        stack.callback(front.stop)
        alice, bob = (Softphone(front.url, user, REGISTRAR_PASSWORD, "example.test") for user in ("alice", "bob"))
        stack.callback(alice.close)
        stack.callback(bob.close)
        alice.wait("registered")
        bob.wait("registered")
        assert len(behind.status()["flows"]) == 1, "one connection for all"
        for caller, callee, ends in ((alice, bob, bob), (bob, alice, alice), (alice, bob, alice)):
            caller.do("call", target=f"sip:{callee.user}@example.test")
            callee.wait("session")
            callee.do("answer")
            caller.wait("confirmed")
            callee.wait("confirmed")
            caller.do("dtmf", tones="5")
            callee.wait("newDTMF", accept=lambda event: event["originator"] == "remote")
            callee.do("hold")
            caller.wait("hold", accept=lambda event: event["originator"] == "remote")
            callee.wait_sip("in", "SIP/2.0 200")
            ends.do("hangup")
            (alice if ends is bob else bob).wait("ended", accept=lambda event: event["originator"] == "remote")
        alice.do("message", target="sip:bob@example.test", body="Grüße")
        assert bob.wait("message", accept=lambda event: event["originator"] == "remote")["body"] == "Grüße"
        front.wait_status("dialogs", 0)
        behind.wait_status("dialogs", 0)
        assert_well_served(alice)
        assert_well_served(bob)


# A browser by hand, and backends that do what a test says


class User:
    """alice on a WebSocket of hers."""

    def __init__(self, gateway: Daemon, user: str = "alice") -> None:
        self.user = user
        self.ws = RawWebSocket(gateway.address)
        self.branch = ""

    def send(
        self,
        method: str,
        *extra: str,
        uri: str = "sip:bob@example.test",
        body: bytes = b"",
        to: str = "",
        cseq: int = 1,
    ) -> None:
        """Send a request; REGISTER goes to the domain."""
        number = next(NUMBER)
        self.branch = f"z9hG4bK{number}x"
        uri = "sip:example.test" if method == "REGISTER" else uri
        aor = f"<sip:{self.user}@example.test>"
        head = sip(
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/WS abcdefgh.invalid;branch={self.branch}",
            "Max-Forwards: 69",
            f"From: {aor};tag=a{number}",
            f"To: {to or (aor if method == 'REGISTER' else '<sip:bob@example.test>')}",
            f"Call-ID: call{number}@abcdefgh.invalid",
            f"CSeq: {cseq} {method}",
            f"Contact: <sip:{self.user}@abcdefgh.invalid;transport=ws>",
            *extra,
        )
        self.ws.send(head.replace(b"Content-Length: 0", b"Content-Length: %d" % len(body)) + body)

    def answer(self, seconds: float = 10.0) -> bytes:
        """The final answer to the last request."""
        return self.ws.receive_until(
            lambda m: m[:8] == b"SIP/2.0 " and m[8:9] != b"1" and self.branch.encode() in m, seconds
        )

    def ask(self, method: str, *extra: str, **fields: Any) -> int:
        """Send a request; the status of its final answer."""
        self.send(method, *extra, **fields)
        return int(self.answer().split(b" ", 2)[1])

    def receive(self, start: bytes) -> bytes:
        """The next message that begins so."""
        return self.ws.receive_until(lambda message: message.startswith(start))


class Scene:
    """A gateway with one backend, and whoever a test starts beside it; all end with the test."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory, self._stack = directory, stack
        self.gateway: Daemon

    def start(self, target: str, *options: str, text: str = "", sip_options: str = "") -> Daemon:
        """The gateway, its backend example.test at `target`."""
        lines = ["[backend example.test]", f"target = {target}", *options, text]
        self.gateway = Daemon(self._directory, "\n".join(lines) + "\n", sip_options=sip_options)
        self._stack.callback(self.gateway.stop)
        return self.gateway

    def resolve(self, zone: str, ttl: int = 60) -> tuple[DnsServer, str]:
        """A DNS server for example.test, and the section that names it."""
        dns = self._stack.enter_context(DnsServer("", "example.test"))
        dns.serve(zone, ttl)
        return dns, f"[dns]\nnameservers = {dns.address[0]}:{dns.address[1]}\n"

    def keep(self, one: T) -> T:
        """Close `one` at the end."""
        self._stack.callback(one.close)
        return one

    def user(self, name: str = "alice") -> User:
        """A browser."""
        user = User(self.gateway, name)
        self._stack.callback(user.ws.close)
        return user

    def count(self, counter: str) -> int:
        """What the gateway counted."""
        found: int = self.gateway.status()["counters"].get(counter, 0)
        return found

    def dead(self) -> list[str]:
        """The targets that the gateway leaves alone."""
        found: list[str] = self.gateway.status()["backends"]["example.test"]["dead"]
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Nothing is started yet."""
    with ExitStack() as stack:
        yield Scene(tmp_path, stack)


# UDP or TCP by size (I4)


def udp_target(peer: UdpPeer) -> str:
    """The target that is this peer."""
    return f"sip:127.0.0.1:{peer.port}"


def test_i4_a_backend_without_tcp_gets_its_large_requests_by_udp_and_is_asked_once(scene: Scene) -> None:
    """I4: refused TCP goes back to UDP, and that is remembered."""
    peer = scene.keep(UdpPeer())
    scene.start(udp_target(peer))
    user = scene.user()
    for _ in range(3):
        user.send("MESSAGE", body=b"x" * 3000)
        request, source = peer.receive_until(b"MESSAGE ")
        assert header(request, "Via").startswith("SIP/2.0/UDP ")
        assert request.endswith(b"\r\n\r\n" + b"x" * 3000)
        peer.send(answer(request, "202 Accepted", tag="b"), source)
        assert user.answer().startswith(b"SIP/2.0 202 ")
    assert scene.count("sip_fallbacks_to_udp") == 1
    assert scene.dead() == []


def test_i4_a_backend_with_tcp_gets_large_requests_by_tcp_and_small_ones_by_udp(scene: Scene) -> None:
    """I4: with a Via that says so, and one connection for all."""
    peer = scene.keep(UdpPeer(port=free_port()))
    server = scene.keep(StreamServer(peer.port))
    scene.start(udp_target(peer))
    user = scene.user()
    user.send("MESSAGE", body=b"x" * 100)
    request, source = peer.receive_until(b"MESSAGE ")
    peer.send(answer(request, "200 OK", tag="b"), source)
    assert user.answer().startswith(b"SIP/2.0 200 ")
    user.send("MESSAGE", body=b"x" * 3000)
    line = server.accept()
    for _ in range(2):
        request = line.receive()
        assert header(request, "Via").startswith("SIP/2.0/TCP ")
        line.send(answer(request, "200 OK", tag="b"))
        assert user.answer().startswith(b"SIP/2.0 200 ")
        user.send("MESSAGE", body=b"x" * 3000)
    assert not server.is_wanted()


def test_i4_what_fits_no_transport_is_513(scene: Scene) -> None:
    """Table A: above 65,507 bytes, TCP refused; and the backend is as good as before for what is small."""
    peer = scene.keep(UdpPeer())
    scene.start(udp_target(peer))
    user = scene.user()
    user.send("MESSAGE", body=b"x" * 70000)
    refused = user.answer()
    assert refused.startswith(b"SIP/2.0 513 ")
    assert "no transport" in header(refused, "Warning")
    user.send("MESSAGE")
    peer.receive_until(b"MESSAGE ")


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_i4_bodies_of_200_kb_pass_between_websocket_and_tcp_byte_by_byte(scene: Scene, transport: str) -> None:
    """Both directions, requests and answers, every byte value, CR LF and what looks like a message among them."""
    body = (bytes(range(256)) + b"\r\n\r\nBYE sip:x SIP/2.0\r\nContent-Length: 3\r\n\r\n") * 800
    body = body[:200_000]
    peer = scene.keep(UdpPeer(port=free_port()))
    server = scene.keep(StreamServer(peer.port))
    scene.start(f"sip:127.0.0.1:{peer.port};transport={transport}")
    user = scene.user()
    user.send("REGISTER", "Content-Type: application/octet-stream", body=body)
    line = server.accept()
    register = line.receive(20)
    assert register.partition(b"\r\n\r\n")[2] == body
    path = header(register, "Path")
    ok = answer(register, "200 OK", f"Contact: {header(register, 'Contact')};expires=60", tag="r")
    line.send(ok.replace(b"Content-Length: 0", b"Content-Length: %d" % len(body)) + body)
    answered = user.answer()
    assert answered.startswith(b"SIP/2.0 200 ")
    assert answered.partition(b"\r\n\r\n")[2] == body
    call = sip(
        "MESSAGE sip:alice@abcdefgh.invalid;transport=ws SIP/2.0",
        f"Via: SIP/2.0/TCP 127.0.0.1:{server.port};branch=z9hG4bKback",
        f"Route: {path}",
        "Max-Forwards: 70",
        "From: <sip:bob@example.test>;tag=b1",
        "To: <sip:alice@example.test>",
        "Call-ID: back@example.test",
        "CSeq: 1 MESSAGE",
    )
    line.send(call.replace(b"Content-Length: 0", b"Content-Length: %d" % len(body)) + body)
    arrived = user.receive(b"MESSAGE ")
    assert arrived.partition(b"\r\n\r\n")[2] == body
    reply = answer(arrived, "200 OK", tag="a1")
    user.ws.send(reply.replace(b"Content-Length: 0", b"Content-Length: %d" % len(body)) + body)
    answered = line.receive_until(b"SIP/2.0 200")
    assert answered.partition(b"\r\n\r\n")[2] == body


# Connections


def test_a_connection_to_a_backend_is_kept_and_its_requests_come_back_on_it(scene: Scene) -> None:
    """RFC 5923 in spirit: one for all that goes there, taken for what comes; lost, it is made anew."""
    server = scene.keep(StreamServer())
    scene.start(f"sip:127.0.0.1:{server.port};transport=tcp")
    user = scene.user()
    user.send("REGISTER")
    line = server.accept()
    register = line.receive()
    line.send(answer(register, "200 OK", f"Contact: {header(register, 'Contact')};expires=60", tag="r"))
    assert user.answer().startswith(b"SIP/2.0 200 ")
    other = scene.user("carol")
    other.send("MESSAGE")
    line.send(answer(line.receive(), "200 OK", tag="b"))
    assert other.answer().startswith(b"SIP/2.0 200 ")
    line.send(incoming(header(register, "Path"), server.port))
    arrived = user.receive(b"MESSAGE ")
    user.ws.send(answer(arrived, "200 OK", tag="a1"))
    assert line.receive().startswith(b"SIP/2.0 200 ")
    assert not server.is_wanted()
    line.close()
    user.send("MESSAGE")
    again = server.accept()
    again.send(answer(again.receive(), "200 OK", tag="b"))
    assert user.answer().startswith(b"SIP/2.0 200 ")


def incoming(route: str, port: int, via: str = "TCP") -> bytes:
    """A request of the backend for the browser behind `route`."""
    number = next(NUMBER)
    return sip(
        "MESSAGE sip:alice@abcdefgh.invalid;transport=ws SIP/2.0",
        f"Via: SIP/2.0/{via} 127.0.0.1:{port};branch=z9hG4bK{number}back",
        f"Route: {route}",
        "Max-Forwards: 70",
        "From: <sip:bob@example.test>;tag=b1",
        "To: <sip:alice@example.test>",
        f"Call-ID: back{number}@example.test",
        "CSeq: 1 MESSAGE",
    )


def test_a_connection_that_the_backend_opened_is_used_where_it_says_alias(scene: Scene) -> None:
    """RFC 5923 §8: and no second one is made."""
    server = scene.keep(StreamServer())
    gateway = scene.start(f"sip:127.0.0.1:{server.port};transport=tcp")
    line = Line(socket.create_connection(("127.0.0.1", gateway.sip)), ("127.0.0.1", gateway.sip))
    scene.keep(line)
    line.send(options(gateway, server.port, "TCP", ";alias"))
    assert line.receive().startswith(b"SIP/2.0 200 ")
    user = scene.user()
    user.send("MESSAGE")
    line.send(answer(line.receive_until(b"MESSAGE "), "200 OK", tag="b"))
    assert user.answer().startswith(b"SIP/2.0 200 ")
    assert not server.is_wanted()


def options(gateway: Daemon, port: int, via: str, parameters: str = "") -> bytes:
    """OPTIONS for the gateway, from the backend at `port`."""
    return sip(
        f"OPTIONS sip:127.0.0.1:{gateway.sip} SIP/2.0",
        f"Via: SIP/2.0/{via} 127.0.0.1:{port};branch=z9hG4bK{next(NUMBER)}o{parameters}",
        "Max-Forwards: 70",
        "From: <sip:pbx@example.test>;tag=p1",
        "To: <sip:example.test>",
        f"Call-ID: options{next(NUMBER)}@example.test",
        "CSeq: 1 OPTIONS",
    )


@pytest.mark.parametrize("side", ["udp", "tcp", "browser"])
def test_g1_options_for_us_is_answered_on_every_side(scene: Scene, side: str) -> None:
    """A load balancer or a phone may ask whether we are there."""
    peer = scene.keep(UdpPeer())
    gateway = scene.start(udp_target(peer))
    if side == "udp":
        peer.send(options(gateway, peer.port, "UDP"), ("127.0.0.1", gateway.sip))
        found = peer.receive_until(b"SIP/2.0 ")[0]
    elif side == "tcp":
        line = scene.keep(Line(socket.create_connection(("127.0.0.1", gateway.sip)), ("127.0.0.1", gateway.sip)))
        line.send(options(gateway, peer.port, "TCP"))
        found = line.receive()
    else:
        user = scene.user()
        user.send("OPTIONS", uri=f"sip:127.0.0.1:{gateway.http};transport=ws")
        found = user.answer()
    assert found.startswith(b"SIP/2.0 200 ")
    assert "INVITE" in header(found, "Allow")


# Certificates


def mutual(authority: Authority, *names: str) -> ssl.SSLContext:
    """A server's context for `names` that asks its clients for a certificate of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue(*names))
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_a_client_certificate_is_shown_and_survives_a_reload(scene: Scene, authority: Authority) -> None:
    """client_certificate, client_private_key, server_name: handed over by the supervisor; SIGHUP takes them anew."""
    server = scene.keep(StreamServer(context=mutual(authority, "sip:pbx.example.test")))
    certificate, key = authority.issue("gate.example.test")
    scene.start(
        f"sips:127.0.0.1:{server.port}",
        f"ca_file = {authority.ca_file}",
        "server_name = pbx.example.test",
        f"client_certificate = {certificate}",
        f"client_private_key = {key}",
    )
    user = scene.user()
    user.send("MESSAGE")
    line = server.accept()
    assert ("DNS", "gate.example.test") in line.socket.getpeercert()["subjectAltName"]
    line.send(answer(line.receive(), "200 OK", tag="b"))
    assert user.answer().startswith(b"SIP/2.0 200 ")
    os.kill(scene.gateway.pid, signal.SIGHUP)
    wait_for(lambda: "reloaded" in scene.gateway.log, "the reload")
    line.close()
    user.send("MESSAGE")
    line = server.accept()
    line.send(answer(line.receive(), "200 OK", tag="b"))
    assert user.answer().startswith(b"SIP/2.0 200 ")


@pytest.mark.parametrize(
    ("names", "reason"),
    [(("other.example.test",), "it is for other.example.test, not for"), (("*.example.test",), "it is for *.example")],
)
def test_a_server_with_the_wrong_certificate_gets_no_byte(
    scene: Scene, authority: Authority, names: tuple[str, ...], reason: str
) -> None:
    """RFC 5922 §7: 503 to the browser with Retry-After, one line for the administrator."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue(*names))
    server = scene.keep(StreamServer(context=context))
    dns, section = scene.resolve("pbx A 127.0.0.1\n")
    scene.start(f"sips:pbx.example.test:{server.port}", f"ca_file = {authority.ca_file}", text=section)
    user = scene.user()
    user.send("INVITE")
    line = server.accept()
    assert line.socket.recv(1000) == b""
    refused = user.answer()
    assert refused.startswith(b"SIP/2.0 503 ")
    assert header(refused, "Retry-After")
    assert f"certificate refused: {reason}" in scene.gateway.log
    assert dns.count("pbx.example.test", "A")


def test_files_that_cannot_be_used_are_told_at_the_start(tmp_path: Path, authority: Authority) -> None:
    """With the section and the names of the ini file."""
    _, key = authority.issue("gate.example.test")
    ini = tmp_path / "wsgate.ini"
    ini.write_text(
        f"[listener a]\nbind = 127.0.0.1:{free_port()}\ntls = off\n[sip]\nbind = 127.0.0.1:{free_port()}\n"
        "[backend example.test]\ntarget = sips:127.0.0.1\n"
        f"client_certificate = {authority.ca_file}\nclient_private_key = {key}\n"
    )
    command = [sys.executable, "-m", "wsgate", "-c", str(ini)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "[backend example.test]" in ended.stderr
    assert authority.ca_file in ended.stderr
    assert "Traceback" not in ended.stderr


# Backends that fail (N2, N3, table A)


def test_n3_a_503_is_500_for_the_browser_and_a_probe_brings_the_server_back(scene: Scene) -> None:
    """N3: nobody waits for the back-off when an OPTIONS is answered."""
    peer = scene.keep(UdpPeer())
    scene.start(udp_target(peer), "probe_interval = 1")
    user = scene.user()
    user.send("MESSAGE")
    request, source = peer.receive_until(b"MESSAGE ")
    peer.send(answer(request, "503 Service Unavailable", "Retry-After: 3600", tag="b"), source)
    refused = user.answer()
    assert refused.startswith(b"SIP/2.0 500 ")
    assert b"Retry-After" not in refused
    assert scene.dead() == [f"UDP 127.0.0.1:{peer.port}"]
    probe, source = peer.receive_until(b"OPTIONS sip:example.test ")
    peer.send(answer(probe, "503 Service Unavailable", tag="b"), source)
    probe, source = peer.receive_until(b"OPTIONS sip:example.test ")
    assert scene.dead()
    peer.send(answer(probe, "404 Not Found", tag="b"), source)
    wait_for(lambda: scene.dead() == [], "the target to be alive")
    assert peer.receive(1.5) is None, "who lives is not probed"


def test_n3_nobody_there_is_503_with_retry_after_until_somebody_comes(scene: Scene) -> None:
    """ICMP tells at once; a new server on the port is found by a probe."""
    port = free_port()
    scene.start(f"sip:127.0.0.1:{port}", "probe_interval = 1")
    user = scene.user()
    user.send("INVITE")
    refused = user.answer(20)  # Timer B is 32 s
    assert refused.startswith(b"SIP/2.0 503 ")
    assert header(refused, "Retry-After")
    assert scene.dead() == [f"UDP 127.0.0.1:{port}"]
    peer = scene.keep(UdpPeer(port=port))
    probe, source = peer.receive_until(b"OPTIONS ")
    peer.send(answer(probe, "200 OK", tag="b"), source)
    wait_for(lambda: scene.dead() == [], "the target to be alive")


def test_n2_several_targets_share_by_weight_and_the_dead_one_is_left_out(scene: Scene) -> None:
    """N2: SRV weights; then one of them goes."""
    peers = [scene.keep(UdpPeer()) for _ in range(3)]
    weights = (30, 10, 0)
    lines = [f"_sip._udp SRV 10 {weight} {peer.port} h" for weight, peer in zip(weights, peers, strict=True)]
    _, section = scene.resolve("\n".join([*lines, "h A 127.0.0.1", ""]))
    scene.start("sip:example.test;transport=udp", "probe_interval = 3600", text=section)
    user = scene.user()

    def served(count: int) -> list[int]:
        """How many of `count` requests each peer got."""
        got = [server_of(user, peers) for _ in range(count)]
        return [got.count(peer) for peer in peers]

    first, second, third = served(80)
    assert 40 < first < 76, "3 of 4, with a chance of 1 to a million to be outside"
    assert second > 2
    assert third < 15
    peers[0].close()
    del peers[0]
    wait_for(lambda: server_of(user, peers) and scene.dead(), "the closed port to be noticed")
    for _ in range(10):
        server_of(user, peers)


def server_of(user: User, peers: list[UdpPeer]) -> UdpPeer:
    """Send a request, which one of `peers` serves; returns that one."""
    user.send("OPTIONS")

    def arrived() -> tuple[UdpPeer, tuple[bytes, tuple[str, int]]] | None:
        # What comes again to a peer that has answered it makes its socket readable, but is no request.
        select.select([peer.socket for peer in peers], [], [], 0.1)
        return next(((peer, got) for peer in peers if (got := peer.receive(0))), None)

    peer, (request, source) = wait_for(arrived, "a request")
    assert request.startswith(b"OPTIONS ")
    peer.send(answer(request, "200 OK", tag="b"), source)
    assert user.answer().startswith(b"SIP/2.0 200 ")
    return peer


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_n1_a_backend_over_ipv6(scene: Scene, transport: str) -> None:
    """AAAA records; Via, Path and Record-Route name our address of that family."""
    server: Any = scene.keep(UdpPeer("::1") if transport == "udp" else StreamServer(host="::1"))
    _, section = scene.resolve(f"_sip._{transport} SRV 10 10 {server.port} six\nsix AAAA ::1\n")
    own = free_port()
    gateway = scene.start(
        f"sip:example.test;transport={transport}", text=section, sip_options=f"  , [::1]:{own}\nadd_received = off"
    )
    user = scene.user()
    user.send("REGISTER")
    if transport == "udp":
        register, source = server.receive_until(b"REGISTER ")
    else:
        line = server.accept()
        register = line.receive()
    assert header(register, "Via").startswith(f"SIP/2.0/{transport.upper()} [::1]:{own};")
    path = header(register, "Path")
    assert f"@[::1]:{own};" in path
    ok = answer(register, "200 OK", f"Contact: {header(register, 'Contact')};expires=60", tag="r")
    if transport == "udp":
        server.send(ok, source)
    else:
        line.send(ok)
    assert user.answer().startswith(b"SIP/2.0 200 ")
    call = incoming(path, server.port, transport.upper()).replace(b"127.0.0.1", b"[::1]", 1)
    if transport == "udp":
        server.send(call, ("::1", own))
    else:
        line.send(call)
    user.ws.send(answer(user.receive(b"MESSAGE "), "200 OK", tag="a1"))
    found = server.receive_until(b"SIP/2.0 ")[0] if transport == "udp" else line.receive()
    assert found.startswith(b"SIP/2.0 200 ")
    assert gateway.running


# Faults of the DNS (N2, N5)


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.SILENCE, Fault.NXDOMAIN])
def test_n5_a_backend_that_the_dns_does_not_know_costs_its_own_callers_only_and_heals(
    scene: Scene, fault: Fault
) -> None:
    """N5: 503 with Retry-After to who asked for it, no delay for who did not, and found once the DNS is well."""
    peer, other = scene.keep(UdpPeer()), scene.keep(UdpPeer())
    dns, section = scene.resolve(f"_sip._udp SRV 10 10 {peer.port} pbx\npbx A 127.0.0.1\n", ttl=1)
    dns.faults[""] = fault
    second = f"[backend second.test]\ntarget = sip:127.0.0.1:{other.port}\n"
    scene.start("sip:example.test;transport=udp", text=second + section + "timeout = 0.3\nnegative_ttl = 1\n")
    waiting, user = scene.user(), scene.user("carol")
    waiting.send("INVITE")
    user.send("MESSAGE", uri="sip:dave@second.test")
    request, source = other.receive_until(b"MESSAGE ")
    other.send(answer(request, "200 OK", tag="b"), source)
    assert user.answer().startswith(b"SIP/2.0 200 ")
    refused = waiting.answer()
    assert refused.startswith(b"SIP/2.0 503 ")
    assert header(refused, "Retry-After")
    assert scene.gateway.status()["backends"]["example.test"]["problem"]
    dns.faults.clear()
    wait_for(lambda: scene.gateway.status()["backends"]["example.test"]["addresses"], "the backend to be found", 40)
    waiting.send("MESSAGE")
    peer.receive_until(b"MESSAGE ")


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.SILENCE])
def test_n2_what_was_known_serves_while_the_dns_is_down_and_a_change_is_taken_up(scene: Scene, fault: Fault) -> None:
    """N2: stale answers; then the zone names another server, and the old one hears no more."""
    old, new = scene.keep(UdpPeer()), scene.keep(UdpPeer())
    zone = "_sip._udp SRV 10 10 {} pbx\npbx A 127.0.0.1\n"
    dns, section = scene.resolve(zone.format(old.port), ttl=1)
    scene.start("sip:example.test;transport=udp", text=section + "timeout = 0.2\n")
    user = scene.user()

    def is_served_by(peer: UdpPeer) -> bool:
        user.send("OPTIONS")
        request, source = peer.receive_until(b"OPTIONS ")
        peer.send(answer(request, "200 OK", tag="b"), source)
        return user.answer().startswith(b"SIP/2.0 200 ")

    assert is_served_by(old)
    dns.faults[""] = fault
    asked = len(dns.asked)
    wait_for(lambda: len(dns.asked) > asked + 3 and scene.count("dns_stale_answers"), "questions in vain")
    assert is_served_by(old)
    dns.serve(zone.format(new.port), ttl=1)
    dns.faults.clear()
    place = f"UDP 127.0.0.1:{new.port}"
    wait_for(lambda: scene.gateway.status()["backends"]["example.test"]["addresses"] == [place], "the new server", 40)
    assert is_served_by(new)
    assert old.receive(0) is None
