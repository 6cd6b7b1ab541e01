"""DTLS: how datagrams of records are cut, and a port with clients that are blind or spoil what they send (E2)."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from OpenSSL import SSL

from tests.fuzz.chance import INTERESTING, Choices, spoil
from tests.fuzz.target import Target, require
from tests.turn_process import write_certificate
from wsgate.addr import Address
from wsgate.guard import Guard, LimitSettings
from wsgate.metrics import Counters
from wsgate.net.dtls import FIRST_BYTES, Associations
from wsgate.net.dtls_records import DATAGRAM_BYTES, begins_with_hello, datagrams, is_whole, records
from wsgate.turn.effects import Client

SOCKET = 7
GATEWAY_BYTES_MAX = 128
"""What a stranger is sent before its cookie came back (S4)."""
STEPS_MAX = 60
STUN = b"\0\1\0\0" + bytes(16)


def cut(data: bytes) -> None:
    """Any datagram is cut without loss, and what counts as whole has whole records alone."""
    found = list(records(data))
    require(data.startswith(b"".join(found)) and all(found), "other bytes", found)
    require(b"".join(datagrams(data)) == b"".join(found), "lost on its way out", data)
    for one in datagrams(data):
        require(len(one) <= DATAGRAM_BYTES or len(list(records(one))) == 1, "too long", one)
    if is_whole(data):
        require(b"".join(found) == data, "more than records", data)
        for one in found:
            require(len(one) == 13 + int.from_bytes(one[11:13], "big") and one[1] == 0xFE, "no record", one)
        if len(found[0]) > 13:
            require(begins_with_hello(data) == (found[0][0] == 22 and found[0][3:5] == b"\0\0" and found[0][13] == 1))
        else:
            begins_with_hello(data)


@functools.cache
def _certificate() -> tuple[str, str]:
    directory = tempfile.TemporaryDirectory(prefix="wsgate-fuzz-")
    _kept.append(directory)
    return write_certificate(Path(directory.name))


_kept: list[Any] = []


class _Engine:
    """What an association asks of the relay engine."""

    def __init__(self) -> None:
        self.paths: dict[int, Any] = {}
        self.heard: list[bytes] = []
        self._number = 0
        self.server = SimpleNamespace(
            has_allocation=lambda client: False, take_unauthenticated=lambda host, size, now: True
        )

    def open_path(self, path: Any) -> None:
        self._number += 1
        path.path = self._number
        self.paths[path.path] = path

    def close_path(self, client: Client) -> None:
        del self.paths[client.path]

    def stun_message(self, data: bytes, client: Client) -> None:
        self.heard.append(data)
        path = self.paths[client.path]
        path.answer(data, path.address)

    def channel_data(self, data: bytes, path: Any, address: Address) -> None:
        self.heard.append(data)


class _Port:
    """The socket of the gateway: what it sends is kept for who is there."""

    def __init__(self) -> None:
        self.sent: dict[tuple[str, int], list[bytes]] = {}

    def fileno(self) -> int:
        return SOCKET

    def sendto(self, data: bytes, address: tuple[str, int]) -> None:
        require(is_whole(data) and data[0] in FIRST_BYTES, "no records are sent", data)
        self.sent.setdefault((address[0], address[1]), []).append(data)


class _Caller:
    """A client at `address`; what it wants to send waits in `flight`."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.began = False
        self.flight: list[bytes] = []
        self._connection: Any = None

    def begin(self) -> None:
        """A new handshake from this address."""
        self._connection = SSL.Connection(SSL.Context(SSL.DTLS_CLIENT_METHOD), None)
        self._connection.set_ciphertext_mtu(DATAGRAM_BYTES)
        self._connection.set_connect_state()
        self.hear([])

    def hear(self, found: list[bytes]) -> bool:
        """What came; True when the handshake is done. A client that is told nonsense gives up."""
        if self._connection is None:
            return False
        try:
            for one in found:
                self._connection.bio_write(one)
            self._connection.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return False
        except SSL.Error:
            self._connection = None
            return False
        self._flush()
        return True

    def say(self, data: bytes) -> None:
        """A message inside."""
        self._connection.send(data)
        self._flush()

    def heard(self, found: list[bytes]) -> bytes:
        """The message inside of what came."""
        for one in found:
            self._connection.bio_write(one)
        return bytes(self._connection.recv(2000))

    def _flush(self) -> None:
        data = b""
        try:
            while True:
                data += self._connection.bio_read(65536)
        except SSL.WantReadError:
            self.flight += datagrams(data)


