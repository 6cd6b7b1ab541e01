"""Those who mean no good, or nothing at all: garbage on every port, half of everything, spoiled messages."""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any

import gevent
from gevent import socket

from tests.fuzz.chance import INTERESTING, Choices, spoil
from tests.fuzz.sip import MESSAGES
from tests.fuzz.sip import PIECES as SIP_PIECES
from tests.fuzz.turn import MESSAGES as STUN_MESSAGES
from tests.fuzz.web import PIECES as HTTP_PIECES
from tests.fuzz.web import REQUESTS
from tests.soak.places import Places, connected
from wsgate.turn import stun
from wsgate.turn.stun import MessageClass, Method
from wsgate.ws.frames import Opcode, serialize
from wsgate.ws.handshake import ClientHandshake

PATIENCE_SECONDS = 1.0


class Stranger:
    """Does one of all that again and again."""

    def __init__(self, number: int, places: Places, done: Counter[str]) -> None:
        self._chance = random.Random(number)
        self._places, self._done = places, done
        self._doings = [self._garbage, self._http, self._half, self._frames, self._messages, self._datagrams]

    def live(self, others: list[str]) -> None:
        """One doing."""
        doing = self._chance.choice(self._doings)
        try:
            doing()
        except OSError:
            # To be cut off is what a stranger has to expect.
            self._done["strangers cut off"] += 1
        self._done["strangers"] += 1
        gevent.sleep(self._chance.random() * 0.1)

    def _spoiled(self, data: bytes, pieces: list[bytes]) -> bytes:
        for _ in range(self._chance.choice((0, 1, 1, 2, 5))):
            data = spoil(Choices(self._chance.randbytes(16)), data, [*INTERESTING, *pieces])
        return data

    def _connected(self) -> Any:
        is_clear = self._chance.random() < 0.3
        return connected(self._places.web, None if is_clear else self._places.tls, PATIENCE_SECONDS)

    def _tell(self, data: bytes) -> None:
        """Say something on a connection and hear what comes of it."""
        with self._connected() as sock:
            sock.sendall(data)
            while sock.recv(65536):
                pass

    def _garbage(self) -> None:
        first = self._chance.choice(
            (b"\x16\x03\x01", b"\0\1", b"PROXY TCP4 ", b"\r\n\r\n\0\r\nQUIT\n", b"GET ", b"\xff")
        )
        self._tell(first + self._chance.randbytes(self._chance.randrange(300)))

    def _http(self) -> None:
        self._tell(self._spoiled(self._chance.choice(REQUESTS), HTTP_PIECES))

    def _half(self) -> None:
        with self._connected() as sock:
            sock.sendall(self._chance.choice(REQUESTS)[: self._chance.randrange(60)])
            gevent.sleep(self._chance.random())

    def _upgraded(self) -> Any:
        sock = self._connected()
        handshake = ClientHandshake("127.0.0.1", "/ws", os.urandom)
        sock.sendall(handshake.request)
        rest = None
        while rest is None:
            data = sock.recv(65536)
            if not data:
                raise ConnectionResetError
            rest = handshake.receive(data)
        return sock

    def _frames(self) -> None:
        with self._upgraded() as sock:
            frame = serialize(Opcode.TEXT, self._chance.choice(MESSAGES), b"abcd")
            sock.sendall(self._spoiled(frame, []) + self._chance.randbytes(20))
            sock.recv(65536)

    def _messages(self) -> None:
        with self._upgraded() as sock:
            for _ in range(20):
                message = self._spoiled(self._chance.choice(MESSAGES), SIP_PIECES)
                sock.sendall(serialize(Opcode.BINARY, message, b"abcd"))
            if self._chance.random() < 0.5:
                sock.recv(65536)

    def _datagrams(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(20):
                sock.sendto(self._spoiled(self._chance.choice(MESSAGES), SIP_PIECES), self._places.sip)
                sock.sendto(self._spoiled(self._chance.choice(STUN_MESSAGES), []), self._places.turn)
                request = stun.encode(Method.ALLOCATE, MessageClass.REQUEST, os.urandom(12), ())
                sock.sendto(self._chance.choice((request, self._chance.randbytes(30))), self._places.turn)
