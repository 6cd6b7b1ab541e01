"""A SIP message: the received bytes plus an index (RFC 3261 §7), and the answers made to one here. Pure.

`Message.parse` finds the lines; values are parsed when somebody asks. A message
that can be indexed but breaks a rule carries the reason in `flaw`, so that the caller can still answer it with 400.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from wsgate.errors import ProtocolError
from wsgate.sip.headers import (
    NameAddr,
    Via,
    is_token,
    parse_cseq,
    parse_name_addr,
    parse_via,
    split_values,
)
from wsgate.sip.mending import has_nul, without_bare_line_ends

MAX_HEADERS = 512
"""Header lines, broken ones included, that one message may have."""

COMPACT_FORMS = {
    b"v": b"via",
    b"f": b"from",
    b"t": b"to",
    b"i": b"call-id",
    b"m": b"contact",
    b"l": b"content-length",
    b"c": b"content-type",
    b"k": b"supported",
    b"s": b"subject",
    b"e": b"content-encoding",
    b"o": b"event",
    b"r": b"refer-to",
    b"b": b"referred-by",
    b"u": b"allow-events",
    b"a": b"accept-contact",
    b"d": b"request-disposition",
    b"j": b"reject-contact",
    b"x": b"session-expires",
    b"y": b"identity",
}
"""RFC 3261 §7.3.3 and the registry of later RFCs: one letter to the lower-case long name."""

# A header with its folds, or else one broken line: the scan never has to search for the next match. That a NUL makes a
# line broken costs nothing where there is none; a closer look then tells the quoted ones.
_HEADER = re.compile(rb"([^\s:\0]+)[ \t]*:([^\r\n\0]*(?:\r\n[ \t][^\r\n\0]*)*)\r\n|[^\n]*\n")
_HEADER_WITH_NUL = re.compile(rb"([^\s:]+)[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)\r\n|[^\n]*\n")
_REQUEST_LINE = re.compile(rb"([^\s\0]+) ([^\s\0]+) (SIP/[^\s]+)\Z", re.IGNORECASE)
_STATUS_LINE = re.compile(rb"SIP/2\.0 ([1-6][0-9]{2})(?: ([^\r\n\0]*))?\Z", re.IGNORECASE)
_SINGLE = frozenset((b"from", b"to", b"call-id", b"cseq", b"max-forwards", b"content-length"))
_REQUIRED = (b"via", b"from", b"to", b"call-id", b"cseq")


class Header(NamedTuple):
    """Where one header line stands: [start, end) with its CRLF, the raw value in [value_start, value_end)."""

    name: bytes
    start: int
    value_start: int
    value_end: int
    end: int


class Message:
    """One SIP request or response. `method` and `uri` are empty in a response, `status` is 0 in a request."""

    __slots__ = (
        "_cseq",
        "_first",
        "_from",
        "_to",
        "_via",
        "body_start",
        "data",
        "flaw",
        "headers",
        "line_end",
        "method",
        "reason",
        "status",
        "uri",
    )

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.flaw = ""
        self.method = b""
        self.uri = b""
        self.status = 0
        self.reason = b""
        self.headers: list[Header] = []
        self.line_end = 0
        self.body_start = 0
        self._first: dict[bytes, Header] = {}
        self._cseq: tuple[int, bytes] | None = None
        self._from: NameAddr | None = None
        self._to: NameAddr | None = None
        self._via: Via | None = None

    @classmethod
    def parse(cls, data: bytes) -> Message:
        """Index one whole message. Raises ProtocolError where not even the lines can be told apart.

        The body is what Content-Length says; bytes behind it are cut off (RFC 3261 §18.3). Without
        Content-Length everything behind the blank line is the body. Of a message with bare CR or LF in its header
        lines, which is only to be answered, `data` holds what can be used for that.
        """
        blank = data.find(b"\r\n\r\n")
        if blank < 0:
            return cls._without_blank_line(data)
        message = cls(data)
        message.line_end = data.index(b"\r\n") + 2
        message.body_start = blank + 4
        message._read_start_line(data[: message.line_end - 2])
        if message._read_headers(_HEADER, blank + 2):
            message = cls._with_broken_lines(message, data[: blank + 2])
        message._judge()
        return message

    @classmethod
    def _with_broken_lines(cls, message: Message, head: bytes) -> Message:
        """Look closer at a head that has lines which are no plain header lines."""
        mended = without_bare_line_ends(head, MAX_HEADERS)
        data = message.data if mended is None else mended + b"\r\n"
        again = cls(data)
        again.line_end = message.line_end
        again.body_start = message.body_start if mended is None else len(data)
        again._read_start_line(data[: again.line_end - 2])
        if mended is not None:
            again.flaw = again.flaw or "bare CR or LF in a header line"
        elif has_nul(head):
            again.flaw = again.flaw or "NUL in a header line"
        again._read_headers(_HEADER_WITH_NUL, again.body_start - 2)
        return again

    @classmethod
    def _without_blank_line(cls, data: bytes) -> Message:
        """Whole header lines and nothing behind them: broken, but it can be answered (400). Raises ProtocolError."""
        if not data.endswith(b"\r\n") or data.count(b"\r\n") < 2 or data.startswith(b"\r\n"):
            raise ProtocolError("no blank line behind the headers")
        message = cls.parse(data + b"\r\n")
        message.flaw = message.flaw or "no blank line behind the headers"
        return message

    @property
    def is_request(self) -> bool:
        """True for a request."""
        return self.status == 0

    @property
    def body(self) -> bytes:
        """The bytes behind the blank line."""
        return self.data[self.body_start :]

    def header(self, name: bytes) -> bytes | None:
        """The value of the first header line called `name` (lower case, long form), unfolded; None when absent."""
        header = self._first.get(name)
        return None if header is None else self._value(header)

    def first(self, name: bytes) -> Header | None:
        """Where the first header line called `name` (lower case, long form) stands; None when absent."""
        return self._first.get(name)

    def lines(self, name: bytes) -> list[bytes]:
        """The values of all header lines called `name`, unfolded, not split at commas."""
        if name not in self._first:
            return []
        return [self._value(header) for header in self.headers if header.name == name]

    def values(self, name: bytes) -> list[bytes]:
        """All values of a header that may hold several, split at commas. Raises ProtocolError."""
        values: list[bytes] = []
        if name not in self._first:
            return values
        for header in self.headers:
            if header.name == name:
                values += split_values(self._value(header))
        return values

    def has_token(self, name: bytes, token: bytes) -> bool:
        """True when a comma-separated header such as Supported or Require holds `token` (lower case).

        A malformed line holds none.
        """
        for line in map(bytes.lower, self.lines(name)):
            if token in line:
                try:
                    if token in split_values(line):
                        return True
                except ProtocolError:
                    continue
        return False

    @property
    def cseq(self) -> tuple[int, bytes]:
        """Number and method. Raises ProtocolError."""
        if self._cseq is None:
            self._cseq = parse_cseq(self.header(b"cseq") or b"")
        return self._cseq

    @property
    def call_id(self) -> bytes:
        """The Call-ID, empty when absent."""
        return self.header(b"call-id") or b""

    @property
    def from_(self) -> NameAddr:
        """From in parts. Raises ProtocolError."""
        if self._from is None:
            self._from = parse_name_addr(self.header(b"from") or b"")
        return self._from

    @property
    def to(self) -> NameAddr:
        """To in parts. Raises ProtocolError."""
        if self._to is None:
            self._to = parse_name_addr(self.header(b"to") or b"")
        return self._to

    @property
    def from_tag(self) -> bytes:
        """The tag of From, empty when absent. Raises ProtocolError."""
        return self.from_.parameters.get(b"tag") or b""

    @property
    def to_tag(self) -> bytes:
        """The tag of To, empty when absent. Raises ProtocolError."""
        return self.to.parameters.get(b"tag") or b""

    @property
    def via(self) -> Via:
        """The topmost Via in parts. Raises ProtocolError."""
        if self._via is None:
            self._via = parse_via(self.via_bytes)
        return self._via

    @property
    def via_bytes(self) -> bytes:
        """The topmost Via value as it stands, unfolded. Raises ProtocolError."""
        values = split_values(self.header(b"via") or b"")
        return values[0] if values else b""

    @property
    def branch(self) -> bytes:
        """The branch of the topmost Via, empty when absent. Raises ProtocolError."""
        return self.via.branch

    def _value(self, header: Header) -> bytes:
        value = self.data[header.value_start : header.value_end].strip()
        return b" ".join(line.strip() for line in value.split(b"\r\n")) if b"\r\n" in value else value

    def _read_start_line(self, line: bytes) -> None:
        found = _STATUS_LINE.match(line)
        if found:
            self.status = int(found[1])
            self.reason = found[2] or b""
            return
        found = _REQUEST_LINE.match(line)
        if found is None:
            # A request may still be answered when its method can be read; a response can only be dropped.
            method, _, rest = line.partition(b" ")
            if not is_token(method) or method[:3].upper() == b"SIP":
                raise ProtocolError("malformed start line")
            self.method, self.uri = method, rest.partition(b" ")[0]
            self.flaw = "malformed request line"
            return
        self.method, self.uri = found[1], found[2]
        if found[3].upper() != b"SIP/2.0":
            self.flaw = "unknown SIP version"
        elif not is_token(self.method):
            self.flaw = "malformed method"

    def _read_headers(self, pattern: re.Pattern[bytes], end: int) -> bool:
        """Index the header lines; True when some line is none by `pattern`."""
        headers = self.headers
        first = self._first
        new = tuple.__new__
        is_broken = False
        for number, found in enumerate(pattern.finditer(self.data, self.line_end, end)):
            if number >= MAX_HEADERS:
                self.flaw = self.flaw or "too many header lines"
                return is_broken
            name = found[1]
            if name is None:
                # Step over the broken line, so that the rest can still serve to answer.
                self.flaw = self.flaw or "malformed header line"
                is_broken = True
                continue
            name = name.lower()
            if len(name) == 1:
                name = COMPACT_FORMS.get(name, name)
            start, stop = found.span()
            value_start, value_end = found.span(2)
            # Not Header(...): the same object at half the price, for every line of every message.
            header = new(Header, (name, start, value_start, value_end, stop))
            headers.append(header)
            if first.setdefault(name, header) is not header and name in _SINGLE:
                self.flaw = self.flaw or f"more than one {name.decode()}"
        return is_broken

    def _judge(self) -> None:
        if self.flaw:
            return
        first = self._first
        for name in _REQUIRED:
            if name not in first:
                self.flaw = f"no {name.decode()}"
                return
        try:
            self._judge_values()
        except ProtocolError as error:
            self.flaw = error.reason

    def _judge_values(self) -> None:
        _ = self.via
        if not self.call_id:
            raise ProtocolError("empty Call-ID")
        if not self.from_.uri or not self.to.uri:
            raise ProtocolError("no URI in From or To")
        method = self.cseq[1]
        if self.is_request and method != self.method:
            raise ProtocolError("CSeq names another method")
        length = self.header(b"content-length")
        if length is not None:
            self._fit_body(length)

    def _fit_body(self, value: bytes) -> None:
        if not value.isdigit() or len(value) > 10:
            raise ProtocolError("malformed Content-Length")
        # Rules H4, C4: in bytes; what is behind it is no part of the message, what is missing makes it none.
        length = int(value)
        there = len(self.data) - self.body_start
        if there < length:
            raise ProtocolError("body shorter than Content-Length")
        if there > length:
            self.data = self.data[: self.body_start + length]


def response_to(
    request: Message,
    status: int,
    reason: str,
    *,
    to_tag: bytes = b"",
    headers: Iterable[tuple[bytes, bytes]] = (),
    body: bytes = b"",
) -> bytes:
    """An answer to `request` made here: its Vias, From, To, Call-ID and CSeq copied (RFC 3261 §8.2.6).

    `to_tag` is added to To where it has none and the status is over 100.
    """
    data = request.data
    lines = [b"SIP/2.0 %d %b\r\n" % (status, reason.encode())]
    for header in request.headers:
        if header.name in (b"via", b"from", b"call-id", b"cseq"):
            lines.append(data[header.start : header.end])
        elif header.name == b"to":
            line = data[header.start : header.end]
            if to_tag and status > 100 and not _has_tag(request):
                line = b"%b;tag=%b\r\n" % (line[:-2].rstrip(), to_tag)
            lines.append(line)
        elif header.name == b"timestamp" and status == 100:
            lines.append(data[header.start : header.end])
    lines += [b"%b: %b\r\n" % pair for pair in headers]
    lines.append(b"Content-Length: %d\r\n\r\n" % len(body))
    lines.append(body)
    return b"".join(lines)


def warning(text: str) -> tuple[bytes, bytes]:
    """A Warning header that tells an administrator which rule spoke (RFC 3261 §20.43)."""
    clean = text.encode("ascii", "replace").replace(b"\\", b"").replace(b'"', b"'")
    return b"Warning", b'399 wsgate "' + clean + b'"'


def _has_tag(request: Message) -> bool:
    try:
        return bool(request.to_tag)
    except ProtocolError:
        return False
