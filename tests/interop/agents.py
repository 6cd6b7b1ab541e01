"""JsSIP and SIP.js in Chromium, behind the same verbs: pages that a test serves on localhost and drives."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.interop.chromium import Chromium
from tests.interop.process import PATIENCE_SECONDS
from tests.interop.softphone import header, headers

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).parent / "pages"
LIBRARIES = ("jssip", "sipjs")


class Pages:
    """http://localhost:PORT/LIBRARY.html for each of LIBRARIES: an empty page with the library and its verbs."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for library in LIBRARIES:
            command = [ROOT / "node_modules/.bin/esbuild", SOURCES / f"{library}.js", "--bundle", "--format=iife"]
            made = [f"--outfile={directory / library}.js", "--log-level=error"]
            subprocess.run([*command, *made], check=True, timeout=60)
            page = (
                f'<!doctype html><meta charset="utf-8"><title>{library}</title><script src="{library}.js"></script>\n'
            )
            (directory / f"{library}.html").write_text(page)

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(directory))

            def log_message(self, *_: Any) -> None:
                """Nothing: the pages are not under test."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Agent:
    """One page with a user agent of `library`, registering as sip:`user`@example.test over `url`."""

    def __init__(self, browser: Chromium, pages: Pages, library: str, url: str, user: str, password: str) -> None:
        self.user, self.library = user, library
        self.uri = f"sip:{user}@example.test"
        self.page = browser.open(f"{pages.origin}/{library}.html")
        self.do("start", {"url": url, "uri": self.uri, "password": password})
        self.wait("registered")

    def do(self, verb: str, *arguments: object) -> Any:
        """One of the verbs of pages/*.js."""
        return self.page.evaluate(f"agent.{verb}(...{json.dumps(arguments)})")

    def wait(self, name: str, seconds: float = PATIENCE_SECONDS, **values: object) -> dict[str, Any]:
        """The next event called `name` with these values, behind the last one returned."""
        try:
            event: dict[str, Any] = self.page.wait(f"agent.take({json.dumps(name)}, {json.dumps(values)})", seconds)
        except AssertionError as error:
            raise AssertionError(f"{self.user}: {error}\nevents: {self.do('story')}") from None
        return event

    def wait_direction(self, direction: str) -> None:
        """Wait until offer and answer agree on sendrecv, sendonly, recvonly or inactive, after the last one seen."""
        self.page.wait(f"agent.takeDirection({json.dumps(direction)})")

    def wait_media(self) -> None:
        """Wait until audio comes in."""
        begin = self.do("bytesReceived")
        self.page.wait(f"agent.bytesReceived().then((bytes) => bytes > {begin + 2000})")

    def messages(self, direction: str, start: str = "") -> list[str]:
        """The SIP messages "in" or "out" so far that begin with `start`."""
        sign = {"in": "< ", "out": "> "}[direction]
        return [line[2:] for line in self.page.console() if line.startswith(sign + start) and line[2:].strip()]

    def assert_well_served(self) -> None:
        """Responses carry the browser's own Via alone (C1), requests ours on top (B3); none came twice (C3, I6)."""
        seen = set()
        for message in self.messages("in"):
            start, vias = message.partition("\r\n")[0], headers(message, "Via")
            if start.startswith("SIP/2.0 "):
                assert len(vias) == 1, message
                assert ".invalid" in vias[0], message
                if start.startswith("SIP/2.0 2") and header(message, "CSeq").endswith("INVITE"):
                    continue
            else:
                assert vias[0].startswith("SIP/2.0/WS "), message
            key = (start, vias[0], header(message, "CSeq"), header(message, "Call-ID"))
            assert key not in seen, f"twice: {message}"
            seen.add(key)

    def close(self) -> None:
        """Close the tab."""
        self.page.close()
