"""Strangers flood the TURN server: memory and answers stay small, an authenticated client's media passes (Q2, S4)."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loopback.turn_site import Phone, udp
from tests.turn_process import REALM, TurnProcess
from wsgate.turn import stun
from wsgate.turn.stun import Integrity, MessageClass, Method

RATE = 4096
"""The default of unauthenticated_rate."""
ROUNDS = 400
PACKETS_PER_ROUND = 60
LOUD_SOURCES = 20
"""Sources that each send some hundred packets; the others send one packet each from an address of their own."""
CHANNEL = 0x4001
MEMORY_ALLOWED_KIB = 12 * 1024
CLIENT_HELLO = bytes.fromhex("16fefd0000000000000000") + (40).to_bytes(2, "big") + b"\1" + bytes(39)


class Site:
    """What Phone asks of a server."""

    def __init__(self, turn: TurnProcess) -> None:
        self.listeners = [self]
        self.port = turn.port

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self.port


def resident_kib(pid: int) -> int:
    """Memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def packets() -> Iterator[bytes]:
    """What strangers send: no credentials, wrong ones, nonces of their own, no STUN at all, DTLS without a cookie."""
    wrong = (Integrity.SHA1, b"k" * 16)
    for number in itertools.count():
        login = (stun.USERNAME(f"stranger{number}"), stun.REALM(REALM), stun.NONCE(os.urandom(20)))
        identity = os.urandom(12)
        yield stun.encode(Method.ALLOCATE, MessageClass.REQUEST, identity, (stun.REQUESTED_TRANSPORT(17),))
        yield stun.encode(Method.ALLOCATE, MessageClass.REQUEST, identity, login, integrity=wrong)
        yield stun.encode(Method.BINDING, MessageClass.REQUEST, identity, (), fingerprint=True)
        yield stun.encode(Method.SEND, MessageClass.INDICATION, identity, (stun.DATA(b"x" * 900),))
        yield b"\x40\x01\x00\x04data"
        yield CLIENT_HELLO
        yield os.urandom(1200)


def drain(sock: socket.socket) -> list[int]:
    """The sizes of all answers that are there."""
    sizes = []
    while True:
        try:
            sizes.append(len(sock.recv(2000)))
        except BlockingIOError:
            return sizes


def stranger(number: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((f"127.{1 + number // 62500}.{number // 250 % 250}.{1 + number % 250}", 0))
    sock.setblocking(False)
    return sock


@pytest.fixture
def turn() -> Iterator[TurnProcess]:
    with TurnProcess(allow=("127.0.0.0/8",), unauthenticated_rate=RATE) as process:
        yield process


def test_a_flood_of_strangers_costs_bounded_memory_and_no_media(turn: TurnProcess) -> None:
    """Rules Q2, S4: every media packet comes back between the bursts."""
    phone, peer = Phone(Site(turn)), udp("127.0.0.2")  # type: ignore[arg-type]
    phone.allocate()
    phone.bind(CHANNEL, peer.getsockname()[:2])
    loud = [stranger(number) for number in range(LOUD_SOURCES)]
    sizes: list[list[int]] = [[] for _ in loud]
    once: list[int] = []
    sent = packets()
    began = time.monotonic()
    before = 0
    for round_number in range(ROUNDS):
        for number in range(PACKETS_PER_ROUND):
            if number % 3:
                loud[number % LOUD_SOURCES].sendto(next(sent), phone.to)
            else:
                with stranger(1000 + round_number * PACKETS_PER_ROUND + number) as sock:
                    sock.sendto(next(sent), phone.to)
                    once += drain(sock)
        media = b"media %d" % round_number
        phone.channel(CHANNEL, media)
        received, relay = peer.recvfrom(2000)
        peer.sendto(received, relay)
        assert phone.socket.recv(2000)[4 : 4 + len(media)] == media
        for sock, seen in zip(loud, sizes, strict=True):
            seen.extend(drain(sock))
        if round_number == ROUNDS // 4:
            before = resident_kib(turn.process.pid)
    seconds = time.monotonic() - began
    assert resident_kib(turn.process.pid) - before < MEMORY_ALLOWED_KIB
    assert any(sizes)
    assert max(itertools.chain(once, *sizes)) <= 128, "a challenge has no more bytes (S4)"
    assert max(map(sum, sizes)) <= RATE * (seconds + 1), "the burst is one second's worth"
    for sock in (*loud, phone.socket, peer):
        sock.close()


def test_what_is_refused_to_the_loud_is_counted_and_others_are_answered() -> None:
    """Rule S4: one source is held to its rate, another is answered at once."""
    request = stun.encode(Method.ALLOCATE, MessageClass.REQUEST, bytes(12), (stun.REQUESTED_TRANSPORT(17),))
    with TurnProcess(unauthenticated_rate=RATE) as turn, stranger(1) as loud, stranger(2) as other:
        other.settimeout(20)
        began = time.monotonic()
        for _ in range(10):
            for _ in range(50):
                loud.sendto(request, ("127.0.0.1", turn.port))
            other.sendto(stun.encode(Method.BINDING, MessageClass.REQUEST, bytes(12), ()), ("127.0.0.1", turn.port))
            assert len(other.recv(2000)) <= 44
        assert 0 < sum(drain(loud)) <= RATE * (time.monotonic() - began + 1)
    assert turn.counters["turn_unauthenticated_limited"] > 0
