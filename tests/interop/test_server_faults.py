"""A server that is silent, takes no connection or is restarted: what its callers get, and that all others get theirs.

Rules N2, N3, N5, D5, V1 and table A with Kamailio and by bytes. Only Timer B tells that a server is silent (32 s,
RFC 3261 §17.1.1.2): one test makes two of them silent, the last one reads what came of it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.dns_server import DnsServer
from tests.interop.daemon import Daemon
from tests.interop.kamailio import PASSWORD, Kamailio
from tests.interop.party import Party, Phone
from tests.interop.process import free_port, wait_for
from tests.interop.raw import UdpPeer, answer, header
from tests.interop.softphone import Softphone
from tests.interop.stream_server import Line
from tests.interop.test_kamailio import Company, backend, call_through, zone

SRV = "_sip._{transport} SRV 10 10 {first} one\n_sip._{transport} SRV 20 10 {second} one\none A 127.0.0.1\n"


class Busy:
    """A server over UDP that answers each INVITE with 486 at once; `calls` are their Call-IDs and when they came."""

    def __init__(self) -> None:
        self._peer, self.calls = UdpPeer(), dict[str, float]()
        self.port = self._peer.port
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ending.is_set():
            got = self._peer.receive(0.1)
            if got is not None and got[0].startswith(b"INVITE "):
                self.calls[header(got[0], "Call-ID")] = time.monotonic()
                self._peer.send(answer(got[0], "486 Busy Here", tag="s"), got[1])

    def close(self) -> None:
        """End the thread and close the socket."""
        self._ending.set()
        self._thread.join()
        self._peer.close()


class Silence(NamedTuple):
    """Calls to silent servers on their way: of alice to example.test, a Kamailio that was stopped, of bob to pair.test,
    whose `second` server is well; and a MESSAGE of carol to example.test.
    """

    gateway: Daemon
    kamailio: Kamailio
    second: Busy
    other: UdpPeer
    alice: Party
    bob: Party
    carol: Party
    since: float


@pytest.fixture(scope="module")
def silence(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Silence]:
    """Begins with the first test that asks for it; the last one reads what came of it, however much later.

    `other` is the server of third.test, in good health.
    """
    directory = tmp_path_factory.mktemp("silence")
    with ExitStack() as stack:
        kamailio = Kamailio(directory / "kamailio")
        stack.callback(kamailio.stop)
        first, other = (stack.enter_context(closing(UdpPeer())) for _ in range(2))
        second = stack.enter_context(closing(Busy()))
        records = SRV.format(transport="udp", first=first.port, second=second.port)
        dns = stack.enter_context(DnsServer(records, "pair.test"))
        text = f"""
            [backend example.test]
            target = sip:127.0.0.1:{kamailio.port};transport=udp
            probe_interval = 1
            [backend pair.test]
            target = sip:pair.test;transport=udp
            [backend third.test]
            target = sip:127.0.0.1:{other.port};transport=udp
            [dns]
            nameservers = {dns.address[0]}:{dns.address[1]}
            [websocket]
            ping_interval = 600
            """
        gateway = Daemon(directory / "wsgate", text)
        stack.callback(gateway.stop)
        alice, bob, carol = (
            stack.enter_context(closing(Party(gateway.address, user, PASSWORD))) for user in ("alice", "bob", "carol")
        )
        alice.register()
        kamailio.pause()
        stack.callback(kamailio.resume)
        alice.call("nobody")
        bob.call("somebody", domain="pair.test")
        carol.call("nobody", method="MESSAGE")
        yield Silence(gateway, kamailio, second, other, alice, bob, carol, time.monotonic())


@pytest.mark.parametrize(
    ("transport", "ends"), [("udp", "desk"), ("tcp", "desk"), ("tcp", "browser"), ("ws", "browser")]
)
def test_a_restart_of_the_server_in_the_middle_of_a_call(transport: str, ends: str, tmp_path: Path) -> None:
    """D5, V1: our connection is gone; the BYE goes over a new one, and so do the next REGISTER and the next call."""
    with ExitStack() as stack:
        kamailio = Kamailio(tmp_path / "kamailio")
        stack.callback(kamailio.stop)
        target = f"sip:127.0.0.1:{kamailio.port};transport={transport}"
        gateway = Daemon(tmp_path / "wsgate", f"[backend example.test]\ntarget = {target}\nprobe_interval = 1\n")
        stack.callback(gateway.stop)
        alice = stack.enter_context(closing(Party(gateway.address, "alice", PASSWORD)))
        desk = stack.enter_context(closing(Phone(kamailio.port)))
        alice.register()

        def call() -> None:
            desk.call("alice")
            alice.answer(alice.request("INVITE"), "200 OK")
            desk.answered()
            alice.request("ACK")

        def hang_up(who: str) -> None:
            if who == "desk":
                desk.send("BYE")
                alice.answer(alice.request("BYE"), "200 OK")
                desk.peer.receive_until(b"SIP/2.0 200")
            else:
                alice.send("BYE")
                desk.hung_up()
                alice.response(200, "BYE")
            gateway.wait_status("dialogs", 0)

        call()
        kamailio.stop()
        kamailio.restart()
        hang_up(ends)
        kamailio.stop()
        kamailio.restart()
        alice.register()
        call()
        hang_up("browser" if ends == "desk" else "desk")
        assert gateway.status()["backends"]["example.test"]["dead"] == []


def test_n5_others_are_served_at_once_while_a_server_is_silent(silence: Silence) -> None:
    """N2, N5: another browser, another server; and the same browser whose call waits."""
    with closing(Party(silence.gateway.address, "dave", PASSWORD)) as dave:
        for party in (dave, silence.alice):
            ours = party.leg, party.cseq
            party.call("erin", domain="third.test", method="OPTIONS")
            request, source = silence.other.receive_until(b"OPTIONS ")
            silence.other.send(answer(request, "200 OK", tag="e"), source)
            party.response(200, "OPTIONS")
            assert time.monotonic() - silence.since < 25, "nobody waited for Timer B"
            party.leg, party.cseq = ours


def test_n2_a_server_that_takes_no_connection_costs_one_caller_four_seconds(tmp_path: Path) -> None:
    """N2, N3: the second target answers, the next call goes there at once, a probe brings the first one back."""
    with ExitStack() as stack:
        kamailio = Kamailio(tmp_path / "kamailio")
        stack.callback(kamailio.stop)
        full = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0), backlog=0)))
        place = full.getsockname()
        # One connection fills the queue of what waits to be accepted: further ones get no answer at all.
        filling = stack.enter_context(closing(socket.create_connection(place)))
        records = SRV.format(transport="tcp", first=place[1], second=kamailio.port)
        dns = stack.enter_context(DnsServer(records, "example.test"))
        lines = ["[backend example.test]", "target = sip:example.test;transport=tcp", "probe_interval = 1"]
        lines += ["[dns]", f"nameservers = {dns.address[0]}:{dns.address[1]}", ""]
        gateway = Daemon(tmp_path / "wsgate", "\n".join(lines))
        stack.callback(gateway.stop)

        def dead() -> list[str]:
            found: list[str] = gateway.status()["backends"]["example.test"]["dead"]
            return found

        alice, bob = (stack.enter_context(closing(Party(gateway.address, user, PASSWORD))) for user in ("alice", "bob"))
        began = time.monotonic()
        alice.call("nobody")
        alice.response(404, "INVITE")
        assert time.monotonic() - began > 3, "the first target was tried"
        assert dead() == [f"TCP 127.0.0.1:{place[1]}"]
        bob.register()

        def seconds_to_call() -> float:
            began = time.monotonic()
            alice.call("bob")
            bob.answer(bob.request("INVITE"), "486 Busy Here")
            alice.response(486, "INVITE")
            return time.monotonic() - began

        assert any(seconds_to_call() < 3 for _ in range(3)), "who is known to be dead is not waited for"
        full.settimeout(20)
        full.accept()[0].close()
        filling.close()
        connection, source = full.accept()
        line = stack.enter_context(closing(Line(connection, source)))
        line.send(answer(line.receive_until(b"OPTIONS sip:example.test "), "200 OK", tag="p"))
        wait_for(lambda: not dead(), "the first target to be alive")
        alice.call("somebody")
        line.send(answer(line.receive_until(b"INVITE "), "480 Temporarily Unavailable", tag="p"))
        alice.response(480, "INVITE")


@pytest.mark.parametrize("transport", ["udp", "tcp", "ws"])
def test_second_srv_target_takes_over(transport: str, tmp_path: Path) -> None:
    """N2: nobody listens at the first target (ICMP, or the connection is refused)."""
    with ExitStack() as stack:
        kamailio = Kamailio(tmp_path / "kamailio")
        stack.callback(kamailio.stop)
        targets = ((10, "127.0.0.1", free_port()), (20, "127.0.0.1", kamailio.port))
        dns = stack.enter_context(DnsServer(zone(transport, *targets), "example.test"))
        gateway = Daemon(tmp_path / "wsgate", backend(dns))
        stack.callback(gateway.stop)
        company = Company(transport, dns, kamailio, gateway, tmp_path)
        call_through(company, stack)


def test_second_srv_target_takes_over_from_one_that_says_503(tmp_path: Path) -> None:
    """N2: the first target answers 503, which a browser never sees (N3)."""
    with ExitStack() as stack:
        kamailio = Kamailio(tmp_path / "kamailio")
        stack.callback(kamailio.stop)
        overloaded = UdpPeer()
        stack.callback(overloaded.close)
        targets = ((10, "127.0.0.1", overloaded.port), (20, "127.0.0.1", kamailio.port))
        dns = stack.enter_context(DnsServer(zone("udp", *targets), "example.test"))
        gateway = Daemon(tmp_path / "wsgate", backend(dns))
        stack.callback(gateway.stop)
        phone = Softphone(gateway.url, "alice", PASSWORD)
        stack.callback(phone.close)
        request, source = overloaded.receive_until(b"REGISTER ")
        overloaded.send(answer(request, "503 Service Unavailable", tag="x"), source)
        phone.wait("registered")
        assert not phone.messages("in", "SIP/2.0 503")


def test_n3_what_a_silent_server_costs(silence: Silence) -> None:
    """N2, N3, table A: 408, or the second target; nothing for another request (4320); then a probe finds it alive."""
    gateway, second = silence.gateway, silence.second
    silence.bob.response(486, "INVITE", 60)
    assert second.calls[silence.bob.leg.call_id] - silence.since > 25, "Timer B"
    refused = silence.alice.response(408, "INVITE", 60)
    assert header(refused, "Warning")
    assert len(gateway.status()["backends"]["pair.test"]["dead"]) == 1
    began = time.monotonic()
    silence.bob.call("somebody", domain="pair.test")
    silence.bob.response(486, "INVITE")
    assert second.calls[silence.bob.leg.call_id] - began < 25, "remembered: Timer B is not waited for again"
    while (message := silence.carol.ws.receive(0.2)) is not None:
        assert message.startswith(b"SIP/2.0 100 "), "no 408 to a request that is not INVITE"
    assert gateway.status()["backends"]["example.test"]["dead"]
    silence.kamailio.resume()
    wait_for(lambda: not gateway.status()["backends"]["example.test"]["dead"], "the server to be alive")
    silence.alice.call("nobody")
    silence.alice.response(404, "INVITE")
