"""Bytes both ways between two sockets after an upgrade of another application, each way as slow as its reader."""

from __future__ import annotations

import socket
from typing import Any

import gevent

from wsgate.net.clock import now

READ_BYTES = 65536
"""Of one read; so much of each direction is in memory."""

TUNNEL_IDLE_TIMEOUT = 900.0
"""Seconds without a byte in either direction after which a tunnel is closed."""


class Tunnel:
    """One tunnel. `run` returns when it is over; whoever called it closes both sockets."""

    def __init__(self, client: Any, server: Any) -> None:
        self._client = client
        self._server = server
        self._passed_at = now()

    def run(self) -> None:
        """Carry bytes until the server ends, both were silent for TUNNEL_IDLE_TIMEOUT, or either breaks."""
        self._client.settimeout(TUNNEL_IDLE_TIMEOUT)
        self._server.settimeout(TUNNEL_IDLE_TIMEOUT)
        upward = gevent.spawn(self._upward)
        try:
            self._carry(self._server, self._client)
        except OSError:
            return
        finally:
            upward.kill()

    def _upward(self) -> None:
        try:
            self._carry(self._client, self._server)
            # What the server still says belongs to the client.
            self._server.shutdown(socket.SHUT_WR)
        except OSError:
            shut(self._server)

    def _carry(self, source: Any, target: Any) -> None:
        """Until `source` ends. Raises OSError, TimeoutError included."""
        while True:
            try:
                data = source.recv(READ_BYTES)
            except TimeoutError:
                if now() - self._passed_at >= TUNNEL_IDLE_TIMEOUT:
                    raise
                continue
            if not data:
                return
            self._passed_at = now()
            target.sendall(data)


def shut(sock: Any) -> None:
    """End both directions, which wakes up who reads from `sock`."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
