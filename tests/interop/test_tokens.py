"""turnutils_uclient with third-party tokens and the daemon, whose keys change on SIGHUP (RFC 7635; rule A4)."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.daemon import READY
from tests.interop.process import Process, free_port, wait_for
from tests.turn_process import ROOT

KEYS = {
    "north": b"01234567890123456789012345678901",
    "union": b"1234567890123456",
    "oldempire": b"12345678901234567890123456789012",
}
"""The test keys that turnutils_uclient draws from; that of union is for AES-128."""
INI = """
[wsgate]
user =
[listener web]
bind = 127.0.0.1:{web}
tls = off
[sip]
bind = 127.0.0.1:0
[turn]
udp = 127.0.0.1:{port}
tcp = 127.0.0.1:{port}
relay_address = 127.0.0.1
realm = north.gov
channel_range = rfc5766
unauthenticated_rate = 1000000
oauth_keys = tokens
"""


class Server:
    """The daemon, and the file of its keys."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.keys = directory / "tokens"
        self.write(KEYS)
        ini = directory / "wsgate.ini"
        ini.write_text(INI.format(web=free_port(), port=self.port))
        command = [sys.executable, "-m", "wsgate", "-c", ini]
        self.process = Process(command, directory / "log", env={"PYTHONPATH": str(ROOT)})
        self.process.ready(lambda: READY in self.process.output)

    def write(self, keys: dict[str, bytes]) -> None:
        lines = [f"{kid}:{base64.b64encode(secret).decode()}\n" for kid, secret in keys.items()]
        self.keys.write_text("# kid:key\n" + "".join(lines))

    def reload(self) -> None:
        before = self.process.output.count("reloaded")
        os.kill(self.process.popen.pid, signal.SIGHUP)
        wait_for(lambda: self.process.output.count("reloaded") > before, "the reload")

    def uclient(self, *options: str) -> str:
        command = ["turnutils_uclient", "-v", "-J", "-y", "-p", str(self.port), "-u", "any", "-w", "any", *options]
        command += ["-l", "172", "-z", "10", "-n", "10", "-m", "2", "127.0.0.1"]
        for _ in range(3):
            output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
            if "error 400" not in output:  # it drew channel 0x7FFF
                break
        return output


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("tokens"))
    yield one
    one.process.stop()
    assert all(base64.b64encode(secret).decode() not in one.process.output for secret in KEYS.values())


@pytest.mark.parametrize("options", [("-c",), ("-s",), ("-c", "-t")])
def test_uclient_relays_with_tokens(server: Server, options: tuple[str, ...]) -> None:
    output = server.uclient(*options)
    totals = re.findall(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)", output)
    assert totals, output[-3000:]
    assert totals[-1][0] == totals[-1][1] != "0"


def test_keys_that_went_open_nothing_after_a_reload(server: Server) -> None:
    server.write({"another": bytes(32)})
    server.reload()
    assert "Cannot complete Allocation" in server.uclient("-c")
    server.write(KEYS)
    server.reload()
    assert "Total lost packets 0 " in server.uclient("-c")
