"""`scripts/soak`: browsers, strangers and a SIP server that restarts, in rounds; after each everything must be gone.

The first round warms up. After each the users stop, and every table has to become empty, every descriptor to come back;
memory may not grow from the second round to the last. Ends with a verdict; exit 1 when something grew or failed.
With --tls the users come by WSS and relay over TLS and DTLS too; with --faults workers are killed and settings are read
again all the while, some of them wrong.
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
from tests.certificates import Authority
from tests.interop.daemon import ROOT, Daemon
from tests.interop.process import free_port, wait_for
from tests.interop.registration import EMBEDDED, write_users
from tests.soak.browsers import FAR_DOMAIN, User, Wrong
from tests.soak.faults import EXPECTED_ERRORS, Faults
from tests.soak.places import Places, trusting
from tests.soak.relays import ALLOCATION_SECONDS, KINDS
from tests.soak.strangers import Stranger

ROUNDS = 4
USERS = 20
STRANGERS = 4
MEMORY_ALLOWED_KIB = 4096
"""Growth of a worker's PSS from the end of the second round to that of the last."""
MORE_ALLOWED = 2
"""The same of greenlets, descriptors and threads."""
LINES_ALLOWED, LINES_PER_MINUTE_ALLOWED = 60, 60
"""Of the log, for each worker: whatever strangers do, they write no book."""
QUIET_SECONDS = 60.0
"""Until the tables are empty: timers B and F, expired registrations and allocations, `reconnect_grace`."""
OUTAGE_SECONDS = 2.0
STATUS_SECONDS = 5.0
"""How long each worker is asked how it is; one that was killed does not say."""
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
TLS = """
certificate = {certfile}
private_key = {keyfile}
"""


INSIDE = Path(__file__).with_name("inside")
"""What the daemon imports at its start, so that it tells what only it can know."""


