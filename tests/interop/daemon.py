"""The daemon under test: started from ini text, waited for, ended by SIGTERM, its log read."""

from __future__ import annotations

import json
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.interop.process import PATIENCE_SECONDS, Process, free_port, wait_for

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
[wsgate]
user = {user}
group =
log_level = {log_level}
key_file = {directory}/wsgate.key
drain_timeout = 1
workers = {workers}

[listener plain]
bind = 127.0.0.1:{http}
tls = off
turn = off
{listener}

[sip]
bind = {sip_host}:{sip}
{sip_options}

[turn]
{turn}
"""


READY = " is ready"
"""What the log says of each worker that serves. Before that the supervisor's sockets take what comes: no sign of it."""


class Daemon:
    """`python -m wsgate -c INI`, with a plain listener on `http` and the SIP side on `sip_host`:`sip`.

    `listener`, `sip_options` and `turn` are the lines of those sections, `text` further sections, e.g. [backend ...].
    """

    def __init__(
        self,
        directory: Path,
        text: str,
        *,
        listener: str = "",
        sip_options: str = "",
        sip_host: str = "127.0.0.1",
        user: str = "",
        turn: str = "enabled = off",
        workers: int = 1,
        log_level: str = "debug",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.http, self.sip, self.sip_host = free_port(), free_port(sip_host, workers), sip_host
        self.workers = workers
        self._environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environment or {})}
        self.ini = directory / "wsgate.ini"
        head = HEAD.format(
            directory=directory,
            user=user,
            http=self.http,
            sip=self.sip,
            sip_host=sip_host,
            listener=textwrap.dedent(listener),
            sip_options=textwrap.dedent(sip_options),
            turn=textwrap.dedent(turn),
            workers=workers,
            log_level=log_level,
        )
        self.ini.write_text(head + textwrap.dedent(text))
        self.start()

    def start(self) -> None:
        """Run the daemon with its ini file; once it was stopped, again on the same ports."""
        log = self.ini.parent / "wsgate.log"
        before = log.read_text("utf-8", "replace").count(READY) if log.exists() else 0
        self._process = Process([sys.executable, "-m", "wsgate", "-c", self.ini], log, env=self._environment)
        with ExitStack() as stack:
            stack.callback(self._process.stop)
            self._process.ready(lambda: self._healthy() and self.log.count(READY) >= before + self.workers)
            stack.pop_all()

    @property
    def running(self) -> bool:
        """True until it has ended."""
        return self._process.running

    @property
    def url(self) -> str:
        """Where a browser connects."""
        return f"ws://127.0.0.1:{self.http}/ws"

    @property
    def address(self) -> tuple[str, int]:
        """The plain listener."""
        return ("127.0.0.1", self.http)

    @property
    def pid(self) -> int:
        """The process that was started: the supervisor."""
        return self._process.popen.pid

    @property
    def log(self) -> str:
        """What the daemon wrote."""
        return self._process.output

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/healthz", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def status(self) -> dict[str, Any]:
        """/status as a dictionary."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/status", timeout=PATIENCE_SECONDS) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def statuses(self) -> list[dict[str, Any]]:
        """/status of every worker, by number: asked until each has answered."""
        found: dict[int, dict[str, Any]] = {}
        while len(found) < self.workers:
            status = self.status()
            found[status["worker"]] = status
        return [found[number] for number in sorted(found)]

    def wait_status(self, key: str, value: object, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until /status says `value` for `key`."""
        wait_for(lambda: self.status()[key] == value, f"{key} == {value} in /status", seconds)

    def stop(self) -> None:
        """SIGTERM; asserts a clean end and a log without a traceback."""
        was_running = self._process.running
        status = self._process.stop()
        log = self.log
        assert was_running, f"wsgate had ended with {status}:\n{log[-6000:]}"
        assert status == 0, f"wsgate ended with {status}:\n{log[-6000:]}"
        assert "Traceback" not in log, log[-10000:]
