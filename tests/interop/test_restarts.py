"""wsgate is restarted with calls up: what passes afterwards, with `state_file` and without (rules D3, T2).

A SIGTERM of a call between raw parties, and files that are refused, are in tests/loopback/test_state.py.
"""

from __future__ import annotations

import enum
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.dns_server import DnsServer, Fault
from tests.interop.daemon import Daemon
from tests.interop.kamailio import PASSWORD, Kamailio
from tests.interop.party import (
    CALLS,
    DOMAIN,
    FAR,
    SDP,
    Browser,
    Call,
    Desk,
    Leg,
    acknowledgement,
    browser_asks,
    call_from_desk,
    desk_asks,
    leg_of_called,
    leg_of_caller,
)
from tests.interop.process import accepts, wait_for
from tests.interop.raw import RawWebSocket, header
from tests.interop.sipp import register
from tests.interop.softphone import Softphone


class End(enum.Enum):
    """How the old process ends."""

    SIGTERM = "sigterm"  # drained; WebSockets are closed with 1001
    SIGKILL = "sigkill"  # supervisor and worker at once, as the kernel does when memory is gone
    WORKER = "worker"  # the worker alone: the supervisor starts another


def restart(gateway: Daemon, how: End) -> None:
    """End wsgate, and have it run again with the same files and ports."""
    if how is End.SIGTERM:
        gateway.stop()
        gateway.start()
        return
    workers = psutil.Process(gateway.pid).children()
    for process in workers if how is End.WORKER else [psutil.Process(gateway.pid), *workers]:
        process.kill()
    psutil.wait_procs(workers, 10)
    if how is End.SIGKILL:
        wait_for(lambda: not gateway.running and not accepts(*gateway.address), "the end of the old process")
        gateway.start()
    else:
        wait_for(lambda: accepts(*gateway.address), "the new worker")
        gateway.status()


@pytest.mark.parametrize(
    ("how", "has_state"), [(End.SIGTERM, True), (End.SIGKILL, True), (End.WORKER, True), (End.SIGKILL, False)]
)
def test_d3_t2_calls_go_on_both_ways(how: End, has_state: bool, tmp_path: Path) -> None:
    """Of callers and callees, of clients with an instance and with a Contact alone. The server stays in the path."""
    with ExitStack() as stack:
        desk = Desk()
        stack.callback(desk.close)
        state = tmp_path / "wsgate.state"
        text = f"[backend {DOMAIN}]\ntarget = sip:{desk.place}\ntransports = udp\n"
        gateway = Daemon(tmp_path, text, sip_options=f"state_file = {state}" if has_state else "")
        stack.callback(gateway.stop)
        desk.gate = (gateway.sip_host, gateway.sip)
        browsers = [Browser(gateway.address, is_known_by=known_by) for known_by in ("instance", "contact")]
        calls = []
        for browser in browsers:
            stack.callback(browser.close_tab)
            browser.register(desk)
            calls += [(browser, CALLS[caller](browser, desk)) for caller in ("browser", "desk", "browser", "desk")]
        if has_state:
            # It is written once a second: what is younger dies with a killed process.
            wait_for(lambda: all(call.desk.call_id.encode() in state.read_bytes() for _, call in calls), "the journal")
        restart(gateway, how)
        assert gateway.status()["dialogs"] == (len(calls) if has_state else 0)
        early = calls[0][1].desk.request("INVITE", 2, desk.via)
        desk.send(early)
        desk.send(acknowledgement(early, desk.expect("SIP/2.0 480", "2 INVITE")))
        for browser in browsers:
            browser.connect()
            browser.register(desk)
        for browser, call in calls:
            desk_asks(browser, desk, call.desk, "INVITE", 3)
            browser_asks(browser, desk, call.browser, "INVITE", 4)
        if not has_state:
            assert_only_the_old_process_knew(*calls[0])
        for number, (browser, call) in enumerate(calls):
            if number % 4 < 2:
                desk_asks(browser, desk, call.desk, "BYE", 5)
            else:
                browser_asks(browser, desk, call.browser, "BYE", 5)
        gateway.wait_status("dialogs", 0)
        assert_nobody_was_refused(gateway)


def assert_only_the_old_process_knew(browser: Browser, call: Call) -> None:
    """Past the server, straight to the phone, only the dialog table leads (rule D1 b): without it 481, not 403."""
    ours = call.browser._replace(routes=call.browser.routes[:-1])
    for method, number in (("BYE", 20), ("INFO", 21)):
        browser.send(ours.request(method, number, browser.via))
        assert "no dialog" in header(browser.expect("SIP/2.0 481", f"{number} {method}"), "Warning")


def assert_nobody_was_refused(gateway: Daemon) -> None:
    """No 403 and no 500 was the answer."""
    wrong = {"sip_answers_403", "sip_answers_500", "sip_requests_of_strangers", "internal_errors"}
    assert not wrong & gateway.status()["counters"].keys()


