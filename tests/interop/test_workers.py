"""Several workers: calls across them, requests at the wrong one, clients that move, workers that die (rule T3).

Rules T1, T3, W1, W2, D3, D4, R5, G6, B1: browsers made of bytes that sit at different workers.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.interop.daemon import READY, Daemon
from tests.interop.party import NO_DIALOG, Party
from tests.interop.process import free_port, wait_for
from tests.interop.raw import UdpPeer, answer, header, headers, sip
from tests.interop.registration import EMBEDDED, PASSWORD, register_phone, write_users
from tests.interop.test_turn_test import assert_relays, turn_test
from tests.interop.workers import browser_on, move, party_on, processes, wait_all

NUMBER = itertools.count(1)
USERS = tuple(f"{name}{number}" for name in ("alice", "bob") for number in range(10))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Three workers and the embedded registrar."""
    directory = tmp_path_factory.mktemp("three")
    write_users(directory, *USERS)
    daemon = Daemon(directory, EMBEDDED, workers=3)
    yield daemon
    daemon.stop()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def establish(caller: Party, callee: Party) -> None:
    """A call that is up."""
    caller.call(callee.user)
    invite = callee.request("INVITE")
    callee.answer(invite, "200 OK")
    caller.response(200, "INVITE")
    caller.send("ACK", cseq=caller.cseq)
    assert header(callee.request("ACK"), "CSeq") == f"{caller.cseq} ACK"


def pass_on(sender: Party, receiver: Party, method: str) -> None:
    """A request inside the call arrives as it should, and its 200 comes back."""
    sent = sender.send(method)
    arrived = receiver.request(method)
    assert arrived.split(b" ")[1] == receiver.uri.encode()
    assert headers(arrived, "Route") == []
    receiver.answer(arrived, "200 OK")
    assert headers(sender.response(200, method), "Via") == headers(sent, "Via")


def test_a_call_between_browsers_of_two_workers(three: Daemon, stack: ExitStack):
    """W1, G6: each leg has its own pair of Record-Routes, each with its own worker's port (V1)."""
    alice, bob = party_on(three, 0, "alice0"), party_on(three, 1, "bob0")
    stack.callback(alice.close)
    stack.callback(bob.close)
    alice.call("bob0")
    invite = bob.request("INVITE")
    places = [route.partition("@")[2] for value in headers(invite, "Record-Route") for route in value.split(",")]
    assert [place.partition(";")[0] for place in places] == [
        f"127.0.0.1:{port}" for port in (three.http, three.sip + 1, three.sip, three.http)
    ]
    bob.answer(invite, "180 Ringing")
    alice.response(180, "INVITE")
    bob.answer(invite, "200 OK")
    alice.response(200, "INVITE")
    alice.send("ACK", cseq=1)
    bob.request("ACK")
    for method in ("INFO", "INVITE", "MESSAGE"):
        for sender, receiver in ((alice, bob), (bob, alice)):
            pass_on(sender, receiver, method)
            if method == "INVITE":
                sender.send("ACK", cseq=sender.cseq)
                receiver.request("ACK")
    wait_all(three, "dialogs", [1, 1, 0])
    pass_on(bob, alice, "BYE")
    wait_all(three, "dialogs", [0, 0, 0])


def test_a_call_that_is_cancelled_across_workers(three: Daemon, stack: ExitStack):
    """B5 over a hop between workers."""
    alice, bob = party_on(three, 2, "alice1"), party_on(three, 0, "bob1")
    stack.callback(alice.close)
    stack.callback(bob.close)
    sent = alice.call("bob1")
    invite = bob.request("INVITE")
    bob.answer(invite, "180 Ringing")
    alice.response(180, "INVITE")
    alice.cancel(sent)
    alice.response(200, "CANCEL")
    bob.answer(bob.request("CANCEL"), "200 OK")
    bob.answer(invite, "487 Request Terminated")
    alice.response(487, "INVITE")


