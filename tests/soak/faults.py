"""What an administrator and a bad day do to the processes: workers that are killed, SIGHUP, SIGUSR1, wrong settings."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable

import gevent
import psutil

from tests.interop.daemon import READY, Daemon

WORD_SECONDS = 60.0
"""How long the log may take to say what came of it: a worker that dies young waits up to half a minute."""
UNANSWERED_SECONDS = 75.0
"""After a worker was killed something may stay unanswered so long: timers B, F, and the patience of users."""
REFUSED, RELOADED = "reload refused", " reloaded "
EXPECTED_ERRORS = re.compile(r"worker \d+ (ended with signal 9; starting another in|does not listen)|reload refused")
MISTAKES = (
    "\n[wsgate]\nworkers = many\n",
    "\n[limits]\nnonsense = 1\n",
    "\n[listener x]\nbind = 127.0.0.1:1\ntls = perhaps\n",
)
"""Put behind good settings."""


class Faults:
    """One of them after the other; `wrong` gets what does not heal."""

    def __init__(self, daemon: Daemon, done: Counter[str], wrong: list[str]) -> None:
        self._daemon, self._done, self._wrong = daemon, done, wrong
        self._chance = random.Random(daemon.workers)
        self._killed_at = float("-inf")
        self._settings = daemon.ini.read_text()

    def run(self, end: float) -> None:
        """Until then."""
        doings = [self._kill, self._reload, self._reload_wrong, self._kill_in_a_reload, self._reopen]
        while True:
            gevent.sleep(0.5 + self._chance.random())
            if time.monotonic() > end:
                return
            self._chance.choice(doings)()

    def excuses(self, error: Exception) -> bool:
        """True for what went with a worker: a datagram, an answer, the registration behind credentials."""
        return time.monotonic() - self._killed_at < UNANSWERED_SECONDS and bool(
            re.match("no answer to|a relayed packet or an answer is lost|an allocation was refused .*401", str(error))
        )

    def wait_for_all(self) -> None:
        """Until every worker that was killed is there again."""
        self._await(self._all_serve, "a worker that was killed did not come back")

    def _all_serve(self) -> bool:
        log = self._daemon.log
        workers = psutil.Process(self._daemon.pid).children()
        return len(workers) == self._daemon.workers and all(f"worker {one.pid}{READY}" in log for one in workers)

    def _await(self, holds: Callable[[], bool], otherwise: str) -> None:
        end = time.monotonic() + WORD_SECONDS
        while not holds():
            if time.monotonic() > end:
                self._wrong.append(otherwise)
                return
            gevent.sleep(0.1)

    def _say(self, number: signal.Signals) -> None:
        os.kill(self._daemon.pid, number)

    def _kill(self) -> None:
        # Not the process that reads new settings: that a reload is refused then is as it should be.
        log = self._daemon.log
        workers = [one for one in psutil.Process(self._daemon.pid).children() if f"worker {one.pid}{READY}" in log]
        if workers:
            self._chance.choice(workers).kill()
            self._killed_at = time.monotonic()
            self._done["killed"] += 1
            gevent.sleep(self._chance.random() * 3)

    def _reload(self) -> None:
        before = self._daemon.log.count(RELOADED)
        for _ in range(self._chance.choice((1, 5, 50))):
            self._say(signal.SIGHUP)
            gevent.sleep(self._chance.random() * 0.01)
        self._await(lambda: self._daemon.log.count(RELOADED) > before, "SIGHUP had no answer")
        self._done["reloaded"] += 1

    def _reload_wrong(self) -> None:
        before = self._daemon.log.count(REFUSED)
        self._daemon.ini.write_text(self._settings + self._chance.choice(MISTAKES))
        self._say(signal.SIGHUP)
        self._await(lambda: self._daemon.log.count(REFUSED) > before, "wrong settings were not refused")
        self._daemon.ini.write_text(self._settings)
        self._done["refused"] += 1

    def _kill_in_a_reload(self) -> None:
        before = self._daemon.log.count(RELOADED)
        self._say(signal.SIGHUP)
        gevent.sleep(self._chance.random() * 0.05)
        self._kill()
        self._await(
            lambda: self._daemon.log.count(RELOADED) > before, "a reload was lost with a worker that was killed"
        )

    def _reopen(self) -> None:
        self._say(signal.SIGUSR1)
        self._done["reopened"] += 1
