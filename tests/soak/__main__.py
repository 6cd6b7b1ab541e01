"""`scripts/soak`: browsers, strangers and a SIP server that restarts, in rounds; after each everything must be gone.

The first round warms up. After each the users stop, and every table has to become empty, every descriptor to come back;
memory may not grow from the second round to the last. Ends with a verdict; exit 1 when something grew or failed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import psutil

from tests.bench.sip_load import Backend
from tests.interop.daemon import ROOT, Daemon
from tests.interop.process import free_port, wait_for
from tests.interop.registration import EMBEDDED, write_users
from tests.soak.browsers import ALLOCATION_SECONDS, FAR_DOMAIN, User, Wrong
from tests.soak.strangers import Stranger

ROUNDS = 4
USERS = 20
STRANGERS = 4
MEMORY_ALLOWED_KIB = 4096
"""Growth of the worker's PSS from the end of the second round to that of the last."""
MORE_ALLOWED = 2
"""The same of greenlets, descriptors and threads."""
LINES_ALLOWED, LINES_PER_MINUTE_ALLOWED = 60, 60
"""Of the log: whatever strangers do, they write no book."""
QUIET_SECONDS = 60.0
"""Until the tables are empty: timers B and F, expired registrations and allocations, `reconnect_grace`."""
OUTAGE_SECONDS = 2.0
TABLES = ("flows", "registrations", "bindings", "dialogs", "allocations", "transactions")
SLOW_TABLES = ("transactions",)
"""Over UDP they last half a minute (RFC 3261 §17, timers J, L, M): waited for behind the last round alone."""

TEXT = """
[backend {far}]
target = sip:127.0.0.1:{backend};transport=udp
transports = udp
{embedded}min_expires = 1
[limits]
connections_per_address = 100000
upgrades_per_second = 10000
messages_per_second = 10000
"""
TURN = """
realm = example.test
udp = 127.0.0.1:{turn}
tcp =
relay_address = 127.0.0.1
allow_peers = 127.0.0.0/8
min_lifetime = {lifetime}
unauthenticated_rate = 1000000
"""


INSIDE = Path(__file__).with_name("inside")
"""What the daemon imports at its start, so that it tells what only it can know."""


class Sample(NamedTuple):
    """The worker at rest."""

    pss_kib: int
    greenlets: int
    descriptors: int
    threads: int


