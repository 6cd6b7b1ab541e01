"""wsgate is no open relay (D1, N4, N6, W2): a browser with a token of its own reaches nothing that D1 does not name.

The backend is a UDP peer that does what the test says, so that it can also be the accomplice. Victims are sockets on
loopback addresses that must hear nothing; the DNS server must be asked for nothing but the backend.
"""

from __future__ import annotations

import itertools
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from tests.dns_server import DnsServer
from tests.interop.daemon import Daemon
from tests.interop.process import PATIENCE_SECONDS, free_port
from tests.interop.raw import RawWebSocket, UdpPeer, answer, header, headers, sip

NUMBER = itertools.count(1)
VICTIMS = ("127.0.0.1", "127.0.0.5")
TRANSPORTS = ("", ";transport=udp", ";transport=tcp", ";transport=tls", ";transport=ws", ";transport=wss")
FOREIGN_NAME = "victim.example.org"
SDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"
ASKED = {"example.test", "_sip._udp.example.test", "pbx.example.test"}
"""The only names that the gateway has a reason to look up, however it goes about it."""


class Victim:
    """UDP and TCP on one port of an address where nothing may arrive."""

    def __init__(self, host: str) -> None:
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((host, free_port(host)))
        self.host, self.port = self.udp.getsockname()
        self.tcp = socket.create_server((host, self.port))

    def heard(self) -> list[bytes]:
        """What arrived, a connection as b"connection"."""
        found = []
        while select.select([self.udp], [], [], 0)[0]:
            found.append(self.udp.recv(65536))
        while select.select([self.tcp], [], [], 0)[0]:
            self.tcp.accept()[0].close()
            found.append(b"connection")
        return found

    def close(self) -> None:
        """Close both."""
        self.udp.close()
        self.tcp.close()


class Browser:
    """A hand-made user agent on a WebSocket; `token` is what the gateway put into its Path."""

    def __init__(self, scene: Scene, user: str) -> None:
        self.user, self.tag = user, f"tag{next(NUMBER)}"
        self.ws = RawWebSocket(scene.gateway.address)
        self.contact = f"sip:{user}@abcdefgh.invalid;transport=ws"
        self.ws.send(self.request("REGISTER", "sip:example.test", to=f"<sip:{user}@example.test>"))
        received, source = scene.backend.receive_until(b"REGISTER ")
        path = header(received, "Path")
        self.token = path.partition("sip:")[2].partition("@")[0]
        self.path = path
        contact = f"Contact: {header(received, 'Contact')};expires=600"
        scene.backend.send(answer(received, "200 OK", f"Path: {path}", contact, tag="r"), source)
        self.ws.receive_until(lambda m: m.startswith(b"SIP/2.0 200"))

    def request(
        self,
        method: str,
        uri: str,
        *,
        routes: tuple[str, ...] = (),
        to: str = "<sip:victim@example.test>",
        call: str = "",
        cseq: int = 1,
        extra: tuple[str, ...] = (),
        via: str = "",
        body: str = "",
    ) -> bytes:
        """A request of this browser."""
        number = next(NUMBER)
        return sip(
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/WS abcdefgh.invalid;branch=z9hG4bK{number}x{via}",
            "Max-Forwards: 69",
            *(f"Route: {route}" for route in routes),
            f"From: <sip:{self.user}@example.test>;tag={self.tag}",
            f"To: {to}",
            f"Call-ID: {call or f'call{number}@abcdefgh.invalid'}",
            f"CSeq: {cseq} {method}",
            f"Contact: <{self.contact};ob>",
            *extra,
            body=body,
        )

    def ask(self, request: bytes, seconds: float = PATIENCE_SECONDS) -> int:
        """Send a request and return the status of its final answer."""
        self.ws.send(request)
        branch = header(request, "Via").partition("branch=")[2].partition(";")[0].encode()
        response = self.ws.receive_until(
            lambda m: m.startswith(b"SIP/2.0 ") and not m.startswith(b"SIP/2.0 1") and branch in m, seconds
        )
        return int(response.split(b" ", 2)[1])


