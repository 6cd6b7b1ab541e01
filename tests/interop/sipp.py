"""sipp as a desk phone over UDP: one scenario file, one call."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.interop.kamailio import PASSWORD
from tests.interop.process import Process, free_port, wait_for

SCENARIOS = Path(__file__).parent / "sipp"


class Sipp:
    """One run of `scenario` (a name in sipp/, or a file) for one call, as `user` of `domain`, towards `server`.

    `called` is the user that a uac scenario calls; a uas scenario listens on `port`. `hold_seconds` is how long
    an answered call lasts before sipp ends it.
    """

    def __init__(
        self,
        scenario: str | Path,
        server: str,
        directory: Path,
        *,
        user: str = "phone",
        called: str = "alice",
        domain: str = "example.test",
        port: int | None = None,
        keys: dict[str, str] | None = None,
        seconds: int = 40,
        hold_seconds: float = 0.3,
    ) -> None:
        self.port = port or free_port()
        file = scenario if isinstance(scenario, Path) else SCENARIOS / f"{scenario}.xml"
        self.scenario, self.user = file.stem, user
        name = f"{file.stem}-{self.port}"
        directory.mkdir(parents=True, exist_ok=True)
        self.messages = directory / f"{name}.messages"
        words = {"user": user, "domain": domain, "contact_port": str(self.port), **(keys or {})}
        command = ["sipp", "-sf", str(file), "-i", "127.0.0.1", "-p", str(self.port)]
        command += ["-m", "1", "-s", called, "-d", str(int(hold_seconds * 1000)), "-au", user, "-ap", PASSWORD]
        command += ["-nostdin", "-timeout", str(seconds), "-timeout_error", "-trace_msg"]
        command += ["-message_file", str(self.messages), "-trace_err", "-error_file", str(directory / f"{name}.errors")]
        for key, value in words.items():
            command += ["-key", key, value]
        self.process = Process([*command, server], directory / f"{name}.log")
        if self.scenario.startswith("uas"):
            self.process.ready(self._bound)

    def _bound(self) -> bool:
        entry = f"0100007F:{self.port:04X}"
        return any(entry == line.split()[1] for line in Path("/proc/net/udp").read_text().splitlines()[1:])

    def done(self, seconds: float = 20.0) -> None:
        """Wait until the call was carried out as written; fails with the messages of the run when it was not."""
        try:
            status = self.process.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        self.process.stop()
        assert status == 0, f"sipp {self.scenario} ended with {status}\n{self.trace}\n{self.process.output[-1500:]}"

    @property
    def trace(self) -> str:
        """Every message sent and received."""
        return self.messages.read_text("utf-8", "replace") if self.messages.exists() else ""

    def count(self, direction: str, start: str) -> int:
        """How many messages that begin with `start` were `sent` or `received`."""
        pattern = rf"UDP message {direction} (?:\[\d+\] bytes ?:|\(\d+ bytes\):)\s+{re.escape(start)}"
        return len(re.findall(pattern, self.trace))

    def wait_for(self, direction: str, start: str, seconds: float = 10.0) -> None:
        """Wait until a message that begins with `start` was `sent` or `received`."""
        wait_for(lambda: self.count(direction, start), f"sipp {self.scenario}: {start} {direction}", seconds)

    def stop(self) -> None:
        """End it, done or not."""
        self.process.stop()


def register(server: str, directory: Path, port: int, user: str = "phone", domain: str = "example.test") -> None:
    """Register `user` with the Contact 127.0.0.1:`port` at `server` by digest."""
    Sipp("register", server, directory, user=user, domain=domain, keys={"contact_port": str(port)}).done()