@pytest.mark.parametrize("new_place", [1, 2])
def test_a_client_that_comes_back_at_another_worker_keeps_its_call(three: Daemon, stack: ExitStack, new_place: int):
    """D3, T3: to the old token's worker, on to the new flow's; and its own requests with the old token count as its."""
    alice, bob = party_on(three, 0, f"alice{2 + new_place}"), party_on(three, 1, f"bob{2 + new_place}")
    stack.callback(alice.close)
    stack.callback(bob.close)
    establish(alice, bob)
    move(three, alice, new_place)
    pass_on(bob, alice, "INFO")
    pass_on(alice, bob, "INFO")
    pass_on(alice, bob, "INVITE")
    alice.send("ACK", cseq=alice.cseq)
    bob.request("ACK")
    pass_on(*((bob, alice) if new_place == 1 else (alice, bob)), "BYE")
    wait_all(three, "dialogs", [0, 0, 0])


def test_a_worker_that_dies_is_replaced_and_the_calls_of_others_go_on(three: Daemon, stack: ExitStack):
    """The new one learns from the others who is where: a call from it finds them at once."""
    alice, bob = party_on(three, 0, "alice6"), party_on(three, 1, "bob6")
    carol = party_on(three, 2, "alice7")
    for party in (alice, bob, carol):
        stack.callback(lambda party=party: party.close())
    establish(alice, bob)
    ready = three.log.count(READY)
    before = processes(three)
    os.kill(before[2].pid, signal.SIGKILL)
    assert carol.ws.receive() is None
    pass_on(alice, bob, "INFO")
    wait_for(lambda: three.log.count(READY) == ready + 1, "another worker")
    after = processes(three)
    assert {number: after[number].pid == before[number].pid for number in range(3)} == {0: True, 1: True, 2: False}
    pass_on(bob, alice, "BYE")
    move(three, carol, 2)
    establish(carol, bob)
    pass_on(bob, carol, "BYE")


@pytest.mark.parametrize("place", [0, 2])
def test_a_call_outlives_the_worker_of_one_party(three: Daemon, stack: ExitStack, place: int):
    """D3: the browser comes back at whichever worker, and has its call from that of the other party."""
    alice, bob = party_on(three, 1, f"alice{4 + place // 2}"), party_on(three, 2, f"bob{4 + place // 2}")
    for party in (alice, bob):
        stack.callback(leave, party)
    establish(alice, bob)
    ready = three.log.count(READY)
    os.kill(processes(three)[2].pid, signal.SIGKILL)
    wait_for(lambda: three.log.count(READY) == ready + 1, "another worker")
    move(three, bob, place)
    pass_on(alice, bob, "INFO")
    pass_on(bob, alice, "BYE")
    wait_all(three, "dialogs", [0, 0, 0])


def test_a_worker_that_stands_still_costs_the_others_nothing(three: Daemon, stack: ExitStack):
    """T3: its inbox fills, nobody waits for it, and it knows all once it goes on."""
    alice = party_on(three, 0, "alice9")
    stack.callback(leave, alice)
    before = three.statuses()[2]["bindings"]
    still = processes(three)[2]
    still.suspend()
    try:
        for number in range(36):
            alice.uri = f"sip:alice9@browser{number % 9}.invalid;transport=ws"
            assert alice.register().startswith(b"SIP/2.0 200 ")
    finally:
        still.resume()
    wait_for(lambda: three.statuses()[2]["bindings"] == before + 9, "the news")


# Through a SIP server over UDP


