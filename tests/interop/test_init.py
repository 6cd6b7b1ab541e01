"""As an administrator meets it: the shipped ini file on port 443, the init script, the systemd unit, syslog.

All of it in network namespaces; a user namespace that knows root alone does as well, but for giving root up.
"""

from __future__ import annotations

import configparser
import datetime
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.interop.process import Process, wait_for
from wsgate.certificate import self_signed
from wsgate.daemon import mapped

pytestmark = pytest.mark.namespace
ROOT = Path(__file__).resolve().parents[2]
INIT = ROOT / "scripts" / "wsgate.init"
UNIT = ROOT / "conf" / "wsgate.service"

FETCH = """
import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as plain, context.wrap_socket(plain) as secure:
    print(ssl.DER_cert_to_PEM_cert(secure.getpeercert(True)))
    secure.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    while data := secure.recv(4096):
        print(data.decode())
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that another user may enter."""
    with tempfile.TemporaryDirectory(prefix="wsgate-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


class Host:
    """A network namespace with loopback alone."""

    def __init__(self) -> None:
        self.name = f"wsgate-{os.getpid()}-{os.urandom(3).hex()}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        subprocess.run(self.inside("ip", "link", "set", "lo", "up"), check=True)

    def inside(self, *command: str | Path) -> list[str]:
        return ["ip", "netns", "exec", self.name, *map(str, command)]

    def fetch(self, host: str = "127.0.0.1", port: int = 443) -> str:
        """The certificate in PEM and the answer to /healthz; empty where nobody listens."""
        command = self.inside(sys.executable, "-c", FETCH, host, str(port))
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout

    def pids(self) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in listed.stdout.split()]

    def remove(self) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", self.name], check=True)


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.remove()


def shipped(place: Path) -> Path:
    """conf/wsgate.ini as it is, in a directory of its own (keys and certificate are made beside it)."""
    (place / "conf").mkdir()
    return Path(shutil.copy(ROOT / "conf" / "wsgate.ini", place / "conf" / "wsgate.ini"))


def worker_of(pid: int) -> psutil.Process:
    return psutil.Process(pid).children()[0]


def unprivileged() -> int:
    """The user that `user = auto` means here; in a user namespace without it, root."""
    try:
        entry = pwd.getpwnam("wsgate")
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return entry.pw_uid if mapped(entry.pw_uid, Path("/proc/self/uid_map").read_text()) else 0


@pytest.mark.root
def test_the_shipped_file_serves_443_as_root_and_gives_root_up(place: Path, host: Host):
    shipped(place)
    command = host.inside(sys.executable, "-m", "wsgate", "-c", "conf/wsgate.ini")
    daemon = Process(command, place / "log", env={"PYTHONPATH": str(ROOT)})
    try:
        daemon.ready(lambda: "is ready" in daemon.output)
        assert "200 OK" in host.fetch()
        assert "200 OK" in host.fetch("::1")
        worker = worker_of(daemon.popen.pid)
        assert set(worker.uids()) == {unprivileged()}
        assert set(psutil.Process(daemon.popen.pid).uids()) == {0}
        status = Path(f"/proc/{worker.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert "CapPrm:\t0000000000000000" in status
        assert "Traceback" not in daemon.output
    finally:
        assert daemon.stop() == 0
    assert host.pids() == []
    assert sorted(path.name for path in (place / "conf").iterdir()) == [
        "wsgate-key.pem",
        "wsgate.ini",
        "wsgate.key",
        "wsgate.pem",
    ]


class Init:
    """The init script with its defaults set for one host."""

    def __init__(self, place: Path, host: Host) -> None:
        self.host, self.ini, self.pidfile = host, shipped(place), place / "wsgate.pid"
        self.log = place / "wsgate.log"
        self.ini.write_text(
            self.ini.read_text()
            .replace("log_target = stderr", f"log_target = {self.log}")
            .replace("= 30\n", "= 1\n", 1)
        )
        command = place / "wsgate"
        command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m wsgate "$@"\n')
        command.chmod(0o755)
        self.defaults = place / "defaults"
        self.defaults.write_text(f"DAEMON={command}\nCONFIG={self.ini}\nPIDFILE={self.pidfile}\nSTOP_SECONDS=20\n")

    def __call__(self, action: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.host.inside("sh", INIT, action),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "DEFAULTS": str(self.defaults)},
        )

    @property
    def pid(self) -> int:
        return int(self.pidfile.read_text())


def test_the_init_script_starts_reloads_reports_and_stops(place: Path, host: Host):
    init = Init(place, host)
    assert init("status").returncode == 3
    started = init("start")
    assert (started.returncode, started.stdout) == (0, "wsgate: started\n")
    pid, worker = init.pid, worker_of(init.pid)
    assert set(worker.uids()) == {unprivileged()}
    assert init("status").stdout == f"wsgate: is running ({pid})\n"
    again = init("start")
    assert (again.returncode, again.stdout) == (0, f"wsgate: is running already ({pid})\n")

    old = host.fetch()
    assert "200 OK" in old
    made = self_signed(["new.test"], datetime.datetime.now(datetime.timezone.utc))
    for name, data in zip(("wsgate.pem", "wsgate-key.pem"), made, strict=True):
        (init.ini.parent / name).write_bytes(data)
        (init.ini.parent / name).chmod(0o600)
    assert init("reload").returncode == 0
    wait_for(lambda: made.certificate.decode().strip() in host.fetch(), "the new certificate")
    assert worker_of(init.pid) == worker

    assert init("restart").returncode == 0
    assert init.pid != pid
    assert "200 OK" in host.fetch()
    assert init("stop").stdout == "wsgate: stopped\n"
    assert init("status").returncode == 3
    assert init("stop").returncode == 0
    assert host.pids() == []
    assert host.fetch() == ""
    assert not init.pidfile.exists()


