"""The heads of HTTP/1.x messages, read strictly (RFC 9112): lines and fields of a request, a whole answer, and framing.

What two readers could understand differently is refused, not repaired: a request that the server behind sees otherwise
than its relay is how one client's bytes become another's request.
"""

from __future__ import annotations

import enum
import re
from http import HTTPStatus
from typing import NamedTuple

from wsgate.errors import ProtocolError
from wsgate.ws.handshake import MAX_HEAD_BYTES, tokens, values

MAX_FIELDS = 100
"""Header fields of one message, and trailer fields."""

MAX_INTERIM_ANSWERS = 10
"""Answers 1xx to one request before the answer itself."""

Fields = tuple[tuple[str, str], ...]
"""Name and value of each field in order, as latin-1 text, names as written, values without outer blanks."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIELD_NAME = re.compile(_TOKEN)
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_REQUEST_LINE = re.compile(rf"({_TOKEN}) (/[\x21-\x7e\x80-\xff]*) (HTTP/1\.[01])\r\n")
_STATUS_LINE = re.compile(r"(HTTP/1\.[01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_LENGTH = re.compile("[0-9]{1,18}")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+;=-]+)(?::[0-9]{0,5})?")

_REFUSED_METHODS = ("CONNECT", "TRACE")
"""CONNECT would open a tunnel to anywhere; TRACE would show what we add."""


class HeadError(ValueError):
    """A request that cannot be used; `status` is the answer."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class RequestHead(NamedTuple):
    """A request; `target` is what stands between method and version, byte for byte as latin-1 text."""

    method: str
    target: str
    version: str
    fields: Fields


class AnswerHead(NamedTuple):
    """An answer."""

    version: str
    status: int
    reason: str
    fields: Fields


class BodyKind(enum.Enum):
    """How the end of a body is found (RFC 9112 §6.3)."""

    NONE = "none"
    LENGTH = "Content-Length"
    CHUNKED = "chunked"
    UNTIL_END = "the end of TCP"


class Body(NamedTuple):
    """What follows a head; `length` counts for LENGTH alone."""

    kind: BodyKind
    length: int = 0


NO_BODY = Body(BodyKind.NONE)


def request_line(line: str) -> tuple[str, str, str]:
    """Method, target and version of a request line with its CRLF; the target is a path (origin-form).

    Raises HeadError: other forms belong to forward proxies, other versions are not spoken.
    """
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise HeadError(HTTPStatus.BAD_REQUEST, "malformed request line")
    return match[1], match[2], match[3]


def field_line(line: bytes) -> tuple[str, str]:
    """One field of a head or trailer, `line` with its CRLF. Raises HeadError.

    A lone LF ends no line: a relay that takes it for part of a value would pass on fields that it never judged. A line
    that begins with a blank (folding) and a blank before the colon are refused (RFC 9112 §5.1, §5.2).
    """
    if not line.endswith(b"\r\n"):
        raise HeadError(HTTPStatus.BAD_REQUEST, "a line of the head does not end with CRLF")
    name, colon, value = line[:-2].decode("latin-1").partition(":")
    value = value.strip(" \t")
    if not colon or not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
        raise HeadError(HTTPStatus.BAD_REQUEST, "malformed header field")
    return name, value


def request_body(head: RequestHead) -> Body:
    """How the body of a request that is passed on ends. Raises HeadError for every doubt (RFC 9112 §3.2, §6)."""
    if head.method in _REFUSED_METHODS:
        raise HeadError(HTTPStatus.METHOD_NOT_ALLOWED, f"{head.method} is not served")
    hosts = values(head.fields, "host")
    if len(hosts) > 1 or (not hosts and head.version == "HTTP/1.1") or not all(map(_HOST.fullmatch, hosts)):
        raise HeadError(HTTPStatus.BAD_REQUEST, "exactly one valid Host is needed")
    expected = [value.lower() for value in values(head.fields, "expect")]
    if expected not in ([], ["100-continue"]):
        raise HeadError(HTTPStatus.EXPECTATION_FAILED, "only 100-continue can be expected")
    lengths, codings = values(head.fields, "content-length"), values(head.fields, "transfer-encoding")
    if not codings:
        if not lengths:
            return NO_BODY
        if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
            raise HeadError(HTTPStatus.BAD_REQUEST, "malformed Content-Length")
        return Body(BodyKind.LENGTH, int(lengths[0])) if int(lengths[0]) else NO_BODY
    if lengths:
        raise HeadError(HTTPStatus.BAD_REQUEST, "Content-Length and Transfer-Encoding together")
    if head.version != "HTTP/1.1":
        raise HeadError(HTTPStatus.BAD_REQUEST, "Transfer-Encoding needs HTTP/1.1")
    if [coding.lower() for coding in codings] == ["chunked"]:
        return Body(BodyKind.CHUNKED)
    if "chunked" not in ",".join(codings).lower():
        raise HeadError(HTTPStatus.NOT_IMPLEMENTED, "this Transfer-Encoding is not understood")
    raise HeadError(HTTPStatus.BAD_REQUEST, "Transfer-Encoding is not chunked alone")


