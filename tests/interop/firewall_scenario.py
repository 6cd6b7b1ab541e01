"""Browsers behind a firewall that lets out port 443 of one address: run by test_firewall.py in namespaces of its own.

`python -m tests.interop.firewall_scenario DIRECTORY [apache]`. The gateway lives in the namespace it is started in, the
browsers in another one, joined by a veth pair. With `apache` they phone once more with an Apache behind it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.interop.apache import ApacheBehind
from tests.interop.chromium import EXECUTABLE, Chromium, WebPhone, assert_call
from tests.interop.daemon import READY
from tests.interop.process import Process, wait_for

ROOT = Path(__file__).resolve().parents[2]
GATEWAY, BROWSERS = "10.98.0.1", "10.98.0.2"
DOMAIN, PASSWORD = "phone.test", "correct horse"
USERS = ("alice", "bob")
OPEN_PORT, CLOSED_PORT = 443, 8443

INI = f"""
[wsgate]
user =
group =
drain_timeout = 1
key_file = {{directory}}/wsgate.key
control_socket = {{directory}}/wsgate.sock

[listener public]
bind = {GATEWAY}:{OPEN_PORT}
tls = on
turn = on
{{listener}}

[listener closed]
bind = {GATEWAY}:{CLOSED_PORT}
tls = on
turn = off

[sip]
bind = 127.0.0.1:5060

[backend {DOMAIN}]
target = embedded

[registrar]
realm = {DOMAIN}
users = {{directory}}/users

[turn]
udp = {GATEWAY}:{OPEN_PORT}
tcp =
realm = {DOMAIN}
users = {{directory}}/users
relay_address = {GATEWAY}
"""

FIREWALL = f"""
table inet firewall {{
    chain output {{
        type filter hook output priority 0; policy drop;
        oif lo accept
        ip daddr {GATEWAY} tcp dport {OPEN_PORT} accept
        ip daddr {GATEWAY} udp dport {OPEN_PORT} accept
    }}
    chain input {{
        type filter hook input priority 0; policy drop;
        iif lo accept
        ip saddr {GATEWAY} tcp sport {OPEN_PORT} accept
        ip saddr {GATEWAY} udp sport {OPEN_PORT} accept
    }}
}}
"""

WAYS = {
    f"turn:{GATEWAY}:{OPEN_PORT}?transport=udp": "udp",
    f"turn:{GATEWAY}:{OPEN_PORT}?transport=tcp": "tcp",
    f"turns:{GATEWAY}:{OPEN_PORT}?transport=tcp": "tls",
}
"""What the page is told to use, and what Chromium then says it speaks with the relay."""


class Gateway:
    """The daemon with its one open port; `listener` are further lines of that section."""

    def __init__(self, directory: Path, listener: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        ini = directory / "wsgate.ini"
        ini.write_text(INI.format(directory=directory, listener=listener))
        for user in USERS:
            command = [sys.executable, "-m", "wsgate", "user", "add", "-c", str(ini), "--password-stdin", user]
            subprocess.run(command, input=f"{PASSWORD}\n", text=True, check=True, cwd=ROOT, timeout=30)
        environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self._process = Process([sys.executable, "-m", "wsgate", "-c", ini], directory / "wsgate.log", env=environment)
        self._process.ready(lambda: READY in self._process.output)

    def stop(self) -> None:
        """SIGTERM; asserts a clean end."""
        status, log = self._process.stop(), self._process.output
        assert status == 0, f"wsgate ended with {status}:\n{log[-6000:]}"
        assert "Traceback" not in log, log[-10000:]


@contextmanager
def namespace_of_browsers() -> Iterator[list[str]]:
    """A namespace joined to this one, behind FIREWALL; the words that run a command in it."""
    holder = subprocess.Popen(["unshare", "-n", "sleep", "600"])
    try:
        enter = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
        own = Path("/proc/self/ns/net").readlink()
        wait_for(lambda: Path(f"/proc/{holder.pid}/ns/net").readlink() != own, "the namespace")
        for line in (
            f"ip link add outside type veth peer name inside netns {holder.pid}",
            f"ip addr add {GATEWAY}/24 dev outside",
            "ip link set outside up",
            "ip link set lo up",
        ):
            subprocess.run(line.split(), check=True)
        for line in (f"ip addr add {BROWSERS}/24 dev inside", "ip link set inside up", "ip link set lo up"):
            subprocess.run([*enter, *line.split()], check=True)
        subprocess.run([*enter, "nft", "-f", "-"], input=FIREWALL, text=True, check=True)
        yield enter
    finally:
        holder.kill()
        holder.wait()


def wrapper(directory: Path, enter: list[str]) -> str:
    """A script that starts Chromium in the namespace."""
    path = directory / "chromium.sh"
    path.write_text(f'#!/bin/sh\nexec {" ".join(enter)} {EXECUTABLE} "$@"\n')
    path.chmod(0o755)
    return str(path)


def call(browser: Chromium, base: str, way: str, protocol: str) -> None:
    """Two pages hear each other, each through the relay, which it reaches by `protocol`."""
    with ExitStack() as stack:
        phones = []
        for user in USERS:
            phone = WebPhone(browser, base, {"relay": "1", "turn": way})
            stack.callback(phone.page.close)
            phones.append(phone.register(user, PASSWORD))
        alice, bob = phones
        alice.call("bob")
        bob.answer()
        assert_call(alice, bob, "relay")
        for phone in phones:
            assert phone.stats()["relayProtocol"] == protocol, (way, phone.stats())
        alice.hang_up()
        bob.wait_message("hung-up")


def call_beside_apache(browser: Chromium, directory: Path) -> None:
    """An Apache behind the one port (`http_fallback`): its own page is served there, and media passes by `turns:`."""
    apache = ApacheBehind()
    try:
        gateway = Gateway(directory, f"http_fallback = 127.0.0.1:{apache.port}")
        try:
            page = browser.open(f"https://{GATEWAY}/below/")
            assert page.response["status"] == 200
            assert page.evaluate("document.title") == "Below"
            call(browser, f"https://{GATEWAY}", *next(way for way in WAYS.items() if way[1] == "tls"))
            assert f"{BROWSERS} 200 GET /below/ HTTP/1.1" in apache.access_log
        finally:
            gateway.stop()
    finally:
        apache.close()


def main(directory: Path, with_apache: bool) -> None:
    """Page, SIP and media through the one port that is open."""
    with namespace_of_browsers() as enter:
        gateway: Gateway | None = Gateway(directory / "wsgate")
        try:
            closed = f"import socket; socket.create_connection(('{GATEWAY}', {CLOSED_PORT}), 1)"
            refused = subprocess.run(
                [*enter, sys.executable, "-c", closed], capture_output=True, check=False, timeout=20
            )
            assert refused.returncode != 0, "the firewall is no firewall"
            flags = ["--ignore-certificate-errors"]
            executable = wrapper(directory, enter)
            with Chromium(directory / "chromium", flags=flags, executable=executable) as browser:
                for way, protocol in WAYS.items():
                    call(browser, f"https://{GATEWAY}", way, protocol)
                stopped, gateway = gateway, None
                stopped.stop()
                if with_apache:
                    call_beside_apache(browser, directory / "behind")
        finally:
            if gateway is not None:
                gateway.stop()
    print("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "apache" in sys.argv[2:])
