"""What the transaction layer itself reads and writes: matching keys, ACK, CANCEL, the 503 of a full table. Pure."""

from __future__ import annotations

import hashlib

from wsgate.addr import Hop
from wsgate.errors import ProtocolError
from wsgate.sip.headers import split_values
from wsgate.sip.message import Message, response_to, warning

Key = tuple[object, ...]

MAGIC_COOKIE = b"z9hG4bK"
"""A branch that begins so names a transaction (RFC 3261 §8.1.1.7)."""

TABLE_FULL = "too many transactions are open ([limits] %s)"

RETRY_AFTER_SECONDS = 10
"""What the 503 of a full table tells the client (RFC 3261 §20.33)."""

_COOKIE = MAGIC_COOKIE.lower()


def client_key(message: Message) -> Key:
    """Branch of the top Via and method of CSeq, alike for a request and its responses (RFC 3261 §17.1.3, V3).

    Raises ProtocolError.
    """
    return message.branch, message.cseq[1]


def server_key(message: Message, hop: Hop, method: bytes = b"") -> Key:
    """The key of the server transaction that a request belongs to, `method` in place of its own (RFC 3261 §17.2.3).

    An ACK has the key of its INVITE, or `ack_key` of it when its branch is not unique (RFC 2543). A request from a
    flow never matches one of another flow; a server may open another stream for its CANCEL or ACK. Raises
    ProtocolError without a readable Via.
    """
    host, port = message.sent_by
    connection: object = b""
    if hop.transport.reliable:
        connection = hop.connection if hop.transport.is_websocket else hop.address.host
    method = method or message.method
    branch = message.branch
    if has_transaction_branch(branch):
        return branch, host, port, b"INVITE" if method == b"ACK" else method, connection
    return (
        split_values(message.header(b"via") or b"")[0],
        message.uri,
        message.call_id,
        (message.header(b"cseq") or b"").partition(b" ")[0],
        _tag(message, b"from"),
        connection,
        method,
        _tag(message, b"to"),
    )


def has_transaction_branch(branch: bytes) -> bool:
    """True when `branch` names a transaction: the cookie and something behind it (RFC 3261 §17.2.3)."""
    return len(branch) > len(_COOKIE) and branch[: len(_COOKIE)].lower() == _COOKIE


def ack_key(invite_key: Key, response: bytes) -> Key:
    """The key under which the ACK of an RFC 2543 INVITE comes: with the To tag of `response` (RFC 3261 §17.2.3)."""
    return (*invite_key[:-2], b"ACK", _tag(Message.parse(response), b"to"))


def _tag(message: Message, name: bytes) -> bytes:
    """The tag of From or To, empty where there is none or it cannot be read: the message is answered 400 later."""
    try:
        return message.from_tag if name == b"from" else message.to_tag
    except ProtocolError:
        return b""


def ack_to(request: Message, response: Message) -> bytes:
    """The ACK of a 3xx to 6xx response to `request` (RFC 3261 §17.1.1.3)."""
    hops = request.header(b"max-forwards") or b"70"
    return _derived(request, b"ACK", response.header(b"to") or b"", hops, b"")


def cancel_of(request: Message, reason: bytes) -> bytes:
    """The CANCEL of `request`; `reason` is the value of a Reason header (RFC 3326), empty for none (RFC 3261 §9.1)."""
    extra = b"Reason: %b\r\n" % reason if reason else b""
    return _derived(request, b"CANCEL", request.header(b"to") or b"", b"70", extra)


def _derived(request: Message, method: bytes, to: bytes, max_forwards: bytes, extra: bytes) -> bytes:
    via = split_values(request.header(b"via") or b"")[0]
    routes = b"".join(b"Route: %b\r\n" % line for line in request.lines(b"route"))
    return (
        b"%b %b SIP/2.0\r\nVia: %b\r\n%bMax-Forwards: %b\r\nFrom: %b\r\nTo: %b\r\nCall-ID: %b\r\nCSeq: %d %b\r\n"
        b"%bContent-Length: 0\r\n\r\n"
    ) % (
        method,
        request.uri,
        via,
        routes,
        max_forwards,
        request.header(b"from") or b"",
        to,
        request.call_id,
        request.cseq[0],
        method,
        extra,
    )


def has_next_via(message: Message) -> bool:
    """True when a second Via stands behind the topmost: a response without it goes no further (RFC 3261 §16.7)."""
    lines = message.found(b"via")
    if len(lines) > 1:
        return bool(lines[1][2].strip()) or any(line[2].strip() for line in lines[2:])
    try:
        return len(split_values(message.header(b"via") or b"")) > 1
    except ProtocolError:
        return False


def answer_port(request: Message, hop: Hop) -> int:
    """The port for an answer whose connection is gone: that of the Via (RFC 3261 §18.2.2, step 1)."""
    return request.sent_by[1] or hop.transport.default_port


def trying(request: Message) -> bytes:
    """100 Trying (RFC 3261 §8.2.6)."""
    return response_to(request, 100, "Trying")


def overloaded(request: Message, limit: str) -> bytes:
    """The stateless 503 of a full table; `limit` is the option of [limits] that says so."""
    return response_to(
        request,
        503,
        "Service Unavailable",
        to_tag=overload_tag(request),
        headers=((b"Retry-After", b"%d" % RETRY_AFTER_SECONDS), warning(TABLE_FULL % limit)),
    )


def overload_tag(request: Message) -> bytes:
    """The To tag of the stateless 503: the same for a retransmission and for its ACK (RFC 3261 §8.2.7)."""
    digest = hashlib.blake2b(request.branch + b"\0" + request.call_id, digest_size=8)
    return b"full-" + digest.hexdigest().encode()