class Office(NamedTuple):
    """Two workers in front of a SIP server that does what a test says."""

    gateway: Daemon
    server: UdpPeer

    def address(self, worker: int) -> tuple[str, int]:
        """The backend side of a worker."""
        return self.gateway.sip_host, self.gateway.sip + worker

    def register(self, party: Party, *fields: str) -> bytes:
        """REGISTER through the server, which takes the Contact as it is; returns what it got."""
        number = next(NUMBER)
        lines = [f"Via: SIP/2.0/WS browser.invalid;branch=z9hG4bKr{number}", "Max-Forwards: 70"]
        lines += [f"From: {party.aor};tag=r", f"To: {party.aor}", f"Call-ID: register-{number}", "CSeq: 1 REGISTER"]
        party.ws.send(sip("REGISTER sip:example.test SIP/2.0", *lines, f"Contact: <{party.uri}>;expires=600", *fields))
        arrived, source = self.server.receive_until(b"REGISTER ")
        self.server.send(answer(arrived, "200 OK", f"Contact: {header(arrived, 'Contact')}", tag="s"), source)
        assert party.ws.receive_until(lambda message: b"REGISTER" in message).startswith(b"SIP/2.0 200 ")
        return arrived

    def request(self, method: str, party: Party, worker: int, *fields: str, uri: str = "", tag: str = "") -> bytes:
        """A request of the server for this user, sent to a worker's port."""
        number = next(NUMBER)
        lines = [f"Via: SIP/2.0/UDP 127.0.0.1:{self.server.port};branch=z9hG4bKs{number};rport", "Max-Forwards: 70"]
        lines += ["From: <sip:pbx@example.test>;tag=pbx", f"To: {party.aor}" + (f";tag={tag}" if tag else "")]
        lines += [f"Call-ID: {party.leg.call_id or number}", f"CSeq: {number} {method}"]
        lines += [f"Contact: <sip:pbx@127.0.0.1:{self.server.port}>"]
        data = sip(f"{method} {uri or party.uri} SIP/2.0", *lines, *fields)
        self.server.send(data, self.address(worker))
        return data

    def answered(self) -> bytes:
        """The next answer that is no 100."""
        while (got := self.server.receive(10)) is not None:
            if got[0].startswith(b"SIP/2.0 ") and not got[0].startswith(b"SIP/2.0 100 "):
                return got[0]
        raise AssertionError("no answer")


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    server = UdpPeer()
    text = f"[backend example.test]\ntarget = sip:127.0.0.1:{server.port};transport=udp\n"
    daemon = Daemon(tmp_path_factory.mktemp("office"), text, workers=2)
    yield Office(daemon, server)
    daemon.stop()
    server.close()


def leave(party: Party) -> None:
    """Close the connection that it has then."""
    party.ws.close()


def outsider(office: Office, stack: ExitStack, worker: int) -> Party:
    """A browser at this worker."""
    party = Party(office.gateway.address, f"carol{next(NUMBER)}", PASSWORD)
    party.ws.close()
    party.ws = browser_on(office.gateway, worker)
    stack.callback(leave, party)
    return party


@pytest.mark.parametrize("worker", [0, 1])
def test_a_request_at_the_wrong_worker_is_forwarded_to_the_owner(office: Office, stack: ExitStack, worker: int):
    """T1, T3, V1: Path names the owner's port; what comes by the other one's arrives all the same."""
    carol = outsider(office, stack, worker)
    path = header(office.register(carol), "Path")
    assert f"@127.0.0.1:{office.gateway.sip + worker};" in path
    sent = office.request("MESSAGE", carol, 1 - worker, f"Route: {path}", "X-Size: " + "x" * 1500)
    arrived = carol.request("MESSAGE")
    assert (headers(arrived, "Route"), header(arrived, "Max-Forwards")) == ([], "68")
    carol.answer(arrived, "202 Accepted")
    got = office.answered()
    assert got.startswith(b"SIP/2.0 202 ")
    assert header(got, "Via").partition(";")[0] == header(sent, "Via").partition(";")[0]
    assert len(headers(got, "Via")) == 1


