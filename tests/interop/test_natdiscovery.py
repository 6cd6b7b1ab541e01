"""turnutils_natdiscovery of coturn asks the daemon what NAT there is: none (RFC 5780; rule S4).

Loopback has one IPv6 address: that family is shown by bytes alone, in tests/test_turn_discovery.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.daemon import READY
from tests.interop.process import Process, free_port
from tests.turn_process import ROOT

ASKED, OTHER, CLIENT = "127.0.0.1", "127.0.0.2", "127.0.0.3"
INI = """
[wsgate]
user =
[listener web]
bind = 127.0.0.1:{web}
tls = off
[sip]
bind = 127.0.0.1:0
[turn]
udp = {asked}:{port}
tcp = 127.0.0.1:{port}
relay_address = 127.0.0.1
alternate_address = {other}
alternate_port = {alternate}
unauthenticated_rate = 1000000
"""


class Server:
    """The daemon with a second address."""

    def __init__(self, directory: Path) -> None:
        self.port, self.alternate = free_port(), free_port()
        ini = directory / "wsgate.ini"
        ini.write_text(INI.format(web=free_port(), port=self.port, alternate=self.alternate, asked=ASKED, other=OTHER))
        command = [sys.executable, "-m", "wsgate", "-c", ini]
        self.process = Process(command, directory / "log", env={"PYTHONPATH": str(ROOT)})
        self.process.ready(lambda: READY in self.process.output)

    def asked(self, *options: str, server: str = ASKED) -> str:
        """What turnutils_natdiscovery prints."""
        command = ["turnutils_natdiscovery", *options, "-p", str(self.port), "-L", CLIENT, server]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("natdiscovery"))
    yield one
    one.process.stop()


@pytest.mark.parametrize("padding", [(), ("-P",)])
def test_mapping(server: Server, padding: tuple[str, ...]) -> None:
    """The same mapped address at both addresses, with 1,500 bytes of padding too."""
    output = server.asked("-m", *padding)
    assert "No NAT! (Endpoint Independent Mapping)" in output
    assert output.count("No ALG: Mapped == XOR-Mapped") == 2
    assert f"Response origin: : {ASKED}:{server.port}" in output
    assert f"Other addr: : {OTHER}:{server.alternate}" in output
    assert f"Response origin: : {OTHER}:{server.port}" in output
    assert f"Other addr: : {ASKED}:{server.alternate}" in output


@pytest.mark.parametrize("padding", [(), ("-P",)])
def test_filtering(server: Server, padding: tuple[str, ...]) -> None:
    """CHANGE-REQUEST with both flags is answered from the other address and port."""
    output = server.asked("-f", *padding)
    assert "NAT with Endpoint Independent Filtering!" in output
    assert f"Response origin: : {OTHER}:{server.alternate}" in output


def test_lifetime(server: Server) -> None:
    """RESPONSE-PORT brings the answer to the other socket of the client."""
    output = server.asked("-t", "-T", "1")
    assert output.count("RFC 5780 response") == 2


def test_a_client_of_the_other_address_is_served_as_well(server: Server) -> None:
    output = server.asked("-f", server=OTHER)
    assert f"Response origin: : {ASKED}:{server.alternate}" in output
