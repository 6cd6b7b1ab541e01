"""Logging: where it goes, and how a peer's bytes are shown in it (escaped and cut, never raw)."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from typing import TYPE_CHECKING, TextIO

PEER_BYTES_SHOWN = 200
"""How many of a peer's bytes one log line may show."""

logger = logging.getLogger("wsgate")


def escaped(data: bytes | str, limit: int = PEER_BYTES_SHOWN) -> str:
    """A peer's bytes fit for a log line: printable ASCII kept, all else escaped, cut after `limit`."""
    raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    text = ascii(raw[:limit].decode("latin-1"))[1:-1]
    return f"{text}... ({len(raw)} bytes)" if len(raw) > limit else text


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler


class _DescriptorHandler(_StreamHandler):
    """Writes to a descriptor that another process opened, and closes it at the end."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace"))

    def close(self) -> None:
        """Flush and close the descriptor."""
        self.stream.close()
        super().close()


class LineRate:
    """Bounds lines that strangers bring about: so many within so many seconds (monotonic)."""

    __slots__ = ("_began", "_left_out", "_lines", "_said", "_seconds")

    def __init__(self, lines: int, seconds: float) -> None:
        self._lines, self._seconds = lines, seconds
        self._began = float("-inf")
        self._said = self._left_out = 0

    def allows(self, now: float) -> bool:
        """True when one more line may be written; else it counts as left out."""
        if now - self._began >= self._seconds:
            self._began, self._said = now, 0
        self._said += 1
        allowed = self._said <= self._lines
        self._left_out += not allowed
        return allowed

    def level(self, now: float) -> int:
        """The level of one more line: `info` as long as it is allowed, then `debug`."""
        return logging.INFO if self.allows(now) else logging.DEBUG

    def take_left_out(self) -> int:
        """How many were left out since this was last asked."""
        left_out, self._left_out = self._left_out, 0
        return left_out


def start(level: str, target: str, descriptor: int | None = None) -> logging.Handler:
    """Send the log of `level` and above to `stderr`, `syslog` or a file. Raises OSError. Returns the handler.

    `descriptor` is that of the file where it is open already (a worker may not open it); the handler then owns it.
    The handler that was there before is closed.
    """
    handler: logging.Handler
    if descriptor is not None:
        handler = _DescriptorHandler(descriptor)
    elif target == "stderr":
        handler = logging.StreamHandler(sys.stderr)
    elif target == "syslog":
        handler = logging.handlers.SysLogHandler(address="/dev/log", facility=logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.ident = "wsgate: "
    else:
        handler = logging.FileHandler(target)
    stamp = "" if target == "syslog" else "%(asctime)s "
    handler.setFormatter(logging.Formatter(f"{stamp}%(levelname)s %(message)s"))
    for old in logger.handlers:
        old.close()
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
    return handler
