"""The header lines of a SIP message, as they stand there (RFC 3261 §7.3.1, RFC 5322 §2.2). Pure.

Most heads hold one plain line for each header and are told apart by splitting them; all others are scanned.
"""

from __future__ import annotations

import re
from itertools import islice

from wsgate.sip.header_names import long_name

MAX_HEADERS = 512
"""Header lines, broken ones included, that one message may have."""

Line = tuple[bytes, bytes, bytes]
"""What stands in front of the colon, the colon, the value: together the line without its CRLF. A broken line has no
colon."""

# A header with its folds, or else one broken line: the scan never has to search for the next match. That a NUL makes a
# line broken costs nothing where there is none; a closer look then tells the quoted ones.
_HEADER = re.compile(rb"([^\s:\0]+[ \t]*):([^\r\n\0]*(?:\r\n[ \t][^\r\n\0]*)*)\r\n|[^\n]*\n")
_HEADER_WITH_NUL = re.compile(rb"([^\s:]+[ \t]*):([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)\r\n|[^\n]*\n")
_NAME = re.compile(rb"[^\s:]+[ \t]*\Z")


def plain_lines(head: bytes) -> list[Line] | None:
    """The lines of `head`, which goes up to the CRLF of the last; None where there is need to scan.

    A line that `name_of` has no name for is broken or belongs to the one above it: there is need to scan then too.
    """
    lines = head.split(b"\r\n", MAX_HEADERS)
    line_ends = len(lines) - 1
    if head.count(b"\n") != line_ends or head.count(b"\r") != line_ends or b"\0" in head:
        return None
    return [line.partition(b":") for line in lines]


def scan_lines(data: bytes, start: int, end: int, *, may_hold_nul: bool = False) -> list[Line]:
    """The lines between `start` and `end`, one for each header with its folds, MAX_HEADERS + 1 at most."""
    pattern = _HEADER_WITH_NUL if may_hold_nul else _HEADER
    return [_line(found) for found in islice(pattern.finditer(data, start, end), MAX_HEADERS + 1)]


def name_of(line: Line) -> bytes:
    """The long form of its name in lower case, empty for a line that is no header."""
    return long_name(line[0].rstrip(b" \t")) if line[1] and _NAME.match(line[0]) else b""


def length_of(line: Line) -> int:
    """With its CRLF."""
    return len(line[0]) + len(line[1]) + len(line[2]) + 2


def _line(found: re.Match[bytes]) -> Line:
    return (b"", b"", found[0][:-2]) if found[1] is None else (found[1], b":", found[2])