def port(data: bytes) -> None:
    """Whatever came before, a good client is served; one that hears nothing never gets an association."""
    chance, engine, port, guard = Choices(data), _Engine(), _Port(), Guard(LimitSettings())
    associations = Associations(engine, guard, Counters(), os.urandom, *_certificate())  # type: ignore[arg-type]
    callers = [_Caller(("192.0.2.1", 1000 + number)) for number in range(3)]
    blind = ("192.0.2.66", 66)
    seen = [b"\x16\xfe\xff" + bytes(8) + b"\0\1\1"]
    for _ in range(STEPS_MAX):
        if chance.is_over:
            break
        caller = chance.pick(callers)
        kind = chance.number(8)
        if kind == 0 or not caller.began:
            caller.began = True
            caller.begin()
        caller.hear(port.sent.pop(caller.address, []))
        flight, caller.flight = caller.flight, []
        seen = [*seen[-20:], *flight]
        for one in flight:
            spoiled = spoil(chance, one, [*INTERESTING, *seen], seen) if kind == 1 else one
            _tell(associations, port, spoiled, caller.address)
        if kind > 4:
            one = chance.pick(seen)
            for _ in range(chance.number(4)):
                one = spoil(chance, one, [*INTERESTING, *seen], seen)
            _tell(associations, port, one, blind if kind > 5 else caller.address)
        require((SOCKET, blind) not in associations._open, "an association with who never heard its cookie")
    _serves(associations, port, engine)
    associations.stop()
    require(not associations._open and not associations._key_of and not engine.paths, "left behind", engine.paths)
    require(guard.connections == 0, "the guard counts what is gone", guard.connections)


def _tell(associations: Associations, port: _Port, data: bytes, source: tuple[str, int]) -> None:
    """As the relay engine does, which goes by the first byte."""
    if not data or data[0] not in FIRST_BYTES:
        return
    is_known = (SOCKET, source) in associations._open
    before = len(port.sent.get(source, ()))
    associations.receive(port, data, source)  # type: ignore[arg-type]
    if not is_known and (SOCKET, source) not in associations._open:
        require(sum(map(len, port.sent.get(source, ())[before:])) <= GATEWAY_BYTES_MAX, "much for a stranger (S4)")


def _serves(associations: Associations, port: _Port, engine: _Engine) -> None:
    good = _Caller(("192.0.2.200", 200))
    good.begin()
    for _ in range(12):
        flight, good.flight = good.flight, []
        for one in flight:
            _tell(associations, port, one, good.address)
        if good.hear(port.sent.pop(good.address, [])):
            break
    good.say(STUN)
    for one in good.flight:
        _tell(associations, port, one, good.address)
    require(engine.heard[-1:] == [STUN], "a good client is not heard", engine.heard)
    require(good.heard(port.sent.pop(good.address, [])) == STUN, "a good client hears nothing")


def _record(body: bytes, kind: int = 22, epoch: int = 0) -> bytes:
    return bytes((kind, 0xFE, 0xFD)) + epoch.to_bytes(2, "big") + bytes(6) + len(body).to_bytes(2, "big") + body


RECORDS = [
    _record(b"\1hello"),
    _record(b"\1" + bytes(300)) + _record(b"", 20) + _record(b"x" * 40, epoch=1),
    _record(b"data", 23, 1) * 3,
    _record(bytes(1500)) + _record(b"behind"),
]
PIECES = [b"\xfe\xfd", b"\xfe\xff", b"\x16", b"\0\0", b"\xff\xff", _record(b"")]

TARGETS = [
    Target("dtls-records", cut, RECORDS, PIECES, test_inputs=2000),
    Target("dtls-port", port, test_inputs=10),
]
