"""Other people's clients: turnutils_uclient of coturn and aioice relay through the server and read its codes."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
from typing import Any

import aioice.stun
import aioice.turn
import pytest

from tests.interop.process import PATIENCE_SECONDS, free_port, udp_is_bound, wait_for
from tests.turn_process import PASSWORD, SECRET, USER, TurnProcess

PEER_HOST = "127.0.0.2"
LOOPBACK = ("127.0.0.0/8",)
MESSAGES = 25
CLIENTS = 2
RUNS = {
    "channels": ["-y", "-c"],
    "even ports": ["-y"],
    "send": ["-y", "-s"],
    "dont-fragment": ["-y", "-c", "-g"],
    "padded": ["-y", "-c", "-D"],
    "extra requests": ["-y", "-G"],
    "shared secret": ["-y", "-W", SECRET],
    "channels to a peer": ["-c", "-e", PEER_HOST],
    "send to a peer": ["-c", "-s", "-e", PEER_HOST],
    "TCP, channels": ["-y", "-c", "-t"],
    "TCP, send": ["-y", "-s", "-t"],
    "TCP, even ports": ["-y", "-t"],
    "TLS, channels": ["-y", "-c", "-t", "-S"],
    "TLS, send": ["-y", "-s", "-t", "-S"],
    "RFC 6062 over TCP": ["-T", "-t"],
    "RFC 6062 over TLS": ["-T", "-t", "-S"],
    "DTLS, channels": ["-y", "-c", "-S"],
    "DTLS, send": ["-y", "-s", "-S"],
    "mobile, channels": ["-y", "-c", "-M"],
    "mobile, TCP": ["-y", "-c", "-t", "-M"],
}
IPV6_RUNS = {
    "UDP": ["-y", "-c", "-x"],
    "TCP": ["-y", "-c", "-x", "-t"],
    "TLS": ["-y", "-c", "-x", "-t", "-S"],
    "DTLS": ["-y", "-c", "-x", "-S"],
    "IPv4 relayed": ["-y", "-c"],
}


class Run:
    """turnutils_uclient at work. It draws channels up to 0x7FFF, which is answered by 400: such a run is repeated."""

    def __init__(self, turn: TurnProcess, *options: str, password: str = PASSWORD, server: str = "127.0.0.1") -> None:
        port = turn.tls_port if {"-t", "-S"} <= {*options} else turn.port
        self.command = ["turnutils_uclient", "-v", "-p", str(port), "-u", USER, "-w", password, *options]
        self.command += ["-l", "172", "-z", "10", "-n", str(MESSAGES), "-m", str(CLIENTS), server]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def output(self) -> str:
        """Everything it printed, once it has ended."""
        for _ in range(3):
            printed, _ = self.process.communicate(timeout=60)
            if "error 400" not in printed:
                break
            self.start()
        return printed


def assert_lossless(output: str) -> None:
    """Everything that was sent came back."""
    totals = re.findall(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)", output)
    assert totals, output[-2000:]
    sent, received = map(int, totals[-1])
    assert sent == received > 0
    assert "Total lost packets 0 (0.000000%)" in output


@pytest.fixture(scope="module")
def outputs() -> dict[str, str]:
    """What each of RUNS printed; they run at the same time, for each takes seconds to begin."""
    port = str(free_port(PEER_HOST, 2))  # it takes the next one too
    peer = subprocess.Popen(["turnutils_peer", "-L", PEER_HOST, "-p", port], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: udp_is_bound(PEER_HOST, int(port)), "the peer")
        options: dict[str, Any] = {
            "channel_range": "rfc5766",
            "unauthenticated_rate": 10**6,
            "user_quota": 500,
            "mobility": True,
        }
        with TurnProcess(allow=LOOPBACK, **options) as turn:
            runs = {name: Run(turn, "-r", port, *run) for name, run in RUNS.items()}
            return {name: run.output() for name, run in runs.items()}
    finally:
        peer.terminate()
        peer.wait(10)


@pytest.mark.parametrize("name", RUNS)
def test_uclient_relays_without_loss(outputs: dict[str, str], name: str) -> None:
    assert_lossless(outputs[name])


@pytest.fixture(scope="module")
def outputs_over_ipv6() -> dict[str, str]:
    """What each of IPV6_RUNS printed."""
    relays = (("127.0.0.1", "127.0.0.1"), ("::1", "::1"))
    options: dict[str, Any] = {"channel_range": "rfc5766", "unauthenticated_rate": 10**6}
    with TurnProcess(allow=(*LOOPBACK, "::1/128"), host="::1", relays=relays, **options) as turn:
        runs = {name: Run(turn, *run, server="::1") for name, run in IPV6_RUNS.items()}
        return {name: run.output() for name, run in runs.items()}


@pytest.mark.parametrize("name", IPV6_RUNS)
def test_uclient_relays_over_ipv6(outputs_over_ipv6: dict[str, str], name: str) -> None:
    """Rules E1, L2."""
    assert_lossless(outputs_over_ipv6[name])


def test_uclient_with_strict_channel_numbers_sends_indications() -> None:
    with TurnProcess(allow=LOOPBACK) as turn:
        assert_lossless(Run(turn, "-y", "-s", "-c").output())
    assert turn.counters["turn_packets_to_clients"] >= MESSAGES * CLIENTS


def test_a_wrong_password_is_401() -> None:
    with TurnProcess(allow=LOOPBACK) as turn:
        assert "Cannot complete Allocation" in Run(turn, "-y", "-c", password="wrong").output()
    assert turn.counters["turn_answered_401"] >= 2
    assert "turn_allocations_made" not in turn.counters


def test_a_forbidden_peer_is_403() -> None:
    with TurnProcess(channel_range="rfc5766") as turn:
        output = Run(turn, "-c", "-e", PEER_HOST).output()
    assert "error 403 (Forbidden)" in output
    assert turn.counters["turn_allocations_made"] >= 1
    assert turn.counters["turn_answered_403"] >= 1


def test_an_expired_nonce_is_438_and_the_client_goes_on() -> None:
    """Nonces age 600 times faster than time: each lasts a second, so later requests of uclient bring an old one."""
    with TurnProcess(allow=LOOPBACK, channel_range="rfc5766", clock_rate=600.0) as turn:
        assert_lossless(Run(turn, "-y", "-c").output())
    assert turn.counters["turn_answered_438"] >= CLIENTS


@pytest.mark.parametrize(("host", "relay"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1")], ids=["IPv4", "IPv6"])
def test_stunclient_learns_its_own_address(host: str, relay: str) -> None:
    """Rule S4: Binding without credentials."""
    with TurnProcess(host=host, relays=((relay, relay),)) as turn:
        command = ["turnutils_stunclient", "-p", str(turn.port), "-L", host, host]
        printed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert re.search(rf"reflexive addr: \[?{re.escape(host)}\]?:\d+", printed), printed


class Collector(asyncio.DatagramProtocol):
    """Keeps what arrives."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait((data, addr))


