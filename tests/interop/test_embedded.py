"""JsSIP at the embedded registrar: its Contact is a GRUU, and everything still finds it (RFC 5627, C2, W1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.daemon import Daemon
from tests.interop.registration import DOMAIN, EMBEDDED, PASSWORD, write_users
from tests.interop.softphone import Softphone, header, headers

Phones = Callable[..., Softphone]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    write_users(tmp_path, "alice", "bob")
    one = Daemon(tmp_path, EMBEDDED)
    yield one
    one.stop()


@pytest.fixture
def phone(daemon: Daemon) -> Iterator[Phones]:
    started: list[Softphone] = []

    def start(user: str, **agent: object) -> Softphone:
        started.append(Softphone(daemon.url, user, PASSWORD, DOMAIN, **agent))
        started[-1].wait("registered")
        return started[-1]

    yield start
    for one in started:
        one.close()


def call(caller: Softphone, callee: Softphone, **options: object) -> tuple[str, str]:
    """A call that is answered; the INVITE as the callee got it, and the 200 as the caller did."""
    caller.do("call", target=f"sip:{callee.user}@{DOMAIN}", options=options)
    callee.wait("session")
    callee.do("answer")
    caller.wait("confirmed")
    callee.wait("confirmed")
    return callee.messages("in", "INVITE")[-1], [m for m in caller.messages("in", "SIP/2.0 200") if "INVITE" in m][-1]


@pytest.mark.parametrize("ends", ["alice", "bob"])
@pytest.mark.parametrize("anonymous", [False, True])
def test_calls_with_gruus_as_contacts(daemon: Daemon, phone: Phones, ends: str, anonymous: bool):
    """The public GRUU, for an unnamed caller a temporary one; INFO and BYE go there and back by the tokens."""
    alice, bob = phone("alice"), phone("bob")
    invite, taken = call(alice, bob, anonymous=anonymous)
    instance = r"sip:alice@example\.test;gr=urn:uuid:[0-9a-f-]{36}"
    contact = header(invite, "Contact")
    assert bool(re.match(f"<{instance}>", contact)) is not anonymous
    assert bool(re.match(r"<sip:[A-Za-z0-9_-]{40,}@example\.test;gr>", contact)) is anonymous
    assert ";gr=urn:uuid:" in header(taken, "Contact")
    assert len([value for value in headers(invite, "Record-Route") if ";transport=ws" in value]) == 2
    for one, other in ((alice, bob), (bob, alice)):
        one.do("dtmf", tones="5")
        other.wait("newDTMF", accept=lambda event: event["originator"] == "remote")
    first, second = (alice, bob) if ends == "alice" else (bob, alice)
    first.do("hangup")
    second.wait("ended", accept=lambda event: event["originator"] == "remote")
    daemon.wait_status("dialogs", 0)


def test_a_call_to_a_gruu_rings_that_browser_alone(daemon: Daemon, phone: Phones):
    """Two browsers of bob, each its own instance."""
    alice, bob, other = phone("alice"), phone("bob"), phone("bob")
    registered = [text for text in bob.messages("in", "SIP/2.0 200") if "REGISTER" in text][-1]
    gruu = re.findall(r'pub-gruu="([^"]+)"', header(registered, "Contact"))[0]
    alice.do("call", target=gruu)
    bob.wait("session")
    bob.do("answer")
    alice.wait("confirmed")
    alice.do("hangup")
    bob.wait("ended")
    assert other.messages("in", "INVITE") == []