class Desk:
    """The SIP server behind: answers everything, goes away and comes back at the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.is_down = False
        self._backend = Backend(self.port)

    def restart(self) -> None:
        """Away for OUTAGE_SECONDS."""
        self.is_down = True
        self._backend.close()
        gevent.sleep(OUTAGE_SECONDS)
        self._backend = Backend(self.port)
        self.is_down = False

    def close(self) -> None:
        """For good."""
        self._backend.close()


class Soak:
    """One daemon and everybody around it."""

    def __init__(self, directory: Path) -> None:
        self.done: Counter[str] = Counter()
        self._directory = directory
        self._began = time.monotonic()
        self.wrong: list[str] = []
        self.peaks: Counter[str] = Counter()
        names = [f"u{number}" for number in range(USERS)]
        write_users(directory, *names)
        self._desk, turn = Desk(), free_port()
        text = TEXT.format(far=FAR_DOMAIN, backend=self._desk.port, embedded=EMBEDDED)
        self.daemon = Daemon(
            directory,
            text,
            sip_options="reconnect_grace = 1\norphan_grace = 1",
            turn=TURN.format(turn=turn, lifetime=ALLOCATION_SECONDS),
            log_level="info",
            environment={"PYTHONPATH": f"{INSIDE}:{ROOT}", "WSGATE_SOAK_DIRECTORY": str(directory)},
        )
        (self._worker,) = psutil.Process(self.daemon.pid).children()
        places = self.daemon.address, (self.daemon.sip_host, self.daemon.sip), ("127.0.0.1", turn)
        self._names = names
        self._users = [User(name, places[0], places[2], self.done) for name in names]
        self._strangers = [Stranger(number, *places, self.done) for number in range(STRANGERS)]

    def round(self, seconds: float) -> None:
        """Everybody is there for so long; the SIP server restarts when half of it is over, if there is time."""
        end = time.monotonic() + seconds
        everybody = [gevent.spawn(self._live, one, end) for one in (*self._users, *self._strangers)]
        if seconds > 4 * OUTAGE_SECONDS:
            everybody.append(gevent.spawn_later(seconds / 2, self._desk.restart))
        while time.monotonic() < end:
            gevent.sleep(min(1.0, seconds / 3))
            status = self._status()
            for table in (*TABLES, "connections", "descriptors"):
                self.peaks[table] = max(self.peaks[table], status[table])
        gevent.joinall(everybody, timeout=QUIET_SECONDS)
        if not all(one.dead for one in everybody):
            self.wrong.append("some never came to an end")

    def _live(self, one: Any, end: float) -> None:
        while time.monotonic() < end:
            try:
                one.live(self._names)
            except Wrong as error:
                self.wrong.append(str(error))
                gevent.sleep(1)

    def _status(self) -> dict[str, Any]:
        """/status with tables as their sizes; asked in a thread, so that everybody goes on."""
        found = gevent.get_hub().threadpool.apply(self.daemon.status)
        return {name: len(value) if isinstance(value, list) else value for name, value in found.items()}

    def settle(self, *, is_thorough: bool) -> Sample:
        """Wait until nothing is left, and measure."""
        tables = [table for table in TABLES if is_thorough or table not in SLOW_TABLES]
        deadline = time.monotonic() + QUIET_SECONDS
        while any((status := self._status())[table] for table in tables) and time.monotonic() < deadline:
            gevent.sleep(0.2)
        left = {table: status[table] for table in tables if status[table]}
        if left:
            self.wrong.append(f"left behind after {QUIET_SECONDS:.0f} s: {left}")
        pss = self._worker.memory_full_info().pss // 1024
        return Sample(pss, self._greenlets(), self._worker.num_fds(), self._worker.num_threads())

    def _greenlets(self) -> int:
        """How many are alive in the worker."""
        file = self._directory / f"{self._worker.pid}.greenlets"
        file.unlink(missing_ok=True)
        self._worker.send_signal(signal.SIGUSR2)
        return int(wait_for(lambda: file.exists() and file.read_text(), "the number of greenlets"))

    def judge(self, samples: list[Sample]) -> None:
        """What grew, what nobody managed to do, what the log complains of."""
        first, last = samples[min(1, len(samples) - 1)], samples[-1]
        if last.pss_kib - first.pss_kib > MEMORY_ALLOWED_KIB:
            self.wrong.append(f"memory grew from {first.pss_kib} to {last.pss_kib} KiB")
        for name in ("greenlets", "descriptors", "threads"):
            before, after = getattr(first, name), getattr(last, name)
            if after - before > MORE_ALLOWED:
                self.wrong.append(f"{name} grew from {before} to {after}")
        for what in ("registered", "calls", "messages", "relayed", "strangers"):
            if not self.done[what]:
                self.wrong.append(f"nothing was done: {what}")
        # A call has a line, as it should; the others are judged.
        log = [line for line in self.daemon.log.splitlines() if " INFO call " not in line]
        if len(log) > LINES_ALLOWED + LINES_PER_MINUTE_ALLOWED * (time.monotonic() - self._began) / 60:
            self.wrong.append(f"{len(log)} lines of log, such as {log[-1]}")
        counters = self._status()["counters"]
        if counters.get("internal_errors"):
            self.wrong.append(f"{counters['internal_errors']} internal errors")
        self.wrong += [f"log: {line}" for line in log if " ERROR " in line or "Traceback" in line]

    def close(self) -> None:
        """End the daemon; a bad end is wrong too."""
        try:
            self.daemon.stop()
        except AssertionError as error:
            self.wrong.append(str(error)[:2000])
        self._desk.close()


def soak(seconds: float, directory: Path, rounds: int = ROUNDS, *, is_thorough: bool = True) -> list[str]:
    """So many rounds of `seconds` together; returns all that was wrong. `is_thorough`: SLOW_TABLES are waited for."""
    one = Soak(directory)
    try:
        samples = []
        for number in range(rounds):
            one.round(seconds / rounds)
            samples.append(one.settle(is_thorough=is_thorough and number == rounds - 1))
            print(f"round {number + 1}: {samples[-1]}, {dict(sorted(one.done.items()))}", flush=True)
        one.judge(samples)
    finally:
        one.close()
    print(f"at most: {dict(sorted(one.peaks.items()))}; {len(one.daemon.log.splitlines())} lines of log")
    return one.wrong


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser.add_argument("--minutes", type=float, default=10.0, help="of load, in all rounds together")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wsgate-soak-") as directory:
        wrong = soak(60 * options.minutes, Path(directory))
    for text, times in Counter(wrong).most_common(20):
        print(f"WRONG, {times} times: {text}")
    print("wsgate grew or failed" if wrong else "nothing grew, nothing failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
