"""`[registrar] store` with the daemon: a restart, a worker that dies, a worker without rights, a foreign file."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.interop.daemon import Daemon
from tests.interop.process import wait_for
from tests.interop.raw import RawWebSocket, UdpPeer, sip
from tests.interop.registration import EMBEDDED, register_browser, register_phone, write_users

STORE = EMBEDDED + "store = bindings.sqlite\n"
Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Daemon] = []

    def run(directory: Path = tmp_path, text: str = STORE) -> Daemon:
        write_users(directory, "alice", "bob")
        started.append(Daemon(directory, text, sip_options="trusted_sources = 127.0.0.1"))
        return started[-1]

    yield run
    for daemon in started:
        if daemon.running:
            daemon.stop()


@pytest.fixture
def phone() -> Iterator[UdpPeer]:
    peer = UdpPeer()
    yield peer
    peer.close()


def invite(caller: str, callee: str, via: str, contact: str, call_id: str) -> bytes:
    lines = [f"Via: {via};branch=z9hG4bK{call_id}", "Max-Forwards: 70", f"From: <sip:{caller}@example.test>;tag=1"]
    lines += [f"To: <sip:{callee}@example.test>", f"Call-ID: {call_id}", "CSeq: 1 INVITE", f"Contact: <{contact}>"]
    return sip(f"INVITE sip:{callee}@example.test SIP/2.0", *lines)


def call_phone(daemon: Daemon, phone: UdpPeer) -> bytes:
    """Alice comes back, registers and calls bob's phone; the INVITE as it arrived."""
    browser = RawWebSocket(daemon.address)
    register_browser(browser, "alice")
    browser.send(invite("alice", "bob", "SIP/2.0/WS browser.invalid", "sip:alice@browser.invalid", "out"))
    data, _ = phone.receive_until(b"INVITE ")
    browser.close()
    return data


def register_both(daemon: Daemon, phone: UdpPeer) -> RawWebSocket:
    register_phone(phone, (daemon.sip_host, daemon.sip), "bob")
    browser = RawWebSocket(daemon.address)
    register_browser(browser, "alice")
    daemon.wait_status("bindings", 2)
    return browser


def test_bindings_survive_a_restart(start: Start, phone: UdpPeer, tmp_path: Path):
    """Phones are reachable at once; a browser is known, and reachable when it is back."""
    daemon = start()
    register_both(daemon, phone)
    daemon.stop()
    again = start()
    assert again.status()["bindings"] == 2
    assert "2 bindings taken up from bindings.sqlite" in again.log
    place = f"{phone.host}:{phone.port}"
    data = invite("bob", "alice", f"SIP/2.0/UDP {place};rport", f"sip:bob@{place}", "in")
    phone.send(data, (again.sip_host, again.sip))
    assert phone.receive_until(b"SIP/2.0 4")[0].startswith(b"SIP/2.0 480 ")
    assert call_phone(again, phone).startswith(f"INVITE sip:bob@{place} SIP/2.0".encode())


def test_what_was_taken_back_stays_away(start: Start, phone: UdpPeer, tmp_path: Path):
    daemon = start()
    register_phone(phone, (daemon.sip_host, daemon.sip), "bob")
    contact = f"<sip:bob@{phone.host}:{phone.port}>;expires=0"
    register_phone(phone, (daemon.sip_host, daemon.sip), "bob", contact)
    daemon.stop()
    assert start().status()["bindings"] == 0


def test_bindings_survive_a_worker_that_is_killed(start: Start, phone: UdpPeer, tmp_path: Path):
    """Written behind: what was answered a moment ago is in the file."""
    daemon = start()
    register_both(daemon, phone)
    wait_for(lambda: daemon.status()["counters"].get("registrar_store_written", 0) >= 2, "the write")
    [worker] = psutil.Process(daemon.pid).children()
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: daemon.log.count("is ready") == 2, "another worker", 20)
    assert daemon.status()["bindings"] == 2
    assert call_phone(daemon, phone).startswith(b"INVITE sip:bob@")


@pytest.mark.parametrize("foreign", ["text", "database"])
def test_a_foreign_file_costs_one_line_and_not_the_start(start: Start, phone: UdpPeer, tmp_path: Path, foreign: str):
    path = tmp_path / "bindings.sqlite"
    if foreign == "text":
        path.write_text("alice:example.test:0123\n" * 50)
    else:
        database = sqlite3.connect(path)
        database.execute("CREATE TABLE people (name)")
        database.close()
    before = path.read_bytes()
    daemon = start()
    register_both(daemon, phone)
    assert daemon.log.count("bindings.sqlite is not used, bindings are kept in memory") == 1
    daemon.stop()
    assert path.read_bytes() == before


@pytest.mark.root
def test_a_worker_without_rights_writes_its_store_alone(phone: UdpPeer):
    """The supervisor made file and journal for it; it may write nothing else in that directory."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        write_users(directory, "alice", "bob")
        for round_ in range(2):
            options = {"user": "nobody", "sip_options": "trusted_sources = 127.0.0.1"}
            daemon = Daemon(directory, STORE, **options)
            try:
                [worker] = psutil.Process(daemon.pid).children()
                assert worker.uids().effective == 65534
                assert daemon.status()["bindings"] == 2 * round_
                register_both(daemon, phone)
            finally:
                daemon.stop()
            assert "not used" not in daemon.log
            assert "cannot write" not in daemon.log
        store = (directory / "bindings.sqlite").stat()
        assert (store.st_uid, stat.S_IMODE(store.st_mode)) == (65534, 0o600)
        assert store.st_size > 0
