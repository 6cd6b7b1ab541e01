"""The command `wsgate`: what it prints, its exit status, the user file."""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.certificates import Authority
from tests.interop.process import wait_for
from wsgate import __version__

ROOT = Path(__file__).resolve().parents[2]
INI = "[listener web]\nbind = 127.0.0.1:0\ntls = off\n[registrar]\nrealm = a.test\nusers = users\n"
EMBEDDED = "[backend a.test]\ntarget = embedded\n"


def wsgate(*arguments: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wsgate", *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


@pytest.fixture
def ini(tmp_path: Path) -> Path:
    path = tmp_path / "wsgate.ini"
    path.write_text(INI)
    return path


@pytest.mark.parametrize("package", ["jwt", "psutil", "prometheus_client"])
@pytest.mark.parametrize("options", [["-c"], ["--check-config", "-c"]])
def test_a_package_that_is_not_installed_is_one_clear_line(ini: Path, package: str, options: list[str]) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from wsgate.cli import main; sys.exit(main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", code, *options, str(ini)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert "Traceback" not in result.stderr
    if options == ["-c"] or package == "jwt":
        line = result.stderr.splitlines()[-1]
        assert result.returncode == 1
        assert line.startswith("wsgate: ")
        assert package in line
        assert "pip install" in line


def test_version():
    result = wsgate("--version")
    assert (result.returncode, result.stdout) == (0, f"wsgate {__version__}\n")


def test_without_a_file_it_says_how():
    result = wsgate()
    assert result.returncode == 1
    assert "wsgate -c FILE" in result.stderr


def test_wrong_usage_is_2():
    assert wsgate("--no-such-option").returncode == 2


def test_a_good_file_is_0_and_makes_nothing(ini: Path):
    result = wsgate("--check-config", "-c", ini)
    assert result.returncode == 0
    assert result.stdout.endswith(f"{ini}: good\n")
    assert [path.name for path in ini.parent.iterdir()] == ["wsgate.ini"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[limits]\nconections = 1\n", "[limits] conections: unknown option; did you mean connections? (allowed: conn"),
        (
            "[limits]\nconnections = many\n",
            "[limits] connections: 'many' cannot be used: it is not a number (allowed: a",
        ),
        (EMBEDDED, "[registrar] users: there is no file"),
        ("[wsgate]\nlog_target = none/log\n", "[wsgate] log_target: there is no directory "),
        ("[wsgate]\npidfile = none/pid\n", "[wsgate] pidfile: there is no directory "),
        ("[wsgate]\nkey_file = none/key\n", "[wsgate] key_file: there is no directory "),
        ("[sip]\nstate_file = none/state\n", "[sip] state_file: there is no directory "),
        ("[wsgate]\nuser = no-such-user-here\n", "[wsgate] user: there is no user 'no-such-user-here' (allowed: auto"),
        ("[wsgate]\ngroup = no-such-group\n", "[wsgate] group: there is no group 'no-such-group' (allowed: auto"),
    ],
)
def test_a_bad_file_is_1_with_one_sentence(ini: Path, text: str, says: str):
    ini.write_text(INI + text)
    result = wsgate("--check-config", "-c", ini)
    assert result.returncode == 1
    assert result.stderr.startswith(f"wsgate: {ini} {says}")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("certificate = one.pem\n", "it takes a certificate and its key in PEM, without a passphrase"),
        ("certificate = one.pem\nprivate_key = other.key\n", "the key is that of another certificate"),
        ("certificate = junk\n", "it takes a certificate and its key in PEM"),
    ],
)
def test_check_config_tries_certificates(ini: Path, text: str, says: str):
    authority = Authority(ini.parent)
    for name in ("one", "other"):
        certificate, key = authority.issue(f"{name}.test")
        Path(certificate).rename(ini.with_name(f"{name}.pem"))
        Path(key).rename(ini.with_name(f"{name}.key"))
    (ini.parent / "junk").write_text("nonsense\n")
    ini.write_text(f"[listener web]\nbind = 127.0.0.1:0\n{text}")
    result = wsgate("--check-config", "-c", ini)
    assert result.returncode == 1
    assert result.stderr.startswith(f"wsgate: {ini} [listener web] certificate: cannot use the certificate and key in ")
    assert says in result.stderr
    ini.write_text("[listener web]\nbind = 127.0.0.1:0\ncertificate = one.pem\nprivate_key = one.key\n")
    assert wsgate("--check-config", "-c", ini).returncode == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (EMBEDDED, "[registrar] users: "),
        ("[turn]\nusers = users\n", "[turn] users: "),
        ("[turn]\noauth_keys = users\n", "[turn] oauth_keys: "),
        ("[identity]\njwt_keys = users\n", "[identity] jwt_keys: "),
        ("[wsgate]\nkey_file = users\n", "[wsgate] key_file: "),
        ("[backend b.test]\ntarget = sip:b.test\nca_file = users\n", "[backend b.test]: "),
    ],
)
def test_check_config_reads_the_files_that_are_named(ini: Path, text: str, says: str):
    ini.with_name("users").write_text("nonsense\n")
    ini.write_text(INI.replace("users = users\n", "" if "[turn]" in text else "users = users\n") + text)
    result = wsgate("--check-config", "-c", ini)
    assert result.returncode == 1
    assert result.stderr.startswith(f"wsgate: {ini} {says}")
    assert len(result.stderr.splitlines()) == 1