def test_the_init_script_tells_a_dead_daemon_and_starts_it_again(place: Path, host: Host):
    init = Init(place, host)
    assert init("start").returncode == 0
    os.kill(init.pid, signal.SIGKILL)
    wait_for(lambda: host.pids() == [], "the worker to follow its supervisor")
    dead = init("status")
    assert (dead.returncode, dead.stdout) == (1, f"wsgate: is dead, and {init.pidfile} is left\n")
    assert init("start").returncode == 0
    assert "200 OK" in host.fetch()
    assert init("stop").returncode == 0


def test_the_init_script_refuses_a_file_with_a_mistake(place: Path, host: Host):
    init = Init(place, host)
    good = init.ini.read_text()
    assert init("start").returncode == 0
    pid = init.pid
    init.ini.write_text(good.replace("[websocket]", "[websockets]"))
    for action in ("reload", "restart"):
        refused = init(action)
        assert refused.returncode == 6
        assert "did you mean [websocket]?" in refused.stderr
        assert init.pid == pid
    assert "200 OK" in host.fetch()
    assert init("stop").returncode == 0
    failed = init("start")
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "did you mean [websocket]?" in failed.stderr
    assert init("reload").returncode == 7
    assert init("bend").returncode == 2


def test_the_init_script_describes_itself():
    text = INIT.read_text()
    header = text[text.index("### BEGIN INIT INFO") : text.index("### END INIT INFO")]
    for field in ("Provides", "Required-Start", "Required-Stop", "Default-Start", "Default-Stop", "Short-Description"):
        assert f"# {field}:" in header


def unit(place: Path) -> configparser.SectionProxy:
    """The [Service] of the shipped unit, with the paths of this test."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    ini = shipped(place)
    text = UNIT.read_text().replace("/usr/local/bin/wsgate", f"{sys.executable} -m wsgate")
    parser.read_string(text.replace("/etc/wsgate/wsgate.ini", str(ini)))
    return parser["Service"]


def test_the_systemd_unit_is_understood_by_systemd(place: Path):
    copy = place / "wsgate.service"
    copy.write_text(UNIT.read_text().replace("/usr/local/bin/wsgate", "/bin/true"))
    result = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_commands_of_the_systemd_unit_do_what_systemd_expects(place: Path, host: Host):
    service = unit(place)
    assert service["Type"] == "notify"
    environment = {"PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(place / "notify")}
    check = host.inside(*shlex.split(service["ExecStartPre"]))
    subprocess.run(check, check=True, env={**os.environ, **environment}, timeout=60, capture_output=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(place / "notify"))
        notify.settimeout(30)
        daemon = Process(host.inside(*shlex.split(service["ExecStart"])), place / "log", env=environment)
        try:
            assert notify.recv(1000).decode().splitlines() == ["READY=1", f"MAINPID={daemon.popen.pid}"]
            assert "200 OK" in host.fetch()
            reload = service["ExecReload"].replace("$MAINPID", str(daemon.popen.pid))
            subprocess.run(shlex.split(reload), check=True)
            assert notify.recv(1000).startswith(b"RELOADING=1\n")
            assert notify.recv(1000) == b"READY=1"
        finally:
            assert daemon.stop() == 0
        assert notify.recv(1000) == b"STOPPING=1"
    assert host.pids() == []


IN_A_DEV_OF_ITS_OWN = """
set -e
mount --make-rprivate /
for name in null zero random urandom; do touch "$1/$name"; mount --bind "/dev/$name" "$1/$name"; done
mount --rbind "$1" /dev
shift
exec "$@"
"""


def test_the_log_goes_to_syslog(place: Path):
    ini = place / "wsgate.ini"
    ini.write_text(
        "[wsgate]\nlog_target = syslog\n[listener web]\nbind = 127.0.0.1:0\ntls = off\n[sip]\nbind = 127.0.0.1:0\n"
    )
    devices = place / "dev"
    devices.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(devices / "log"))
        (devices / "log").chmod(0o666)
        syslog.settimeout(30)
        command = ["unshare", "--mount", "sh", "-c", IN_A_DEV_OF_ITS_OWN, "sh", devices]
        daemon = Process(
            [*command, sys.executable, "-m", "wsgate", "-c", ini], place / "err", env={"PYTHONPATH": str(ROOT)}
        )
        lines: list[str] = []
        try:
            while not any("is ready" in line for line in lines):
                lines.append(syslog.recv(4096).decode())
        finally:
            assert daemon.stop() == 0
    assert all(line.startswith(("<30>wsgate: INFO", "<28>wsgate: WARNING")) for line in lines)
    assert daemon.output == ""
