"""Users of the embedded registrar: their file, and raw clients that register by digest (RFC 7616, MD5)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from tests.interop.raw import RawWebSocket, UdpPeer, sip

DOMAIN = "example.test"
PASSWORD = "wonder"

EMBEDDED = """
[backend example.test]
target = embedded

[registrar]
realm = example.test
users = users.htdigest
"""


def write_users(directory: Path, *users: str) -> None:
    """The user file of EMBEDDED; everybody has the same password."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [f"{user}:{DOMAIN}:{_hex(user, DOMAIN, PASSWORD)}\n" for user in users]
    (directory / "users.htdigest").write_text("".join(lines))


def authorization(challenge: bytes, user: str, method: str, uri: str, password: str = PASSWORD) -> str:
    """The Authorization for the MD5 challenge in a 401 or 407."""
    offers = re.findall(r'\r\n[A-Za-z]+-Authenticate: [^\r]*nonce="([^"]+)"([^\r]*)', challenge.decode())
    nonce = next(nonce for nonce, rest in offers if "algorithm=" not in rest or "algorithm=MD5" in rest)
    response = _hex(_hex(user, DOMAIN, password), nonce, "00000001", "c0", "auth", _hex(method, uri))
    return (
        f'Digest username="{user}", realm="{DOMAIN}", nonce="{nonce}", uri="{uri}", algorithm=MD5, '
        f'qop=auth, nc=00000001, cnonce="c0", response="{response}"'
    )


def register(
    user: str,
    contact: str,
    via: str,
    exchange: Callable[[bytes], bytes],
    *headers: str,
    call_id: str = "",
    password: str = PASSWORD,
) -> bytes:
    """REGISTER, answer the challenge; returns the 200. `exchange` sends a request and gives the response.

    Without `contact` it asks what is registered (RFC 3261 §10.2.3).
    """
    uri, aor = f"sip:{DOMAIN}", f"<sip:{user}@{DOMAIN}>"
    call_id = call_id or f"register-{user}-{os.urandom(4).hex()}"

    def request(cseq: int, *more: str) -> bytes:
        lines = [f"Via: {via};branch=z9hG4bK{call_id}{cseq}", "Max-Forwards: 70", f"From: {aor};tag=r", f"To: {aor}"]
        lines += [f"Call-ID: {call_id}", f"CSeq: {cseq} REGISTER", *([f"Contact: {contact}"] if contact else [])]
        lines += [*headers, *more]
        return sip(f"REGISTER {uri} SIP/2.0", *lines)

    challenge = exchange(request(1))
    assert challenge.startswith(b"SIP/2.0 401 "), challenge
    answer = exchange(request(2, "Authorization: " + authorization(challenge, user, "REGISTER", uri, password)))
    assert answer.startswith(b"SIP/2.0 200 "), answer
    return answer


def register_browser(
    browser: RawWebSocket,
    user: str,
    *headers: str,
    parameters: str = "",
    contact: str = "",
    call_id: str = "",
    password: str = PASSWORD,
) -> bytes:
    """Register a WebSocket as `user` with the Contact `sip:USER@browser.invalid;transport=ws`, or with another."""

    def exchange(data: bytes) -> bytes:
        browser.send(data)
        return browser.receive_until(lambda message: message.startswith(b"SIP/2.0 "))

    contact = contact or f"<sip:{user}@browser.invalid;transport=ws>{parameters}"
    return register(user, contact, "SIP/2.0/WS browser.invalid", exchange, *headers, call_id=call_id, password=password)


def register_phone(phone: UdpPeer, gateway: tuple[str, int], user: str, contact: str = "") -> bytes:
    """Register a UDP phone as `user`."""

    def exchange(data: bytes) -> bytes:
        phone.send(data, gateway)
        return phone.receive_until(b"SIP/2.0 ")[0]

    place = f"{phone.host}:{phone.port}"
    return register(user, contact or f"<sip:{user}@{place}>", f"SIP/2.0/UDP {place};rport", exchange)


def _hex(*parts: str) -> str:
    return hashlib.md5(":".join(parts).encode()).hexdigest()