def test_a_user_is_named_without_the_domain(ini: Path):
    result = wsgate("user", "add", "-c", ini, "alice@a.test", "--password-stdin", given="secret\n")
    assert (result.returncode, result.stderr) == (1, "wsgate: the name stands without the domain: alice\n")
    assert not ini.with_name("users").exists()


def test_check_config_shows_what_has_no_effect(ini: Path):
    ini.write_text(INI + "[trace]\nhep = 192.0.2.1:9060\n")
    result = wsgate("--check-config", "-c", ini)
    assert result.returncode == 0
    assert "[trace] hep: no effect" in result.stdout


def test_users_are_added_listed_changed_and_removed(ini: Path):
    users = ini.with_name("users")
    assert wsgate("user", "add", "-c", ini, "alice", "--password-stdin", given="sec:ret\n").returncode == 0
    md5 = hashlib.md5(b"alice:a.test:sec:ret").hexdigest()
    sha256 = hashlib.sha256(b"alice:a.test:sec:ret").hexdigest()
    assert users.read_text() == f"alice:a.test:{md5}:{sha256}\n"
    assert stat.S_IMODE(users.stat().st_mode) == 0o600
    assert "changed" in wsgate("user", "add", "-c", ini, "alice", "--password-stdin", given="other\n").stdout
    assert md5 not in users.read_text()
    wsgate("user", "add", "-c", ini, "bob", "--password-stdin", given="x\n")
    assert wsgate("user", "list", "-c", ini).stdout == "alice@a.test\nbob@a.test\n"
    assert wsgate("user", "del", "-c", ini, "alice").returncode == 0
    assert wsgate("user", "list", "-c", ini).stdout == "bob@a.test\n"


@pytest.mark.parametrize(
    ("arguments", "given", "says"),
    [
        (("del", "nobody-here"), "", "no user nobody-here"),
        (("list",), "", "No such file"),
        (("add", "a:b", "--password-stdin"), "x\n", "colon"),
        (("add", "alice"), "", "--password-stdin"),
        (("add", "alice"), "secret\nsecret\n", "--password-stdin"),
        (("add", "alice", "--password-stdin"), "\n", "password must have 1 to"),
        (("add", "alice", "--password-stdin"), "x" * 2000, "password must have 1 to"),
    ],
)
def test_user_mistakes_are_1_with_one_sentence(ini: Path, arguments: tuple[str, ...], given: str, says: str):
    action, *rest = arguments
    result = wsgate("user", action, "-c", ini, *rest, given=given)
    assert result.returncode == 1
    assert result.stderr.startswith("wsgate: ")
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_password_is_never_taken_from_the_command_line(ini: Path):
    assert wsgate("user", "add", "-c", ini, "alice", "secret").returncode == 2
    assert not ini.with_name("users").exists()


