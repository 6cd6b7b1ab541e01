"""A UDP backend behind loss in both directions: the browser notices nothing but time (I1, I6, I7, B4, V3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.interop.daemon import Daemon
from tests.interop.kamailio import PASSWORD, Kamailio
from tests.interop.lossy import Direction, DropFirst, LossyRelay
from tests.interop.party import Party, Phone
from tests.interop.process import free_port, wait_for
from tests.interop.sipp import Sipp, register
from tests.interop.softphone import Softphone, header, headers

GATEWAY, FRONT, BACK, SERVER, DESK = "127.0.0.10", "127.0.0.12", "127.0.0.11", "127.0.0.13", "127.0.0.14"
"""The gateway's SIP side; the relay as the gateway sees it, and as the server does; the server, also for its phones."""

HOLD_SECONDS = 4.0
"""How long sipp holds a call that it ends: long enough that a lost ACK comes again before the BYE."""


class Line(NamedTuple):
    """A gateway and a UDP-only server with a relay between them that nothing goes round."""

    gateway: Daemon
    relay: LossyRelay
    kamailio: Kamailio
    directory: Path

    def phone(self, user: str) -> Softphone:
        """A JsSIP at the gateway."""
        return Softphone(self.gateway.url, user, PASSWORD)

    def desk(self, scenario: str, user: str) -> Sipp:
        """A sipp beside the server, without loss between them, registered as `user`."""
        server = f"{DESK}:{self.kamailio.port}"
        desk = Sipp(scenario, server, self.directory, user=user, seconds=60, hold_seconds=HOLD_SECONDS)
        register(server, self.directory, desk.port, user=user)
        return desk

    def caller(self, scenario: str, called: str) -> Sipp:
        """A sipp beside the server that calls `called`."""
        return Sipp(
            scenario,
            f"{DESK}:{self.kamailio.port}",
            self.directory,
            called=called,
            seconds=60,
            hold_seconds=HOLD_SECONDS,
        )


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    """A line without loss; the test sets it."""
    with ExitStack() as stack:
        front = free_port(FRONT)
        kamailio = Kamailio(
            tmp_path / "kamailio",
            host=SERVER,
            transports=("udp",),
            advertise=f"{FRONT}:{front}",
            desk_host=DESK,
        )
        stack.callback(kamailio.stop)
        text = f"""
            [backend example.test]
            target = sip:{FRONT}:{front}
            """
        gateway = Daemon(tmp_path / "wsgate", text, sip_host=GATEWAY, sip_options=f"advertise = {BACK}")
        stack.callback(gateway.stop)
        relay = LossyRelay(
            (GATEWAY, gateway.sip),
            (SERVER, kamailio.port),
            front=(FRONT, front),
            back=(BACK, gateway.sip),
            seed=20,
        )
        stack.callback(relay.close)
        yield Line(gateway, relay, kamailio, tmp_path)


def assert_nothing_noticed(phone: Softphone) -> None:
    """No request, 1xx or failure came twice, and each 2xx to INVITE, repeated or not, was answered by an ACK."""
    seen: Counter[tuple[str, str, str, str]] = Counter()
    successes: Counter[str] = Counter()
    acknowledged: Counter[str] = Counter()
    for message in phone.messages("in"):
        start, cseq = message.partition("\r\n")[0], header(message, "CSeq")
        if start.startswith("SIP/2.0 2") and cseq.endswith("INVITE"):
            successes[header(message, "Call-ID")] += 1
        else:
            seen[start, cseq, header(message, "Call-ID"), headers(message, "Via")[0]] += 1
    for message in phone.messages("out", "ACK "):
        acknowledged[header(message, "Call-ID")] += 1
    assert not [key for key, count in seen.items() if count > 1], phone.story()
    for call, count in successes.items():
        assert acknowledged[call] == count, phone.story()


def calls(line: Line, phone: Softphone, rounds: int) -> None:
    """Calls in both directions that are ended from each side."""
    for number in range(rounds):
        desk = line.desk("uas_byed", f"a{number}")
        phone.do("call", target=f"sip:a{number}@example.test")
        phone.wait("confirmed", 40)
        desk.wait_for("received", "ACK", 40)
        phone.do("hangup")
        desk.done(40)
        desk = line.desk("uas_bye", f"b{number}")
        phone.do("call", target=f"sip:b{number}@example.test")
        phone.wait("confirmed", 40)
        phone.wait("ended", 40)
        desk.done(40)
        desk = line.caller("uac_bye", phone.user)
        phone.wait("session", 40)
        phone.do("answer")
        # The BYE may come before the ACK, where each of several was lost.
        phone.wait("accepted", 40)
        phone.wait("ended", 40)
        desk.done(40)
        desk = line.caller("uac_byed", phone.user)
        phone.wait("session", 40)
        phone.do("answer")
        phone.wait("confirmed", 40)
        phone.do("hangup")
        desk.done(40)


