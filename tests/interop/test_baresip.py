"""A desk phone at the embedded registrar: Debian's baresip over UDP, TCP and TLS, and a browser (G1, G5, D1, I2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.baresip import Baresip
from tests.interop.daemon import Daemon
from tests.interop.process import free_port, wait_for
from tests.interop.raw import RawWebSocket, answer, header, headers, sip
from tests.interop.registration import EMBEDDED, register_browser, write_users

SDP = (
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=audio 40000 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=sendrecv\r\n"
)
CONTACT = "Contact: <sip:alice@browser.invalid;transport=ws>"
TYPE = "Content-Type: application/sdp"
TRUSTED = "trusted_sources = 127.0.0.1/32"


class Office:
    """The daemon with alice in a browser and bob at a desk phone."""

    def __init__(self, directory: Path, transport: str, sip_options: str = TRUSTED) -> None:
        write_users(directory, "alice", "bob")
        text, self.phone_port = EMBEDDED, 0
        if transport == "tls":
            self.phone_port = free_port()
            text += f"[listener secure]\nbind = 127.0.0.1:{free_port()}\ntls = on\n"
            sip_options += f"\ntls_bind = 127.0.0.1:{self.phone_port}"
        self.daemon = Daemon(directory, text, sip_options=sip_options)
        self.phone_port = self.phone_port or self.daemon.sip
        self.directory, self.transport = directory, transport
        self.phones: list[Baresip] = []
        self.browsers: list[RawWebSocket] = []

    def phone(self, **options: object) -> Baresip:
        gateway = ("127.0.0.1", self.phone_port)
        directory = self.directory / f"phone{len(self.phones)}"
        self.phones.append(Baresip(directory, gateway, transport=self.transport, **options))  # type: ignore[arg-type]
        return self.phones[-1]

    def browser(self) -> RawWebSocket:
        self.browsers.append(RawWebSocket(self.daemon.address))
        register_browser(self.browsers[-1], "alice")
        return self.browsers[-1]

    def stop(self) -> None:
        for one in (*self.phones, *self.browsers):
            one.stop() if isinstance(one, Baresip) else one.close()
        self.daemon.stop()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Callable[..., Office]]:
    made: list[Office] = []

    def make(transport: str = "udp", **options: str) -> Office:
        made.append(Office(tmp_path, transport, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def request(
    method: str, uri: str, call_id: str, cseq: int, *extra: str, tags: tuple[str, str], body: str = ""
) -> bytes:
    """A request of alice in the browser."""
    lines = [f"Via: SIP/2.0/WS browser.invalid;branch=z9hG4bK{call_id}{method}{cseq}", "Max-Forwards: 70"]
    lines += [f"From: {tags[0]}", f"To: {tags[1]}", f"Call-ID: {call_id}", f"CSeq: {cseq} {method}", *extra]
    return sip(f"{method} {uri} SIP/2.0", *lines, body=body)


def is_(method_or_status: str) -> Callable[[bytes], bool]:
    start = method_or_status.encode()
    return lambda message: message.startswith((start, b"SIP/2.0 " + start))


def browser_calls(browser: RawWebSocket) -> tuple[bytes, Callable[[str, int], bytes]]:
    """Alice calls bob and acknowledges; the 200, and what makes her further requests."""
    alice, bob = "<sip:alice@example.test>;tag=a1", "<sip:bob@example.test>"
    uri = "sip:bob@example.test"
    browser.send(request("INVITE", uri, "out", 1, CONTACT, TYPE, tags=(alice, bob), body=SDP))
    taken = browser.receive_until(is_("200"))
    target = re.findall("<([^>]+)>", header(taken, "Contact"))[0]
    routes = [f"Route: {value}" for value in reversed(headers(taken, "Record-Route"))]

    def further(method: str, cseq: int) -> bytes:
        return request(method, target, "out", cseq, *routes, tags=(alice, header(taken, "To")))

    browser.send(further("ACK", 1))
    return taken, further


def phone_calls(phone: Baresip, browser: RawWebSocket) -> tuple[bytes, Callable[[str, int], bytes]]:
    """Bob calls alice, who takes it; the INVITE at the browser, and what makes her further requests."""
    phone.do("dial", "sip:alice@example.test")
    invite = browser.receive_until(is_("INVITE"))
    browser.send(answer(invite, "180 Ringing", CONTACT, tag="a1"))
    browser.send(answer(invite, "200 OK", CONTACT, TYPE, tag="a1", body=SDP))
    browser.receive_until(is_("ACK"))
    target = re.findall("<([^>]+)>", header(invite, "Contact"))[0]
    routes = [f"Route: {value}" for value in headers(invite, "Record-Route")]

    def further(method: str, cseq: int) -> bytes:
        tags = (header(invite, "To") + ";tag=a1", header(invite, "From"))
        return request(method, target, header(invite, "Call-ID"), cseq, *routes, tags=tags)

    return invite, further


def hang_up(ends: str, phone: Baresip, browser: RawWebSocket, bye: bytes) -> None:
    """The call ends by the BYE of the browser, which is `bye`, or of the phone."""
    if ends == "browser":
        browser.send(bye)
        browser.receive_until(lambda message: message.startswith(b"SIP/2.0 200") and b" BYE\r\n" in message)
    else:
        phone.do("hangup")
        browser.send(answer(browser.receive_until(is_("BYE")), "200 OK"))
    phone.wait("CALL_CLOSED")


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
@pytest.mark.parametrize("ends", ["browser", "phone"])
def test_a_browser_calls_a_phone(office: Callable[..., Office], transport: str, ends: str):
    """G5, I2, D1 (b): register by digest, INVITE, ACK, BYE of each side."""
    site = office(transport)
    phone, browser = site.phone(), site.browser()
    site.daemon.wait_status("bindings", 2)
    taken, further = browser_calls(browser)
    phone.wait("CALL_ESTABLISHED")
    assert len(headers(taken, "Via")) == 1
    first_hop = headers(taken, "Record-Route")[-1]
    assert ";transport=ws;" in first_hop
    hang_up(ends, phone, browser, further("BYE", 2))
    site.daemon.wait_status("dialogs", 0)


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
@pytest.mark.parametrize("ends", ["browser", "phone"])
def test_a_phone_calls_a_browser(office: Callable[..., Office], transport: str, ends: str):
    """G1: a lookup for a trusted source; C2: the browser's own Contact in the Request-URI."""
    site = office(transport)
    phone, browser = site.phone(), site.browser()
    site.daemon.wait_status("bindings", 2)
    invite, further = phone_calls(phone, browser)
    phone.wait("CALL_ESTABLISHED")
    assert invite.startswith(b"INVITE sip:alice@browser.invalid;transport=ws SIP/2.0\r\n")
    hang_up(ends, phone, browser, further("BYE", 1))
    site.daemon.wait_status("dialogs", 0)


