"""A TURN server as a process of its own: the pure server, the relay engine and nothing else of wsgate.

Run as a script it reads its settings as JSON from the command line, prints the port it listens on, and on SIGTERM
prints its counters. As a module it starts and stops that.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REALM = "wsgate.test"
USER, PASSWORD = "alice", "correct horse"
SECRET = "a shared secret"
RELAYS = (("127.0.0.1", "127.0.0.1"),)
ROOT = Path(__file__).parents[1]


class TurnProcess:
    """`with TurnProcess(...) as turn:` runs a server on 127.0.0.1; `turn.port`, and `turn.counters` afterwards.

    Keyword arguments are options of [turn]; `allow` are CIDRs as in allow_peers; with `clock_rate` the clock of nonces
    and expiry times runs so many times faster; `cpu` is the only one it may use.
    """

    def __init__(self, *, allow: tuple[str, ...] = (), clock_rate: float = 1.0, cpu: int | None = None, **options: Any):
        self._spec = {"allow": allow, "clock_rate": clock_rate, "options": options}
        self._cpu = cpu
        self.counters: dict[str, int] = {}

    def __enter__(self) -> TurnProcess:
        command = [sys.executable, "-m", "tests.turn_process", json.dumps(self._spec)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        if self._cpu is not None:
            os.sched_setaffinity(self.process.pid, {self._cpu})
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=10)
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


def make_server(
    allow: tuple[str, ...], clock_rate: float, options: dict[str, Any], relays: tuple[tuple[str, str], ...] = RELAYS
) -> Any:
    """A TurnServer that relays on `relays` (bound host, public host) for USER and for whoever has SECRET."""
    from wsgate.metrics import Counters
    from wsgate.turn.allocation import RelayAddress
    from wsgate.turn.auth import Credentials, UserKeys, long_term_key
    from wsgate.turn.peers import Peers
    from wsgate.turn.server import ChannelRange, TurnServer, TurnSettings
    from wsgate.turn.stun import PasswordAlgorithm

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

    from wsgate.net.relay import Relay

    spec = json.loads(sys.argv[1])
    settings, server = make_server(tuple(spec["allow"]), spec["clock_rate"], spec["options"])
    sock = listening_socket()
    relay = Relay(server, [sock], tick=settings.relay_tick)
    relay.start()
    stopped = Event()
    gevent.signal_handler(signal.SIGTERM, stopped.set)
    print(sock.getsockname()[1], flush=True)
    stopped.wait()
    relay.stop()
    sock.close()
    print(json.dumps(server.counters.values))


if __name__ == "__main__":
    main()