class Scene(NamedTuple):
    """A gateway, its scripted backend, its DNS server and those who must hear nothing."""

    gateway: Daemon
    backend: UdpPeer
    dns: DnsServer
    victims: list[Victim]

    def assert_untouched(self, seconds: float = 0.3) -> None:
        """No victim heard anything, also a moment later; no name but the backend's was looked up."""
        deadline = time.monotonic() + seconds
        while True:
            for victim in self.victims:
                assert victim.heard() == [], f"{victim.host}:{victim.port}"
            if time.monotonic() > deadline:
                break
            select.select([v.udp for v in self.victims] + [v.tcp for v in self.victims], [], [], 0.05)
        looked_up = {name for name, _, _ in self.dns.asked}
        assert {name for name in looked_up if not name.endswith("example.test")} == set()
        assert not any("victim" in name or "invalid" in name for name in looked_up), looked_up

    def backend_heard(self) -> list[bytes]:
        """What waits at the backend."""
        found = []
        while (got := self.backend.receive(0.2)) is not None:
            found.append(got[0])
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One gateway for all attacks: it must stand them all."""
    directory = tmp_path_factory.mktemp("relay")
    with ExitStack() as stack:
        backend = UdpPeer()
        stack.callback(backend.close)
        zone = f'@ NAPTR 10 10 "s" "SIP+D2U" "" _sip._udp\n_sip._udp SRV 10 10 {backend.port} pbx\npbx A 127.0.0.1\n'
        dns = stack.enter_context(DnsServer(zone, "example.test"))
        text = f"""
            [backend example.test]
            target = sip:example.test
            transports = udp
            [dns]
            nameservers = 127.0.0.1:{dns.address[1]}
            [limits]
            messages_per_second = 10000
            transactions_per_connection = 10000
            """
        # Targets of dialogs that do exist are allowed into a network that holds no victim.
        gateway = Daemon(directory / "wsgate", text, sip_options="direct_targets = 10.99.0.0/16")
        stack.callback(gateway.stop)
        victims = [Victim(host) for host in VICTIMS]
        for victim in victims:
            stack.callback(victim.close)
        yield Scene(gateway, backend, dns, victims)


@pytest.fixture
def browser(scene: Scene) -> Iterator[Browser]:
    """A registered browser; after its attack the gateway still serves it and nobody was touched."""
    scene.backend_heard()
    made = Browser(scene, f"eve{next(NUMBER)}")
    try:
        yield made
        scene.assert_untouched()
        made.ws.send(made.request("MESSAGE", "sip:friend@example.test", to="<sip:friend@example.test>"))
        received, source = scene.backend.receive_until(b"MESSAGE sip:friend@example.test")
        scene.backend.send(answer(received, "200 OK", tag="z"), source)
        made.ws.receive_until(lambda m: m.startswith(b"SIP/2.0 200") and b" MESSAGE\r\n" in m)
    finally:
        made.ws.close()


def targets(scene: Scene, browser: Browser) -> list[str]:
    """Hosts and ports, as they may stand in a URI, that lead to a victim or to a part of ourselves."""
    numeric = [f"{victim.host}:{victim.port}" for victim in scene.victims]
    port = scene.victims[0].port
    odd = [f"localhost:{port}", f"2130706433:{port}", f"127.1:{port}", f"[::ffff:127.0.0.1]:{port}", f"0.0.0.0:{port}"]
    odd += [f"{FOREIGN_NAME}:{port}", FOREIGN_NAME, f"abcdefgh.invalid:{port}", f"127.0.0.1:{scene.dns.address[1]}"]
    return [*numeric, *odd]


def shapes(browser: Browser, target: str, transport: str, method: str) -> list[bytes]:
    """The ways to ask for `target`: Request-URI, Route, strict Route, Routes of our own before it, a To tag."""
    uri = f"sip:x@{target}{transport}"
    own = browser.path.strip("<>").partition(">")[0]
    friend = "sip:friend@example.test"
    return [
        browser.request(method, uri),
        browser.request(method, uri, to="<sip:a@example.test>;tag=forged"),
        browser.request(method, friend, routes=(f"<{uri};lr>",)),
        browser.request(method, friend, routes=(f"<{uri}>",)),
        browser.request(method, friend, routes=(f"<{own}>", f"<{uri};lr>")),
        browser.request(method, uri, routes=(f"<{own}>",)),
        browser.request(method, uri, routes=(f"<{own}>",), to="<sip:a@example.test>;tag=forged"),
        browser.request(method, friend, routes=(f"<{own}>, <{uri};lr>",), to="<sip:a@example.test>;tag=forged"),
        browser.request(method, friend, routes=(f"<sip:{browser.token}@{target}{transport};lr>", f"<{uri};lr>")),
    ]


@pytest.mark.parametrize("method", ["MESSAGE", "INVITE", "BYE"])
def test_no_uri_no_route_no_tag_no_transport_leads_away(scene: Scene, browser: Browser, method: str) -> None:
    """D1, N4: every shape gets a refusal of its own, none is sent on."""
    allowed = {400, 403, 404, 416, 420, 481, 482, 503}
    sent = 0
    for target, transport in itertools.product(targets(scene, browser), TRANSPORTS):
        for request in shapes(browser, target, transport, method):
            status = browser.ask(request)
            sent += 1
            assert status in allowed, f"{status} to {request.decode()}"
    assert sent > 300
    scene.assert_untouched()
    assert not [m for m in scene.backend_heard() if not m.startswith(b"OPTIONS ")]


def ask_with_backend(scene: Scene, browser: Browser, request: bytes) -> int:
    """Send a request and return the status of its final answer; where it reaches the backend that says 404."""
    browser.ws.send(request)
    branch = header(request, "Via").partition("branch=")[2].encode()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        readable, _, _ = select.select([scene.backend.socket, browser.ws.socket], [], [], 0.1)
        if scene.backend.socket in readable:
            received, source = scene.backend.receive_until(b"")
            if received.startswith(b"MESSAGE "):
                scene.backend.send(answer(received, "404 Not Found", tag="m"), source)
        if browser.ws.socket in readable:
            message = browser.ws.receive() or b""
            if branch in message and not message.startswith(b"SIP/2.0 1"):
                return int(message.split(b" ", 2)[1])
    raise AssertionError(f"no answer to {request.decode()}")


def test_maddr_is_never_followed(scene: Scene, browser: Browser) -> None:
    """V3, D1: with the backend's name and a victim's maddr or port, the backend gets it or nobody."""
    for victim, transport in itertools.product(scene.victims, TRANSPORTS):
        for place in (f"example.test;maddr={victim.host}", f"example.test:{victim.port};maddr={victim.host}"):
            uri = f"sip:friend@{place}{transport}"
            straight = browser.request("MESSAGE", uri, to="<sip:friend@example.test>")
            routed = browser.request("MESSAGE", "sip:friend@example.test", routes=(f"<{uri};lr>",))
            for request in (straight, routed):
                assert ask_with_backend(scene, browser, request) in (403, 404, 416)


def test_our_own_ports_are_no_target(scene: Scene, browser: Browser) -> None:
    """D1: our own listeners are ours, not a way on; a user at one of them is nobody we serve."""
    for port in (scene.gateway.http, scene.gateway.sip):
        for transport in TRANSPORTS:
            assert browser.ask(browser.request("MESSAGE", f"sip:x@127.0.0.1:{port}{transport}")) in (403, 404, 416)


def test_register_by_a_foreign_route_is_refused(scene: Scene, browser: Browser) -> None:
    """R1: what remains of the Routes of a REGISTER must satisfy D1."""
    for victim in scene.victims:
        target = f"<sip:{victim.host}:{victim.port};lr>"
        request = browser.request("REGISTER", "sip:example.test", routes=(target,), to="<sip:eve@example.test>")
        assert browser.ask(request) == 403
        foreign = browser.request("REGISTER", f"sip:{FOREIGN_NAME}", to=f"<sip:eve@{FOREIGN_NAME}>")
        assert browser.ask(foreign) in (403, 404)


def test_via_of_a_browser_leads_nowhere(scene: Scene, browser: Browser) -> None:
    """V3, N4: maddr, received and rport of a browser's Via are not followed."""
    victim = scene.victims[1]
    for words in (
        f";maddr={victim.host}",
        f";received={victim.host};rport={victim.port}",
        f";maddr={FOREIGN_NAME}",
    ):
        request = browser.request("MESSAGE", "sip:friend@example.test", via=words, to="<sip:friend@example.test>")
        browser.ws.send(request)
        received, source = scene.backend.receive_until(b"MESSAGE ")
        scene.backend.send(answer(received, "202 Accepted", tag="q"), source)
        browser.ws.receive_until(lambda m: m.startswith(b"SIP/2.0 202"))


