"""Calls whose WebSocket is lost, over real sockets: taken over by a newer flow (rule D3), or ended (rule D4).

How it is lost is the business of rule H5; how the restart of the gateway looks to them is in test_restarts.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.interop.cut_relay import Cut, CutRelay
from tests.interop.daemon import Daemon
from tests.interop.party import (
    CALLS,
    DOMAIN,
    FAR,
    SDP,
    Browser,
    Desk,
    Leg,
    acknowledgement,
    browser_asks,
    call_from_browser,
    call_from_desk,
    desk_asks,
    leg_of_called,
    leg_of_caller,
)
from tests.interop.process import wait_for
from tests.interop.raw import header, headers
from tests.interop.softphone import Softphone
from tests.interop.softphone import header as header_of_text

ORPHAN_GRACE, RECONNECT_GRACE = 0.5, 3.0


class Line(NamedTuple):
    """A gateway, the relay that its browsers come through, and the server behind it."""

    gateway: Daemon
    relay: CutRelay
    desk: Desk

    def wait_flows(self, count: int) -> float:
        """Wait until the gateway has noticed which WebSockets are left; the last time that it had not, 0.0 for none."""
        not_yet_at = 0.0

        def has_noticed() -> bool:
            nonlocal not_yet_at
            asked_at = time.monotonic()
            if len(self.gateway.status()["flows"]) == count:
                return True
            not_yet_at = asked_at
            return False

        wait_for(has_noticed, f"{count} flows in /status")
        return not_yet_at

    def browser(self, is_known_by: str = "instance") -> Browser:
        """A new user's client, registered."""
        browser = Browser(self.relay.address, is_known_by=is_known_by)
        browser.register(self.desk)
        return browser


def open_line(directory: Path, stack: ExitStack, options: str = "") -> Line:
    """A line whose [sip] has these options. Pings come each second: silence is noticed after three (rule H5)."""
    desk = Desk()
    stack.callback(desk.close)
    text = f"""
        [backend {DOMAIN}]
        target = sip:{desk.place}
        transports = udp

        [websocket]
        ping_interval = 1
        ping_misses = 2
        """
    gateway = Daemon(directory, text, sip_options=options)
    stack.callback(gateway.stop)
    desk.gate = (gateway.sip_host, gateway.sip)
    relay = CutRelay(gateway.address)
    stack.callback(relay.close)
    return Line(gateway, relay, desk)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A line with the times of grace that are the defaults; as good as new for each test: nobody is connected."""
    with ExitStack() as stack:
        yield open_line(tmp_path_factory.mktemp("line"), stack)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A line with short times of grace."""
    options = f"orphan_grace = {ORPHAN_GRACE}\nreconnect_grace = {RECONNECT_GRACE}"
    with ExitStack() as stack:
        yield open_line(tmp_path_factory.mktemp("hasty"), stack, options)


