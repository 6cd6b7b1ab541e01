"""A relay in this process and TURN clients of it, over datagrams and streams."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket as green

from tests.turn_process import PASSWORD, REALM, RELAYS, USER, listening_socket, make_server
from wsgate.addr import Address
from wsgate.net.relay import Relay
from wsgate.turn import stun
from wsgate.turn.auth import long_term_key
from wsgate.turn.framing import Frames
from wsgate.turn.stun import Integrity, MessageClass, Method
from wsgate.turn.values import PasswordAlgorithm

PEER_HOST = "127.0.0.2"
QUIET_SECONDS = 0.2
PATIENCE_SECONDS = 20.0
"""For what has to come."""


class Clock:
    """Monotonic time that can be moved ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class Site:
    """A relay with its listening sockets, in this process."""

    def __init__(
        self,
        tick: float = 0.0,
        listeners: tuple[str, ...] = ("127.0.0.1",),
        relays: tuple[tuple[str, str], ...] = RELAYS,
        allow: tuple[str, ...] = ("127.0.0.0/8",),
        **options: Any,
    ) -> None:
        _, self.server = make_server(allow, 1.0, {"unauthenticated_rate": 10**8, **options}, relays)
        self.counters = self.server.counters.values
        self.clock = Clock()
        self.listeners = [listening_socket(host) for host in listeners]
        self.relay = Relay(self.server, self.listeners, tick=tick, clock=self.clock)
        self.relay.start()

    def close(self) -> None:
        self.relay.stop()
        for sock in self.listeners:
            sock.close()


def udp(host: str = "127.0.0.1") -> Any:
    sock = green.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.settimeout(PATIENCE_SECONDS)
    return sock


def silent(sock: Any) -> bool:
    """True when nothing comes for a while."""
    sock.settimeout(QUIET_SECONDS)
    try:
        sock.recv(70000)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(PATIENCE_SECONDS)
    return False


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        gevent.sleep(0.005)


class TurnClient:
    """Asks a TURN server with credentials; how its bytes go and come is up to its kind."""

    def __init__(self, sock: Any) -> None:
        self.socket = sock
        self.user, self.realm = USER, REALM
        self.key = long_term_key(USER, REALM, PASSWORD, PasswordAlgorithm.MD5)
        self.nonce = b""

    def transmit(self, data: bytes) -> None:
        """One STUN message to the server."""
        raise NotImplementedError

    def frame(self) -> bytes:
        """The next message of the server."""
        raise NotImplementedError

    def ask(self, method: Method, *fields: Any) -> stun.Message:
        if not self.nonce:
            self.nonce = b"?"
            self.nonce = self._exchange(method).get(stun.NONCE) or b""
        login = (stun.USERNAME(self.user), stun.REALM(self.realm), stun.NONCE(self.nonce))
        return self._exchange(method, *login, *fields, integrity=(Integrity.SHA1, self.key))

    def _exchange(self, method: Method, *fields: Any, **options: Any) -> stun.Message:
        transaction_id = os.urandom(12)
        self.transmit(stun.encode(method, MessageClass.REQUEST, transaction_id, fields, **options))
        answer = stun.parse(self.frame())
        assert answer.transaction_id == transaction_id
        return answer

    def allocate(self, *fields: Any) -> Address:
        answer = self.ask(Method.ALLOCATE, stun.REQUESTED_TRANSPORT(17), *fields)
        relayed = answer.get(stun.XOR_RELAYED_ADDRESS)
        assert relayed is not None, answer.get(stun.ERROR_CODE)
        return relayed

    def bind(self, number: int, peer: tuple[str, int]) -> None:
        answer = self.ask(Method.CHANNEL_BIND, stun.CHANNEL_NUMBER(number), stun.XOR_PEER_ADDRESS(Address(*peer)))
        assert answer.message_class is MessageClass.SUCCESS, answer.get(stun.ERROR_CODE)

    def permit(self, peer: tuple[str, int]) -> None:
        answer = self.ask(Method.CREATE_PERMISSION, stun.XOR_PEER_ADDRESS(Address(*peer)))
        assert answer.message_class is MessageClass.SUCCESS, answer.get(stun.ERROR_CODE)


class Phone(TurnClient):
    """A TURN client on a datagram socket of its own."""

    def __init__(self, site: Site, listener: int = 0, sock: Any = None) -> None:
        super().__init__(sock or udp())
        self.to = site.listeners[listener].getsockname()

    def transmit(self, data: bytes) -> None:
        self.socket.sendto(data, self.to)

    def frame(self) -> bytes:
        return bytes(self.socket.recv(2000))

    def channel(self, number: int, payload: bytes, *, length: int | None = None, padding: bytes = b"") -> None:
        head = struct.pack("!HH", number, len(payload) if length is None else length)
        self.socket.sendto(head + payload + padding, self.to)

    def send(self, peer: tuple[str, int], payload: bytes, *fields: Any) -> None:
        indication = [stun.XOR_PEER_ADDRESS(Address(*peer)), stun.DATA(payload), *fields]
        self.socket.sendto(stun.encode(Method.SEND, MessageClass.INDICATION, os.urandom(12), indication), self.to)


class StreamPhone(TurnClient):
    """A TURN client on a stream."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self._frames = Frames()
        self._read: list[bytes] = []

    def frame(self) -> bytes:
        while not self._read:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self._read += self._frames.receive(data, 0.0)
        return self._read.pop(0)

    def transmit(self, data: bytes) -> None:
        self.socket.sendall(data)

    def channel(self, number: int, payload: bytes) -> None:
        self.socket.sendall(struct.pack("!HH", number, len(payload)) + payload + bytes(-len(payload) % 4))
