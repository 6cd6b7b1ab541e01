"""sipp as a desk phone over UDP: one scenario file, one call."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.interop.kamailio import PASSWORD
from tests.interop.process import PATIENCE_SECONDS, Process, free_port, udp_is_bound, wait_for

SCENARIOS = Path(__file__).parent / "sipp"
RECEIVED, SENT = (
    rf"\nUDP message {direction} (?:\[\d+\] bytes ?:|\(\d+ bytes\):)\s+" for direction in ("received", "sent")
)
"""What stands above a message in the trace."""


class Sipp:
    """One run of `scenario` (a name in sipp/, or a file) for one call, as `user` of `domain`, towards `server`.

    `called` is the user that a uac scenario calls; a uas scenario listens on `port`. `hold_seconds` is how long
    an answered call lasts before sipp ends it.

    A message that the scenario does not expect fails `done`, unless it is an ACK, of which each repeated 200 brings one
    more, or comes again: a slow machine makes both.
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
        self.messages, self._errors = directory / f"{name}.messages", directory / f"{name}.errors"
        words = {"user": user, "domain": domain, "contact_port": str(self.port), **(keys or {})}
        command = ["sipp", "-sf", str(file), "-i", "127.0.0.1", "-p", str(self.port)]
        command += ["-m", "1", "-s", called, "-d", str(int(hold_seconds * 1000)), "-au", user, "-ap", PASSWORD]
        command += ["-nostdin", "-default_behaviors", "all,-abortunexp", "-timeout", str(seconds), "-timeout_error"]
        # As often as Timer E and Timer B let others repeat themselves; by itself sipp gives up after 5 times.
        command += ["-max_retrans", "11", "-trace_msg", "-message_file", str(self.messages)]
        command += ["-trace_err", "-error_file", str(self._errors)]
        for key, value in words.items():
            command += ["-key", key, value]
        self.process = Process([*command, server], directory / f"{name}.log")
        if self.scenario.startswith("uas"):
            self.process.ready(lambda: udp_is_bound("127.0.0.1", self.port))

    def done(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the call was carried out as written; fails with the messages of the run when it was not."""
        try:
            status = self.process.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        self.process.stop()
        assert status == 0, f"sipp {self.scenario} ended with {status}\n{self.trace}\n{self.process.output[-1500:]}"
        assert self._unexpected() == [], f"sipp {self.scenario} did not expect it\n{self.trace}"

    def _unexpected(self) -> list[str]:
        """The messages that the scenario has no place for, but ACKs and those that came before."""
        errors = self._errors.read_text("utf-8", "replace") if self._errors.exists() else ""
        found = re.findall(r"unexpected message for Call-Id .*?, received '(.*?)\n\n", errors, re.DOTALL)
        received = re.findall(rf"{RECEIVED}(.*?)\n\n", self.trace, re.DOTALL)
        return [message for message in found if not message.startswith("ACK ") and received.count(message) < 2]

    @property
    def trace(self) -> str:
        """Every message sent and received."""
        return self.messages.read_text("utf-8", "replace") if self.messages.exists() else ""

    def count(self, direction: str, start: str) -> int:
        """How many messages that begin with `start` were `sent` or `received`."""
        return len(re.findall({"received": RECEIVED, "sent": SENT}[direction] + re.escape(start), self.trace))

    def wait_for(self, direction: str, start: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until a message that begins with `start` was `sent` or `received`."""
        wait_for(lambda: self.count(direction, start), f"sipp {self.scenario}: {start} {direction}", seconds)

    def stop(self) -> None:
        """End it, done or not."""
        self.process.stop()


def register(server: str, directory: Path, port: int, user: str = "phone", domain: str = "example.test") -> None:
    """Register `user` with the Contact 127.0.0.1:`port` at `server` by digest."""
    Sipp("register", server, directory, user=user, domain=domain, keys={"contact_port": str(port)}).done()
