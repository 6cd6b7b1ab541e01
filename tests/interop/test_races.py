"""CANCEL that crosses an answer, and calls that two phones take: with sipp, both ways (B5, I6)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.daemon import Daemon
from tests.interop.kamailio import PASSWORD, Kamailio
from tests.interop.party import Party
from tests.interop.raw import UdpPeer, answer, header, headers, sip
from tests.interop.sipp import Sipp, register

NUMBER = itertools.count(1)


class Office:
    """A gateway, its server, and who is started beside them."""

    def __init__(self, directory: Path, server: int, gateway: Daemon, stack: ExitStack) -> None:
        self.directory, self.server, self.gateway, self._stack = directory, server, gateway, stack

    def party(self, name: str, **options: str) -> Party:
        """A browser by hand, not registered."""
        party = Party(self.gateway.address, name, PASSWORD, **options)
        self._stack.callback(party.close)
        return party

    def sipp(self, scenario: str, called: str = "", user: str = "phone") -> Sipp:
        """A desk phone at the server."""
        desk = Sipp(scenario, f"127.0.0.1:{self.server}", self.directory, called=called or "nobody", user=user)
        self._stack.callback(desk.stop)
        return desk

    def ended(self) -> None:
        """Nothing of the call is left."""
        self.gateway.wait_status("dialogs", 0)


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kamailio, Daemon]]:
    """A Kamailio in between."""
    directory = tmp_path_factory.mktemp("races")
    with ExitStack() as stack:
        kamailio = Kamailio(directory / "kamailio", one_contact=False)
        stack.callback(kamailio.stop)
        gateway = Daemon(
            directory / "wsgate", f"[backend example.test]\ntarget = sip:127.0.0.1:{kamailio.port};transport=udp\n"
        )
        stack.callback(gateway.stop)
        yield kamailio, gateway


@pytest.fixture
def office(company: tuple[Kamailio, Daemon], tmp_path: Path) -> Iterator[Office]:
    """The company for one test."""
    with ExitStack() as stack:
        yield Office(tmp_path, company[0].port, company[1], stack)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What one test starts ends with it."""
    with ExitStack() as made:
        yield made


def test_b5_the_desk_answers_while_the_browsers_cancel_is_on_its_way(office: Office) -> None:
    """B5: the 200 wins (3261 §9.1) and reaches the browser, which acknowledges it and hangs up."""
    alice = office.party(f"alice{next(NUMBER)}")
    alice.register()
    user = f"desk{next(NUMBER)}"
    desk = office.sipp("uas_answered_too_late", user=user)
    register(f"127.0.0.1:{office.server}", office.directory, desk.port, user=user)
    invite = alice.call(user)
    alice.response(180, "INVITE")
    alice.cancel(invite)
    alice.response(200, "CANCEL")
    alice.response(200, "INVITE")
    alice.send("ACK", cseq=1)
    alice.send("BYE")
    alice.response(200, "BYE")
    desk.done()
    office.ended()


def test_b5_the_browser_answers_while_the_desks_cancel_is_on_its_way(office: Office) -> None:
    """B5, the other way: the desk gets the 200 behind that of its CANCEL, acknowledges it and hangs up."""
    alice = office.party(f"alice{next(NUMBER)}")
    alice.register()
    desk = office.sipp("uac_cancel_crossed", called=alice.user)
    invite = alice.request("INVITE")
    alice.answer(invite, "180 Ringing")
    cancel = alice.request("CANCEL")
    alice.answer(invite, "200 OK")
    alice.answer(cancel, "200 OK")
    alice.request("ACK")
    alice.answer(alice.request("BYE"), "200 OK")
    desk.done()
    office.ended()