def test_ack_to_nobody_is_neither_sent_nor_answered(scene: Scene, browser: Browser) -> None:
    """I7: an ACK has no transaction and gets no answer; D1 holds for it as well."""
    for target, transport in itertools.product(targets(scene, browser), TRANSPORTS):
        for request in shapes(browser, target, transport, "ACK"):
            browser.ws.send(request)
    assert browser.ask(browser.request("OPTIONS", "sip:x@127.0.0.5:9")) in (403, 404)
    assert not [m for m in scene.backend_heard() if not m.startswith(b"OPTIONS ")]


@pytest.mark.parametrize("where", ["contact", "record-route", "both", "names"])
def test_accomplice_with_lying_contact_and_record_route(scene: Scene, browser: Browser, where: str) -> None:
    """D1 (b): what the far party of a real call gave is a stranger's too, unless it lies inside direct_targets."""
    near, far = scene.victims
    contact = "sip:accomplice@example.test"
    lying_routes: tuple[str, ...] = ()
    if where in ("contact", "both"):
        contact = f"sip:accomplice@{far.host}:{far.port}"
    if where in ("record-route", "both"):
        lying_routes = (f"<sip:{near.host}:{near.port};lr>",)
    if where == "names":
        contact, lying_routes = f"sip:x@{FOREIGN_NAME}", (f"<sip:route.{FOREIGN_NAME};lr>",)
    call = f"accomplice{next(NUMBER)}"
    invite = browser.request("INVITE", "sip:accomplice@example.test", to="<sip:accomplice@example.test>", call=call)
    browser.ws.send(invite)
    received, source = scene.backend.receive_until(b"INVITE ")
    reply = answer(received, "200 OK", f"Contact: <{contact}>", tag="acc", body=SDP)
    if lying_routes:
        lines = "".join(f"Record-Route: {route}\r\n" for route in lying_routes).encode()
        reply = reply.replace(b"Record-Route:", lines + b"Record-Route:", 1)
    scene.backend.send(reply, source)
    success = browser.ws.receive_until(lambda m: m.startswith(b"SIP/2.0 200") and b" INVITE\r\n" in m)
    routes = tuple(reversed([part.strip() for value in headers(success, "Record-Route") for part in value.split(",")]))
    to = header(success, "To")
    for transport in TRANSPORTS:
        browser.ws.send(browser.request("ACK", contact + transport, routes=routes, to=to, call=call))
        if where == "contact" or lying_routes or where == "names":
            for method in ("INFO", "UPDATE", "INVITE", "REFER"):
                cseq = next(NUMBER) + 100
                request = browser.request(method, contact + transport, routes=routes, to=to, call=call, cseq=cseq)
                assert browser.ask(request) in (403, 481)
    for victim in scene.victims:
        for method in ("INFO", "BYE"):
            cseq = next(NUMBER) + 1000
            elsewhere = f"sip:x@{victim.host}:{victim.port}"
            request = browser.request(method, elsewhere, routes=routes[:2], to=to, call=call, cseq=cseq)
            assert browser.ask(request) in (403, 481)
    scene.assert_untouched()
    end_dialog(scene, browser, invite, success)


