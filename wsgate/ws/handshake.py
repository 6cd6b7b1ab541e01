"""The opening handshake of WebSocket (RFC 6455 §4) without sockets: what a server must refuse, and the client's side.

`refusal` is rules H1 and H2 as a function of one HTTP request; `ClientHandshake` is what wsgate says to a WebSocket
SIP server and how it judges the answer.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from wsgate.addr import canonical_host
from wsgate.errors import ProtocolError

SUBPROTOCOL = "sip"
"""RFC 7118 §4.1; one exact token, case and all."""

MAX_HEAD_BYTES = 16384
"""Of one HTTP head, request or response: start line, fields and blank line."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]+)(?::[0-9]{0,5})?")
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([0-9]{3})(?: [^\r\n]*)?")


class Refusal(NamedTuple):
    """An HTTP answer instead of 101: `status` as "400 Bad Request", `reason` as body, `fields` besides."""

    status: str
    reason: str
    fields: tuple[tuple[str, str], ...] = ()


class UpgradeRequest(NamedTuple):
    """The HTTP request as it was read; `fields` in their order, names as written, values without outer blanks."""

    method: str
    version: str
    fields: tuple[tuple[str, str], ...]


def accept_key(key: str) -> str:
    """Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455 §4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode("latin-1") + _GUID).digest()).decode()


def values(fields: Iterable[tuple[str, str]], name: str) -> list[str]:
    """The values of every field called `name` (lower case), in order."""
    return [value for field, value in fields if field.lower() == name]


def tokens(fields: Iterable[tuple[str, str]], name: str) -> list[str]:
    """The members of a comma-separated list field, all its lines joined, empty members left out (RFC 9110 §5.6.1)."""
    return [part for value in values(fields, name) for part in map(_strip, value.split(",")) if part]


def asks_for_websocket(fields: Iterable[tuple[str, str]]) -> bool:
    """True when the token `websocket` stands in Upgrade, in any case."""
    return "websocket" in (token.lower() for token in tokens(fields, "upgrade"))


def refusal(request: UpgradeRequest, host: str, origins: tuple[str, ...]) -> Refusal | None:
    """What stands against this upgrade by rules H1 and H2, or None.

    `host` is the Host the browser asked for (its own field, or what a trusted relay says); `origins` as in [websocket].
    """
    fields = request.fields
    if request.method != "GET":
        return Refusal("405 Method Not Allowed", "an upgrade is a GET", (("Allow", "GET"),))
    hosts = values(fields, "host")
    keys = values(fields, "sec-websocket-key")
    if request.version != "HTTP/1.1":
        return _bad("an upgrade needs HTTP/1.1")
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        return _bad("exactly one valid Host is needed")
    if not asks_for_websocket(fields):
        return _bad("Upgrade: websocket is missing")
    if "upgrade" not in (token.lower() for token in tokens(fields, "connection")):
        return _bad("Connection: Upgrade is missing")
    if values(fields, "sec-websocket-version") != ["13"]:
        needed = (("Sec-WebSocket-Version", "13"),)
        return Refusal("426 Upgrade Required", "WebSocket version 13 is needed", needed)
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        return _bad("Sec-WebSocket-Key is not 16 bytes in base64")
    if SUBPROTOCOL not in tokens(fields, "sec-websocket-protocol"):
        return _bad("Sec-WebSocket-Protocol: sip is missing")
    if values(fields, "transfer-encoding") or values(fields, "content-length") not in ([], ["0"]):
        return _bad("an upgrade has no body")
    if not origin_allowed(values(fields, "origin"), host, origins):
        return Refusal("403 Forbidden", "this origin is not allowed")
    return None


def _bad(reason: str) -> Refusal:
    return Refusal("400 Bad Request", reason)


def _strip(text: str) -> str:
    return text.strip(" \t")


def origin_allowed(sent: list[str], host: str, allowed: tuple[str, ...]) -> bool:
    """Rule H1. Only a browser sends Origin, and no page can forge it, so a client without one passes under `same`."""
    if "*" in allowed:
        return True
    if not sent:
        return "same" in allowed
    if len(sent) > 1:
        return False
    origin = sent[0].lower()
    if origin in (one.lower().rstrip("/") for one in allowed):
        return origin != "same"
    if "same" not in allowed:
        return False
    try:
        origin_host = urlsplit(origin).hostname
        asked_host = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return bool(origin_host and asked_host) and canonical_host(origin_host or "") == canonical_host(asked_host or "")


class ClientHandshake:
    """The client's side of one opening handshake (RFC 6455 §4.1): send `request`, feed what comes to `receive`."""

    __slots__ = ("_accept", "_buffer", "request")

    def __init__(
        self, host: str, path: str, random_bytes: Callable[[int], bytes], fields: Iterable[tuple[str, str]] = ()
    ) -> None:
        """`host` as in a URI (IPv6 in brackets, port where it is not the default); `fields` are further ones."""
        key = base64.b64encode(random_bytes(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Protocol: {SUBPROTOCOL}",
            *(f"{name}: {value}" for name, value in fields),
        ]
        self.request = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        self._accept = accept_key(key)
        self._buffer = b""

    def receive(self, data: bytes) -> bytes | None:
        """None while the answer is not whole, then the bytes behind it, which belong to the first frame.

        Raises ProtocolError when the server refuses, breaks RFC 6455 §4.1, or its head passes MAX_HEAD_BYTES.
        """
        self._buffer += data
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD_BYTES:
            raise ProtocolError("the server's answer is too long")
        if not blank:
            return None
        status_line, *lines = head.split(b"\r\n")
        status = _STATUS_LINE.fullmatch(status_line)
        if status is None:
            raise ProtocolError("the server does not speak HTTP/1.1")
        if status[1] != b"101":
            raise ProtocolError(f"the server refuses the upgrade with {status[1].decode()}")
        fields = []
        for line in lines:
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name or name != name.strip():
                raise ProtocolError("a field of the server's answer is malformed")
            fields.append((name, _strip(value)))
        self._judge(fields)
        return rest

    def _judge(self, fields: list[tuple[str, str]]) -> None:
        if not asks_for_websocket(fields) or "upgrade" not in (token.lower() for token in tokens(fields, "connection")):
            raise ProtocolError("the server's answer is no upgrade to websocket")
        if values(fields, "sec-websocket-accept") != [self._accept]:
            raise ProtocolError("the server's Sec-WebSocket-Accept is wrong")
        if values(fields, "sec-websocket-extensions"):
            raise ProtocolError("the server uses an extension that was not offered")
        if values(fields, "sec-websocket-protocol") != [SUBPROTOCOL]:
            raise ProtocolError("the server did not choose the subprotocol sip")