def answer_body(method: str, answer: AnswerHead) -> Body:
    """How the body of the answer to `method` ends (RFC 9112 §6.3). Raises ProtocolError for every doubt."""
    lengths, codings = values(answer.fields, "content-length"), values(answer.fields, "transfer-encoding")
    if lengths and codings:
        raise ProtocolError("the answer has both Content-Length and Transfer-Encoding")
    if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
        raise ProtocolError("the answer has a malformed Content-Length")
    if codings and (answer.version != "HTTP/1.1" or [coding.lower() for coding in codings] != ["chunked"]):
        raise ProtocolError("the answer has another Transfer-Encoding than chunked")
    if method == "HEAD" or answer.status < 200 or answer.status in (204, 304):
        return NO_BODY
    if codings:
        return Body(BodyKind.CHUNKED)
    if lengths:
        return Body(BodyKind.LENGTH, int(lengths[0])) if int(lengths[0]) else NO_BODY
    return Body(BodyKind.UNTIL_END)


class AnswerReader:
    """The heads of the answers on one connection to a server; `rest` is what came behind the one that was whole."""

    __slots__ = ("_interim", "rest")

    def __init__(self) -> None:
        self.rest = b""
        self._interim = 0

    def receive(self, data: bytes = b"") -> AnswerHead | None:
        """The next head, None while it is not whole; after an interim answer call again without data.

        Raises ProtocolError when it breaks RFC 9112, passes MAX_HEAD_BYTES, or too many interim answers came.
        """
        self.rest += data
        end = self.rest.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES + 4)
        if end < 0:
            if len(self.rest) >= MAX_HEAD_BYTES:
                raise ProtocolError("the head of the answer is too long")
            return None
        head, self.rest = self.rest[:end], self.rest[end + 4 :]
        status_line, *lines = head.split(b"\r\n")
        status = _STATUS_LINE.fullmatch(status_line.decode("latin-1"))
        if status is None:
            raise ProtocolError("the answer has no status line of HTTP/1.x")
        if len(lines) > MAX_FIELDS:
            raise ProtocolError("the answer has too many header fields")
        try:
            fields = tuple(field_line(line + b"\r\n") for line in lines)
        except HeadError as error:
            raise ProtocolError(f"the answer is malformed: {error}") from None
        answer = AnswerHead(status[1], int(status[2]), status[3] or "", fields)
        if answer.status < 200:
            self._interim += 1
            if self._interim > MAX_INTERIM_ANSWERS:
                raise ProtocolError("too many interim answers")
        return answer


def upgrades(head: RequestHead) -> list[str]:
    """The protocols that a request offers to change to and that may be tunnelled, as written (RFC 9110 §7.8).

    Other versions of HTTP are none of them: their requests would pass unjudged. Nor is TLS, and nothing with a body.
    """
    connection = [token.lower() for token in tokens(head.fields, "connection")]
    if head.version != "HTTP/1.1" or "upgrade" not in connection or request_body(head) != NO_BODY:
        return []
    offered = tokens(head.fields, "upgrade")
    return [name for name in offered if not re.match(r"h2|h3|http|tls", name.lower()) and _UPGRADE.fullmatch(name)]


_UPGRADE = re.compile(rf"{_TOKEN}(?:/{_TOKEN})?")
