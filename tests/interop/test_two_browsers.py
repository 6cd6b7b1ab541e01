"""Two browsers in one call through a registrar that does not record-route, and one that does not know Path.

Rules W1, W2, R5, C3, D2: by bytes, and with JsSIP; the registrar sees the call begin and nothing after that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.interop.daemon import Daemon
from tests.interop.kamailio import PASSWORD, Kamailio
from tests.interop.party import Party
from tests.interop.raw import UdpPeer, header, headers
from tests.interop.registration import register
from tests.interop.sipp import Sipp
from tests.interop.softphone import Softphone
from tests.interop.test_kamailio import assert_well_served, user

NUMBER = itertools.count(1)


class Office(NamedTuple):
    """A gateway with `contact_mode` = `mode` in front of a registrar that stays in no dialog."""

    mode: str
    kamailio: Kamailio
    gateway: Daemon
    directory: Path

    def pair(self, stack: ExitStack) -> tuple[Party, Party]:
        """Two browsers made of bytes, both registered, with names that no other test uses."""
        number = next(NUMBER)
        parties = [Party(self.gateway.address, f"{name}{number}", PASSWORD) for name in ("alice", "bob")]
        for party in parties:
            stack.callback(party.close)
            party.register()
        return parties[0], parties[1]


@pytest.fixture(scope="module", params=["path", "auto", "contact"])
def office(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """`path` with a registrar that knows Path, `auto` and `contact` with one that does not."""
    directory = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        kamailio = Kamailio(directory / "kamailio", record_route=False, path=request.param == "path", one_contact=False)
        stack.callback(kamailio.stop)
        lines = ["[backend example.test]", f"target = sip:127.0.0.1:{kamailio.port}"]
        gateway = Daemon(directory / "wsgate", "\n".join([*lines, f"contact_mode = {request.param}", ""]))
        stack.callback(gateway.stop)
        yield Office(request.param, kamailio, gateway, directory)


@pytest.fixture
def pair(office: Office) -> Iterator[tuple[Party, Party]]:
    """alice and bob."""
    with ExitStack() as stack:
        yield office.pair(stack)


def in_dialog(sender: Party, receiver: Party, method: str, *fields: str) -> bytes:
    """A request of `sender` that `receiver` gets without a Route, and its 200. Returns what arrived."""
    sent = sender.send(method, *fields)
    arrived = receiver.request(method)
    assert arrived.split(b" ")[1] == receiver.uri.encode(), "the Contact of the receiver, as it gave it (C2)"
    assert headers(arrived, "Route") == []
    assert header(arrived, "CSeq") == header(sent, "CSeq")
    receiver.answer(arrived, "200 OK")
    answered = sender.response(200, method)
    assert headers(answered, "Via") == headers(sent, "Via")
    return arrived


def offer_again(sender: Party, receiver: Party) -> None:
    """A re-INVITE, answered and acknowledged."""
    arrived = in_dialog(sender, receiver, "INVITE")
    assert len(headers(arrived, "Record-Route")) == 2
    sender.send("ACK", cseq=sender.cseq)
    assert header(receiver.request("ACK"), "CSeq") == header(arrived, "CSeq").replace("INVITE", "ACK")


@pytest.mark.parametrize("ends", ["caller", "callee"])
def test_w1_every_request_of_the_call_passes_both_ways(office: Office, pair: tuple[Party, Party], ends: str) -> None:
    """W1: each leg has its own pair of Record-Routes, four in all; W2 leads each request across."""
    alice, bob = pair
    logged = len(office.kamailio.log)
    alice.call(bob.user, "Supported: 100rel")
    invite = bob.request("INVITE")
    assert invite.split(b" ")[1] == bob.uri.encode()
    routes = [route for value in headers(invite, "Record-Route") for route in value.split(",")]
    public, backend = f"127.0.0.1:{office.gateway.http};transport=ws;", f"127.0.0.1:{office.gateway.sip};"
    places = [route.partition("@")[2].strip() for route in routes]
    assert len(routes) == 4
    assert [places[0].startswith(public), places[3].startswith(public)] == [True, True], routes
    assert [places[1].startswith(backend), places[2].startswith(backend)] == [True, True], routes
    assert all(route.endswith(";r2=on;lr>") for route in routes)
    tokens = [route.partition("sip:")[2].partition("@")[0] for route in routes]
    assert tokens[0] == tokens[1] != tokens[2] == tokens[3], "the callee's pair above the caller's"

    bob.answer(invite, "183 Session Progress", "Require: 100rel", "RSeq: 7")
    early = alice.response(183, "INVITE")
    assert headers(early, "Record-Route") == headers(invite, "Record-Route")
    assert len(headers(early, "Via")) == 1
    in_dialog(alice, bob, "PRACK", "RAck: 7 1 INVITE")
    in_dialog(bob, alice, "UPDATE")
    in_dialog(alice, bob, "UPDATE")
    bob.answer(invite, "180 Ringing")
    alice.response(180, "INVITE")
    bob.answer(invite, "200 OK")
    alice.response(200, "INVITE")
    alice.send("ACK", cseq=1)
    assert header(bob.request("ACK"), "CSeq") == "1 ACK"
    offer_again(alice, bob)
    offer_again(bob, alice)
    for method in ("INFO", "MESSAGE", "REFER"):
        in_dialog(alice, bob, method, *(["Refer-To: <sip:carol@example.test>"] if method == "REFER" else []))
        in_dialog(bob, alice, method, *(["Refer-To: <sip:carol@example.test>"] if method == "REFER" else []))
    in_dialog(bob, alice, "NOTIFY", "Event: refer", "Subscription-State: terminated;reason=noresource")
    assert office.gateway.status()["dialogs"] == 1
    in_dialog(*((alice, bob) if ends == "caller" else (bob, alice)), "BYE")
    office.gateway.wait_status("dialogs", 0)
    # Over UDP the INVITE comes again where the registrar was slow.
    passed_by = {part.split()[0] for part in office.kamailio.log[logged:].split("GOT ")[1:]}
    assert passed_by == {"INVITE"}, "the registrar asked for nothing more"


def test_b5_a_cancelled_call_ends_on_both_sides(pair: tuple[Party, Party]) -> None:
    """B5 over two legs of ours: CANCEL reaches the other browser, its 487 comes back."""
    alice, bob = pair
    sent = alice.call(bob.user)
    invite = bob.request("INVITE")
    bob.answer(invite, "180 Ringing")
    alice.response(180, "INVITE")
    alice.cancel(sent)
    alice.response(200, "CANCEL")
    bob.answer(bob.request("CANCEL"), "200 OK")
    bob.answer(invite, "487 Request Terminated")
    alice.response(487, "INVITE")
    assert header(bob.request("ACK"), "CSeq") == "1 ACK", "hop by hop"


def test_jssip_calls_jssip_and_both_hang_up(office: Office) -> None:
    """W1, D2: call, INFO, hold from both sides, BYE from each side; nothing that a browser must not see."""
    phones = [Softphone(office.gateway.url, f"{name}{next(NUMBER)}", PASSWORD) for name in ("anna", "bert")]
    try:
        for phone in phones:
            phone.wait("registered")
        for caller, callee in (phones, phones[::-1]):
            caller.do("call", target=user(callee))
            callee.wait("session", accept=lambda event: event["originator"] == "remote")
            callee.do("answer")
            caller.wait("confirmed")
            callee.wait("confirmed")
            for one, other in (phones, phones[::-1]):
                one.do("dtmf", tones="5")
                other.wait("newDTMF", accept=lambda event: event["originator"] == "remote")
            caller.do("hold")
            callee.wait("hold", accept=lambda event: event["originator"] == "remote")
            caller.wait_sip("in", "SIP/2.0 200")
            # In the first call the caller hangs up, in the second the callee.
            phones[0].do("hangup")
            phones[1].wait("ended", accept=lambda event: event["originator"] == "remote")
            office.gateway.wait_status("dialogs", 0)
        for phone in phones:
            assert_well_served(phone)
            assert all("wsg=" not in message for message in phone.messages("in"))
    finally:
        for phone in phones:
            phone.close()


def bindings(office: Office, name: str, stack: ExitStack) -> list[str]:
    """What the registrar holds for a user: asked by a REGISTER without Contact (RFC 3261 §10.2.3)."""
    peer = UdpPeer()
    stack.callback(peer.close)

    def exchange(data: bytes) -> bytes:
        peer.send(data, ("127.0.0.1", office.kamailio.port))
        return peer.receive_until(b"SIP/2.0 ")[0]

    ok = register(name, "", f"SIP/2.0/UDP 127.0.0.1:{peer.port};rport", exchange, password=PASSWORD)
    return [part for value in headers(ok, "Contact") for part in value.split(",")]


def test_r5_three_reconnects_leave_one_binding_and_calls_reach_the_newest_flow(office: Office) -> None:
    """R5, R6: a browser without instance, whose Contact is all that the registrar can compare."""
    with ExitStack() as stack:
        alice, bob = office.pair(stack)
        first = bindings(office, bob.user, stack)
        for size in (0, 1500, 0):
            bob.reconnect()
            # Too large for UDP the REGISTER goes by TCP (I4), and is the same binding all the same.
            bob.register(f"User-Agent: browser{'x' * size}")
        assert "GOT REGISTER from tcp:" in office.kamailio.log
        assert len(first) == 1
        [binding] = bindings(office, bob.user, stack)
        assert binding.partition(">")[0] == first[0].partition(">")[0]
        if office.mode == "path":
            assert bob.uri in binding
        else:
            place = f"<sip:{bob.user}@127.0.0.1:{office.gateway.sip};transport=udp;wsg="
            assert binding.startswith(place), binding
        alice.call(bob.user)
        bob.answer(bob.request("INVITE"), "486 Busy Here")
        alice.response(486, "INVITE")
        desk = Sipp("uac_busy", f"127.0.0.1:{office.kamailio.port}", office.directory, called=bob.user)
        stack.callback(desk.stop)
        bob.request("ACK")
        bob.answer(bob.request("INVITE"), "486 Busy Here")
        desk.done()