def test_a_body_too_large_for_a_datagram_passes_between_workers(office: Office, stack: ExitStack):
    """I4, T3: from worker to worker by TCP where UDP cannot hold it."""
    carol = outsider(office, stack, 1)
    path = header(office.register(carol), "Path")
    body = "0123456789" * 20_000
    with socket.create_connection(office.address(0), 10) as stream:
        lines = [f"Via: SIP/2.0/TCP 127.0.0.1:{office.server.port};branch=z9hG4bKbig", "Max-Forwards: 70"]
        lines += [f"Route: {path}", "From: <sip:pbx@example.test>;tag=pbx", f"To: {carol.aor}", "Call-ID: big"]
        stream.sendall(
            sip(f"MESSAGE {carol.uri} SIP/2.0", *lines, "CSeq: 1 MESSAGE", f"Contact: {carol.aor}", body=body)
        )
        arrived = carol.request("MESSAGE")
        assert arrived.endswith(b"\r\n\r\n" + body.encode())
        carol.answer(arrived, "200 OK")
        assert stream.recv(65536).startswith(b"SIP/2.0 200 ")


def test_a_forged_token_and_a_flow_that_is_gone_are_told_apart_at_every_worker(office: Office, stack: ExitStack):
    """B1, T2, T3: 403; 480, or 430 where the Route has `ob`."""
    carol = outsider(office, stack, 0)
    path = header(office.register(carol), "Path")
    token = path.partition("sip:")[2].partition("@")[0]
    forged = path.replace(token, token[:-5] + ("AAAAA" if token[-5:] != "AAAAA" else "BBBBB"))
    carol.ws.close()
    for worker in (0, 1):
        office.request("MESSAGE", carol, worker, f"Route: {forged}")
        assert office.answered().startswith(b"SIP/2.0 403 ")
        for route, status in ((path, b"480"), (path.replace(";lr", ";lr;ob"), b"430")):
            office.request("MESSAGE", carol, worker, f"Route: {route}")
            assert office.answered().startswith(b"SIP/2.0 " + status)


def test_a_dialog_follows_its_client_to_another_worker(office: Office, stack: ExitStack):
    """D3, T3: the server's BYE with the old token, at either worker, reaches the new flow; a new request does not."""
    carol = outsider(office, stack, 0)
    path = header(office.register(carol), "Path")
    office.request("INVITE", carol, 0, f"Route: {path}")
    carol.answer(carol.request("INVITE"), "200 OK")
    accepted = office.answered()
    routes = [part for value in headers(accepted, "Record-Route") for part in value.split(",")][::-1]
    tag = header(accepted, "To").partition("tag=")[2]
    carol.ws.close()
    carol.ws = browser_on(office.gateway, 1)
    office.register(carol)
    for worker in (0, 1):
        office.request("INFO", carol, worker, *(f"Route: {route}" for route in routes), tag=tag)
        carol.answer(carol.request("INFO"), "200 OK")
        assert office.answered().startswith(b"SIP/2.0 200 ")
    carol.send("INFO")
    arrived, source = office.server.receive_until(b"INFO ")
    office.server.send(answer(arrived, "200 OK"), source)
    carol.response(200, "INFO")
    carol.leg = NO_DIALOG
    office.request("MESSAGE", carol, 1, f"Route: {path}")
    assert office.answered().startswith(b"SIP/2.0 480 ")


def test_a_handle_leads_from_the_first_worker_to_the_browser_at_another(office: Office, stack: ExitStack):
    """R5: the rewritten Contact names the first worker, which forwards; the browser gets its own Contact back."""
    carol = outsider(office, stack, 1)
    contact = header(office.register(carol), "Contact").partition("<")[2].partition(">")[0]
    assert f"@127.0.0.1:{office.gateway.sip};" in contact
    office.request("MESSAGE", carol, 0, uri=contact)
    arrived = carol.request("MESSAGE")
    assert arrived.split(b" ")[1] == carol.uri.encode()
    carol.answer(arrived, "200 OK")
    assert office.answered().startswith(b"SIP/2.0 200 ")


# Phones, restarts, reload