def test_turn_credentials_without_a_secret_names_file_section_and_option(ini: Path) -> None:
    """Rule A4."""
    for text, option in (("", "[turn]: "), ("[turn]\nudp = 127.0.0.1:0\ntcp =\n", "[turn] shared_secret: ")):
        ini.write_text(INI + text)
        result = wsgate("turn-credentials", "-c", ini, "--user", "tester", "--ttl", "60")
        assert result.returncode == 1
        assert result.stderr.startswith(f"wsgate: {ini} {option}")
        assert len(result.stderr.splitlines()) == 1


def test_turn_credentials_are_those_of_the_newest_secret(ini: Path) -> None:
    """Rule A4: expiry:user, and HMAC of it by the first secret; no secret is printed."""
    text = "[turn]\nudp = 127.0.0.1:3478\ntcp = 127.0.0.1:0\nshared_secret = new one, old one\n"
    ini.write_text(INI + text + "uris = turn:a.test:3478\n")
    result = wsgate("turn-credentials", "-c", ini, "--user", "tester", "--ttl", "60", "--json")
    assert result.returncode == 0
    assert "new one" not in result.stdout
    (server,) = json.loads(result.stdout)["iceServers"]
    assert server["urls"] == ["turn:a.test:3478"]
    expiry, user = server["username"].split(":")
    assert user == "tester"
    assert 0 <= int(expiry) - time.time() <= 60
    digest = hmac.digest(b"new one", server["username"].encode(), "sha1")
    assert server["credential"] == base64.b64encode(digest).decode()
    ini.write_text(INI + text)
    result = wsgate("turn-credentials", "-c", ini, "--user", "tester", "--host", "2001:db8::1", "--json")
    assert json.loads(result.stdout)["iceServers"][0]["urls"] == ["turn:[2001:db8::1]:3478?transport=udp"]


@pytest.mark.parametrize("arguments", [["turn-test", "http://a"], ["turn-credentials"], ["turn-test"]])
def test_wrong_usage_of_the_turn_commands_is_2(arguments: list[str]) -> None:
    assert wsgate(*arguments).returncode == 2


def test_turn_test_wants_a_password_that_is_not_on_the_command_line() -> None:
    result = wsgate("turn-test", "turn:127.0.0.1:9", "--user", "tester")
    assert result.returncode == 1
    assert "--password-file" in result.stderr


def test_the_password_is_asked_for_at_a_terminal_and_ctrl_c_ends_that_quietly(ini: Path) -> None:
    for typed, status in ((b"pass\npass\n", 0), (b"pass\nword\n", 1), (b"pa\x03", 130)):
        status_found, shown = at_terminal(typed, "user", "add", "-c", str(ini), "alice")
        assert status_found == status, shown
        assert "Traceback" not in shown
        assert "pass\r" not in shown, "it is not echoed"


def at_terminal(typed: bytes, *arguments: str) -> tuple[int, str]:
    """The exit status and what stood on the screen; each line is typed once it is asked for and waited for."""
    pid, terminal = pty.fork()
    if not pid:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as a terminal's shell has it, whoever started these tests
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        os.execve(sys.executable, [sys.executable, "-m", "wsgate", *arguments], environment)
    shown = b""
    try:
        while data := os.read(terminal, 4096):
            shown += data
            if b": " in data and typed:
                # Between its last look at signals and its read the process would sleep over a Ctrl-C.
                wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING, "the read")
                line, end, typed = typed.partition(b"\n")
                os.write(terminal, line + end)
    except OSError as error:
        if error.errno != errno.EIO:  # so a terminal says that its other side is closed
            raise
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()
