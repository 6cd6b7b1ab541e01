"""The daemon with its embedded registrar and its TURN server, as the tests of the web phone use it."""

from __future__ import annotations

import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.interop.chromium import WebPhone
from tests.interop.process import Process, accepts, free_port

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = "phone.test"
PASSWORD = "correct horse"
USERS = ("alice", "bob", "carol")
Opener = Callable[..., WebPhone]
"""What the fixture `phone` is."""
SILENT_PORT = "turn:127.0.0.1:10001"
"""A TURN address where nobody answers."""

INI = """
[wsgate]
user =
group =
drain_timeout = 1
key_file = {directory}/wsgate.key
control_socket = {directory}/wsgate.sock

[listener plain]
bind = 127.0.0.1:{plain}
tls = off
turn = off

[listener secure]
bind = 127.0.0.1:{secure}
tls = on
turn = off

[listener apache]
bind = 127.0.0.1:{relayed}
tls = off
turn = off
trusted_proxies = 127.0.0.1
tls_at_relay = on

[sip]
bind = 127.0.0.1:{sip}

[backend {domain}]
target = embedded

[registrar]
realm = {domain}
users = {directory}/users

[turn]
udp = 127.0.0.1:{turn}
tcp =
realm = {domain}
users = {directory}/users
relay_address = 127.0.0.1
relay_ports = {relay}-{relay_end}
peer_policy = call
"""


class PhoneSystem:
    """The daemon with two listeners, three users and TURN over UDP, on loopback.

    With `one_port` TURN is spoken on the port of the secure page and nowhere else. `turn` are further lines of [turn],
    `http_fallback` is that of the secure listener then.
    """

    def __init__(self, directory: Path, *, one_port: bool = False, turn: str = "", http_fallback: str = "") -> None:
        self.plain_port, self.secure_port, self.relayed_port = free_port(), free_port(), free_port()
        self._directory = directory
        self._ini = directory / "phone.ini"
        ports = {"plain": self.plain_port, "secure": self.secure_port, "relayed": self.relayed_port}
        relay = 61000 + 200 * secrets.randbelow(22)  # above what the kernel hands out, apart from other runs
        ports |= {"sip": free_port(), "turn": free_port(), "relay": relay, "relay_end": relay + 199}
        text = INI.format(directory=directory, domain=DOMAIN, **ports) + turn
        if one_port:
            listener = f"tls = on\nturn = on\nhttp_fallback = {http_fallback}"
            text = text.replace("tls = on\nturn = off", listener).replace(f"udp = 127.0.0.1:{ports['turn']}", "udp =")
        self._ini.write_text(text)
        for user in USERS:
            self._command("user", "add", "-c", self._ini, "--password-stdin", user)
        self.start()

    def _command(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", "wsgate", *map(str, arguments)]
        subprocess.run(command, input=f"{PASSWORD}\n", text=True, check=True, cwd=ROOT, timeout=30)

    def start(self) -> None:
        """Start the daemon and wait until it serves."""
        environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "wsgate", "-c", self._ini]
        self._process = Process(command, self._directory / "wsgate.log", env=environment)
        self._process.ready(lambda: accepts("127.0.0.1", self.plain_port) and self._healthy())

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.plain}/healthz", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """SIGTERM; asserts a clean end."""
        status, log = self._process.stop(), self._process.output
        assert status == 0, f"wsgate ended with {status}:\n{log[-6000:]}"
        assert "Traceback" not in log, log[-10000:]

    def end(self) -> None:
        """Nothing stays behind, whatever happened before."""
        self._process.stop()

    @property
    def plain(self) -> str:
        """The page over http."""
        return f"http://127.0.0.1:{self.plain_port}"

    @property
    def secure(self) -> str:
        """The page over https."""
        return f"https://127.0.0.1:{self.secure_port}"
