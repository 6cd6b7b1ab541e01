"""One line of a SIP message for the log of an administrator: what, in which call, and why. Pure."""

from __future__ import annotations

import re

from wsgate.log import escaped

MAX_HEAD_BYTES = 65536
"""How far the headers are looked for."""

_SHOWN = re.compile(rb"\r\n(cseq|call-id|i|warning)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)


def outline(data: bytes) -> str:
    """Start line, CSeq, Call-ID and Warning, escaped and cut: none of them carries credentials."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    head = data[: min(MAX_HEAD_BYTES, len(data)) if end < 0 else end]
    found: dict[bytes, str] = {}
    for name, value in _SHOWN.findall(head):
        found.setdefault(name.lower(), escaped(value))
    line = escaped(head.partition(b"\r\n")[0])
    call_id = found.get(b"call-id", found.get(b"i", "?"))
    warning = found.get(b"warning")
    return f"{line} [{found.get(b'cseq', '?')}, {call_id}]" + (f" {warning}" if warning else "")
