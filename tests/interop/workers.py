"""Several workers under test: which one has a connection, and connections to the one that is wanted."""

from __future__ import annotations

import psutil

from tests.interop.daemon import Daemon
from tests.interop.party import Party
from tests.interop.process import PATIENCE_SECONDS, wait_for
from tests.interop.raw import RawWebSocket
from tests.interop.registration import PASSWORD

TRIES = 200


def processes(daemon: Daemon) -> dict[int, psutil.Process]:
    """The workers by their numbers: each is known by its own port of the backend side."""
    found = {}
    for process in psutil.Process(daemon.pid).children():
        ports = {connection.laddr.port for connection in process.net_connections("udp")}
        for number in range(daemon.workers):
            if daemon.sip + number in ports:
                found[number] = process
    return found


def worker_of(daemon: Daemon, browser: RawWebSocket) -> int | None:
    """The worker that has accepted this connection."""
    for number, process in processes(daemon).items():
        if any(connection.raddr == browser.local for connection in process.net_connections("tcp")):
            return number
    return None


def browser_on(daemon: Daemon, worker: int) -> RawWebSocket:
    """A WebSocket that this worker has: the kernel spreads connections by their ports."""
    for _ in range(TRIES):
        browser = RawWebSocket(daemon.address)
        if worker_of(daemon, browser) == worker:
            return browser
        browser.close()
    raise AssertionError(f"no connection came to worker {worker}")


def party_on(daemon: Daemon, worker: int, user: str) -> Party:
    """A user whose browser is at this worker, registered."""
    party = Party(daemon.address, user, PASSWORD)
    move(daemon, party, worker)
    return party


def move(daemon: Daemon, party: Party, worker: int, parameters: str = "") -> None:
    """The party's connection is gone without a word; it comes back at this worker and registers."""
    party.ws.close()
    party.ws = browser_on(daemon, worker)
    party.register(parameters=parameters)


def wait_all(daemon: Daemon, key: str, values: list[int], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until /status of the workers says these values for `key`."""
    wait_for(lambda: [status[key] for status in daemon.statuses()] == values, f"{key} {values} at the workers", seconds)