def test_the_phone_rings_and_the_browser_gives_up(office: Callable[..., Office]):
    """B5 towards a phone: CANCEL reaches it, the browser gets 487."""
    site = office()
    phone, browser = site.phone(answers=False), site.browser()
    site.daemon.wait_status("bindings", 2)
    tags = ("<sip:alice@example.test>;tag=a1", "<sip:bob@example.test>")
    invite = request("INVITE", "sip:bob@example.test", "out", 1, CONTACT, TYPE, tags=tags, body=SDP)
    browser.send(invite)
    browser.receive_until(is_("180"))
    browser.send(invite.replace(b"INVITE sip:", b"CANCEL sip:").replace(b"1 INVITE", b"1 CANCEL"))
    browser.receive_until(is_("487"))
    phone.wait("CALL_CLOSED")


@pytest.mark.parametrize("ends", ["browser", "phone"])
def test_a_phone_with_outbound_and_a_gruu_as_contact(office: Callable[..., Office], ends: str):
    """RFC 5626 §7: of two flows of one instance the newest rings, once; RFC 5627: in-dialog requests to its GRUU."""
    site = office()
    gateway = f"sip:127.0.0.1:{site.phone_port};transport=udp"
    phone = site.phone(more=f';sipnat=outbound;outbound2="{gateway}"')
    site.daemon.wait_status("bindings", 2)
    browser = site.browser()
    taken, further = browser_calls(browser)
    assert "<sip:bob@example.test;gr=urn:uuid:" in header(taken, "Contact")
    phone.wait("CALL_ESTABLISHED")
    hang_up(ends, phone, browser, further("BYE", 2))
    # Over UDP the INVITE comes again, as it is, where the phone was slow; and so does the ACK.
    for method in ("INVITE", "ACK"):
        assert len(set(re.findall(rf"\n{method} sip:bob-[^ ]+ SIP/2.0\r?\n(Via: .*)", phone.log))) == 1, method


def test_without_trusted_sources_no_phone_registers(office: Callable[..., Office]):
    """G5, N6: 403 once, and nothing is bound."""
    site = office(sip_options="")
    phone = site.phone()
    wait_for(lambda: "403 Forbidden" in phone.log, "the refusal")
    assert site.daemon.status()["bindings"] == 0
