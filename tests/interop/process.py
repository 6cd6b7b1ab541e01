"""Programs that tests start: output kept, readiness waited for, an end that leaves nothing behind."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PATIENCE_SECONDS = 30.0
"""How long a test waits for what must come and has no time of its own: a slow, busy machine is no fault."""


class TestTimeout(AssertionError):
    """What was waited for did not come."""

    __test__ = False


def wait_for(condition: Callable[[], T], what: str, seconds: float = PATIENCE_SECONDS, interval: float = 0.02) -> T:
    """Poll `condition` until it is true and return its value. Raises TestTimeout naming `what`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TestTimeout(f"waited {seconds} s in vain for {what}")
        time.sleep(interval)


class Ports:
    """Ports that this process alone picks, for as long as it lives: several that run tests side by side share them out.

    What was picked is bound later by a program, freed when that is restarted, or stays closed because the test says so;
    meanwhile nobody else may take it. They lie below the range that the kernel hands out itself.
    """

    FIRST, SHARES, PER_SHARE = 10000, 50, 400

    def __init__(self) -> None:
        self._mark = socket.socket(socket.AF_UNIX)
        self._next = 0
        start = int.from_bytes(os.urandom(2), "big")
        for number in range(start, start + self.SHARES):
            share = number % self.SHARES
            try:
                # An abstract name belongs to a network namespace, as ports do, and goes with the process.
                self._mark.bind(f"\0wsgate-tests-ports-{share}")
            except OSError:
                continue
            self._first = self.FIRST + share * self.PER_SHARE
            return
        raise RuntimeError(f"more than {self.SHARES} processes that run tests")

    def take(self, host: str, count: int) -> int:
        """The first of `count` ports in a row that are free; none is given twice before all were."""
        for _ in range(self.PER_SHARE):
            if self._next + count > self.PER_SHARE:
                self._next = 0
            port = self._first + self._next
            self._next += count
            if all(_is_free(host, port + number) for number in range(count)):
                return port
        raise RuntimeError("no free port")


@functools.cache
def _ports() -> Ports:
    return Ports()


def free_port(host: str = "127.0.0.1", count: int = 1) -> int:
    """The first of `count` ports that are free for UDP and TCP on `host`, and stay so for this process (see Ports)."""
    return _ports().take(host, count)


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
        try:
            udp.bind((host, port))
            tcp.bind((host, port))
        except OSError:
            return False
    return True


def udp_is_bound(host: str, port: int) -> bool:
    """True when a program has a UDP socket at `host`:`port`."""
    entry = "".join(f"{int(part):02X}" for part in reversed(host.split("."))) + f":{port:04X}"
    return any(entry == line.split()[1] for line in Path("/proc/net/udp").read_text().splitlines()[1:])


def accepts(host: str, port: int) -> bool:
    """True when a TCP connection to `host`:`port` opens."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


class Process:
    """One program in a session of its own; stdout and stderr are kept in `log`, a file."""

    def __init__(self, command: Sequence[str | Path], log: Path, env: dict[str, str] | None = None) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(env or {})},
                cwd=log.parent,
            )

    @property
    def output(self) -> str:
        """What the program wrote so far."""
        return self.log.read_text("utf-8", "replace")

    @property
    def running(self) -> bool:
        """True until the program has ended."""
        return self.popen.poll() is None

    def ready(self, condition: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
        """Wait until `condition` holds; fails at once when the program ends before."""

        def check() -> T:
            if not self.running:
                raise AssertionError(f"{self.command[0]} ended with {self.popen.returncode}:\n{self.output[-4000:]}")
            return condition()

        try:
            return wait_for(check, f"{self.command[0]} to be ready", seconds)
        except TestTimeout as error:
            raise TestTimeout(f"{error}:\n{self.output[-4000:]}") from None

    def stop(self, seconds: float = PATIENCE_SECONDS) -> int:
        """SIGTERM, and SIGKILL for the whole group where that does not do. Returns the exit status."""
        if self.running:
            self.popen.send_signal(signal.SIGTERM)
        try:
            status = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()
        if self.popen.stdin is not None:
            self.popen.stdin.close()
        return status


class LineReader:
    """The lines of a stream, gathered by a thread; `wait` finds the first that pleases, each line once."""

    def __init__(self, stream: Sequence[str]) -> None:
        self.lines: list[str] = []
        self.ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: Sequence[str]) -> None:
        for line in stream:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def wait(self, start: int, pleases: Callable[[str], bool], seconds: float) -> int | None:
        """The index of the first line from `start` on that pleases; None when time or the stream ends before."""
        deadline = time.monotonic() + seconds
        with self._changed:
            index = start
            while True:
                while index < len(self.lines):
                    if pleases(self.lines[index]):
                        return index
                    index += 1
                left = deadline - time.monotonic()
                if left <= 0 or self.ended:
                    return None
                self._changed.wait(left)
