"""A TURN server as a process of its own: the pure server, the relay engine and nothing else of wsgate.

Run as a script it reads its settings as JSON from the command line, prints the ports it listens on, and on SIGTERM
prints its counters. It listens for UDP (with DTLS) and TCP on one port and for TLS on another. As a module it starts
and stops that.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REALM = "wsgate.test"
USER, PASSWORD = "alice", "correct horse"
SECRET = "a shared secret"
RELAYS = (("127.0.0.1", "127.0.0.1"),)
ROOT = Path(__file__).parents[1]


class TurnProcess:
    """`with TurnProcess(...) as turn:` serves on `host`: `turn.port`, `turn.tls_port`, and `turn.counters` afterwards.

    Keyword arguments are options of [turn]; `allow` are CIDRs as in allow_peers; with `clock_rate` the clock of nonces
    and expiry times runs so many times faster; `cpu` is the only one it may use.
    """

    def __init__(
        self,
        *,
        allow: tuple[str, ...] = (),
        clock_rate: float = 1.0,
        cpu: int | None = None,
        host: str = "127.0.0.1",
        relays: tuple[tuple[str, str], ...] = RELAYS,
        **options: Any,
    ):
        self._spec = {"allow": allow, "clock_rate": clock_rate, "options": options, "host": host, "relays": relays}
        self._cpu = cpu
        self.counters: dict[str, int] = {}

    def __enter__(self) -> TurnProcess:
        command = [sys.executable, "-m", "tests.turn_process", json.dumps(self._spec)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port, self.tls_port = map(int, self.process.stdout.readline().split())
        if self._cpu is not None:
            os.sched_setaffinity(self.process.pid, {self._cpu})
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            output, _ = self.process.communicate(timeout=30)
        finally:
            self.process.kill()
        self.counters = json.loads(output or "{}")

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system time of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        tick = os.sysconf("SC_CLK_TCK")
        return int(fields[11]) / tick, int(fields[12]) / tick


def listening_socket(host: str = "127.0.0.1") -> socket.socket:
    """A UDP socket on a free port, as the supervisor would hand it in."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    return sock


def listening_sockets(host: str) -> tuple[socket.socket, socket.socket, socket.socket]:
    """UDP and TCP on one free port, and TCP on another."""
    while True:
        udp = listening_socket(host)
        family = udp.family
        try:
            tcp = socket.create_server(udp.getsockname()[:2], family=family)
        except OSError:
            udp.close()
        else:
            return udp, tcp, socket.create_server((host, 0), family=family)


def write_certificate(directory: Path) -> tuple[str, str]:
    """A self-signed certificate and its key as files."""
    from wsgate.certificate import self_signed

    made = self_signed(["localhost", "127.0.0.1", "::1"], datetime.datetime.now(datetime.timezone.utc))
    certificate, private_key = directory / "turn.pem", directory / "turn.key"
    certificate.write_bytes(made.certificate)
    private_key.write_bytes(made.private_key)
    return str(certificate), str(private_key)


def make_server(
    allow: tuple[str, ...], clock_rate: float, options: dict[str, Any], relays: tuple[tuple[str, str], ...] = RELAYS
) -> Any:
    """A TurnServer that relays on `relays` (bound host, public host) for USER and for whoever has SECRET."""
    from wsgate.metrics import Counters
    from wsgate.turn.auth import Credentials, UserKeys, long_term_key
    from wsgate.turn.effects import RelayAddress
    from wsgate.turn.peers import Peers
    from wsgate.turn.server import TurnServer
    from wsgate.turn.settings import ChannelRange, TurnSettings
    from wsgate.turn.values import PasswordAlgorithm

    if "channel_range" in options:
        options["channel_range"] = ChannelRange(options["channel_range"])
    if "relay_ports" in options:
        options["relay_ports"] = tuple(options["relay_ports"])
    settings = dataclasses.replace(TurnSettings(realm=REALM), **options)
    keys = UserKeys(*(long_term_key(USER, REALM, PASSWORD, algorithm) for algorithm in PasswordAlgorithm))
    began = time.time()
    return settings, TurnServer(
        settings,
        credentials=Credentials(REALM, {USER: keys}, [SECRET]),
        peers=Peers(
            own_hosts=[host for pair in relays for host in pair],
            relay_ports=settings.relay_ports,
            allow=tuple(ipaddress.ip_network(text) for text in allow),
        ),
        relay_addresses=[RelayAddress(*pair) for pair in relays],
        nonce_keys=[os.urandom(32)],
        unix_time=lambda: began + (time.time() - began) * clock_rate,
        random_bytes=os.urandom,
        counters=Counters(),
    )


def main() -> None:
    """Serve until SIGTERM."""
    import gevent
    from gevent.event import Event

    from wsgate.guard import Guard, LimitSettings
    from wsgate.net.dtls import Associations
    from wsgate.net.port import Port, PortSettings, Speech
    from wsgate.net.relay import Relay
    from wsgate.net.tls import ALPN_TURN, ServerContext
    from wsgate.net.turn_stream import TurnStreams
    from wsgate.settings import Switch

    spec = json.loads(sys.argv[1])
    relays = tuple(tuple(pair) for pair in spec["relays"])
    settings, server = make_server(tuple(spec["allow"]), spec["clock_rate"], spec["options"], relays)
    udp, tcp, tls = listening_sockets(spec["host"])
    guard = Guard(LimitSettings(connections_per_address=10000))
    relay = Relay(server, [udp], tick=settings.relay_tick)
    streams = TurnStreams(relay, guard, server.counters)
    with tempfile.TemporaryDirectory() as directory:
        files = write_certificate(Path(directory))
        context = ServerContext(*files, alpn_protocols=ALPN_TURN)
        dtls = Associations(relay, guard, server.counters, os.urandom, *files)
    relay.secured = dtls.receive
    rows = {Speech.STUN: streams.speak}
    ports = [
        Port("tcp", [tcp], PortSettings, None, guard, server.counters, rows),
        Port("tls", [tls], lambda: PortSettings(Switch.ON), context, guard, server.counters, rows),
    ]
    relay.start()
    for port in ports:
        port.start()
    stopped = Event()
    gevent.signal_handler(signal.SIGTERM, stopped.set)
    print(udp.getsockname()[1], tls.getsockname()[1], flush=True)
    stopped.wait()
    for port in ports:
        port.stop_accepting()
    streams.stop()
    dtls.stop()
    relay.stop()
    udp.close()
    print(json.dumps(server.counters.values))


if __name__ == "__main__":
    main()