async def relay_with_aioice(port: int, password: str, **options: Any) -> tuple[bytes, bytes]:
    """Send through the server to a peer and back."""
    loop = asyncio.get_running_loop()
    peer_transport, peer = await loop.create_datagram_endpoint(Collector, local_addr=(PEER_HOST, 0))
    client_transport, client = await aioice.turn.create_turn_endpoint(
        Collector, server_addr=("127.0.0.1", port), username=USER, password=password, **options
    )
    try:
        client_transport.sendto(b"there", peer_transport.get_extra_info("sockname"))
        there, relayed = await asyncio.wait_for(peer.received.get(), PATIENCE_SECONDS)
        peer_transport.sendto(b"and back", relayed)
        back, _ = await asyncio.wait_for(client.received.get(), PATIENCE_SECONDS)
    finally:
        client_transport.close()
        peer_transport.close()
        await asyncio.sleep(0)
    return there, back


def test_aioice_relays_with_strict_channel_numbers() -> None:
    with TurnProcess(allow=LOOPBACK) as turn:
        assert asyncio.run(relay_with_aioice(turn.port, PASSWORD)) == (b"there", b"and back")


def test_aioice_relays_over_tcp_and_tls() -> None:
    with TurnProcess(allow=LOOPBACK) as turn:
        unverified = ssl.create_default_context()
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        for port, secure in ((turn.port, False), (turn.tls_port, unverified)):
            assert asyncio.run(relay_with_aioice(port, PASSWORD, transport="tcp", ssl=secure)) == (
                b"there",
                b"and back",
            )


def test_aioice_is_refused_with_a_wrong_password() -> None:
    with TurnProcess(allow=LOOPBACK) as turn, pytest.raises(aioice.stun.TransactionFailed, match="401"):
        asyncio.run(relay_with_aioice(turn.port, "wrong"))
