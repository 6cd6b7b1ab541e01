"""`wsgate turn-test` and `wsgate turn-credentials` with coturn and with wsgate itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.daemon import READY
from tests.interop.process import Process, accepts, free_port
from tests.turn_process import PASSWORD, ROOT, USER, TurnProcess, write_certificate

REALM = "coturn.test"
SECRET = "the-secret-of-both"
STEPS = ("connect", "binding", "allocate", "allocate peer", "permission", "send and data", "channel bind",
         "channel data", "refresh to 0")  # fmt: skip


def wsgate(*arguments: str | Path, password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wsgate", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "WSGATE_TURN_PASSWORD": password},
        check=False,
    )


def turn_test(*arguments: str | Path, password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
    return wsgate("turn-test", *arguments, password=password)


def assert_relays(result: subprocess.CompletedProcess[str]) -> None:
    """Every step is there with its time, and the verdict is good."""
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert [row[2:16].strip() for row in lines[1:-1]] == [
        *STEPS[:4], *[STEPS[4]] * 2, STEPS[5], *[STEPS[6]] * 2, STEPS[7], *[STEPS[8]] * 2
    ]  # fmt: skip
    assert all(re.search(r" \d+\.\d\d ms  ", row) for row in lines[1:-1])
    assert lines[-1] == "all is well: media is relayed"


class Coturn:
    """turnserver on loopback: `port` for UDP and TCP, `tls_port` for TLS and DTLS."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port, self.tls_port = free_port(), free_port()
        self.certificate, private_key = write_certificate(directory)
        command = ["turnserver", "-n", "--no-cli", "-r", REALM, "-L", "127.0.0.1", "-p", str(self.port)]
        command += ["--tls-listening-port", str(self.tls_port), "--cert", self.certificate, "--pkey", private_key]
        command += ["--log-file", "stdout", "--simple-log", "--pidfile", str(directory / "coturn.pid")]
        command += ["--userdb", str(directory / "coturn.db"), *options]
        self.process = Process(command, directory / "coturn.log")
        self.process.ready(lambda: accepts("127.0.0.1", self.port) and accepts("127.0.0.1", self.tls_port))


LONG_TERM = ("--lt-cred-mech", "-u", f"{USER}:{PASSWORD}")


@pytest.fixture(scope="module")
def coturn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coturn]:
    server = Coturn(tmp_path_factory.mktemp("coturn"), *LONG_TERM, "--allow-loopback-peers")
    yield server
    server.process.stop()


@pytest.mark.parametrize("form", ["turn:127.0.0.1:{0.port}", "turn:127.0.0.1:{0.port}?transport=tcp"])
def test_coturn_over_udp_and_tcp(coturn: Coturn, form: str) -> None:
    assert_relays(turn_test(form.format(coturn), "--user", USER))


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_coturn_over_tls_and_dtls(coturn: Coturn, transport: str) -> None:
    """Its certificate is trusted, taken as it is, or refused."""
    uri = f"turns:127.0.0.1:{coturn.tls_port}?transport={transport}"
    assert_relays(turn_test(uri, "--user", USER, "--ca-file", coturn.certificate))
    assert_relays(turn_test(uri, "--user", USER, "--insecure"))
    refused = turn_test(uri, "--user", USER)
    assert refused.returncode == 4
    assert "certificate" in refused.stdout.splitlines()[-1]


def test_a_certificate_for_somebody_else_is_refused(coturn: Coturn) -> None:
    """127.0.0.2 is not in it."""
    for transport in ("tcp", "udp"):
        with TurnProcess(host="127.0.0.2") as turn:
            port = turn.tls_port if transport == "tcp" else turn.port
            result = turn_test(f"turns:127.0.0.2:{port}?transport={transport}", "--user", USER)
        assert result.returncode == 4, result.stdout


def test_coturn_is_asked_for_a_binding(coturn: Coturn) -> None:
    result = turn_test(f"stun:127.0.0.1:{coturn.port}")
    assert result.returncode == 0
    assert re.search(r"sees this client at 127\.0\.0\.1:\d+", result.stdout)


