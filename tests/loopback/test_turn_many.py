"""5,000 allocations of many users come and go: ports, descriptors and memory come back (rules L4, Q1)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loopback.turn_site import TurnClient
from tests.turn_process import REALM, SECRET, TurnProcess
from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.auth import SecretHash, long_term_key, time_limited_password
from wsgate.turn.stun import MessageClass, Method
from wsgate.turn.values import PasswordAlgorithm

USERS = 100
ROUNDS = 5
AT_ONCE = 1000
MEMORY_ALLOWED_KIB = 6 * 1024
PEER = Address("127.0.0.2", 9)


class Client(TurnClient):
    """A user of the shared secret on a blocking socket."""

    def __init__(self, port: int, user: str) -> None:
        super().__init__(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.socket.connect(("127.0.0.1", port))
        self.socket.settimeout(20)
        self.user = user
        password = time_limited_password(SECRET.encode(), user, SecretHash.SHA1)
        self.key = long_term_key(user, REALM, password, PasswordAlgorithm.MD5)

    def transmit(self, data: bytes) -> None:
        self.socket.send(data)

    def frame(self) -> bytes:
        return self.socket.recv(2000)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


@pytest.fixture
def turn() -> Iterator[TurnProcess]:
    options = {"unauthenticated_rate": 10**9, "user_quota": AT_ONCE, "relay_ports": (30000, 60000)}
    with TurnProcess(allow=("127.0.0.0/8",), **options) as process:
        yield process


def one_round(turn: TurnProcess, began: int) -> set[Address]:
    """AT_ONCE allocations, with a permission and a channel each, and their end; returns their relayed addresses."""
    relayed: set[Address] = set()
    clients = [Client(turn.port, f"{began + 3600}:user{number % USERS}") for number in range(AT_ONCE)]
    for client in clients:
        answer = client.ask(Method.ALLOCATE, stun.REQUESTED_TRANSPORT(17))
        address = answer.get(stun.XOR_RELAYED_ADDRESS)
        assert address is not None, answer.get(stun.ERROR_CODE)
        relayed.add(address)
        bound = client.ask(Method.CHANNEL_BIND, stun.CHANNEL_NUMBER(0x4000), stun.XOR_PEER_ADDRESS(PEER))
        assert bound.message_class is MessageClass.SUCCESS
    assert descriptors(turn.process.pid) >= AT_ONCE
    for client in clients:
        assert client.ask(Method.REFRESH, stun.LIFETIME(0)).get(stun.LIFETIME) == 0
        client.socket.close()
    return relayed


def test_five_thousand_allocations_leave_nothing_behind(turn: TurnProcess) -> None:
    """With lifetime 0: expiry itself is in the pure tests."""
    pid, began = turn.process.pid, int(time.time())
    assert len(one_round(turn, began)) == AT_ONCE, "no port is given twice at a time"
    quiet, memory = descriptors(pid), resident_kib(pid)
    for _ in range(ROUNDS - 1):
        assert len(one_round(turn, began)) == AT_ONCE
    assert descriptors(pid) <= quiet
    assert resident_kib(pid) - memory < MEMORY_ALLOWED_KIB


def test_allocations_end_with_the_shortest_lifetime_that_the_options_allow() -> None:
    """`min_lifetime` is what a client gets that asks for less; the sockets close by the server's own clock."""
    options = {"unauthenticated_rate": 10**9, "min_lifetime": 1, "user_quota": 100}
    with TurnProcess(**options) as turn:
        pid, user = turn.process.pid, f"{int(time.time()) + 3600}:short"
        quiet = descriptors(pid)
        clients = [Client(turn.port, user) for _ in range(50)]
        for client in clients:
            answer = client.ask(Method.ALLOCATE, stun.REQUESTED_TRANSPORT(17), stun.LIFETIME(1))
            assert answer.get(stun.LIFETIME) == 1
        deadline = time.monotonic() + 15
        while descriptors(pid) > quiet:
            assert time.monotonic() < deadline, descriptors(pid)
            time.sleep(0.05)
        for client in clients:
            client.socket.close()
    assert turn.counters["turn_allocations_expired"] == 50
