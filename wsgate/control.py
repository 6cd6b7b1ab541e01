"""The channel between the supervisor and a worker: short JSON messages, each with one descriptor at most.

It is a Unix socket pair that keeps message borders. The supervisor says `file`, `log`, `reload` and `stop`; the worker
says `ready`, `failed`, `reloaded` and `refused`.
"""

from __future__ import annotations

import array
import json
import socket
from typing import Any, NamedTuple

MAX_MESSAGE_BYTES = 65536
MAX_TEXT_CHARACTERS = 4000
"""A reason longer than this is cut."""

SEND_SECONDS = 10.0
"""How long a message may wait for the other side to read."""


class Message(NamedTuple):
    """One message: its word, its fields, and the descriptor that came along (the receiver owns it)."""

    word: str
    fields: dict[str, str]
    descriptor: int | None = None


class Channel:
    """One end. A receiver that finds nothing there gets BlockingIOError; a closed other end reads as None."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the other reads None."""
        self._socket.close()

    def send(self, word: str, descriptor: int | None = None, **fields: str) -> None:
        """Send one message, with a copy of `descriptor` where one is given. Raises OSError."""
        cut = {name: text[:MAX_TEXT_CHARACTERS] for name, text in fields.items()}
        data = json.dumps([word, cut]).encode()
        self._socket.settimeout(SEND_SECONDS)
        try:
            if descriptor is None:
                self._socket.send(data)
            else:
                socket.send_fds(self._socket, [data], [descriptor])
        finally:
            self._socket.setblocking(False)

    def receive(self) -> Message | None:
        """The next message; None when the other end is closed. Raises BlockingIOError when there is none yet."""
        size = array.array("i").itemsize
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                MAX_MESSAGE_BYTES, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return None
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % size])
        if not data:
            return None
        word, fields = _decoded(data)
        return Message(word, fields, descriptors[0] if descriptors else None)


def _decoded(data: bytes) -> tuple[str, dict[str, str]]:
    word, fields = json.loads(data)
    checked: dict[str, Any] = fields
    return str(word), {str(name): str(text) for name, text in checked.items()}


def pair() -> tuple[Channel, Channel]:
    """Two ends of a new channel."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(one), Channel(other)
