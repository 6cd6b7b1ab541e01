"""One of two sockets that are joined (RFC 6062 §5.5; rule C1): its reading for the other, its queue, its end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from gevent import get_hub, ssl

READS_PER_TURN = 4

_READ, _WRITE = 1, 2
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Joint(Protocol):
    """What joins two sides."""

    @property
    def view(self) -> memoryview:
        """What to read into."""

    def room(self, resume: Callable[[], None]) -> int:
        """How many bytes may be read now; 0: `resume` is called when there are more."""

    def spend(self, size: int) -> None:
        """So many were read."""

    def half_closed(self) -> None:
        """One side has ended."""

    def end(self) -> None:
        """It is over."""


class Side:
    """One of two sockets that are joined: reads for the other, and keeps what this one has not taken yet."""

    def __init__(self, joint: Joint, sock: Any) -> None:
        self.moved_bytes = 0
        self._joint = joint
        self._view = joint.view
        self._socket = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._end = joint.end
        self._waiting = b""
        self._has_ended = self._is_shut = self._stopped = False
        self._waits = False
        """It is not read for want of bandwidth."""
        loop = get_hub().loop
        self._reader: Any = loop.io(sock.fileno(), _READ)
        self._writer: Any = loop.io(sock.fileno(), _WRITE)

    def start(self, other: Side, first: bytes) -> None:
        """Serve; `first` is what goes to this side in front of everything."""
        self._other = other
        self._reader.start(self._readable)
        if first:
            self._send(first)
        if self._tls:
            # What TLS has decrypted already no watcher tells of.
            get_hub().loop.run_callback(self._readable)

    def stop(self) -> None:
        """Read and write no more; the socket stays open."""
        self._stopped = True
        for watcher in (self._reader, self._writer):
            watcher.stop()
            watcher.close()

    def _readable(self) -> None:
        """Runs in the hub: read while the other side takes it."""
        for _ in range(READS_PER_TURN):
            if self._stopped or self._has_ended:
                return
            room = 0 if self._other._waiting or self._waits else self._room()
            if not room:
                self._reader.stop()
                return
            try:
                count = self._socket.recv_into(self._view[:room])
            except _AGAIN:
                return
            except OSError:
                self._end()
                return
            if not count:
                self._ended()
                return
            self.moved_bytes += count
            self._joint.spend(count)
            self._other._send(bytes(self._view[:count]))
        if self._tls and not self._stopped and self._socket.pending():
            get_hub().loop.run_callback(self._readable)

    def _room(self) -> int:
        room = self._joint.room(self._resume)
        self._waits = not room
        return room

    def _resume(self) -> None:
        """Runs in the hub: there may be bandwidth again."""
        self._waits = False
        if not self._stopped and not self._has_ended:
            self._reader.start(self._readable)
            self._readable()

    def _ended(self) -> None:
        """This side sends no more: the other hears so, behind what still waits for it (half-close)."""
        self._has_ended = True
        self._reader.stop()
        if self._tls or self._other._tls or self._other._has_ended:
            # TLS knows no half-close that both ends understand: nothing more is read, what waits is still delivered.
            self._other._is_shut = self._other._has_ended = True
            self._other._reader.stop()
        self._joint.half_closed()
        self._other._settle()

    def _send(self, data: bytes) -> None:
        if not self._waiting:
            data = data[self._try_send(data) :]
            if data and not self._stopped:
                self._writer.start(self._writable)
        self._waiting += data

    def _try_send(self, data: bytes) -> int:
        try:
            sent = int(self._socket.send(data))
        except _AGAIN:
            return 0
        except OSError:
            get_hub().loop.run_callback(self._end)
            return len(data)
        self.moved_bytes += sent
        return sent

    def _writable(self) -> None:
        """Runs in the hub."""
        self._waiting = self._waiting[self._try_send(self._waiting) :]
        if self._waiting or self._stopped:
            return
        self._writer.stop()
        self._settle()
        other = self._other
        if not self._stopped and not other._has_ended:
            other._reader.start(other._readable)
            get_hub().loop.run_callback(other._readable)

    def _settle(self) -> None:
        """Pass the end of the other side on, once everything of it is sent."""
        if self._waiting or not self._other._has_ended:
            return
        if self._is_shut or self._has_ended:
            if not self._other._waiting:
                self._take_leave()
                self._end()
            return
        self._is_shut = True
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._end()

    def _take_leave(self) -> None:
        """A TLS client is told that this is the end and nothing was cut off."""
        if self._tls:
            try:
                self._socket.unwrap()
            except (OSError, ValueError):
                # It waits for no answer; who has gone already needs no word.
                return
