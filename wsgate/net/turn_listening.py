"""The relayed transport addresses of TCP allocations: sockets that listen there, and connect from there (RFC 6062)."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from gevent import get_hub

from wsgate.addr import Address
from wsgate.log import logger
from wsgate.turn.effects import Client

BACKLOG = 16
"""Connections of peers to one relayed address that wait for the next turn of the loop."""
ACCEPTS_PER_TURN = 16
ACCEPT_PAUSE_SECONDS = 1.0
"""A relayed address takes no connections for so long when there are no descriptors left (rule Q1)."""
KERNEL_BUFFER_BYTES = 262144
"""What the kernel may hold of each direction of a socket; by itself it would take megabytes."""
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What says that no descriptor or memory is left (rule Q1)."""
_READ = 1

Accepted = Callable[[socket.socket, tuple[Any, ...], Client | None], None]


class Listening:
    """One such address. `accepted` is called with each connection, where it is from, and the client it is for."""

    def __init__(self, relay: Address, accepted: Accepted) -> None:
        """Raises OSError."""
        self.client: Client | None = None
        self._accepted = accepted
        self._socket = bound(relay, shared=False)
        try:
            self._socket.listen(BACKLOG)
            # Shared only now: what else has the port was noticed.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError:
            self._socket.close()
            raise
        loop = get_hub().loop
        self._watcher: Any = loop.io(self._socket.fileno(), _READ)
        self._pause: Any = loop.timer(ACCEPT_PAUSE_SECONDS)
        self._watcher.start(self._readable)

    def close(self) -> None:
        """Take no more connections."""
        for watcher in (self._watcher, self._pause):
            watcher.stop()
            watcher.close()
        self._socket.close()

    def _readable(self) -> None:
        """Runs in the hub."""
        for _ in range(ACCEPTS_PER_TURN):
            if self._socket.fileno() < 0:
                return
            try:
                sock, source = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as problem:
                if problem.errno in EXHAUSTED:
                    logger.warning("turn: a peer cannot connect: %s", problem.strerror)
                    self._watcher.stop()
                    self._pause.start(self._watcher.start, self._readable)
                return
            sock.setblocking(False)
            self._accepted(sock, source, self.client)


def bound(relay: Address, *, shared: bool) -> socket.socket:
    """A TCP socket at a relayed address. Raises OSError.

    One that connects shares the port with the one that listens there (RFC 6062 §5.2).
    """
    family = socket.AF_INET6 if ":" in relay.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, KERNEL_BUFFER_BYTES)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(relay)
    except OSError:
        sock.close()
        raise
    return sock
