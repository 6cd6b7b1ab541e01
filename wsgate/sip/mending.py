"""What of a head with bare CR or LF in it can still be used: to answer the request with 400, never to pass it on. Pure.

A bare CR or LF ends a line for some readers and not for others, so what stands behind one is a line that somebody
injected. Nothing of it may come back in our answer as a line of its own (table A).
"""

from __future__ import annotations

import re

from wsgate.errors import ProtocolError
from wsgate.sip.headers import parse_cseq, parse_name_addr, parse_via, split_values

_BARE = re.compile(rb"(?:\r(?!\n)|(?<!\r)\n)+")
_LINE_END = re.compile(rb"\r\n(?![ \t])")
_FOLD = re.compile(rb"\r\n[ \t]+")
_NUL = re.compile(rb'"(?:[^"\\\0]|\\.)*"?|(\0)', re.DOTALL)
_COPIED = {
    **dict.fromkeys((b"via", b"v"), "via"),
    **dict.fromkeys((b"from", b"f", b"to", b"t"), "address"),
    **dict.fromkeys((b"call-id", b"i"), "call-id"),
    b"cseq": "cseq",
}
"""The headers that an answer copies (RFC 3261 §8.2.6), long and compact, and how their values are judged."""


def without_bare_line_ends(head: bytes, lines: int) -> bytes | None:
    """The start line and those header lines of `head` that hold no bare CR or LF; None when no header line holds one.

    Of a header that an answer copies, the value up to its first bare CR or LF is kept where it is whole by itself; else
    each of them becomes a space where that makes it whole (as inside a quoted display name); else the line is
    left out. `head` goes up to the blank line, without it; no more than `lines` header lines are kept.
    """
    if not _BARE.search(head, head.index(b"\r\n") + 2):
        return None
    start, *rest = _LINE_END.split(head, lines + 1)
    kept = [start, *(line for line in map(_mended, rest[:lines]) if line)]
    return b"\r\n".join(kept) + b"\r\n"


def _mended(line: bytes) -> bytes:
    bare = _BARE.search(line)
    if bare is None:
        return line
    kind = _COPIED.get(line.partition(b":")[0].rstrip(b" \t").lower())
    if kind is None:
        return b""
    for kept in (line[: bare.start()], _BARE.sub(b" ", line)):
        value = _FOLD.sub(b" ", kept.partition(b":")[2]).strip()
        if not value:
            # All of it is what was injected.
            break
        if _is_whole(kind, value):
            return kept.rstrip()
    return b""


def _is_whole(kind: str, value: bytes) -> bool:
    try:
        if kind == "via":
            vias = split_values(value)
            return bool(vias) and all(parse_via(via) for via in vias)
        if kind == "address":
            return len(parse_name_addr(value).uri.split()) == 1
        if kind == "cseq":
            return bool(parse_cseq(value))
    except ProtocolError:
        return False
    return len(value.split()) == 1


def has_nul(head: bytes) -> bool:
    """True when a NUL stands anywhere but behind a backslash in a quoted string (RFC 3261 §25.1, quoted-pair).

    What reads C strings takes it for the end of the value, so a server behind us might see another one than we judged.
    """
    return any(found[1] for line in _LINE_END.split(head) for found in _NUL.finditer(line))
