"""A browser library phones through the gateway: JsSIP, wsgate, Kamailio found by NAPTR and SRV, sipp as a desk phone.

Rules C1, C4, C6, R2, R4, I2, I4, B3, B5, D2, N1, N2, V1 with real peers, over UDP, TCP and WebSocket (SIP+D2W).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.dns_server import DnsServer
from tests.interop.daemon import Daemon
from tests.interop.kamailio import PASSWORD, Kamailio
from tests.interop.party import SDP, Phone
from tests.interop.process import wait_for
from tests.interop.sipp import Sipp, register
from tests.interop.softphone import Softphone, header, headers

SERVICES = {"udp": "SIP+D2U", "tcp": "SIP+D2T", "ws": "SIP+D2W"}
NUMBER = itertools.count(1)


def zone(transport: str, *targets: tuple[int, str, int]) -> str:
    """NAPTR and SRV records of example.test for `transport`; a target is priority, address and port."""
    lines = [f'@ NAPTR 10 10 "s" "{SERVICES[transport]}" "" _sip._{transport}']
    for index, (priority, address, port) in enumerate(targets):
        lines += [f"_sip._{transport} SRV {priority} 10 {port} pbx{index}", f"pbx{index} A {address}"]
    return "\n".join(lines) + "\n"


def backend(dns: DnsServer, *options: str) -> str:
    """The ini sections that name example.test and the test's DNS server."""
    lines = ["[backend example.test]", "target = sip:example.test", *options]
    lines += ["[dns]", f"nameservers = {dns.address[0]}:{dns.address[1]}"]
    return "\n".join(lines) + "\n"


class Company(NamedTuple):
    """A gateway in front of a Kamailio, and how the two speak."""

    transport: str
    dns: DnsServer
    kamailio: Kamailio
    gateway: Daemon
    directory: Path

    def desk(self, scenario: str | Path) -> Sipp:
        """A sipp that answers as a registered user of its own."""
        user = f"desk{next(NUMBER)}"
        server = f"127.0.0.1:{self.kamailio.port}"
        phone = Sipp(scenario, server, self.directory, user=user)
        register(server, self.directory, phone.port, user=user)
        return phone

    def caller(self, scenario: str | Path, called: str, hold_seconds: float = 0.3) -> Sipp:
        """A sipp that calls `called`."""
        server = f"127.0.0.1:{self.kamailio.port}"
        return Sipp(scenario, server, self.directory, called=called, hold_seconds=hold_seconds)