def test_a_body_too_large_for_a_datagram_passes_between_browsers(three: Daemon, stack: ExitStack):
    """I4, T3: a worker that no configured source vouches for is known by its proof over TCP too."""
    alice, bob = party_on(three, 0, "alice8"), party_on(three, 2, "bob8")
    for party in (alice, bob):
        stack.callback(leave, party)
    establish(alice, bob)
    body = "x" * 100_000
    alice.ws.send(alice.leg.request("MESSAGE", 7, alice.via, body=body))
    arrived = bob.request("MESSAGE")
    assert arrived.endswith(body.encode())
    bob.answer(arrived, "200 OK")
    alice.response(200, "MESSAGE")
    alice.cseq = 7
    pass_on(alice, bob, "BYE")


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Daemon]:
    """Two workers that keep bindings and calls in files, and phones."""
    write_users(tmp_path, *USERS)
    options = f"trusted_sources = 127.0.0.1\nstate_file = {tmp_path}/state"
    daemon = Daemon(tmp_path, EMBEDDED + "store = bindings.sqlite\n", sip_options=options, workers=2)
    yield daemon
    if daemon.running:
        daemon.stop()


def ring(daemon: Daemon, phone: UdpPeer, called: Party, worker: int) -> tuple[str, list[str]]:
    """A phone calls a browser by a worker's port: the To of the call, and the phone's route set."""
    place = f"127.0.0.1:{phone.port}"
    lines = [f"Via: SIP/2.0/UDP {place};branch=z9hG4bKp{next(NUMBER)};rport", "Max-Forwards: 70"]
    lines += ["From: <sip:bob0@example.test>;tag=phone", f"To: {called.aor}", f"Call-ID: phone-{called.user}"]
    lines += ["CSeq: 1 INVITE", f"Contact: <sip:bob0@{place}>"]
    phone.send(sip(f"INVITE sip:{called.user}@example.test SIP/2.0", *lines), (daemon.sip_host, daemon.sip + worker))
    called.answer(called.request("INVITE"), "200 OK")
    accepted = phone.receive_until(b"SIP/2.0 200 ")[0]
    routes = [part for value in headers(accepted, "Record-Route") for part in value.split(",")][::-1]
    return header(accepted, "To"), routes


def hang_up(daemon: Daemon, phone: UdpPeer, called: Party, to: str, routes: list[str]) -> None:
    """The phone ends it: its BYE arrives, and the answer comes back."""
    place = f"127.0.0.1:{phone.port}"
    lines = [f"Via: SIP/2.0/UDP {place};branch=z9hG4bKp{next(NUMBER)};rport", "Max-Forwards: 70"]
    lines += ["From: <sip:bob0@example.test>;tag=phone", f"To: {to}", f"Call-ID: phone-{called.user}", "CSeq: 2 BYE"]
    lines += [f"Route: {route}" for route in routes]
    port = int(routes[0].partition("@")[2].partition(";")[0].rpartition(":")[2])
    phone.send(sip(f"BYE {called.uri} SIP/2.0", *lines), (daemon.sip_host, port))
    called.answer(called.request("BYE"), "200 OK")
    phone.receive_until(b"SIP/2.0 200 ")


def test_calls_and_bindings_of_all_workers_survive_a_restart(kept: Daemon, stack: ExitStack):
    """D3, G5: each worker has a journal of its own, the first the bindings of all; clients come back anywhere."""
    phone = UdpPeer()
    stack.callback(phone.close)
    register_phone(phone, (kept.sip_host, kept.sip), "bob0")
    alice = party_on(kept, 1, "alice0")
    stack.callback(leave, alice)
    to, routes = ring(kept, phone, alice, 0)
    wait_all(kept, "dialogs", [0, 1])
    wait_all(kept, "bindings", [2, 2])
    pass_to_phone(alice, phone, "INFO")
    kept.stop()
    kept.start()
    wait_all(kept, "bindings", [2, 2])
    wait_all(kept, "dialogs", [0, 1])
    move(kept, alice, 0)
    hang_up(kept, phone, alice, to, routes)
    wait_all(kept, "dialogs", [0, 0])


