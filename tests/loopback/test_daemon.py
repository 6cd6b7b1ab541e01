"""The daemon as processes: supervisor and worker, reload, stop, restart, what an administrator is told."""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.interop.process import accepts, free_port, wait_for
from tests.interop.raw import RawWebSocket
from wsgate import certificate
from wsgate.addr import uri_host
from wsgate.crew import own_hosts

ROOT = Path(__file__).resolve().parents[2]
STANDIN = [sys.executable, str(Path(__file__).with_name("standin.py"))]
REAL = [sys.executable, "-m", "wsgate"]
INI = """
[wsgate]
user = {user}
drain_timeout = 1
pidfile = wsgate.pid
{process}
[listener web]
bind = 127.0.0.1:{port}
tls = {tls}
{listener}
[sip]
bind = 127.0.0.1:0
{extra}
"""


class Running:
    """One daemon and its ini file. `log` is what it wrote to standard error."""

    def __init__(self, directory: Path, command: list[str], tls: str = "off", user: str = "") -> None:
        self.directory, self.command, self.tls, self.user = directory, command, tls, user
        self.port = free_port()
        self.ini, self.log_file = directory / "wsgate.ini", directory / "stderr"
        self.write()
        self.popen: subprocess.Popen[bytes] | None = None

    def write(self, extra: str = "", process: str = "", listener: str = "") -> None:
        text = INI.format(port=self.port, tls=self.tls, user=self.user, extra=extra, process=process, listener=listener)
        self.ini.write_text(text)

    def launch(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            self.popen = subprocess.Popen(
                [*self.command, "-c", str(self.ini), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                cwd=self.directory,
            )
        return self.popen

    def start(self, *arguments: str, **environment: str) -> Running:
        popen = self.launch(*arguments, **environment)
        wait_for(lambda: popen.poll() is not None or "is ready" in self.log, "the daemon to be ready", 40)
        assert popen.poll() is None, self.log
        return self

    def fails(self, *arguments: str) -> list[str]:
        """Start and see it end with 1; the lines it wrote."""
        assert self.launch(*arguments).wait(40) == 1
        return self.log.splitlines()

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def ask(self) -> dict[str, Any]:
        """What the stand-in tells."""
        with socket.create_connection(("127.0.0.1", self.port), 30) as connection:
            answer: dict[str, Any] = json.loads(connection.makefile().readline())
        return answer

    def signal(self, number: int) -> None:
        assert self.popen is not None
        self.popen.send_signal(number)

    def count(self, text: str) -> int:
        return self.log.count(text)

    def stop(self) -> int:
        assert self.popen is not None
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            return self.popen.wait(40)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise


Start = Callable[..., Running]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Start]:
    made: list[Running] = []

    def make_one(command: list[str] = STANDIN, directory: Path = tmp_path, **options: Any) -> Running:
        made.append(Running(directory, command, **options))
        return made[-1]

    yield make_one
    for one in made:
        if one.popen is not None:
            one.stop()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_worker_gets_sockets_and_files_and_stops_with_1001(make: Start):
    running = make().start()
    facts = running.ask()
    assert facts["supervisor"] == running.pid
    kinds = [kind for kind, _ in facts["endpoints"]]
    assert kinds == ["listener", "sip-udp", "sip-tcp"]
    assert facts["endpoints"][1][1] == facts["endpoints"][2][1] != 0
    assert facts["files"]["wsgate.key"] == (running.directory / "wsgate.key").read_text()
    assert (running.directory / "wsgate.pid").read_text() == f"{running.pid}\n"
    assert running.stop() == 0
    assert (running.directory / "stopped").read_text() == "1001"
    assert gone(facts["pid"])
    assert not (running.directory / "wsgate.pid").exists()
    assert not accepts("127.0.0.1", running.port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_real_gateway_closes_websockets_with_1001(make: Start, number: int):
    running = make(REAL).start()
    browser = RawWebSocket(("127.0.0.1", running.port))
    worker = psutil.Process(running.pid).children()[0].pid
    running.signal(number)
    assert browser.receive() is None
    assert browser.close_code == 1001
    browser.send_frame(8, b"\x03\xe9")
    assert running.stop() == 0
    assert gone(worker)
    assert not accepts("127.0.0.1", running.port)


def test_a_worker_that_died_is_replaced_and_no_connection_is_refused(make: Start):
    running = make().start()
    first = running.ask()["pid"]
    os.kill(first, signal.SIGKILL)
    second = running.ask()["pid"]
    assert second != first
    assert f"worker {first} ended with signal 9; starting another in 0.5 seconds" in running.log
    os.kill(second, signal.SIGKILL)
    running.ask()
    assert "starting another in 1 seconds" in running.log


def test_a_worker_that_cannot_start_again_is_tried_again(make: Start):
    running = make().start()
    first = running.ask()["pid"]
    (running.directory / "start-dies").touch()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: "ended with status 7" in running.log, "the second worker to die")
    (running.directory / "start-dies").unlink()
    assert running.ask()["pid"] != first


def test_when_the_supervisor_is_killed_the_worker_stops(make: Start):
    running = make().start()
    worker = running.ask()["pid"]
    running.signal(signal.SIGKILL)
    wait_for(lambda: gone(worker), "the worker to end")
    assert (running.directory / "stopped").read_text() == "1001"


def test_a_reload_hands_over_what_was_changed_and_leaks_nothing(make: Start):
    running = make().start()
    before = running.ask()
    for number in range(1, 4):
        users = running.directory / "users.htdigest"
        users.write_text(f"version {number}")
        running.write("[backend a.test]\ntarget = embedded\n")
        running.signal(signal.SIGHUP)
        wait_for(lambda number=number: running.count("reloaded") == number, "the reload")
        facts = running.ask()
        assert facts["files"]["users.htdigest"] == f"version {number}"
        assert (facts["pid"], facts["reloads"]) == (before["pid"], number)
    assert facts["descriptors"] <= before["descriptors"] + 1
    supervisor = psutil.Process(running.pid).num_fds()
    running.signal(signal.SIGHUP)
    wait_for(lambda: running.count("reloaded") == 4, "the reload")
    assert psutil.Process(running.pid).num_fds() == supervisor


def test_a_reload_with_a_mistake_changes_nothing(make: Start):
    running = make().start()
    first = running.ask()
    running.write("[web]\nphone = perhaps\n")
    running.signal(signal.SIGHUP)
    wait_for(lambda: "reload refused" in running.log, "the refusal")
    assert f"{running.ini} [web] phone: 'perhaps' is neither on nor off" in running.log
    os.kill(first["pid"], signal.SIGKILL)
    second = running.ask()
    assert second["files"] == first["files"]


def test_a_reload_that_the_worker_refuses_changes_nothing(make: Start):
    running = make().start()
    first = running.ask()
    key_file = running.directory / "wsgate.key"
    key_file.write_text(key_file.read_text().replace(":", ":00"))
    (running.directory / "reload-fails").touch()
    running.signal(signal.SIGHUP)
    wait_for(lambda: "reload refused" in running.log, "the refusal")
    assert f"the stand-in cannot use {key_file}" in running.log
    os.kill(first["pid"], signal.SIGKILL)
    assert running.ask()["files"] == first["files"]


def with_users(running: Running, text: str) -> None:
    (running.directory / "users.htdigest").write_text(text)
    running.write("[backend a.test]\ntarget = embedded\n")


def test_a_reload_is_not_lost_with_the_worker_that_was_to_judge_it(make: Start):
    running = make().start()
    (running.directory / "reload-dies").touch()
    with_users(running, "new")
    running.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in running.log, "the reload", 20)
    assert "ended with signal 9" in running.log
    assert running.ask()["files"]["users.htdigest"] == "new"


