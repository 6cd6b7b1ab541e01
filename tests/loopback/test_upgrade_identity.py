"""Identity from the upgrade through the whole daemon: cookies, tokens, forwarded headers, expiry, reload, secrets."""

from __future__ import annotations

import hashlib
import hmac
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.interop.daemon import Daemon
from tests.interop.process import wait_for
from tests.interop.raw import HandshakeRefused, RawWebSocket, UdpPeer, answer, header, headers, sip

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hush-hush-cookie-secret"
SIGNER = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())

BACKEND = """
[backend example.test]
target = sip:127.0.0.1:{port};transport=udp
transports = udp

[websocket]
origins = same

[identity]
forward_headers = Cookie: X-WS-Cookie, Origin: X-WS-Origin
"""

Start = Callable[[str], Daemon]


@pytest.fixture
def backend() -> Iterator[UdpPeer]:
    peer = UdpPeer()
    yield peer
    peer.close()


@pytest.fixture
def start(tmp_path: Path, backend: UdpPeer) -> Iterator[Start]:
    """Starts the daemon with these further lines of [identity]; stops it at the end, and finds no secret in its log."""
    running: list[Daemon] = []

    def begin(identity: str) -> Daemon:
        (tmp_path / "keys.pem").write_bytes(public(SIGNER))
        running.append(Daemon(tmp_path, BACKEND.format(port=backend.port) + identity))
        return running[-1]

    yield begin
    for daemon in running:
        daemon.stop()
        for secret in (SECRET, "session=", "Bearer", "eyJ", "WSSessionMAC="):
            assert secret not in daemon.log


def public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def session(user: str = "alice", destination: str = "*@*", seconds: float = 600, secret: str = SECRET) -> str:
    """The Cookie field of a site that has let `user` in."""
    info = f"1:{int(time.time())}:{int(time.time() + seconds)}:{user}@example.test:{destination}"
    mac = hmac.new(secret.encode(), f"{info}:".encode(), hashlib.sha1).hexdigest()
    return f"session=of-the-site; WSSessionInfo={quote_plus(info)}; WSSessionMAC={mac}"


def token(key: ec.EllipticCurvePrivateKey = SIGNER, seconds: float = 600, **claims: Any) -> str:
    return jwt.encode({"sub": "alice@example.test", "exp": time.time() + seconds, **claims}, key, "ES256")


def refused(daemon: Daemon, *fields: tuple[str, str], path: str = "/ws") -> tuple[int, bytes]:
    with pytest.raises(HandshakeRefused) as caught:
        RawWebSocket(daemon.address, path, headers=fields)
    return caught.value.status, caught.value.head


def message(user: str = "alice", to: str = "bob@example.test", *extra: str, method: str = "MESSAGE") -> bytes:
    return sip(
        f"{method} sip:{to} SIP/2.0",
        f"Via: SIP/2.0/WS a.invalid;branch=z9hG4bK{os.urandom(8).hex()}",
        f"From: <sip:{user}@example.test>;tag={os.urandom(4).hex()}",
        f"To: <sip:{to}>",
        f"Call-ID: {os.urandom(8).hex()}",
        f"CSeq: 1 {method}",
        "Max-Forwards: 70",
        *extra,
    )


def passes(browser: RawWebSocket, backend: UdpPeer, data: bytes) -> bytes:
    """Send a request that is to reach the backend, answer it there, and see the answer here; returns the request."""
    browser.send(data)
    arrived, source = backend.receive_until(b"MESSAGE")
    echoed = [f"X-WS-Cookie: {value}" for value in headers(arrived, "X-WS-Cookie")]
    backend.send(answer(arrived, "200 OK", *echoed, tag="b"), source)
    final = browser.receive_until(lambda found: found.startswith(b"SIP/2.0 2"))
    assert headers(final, "X-WS-Cookie") == []
    return arrived


