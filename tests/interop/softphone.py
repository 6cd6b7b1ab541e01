"""JsSIP in node as a phone that a test drives: commands in, events and SIP messages out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.interop.process import PATIENCE_SECONDS, LineReader

SOFTPHONE = Path(__file__).parent / "jssip" / "softphone.js"
Event = dict[str, Any]


class Softphone:
    """One JsSIP user agent. `socket` goes to the `ws` package: origin, localAddress, cert_file, headers."""

    def __init__(
        self,
        url: str,
        user: str,
        password: str,
        domain: str = "example.test",
        socket: dict[str, Any] | None = None,
        **agent: Any,
    ) -> None:
        config = {
            "url": url,
            "uri": f"sip:{user}@{domain}",
            "password": password,
            "socket": socket or {},
            "register": agent.pop("register", True),
            "ua": agent,
        }
        self.user = user
        self._popen = subprocess.Popen(
            ["node", str(SOFTPHONE), json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._popen.stdout is not None
        self._reader = LineReader(self._popen.stdout)  # type: ignore[arg-type]
        self._seen = 0

    def do(self, command: str, **arguments: Any) -> None:
        """Give one command of softphone.js: call, answer, hangup, dtmf, message, register, unregister, cut."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self._popen.stdin.flush()

    def wait(
        self, name: str, seconds: float = PATIENCE_SECONDS, accept: Callable[[Event], bool] = lambda _: True
    ) -> Event:
        """The next event called `name` that `accept` takes, behind the last one returned. Fails with all that came."""

        def pleases(line: str) -> bool:
            event = json.loads(line)
            return event["event"] == name and accept(event)

        index = self._reader.wait(self._seen, pleases, seconds)
        if index is None:
            raise AssertionError(f"{self.user}: no {name!r} in {seconds} s; since then:\n{self.story()}")
        self._seen = index + 1
        event: Event = json.loads(self._reader.lines[index])
        return event

    def wait_sip(self, direction: str, start: str, seconds: float = PATIENCE_SECONDS) -> str:
        """The next SIP message in `direction` (in, out) whose first line begins with `start`."""
        event = self.wait("sip", seconds, lambda e: e["direction"] == direction and e["text"].startswith(start))
        text: str = event["text"]
        return text

    @property
    def events(self) -> list[Event]:
        """Everything so far."""
        return [json.loads(line) for line in list(self._reader.lines)]

    def messages(self, direction: str, start: str = "") -> list[str]:
        """The SIP messages so far in `direction` that begin with `start`; keep-alives left out."""
        return [
            e["text"]
            for e in self.events
            if e["event"] == "sip" and e["direction"] == direction and e["text"].startswith(start) and e["text"].strip()
        ]

    def story(self) -> str:
        """The events as lines for a failed assertion."""
        return "\n".join(
            f"{e['at']:8.3f} {e['direction']} {e['text']}" if e["event"] == "sip" else json.dumps(e)
            for e in self.events
        )

    def close(self) -> None:
        """End the program without de-registering."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        try:
            self._popen.wait(5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


def header(message: str, name: str) -> str:
    """The first value of header `name` in a SIP message as it stands. Raises LookupError."""
    return headers(message, name)[0]


def headers(message: str, name: str) -> list[str]:
    """The values of all header lines `name` in a SIP message, in order."""
    head = message.partition("\r\n\r\n")[0].split("\r\n")[1:]
    lines = (line.partition(":") for line in head)
    return [value.strip() for field, _, value in lines if field.strip().lower() == name.lower()]