def test_first_copy_of_everything_is_lost(line: Line) -> None:
    line.relay.drop = DropFirst()
    phone = line.phone("alice")
    try:
        phone.wait("registered", 30)
        calls(line, phone, 1)
        assert_nothing_noticed(phone)
    finally:
        phone.close()
    relay = line.relay
    for direction, start, method in (
        (Direction.FORTH, b"REGISTER ", b"REGISTER"),
        (Direction.BACK, b"SIP/2.0 200", b"REGISTER"),
        (Direction.FORTH, b"INVITE ", b"INVITE"),
        (Direction.BACK, b"SIP/2.0 200", b"INVITE"),
        (Direction.FORTH, b"ACK ", b"ACK"),
        (Direction.FORTH, b"BYE ", b"BYE"),
        (Direction.BACK, b"INVITE ", b"INVITE"),
        (Direction.FORTH, b"SIP/2.0 200", b"INVITE"),
        (Direction.BACK, b"ACK ", b"ACK"),
        (Direction.BACK, b"BYE ", b"BYE"),
    ):
        assert relay.count(direction, start, method, lost=True), f"{method!r} was never lost:\n{relay.story()}"
        assert relay.count(direction, start, method), f"{method!r} never passed:\n{relay.story()}"


@pytest.mark.timeout(240)
def test_seeded_loss_doubling_and_delay(line: Line) -> None:
    line.relay.loss, line.relay.duplicate, line.relay.delay = 0.2, 0.2, 0.1
    phone = line.phone("alice")
    try:
        phone.wait("registered", 40)
        calls(line, phone, 3)
        phone.do("unregister")
        phone.wait("unregistered", 40)
        assert_nothing_noticed(phone)
    finally:
        phone.close()
    lost = sum(packet.copies == 0 for packet in line.relay.packets)
    doubled = sum(packet.copies == 2 for packet in line.relay.packets)
    assert lost > 10
    assert doubled > 10
    line.gateway.wait_status("dialogs", 0)


def test_delay_beyond_t1_and_reordering(line: Line) -> None:
    """I1, B4: both sides send again what is only late, and the browser sees each thing once."""
    line.relay.delay = 1.0
    desk = Phone(line.kamailio.port, DESK)
    alice = Party(line.gateway.address, "alice", PASSWORD)
    try:
        alice.register()
        for _ in range(2):
            desk.call("alice")
            alice.answer(alice.request("INVITE"), "200 OK")
            desk.answered()
            alice.request("ACK")
            alice.send("BYE")
            desk.hung_up()
            alice.response(200, "BYE")
            alice.call("nobody")
            alice.response(404, "INVITE")
        assert alice.ws.receive(1.5) is None, "nothing comes behind its answer"
    finally:
        alice.close()
        desk.close()
    relay = line.relay
    assert relay.count(Direction.FORTH, b"REGISTER ") > 2, relay.story()
    assert relay.count(Direction.FORTH, b"INVITE ") > 2, relay.story()
    assert relay.count(Direction.BACK, b"INVITE ") > 2, relay.story()
    line.gateway.wait_status("dialogs", 0)


def test_busy_and_cancel_under_loss(line: Line) -> None:
    line.relay.drop = DropFirst()
    phone = line.phone("alice")
    try:
        phone.wait("registered", 30)
        desk = line.desk("uas_busy", "busy")
        phone.do("call", target="sip:busy@example.test")
        assert phone.wait("failed", 40)["status"] == 486
        desk.done(40)
        desk = line.desk("uas_cancelled", "rings")
        phone.do("call", target="sip:rings@example.test")
        phone.wait("sip", 40, lambda e: e["direction"] == "out" and e["text"].startswith("INVITE"))
        desk.wait_for("received", "INVITE", 40)
        phone.do("hangup")
        assert phone.wait("failed", 40)["cause"] == "Canceled"
        desk.done(40)
        desk = line.caller("uac_busy", phone.user)
        phone.wait("session", 40)
        phone.do("hangup", options={"status_code": 486})
        desk.done(40)
        assert_nothing_noticed(phone)
    finally:
        phone.close()
    assert line.relay.count(Direction.BACK, b"SIP/2.0 487", b"INVITE", lost=True)
    wait_for(lambda: line.relay.count(Direction.FORTH, b"ACK ", b"ACK"), "an ACK of ours for the failure")