def test_cookies_of_resiprocate(start: Start, backend: UdpPeer) -> None:
    daemon = start(f"cookie_secret = {SECRET}\n")
    assert refused(daemon)[0] == 401
    assert refused(daemon, ("Cookie", session(secret="another")))[0] == 403
    assert refused(daemon, ("Cookie", session(seconds=-1)))[0] == 403
    assert refused(daemon, ("Cookie", session()), ("Origin", "https://evil.test"))[0] == 403
    origin = f"http://127.0.0.1:{daemon.http}"
    browser = RawWebSocket(daemon.address, headers=(("Cookie", session()), ("Origin", origin)))
    arrived = passes(browser, backend, message("alice", "bob@example.test", "X-WS-Origin: https://forged.test"))
    assert header(arrived, "X-WS-Cookie").startswith("session=of-the-site; WSSessionInfo=1%3A")
    assert headers(arrived, "X-WS-Origin") == [origin]
    browser.send(message("mallory"))
    final = browser.receive_until(lambda found: found.startswith(b"SIP/2.0 403"))
    assert "identity" in header(final, "Warning")
    # The destination is bound as well.
    bound = RawWebSocket(daemon.address, headers=(("Cookie", session(destination="bob@example.test")),))
    passes(bound, backend, message())
    bound.send(message(to="carol@example.test"))
    assert bound.receive_until(lambda found: found.startswith(b"SIP/2.0 403"))
    assert backend.receive(0.2) is None
    assert daemon.status()["counters"]["sip_identity_refused"] == 2
    browser.close()
    bound.close()


@pytest.mark.parametrize("place", ["header", "query", "cookie"])
def test_bearer_tokens(start: Start, backend: UdpPeer, place: str) -> None:
    daemon = start("jwt_keys = keys.pem\n")

    def carried(text: str) -> tuple[tuple[tuple[str, str], ...], str]:
        if place == "query":
            return (), f"/ws?access_token={text}"
        return (
            (("Authorization", f"Bearer {text}") if place == "header" else ("Cookie", f"access_token={text}")),
        ), "/ws"

    status, head = refused(daemon)
    assert status == 401
    assert b'www-authenticate: bearer realm="wsgate"' in head.lower()
    for wrong in (token(STRANGER), token(seconds=-1), token(nbf=time.time() + 600), token(sub="alice"), "nonsense"):
        fields, path = carried(wrong)
        assert refused(daemon, *fields, path=path)[0] == 403
    fields, path = carried(token())
    browser = RawWebSocket(daemon.address, path, headers=fields)
    passes(browser, backend, message())
    browser.send(message("mallory"))
    assert browser.receive_until(lambda found: found.startswith(b"SIP/2.0 403"))
    browser.close()


def test_an_expired_identity_closes_the_websocket_with_1008(start: Start, backend: UdpPeer) -> None:
    """Rule H3: at its end, not at the next message."""
    daemon = start("jwt_keys = keys.pem\n")
    ends = time.time() + 4
    browser = RawWebSocket(daemon.address, headers=(("Authorization", f"Bearer {token(exp=ends)}"),))
    passes(browser, backend, message())
    assert browser.receive(30) is None
    assert browser.close_code == 1008
    assert time.time() > ends - 1, "not before, but for the fraction of a second that a token may not tell"
    daemon.wait_status("flows", [])
    assert daemon.status()["counters"]["sip_identities_expired"] == 1
    browser.close()


def test_keys_are_read_again_on_sighup(start: Start, backend: UdpPeer, tmp_path: Path) -> None:
    daemon = start("jwt_keys = keys.pem\n")
    before = RawWebSocket(daemon.address, headers=(("Authorization", f"Bearer {token()}"),))
    (tmp_path / "keys.pem").write_bytes(public(STRANGER))
    os.kill(daemon.pid, signal.SIGHUP)

    def admitted() -> bool:
        try:
            RawWebSocket(daemon.address, headers=(("Authorization", f"Bearer {token(STRANGER)}"),)).close()
        except HandshakeRefused:
            return False
        return True

    wait_for(admitted, "the new key to count", 10)
    assert refused(daemon, ("Authorization", f"Bearer {token()}"))[0] == 403
    passes(before, backend, message())
    before.close()


@pytest.mark.parametrize(
    ("identity", "content", "reason"),
    [
        ("jwt_keys = keys.pem", None, "keys.pem"),
        ("jwt_keys = keys.pem", b"no keys at all", "[identity] jwt_keys"),
        ("forward_headers = Cookie: Via", b"", "[identity] forward_headers"),
        ("cookie_secret = hush-hush\n[websocket]\norigins = *", b"", "[websocket] origins"),
    ],
)
def test_what_cannot_be_used_stops_the_start_with_one_line(
    tmp_path: Path, identity: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "keys.pem").write_bytes(content)
    ini = tmp_path / "wsgate.ini"
    text = "[wsgate]\nuser =\n[listener web]\nbind = 127.0.0.1:0\ntls = off\n[sip]\nbind = 127.0.0.1:0\n[identity]\n"
    ini.write_text(text + identity + "\n")
    command = [sys.executable, "-m", "wsgate", "-c", str(ini)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert "hush" not in done.stderr