def test_what_no_worker_can_start_with_never_takes_the_place_of_what_was_good(make: Start):
    running = make()
    with_users(running, "good")
    running.start()
    (running.directory / "start-dies").touch()
    os.kill(running.ask()["pid"], signal.SIGKILL)
    wait_for(lambda: "starting another in 4 seconds" in running.log, "nobody to judge a reload", 20)
    (running.directory / "start-dies").unlink()
    with_users(running, "bad")
    (running.directory / "unusable-bad").touch()
    running.signal(signal.SIGHUP)
    wait_for(lambda: "reload refused" in running.log, "the refusal", 30)
    assert f"the stand-in cannot use {running.directory}/users.htdigest" in running.log
    facts = wait_for(running.ask, "another worker", 30)
    assert facts["files"]["users.htdigest"] == "good"


def test_a_mistake_that_keeps_all_workers_from_starting_is_mended_by_a_reload(make: Start):
    running = make()
    with_users(running, "old")
    running.start()
    (running.directory / "unusable-old").touch()
    os.kill(running.ask()["pid"], signal.SIGKILL)
    wait_for(lambda: "cannot use" in running.log, "a start that failed", 20)
    with_users(running, "new")
    running.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in running.log, "the reload", 30)
    assert running.ask()["files"]["users.htdigest"] == "new"