def test_b5_a_cancel_waits_for_the_first_provisional(stack: ExitStack, tmp_path: Path) -> None:
    """B5: 200 at once, forwarded only behind the 180 of a server that was silent so far."""
    desk = UdpPeer()
    stack.callback(desk.close)
    gateway = Daemon(tmp_path, f"[backend example.test]\ntarget = sip:127.0.0.1:{desk.port};transport=udp\n")
    stack.callback(gateway.stop)
    office = Office(tmp_path, desk.port, gateway, stack)
    alice = office.party("alice")
    sent = alice.call("desk")
    invite, source = desk.receive_until(b"INVITE ")
    alice.cancel(sent)
    alice.response(200, "CANCEL")
    assert desk.receive(0.7) is None, "no CANCEL before anything came from the other side"
    desk.send(answer(invite, "180 Ringing", f"Contact: <sip:desk@127.0.0.1:{desk.port}>", tag="desk"), source)
    alice.response(180, "INVITE")
    cancel, source = desk.receive_until(b"CANCEL ")
    assert headers(cancel, "Via") == headers(invite, "Via")[:1]
    desk.send(answer(cancel, "200 OK", tag="desk"), source)
    desk.send(answer(invite, "487 Request Terminated", tag="desk"), source)
    assert header(desk.receive_until(b"ACK ")[0], "CSeq") == "1 ACK"
    alice.response(487, "INVITE")
    office.ended()


def test_i6_two_phones_take_a_call_of_the_browser(stack: ExitStack, tmp_path: Path) -> None:
    """I6: each forked 2xx passes, each has its ACK and its BYE. The backend is sipp itself."""
    desk = Sipp("uas_forked", "127.0.0.1:9", tmp_path, user="desk")
    stack.callback(desk.stop)
    gateway = Daemon(tmp_path / "wsgate", f"[backend example.test]\ntarget = sip:127.0.0.1:{desk.port}\n")
    stack.callback(gateway.stop)
    office = Office(tmp_path, desk.port, gateway, stack)
    alice = office.party("alice")
    alice.call("desk")
    alice.response(180, "INVITE")
    taken = {header(alice.response(200, "INVITE"), "To") for _ in range(2)}
    assert len(taken) == 2
    for method in ("ACK", "BYE"):
        for answerer in taken:
            alice.leg = alice.leg._replace(remote=answerer)
            alice.send(method, cseq=1 if method == "ACK" else 0)
    for _ in taken:
        alice.response(200, "BYE")
    desk.done()
    office.ended()


def test_i6_two_browsers_take_a_call_of_the_desk(office: Office) -> None:
    """I6, B5: a 2xx that comes although the server has cancelled passes too, and each is acknowledged and hung up."""
    name = f"carol{next(NUMBER)}"
    browsers = [office.party(name, host=host) for host in ("one.invalid", "two.invalid")]
    for number, browser in enumerate(browsers, 1):
        instance = f'"<urn:uuid:00000000-0000-4000-8000-00000000000{number}>"'
        browser.register("Supported: path, outbound", parameters=f";+sip.instance={instance};reg-id=1")
    desk = UdpPeer()
    try:
        place = ("127.0.0.1", office.server)
        common = [f"From: <sip:desk@example.test>;tag=d{name}", f"Call-ID: {name}@desk"]
        contact = f"Contact: <sip:desk@127.0.0.1:{desk.port}>"

        def request(method: str, uri: str, to: str, cseq: int, *fields: str) -> bytes:
            via = f"Via: SIP/2.0/UDP 127.0.0.1:{desk.port};branch=z9hG4bK{next(NUMBER)}{name}"
            lines = [via, "Max-Forwards: 70", *common, f"To: {to}", f"CSeq: {cseq} {method}", contact, *fields]
            return sip(f"{method} {uri} SIP/2.0", *lines)

        desk.send(request("INVITE", f"sip:{name}@example.test", f"<sip:{name}@example.test>", 1), place)
        invites = [browser.request("INVITE") for browser in browsers]
        for browser, invite in zip(browsers, invites, strict=True):
            browser.answer(invite, "180 Ringing")
        browsers[0].answer(invites[0], "200 OK")
        cancel = browsers[1].request("CANCEL")
        browsers[1].answer(invites[1], "200 OK")
        browsers[1].answer(cancel, "200 OK")
        taken: dict[str, bytes] = {}
        while len(taken) < 2:
            ok = desk.receive_until(b"SIP/2.0 200")[0]
            taken[header(ok, "To")] = ok
        for to, ok in taken.items():
            target = header(ok, "Contact").partition("<")[2].partition(">")[0]
            routes = [f"Route: {route}" for route in headers(ok, "Record-Route")[::-1]]
            desk.send(request("ACK", target, to, 1, *routes), place)
            desk.send(request("BYE", target, to, 2, *routes), place)
        for browser in browsers:
            assert browser.leg.tag in header(browser.request("ACK"), "To")
            bye = browser.request("BYE")
            browser.ws.send(answer(bye, "200 OK"))
        office.ended()
    finally:
        desk.close()
