"""TURN credentials that come with a registration, through the whole daemon: the header, /turn, their end (rule A5)."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.interop.daemon import Daemon
from tests.interop.process import free_port
from tests.interop.raw import RawWebSocket, UdpPeer, answer, header, headers, sip
from tests.loopback.turn_site import Phone, udp
from wsgate.handover import Files
from wsgate.media import shared_secrets
from wsgate.turn import stun
from wsgate.turn.auth import long_term_key
from wsgate.turn.settings import TurnSettings
from wsgate.turn.stun import MessageClass, Method
from wsgate.turn.values import PasswordAlgorithm

REALM = "media.test"
TURN_PORT = re.compile(r"turn:127\.0\.0\.1:(\d+)")
SIGNER = ec.generate_private_key(ec.SECP256R1())
TEXT = """
[backend example.test]
target = sip:127.0.0.1:{port};transport=udp
transports = udp

[identity]
jwt_keys = keys.pem
"""
TURN = """
realm = {realm}
udp = 127.0.0.1:{port}
tcp =
relay_address = 127.0.0.1
allow_peers = 127.0.0.0/8
"""


class Site:
    """The daemon, the SIP server behind it, and a browser that has shown a token."""

    def __init__(self, directory: Path, turn: str = "") -> None:
        public = SIGNER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (directory / "keys.pem").write_bytes(public)
        self.server, self.turn_port = UdpPeer(), free_port()
        turn = TURN.format(realm=REALM, port=self.turn_port) + turn
        self.daemon = Daemon(directory, TEXT.format(port=self.server.port), turn=turn)
        with ExitStack() as stack:
            stack.callback(self.daemon.stop)
            self.browser = self.connect()
            stack.pop_all()

    def connect(self) -> RawWebSocket:
        return RawWebSocket(self.daemon.address, headers=(("Authorization", f"Bearer {token()}"),))

    def register(self, cseq: int, expires: int = 600, client: str = "a") -> bytes:
        """REGISTER as alice and let the SIP server say yes, with a header that is not its to write; the 200."""
        contact = f"<sip:alice@{client}.invalid;transport=ws>"
        self.browser.send(
            sip(
                "REGISTER sip:example.test SIP/2.0",
                f"Via: SIP/2.0/WS a.invalid;branch=z9hG4bK-{cseq}",
                "From: <sip:alice@example.test>;tag=1",
                "To: <sip:alice@example.test>",
                "Call-ID: register",
                f"CSeq: {cseq} REGISTER",
                "Max-Forwards: 70",
                f"Contact: {contact}",
                f"Expires: {expires}",
            )
        )
        request, source = self.server.receive_until(b"REGISTER")
        bound = [f"Contact: {header(request, 'Contact')};expires={expires}"] if expires else []
        self.server.send(answer(request, "200 OK", *bound, "X-Turn-Credentials: username=theirs", tag="r"), source)
        return self.browser.receive_until(lambda message: message.startswith(b"SIP/2.0 200"))

    def ask_for_credentials(self, *fields: tuple[str, str]) -> tuple[int, dict[str, Any], dict[str, str]]:
        """GET /turn: status, JSON of a 200, header fields in lower case."""
        url = f"http://127.0.0.1:{self.daemon.http}/turn"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=dict(fields)), timeout=20) as response:
                return response.status, json.load(response), {k.lower(): v for k, v in response.headers.items()}
        except urllib.error.HTTPError as error:
            return error.code, {}, {k.lower(): v for k, v in error.headers.items()}

    def phone(self, username: str, password: str) -> Phone:
        """A TURN client with these credentials."""
        phone = Phone(self)  # type: ignore[arg-type]
        phone.user, phone.realm = username, REALM
        phone.key = long_term_key(username, REALM, password, PasswordAlgorithm.MD5)
        return phone

    @property
    def listeners(self) -> list[Site]:
        return [self]

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self.turn_port

    def close(self) -> None:
        self.browser.close()
        self.server.close()
        self.daemon.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def token(**claims: Any) -> str:
    return jwt.encode({"sub": "alice@example.test", "exp": time.time() + 600, **claims}, SIGNER, "ES256")


def credentials_in(response: bytes) -> dict[str, str]:
    """The one X-Turn-Credentials of a 200 to REGISTER."""
    [value] = headers(response, "X-Turn-Credentials")
    return {name: quoted or plain for name, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|(\d+))', value)}


def status(message: stun.Message) -> int:
    """The error code; 0 for success."""
    if message.message_class is MessageClass.SUCCESS:
        return 0
    error = message.get(stun.ERROR_CODE)
    assert error is not None
    return error.code


def allocate(phone: Phone) -> int:
    return status(phone.ask(Method.ALLOCATE, stun.REQUESTED_TRANSPORT(17)))


def test_credentials_come_with_the_registration_and_end_with_it(site: Site) -> None:
    """In the 200 and at /turn; revoked by expires=0, not by the loss of the connection."""
    given = credentials_in(site.register(1))
    assert TURN_PORT.search(given["uris"])
    assert 0 < int(given["ttl"]) <= 3600
    phone, peer = site.phone(given["username"], given["password"]), udp("127.0.0.2")
    assert allocate(phone) == 0
    phone.bind(0x4001, peer.getsockname()[:2])
    phone.channel(0x4001, b"media")
    assert peer.recv(2000) == b"media"

    code, configuration, fields = site.ask_for_credentials(("Authorization", f"Bearer {token()}"))
    assert (code, fields["cache-control"]) == (200, "no-store")
    assert "access-control-allow-origin" not in fields
    [server] = configuration["iceServers"]
    assert any(TURN_PORT.match(url) for url in server["urls"])
    assert allocate(site.phone(server["username"], server["credential"])) == 0

    site.browser.close()
    site.daemon.wait_status("flows", [])
    assert allocate(site.phone(given["username"], given["password"])) == 0, "a lost socket revokes nothing"

    site.browser = site.connect()
    assert headers(site.register(2, expires=0), "X-Turn-Credentials") == [], "somebody else's header is removed"
    assert allocate(site.phone(given["username"], given["password"])) == 401
    assert allocate(site.phone(server["username"], server["credential"])) == 401
    assert status(phone.ask(Method.REFRESH, stun.LIFETIME(600))) == 401
    for sock in (phone.socket, peer):
        sock.close()


@pytest.mark.parametrize(("policy", "clients"), [("call", "ba"), ("any", "b")])
def test_turn_speaks_for_each_client_of_a_user_where_calls_decide(tmp_path: Path, policy: str, clients: str) -> None:
    """A5, P6: with `call` those of one tab reach nobody in a call of the other, and /turn cannot tell them apart."""
    site = Site(tmp_path, f"peer_policy = {policy}\n")
    try:
        names = {
            client: credentials_in(site.register(number, 500 + 50 * number, client))
            for number, client in [(1, "a"), (2, "b")]
        }
        code, configuration, _ = site.ask_for_credentials(("Authorization", f"Bearer {token()}"))
        assert code == 200
        ids = [server["username"].partition(":")[2] for server in configuration["iceServers"]]
        assert ids == [names[client]["username"].partition(":")[2] for client in clients]
        assert 0 < configuration["ttl"] <= 3600
    finally:
        site.close()


def test_turn_is_refused_to_strangers_and_other_origins(site: Site) -> None:
    """/turn checks identity, registration and Origin."""
    bearer = ("Authorization", f"Bearer {token()}")
    assert site.ask_for_credentials()[0] == 401
    assert site.ask_for_credentials(("Authorization", "Bearer nonsense"))[0] in (401, 403)
    assert site.ask_for_credentials(bearer)[0] == 403, "nobody is registered yet"
    site.register(1)
    assert site.ask_for_credentials(bearer)[0] == 200
    code, _, fields = site.ask_for_credentials(bearer, ("Origin", "https://elsewhere.test"))
    assert code == 403
    assert "access-control-allow-origin" not in fields
    assert site.ask_for_credentials(("Authorization", f"Bearer {token(sub='bob@example.test')}"))[0] == 403


def test_no_comment_of_a_secret_file_is_a_secret(tmp_path: Path) -> None:
    """Rule A4: anybody could guess it."""
    (tmp_path / "secrets").write_text("# new\n\n  first \n  # old, until May\nsecond\n")
    settings = TurnSettings(shared_secret_file="secrets")
    assert shared_secrets(settings, Files(tmp_path)) == ["first", "second"]