def end_dialog(scene: Scene, browser: Browser, invite: bytes, success: bytes) -> None:
    """The backend ends the call by BYE over the token in the Record-Route, which is how the table forgets it."""
    own = [
        part.strip()
        for value in headers(success, "Record-Route")
        for part in value.split(",")
        if browser.token in part or "r2=on" in part
    ]
    backend_side = next(part for part in own if f":{scene.gateway.sip}" in part)
    bye = sip(
        f"BYE {browser.contact} SIP/2.0",
        f"Via: SIP/2.0/UDP 127.0.0.1:{scene.backend.port};branch=z9hG4bKbye{next(NUMBER)};rport",
        "Max-Forwards: 70",
        f"Route: {backend_side}",
        f"From: {header(success, 'To')}",
        f"To: {header(invite, 'From')}",
        f"Call-ID: {header(invite, 'Call-ID')}",
        "CSeq: 7 BYE",
    )
    scene.backend.send(bye, ("127.0.0.1", scene.gateway.sip))
    received = browser.ws.receive_until(lambda m: m.startswith(b"BYE "))
    browser.ws.send(answer(received, "200 OK"))
    scene.backend.receive_until(b"SIP/2.0 200")


def test_token_of_another_browser_opens_nothing(scene: Scene, browser: Browser) -> None:
    """W2: another flow's token is good inside a dialog that the table knows for both, and nowhere else."""
    other = Browser(scene, f"bob{next(NUMBER)}")
    try:
        route = other.path
        for method in ("MESSAGE", "INVITE", "OPTIONS"):
            request = browser.request(method, other.contact, routes=(route,), to="<sip:bob@example.test>")
            assert browser.ask(request) in (403, 481)
            tagged = browser.request(method, other.contact, routes=(route,), to="<sip:bob@example.test>;tag=forged")
            assert browser.ask(tagged) in (403, 481)
        assert other.ws.receive(0.3) is None
    finally:
        other.ws.close()


