"""Several workers: calls across them, requests at the wrong one, clients that move, workers that die (rule T3).

Rules T1, T3, W1, W2, D3, D4, R5, G6, B1: browsers made of bytes that sit at different workers.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.interop.daemon import READY, Daemon
from tests.interop.party import Party
from tests.interop.process import wait_for
from tests.interop.raw import header, headers
from tests.interop.registration import EMBEDDED, write_users
from tests.interop.workers import move, party_on, processes, wait_all

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
    wait_for(lambda: three.log.count(READY) == ready + 1, "another worker", 30)
    after = processes(three)
    assert {number: after[number].pid == before[number].pid for number in range(3)} == {0: True, 1: True, 2: False}
    pass_on(bob, alice, "BYE")
    move(three, carol, 2)
    establish(carol, bob)
    pass_on(bob, carol, "BYE")
