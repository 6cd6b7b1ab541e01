"""A TCP relay in front of the gateway that a test cuts: by RST, by FIN, or by silence."""

from __future__ import annotations

import enum
import selectors
import socket
import struct
import threading
from typing import NamedTuple

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Cut(enum.Enum):
    """How a connection ends for the gateway. The browser's own end is reset in each case."""

    RST = "rst"
    FIN = "fin"  # without a close frame
    SILENCE = "silence"  # it stays open, and nothing arrives any more


class _Pair(NamedTuple):
    browser: socket.socket
    gateway: socket.socket

    def other(self, end: socket.socket) -> socket.socket:
        return self.gateway if end is self.browser else self.browser


class CutRelay:
    """Listens on 127.0.0.1 and passes bytes on to `target`, from a thread of its own until `close`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._near, self._far = socket.socketpair()
        self._selector.register(self._far, selectors.EVENT_READ)
        self._pairs: list[_Pair] = []
        self._silent: list[socket.socket] = []
        self._order: Cut | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where a browser connects."""
        return f"ws://127.0.0.1:{self.address[1]}/ws"

    def cut(self, how: Cut) -> None:
        """End every connection that is open now, and what is left of silent ones; later ones pass."""
        self._order = how
        self._done.clear()
        self._near.send(b"c")
        assert self._done.wait(10)

    def close(self) -> None:
        """End the thread and all connections."""
        self._near.send(b"e")
        self._thread.join(10)
        for end in (
            self._listener,
            self._near,
            self._far,
            *self._silent,
            *(end for pair in self._pairs for end in pair),
        ):
            end.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._far:
                    if self._far.recv(1) == b"e":
                        return
                    self._cut()
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._pairs:
                    self._pass(key.data, key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        browser = self._listener.accept()[0]
        try:
            pair = _Pair(browser, socket.create_connection(self._target, 10))
        except OSError:
            browser.close()  # the gateway is down: the browser tries again
            return
        self._pairs.append(pair)
        for end in pair:
            self._selector.register(end, selectors.EVENT_READ, pair)

    def _pass(self, pair: _Pair, end: socket.socket) -> None:
        try:
            data = end.recv(65536)
            pair.other(end).sendall(data)
        except OSError:
            data = b""
        if not data:
            self._forget(pair)
            for each in pair:
                each.close()

    def _cut(self) -> None:
        assert self._order is not None
        for end in self._silent:
            end.close()
        self._silent.clear()
        for pair in list(self._pairs):
            self._forget(pair)
            pair.browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            pair.browser.close()
            if self._order is Cut.SILENCE:
                self._silent.append(pair.gateway)
                continue
            if self._order is Cut.RST:
                pair.gateway.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            pair.gateway.close()
        self._done.set()

    def _forget(self, pair: _Pair) -> None:
        self._pairs.remove(pair)
        for end in pair:
            self._selector.unregister(end)
