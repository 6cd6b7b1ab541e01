"""A SIP message: the received bytes plus an index (RFC 3261 §7), and the answers made to one here. Pure.

`Message.parse` finds the lines; values are parsed when somebody asks. A message
that can be indexed but breaks a rule carries the reason in `flaw`, so that the caller can still answer it with 400.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wsgate.errors import ProtocolError
from wsgate.sip.header_lines import MAX_HEADERS, Line, length_of, name_of, plain_lines, scan_lines
from wsgate.sip.header_names import SPELLINGS
from wsgate.sip.headers import (
    NameAddr,
    Uri,
    Via,
    is_token,
    parse_cseq,
    parse_name_addr,
    parse_uri,
    parse_via,
    plain_branch,
    read_party,
    read_via,
    split_values,
)
from wsgate.sip.mending import has_nul, without_bare_line_ends

_REQUEST_LINE = re.compile(rb"([^\s\0]+) ([^\s\0]+) (SIP/[^\s]+)\Z", re.IGNORECASE)
_STATUS_LINE = re.compile(rb"SIP/2\.0 ([1-6][0-9]{2})(?: ([^\r\n\0]*))?\Z", re.IGNORECASE)
_METHODS = frozenset(
    (b"INVITE", b"ACK", b"BYE", b"CANCEL", b"REGISTER", b"OPTIONS", b"MESSAGE", b"SUBSCRIBE", b"NOTIFY", b"REFER")
)
"""Tokens that need no closer look."""
_SINGLE = frozenset((b"from", b"to", b"call-id", b"cseq", b"max-forwards", b"content-length"))
_REQUIRED = (b"via", b"from", b"to", b"call-id", b"cseq")
_COPIED = (*_REQUIRED, b"timestamp")


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
        "_branch",
        "_call_id",
        "_cseq",
        "_first",
        "_from",
        "_from_party",
        "_further",
        "_lines",
        "_sent_by",
        "_to",
        "_to_party",
        "_uri",
        "_via",
        "body_start",
        "data",
        "flaw",
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
        self.line_end = 0
        self.body_start = 0
        self._lines: Sequence[Line] = ()
        self._first: dict[bytes, Line] = {}
        self._further: dict[bytes, list[Line]] | None = None  # lines of names that are there already
        self._uri: Uri | None = None
        self._cseq: tuple[int, bytes] | None = None
        self._from: NameAddr | None = None
        self._to: NameAddr | None = None
        self._from_party: tuple[bytes, bytes] | None = None
        self._to_party: tuple[bytes, bytes] | None = None
        self._call_id: bytes | None = None
        self._branch: bytes | None = None
        self._sent_by: tuple[str, int | None] | None = None
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
        message = cls._begun(data, data.index(b"\r\n") + 2, blank + 4)
        lines = plain_lines(data[message.line_end : blank])
        if lines is None or not message._index(lines):
            message = cls._begun(data, message.line_end, message.body_start)
            if not message._index(scan_lines(data, message.line_end, blank + 2)):
                message = cls._with_broken_lines(message, data[: blank + 2])
        message._judge()
        return message

    @classmethod
    def _begun(cls, data: bytes, line_end: int, body_start: int) -> Message:
        """With the start line read. Raises ProtocolError."""
        message = cls(data)
        message.line_end = line_end
        message.body_start = body_start
        message._read_start_line(data[: line_end - 2])
        return message

    @classmethod
    def _with_broken_lines(cls, message: Message, head: bytes) -> Message:
        """Look closer at a head that has lines which are no plain header lines."""
        mended = without_bare_line_ends(head, MAX_HEADERS)
        if mended is None:
            again = cls._begun(message.data, message.line_end, message.body_start)
            if has_nul(head):
                again.flaw = again.flaw or "NUL in a header line"
        else:
            again = cls._begun(mended + b"\r\n", message.line_end, len(mended) + 2)
            again.flaw = again.flaw or "bare CR or LF in a header line"
        again._index(scan_lines(again.data, again.line_end, again.body_start - 2, may_hold_nul=True))
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

    @property
    def body_bytes(self) -> int:
        """The length of the body."""
        return len(self.data) - self.body_start

    @property
    def headers(self) -> list[Header]:
        """Every header line, in their order."""
        headers = []
        end = self.line_end
        for line in self._lines:
            start, end = end, end + length_of(line)
            if name := name_of(line):
                headers.append(Header(name, start, end - 2 - len(line[2]), end - 2, end))
        return headers

    @property
    def header_count(self) -> int:
        """How many header lines there are, broken ones included."""
        return len(self._lines)

    @property
    def is_answerable(self) -> bool:
        """True when no header is missing that an answer copies (RFC 3261 §8.2.6)."""
        return all(name in self._first for name in _REQUIRED)

    def has(self, name: bytes) -> bool:
        """True when there is a header called `name` (lower case, long form)."""
        return name in self._first

    def header(self, name: bytes) -> bytes | None:
        """The value of the first header line called `name` (lower case, long form), unfolded; None when absent."""
        line = self._first.get(name)
        if line is None:
            return None
        value = line[2].strip()
        return _unfolded(value) if b"\r\n" in value else value

    def place(self, line: Line) -> int:
        """Where a line of `found` begins; its value begins behind the colon and ends in front of the CRLF."""
        place = self.line_end
        for one in self._lines:
            if one is line:
                break
            place += length_of(one)
        return place

    def found(self, name: bytes) -> Sequence[Line]:
        """The header lines called `name` (lower case, long form) as they came."""
        first = self._first.get(name)
        if first is None:
            return ()
        further = self._further.get(name) if self._further is not None else None
        return (first,) if further is None else (first, *further)

    def lines(self, name: bytes) -> list[bytes]:
        """The values of all header lines called `name`, unfolded, not split at commas."""
        if name not in self._first:
            return []
        return [_unfolded(line[2]) for line in self.found(name)]

    def values(self, name: bytes) -> list[bytes]:
        """All values of a header that may hold several, split at commas. Raises ProtocolError."""
        values: list[bytes] = []
        if name not in self._first:
            return values
        for line in self.found(name):
            values += split_values(_unfolded(line[2]))
        return values

    def has_token(self, name: bytes, token: bytes) -> bool:
        """True when a comma-separated header such as Supported or Require holds `token` (lower case).

        A malformed line holds none.
        """
        for found in self.found(name):
            if token in found[2].lower():
                try:
                    if token in split_values(_unfolded(found[2]).lower()):
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
        if self._call_id is None:
            self._call_id = self.header(b"call-id") or b""
        return self._call_id

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
        return self._read_from()[1]

    @property
    def to_tag(self) -> bytes:
        """The tag of To, empty when absent. Raises ProtocolError."""
        return self._read_to()[1]

    @property
    def from_uri(self) -> bytes:
        """The URI of From as it stands there. Raises ProtocolError."""
        return self._read_from()[0]

    @property
    def to_uri(self) -> bytes:
        """The URI of To as it stands there. Raises ProtocolError."""
        return self._read_to()[0]

    @property
    def request_uri(self) -> Uri:
        """The Request-URI in parts. Raises ProtocolError."""
        if self._uri is None:
            self._uri = parse_uri(self.uri)
        return self._uri

    @property
    def via(self) -> Via:
        """The topmost Via in parts. Raises ProtocolError."""
        if self._via is None:
            self._via = parse_via(self.via_bytes)
        return self._via

    @property
    def via_bytes(self) -> bytes:
        """The topmost Via value as it stands, unfolded. Raises ProtocolError."""
        value = self.header(b"via") or b""
        if b"," not in value:
            return value
        values = split_values(value)
        return values[0] if values else b""

    @property
    def branch(self) -> bytes:
        """The branch of the topmost Via, empty when absent. Raises ProtocolError."""
        if self._branch is None:
            self._branch = self.via.branch
        return self._branch

    @property
    def sent_by(self) -> tuple[str, int | None]:
        """Host and port of the topmost Via. Raises ProtocolError."""
        if self._sent_by is None:
            self._sent_by = self.via.host, self.via.port
        return self._sent_by

    def _read_from(self) -> tuple[bytes, bytes]:
        if self._from_party is None:
            self._from_party = read_party(self.header(b"from") or b"")
        return self._from_party

    def _read_to(self) -> tuple[bytes, bytes]:
        if self._to_party is None:
            self._to_party = read_party(self.header(b"to") or b"")
        return self._to_party

    def _read_start_line(self, line: bytes) -> None:
        found = _STATUS_LINE.match(line) if line[:1] in b"Ss" else None
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
        self.method, self.uri, version = found.groups()
        if version != b"SIP/2.0" and version.upper() != b"SIP/2.0":
            self.flaw = "unknown SIP version"
        elif self.method not in _METHODS and not is_token(self.method):
            self.flaw = "malformed method"

    def _index(self, lines: list[Line]) -> bool:
        """Find the headers by their names; False when some line is none."""
        if len(lines) > MAX_HEADERS:
            lines.pop()
            self.flaw = self.flaw or "too many header lines"
        self._lines = lines
        first = self._first
        is_whole = True
        for line in lines:
            name = SPELLINGS.get(line[0]) if line[1] else b""
            if name is None:
                name = name_of(line)
            if not name:
                # Step over the broken line, so that the rest can still serve to answer.
                self.flaw = self.flaw or "malformed header line"
                is_whole = False
            elif name in first:
                self._note_further(name, line)
            else:
                first[name] = line
        return is_whole

    def _note_further(self, name: bytes, line: Line) -> None:
        if self._further is None:
            self._further = {}
        self._further.setdefault(name, []).append(line)
        if name in _SINGLE:
            self.flaw = self.flaw or f"more than one {name.decode()}"

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
        # Of the Via of a response nothing but the branch is asked.
        self._branch = plain_branch(self.via_bytes) if self.status else None
        if self._branch is None:
            self._branch, host, port = read_via(self.via_bytes)
            self._sent_by = host, port
        if not self.call_id:
            raise ProtocolError("empty Call-ID")
        self._from_party = read_party(self.header(b"from") or b"")
        self._to_party = read_party(self.header(b"to") or b"")
        if not self._from_party[0] or not self._to_party[0]:
            raise ProtocolError("no URI in From or To")
        self._cseq = parse_cseq(self.header(b"cseq") or b"")
        if self._cseq[1] != self.method and not self.status:
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
    lines = [b"SIP/2.0 %d %b\r\n" % (status, reason.encode())]
    copied = [(request.place(found), name, b"".join(found)) for name in _COPIED for found in request.found(name)]
    for _place, name, line in sorted(copied):
        if name == b"to" and to_tag and status > 100 and not _has_tag(request):
            lines.append(b"%b;tag=%b\r\n" % (line.rstrip(), to_tag))
        elif name != b"timestamp" or status == 100:
            lines.append(line + b"\r\n")
    lines += [b"%b: %b\r\n" % pair for pair in headers]
    lines.append(b"Content-Length: %d\r\n\r\n" % len(body))
    lines.append(body)
    return b"".join(lines)


def _unfolded(written: bytes) -> bytes:
    value = written.strip()
    return b" ".join(part.strip() for part in value.split(b"\r\n")) if b"\r\n" in value else value


def warning(text: str) -> tuple[bytes, bytes]:
    """A Warning header that tells an administrator which rule spoke (RFC 3261 §20.43)."""
    clean = text.encode("ascii", "replace").replace(b"\\", b"").replace(b'"', b"'")
    return b"Warning", b'399 wsgate "' + clean + b'"'


def _has_tag(request: Message) -> bool:
    try:
        return bool(request.to_tag)
    except ProtocolError:
        return False