def test_credentials_that_coturn_refuses(coturn: Coturn) -> None:
    for arguments, password in ((["--user", USER], "wrong"), ([], "")):
        result = turn_test(f"turn:127.0.0.1:{coturn.port}", *arguments, password=password)
        assert result.returncode == 5, result.stdout
        assert result.stdout.splitlines()[-1].startswith("FAILED: allocate: 401 ")


def test_coturn_that_does_not_relay_to_itself_is_403(tmp_path: Path) -> None:
    """The sentence names what to look at; user and password come from a file."""
    server = Coturn(tmp_path, *LONG_TERM)
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    try:
        result = turn_test(
            f"turn:127.0.0.1:{server.port}", "--user", USER, "--password-file", secret, password="not this"
        )
    finally:
        server.process.stop()
    assert result.returncode == 7, result.stdout
    assert "403" in result.stdout.splitlines()[-1]
    assert "denied-peer-ip" in result.stdout.splitlines()[-1]


def test_nobody_there_is_3() -> None:
    port = free_port()
    for scheme, transport in (("turn", "udp"), ("turn", "tcp"), ("turns", "tcp"), ("turns", "udp")):
        result = turn_test(f"{scheme}:127.0.0.1:{port}?transport={transport}", "--user", USER)
        assert result.returncode == 3, result.stdout
        assert "refused: nobody listens on that port" in result.stdout.splitlines()[-1]
    result = turn_test("stun:does-not-exist.invalid")
    assert result.returncode == 3
    assert "not known" in result.stdout


def test_credentials_of_an_ini_file_open_coturn_and_wsgate(tmp_path: Path) -> None:
    """Rule A4: coturn takes what wsgate makes from the same secret; the secret is never shown."""
    turn_port = free_port()
    (tmp_path / "secrets").write_text(f"{SECRET}\nan older one\n")
    text = (
        f"[turn]\nenabled = on\nudp = 127.0.0.1:{turn_port}\ntcp = 127.0.0.1:{turn_port}\n"
        f"relay_address = 127.0.0.1\nrealm = {REALM}\nshared_secret_file = secrets\n"
    )
    coturn = Coturn(tmp_path, "--use-auth-secret", "--static-auth-secret", SECRET, "--allow-loopback-peers")
    ini = tmp_path / "wsgate.ini"
    ini.write_text(
        f"[listener web]\nbind = 127.0.0.1:{free_port()}\ntls = off\nturn = on\n[sip]\nbind = 127.0.0.1:0\n" + text
    )
    daemon = Process([sys.executable, "-m", "wsgate", "-c", ini], tmp_path / "log", env={"PYTHONPATH": str(ROOT)})
    try:
        daemon.ready(lambda: READY in daemon.output)
        made = wsgate("turn-credentials", "-c", ini, "--user", "tester", "--ttl", "600")
        assert made.returncode == 0, made.stderr
        *lines, last = made.stdout.splitlines()
        said = dict(line.split(": ", 1) for line in lines)
        (server,) = json.loads(last)["iceServers"]
        assert (server["username"], server["credential"]) == (said["username"], said["password"])
        assert said["username"].endswith(":tester")
        assert len(server["urls"]) == 3
        for uri in (
            f"turn:127.0.0.1:{coturn.port}",
            server["urls"][0].replace(server["urls"][0].split(":")[1], "127.0.0.1"),
        ):
            assert_relays(turn_test(uri, "--user", said["username"], password=said["password"]))
            result = turn_test(uri, "-c", ini)
            assert_relays(result)
            assert SECRET not in made.stdout + made.stderr + result.stdout + result.stderr
    finally:
        daemon.stop()
        coturn.process.stop()


def test_over_ipv6_for_ipv6() -> None:
    """An address in brackets, and relayed addresses of IPv6."""
    with TurnProcess(host="::1", relays=(("127.0.0.1", "127.0.0.1"), ("::1", "::1"))) as turn:
        assert_relays(turn_test(f"turn:[::1]:{turn.port}", "--user", USER))
        result = turn_test(f"turn:[::1]:{turn.port}?transport=tcp", "--user", USER, "--ipv6")
    assert_relays(result)
    assert "relayed address [::1]:" in result.stdout