@pytest.mark.parametrize(
    ("gruu", "how", "caller"), [(True, End.SIGTERM, "desk"), (False, End.SIGKILL, "browser")], ids=["gruu", "contact"]
)
def test_t2_without_a_state_file_jssip_keeps_its_call_through_kamailio(
    gruu: bool, how: End, caller: str, tmp_path: Path
) -> None:
    """JsSIP puts a GRUU into its calls where the registrar gives one, else its Contact: both name it afterwards."""
    with ExitStack() as stack:
        kamailio = Kamailio(tmp_path / "kamailio", domain=DOMAIN, gruu=gruu)
        stack.callback(kamailio.stop)
        server = f"127.0.0.1:{kamailio.port}"
        gateway = Daemon(tmp_path / "wsgate", f"[backend {DOMAIN}]\ntarget = sip:{server};transport=udp\n")
        stack.callback(gateway.stop)
        desk = Desk()
        stack.callback(desk.close)
        desk.gate = ("127.0.0.1", kamailio.port)
        register(server, tmp_path, desk.peer.port, user="bob", domain=DOMAIN)
        phone = Softphone(gateway.url, "alice", PASSWORD, DOMAIN)
        stack.callback(phone.close)
        phone.wait("registered")
        leg = call_of_jssip(phone, desk, caller)
        restart(gateway, how)
        phone.wait("disconnected")
        phone.wait("registered")
        assert gateway.status()["dialogs"] == 0
        desk.send(leg.request("INVITE", 2, desk.via, f"Contact: <{FAR}>", body=SDP))
        phone.wait("reinvite")
        desk.expect("SIP/2.0 200", "2 INVITE")
        desk.send(leg.request("ACK", 2, desk.via))
        phone.wait_sip("in", "ACK ")
        phone.do("hold")
        desk.answer(desk.expect("INVITE "), body=SDP.replace("sendrecv", "recvonly"))
        desk.expect("ACK ")
        if caller == "browser":
            desk.send(leg.request("BYE", 3, desk.via))
            assert phone.wait("ended")["originator"] == "remote"
            desk.expect("SIP/2.0 200", "BYE")
        else:
            phone.do("hangup")
            desk.answer(desk.expect("BYE "))
            phone.wait_sip("in", "SIP/2.0 200")
        assert_nobody_was_refused(gateway)


def call_of_jssip(phone: Softphone, desk: Desk, caller: str) -> Leg:
    """A call through the server that is up; returns what the desk knows of it."""
    if caller == "browser":
        phone.do("call", target=f"sip:bob@{DOMAIN}")
        arrived = desk.expect("INVITE ")
        desk.answer(arrived, body=SDP)
        desk.expect("ACK ")
        leg = leg_of_called(arrived, "desk")
    else:
        aor = f"<sip:{phone.user}@{DOMAIN}>"
        desk.invite(aor, aor, (), SDP)
        phone.wait("session")
        phone.do("answer")
        leg = leg_of_caller(desk.expect("SIP/2.0 200", "INVITE"), desk.route)
        desk.send(leg.request("ACK", 1, desk.via))
    phone.wait("confirmed")
    return leg


def test_n6_right_after_a_start_no_server_is_a_stranger_because_the_dns_is_slow(tmp_path: Path) -> None:
    """What comes before the first answer of the DNS waits in the socket for it: valid, it is not met with 403."""
    with ExitStack() as stack:
        desk = Desk()
        stack.callback(desk.close)
        zone = f"_sip._udp SRV 10 10 {desk.peer.port} pbx\npbx A 127.0.0.1\n"
        dns = stack.enter_context(DnsServer(zone, DOMAIN))
        text = f"[backend {DOMAIN}]\ntarget = sip:{DOMAIN}\ntransports = udp\n"
        text += f"[dns]\nnameservers = {dns.address[0]}:{dns.address[1]}\ntimeout = 0.5\n"
        gateway = Daemon(tmp_path, text)
        stack.callback(gateway.stop)
        desk.gate = (gateway.sip_host, gateway.sip)
        browser = Browser(gateway.address)
        stack.callback(browser.close_tab)
        browser.register(desk)
        call = call_from_desk(browser, desk)
        gateway.stop()
        asked = len(dns.asked)
        dns.faults[""] = Fault.SILENCE
        bye = call.desk.request("BYE", 2, desk.via)

        def speak() -> None:
            # As soon as the new process asks: the BYE, and a little later the DNS is back.
            wait_for(lambda: len(dns.asked) > asked, "a question")
            desk.send(bye)
            time.sleep(0.2)
            dns.faults.clear()

        speaking = threading.Thread(target=speak)
        speaking.start()
        gateway.start()
        speaking.join()
        desk.expect("SIP/2.0 480", "2 BYE")
        assert_nobody_was_refused(gateway)


def test_d4_what_rings_when_wsgate_ends_is_cancelled(tmp_path: Path) -> None:
    """The phone would ring on: the next process knows nothing of it."""
    with ExitStack() as stack:
        desk = Desk()
        stack.callback(desk.close)
        gateway = Daemon(tmp_path, f"[backend {DOMAIN}]\ntarget = sip:{desk.place}\ntransports = udp\n")
        desk.gate = (gateway.sip_host, gateway.sip)
        browser = Browser(gateway.address)
        stack.callback(browser.close_tab)
        browser.register(desk)
        browser.invite()
        invite = desk.expect("INVITE ")
        desk.answer(invite, "180 Ringing")
        browser.expect("SIP/2.0 180")
        # Who does not answer the close is waited for a while: so the process is still there for what the desk says.
        slow = RawWebSocket(gateway.address)
        ending = threading.Thread(target=gateway.stop)
        ending.start()
        stack.callback(ending.join)
        stack.callback(slow.close)
        cancel = desk.expect("CANCEL ")
        assert header(cancel, "Call-ID") == header(invite, "Call-ID")
        desk.answer(cancel, "200 OK", tag="other")
        desk.answer(invite, "487 Request Terminated")
        assert header(desk.expect("ACK "), "CSeq") == "1 ACK"