def test_a_reload_that_is_refused_leaks_nothing(make: Start):
    running = make().start()
    before = psutil.Process(running.pid).num_fds()
    running.write(process="log_target = missing/wsgate.log")
    for number in range(1, 4):
        running.signal(signal.SIGHUP)
        wait_for(lambda number=number: running.count("reload refused") == number, "the refusal")
    assert psutil.Process(running.pid).num_fds() == before


def ask_all(running: Running, count: int) -> dict[int, dict[str, Any]]:
    """What each of several stand-ins tells, by number."""

    def found_all() -> dict[int, dict[str, Any]] | None:
        facts = running.ask()
        found[facts["number"]] = facts
        return found if len(found) == count else None

    found: dict[int, dict[str, Any]] = {}
    return wait_for(found_all, f"all {count} workers to answer", 20) or {}


def test_several_workers_are_started_reloaded_restarted_and_stopped(make: Start):
    running = make()
    running.write(process="workers = 3")
    running.launch()
    wait_for(lambda: running.count(" is ready") == 3, "three workers", 30)
    before = ask_all(running, 3)
    assert len({facts["pid"] for facts in before.values()}) == 3
    assert [len(facts["endpoints"]) for facts in before.values()] == [3, 3, 3]
    ports = {facts["endpoints"][1][1] for facts in before.values()}
    assert len(ports) == 3, "each has a backend side of its own"
    running.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in running.log, "the reload")
    assert [facts["reloads"] for facts in ask_all(running, 3).values()] == [1, 1, 1]
    assert running.count("reloaded") == 1
    os.kill(before[1]["pid"], signal.SIGKILL)
    wait_for(lambda: running.count(" is ready") == 4, "another worker", 30)
    after = ask_all(running, 3)
    assert [after[number]["pid"] == before[number]["pid"] for number in range(3)] == [True, False, True]
    assert {facts["endpoints"][1][1] for facts in after.values()} == ports
    assert after[1]["descriptors"] <= before[1]["descriptors"] + 1
    assert running.stop() == 0
    assert all(gone(facts["pid"]) for facts in after.values())
    assert not accepts("127.0.0.1", running.port)


def test_connections_go_to_the_others_while_one_keeps_dying(make: Start):
    running = make()
    running.write(process="workers = 2")
    running.launch()
    wait_for(lambda: running.count(" is ready") == 2, "two workers", 30)
    other = ask_all(running, 2)
    (running.directory / "start-dies").touch()
    os.kill(other[1]["pid"], signal.SIGKILL)
    wait_for(lambda: "starting another in 4 seconds" in running.log, "the back-off", 30)
    assert {running.ask()["pid"] for _ in range(12)} == {other[0]["pid"]}
    (running.directory / "start-dies").unlink()
    assert set(ask_all(running, 2)) == {0, 1}


