"""`scripts/run` in a fresh checkout: installs, prints address and users, serves, and Ctrl-C ends it. As root."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.process import Process, wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = (
    ".git",
    ".venv",
    "node_modules",
    "__pycache__",
    "jssip.js",
    "demo.*",
    "*.egg-info",
    "*.key",
    "*.pem",
    ".*_cache",
)

GET = """
import ssl, sys, urllib.request
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with urllib.request.urlopen(sys.argv[1], timeout=30, context=context) as answer:
    sys.stdout.write(answer.read().decode())
"""


@pytest.fixture(scope="module")
def checkout() -> Iterator[Path]:
    """A copy of this checkout with nothing installed in it, prepared by scripts/run."""
    with tempfile.TemporaryDirectory(prefix="wsgate-") as name:
        place = Path(name) / "wsgate"
        shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(*NOT_COPIED))
        shutil.copy(ROOT / "conf" / "demo.ini", place / "conf")
        Path(name).chmod(0o755)
        subprocess.run([place / "scripts" / "run", "--prepare"], check=True, env=bare(), timeout=500)
        yield place


def bare() -> dict[str, str]:
    """The environment without this test's own virtual environment."""
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    own = str(Path(sys.prefix) / "bin")
    kept["PATH"] = os.pathsep.join(part for part in kept["PATH"].split(os.pathsep) if part != own)
    return kept


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace with loopback alone: nothing can be fetched, and every port is free."""
    name = f"wsgate-{os.getpid()}-{os.urandom(3).hex()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "netns", "exec", name, "ip", "link", "set", "lo", "up"], check=True)
    yield name
    for pid in pids(name):
        os.kill(pid, signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], check=True)


def pids(name: str) -> list[int]:
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
    return [int(pid) for pid in listed.stdout.split()]


def get(namespace: str, url: str) -> str:
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", GET, url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_one_command_starts_a_phone_system_and_ctrl_c_ends_it(checkout: Path, namespace: str):
    environment = {name: "" for name in os.environ if name not in bare()} | bare()
    command = [
        "ip",
        "netns",
        "exec",
        namespace,
        "env",
        "-u",
        "VIRTUAL_ENV",
        "-u",
        "PYTHONPATH",
        checkout / "scripts/run",
    ]
    demo = Process(command, checkout.parent / "log", env=environment)
    try:
        demo.ready(lambda: "is ready" in demo.output, 120)
        assert "https://localhost:8443/" in demo.output
        passwords = dict(re.findall(r"(\w+)@example\.com +password (\w+)", demo.output))
        assert set(passwords) == {"alice", "bob"}
        users = (checkout / "conf" / "demo.users").read_text()
        for user, password in passwords.items():
            assert hashlib.md5(f"{user}:example.com:{password}".encode()).hexdigest() in users

        assert "<html" in get(namespace, "https://localhost:8443/")
        assert "JsSIP" in get(namespace, "http://localhost:8080/jssip.js")
        facts = json.loads(get(namespace, "http://localhost:8080/phone.json"))
        assert facts["domain"] == "example.com"
        urls = ["turn:localhost:3478?transport=udp", "turn:localhost:3478?transport=tcp"]
        assert facts["turn"] == {"urls": urls, "same_credentials": True}

        os.killpg(demo.popen.pid, signal.SIGINT)
        assert demo.popen.wait(60) == 0
        assert "Traceback" not in demo.output
        wait_for(lambda: pids(namespace) == [], "every process to end")
    finally:
        demo.stop()


def test_an_installed_wsgate_brings_its_web_phone(checkout: Path):
    """`pip install .`, not editable: the page and JsSIP lie in the package."""
    python = checkout / ".venv" / "bin" / "python"
    target = checkout.parent / "installed"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, checkout],
        check=True,
        env=bare(),
        timeout=200,
    )
    names = {path.name for path in (target / "wsgate" / "phone").iterdir()}
    assert {"index.html", "phone.js", "phone.css", "jssip.js"} <= names
    assert (target / "bin" / "wsgate").exists()
    assert (target / "wsgate" / "py.typed").exists()
