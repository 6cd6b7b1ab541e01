"""`state_file`: a restarted daemon takes up flows and calls (rule D3), and refuses what is not its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.daemon import Daemon
from tests.interop.raw import RawWebSocket, UdpPeer, header, headers, sip

OWN = "sip:k3x@df7jal23ls0d.invalid;transport=ws"
ALICE = "<sip:alice@example.com>"


class Setting:
    """A daemon with a state file, and a SIP server over UDP that a test plays."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "wsgate.state"
        self.server = UdpPeer()
        self.daemon = Daemon(
            directory,
            f"[backend example.com]\ntarget = sip:127.0.0.1:{self.server.port}\ntransports = udp\n",
            sip_options=f"state_file = {self.state}",
        )
        self.gate = (self.daemon.sip_host, self.daemon.sip)

    def answer(self, request: bytes, *more: str, tag: str = "") -> None:
        """200 to a request that came to the server."""
        to = header(request, "To") + (f";tag={tag}" if tag and "tag=" not in header(request, "To") else "")
        lines = [f"Via: {value}" for value in headers(request, "Via")]
        lines += [f"Record-Route: {value}" for value in headers(request, "Record-Route")]
        lines += [f"{name}: {header(request, name)}" for name in ("From", "Call-ID", "CSeq")]
        self.server.send(sip("SIP/2.0 200 OK", *lines, f"To: {to}", *more), self.gate)

    def register(self, browser: RawWebSocket, number: int) -> None:
        """REGISTER through the daemon, granted by the server."""
        browser.send(
            sip(
                "REGISTER sip:example.com SIP/2.0",
                f"Via: SIP/2.0/WS a.invalid;branch=z9hG4bKr{number}",
                f"To: {ALICE}",
                f"From: {ALICE};tag=r",
                f"Call-ID: reg{number}",
                "CSeq: 1 REGISTER",
                "Max-Forwards: 70",
                f'Contact: <{OWN}>;+sip.instance="<urn:uuid:1>";reg-id=1;expires=600',
            )
        )
        request, _ = self.server.receive_until(b"REGISTER")
        self.answer(request, f"Contact: {header(request, 'Contact')}", "Expires: 600")
        assert b"200" in browser.receive_until(lambda data: data.startswith(b"SIP/2.0 200"))[:12]

    def call(self, browser: RawWebSocket) -> list[str]:
        """INVITE, 200, ACK; returns the Record-Route as the server knows it."""
        in_dialog = [f"From: {ALICE};tag=a", "Call-ID: call", "Max-Forwards: 70"]
        browser.send(
            sip(
                "INVITE sip:bob@example.com SIP/2.0",
                "Via: SIP/2.0/WS a.invalid;branch=z9hG4bKi",
                *in_dialog,
                "To: <sip:bob@example.com>",
                "CSeq: 1 INVITE",
                f"Contact: <{OWN}>",
            )
        )
        request, _ = self.server.receive_until(b"INVITE")
        self.answer(request, f"Contact: <sip:bob@127.0.0.1:{self.server.port}>", tag="b")
        browser.receive_until(lambda data: data.startswith(b"SIP/2.0 200"))
        return headers(request, "Record-Route")


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    made = Setting(tmp_path)
    yield made
    made.daemon.stop()
    made.server.close()


def test_d3_a_call_survives_a_restart_of_the_daemon_both_ways(setting: Setting) -> None:
    browser = RawWebSocket(setting.daemon.address)
    setting.register(browser, 1)
    routes = setting.call(browser)
    setting.daemon.stop()
    assert browser.receive() is None
    assert browser.close_code == 1001
    setting.daemon.start()
    assert setting.daemon.status()["dialogs"] == 1
    again = RawWebSocket(setting.daemon.address)
    setting.register(again, 2)
    info = sip(
        f"INFO {OWN} SIP/2.0",
        f"Via: SIP/2.0/UDP 127.0.0.1:{setting.server.port};branch=z9hG4bKx",
        "CSeq: 5 INFO",
        *[f"Route: {route}" for route in routes],
        f"To: {ALICE};tag=a",
        "From: <sip:bob@example.com>;tag=b",
        "Call-ID: call",
        "Max-Forwards: 70",
    )
    setting.server.send(info, setting.gate)
    assert again.receive_until(lambda data: data.startswith(b"INFO")).startswith(f"INFO {OWN}".encode())
    again.send(
        sip(
            f"BYE sip:bob@127.0.0.1:{setting.server.port} SIP/2.0",
            "Via: SIP/2.0/WS a.invalid;branch=z9hG4bKb",
            *[f"Route: {route}" for route in reversed(routes)],
            f"From: {ALICE};tag=a",
            "Max-Forwards: 70",
            "To: <sip:bob@example.com>;tag=b",
            "Call-ID: call",
            "CSeq: 2 BYE",
        )
    )
    bye, _ = setting.server.receive_until(b"BYE")
    setting.answer(bye)
    again.receive_until(lambda data: data.startswith(b"SIP/2.0 200"))
    setting.daemon.wait_status("dialogs", 0)


def test_d3_a_foreign_file_is_refused_with_one_line_and_left_as_it_is(setting: Setting) -> None:
    setting.daemon.stop()
    assert setting.state.read_bytes().startswith(b"wsgate state 1\n")
    setting.state.write_bytes(b"somebody's letters\n")
    setting.daemon.start()
    lines = [line for line in setting.daemon.log.splitlines() if "state_file" in line and "ERROR" in line]
    assert len(lines) == 1
    browser = RawWebSocket(setting.daemon.address)
    setting.register(browser, 3)
    assert setting.state.read_bytes() == b"somebody's letters\n"