def test_a_reload_that_workers_refuse_is_refused_once(make: Start):
    running = make()
    running.write(process="workers = 2")
    running.launch()
    wait_for(lambda: running.count(" is ready") == 2, "two workers", 30)
    (running.directory / "reload-fails").touch()
    running.signal(signal.SIGHUP)
    wait_for(lambda: "reload refused" in running.log, "the refusal")
    (running.directory / "reload-fails").unlink()
    running.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in running.log, "the reload")
    assert running.count("reload refused") == 1


def test_one_worker_that_cannot_start_ends_all(make: Start):
    """At the first start, as with one: nothing half started."""
    running = make()
    (running.directory / "start-fails").touch()
    running.write(process="workers = 2")
    assert running.launch().wait(40) == 1
    assert "the stand-in cannot read" in running.log
    assert not accepts("127.0.0.1", running.port)


def test_addresses_change_with_a_restart_and_that_is_said(make: Start):
    running = make().start()
    running.ini.write_text(running.ini.read_text().replace(str(running.port), str(free_port())))
    running.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in running.log, "the reload")
    assert "changed addresses and ports take effect with a restart" in running.log
    assert running.ask()["reloads"] == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_logs_are_reopened(make: Start, number: signal.Signals):
    running = make()
    running.write(process="log_target = wsgate.log")
    log, old = running.directory / "wsgate.log", running.directory / "wsgate.log.1"
    running.launch()
    wait_for(lambda: log.exists() and "is ready" in log.read_text(), "the log", 40)
    running.ask()
    assert "asked" in log.read_text()
    log.rename(old)
    running.signal(number)
    wait_for(log.exists, "the new log")
    wait_for(lambda: running.ask() and "asked" in log.read_text(), "the worker to write into the new log")
    assert old.read_text().count(" is ready") == 1
    if number == signal.SIGHUP:
        wait_for(lambda: "reloaded" in log.read_text(), "the reload")
    assert running.ask()["reloads"] == (1 if number == signal.SIGHUP else 0)
    assert running.log == ""


def test_the_log_names_every_address_that_is_listened_on(make: Start):
    running = make().start()
    assert f"INFO [listener web] bind: listens on TCP 127.0.0.1:{running.port}\n" in running.log
    assert re.search(r"INFO \[sip\] bind: listens on UDP (127.0.0.1:\d+), TCP \1\n", running.log)


@pytest.mark.parametrize(
    ("process", "says"),
    [
        ("key_file = none/key", "[wsgate] key_file: cannot make {}/none/key: No such file"),
        ("pidfile = none/pid", "[wsgate] pidfile: cannot write {}/none/pid: No such file"),
    ],
)
def test_a_directory_that_is_missing_is_one_line(make: Start, process: str, says: str):
    running = make()
    text = running.ini.read_text()
    name = process.partition(" =")[0]
    running.ini.write_text(re.sub(rf"(?m)^{name} =.*\n", "", text).replace("[wsgate]\n", f"[wsgate]\n{process}\n"))
    assert running.fails()[-1].startswith(f"wsgate: {running.ini} {says.format(running.directory)}")


def test_daemon_mode_returns_when_ready_and_only_one_can_run(make: Start):
    running = make()
    running.write(process="log_target = wsgate.log")
    assert running.launch("--daemon").wait(40) == 0
    pid = int((running.directory / "wsgate.pid").read_text())
    try:
        facts = running.ask()
        assert facts["supervisor"] == pid
        assert os.getsid(pid) != os.getsid(0)
        assert os.readlink(f"/proc/{pid}/fd/2") == os.readlink(f"/proc/{facts['pid']}/fd/0") == "/dev/null"
        assert running.launch("--daemon").wait(40) == 1
        assert f"wsgate is running already, as process {pid}" in running.log
        assert running.ask()["pid"] == facts["pid"]
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: gone(pid), "the daemon to stop")
    assert not (running.directory / "wsgate.pid").exists()
    assert gone(facts["pid"])