@pytest.fixture(scope="module", params=["udp", "tcp", "ws"])
def company(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    """A company whose DNS names its server for one transport only."""
    directory = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        kamailio = Kamailio(directory / "kamailio")
        stack.callback(kamailio.stop)
        dns = stack.enter_context(DnsServer(zone(request.param, (10, "127.0.0.1", kamailio.port)), "example.test"))
        gateway = Daemon(directory / "wsgate", backend(dns))
        stack.callback(gateway.stop)
        yield Company(request.param, dns, kamailio, gateway, directory)


@pytest.fixture
def browser(company: Company) -> Iterator[Softphone]:
    """A JsSIP that has registered through the gateway, checked at the end for what no browser may see."""
    phone = Softphone(company.gateway.url, f"alice{next(NUMBER)}", PASSWORD)
    try:
        phone.wait("registered")
        yield phone
        assert_well_served(phone)
    finally:
        phone.close()


def assert_well_served(phone: Softphone) -> None:
    """Every response has the browser's own Via alone (C1), nothing came twice but a 2xx to INVITE (I6, C3)."""
    seen = set()
    for message in phone.messages("in"):
        start = message.partition("\r\n")[0]
        vias = headers(message, "Via")
        assert header(message, "Content-Length") == str(len(message.partition("\r\n\r\n")[2].encode())), message
        if start.startswith("SIP/2.0 "):
            assert len(vias) == 1, message
            assert ".invalid" in vias[0], message
            if start.startswith("SIP/2.0 2") and header(message, "CSeq").endswith("INVITE"):
                continue
        else:
            assert vias[0].startswith(("SIP/2.0/WS ", "SIP/2.0/WSS ")), message
        key = (start, vias[0], header(message, "CSeq"), header(message, "Call-ID"))
        assert key not in seen, f"twice: {message}"
        seen.add(key)


def user(phone: Softphone) -> str:
    """The address of record of a softphone."""
    return f"sip:{phone.user}@example.test"


def wait_no_dialogs(company: Company) -> None:
    """The dialog table forgets a call that has ended."""
    company.gateway.wait_status("dialogs", 0)


def test_register_with_digest_passes_through(company: Company, browser: Softphone) -> None:
    challenge, success = (m for m in browser.messages("in", "SIP/2.0 ") if header(m, "CSeq").endswith("REGISTER"))
    assert challenge.startswith("SIP/2.0 401 ")
    assert success.startswith("SIP/2.0 200 ")
    sent = browser.messages("out", "REGISTER")[-1]
    contact = header(sent, "Contact").partition(">")[0]
    # C6: the browser's own Contact comes back, with its time.
    assert header(success, "Contact").startswith(contact)
    assert ";expires=" in header(success, "Contact")
    # R4: Kamailio used outbound, so the browser hears how often it should speak.
    assert "outbound" in header(success, "Require")
    assert header(success, "Flow-Timer") == "120"
    assert f"GOT REGISTER from {company.transport}:127.0.0.1:" in company.kamailio.log
    assert company.dns.count("example.test", "NAPTR")
    assert company.dns.count(f"_sip._{company.transport}.example.test", "SRV")
    [flow] = [f for f in company.gateway.status()["flows"] if any(browser.user in aor for aor in f["aors"])]
    assert flow["remote"].startswith("127.0.0.1:")
    assert flow["transport"] == "WS"


def test_wrong_password_is_refused_by_the_registrar(company: Company) -> None:
    phone = Softphone(company.gateway.url, "mallory", "wrong")
    try:
        assert phone.wait("registrationFailed")["status"] == 401
    finally:
        phone.close()


def test_browser_calls_and_hangs_up(company: Company, browser: Softphone) -> None:
    desk = company.desk("uas_byed")
    browser.do("call", target=f"sip:{desk.user}@example.test")
    assert browser.wait("progress")["status"] == 180
    browser.wait("confirmed")
    desk.wait_for("received", "ACK")
    browser.do("hangup")
    browser.wait("ended")
    desk.done()
    wait_no_dialogs(company)
    # I4: an INVITE of a browser is too large for UDP and goes by TCP.
    if company.transport == "udp":
        assert "GOT INVITE from tcp:" in company.kamailio.log


def test_browser_calls_and_desk_hangs_up(company: Company, browser: Softphone) -> None:
    desk = company.desk("uas_bye")
    browser.do("call", target=f"sip:{desk.user}@example.test")
    browser.wait("confirmed")
    assert browser.wait("ended")["originator"] == "remote"
    desk.done()
    wait_no_dialogs(company)


def test_desk_calls_and_hangs_up(company: Company, browser: Softphone) -> None:
    desk = company.caller("uac_bye", browser.user)
    assert browser.wait("session")["originator"] == "remote"
    browser.do("answer")
    browser.wait("confirmed")
    assert browser.wait("ended")["originator"] == "remote"
    desk.done()
    wait_no_dialogs(company)


def test_desk_calls_and_browser_hangs_up(company: Company, browser: Softphone) -> None:
    desk = company.caller("uac_byed", browser.user)
    browser.wait("session")
    browser.do("answer")
    browser.wait("confirmed")
    browser.do("hangup")
    assert browser.wait("ended")["originator"] == "local"
    desk.done()
    wait_no_dialogs(company)


def test_browser_cancels(company: Company, browser: Softphone) -> None:
    desk = company.desk("uas_cancelled")
    browser.do("call", target=f"sip:{desk.user}@example.test")
    browser.wait("progress")
    browser.do("hangup")
    assert browser.wait("failed")["cause"] == "Canceled"
    desk.done()
    wait_for(lambda: browser.messages("in", "SIP/2.0 487 "), "487 at the browser")
    wait_no_dialogs(company)


def test_desk_cancels(company: Company, browser: Softphone) -> None:
    desk = company.caller("uac_cancel", browser.user)
    browser.wait("session")
    failed = browser.wait("failed")
    assert (failed["originator"], failed["cause"]) == ("remote", "Canceled")
    desk.done()
    wait_no_dialogs(company)


def test_desk_is_busy(company: Company, browser: Softphone) -> None:
    desk = company.desk("uas_busy")
    browser.do("call", target=f"sip:{desk.user}@example.test")
    failed = browser.wait("failed")
    assert (failed["status"], failed["cause"]) == (486, "Busy")
    desk.done()
    wait_no_dialogs(company)


def test_browser_is_busy(company: Company, browser: Softphone) -> None:
    desk = company.caller("uac_busy", browser.user)
    browser.wait("session")
    browser.do("hangup", options={"status_code": 486})
    assert browser.wait("failed")["originator"] == "local"
    desk.done()
    wait_no_dialogs(company)


def test_two_browsers_call_each_other_through_the_registrar(company: Company, browser: Softphone) -> None:
    other = Softphone(company.gateway.url, f"bob{next(NUMBER)}", PASSWORD)
    try:
        other.wait("registered")
        browser.do("call", target=user(other))
        assert other.wait("session")["from"] == user(browser)
        other.do("answer")
        browser.wait("confirmed")
        other.wait("confirmed")
        browser.do("dtmf", tones="5")
        assert other.wait("newDTMF")["originator"] == "remote"
        browser.do("hold")
        assert other.wait("hold")["originator"] == "remote"
        other.do("hangup")
        assert browser.wait("ended")["originator"] == "remote"
        assert_well_served(other)
        wait_no_dialogs(company)
    finally:
        other.close()


def test_message_passes_both_ways(company: Company, browser: Softphone) -> None:
    other = Softphone(company.gateway.url, f"bob{next(NUMBER)}", PASSWORD)
    try:
        other.wait("registered")
        browser.do("message", target=user(other), body="Grüße")
        assert other.wait("message")["body"] == "Grüße"
        browser.wait("messageSent")
        other.do("message", target=user(browser), body="back")
        assert browser.wait("message", accept=lambda e: e["originator"] == "remote")["body"] == "back"
    finally:
        other.close()


def test_unregistering_forgets_the_binding(company: Company, browser: Softphone) -> None:
    browser.do("unregister")
    browser.wait("unregistered")
    desk = company.caller("uac_busy", browser.user)
    wait_for(lambda: desk.count("received", "SIP/2.0 404"), "404 from the registrar")
    desk.stop()


def test_call_that_the_server_challenges(tmp_path: Path) -> None:
    with ExitStack() as stack:
        kamailio = Kamailio(tmp_path / "kamailio", call_auth=True)
        stack.callback(kamailio.stop)
        dns = stack.enter_context(DnsServer(zone("udp", (10, "127.0.0.1", kamailio.port)), "example.test"))
        gateway = Daemon(tmp_path / "wsgate", backend(dns))
        stack.callback(gateway.stop)
        phone = Softphone(gateway.url, "alice", PASSWORD)
        stack.callback(phone.close)
        phone.wait("registered")
        company = Company("udp", dns, kamailio, gateway, tmp_path)
        desk = company.desk("uas_bye")
        phone.do("call", target=f"sip:{desk.user}@example.test")
        phone.wait_sip("in", "SIP/2.0 407 ")
        phone.wait("confirmed")
        phone.wait("ended")
        desk.done()
        assert_well_served(phone)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("mode", ["auto", "contact"])
def test_registrar_that_does_not_know_path(transport: str, mode: str, tmp_path: Path) -> None:
    """R5: the rewritten Contact leads back to the browser, which sees its own (C2, C6)."""
    with ExitStack() as stack:
        kamailio = Kamailio(tmp_path / "kamailio", path=False)
        stack.callback(kamailio.stop)
        dns = stack.enter_context(DnsServer(zone(transport, (10, "127.0.0.1", kamailio.port)), "example.test"))
        gateway = Daemon(tmp_path / "wsgate", backend(dns, f"contact_mode = {mode}"))
        stack.callback(gateway.stop)
        company = Company(transport, dns, kamailio, gateway, tmp_path)

        def check(phone: Softphone) -> None:
            own = header(phone.messages("out", "REGISTER")[0], "Contact").partition(">")[0]
            assert header(phone.messages("in", "SIP/2.0 200 ")[0], "Contact").startswith(own)
            assert all("wsg=" not in message for message in phone.messages("in"))
            assert_well_served(phone)

        call_through(company, stack, check)
        phone = Softphone(gateway.url, "alice", PASSWORD)
        stack.callback(phone.close)
        phone.wait("registered")


def reconnect(phone: Softphone) -> None:
    """Cut the connection and wait until JsSIP has registered over a new one (C7)."""
    phone.do("cut")
    phone.wait("disconnected")
    phone.wait("connected")
    phone.wait("sip", accept=lambda e: e["text"].startswith("SIP/2.0 200") and "REGISTER" in header(e["text"], "CSeq"))


@pytest.mark.parametrize("ends", ["browser", "desk"])
def test_call_survives_a_lost_connection(company: Company, ends: str) -> None:
    """D3: in-dialog requests of both sides find the flow that the browser registered on anew."""
    phone = Softphone(company.gateway.url, f"carol{next(NUMBER)}", PASSWORD)
    desk = Phone(company.kamailio.port)
    try:
        phone.wait("registered")
        desk.call(phone.user, body=SDP)
        phone.wait("session")
        phone.do("answer")
        desk.answered()
        phone.wait("confirmed")
        reconnect(phone)
        if ends == "browser":
            phone.do("hangup")
            desk.hung_up()
            phone.wait("ended")
        else:
            desk.send("BYE")
            assert phone.wait("ended")["originator"] == "remote"
            assert header(desk.peer.receive_until(b"SIP/2.0 200")[0].decode(), "CSeq") == "2 BYE"
        wait_no_dialogs(company)
    finally:
        phone.close()
        desk.close()


def call_through(company: Company, stack: ExitStack, check: Callable[[Softphone], None] = assert_well_served) -> None:
    """Register, call a desk phone that hangs up, be called and hang up."""
    phone = Softphone(company.gateway.url, "alice", PASSWORD)
    stack.callback(phone.close)
    phone.wait("registered")
    desk = company.desk("uas_bye")
    phone.do("call", target=f"sip:{desk.user}@example.test")
    phone.wait("confirmed")
    phone.wait("ended")
    desk.done()
    desk = company.caller("uac_byed", phone.user)
    phone.wait("session")
    phone.do("answer")
    phone.wait("confirmed")
    phone.do("hangup")
    desk.done()
    check(phone)
