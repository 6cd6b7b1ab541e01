"""Chromium driven from Python through phone/bridge.mjs, and the web phone in it as a user sees it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.interop.process import PATIENCE_SECONDS, LineReader

BRIDGE = Path(__file__).with_name("phone") / "bridge.mjs"
EXECUTABLE = "/usr/bin/chromium"
FAKE_DEVICES = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
ANSWER_SECONDS = 75.0
"""Longer than any wait inside the bridge, so that its error, which says more, comes first."""


class BrowserError(AssertionError):
    """The browser did not do what was asked; the text is the browser's and the page's console."""


class Chromium:
    """One headless browser. `flags` are added to the usual ones; `devices` are the flags of microphone and camera.

    `executable` may be a wrapper that enters a network namespace.
    """

    def __init__(
        self,
        directory: Path,
        *,
        flags: Sequence[str] = (),
        devices: Sequence[str] = FAKE_DEVICES,
        executable: str = EXECUTABLE,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._numbers = itertools.count()
        self._asked = 0
        # Chromium puts a socket there, whose path may have 107 bytes; pytest's directories are longer under some users.
        self._temporary = tempfile.mkdtemp(prefix="wsgate")
        self._log = (directory / "chromium.log").open("w")
        self._process = subprocess.Popen(
            ["node", str(BRIDGE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
            env={**os.environ, "HOME": str(directory), "TMPDIR": self._temporary},
        )
        assert self._process.stdout is not None
        self._answers = LineReader(self._process.stdout)  # type: ignore[arg-type]
        try:
            self.version = self.ask(do="launch", executable=executable, flags=[*flags, *devices])
        except BrowserError:
            self.stop()
            raise

    def ask(self, **command: Any) -> Any:
        """Send one command and return its result. Raises BrowserError with what the bridge says."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        index = self._answers.wait(self._asked, lambda line: True, ANSWER_SECONDS)
        if index is None:
            raise BrowserError(f"no answer to {command}")
        self._asked = index + 1
        answer = json.loads(self._answers.lines[index])
        if "error" in answer:
            raise BrowserError(f"{command}: {answer['error']}")
        return answer["result"]

    def open(
        self,
        url: str,
        *,
        permissions: Sequence[str] | None = None,
        size: tuple[int, int] = (420, 860),
        dark: bool = False,
        missing: Sequence[str] = (),
    ) -> Page:
        """A page in a profile of its own. `permissions` = () refuses them all; the paths of `missing` give 404."""
        name = f"page{next(self._numbers)}"
        page = Page(self, name)
        page.response = self.ask(
            do="open",
            page=name,
            url=url,
            permissions=None if permissions is None else list(permissions),
            width=size[0],
            height=size[1],
            dark=dark,
            missing=list(missing),
        )
        return page

    def stop(self) -> None:
        """Close the browser; what does not go by itself is killed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.terminate()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Page:
    """One page; `response` is the status and the headers of its document."""

    response: dict[str, Any]

    def __init__(self, browser: Chromium, name: str) -> None:
        self._browser, self._name = browser, name

    def do(self, action: str, **arguments: Any) -> Any:
        """One of the bridge's actions; an error shows the page's console."""
        try:
            return self._browser.ask(do=action, page=self._name, **arguments)
        except BrowserError as error:
            log = "\n".join(self._browser.ask(do="log", page=self._name)[-40:])
            raise BrowserError(f"{error}\nconsole:\n{log}") from None

    def fill(self, selector: str, value: str) -> None:
        """Type `value` into a field."""
        self.do("fill", selector=selector, value=value)

    def click(self, selector: str) -> None:
        """Click what is visible and enabled; waits for that."""
        self.do("click", selector=selector)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        return self.do("evaluate", expression=expression)

    def wait(self, expression: str, seconds: float = PATIENCE_SECONDS) -> Any:
        """Wait until a JavaScript expression is true and return its value."""
        return self.do("wait", expression=expression, seconds=seconds)

    def console(self) -> list[str]:
        """What the page wrote to its console, errors included."""
        lines: list[str] = self.do("log")
        return lines

    def requests(self) -> list[str]:
        """The URLs the page asked for."""
        urls: list[str] = self.do("requests")
        return urls

    def screenshot(self, path: Path) -> None:
        """A picture of the whole page."""
        self.do("screenshot", path=str(path))

    def close(self) -> None:
        """Close the page and its profile."""
        self.do("close")


class WebPhone:
    """The web phone at `base` (http://... or https://...), used through its forms and buttons.

    `query` are the page's parameters (server, turn, relay, dtmf, ring ...; see wsgate/phone/README.md).
    """

    def __init__(self, browser: Chromium, base: str, query: dict[str, str] | None = None, **options: Any) -> None:
        self.page = browser.open(f"{base.rstrip('/')}/?{urlencode(query or {})}", **options)
        self.page.wait("document.getElementById('phone').dataset.ready === 'yes'")

    def sign_in(self, user: str, password: str, domain: str | None = None) -> None:
        """Fill the form and press the button; nothing is waited for."""
        self.page.fill("#user", user)
        self.page.fill("#password", password)
        if domain is not None:
            self.page.fill("#domain", domain)
        self.page.click("#sign-in-button")

    def register(self, user: str, password: str, domain: str | None = None) -> WebPhone:
        """Sign in and wait until the registrar has accepted."""
        self.sign_in(user, password, domain)
        self.wait_data("registration", "registered")
        return self

    def call(self, target: str) -> None:
        """Type a target and press Call."""
        self.page.fill("#target", target)
        self.page.click("#dial-button")

    def answer(self) -> None:
        """Press Answer when it rings."""
        self.wait_data("call", "incoming")
        self.page.click("#answer")

    def hang_up(self) -> None:
        """Press Hang up, Cancel or Decline, whichever the button is now."""
        self.page.click("#hang-up")

    def press(self, tones: str) -> None:
        """Press keys of the keypad."""
        for tone in tones:
            self.page.click(f'[data-tone="{tone}"]')

    def data(self, name: str) -> str:
        """An attribute data-NAME of the phone."""
        value: str = self.page.evaluate(f"document.getElementById('phone').dataset.{name}")
        return value

    def wait_data(self, name: str, value: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until data-NAME is `value`."""
        self.page.wait(f"document.getElementById('phone').dataset.{name} === {json.dumps(value)}", seconds)

    def wait_message(self, code: str, seconds: float = PATIENCE_SECONDS) -> str:
        """Wait for a message of messages.js and return the text that is shown."""
        self.wait_data("message", code, seconds)
        text: str = self.page.evaluate("document.getElementById('message').innerText")
        return text

    @property
    def state(self) -> dict[str, Any]:
        """window.wsgatePhone.state"""
        found: dict[str, Any] = self.page.evaluate("window.wsgatePhone.state")
        return found

    def stats(self) -> dict[str, Any]:
        """window.wsgatePhone.getStats(), during a call."""
        found: dict[str, Any] = self.page.evaluate("window.wsgatePhone.getStats()")
        return found

    def wait_media(self, more: int = 4000, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait until `more` bytes of audio have come in since now; returns the summary of the statistics."""
        begin = self.stats()["bytesReceived"]
        self.page.wait(f"window.wsgatePhone.getStats().then(s => s && s.bytesReceived >= {begin + more})", seconds)
        return self.stats()

    def peak(self, name: str, seconds: float = 2.5) -> float:
        """The highest value the meter "local" or "remote" shows in `seconds`; the fake microphone beeps each second."""
        value: float = self.page.evaluate(
            f"""new Promise((resolve) => {{
                const [begin, peak] = [Date.now(), []];
                const timer = setInterval(() => {{
                    peak.push(window.wsgatePhone.state.levels.{name});
                    if (Date.now() - begin < {seconds * 1000}) return;
                    clearInterval(timer);
                    resolve(Math.max(...peak));
                }}, 40);
            }})"""
        )
        return value


def assert_call(caller: WebPhone, callee: WebPhone, candidate: str | None = None) -> None:
    """Both are in the call, hear each other, and, where given, each sends by a candidate of that type."""
    for phone in (caller, callee):
        phone.wait_data("call", "active")
    for phone in (caller, callee):
        stats = phone.wait_media()
        assert stats["bytesSent"] > 0
        assert stats["packetsReceived"] > 0
        if candidate is not None:
            assert stats["localCandidate"] == candidate, stats