def test_backend_side_takes_no_request_from_a_stranger(scene: Scene, browser: Browser) -> None:
    """N6: from an address that is no backend a valid token alone opens nothing; one 403 in a while, to its source."""
    stranger = UdpPeer("127.0.0.6")
    try:
        victim = scene.victims[1]
        for number, via in enumerate(("", f";maddr={victim.host}", f";received={victim.host};rport={victim.port}")):
            for sent_by in (f"127.0.0.6:{stranger.port}", f"{victim.host}:{victim.port}", FOREIGN_NAME):
                request = sip(
                    f"INVITE {browser.contact} SIP/2.0",
                    f"Via: SIP/2.0/UDP {sent_by};branch=z9hG4bKs{number}{next(NUMBER)}{via}",
                    "Max-Forwards: 70",
                    f"Route: {browser.path}",
                    "From: <sip:s@example.test>;tag=1",
                    f"To: <sip:{browser.user}@example.test>",
                    f"Call-ID: stranger{next(NUMBER)}",
                    "CSeq: 1 INVITE",
                    f"Contact: <sip:s@{victim.host}:{victim.port}>",
                )
                stranger.send(request, ("127.0.0.1", scene.gateway.sip))
        stranger.receive_until(b"SIP/2.0 403 ")
        assert stranger.receive(0.5) is None
        assert browser.ws.receive(0.2) is None
    finally:
        stranger.close()


def test_forged_token_is_refused(scene: Scene, browser: Browser) -> None:
    """B1: from the backend, a token whose MAC is wrong gets 403, and nobody hears of it."""
    forged = ("A" if browser.token[-3] != "A" else "B").join((browser.token[:-3], browser.token[-2:]))
    request = sip(
        f"INVITE {browser.contact} SIP/2.0",
        f"Via: SIP/2.0/UDP 127.0.0.1:{scene.backend.port};branch=z9hG4bKf{next(NUMBER)};rport",
        "Max-Forwards: 70",
        f"Route: {browser.path.replace(browser.token, forged)}",
        "From: <sip:s@example.test>;tag=1",
        f"To: <sip:{browser.user}@example.test>",
        f"Call-ID: forged{next(NUMBER)}",
        "CSeq: 1 INVITE",
        "Contact: <sip:s@127.0.0.1>",
    )
    scene.backend.send(request, ("127.0.0.1", scene.gateway.sip))
    response, _ = scene.backend.receive_until(b"SIP/2.0 4")
    assert response.startswith(b"SIP/2.0 403 ")
    assert browser.ws.receive(0.2) is None
