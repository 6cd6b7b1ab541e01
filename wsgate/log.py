"""Logging: where it goes, and how a peer's bytes are shown in it (escaped and cut, never raw)."""

from __future__ import annotations

import logging
import logging.handlers
import sys

PEER_BYTES_SHOWN = 200
"""How many of a peer's bytes one log line may show."""

logger = logging.getLogger("wsgate")


def escaped(data: bytes | str, limit: int = PEER_BYTES_SHOWN) -> str:
    """A peer's bytes fit for a log line: printable ASCII kept, all else escaped, cut after `limit`."""
    raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    text = ascii(raw[:limit].decode("latin-1"))[1:-1]
    return f"{text}... ({len(raw)} bytes)" if len(raw) > limit else text


def start(level: str, target: str) -> logging.Handler:
    """Send the log of `level` and above to `stderr`, `syslog` or a file. Raises OSError. Returns the handler.

    A file handler notices that its file was moved away and opens it again (SIGHUP after log rotation).
    """
    handler: logging.Handler
    if target == "stderr":
        handler = logging.StreamHandler(sys.stderr)
    elif target == "syslog":
        handler = logging.handlers.SysLogHandler(address="/dev/log", facility=logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.ident = "wsgate: "
    else:
        handler = logging.FileHandler(target)
    stamp = "" if target == "syslog" else "%(asctime)s "
    handler.setFormatter(logging.Formatter(f"{stamp}%(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
    return handler