@pytest.fixture(scope="module")
def off(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A line without flow_rebind."""
    with ExitStack() as stack:
        yield open_line(tmp_path_factory.mktemp("off"), stack, "flow_rebind = off")


@pytest.fixture(autouse=True)
def nobody_is_refused_and_nobody_stays(line: Line, hasty: Line, off: Line) -> Iterator[None]:
    """What these tests send is valid: no 403 and no 500 is ever the answer. The next test finds empty lines."""
    yield
    for each in (line, hasty, off):
        wrong = {"sip_answers_403", "sip_answers_500", "sip_requests_of_strangers", "internal_errors"}
        assert not wrong & each.gateway.status()["counters"].keys()
        each.relay.cut(Cut.RST)
        each.wait_flows(0)
        while not each.desk.is_left_alone(0):
            pass


# Taken over (rule D3)


@pytest.mark.parametrize("way", list(Cut))
def test_d3_calls_go_on_over_the_flow_that_registered_again(line: Line, way: Cut) -> None:
    """Of a client with an instance, and of one that has only its Contact."""
    desk = line.desk
    browsers = [line.browser("instance"), line.browser("contact")]
    calls = [
        (browser, CALLS[caller](browser, desk))
        for browser in browsers
        for caller in ("browser", "desk", "browser", "desk")
    ]
    line.relay.cut(way)
    if way is not Cut.SILENCE:
        line.wait_flows(0)
    for browser in browsers:
        browser.connect()
        browser.register(desk)
    # After silence the dead flow is still open here: the newer one gets the requests all the same.
    for browser, call in calls:
        desk_asks(browser, desk, call.desk, "INVITE", 2)
        browser_asks(browser, desk, call.browser, "INVITE", 3)
    line.wait_flows(2)
    for number, (browser, call) in enumerate(calls):
        if number % 4 < 2:
            desk_asks(browser, desk, call.desk, "BYE", 4)
        else:
            browser_asks(browser, desk, call.browser, "BYE", 4)
    line.gateway.wait_status("dialogs", 0)


def test_d3_a_request_between_loss_and_return_is_480_and_the_call_goes_on(line: Line) -> None:
    browser, desk = line.browser(), line.desk
    call = call_from_desk(browser, desk)
    line.relay.cut(Cut.RST)
    line.wait_flows(0)
    again = call.desk.request("INVITE", 2, desk.via, f"Contact: <{FAR}>")
    desk.send(again)
    desk.send(acknowledgement(again, desk.expect("SIP/2.0 480", "2 INVITE")))
    browser.connect()
    browser.register(desk)
    desk_asks(browser, desk, call.desk, "INVITE", 3)
    desk_asks(browser, desk, call.desk, "BYE", 4)


class JsSip(NamedTuple):
    """A JsSIP in node behind the relay, registered, and its call."""

    phone: Softphone
    desk: Desk
    path: tuple[str, ...]

    def call(self, caller: str) -> Leg:
        """A call that is up; returns what the desk knows of it."""
        if caller == "browser":
            self.phone.do("call", target=f"sip:bob@{DOMAIN}")
            arrived = self.desk.expect("INVITE ")
            self.desk.answer(arrived, body=SDP)
            self.desk.expect("ACK ")
            leg = leg_of_called(arrived, "desk")
        else:
            contact = header_of_text(self.phone.messages("out", "REGISTER")[0], "Contact")
            self.desk.invite(f"<sip:{self.phone.user}@{DOMAIN}>", contact, self.path, SDP)
            self.phone.wait("session")
            self.phone.do("answer")
            leg = leg_of_caller(self.desk.expect("SIP/2.0 200", "INVITE"), self.desk.route)
            self.desk.send(leg.request("ACK", 1, self.desk.via))
        self.phone.wait("confirmed")
        return leg

    def come_back(self) -> None:
        """Wait until it has noticed, connected and registered again by itself (C7)."""
        self.phone.wait("disconnected")
        self.phone.wait("connected")
        self.desk.grant()
        self.phone.wait("sip", accept=lambda e: e["direction"] == "in" and "REGISTER" in e["text"])

    def reinvite(self, leg: Leg, number: int) -> None:
        """A re-INVITE of the desk reaches the browser and is answered end to end."""
        self.desk.send(leg.request("INVITE", number, self.desk.via, f"Contact: <{FAR}>", body=SDP))
        self.phone.wait("reinvite")
        self.desk.expect("SIP/2.0 200", f"{number} INVITE")
        self.desk.send(leg.request("ACK", number, self.desk.via))
        self.phone.wait_sip("in", "ACK ")


@pytest.fixture
def jssip(line: Line) -> Iterator[JsSip]:
    """A registered JsSIP."""
    phone = Softphone(line.relay.url, "carol", "", DOMAIN)
    try:
        path = line.desk.grant()
        phone.wait("registered")
        yield JsSip(phone, line.desk, path)
    finally:
        phone.close()


@pytest.mark.parametrize(("way", "caller"), [(Cut.RST, "browser"), (Cut.FIN, "desk"), (Cut.SILENCE, "desk")])
def test_d3_jssip_and_its_call_survive(line: Line, jssip: JsSip, way: Cut, caller: str) -> None:
    """The called party hangs up."""
    desk, phone = jssip.desk, jssip.phone
    leg = jssip.call(caller)
    line.relay.cut(way)
    jssip.come_back()
    jssip.reinvite(leg, 2)
    phone.do("hold")
    hold = desk.expect("INVITE ", "INVITE")
    desk.answer(hold, body=SDP.replace("sendrecv", "recvonly"))
    phone.wait("hold")
    desk.expect("ACK ")
    if caller == "browser":
        desk.send(leg.request("BYE", 3, desk.via))
        assert phone.wait("ended")["originator"] == "remote"
        desk.expect("SIP/2.0 200", "BYE")
    else:
        phone.do("hangup")
        bye = desk.expect("BYE ")
        assert headers(bye, "Route") == [desk.route]
        desk.answer(bye)
        phone.wait_sip("in", "SIP/2.0 200")
    line.gateway.wait_status("dialogs", 0)


# Not taken over


def milliseconds_to_refuse(desk: Desk, leg: Leg, method: str, number: int, status: int) -> float:
    """How long the answer to a request for a dead flow takes; it is `status`."""
    request = leg.request(method, number, desk.via, f"Contact: <{FAR}>")
    sent_at = time.monotonic()
    desk.send(request)
    final = desk.expect("SIP/2.0 4", f"{number} {method}")
    took = time.monotonic() - sent_at
    assert final.startswith(f"SIP/2.0 {status} ".encode()), final
    assert "gone" in header(final, "Warning")
    if method == "INVITE":
        desk.send(acknowledgement(request, final))
    return took * 1000


@pytest.mark.parametrize("way", list(Cut))
def test_b1_without_flow_rebind_a_dead_flow_is_told_within_50_ms(off: Line, way: Cut) -> None:
    """430 where the Route has ;ob, 480 where not. The quickest of many counts: the machine has other work."""
    browser, desk = off.browser(), off.desk
    call = call_from_desk(browser, desk)
    by_path = call.desk._replace(routes=browser.path)
    assert ";ob" in browser.path[0]
    off.relay.cut(way)
    browser.connect()
    browser.register(desk)
    off.wait_flows(1)
    for method in ("INVITE", "INFO", "BYE"):
        for leg, status in ((call.desk, 480), (by_path, 430)):
            numbers = range(10, 40) if status == 480 else range(50, 80)
            assert any(milliseconds_to_refuse(desk, leg, method, number, status) < 50 for number in numbers)


# Hung up (rule D4)


def assert_hung_up(bye: bytes, leg: Leg, number: int) -> None:
    """A BYE as the lost party would have written it, to the route set and target that the other side gave."""
    assert bye.startswith(f"BYE {FAR} SIP/2.0\r\n".encode())
    assert (header(bye, "From"), header(bye, "To")) == (leg.local, leg.remote)
    assert header(bye, "CSeq") == f"{number} BYE"
    assert "browser is gone" in header(bye, "Reason")


@pytest.mark.parametrize("way", list(Cut))
def test_d4_calls_of_a_browser_that_stays_away_get_bye_after_the_grace(hasty: Line, way: Cut) -> None:
    browser, desk = hasty.browser(), hasty.desk
    calls = {}
    for caller, number in (("browser", 2), ("desk", 8), ("browser", 2)):
        call = CALLS[caller](browser, desk)
        browser_asks(browser, desk, call.browser, "INFO", number)
        calls[call.browser.call_id] = (call.browser, number + 1)
    cut_at = time.monotonic()
    hasty.relay.cut(way)
    not_noticed_at = max(cut_at, hasty.wait_flows(0))
    while calls:
        bye = desk.expect("BYE ")
        assert header(bye, "Call-ID") in calls, bye
        assert time.monotonic() - not_noticed_at > RECONNECT_GRACE - 0.1
        assert headers(bye, "Route") == [desk.route]
        assert_hung_up(bye, *calls.pop(header(bye, "Call-ID")))
        desk.answer(bye)
    hasty.gateway.wait_status("dialogs", 0)


def test_d4_no_bye_when_the_browser_came_back_within_the_grace(hasty: Line) -> None:
    browser, desk = hasty.browser(), hasty.desk
    calls = [call_from_browser(browser, desk), call_from_desk(browser, desk)]
    hasty.relay.cut(Cut.RST)
    hasty.wait_flows(0)
    browser.connect()
    browser.register(desk)
    assert desk.is_left_alone(RECONNECT_GRACE + 0.5)
    for call in calls:
        browser_asks(browser, desk, call.browser, "BYE", 2)
    hasty.gateway.wait_status("dialogs", 0)


@pytest.mark.parametrize("is_answered", [False, True])
def test_d4_closing_the_tab_while_it_rings_cancels_and_a_2xx_that_still_comes_is_hung_up(
    hasty: Line, is_answered: bool
) -> None:
    browser, desk = hasty.browser(), hasty.desk
    sent = browser.invite()
    invite = desk.expect("INVITE ")
    desk.answer(invite, "180 Ringing")
    browser.expect("SIP/2.0 180")
    closing_at = time.monotonic()
    browser.close_tab()
    cancel = desk.expect("CANCEL ")
    assert time.monotonic() - closing_at > ORPHAN_GRACE - 0.1
    assert headers(cancel, "Via") == headers(invite, "Via")[:1]
    assert (header(cancel, "CSeq"), header(cancel, "Call-ID")) == ("1 CANCEL", header(sent, "Call-ID"))
    assert "browser is gone" in header(cancel, "Reason")
    desk.answer(cancel, "200 OK", tag="other")
    if is_answered:
        desk.answer(invite)
        ack, bye = desk.expect("ACK "), desk.expect("BYE ")
        assert headers(ack, "Route") == headers(bye, "Route") == [desk.route]
        assert_hung_up(bye, leg_of_called(invite, "desk").reversed(), 2)
        # The 200 comes again: its ACK was lost. That is no second call.
        desk.answer(invite)
        desk.expect("ACK ")
        desk.answer(bye)
    else:
        desk.answer(invite, "487 Request Terminated")
        assert header(desk.expect("ACK "), "CSeq") == "1 ACK"
    hasty.gateway.wait_status("dialogs", 0)


def test_d5_closing_the_tab_while_it_is_being_called_is_480_at_once(line: Line) -> None:
    browser, desk = line.browser(), line.desk
    invite = desk.invite(browser.aor, browser.contact, browser.path)
    browser.answer(browser.expect("INVITE "), "180 Ringing")
    desk.expect("SIP/2.0 180")
    browser.close_tab()
    failure = desk.expect("SIP/2.0 480", "INVITE")
    desk.send(acknowledgement(invite, failure))
    line.gateway.wait_status("dialogs", 0)


def test_d4_a_reinvite_that_the_browser_did_not_see_answered_costs_no_call(hasty: Line) -> None:
    """Its 2xx is acknowledged for the browser, which has its time of grace; else the other side would hang up."""
    browser, desk = hasty.browser(), hasty.desk
    call = call_from_desk(browser, desk)
    browser.send(call.browser.request("INVITE", 5, browser.via, f"Contact: {browser.contact}"))
    again = desk.expect("INVITE ")
    browser.close_tab()
    hasty.wait_flows(0)
    desk.answer(again)
    ack = desk.expect("ACK ")
    assert (header(ack, "CSeq"), header(ack, "Call-ID")) == ("5 ACK", call.browser.call_id)
    browser.connect()
    browser.register(desk)
    desk_asks(browser, desk, call.desk, "BYE", 2)