def test_daemon_mode_reports_errors_before_it_detaches(make: Start):
    running = make()
    (running.directory / "start-fails").touch()
    lines = running.fails("--daemon")
    assert lines[-1] == f"wsgate: the stand-in cannot read {running.directory}/wsgate.key"
    assert not accepts("127.0.0.1", running.port)
    assert not (running.directory / "wsgate.pid").exists()


@pytest.mark.parametrize("command", [STANDIN, REAL], ids=["stand-in", "real"])
def test_a_port_in_use_is_one_line_and_nothing_is_half_started(make: Start, command: list[str]):
    running = make(command)
    other = free_port()
    with socket.create_server(("127.0.0.1", other)):
        running.write(f"[listener other]\nbind = 127.0.0.1:{other}\ntls = off\n")
        lines = running.fails()
    assert [line for line in lines if "cannot" in line] == [
        f"wsgate: {running.ini} [listener other] bind: cannot open TCP 127.0.0.1:{other}: Address already in use"
        " (another program has it, or a wsgate that runs already)"
    ]
    assert not accepts("127.0.0.1", running.port)
    assert not (running.directory / "wsgate.pid").exists()


@pytest.mark.parametrize(
    ("listener", "made", "says"),
    [
        ("certificate = none.pem", None, "[listener web] certificate: cannot read {}/none.pem: No such file"),
        ("certificate = bad.pem", "bad.pem", "cannot use the certificate and key in {}/bad.pem"),
    ],
)
def test_a_key_that_cannot_be_read_is_one_line(make: Start, listener: str, made: str | None, says: str):
    running = make(REAL, tls="on")
    running.write(listener=listener)
    if made:
        (running.directory / made).write_text("nonsense")
    lines = running.fails()
    assert lines[-1].startswith("wsgate: ")
    assert says.format(running.directory) in lines[-1]
    assert sum("Traceback" in line for line in lines) == 0
    assert not accepts("127.0.0.1", running.port)


def test_a_user_that_does_not_exist_is_one_line(make: Start):
    running = make(user="no-such-user-here")
    lines = running.fails()
    assert len(lines) <= 2
    assert "[wsgate] user: there is no user 'no-such-user-here'" in lines[-1]
    # Nothing half started: no key is left behind.
    assert not (running.directory / "wsgate.key").exists()


def test_a_user_file_that_is_missing_says_how_to_make_it(make: Start):
    running = make(REAL)
    running.write("[backend a.test]\ntarget = embedded\n")
    assert "make it with: wsgate user add" in running.fails()[-1]


def test_a_mistake_in_the_file_is_one_line(make: Start):
    running = make(REAL)
    running.write("[sipp]\n")
    assert [line for line in running.fails() if "did you mean [sip]?" in line] == running.log.splitlines()


def test_http_fallback_to_an_address_of_our_own_is_refused_behind_a_wildcard_too(make: Start):
    running = make(REAL)
    running.write(listener=f"http_fallback = {uri_host(own_hosts()[0])}:{running.port}")
    running.ini.write_text(running.ini.read_text().replace("bind = 127.0.0.1", "bind = 0.0.0.0", 1))
    assert "http_fallback" in running.fails()[-1]
    assert "is our own port" in running.log

    running.write(listener="http_fallback = 127.0.0.1:9")
    running.start()
    text = running.ini.read_text()
    running.ini.write_text(text.replace("127.0.0.1:9", f"127.0.0.1:{running.port}"))
    running.signal(signal.SIGHUP)
    wait_for(lambda: running.log.count("is our own port") == 2, "the refusal")