def pass_to_phone(sender: Party, phone: UdpPeer, method: str) -> None:
    """A request of a browser inside its call with the phone."""
    sender.send(method)
    arrived, source = phone.receive_until(method.encode())
    phone.send(answer(arrived, "200 OK"), source)
    sender.response(200, method)


def test_a_browser_calls_a_phone_of_another_worker(kept: Daemon, stack: ExitStack):
    """G5, G6: the phone is where it registered from, whichever worker had its REGISTER."""
    phone = UdpPeer()
    stack.callback(phone.close)
    register_phone(phone, (kept.sip_host, kept.sip), "bob0")
    alice = party_on(kept, 1, "alice0")
    stack.callback(leave, alice)
    alice.call("bob0")
    invite, source = phone.receive_until(b"INVITE ")
    assert source[1] == kept.sip + 1
    phone.send(answer(invite, "200 OK", f"Contact: <sip:bob0@127.0.0.1:{phone.port}>", tag="p"), source)
    alice.response(200, "INVITE")
    alice.send("ACK", cseq=1)
    phone.receive_until(b"ACK ")
    pass_to_phone(alice, phone, "BYE")


def test_a_reload_reaches_every_worker_and_keeps_the_connections(kept: Daemon, stack: ExitStack):
    """SIGHUP: a user who is new may register at each."""
    alice = party_on(kept, 1, "alice1")
    stack.callback(leave, alice)
    write_users(kept.ini.parent, "alice1", "zoe")
    os.kill(kept.pid, signal.SIGHUP)
    wait_for(lambda: "reloaded" in kept.log, "the reload")
    for worker in (0, 1):
        leave(party_on(kept, worker, "zoe"))
    pass_options(alice)


def pass_options(party: Party) -> None:
    """The connection is alive and its registration known."""
    number = next(NUMBER)
    lines = [f"Via: SIP/2.0/WS browser.invalid;branch=z9hG4bKo{number}", "Max-Forwards: 70", f"From: {party.aor};tag=o"]
    lines += [f"To: {party.aor}", f"Call-ID: options-{number}", "CSeq: 1 OPTIONS"]
    party.ws.send(sip(f"OPTIONS sip:{party.user}@example.test SIP/2.0", *lines))
    assert party.ws.receive_until(lambda message: message.startswith(b"OPTIONS "))


def test_sigterm_ends_every_worker_with_1001(tmp_path: Path):
    """All browsers are told, and nobody is left."""
    daemon = Daemon(tmp_path, "", workers=2)
    browsers = [browser_on(daemon, worker) for worker in (0, 1)]
    left = [process.pid for process in processes(daemon).values()]
    os.kill(daemon.pid, signal.SIGTERM)
    for browser in browsers:
        assert browser.receive() is None
        assert browser.close_code == 1001
        browser.send_frame(8, b"\x03\xe9")
    wait_for(lambda: not daemon.running, "the end")
    assert [pid for pid in left if psutil.pid_exists(pid)] == []


def test_turn_is_served_by_every_worker_from_its_own_ports(tmp_path: Path):
    """L2, P5: allocations of two workers relay to each other; a client over UDP stays with one."""
    port = free_port()
    turn = f"""
        udp = 127.0.0.1:{port}
        tcp = 127.0.0.1:{port}
        relay_address = 127.0.0.1
        relay_ports = 50000-50399
        realm = example.test
        shared_secret = office
    """
    daemon = Daemon(tmp_path, "", turn=turn, workers=2)
    relayed = []
    try:
        for transport in ("udp", "tcp") * 3:
            uri = f"turn:127.0.0.1:{port}?transport={transport}"
            result = turn_test(uri, "-c", daemon.ini)
            assert_relays(result)
            relayed += [int(found) for found in re.findall(r"127\.0\.0\.1:(50\d\d\d)", result.stdout)]
        statuses = daemon.statuses()
        made = [status["counters"].get("turn_allocations_made", 0) for status in statuses]
        assert sum(made) == 12
        assert min(made) > 0
        assert {port >= 50200 for port in relayed} == {False, True}
    finally:
        daemon.stop()
