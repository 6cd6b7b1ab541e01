"""The TURN relay beside coturn: server CPU per relayed packet of 172 bytes, memory per allocation."""

from __future__ import annotations

import argparse
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.bench.servers import SERVER_CORE, stay_on_the_load_core
from tests.interop.process import free_port
from tests.loopback.turn_site import Phone
from tests.turn_process import PASSWORD, REALM, ROOT, USER, TurnProcess

PEER_HOST = "127.0.0.2"
PAYLOAD = bytes(172)
CHANNEL = 0x4000
BURST_SECONDS = 0.004


class Wsgate:
    """wsgate's relay as a process of its own."""

    name = "wsgate"

    def __init__(self, _directory: Path) -> None:
        self._turn = TurnProcess(
            allow=("127.0.0.0/8",), cpu=SERVER_CORE, user_quota=10000, unauthenticated_rate=10**8
        ).__enter__()
        self.port = self._turn.port
        self.process = psutil.Process(self._turn.process.pid)

    def stop(self) -> None:
        """End it."""
        self._turn.__exit__()


class Coturn:
    """coturn with one relay thread."""

    name = "coturn"

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        command = ["turnserver", "-n", "--no-cli", "--lt-cred-mech", "-u", f"{USER}:{PASSWORD}", "-r", REALM]
        command += ["--allow-loopback-peers", "-L", "127.0.0.1", "-p", str(self.port), "-m", "1", "--no-tls"]
        command += ["--no-dtls", "--no-tcp", "--log-file", str(directory / "coturn.log"), "--simple-log"]
        self._popen = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=directory)
        self.process = psutil.Process(self._popen.pid)
        self.process.cpu_affinity([SERVER_CORE])

    def stop(self) -> None:
        """End it."""
        self._popen.terminate()
        self._popen.wait(10)


class Site:
    """What Phone asks of a server."""

    def __init__(self, port: int) -> None:
        self.listeners = [self]
        self.port = port

    def getsockname(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time."""
    times = process.cpu_times()
    return float(times.user + times.system)


def phones(port: int, count: int, peer: tuple[str, int]) -> list[Phone]:
    """Clients, each with an allocation and a channel to `peer`; the first waits for the server to be there."""
    found = []
    deadline = time.monotonic() + 10
    while len(found) < count:
        phone = Phone(Site(port))  # type: ignore[arg-type]
        phone.socket.settimeout(0.5 if not found else 5)
        try:
            phone.allocate()
        except TimeoutError:
            if time.monotonic() > deadline:
                raise
            phone.socket.close()
            continue
        phone.bind(CHANNEL, peer)
        found.append(phone)
    return found


def drain(sock: socket.socket, buffer: bytearray) -> int:
    """How many datagrams were there."""
    count = 0
    while True:
        try:
            sock.recv_into(buffer)
        except BlockingIOError:
            return count
        count += 1


def measure(
    kind: type[Wsgate | Coturn], directory: Path, allocations: int, rate: int, seconds: float
) -> dict[str, float]:
    """CPU per relayed packet (client to peer) in microseconds, its loss, and memory per allocation in KiB."""
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    peer.bind((PEER_HOST, 0))
    peer.setblocking(False)
    server = kind(directory)
    clients: list[Phone] = []
    try:
        clients += phones(server.port, 1, peer.getsockname())
        before = server.process.memory_full_info().pss
        clients += phones(server.port, allocations, peer.getsockname())
        memory = (server.process.memory_full_info().pss - before) / allocations / 1024
        packet = struct.pack("!HH", CHANNEL, len(PAYLOAD)) + PAYLOAD
        raw: list[Any] = [socket.socket(fileno=phone.socket.fileno()) for phone in clients]
        to, buffer, sent, got = ("127.0.0.1", server.port), bytearray(2048), 0, 0
        cpu, began = cpu_seconds(server.process), time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            for _ in range(int(elapsed * rate) - sent):
                raw[sent % len(raw)].sendto(packet, to)
                sent += 1
            got += drain(peer, buffer)
            time.sleep(BURST_SECONDS)
        time.sleep(0.2)
        got += drain(peer, buffer)
        cpu = cpu_seconds(server.process) - cpu
        for sock in raw:
            sock.detach()
        return {
            "us per packet": cpu / got * 1e6,
            "lost %": 100 * (sent - got) / sent,
            "KiB per allocation": memory,
            "packets/s": got / elapsed,
        }
    finally:
        for phone in clients:
            phone.socket.close()
        server.stop()
        peer.close()


def main() -> None:
    """In turn, several times; the run with the least CPU counts, for noise only adds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--allocations", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--rate", type=int, default=40000, help="packets per second offered")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    stay_on_the_load_core()
    sys.path.insert(0, str(ROOT))
    for allocations in options.allocations:
        best: dict[str, dict[str, float]] = {}
        for _ in range(options.runs):
            for kind in (Wsgate, Coturn):
                with tempfile.TemporaryDirectory(prefix="wsgate-bench") as name:
                    found = measure(kind, Path(name), allocations, options.rate, options.seconds)
                if kind.name not in best or found["us per packet"] < best[kind.name]["us per packet"]:
                    best[kind.name] = found
        print(f"{allocations} allocations, {options.rate} packets of {len(PAYLOAD)} bytes per second offered")
        print(f"{'':20} {'wsgate':>10} {'coturn':>10} {'ratio':>7}")
        for what, ours in best["wsgate"].items():
            theirs = best["coturn"][what]
            print(f"{what:20} {ours:10.1f} {theirs:10.1f} {ours / theirs if theirs else 0:7.2f}")


if __name__ == "__main__":
    main()
