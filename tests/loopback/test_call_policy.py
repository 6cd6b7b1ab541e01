"""`peer_policy = call` through the whole daemon: a call opens its media for the relay, and nothing else (rule P6)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.interop.daemon import Daemon
from tests.interop.process import free_port, wait_for
from tests.interop.raw import RawWebSocket, UdpPeer, answer, header, sip
from tests.loopback.test_turn_credentials import allocate, credentials_in, status
from tests.loopback.turn_site import Phone, silent, udp
from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.auth import SecretHash, long_term_key, time_limited_password
from wsgate.turn.stun import Method
from wsgate.turn.values import PasswordAlgorithm

REALM = "media.test"
OWN_HOST, PHONE_HOST, OTHER_HOST, PBX_HOST = "127.0.0.4", "127.0.0.2", "127.0.0.3", "127.0.0.6"
CONTACT = "Contact: <sip:alice@a.invalid;transport=ws>"
SDP = "Content-Type: application/sdp"
FROM, TO = "<sip:alice@example.test>", "<sip:bob@example.test>"
TEXT = """
[backend example.test]
target = sip:{host}:{port};transport=udp
transports = udp
"""
TURN = """
realm = {realm}
udp = 127.0.0.1:{port}
tcp =
relay_address = 127.0.0.1
allow_peers = 127.0.0.0/8
peer_policy = call
shared_secret = not of any registration
"""


def sdp(host: str, port: int) -> str:
    return f"v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\nc=IN IP4 {host}\r\nt=0 0\r\nm=audio {port} RTP/AVP 0\r\n"


class Site:
    """The daemon, a PBX that is also the phone of bob, and the browser of alice, registered, with an allocation."""

    def __init__(self, directory: Path) -> None:
        self.pbx, self.turn_port, self.media = UdpPeer(PBX_HOST), free_port(), udp(PHONE_HOST)
        turn = TURN.format(realm=REALM, port=self.turn_port)
        self.daemon = Daemon(directory, TEXT.format(host=PBX_HOST, port=self.pbx.port), turn=turn)
        with ExitStack() as stack:
            stack.callback(self.daemon.stop)
            self._begin()
            stack.pop_all()

    def _begin(self) -> None:
        """Alice registers, and allocates with what she is given for that."""
        self.browser = RawWebSocket(self.daemon.address)
        self.registered = self._register()
        given = credentials_in(self.registered[1])
        self.turn = Phone(self)  # type: ignore[arg-type]
        self.turn.user, self.turn.realm = given["username"], REALM
        self.turn.key = long_term_key(given["username"], REALM, given["password"], PasswordAlgorithm.MD5)
        self.relayed = self.turn.allocate()

    @property
    def listeners(self) -> list[Site]:
        return [self]

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self.turn_port

    def _request(self, method: str, uri: str, cseq: int, *lines: str, body: str = "") -> bytes:
        return sip(
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/WS a.invalid;branch=z9hG4bK{method}{cseq}",
            f"From: {FROM};tag=a1",
            f"CSeq: {cseq} {method}",
            "Max-Forwards: 70",
            *lines,
            body=body,
        )

    def _register(self) -> tuple[bytes, bytes]:
        """REGISTER, as the PBX got it and as it was answered."""
        lines = (f"To: {FROM}", "Call-ID: register", CONTACT, "Expires: 600")
        self.browser.send(self._request("REGISTER", "sip:example.test", 1, *lines))
        request, source = self.pbx.receive_until(b"REGISTER", 20)
        self.pbx.send(answer(request, "200 OK", f"Contact: {header(request, 'Contact')};expires=600", tag="r"), source)
        return request, self.browser.receive_until(lambda message: message.startswith(b"SIP/2.0 200"), 20)

    def call(self, offer: str) -> tuple[bytes, tuple[str, int]]:
        """Alice calls bob; the INVITE as the PBX gets it, and from where."""
        lines = (f"To: {TO}", "Call-ID: call", CONTACT, SDP)
        self.browser.send(self._request("INVITE", "sip:bob@example.test", 1, *lines, body=offer))
        return self.pbx.receive_until(b"INVITE", 20)

    def answer(self, invite: bytes, source: tuple[str, int], body: str) -> bytes:
        """Bob takes the call; the 200 as the browser gets it."""
        contact = f"Contact: <sip:bob@{PBX_HOST}:{self.pbx.port}>"
        self.pbx.send(answer(invite, "200 OK", contact, SDP, tag="b1", body=body), source)
        return self.browser.receive_until(lambda message: message.startswith(b"SIP/2.0 200"), 20)

    def hang_up(self, ok: bytes) -> None:
        routes = [line[14:].strip() for line in ok.decode().split("\r\n") if line.startswith("Record-Route:")]
        lines = (*(f"Route: {route}" for route in reversed(routes)), f"To: {TO};tag=b1", "Call-ID: call")
        self.browser.send(self._request("BYE", f"sip:bob@{PBX_HOST}:{self.pbx.port}", 2, *lines))
        bye, source = self.pbx.receive_until(b"BYE", 20)
        self.pbx.send(answer(bye, "200 OK"), source)
        self.browser.receive_until(lambda message: b"BYE" in message and message.startswith(b"SIP/2.0 200"), 20)

    def from_pbx(self, method: str, cseq: int, *lines: str, to_tag: str = "", body: str = "") -> None:
        """A request of bob through the PBX, by the Path and Contact of the registration."""
        request = self.registered[0]
        data = sip(
            f"{method} {header(request, 'Contact').strip('<>').partition('>')[0]} SIP/2.0",
            f"Via: SIP/2.0/UDP {PBX_HOST}:{self.pbx.port};branch=z9hG4bKpbx{method}{cseq}",
            f"Route: {header(request, 'Path')}",
            f"From: {TO};tag=b1",
            f"To: {FROM}" + (f";tag={to_tag}" if to_tag else ""),
            "Call-ID: incoming",
            f"CSeq: {cseq} {method}",
            "Max-Forwards: 70",
            f"Contact: <sip:bob@{PBX_HOST}:{self.pbx.port}>",
            *lines,
            body=body,
        )
        self.pbx.send(data, (self.daemon.sip_host, self.daemon.sip))

    def permit(self, *hosts: str) -> int:
        peers = (stun.XOR_PEER_ADDRESS(Address(host, 9)) for host in hosts)
        return status(self.turn.ask(Method.CREATE_PERMISSION, *peers))

    def bind(self, number: int, peer: tuple[str, int]) -> int:
        return status(
            self.turn.ask(Method.CHANNEL_BIND, stun.CHANNEL_NUMBER(number), stun.XOR_PEER_ADDRESS(Address(*peer)))
        )

    def refused(self, number: int, sock: Any) -> bool:
        """True when no permission, no channel and no Send goes to this socket."""
        peer = sock.getsockname()[:2]
        codes = self.permit(peer[0]), self.bind(number, peer)
        self.turn.send(peer, b"not for you")
        return codes == (403, 403) and silent(sock)

    def passes(self, number: int, sock: Any) -> bool:
        """True when datagrams go to this socket and come back, as Send and as ChannelData."""
        peer = sock.getsockname()[:2]
        if (self.permit(peer[0]), self.bind(number, peer)) != (0, 0):
            return False
        self.turn.send(peer, b"by Send")
        self.turn.channel(number, b"by channel")
        received = {sock.recvfrom(2000) for _ in range(2)}
        sock.sendto(b"back", self.relayed)
        head = number.to_bytes(2, "big") + b"\0\4"
        return received == {(b"by Send", self.relayed), (b"by channel", self.relayed)} and (
            self.turn.socket.recv(2000) == head + b"back"
        )

    def close(self) -> None:
        self.browser.close()
        for sock in (self.turn.socket, self.media):
            sock.close()
        self.pbx.close()
        self.daemon.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def test_a_call_to_a_phone_opens_its_media_address_and_no_other(site: Site) -> None:
    own, other, beside = udp(OWN_HOST), udp(OTHER_HOST), udp(PHONE_HOST)
    assert site.refused(0x4000, site.media)
    invite, source = site.call(sdp(*own.getsockname()))
    assert site.refused(0x4000, site.media)
    ok = site.answer(invite, source, sdp(*site.media.getsockname()))

    assert site.passes(0x4001, site.media)
    assert site.refused(0x4002, own), "the client's own SDP"
    assert site.refused(0x4002, other)
    assert site.permit(PHONE_HOST, OTHER_HOST) == 403, "all or none"
    assert site.bind(0x4002, beside.getsockname()) == 403, "another port of the phone"
    site.turn.send(beside.getsockname(), b"not for you")
    assert silent(beside)
    assert site.bind(0x4002, (PBX_HOST, site.pbx.port)) == 403, "the PBX's SIP"

    site.hang_up(ok)
    assert site.refused(0x4003, site.media)
    site.turn.channel(0x4001, b"the call is over")
    assert silent(site.media)
    site.media.sendto(b"the call is over", site.relayed)
    assert silent(site.turn.socket)
    assert site.daemon.status()["counters"]["turn_peers_refused"] >= 9
    for sock in (own, other, beside):
        sock.close()


def test_an_offer_from_a_pbx_whose_rtp_comes_from_its_sip_address(site: Site) -> None:
    """Rule P5: a backend's address is an ordinary peer; its SIP port is none. Trickled candidates count too."""
    rtp, trickled = udp(PBX_HOST), udp(OTHER_HOST)
    site.from_pbx("INVITE", 1, SDP, body=sdp(*rtp.getsockname()))
    invite = site.browser.receive_until(lambda message: message.startswith(b"INVITE"), 20)
    assert site.passes(0x4001, rtp), "before the call is answered"
    assert site.bind(0x4002, (PBX_HOST, site.pbx.port)) == 403

    site.browser.send(answer(invite, "200 OK", CONTACT, SDP, tag="a1", body=sdp(OWN_HOST, 4000)))
    site.pbx.receive_until(b"SIP/2.0 200", 20)
    assert site.refused(0x4003, trickled)
    host, port = trickled.getsockname()
    fragment = f"a=ice-ufrag:x\r\na=candidate:1 1 udp 1 {host} {port} typ host\r\n"
    kind = "Content-Type: application/trickle-ice-sdpfrag"
    site.from_pbx("INFO", 2, kind, "Info-Package: trickle-ice", to_tag="a1", body=fragment)
    site.browser.receive_until(lambda message: message.startswith(b"INFO"), 20)
    assert site.passes(0x4003, trickled)

    site.from_pbx("BYE", 3, to_tag="a1")
    bye = site.browser.receive_until(lambda message: message.startswith(b"BYE"), 20)
    site.browser.send(answer(bye, "200 OK"))
    wait_for(lambda: site.permit(PBX_HOST) == 403, "403 after the call", 10)
    assert site.refused(0x4004, trickled)
    for sock in (rtp, trickled):
        sock.close()


def test_who_has_no_registration_reaches_the_relay_range_alone(site: Site) -> None:
    username = "99999999999:anybody"
    password = time_limited_password(b"not of any registration", username, SecretHash.SHA1)
    stranger, mine = Phone(site), site.turn  # type: ignore[arg-type]
    stranger.user, stranger.realm = username, REALM
    stranger.key = long_term_key(username, REALM, password, PasswordAlgorithm.MD5)
    assert allocate(stranger) == 0
    site.turn = stranger
    assert site.refused(0x4000, site.media)
    assert site.permit(site.relayed.host) == 0
    assert site.bind(0x4001, site.relayed) == 0
    assert site.bind(0x4002, (site.relayed.host, site.turn_port)) == 403
    site.turn = mine
    stranger.socket.close()