def test_the_key_file_and_the_certificate_are_made_once_for_the_owner_alone(make: Start):
    running = make(REAL, tls="on").start()
    names = ("wsgate.key", "wsgate.pem", "wsgate-key.pem")
    first = {name: (running.directory / name).read_bytes() for name in names}
    assert {stat.S_IMODE((running.directory / name).stat().st_mode) for name in names} == {0o600}
    context = ssl.create_default_context(cafile=str(running.directory / "wsgate.pem"))
    plain = socket.create_connection(("127.0.0.1", running.port), 20)
    with context.wrap_socket(plain, server_hostname="localhost") as secure:
        assert secure.version() in ("TLSv1.2", "TLSv1.3")
    running.stop()
    running.log_file.unlink()
    running.start()
    assert first == {name: (running.directory / name).read_bytes() for name in names}


def served(port: int) -> bytes:
    """The certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain) as secure:
        shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    return shown


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that another user can reach (pytest's own is closed to others)."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.root
def test_the_worker_gives_up_root_for_good(make: Start, open_directory: Path):
    open_directory.chmod(0o777)
    running = make(directory=open_directory, user="nobody").start()
    facts = running.ask()
    status = psutil.Process(facts["pid"])
    assert set(status.uids()) == set(status.gids()) == {65534}
    assert set(facts["groups"]) <= {65534}
    assert set(psutil.Process(running.pid).uids()) == {0}
    assert stat.S_IMODE((open_directory / "wsgate.key").stat().st_mode) == 0o600
    assert facts["files"]["wsgate.key"] == (open_directory / "wsgate.key").read_text()


@pytest.mark.root
def test_a_reload_serves_a_new_certificate_that_only_root_may_read(make: Start, open_directory: Path):
    running = make(REAL, tls="auto", directory=open_directory, user="nobody").start()
    browser = RawWebSocket(("127.0.0.1", running.port))
    old = served(running.port)
    running_names = ("wsgate.pem", "wsgate-key.pem")
    now = datetime.datetime.now(datetime.timezone.utc)
    for name, data in zip(running_names, certificate.self_signed(["new.test"], now), strict=True):
        (open_directory / name).write_bytes(data)
        assert stat.S_IMODE((open_directory / name).stat().st_mode) == 0o600
    assert served(running.port) == old
    running.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in running.log, "the reload")
    assert served(running.port) == ssl.PEM_cert_to_DER_cert((open_directory / "wsgate.pem").read_text())
    browser.send(b"\r\n\r\n")
    assert browser.receive() == b"\r\n"


def test_a_reload_with_one_file_that_cannot_be_used_takes_none(make: Start):
    running = make(REAL, tls="on")
    (running.directory / "relays").write_text("")
    running.write("[turn]\nudp =\ntcp =\nusers = relays\n")
    running.start()
    old = served(running.port)
    now = datetime.datetime.now(datetime.timezone.utc)
    for name, data in zip(("wsgate.pem", "wsgate-key.pem"), certificate.self_signed(["new.test"], now), strict=True):
        (running.directory / name).write_bytes(data)
    (running.directory / "relays").write_text("nonsense\n")
    running.signal(signal.SIGHUP)
    wait_for(lambda: "reload refused" in running.log, "the refusal")
    assert "[turn] users" in running.log
    assert served(running.port) == old


def test_systemd_is_told(make: Start, tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        running = make().start(NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert listener.recv(1000) == f"READY=1\nMAINPID={running.pid}".encode()
        running.signal(signal.SIGHUP)
        assert listener.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert listener.recv(1000) == b"READY=1"
        running.stop()
        assert listener.recv(1000) == b"STOPPING=1"


def test_the_supervisor_imports_no_gevent_while_it_runs(make: Start):
    running = make(REAL).start()
    maps = Path(f"/proc/{running.pid}/maps").read_text()
    worker = psutil.Process(running.pid).children()[0].pid
    assert "gevent" not in maps
    assert "greenlet" not in maps
    assert "gevent" in Path(f"/proc/{worker}/maps").read_text()