class Sample(NamedTuple):
    """All workers at rest, and the supervisor."""

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

    def __init__(self, directory: Path, workers: int = 1, *, tls: bool = False, faults: bool = False) -> None:
        self.done: Counter[str] = Counter()
        self._directory = directory
        self._began = time.monotonic()
        self.wrong: list[str] = []
        self.peaks: Counter[str] = Counter()
        names = [f"u{number}" for number in range(USERS)]
        write_users(directory, *names)
        self._desk, turn = Desk(), free_port()
        text = TEXT.format(far=FAR_DOMAIN, backend=self._desk.port, embedded=EMBEDDED)
        turn_text = TURN.format(turn=turn, lifetime=ALLOCATION_SECONDS)
        secure: dict[str, Any] = {}
        if tls:
            authority, (web, turn_tls) = Authority(directory), (free_port(), free_port())
            files = TLS.format(**authority.issue("127.0.0.1")._asdict())
            text += f"[listener secure]\nbind = 127.0.0.1:{web}\ntls = on\nturn = on\n{files}"
            turn_text += f"tls = 127.0.0.1:{turn_tls}\ndtls = on\n{files}"
            secure = {"turn_tls": ("127.0.0.1", turn_tls), "tls": trusting(authority.ca_file)}
        self.daemon = Daemon(
            directory,
            text,
            sip_options="reconnect_grace = 1\norphan_grace = 1",
            turn=turn_text,
            workers=workers,
            log_level="info",
            environment={"PYTHONPATH": f"{INSIDE}:{ROOT}", "WSGATE_SOAK_DIRECTORY": str(directory)},
        )
        address = ("127.0.0.1", web) if tls else self.daemon.address
        places = Places(address, (self.daemon.sip_host, self.daemon.sip), ("127.0.0.1", turn), **secure)
        self._kinds = KINDS if tls else KINDS[:1]
        self._faults = Faults(self.daemon, self.done, self.wrong) if faults else None
        self._names = names
        self._users = [User(name, places, self.done) for name in names]
        self._strangers = [Stranger(number, places, self.done) for number in range(STRANGERS)]

    def round(self, seconds: float) -> None:
        """Everybody is there for so long; the SIP server restarts when half of it is over, if there is time."""
        end = time.monotonic() + seconds
        everybody = [gevent.spawn(self._live, one, end) for one in (*self._users, *self._strangers)]
        if seconds > 4 * OUTAGE_SECONDS:
            everybody.append(gevent.spawn_later(seconds / 2, self._desk.restart))
        if self._faults is not None:
            everybody.append(gevent.spawn(self._faults.run, end))
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
                if self._faults is not None and self._faults.excuses(error):
                    self.done["lost with a worker"] += 1
                else:
                    self.wrong.append(f"{time.monotonic() - self._began:.1f} s: {error}")
                gevent.sleep(1)

    def _status(self) -> Counter[str]:
        """/status of all workers that serve, tables as their sizes, added up; asked in a thread: everybody goes on."""
        total: Counter[str] = Counter()
        for status in gevent.get_hub().threadpool.apply(self._statuses):
            numbers = {**status, **status["counters"]}
            for name, value in numbers.items():
                if isinstance(value, (list, int, float)):
                    total[name] += len(value) if isinstance(value, list) else int(value)
        return total

    def _statuses(self) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        end = time.monotonic() + STATUS_SECONDS
        while len(found) < self.daemon.workers and time.monotonic() < end:
            try:
                status = self.daemon.status()
            except OSError:  # its worker was killed
                time.sleep(0.05)
            else:
                found[status["worker"]] = status
        return list(found.values())

    def settle(self, *, is_thorough: bool) -> Sample:
        """Wait until nothing is left, and measure."""
        if self._faults is not None:
            self._faults.wait_for_all()
        tables = [table for table in TABLES if is_thorough or table not in SLOW_TABLES]
        deadline = time.monotonic() + QUIET_SECONDS
        while any((status := self._status())[table] for table in tables) and time.monotonic() < deadline:
            gevent.sleep(0.2)
        left = {table: status[table] for table in tables if status[table]}
        if left:
            self.wrong.append(f"left behind after {QUIET_SECONDS:.0f} s: {left}")
        supervisor = psutil.Process(self.daemon.pid)
        workers = supervisor.children()
        return Sample(
            sum(one.memory_full_info().pss for one in (supervisor, *workers)) // 1024,
            sum(map(self._greenlets, workers)),
            sum(one.num_fds() for one in (supervisor, *workers)),
            sum(one.num_threads() for one in (supervisor, *workers)),
        )

    def _greenlets(self, worker: psutil.Process) -> int:
        """How many are alive in the worker."""
        file = self._directory / f"{worker.pid}.greenlets"
        file.unlink(missing_ok=True)
        worker.send_signal(signal.SIGUSR2)
        return int(wait_for(lambda: file.exists() and file.read_text(), "the number of greenlets"))

    def judge(self, samples: list[Sample]) -> None:
        """What grew, what nobody managed to do, what the log complains of."""
        first, last = samples[min(1, len(samples) - 1)], samples[-1]
        # A worker that began anew has yet to warm up: then its memory says nothing.
        has_faults = self._faults is not None
        if not has_faults and last.pss_kib - first.pss_kib > MEMORY_ALLOWED_KIB * self.daemon.workers:
            self.wrong.append(f"memory grew from {first.pss_kib} to {last.pss_kib} KiB")
        for name in ("greenlets", "descriptors", "threads"):
            before, after = getattr(first, name), getattr(last, name)
            if after - before > MORE_ALLOWED * self.daemon.workers:
                self.wrong.append(f"{name} grew from {before} to {after}")
        relayed = [f"relayed over {kind}" for kind in self._kinds]
        for what in ("registered", "calls", "messages", "strangers", *relayed):
            if not self.done[what]:
                self.wrong.append(f"nothing was done: {what}")
        # A call has a line, as it should; the others are judged.
        log = [line for line in self.daemon.log.splitlines() if " INFO call " not in line]
        minutes = (time.monotonic() - self._began) / 60
        if len(log) > (LINES_ALLOWED + LINES_PER_MINUTE_ALLOWED * minutes) * self.daemon.workers:
            self.wrong.append(f"{len(log)} lines of log, such as {log[-1]}")
        if count := self._status()["internal_errors"]:
            self.wrong.append(f"{count} internal errors")
        errors = [line for line in log if " ERROR " in line or "Traceback" in line]
        if self._faults is not None:
            errors = [line for line in errors if not EXPECTED_ERRORS.search(line)]
        self.wrong += [f"log: {line}" for line in errors]

    def close(self) -> None:
        """End the daemon; a bad end is wrong too."""
        try:
            self.daemon.stop()
        except AssertionError as error:
            self.wrong.append(str(error)[:2000])
        self._desk.close()


def soak(one: Soak, seconds: float, rounds: int = ROUNDS, *, is_thorough: bool = True) -> list[str]:
    """So many rounds of `seconds` together; returns all that was wrong. `is_thorough`: SLOW_TABLES are waited for."""
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
    parser.add_argument("--workers", type=int, default=1, help="as [wsgate] workers")
    parser.add_argument("--tls", action="store_true", help="WSS, TURN over TLS and over DTLS")
    parser.add_argument("--faults", action="store_true", help="SIGKILL for workers, SIGHUP, SIGUSR1, wrong settings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wsgate-soak-") as directory:
        one = Soak(Path(directory), options.workers, tls=options.tls, faults=options.faults)
        wrong = soak(one, 60 * options.minutes)
    for text, times in Counter(wrong).most_common(20):
        print(f"WRONG, {times} times: {text}")
    print("wsgate grew or failed" if wrong else "nothing grew, nothing failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
