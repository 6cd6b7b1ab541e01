"""What a relay changes in the heads that pass through it: hop-by-hop fields, and who the client is (RFC 9110 §7.6).

Target, other fields and their order stay as they came, byte for byte. What says who the client is is written here and
believed from trusted relays alone.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import NamedTuple

from wsgate.errors import ProtocolError
from wsgate.http.head import AnswerHead, Body, BodyKind, Fields, HeadError, RequestHead, upgrades
from wsgate.ws.handshake import tokens, values

VIA = "1.1 wsgate"
"""What we add to Via (RFC 9110 §7.6.3)."""

MAX_PASSES = 3
"""Times that a request may come by: one more is a loop of our own making."""

_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "content-length",
        "proxy",
    )
)
"""And whatever begins with Proxy-. (`Proxy` is no field of HTTP; CGI programs take it for an environment variable.)"""

_NOT_IN_TRAILERS = re.compile(
    "host|content-.*|.*authoriz.*|.*authent.*|.*cookie|location|expect|range|cache-control|max-forwards|age|date|expires"
    "|vary|via|retry-after"
)
"""Fields that shape framing, routing, caching or access are dropped where they come too late (RFC 9110 §6.5.1)."""


class Client(NamedTuple):
    """Who asks: `peer` is the other end of TCP, `remote` the client behind trusted relays, `trusted` says if it is one.

    Both are IP addresses as text.
    """

    peer: str
    remote: str
    trusted: bool
    secure: bool


def passed_request(head: RequestHead, body: Body, client: Client, default_host: str) -> bytes:
    """The head for the server behind, for a connection that carries this one request. Raises HeadError for a loop.

    `default_host` is asked for where an HTTP/1.0 client names none.
    """
    if tokens(head.fields, "via").count(VIA) >= MAX_PASSES:
        raise HeadError(HTTPStatus.LOOP_DETECTED, "this request came by too often")
    host = next(iter(values(head.fields, "host")), default_host)
    kept = [(name, value) for name, value in _end_to_end(head.fields) if not _is_rewritten(name)]
    offered = upgrades(head)
    lines = [f"{head.method} {head.target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in kept)]
    lines += [f"{name}: {value}" for name, value in _identity(head.fields, client, host)]
    lines += [f"Via: {', '.join([*values(head.fields, 'via'), VIA])}"]
    if values(head.fields, "expect") and head.version == "HTTP/1.1" and body.kind is not BodyKind.NONE:
        lines += ["Expect: 100-continue"]
    if body.kind is BodyKind.CHUNKED:
        lines += ["Transfer-Encoding: chunked"]
    elif body.kind is BodyKind.LENGTH or values(head.fields, "content-length"):
        lines += [f"Content-Length: {body.length}"]
    lines += ["Connection: Upgrade", f"Upgrade: {', '.join(offered)}"] if offered else ["Connection: close"]
    return _bytes(lines)


def passed_answer(answer: AnswerHead, body: Body, *, chunked: bool, close: bool) -> bytes:
    """The head for the client. `chunked`: the body goes out in chunks; `close`: the connection ends behind it."""
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
    lines += [f"{name}: {value}" for name, value in _end_to_end(answer.fields)]
    if chunked:
        lines += ["Transfer-Encoding: chunked"]
    elif body.kind is BodyKind.LENGTH:
        lines += [f"Content-Length: {body.length}"]
    elif body.kind is BodyKind.NONE and answer.status >= 200 and answer.status != 204:
        # The answer to HEAD and a 304 say what there would be.
        lines += [f"Content-Length: {length}" for length in values(answer.fields, "content-length")]
    if close:
        lines += ["Connection: close"]
    return _bytes(lines)


def passed_upgrade(head: RequestHead, answer: AnswerHead) -> bytes:
    """The head of a 101 for the client. Raises ProtocolError where it takes up nothing that was offered."""
    chosen = tokens(answer.fields, "upgrade")
    offered = [name.lower() for name in upgrades(head)]
    if not chosen or not all(name.lower() in offered for name in chosen):
        raise ProtocolError("the server changes to a protocol that was not offered")
    lines = [f"HTTP/1.1 101 {answer.reason}", *(f"{name}: {value}" for name, value in _end_to_end(answer.fields))]
    return _bytes([*lines, "Connection: Upgrade", f"Upgrade: {', '.join(chosen)}"])


def passed_trailers(trailers: Fields) -> Fields:
    """The trailer fields that may pass."""
    return tuple(
        (name, value)
        for name, value in _end_to_end(trailers)
        if not _NOT_IN_TRAILERS.fullmatch(name.lower()) and not _is_rewritten(name)
    )


def _end_to_end(fields: Fields) -> Fields:
    """Without what belongs to one connection, framing included (RFC 9110 §7.6.1)."""
    named = {token.lower() for token in tokens(fields, "connection")}
    return tuple(
        (name, value)
        for name, value in fields
        if name.lower() not in named | _HOP_BY_HOP and not name.lower().startswith("proxy-")
    )


def _is_rewritten(name: str) -> bool:
    """True for the fields of a request that are written here. CGI takes `_` for `-`, and so is it judged here."""
    name = name.lower().replace("_", "-")
    return name.startswith("x-forwarded-") or name in ("forwarded", "x-real-ip", "host", "via", "expect")


def _identity(fields: Fields, client: Client, host: str) -> Fields:
    """X-Forwarded-*, X-Real-IP and, where a relay of ours uses it, Forwarded; what strangers wrote is not kept."""
    proto = "https" if client.secure else "http"
    before = fields if client.trusted else ()
    hosts = [*values(before, "x-forwarded-host"), *values(fields, "host")]
    found = [
        ("X-Forwarded-For", ", ".join([*values(before, "x-forwarded-for"), client.peer])),
        ("X-Forwarded-Proto", next(iter(values(before, "x-forwarded-proto")), proto)),
        ("X-Forwarded-Host", ", ".join(hosts or [host])),
        ("X-Real-IP", client.remote),
    ]
    if values(before, "forwarded"):
        node = f'"[{client.peer}]"' if ":" in client.peer else client.peer
        ours = f'for={node};host="{host}";proto={proto}'
        found.append(("Forwarded", ", ".join([*values(before, "forwarded"), ours])))
    return tuple(found)


def _bytes(lines: list[str]) -> bytes:
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
