"""What the log says of backends that cannot be reached: each change once, not each request and not each probe."""

from __future__ import annotations

from pathlib import Path

from tests.interop.daemon import Daemon
from tests.interop.process import free_port, wait_for
from tests.interop.raw import RawWebSocket, sip

BACKENDS = """
[backend refused.test]
target = sip:127.0.0.1:{port};transport=udp
probe_interval = 1

[backend gone.test]
target = sip:pbx.gone.test

[dns]
nameservers = 127.0.0.1:{nameserver}
timeout = 0.1
"""


def register(browser: RawWebSocket, domain: str, number: int) -> None:
    """A REGISTER that nobody can serve: 503."""
    lines = [f"Via: SIP/2.0/WS browser.invalid;branch=z9hG4bK{domain}{number}", "Max-Forwards: 70"]
    lines += [f"From: <sip:a@{domain}>;tag=1", f"To: <sip:a@{domain}>", f"Call-ID: {domain}{number}"]
    lines += ["CSeq: 1 REGISTER", "Contact: <sip:a@browser.invalid;transport=ws>"]
    browser.send(sip(f"REGISTER sip:{domain} SIP/2.0", *lines))
    browser.receive_until(lambda data: data.startswith(b"SIP/2.0 503"))


def test_a_dead_backend_and_one_without_address_are_told_once(tmp_path: Path) -> None:
    port, nameserver = free_port(), free_port()
    daemon = Daemon(tmp_path, BACKENDS.format(port=port, nameserver=nameserver), log_level="info")
    browser = RawWebSocket(daemon.address)
    try:
        register(browser, "refused.test", 0)
        wait_for(lambda: daemon.status()["counters"].get("sip_probes_failed", 0) >= 2, "two probes to fail", 20)
        for number in range(10):
            register(browser, "gone.test", number)
        lines = daemon.log.splitlines()
        assert sum(f"backend side UDP 127.0.0.1:{port}: Connection refused" in line for line in lines) == 1
        assert sum(f"refused.test: UDP 127.0.0.1:{port} does not serve" in line for line in lines) == 1
        assert 1 <= sum("backend gone.test" in line for line in lines) <= 3
    finally:
        browser.close()
        daemon.stop()
