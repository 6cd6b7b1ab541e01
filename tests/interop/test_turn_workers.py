"""TURN with several workers: the kernel gives each stream of a client to any of them (RFC 6062; rules C1, T3)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import socket as green
from gevent import ssl

from tests.interop.daemon import Daemon
from tests.interop.process import free_port, wait_for
from tests.loopback.test_turn_connections import Control, Peer, exactly
from tests.loopback.test_turn_stream import closed
from tests.turn_process import PASSWORD, REALM, USER, write_certificate
from wsgate.turn import stun
from wsgate.turn.stun import Method

WORKERS = 3
CONNECTIONS = 12
MEGABYTE = 1 << 20


class Service:
    """The daemon, and streams to its TURN ports."""

    def __init__(self, directory: Path) -> None:
        certificate, private_key = write_certificate(directory)
        key = hashlib.md5(f"{USER}:{REALM}:{PASSWORD}".encode()).hexdigest()
        (directory / "turn.users").write_text(f"{USER}:{REALM}:{key}\n")
        self.port, self.tls_port = free_port(), free_port()
        turn = f"""
            udp =
            tcp = 127.0.0.1:{self.port}
            tls = 127.0.0.1:{self.tls_port}
            certificate = {certificate}
            private_key = {private_key}
            realm = {REALM}
            users = turn.users
            relay_address = 127.0.0.1
            allow_peers = 127.0.0.0/8
        """
        self.daemon = Daemon(directory, "", turn=turn, workers=WORKERS)

    def connect(self, tls: bool = False) -> Any:
        sock: Any = green.create_connection(("127.0.0.1", self.tls_port if tls else self.port), timeout=10)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            sock = context.wrap_socket(sock)
        return sock

    def counted(self, name: str) -> int:
        return sum(int(status["counters"].get(name, 0)) for status in self.daemon.statuses())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("turn"))
    yield made
    made.daemon.stop()


@pytest.mark.parametrize("tls", [False, True], ids=["TCP", "TLS"])
def test_a_connection_is_claimed_by_a_stream_of_any_worker(service: Service, tls: bool) -> None:
    """Both ways, more than any buffer holds, with half-close (TCP) or the end (TLS)."""
    before = service.counted("turn_streams_passed")
    control = Control(service, tls)
    data = os.urandom(MEGABYTE)
    for _ in range(CONNECTIONS):
        # Another one each time: the end of a connection may be on its way still (446).
        peer = Peer()
        stream = control.claim(control.connect(peer.address), b"first")
        far = peer.connection()
        assert far.getpeername()[:2] == control.relayed
        assert exactly(far, 5) == b"first"
        far.sendall(data)
        assert exactly(stream, MEGABYTE) == data
        if tls:
            stream.close()
        else:
            stream.shutdown(green.SHUT_WR)
            assert far.recv(1) == b""
            far.sendall(b"last")
            far.shutdown(green.SHUT_WR)
            assert exactly(stream, 4) == b"last"
        assert closed(far)
        assert tls or closed(stream)
        stream.close()
        far.close()
        peer.close()
    # Each went to a worker by chance: that all came to the first one has a probability of one in half a million.
    assert service.counted("turn_streams_passed") > before
    wait_for(lambda: service.counted("turn_streams_not_passed") == 0, "all to be passed")


def test_a_stream_for_nothing_gets_its_answer_from_the_owner(service: Service) -> None:
    """400 (RFC 6062 §5.4), whichever worker the number is of; and the stream is good for something else."""
    for number in range(1, 1 + WORKERS):
        control = Control(service, False)
        other = Control(service, False)
        stream = service.connect()
        control.socket.close()
        control.socket, control.nonce = stream, b""
        error = control.ask(Method.CONNECTION_BIND, stun.CONNECTION_ID(number)).get(stun.ERROR_CODE)
        assert error is not None
        assert error.code == 400
        assert control.ask(Method.ALLOCATE, stun.REQUESTED_TRANSPORT(6)).get(stun.XOR_RELAYED_ADDRESS)
        stream.close()
        other.socket.close()


def test_all_ends_with_the_control_stream(service: Service) -> None:
    """Rule L4, over two workers too: connections, streams and descriptors are gone."""
    control = Control(service, False)
    peers = [Peer() for _ in range(CONNECTIONS // 2)]
    streams = [control.claim(control.connect(one.address)) for one in peers]
    far = [one.connection() for one in peers]
    control.socket.close()
    assert all(closed(end) for end in (*streams, *far))
    for one in peers:
        one.close()
    wait_for(lambda: sum(status["allocations"] for status in service.daemon.statuses()) == 0, "no allocation")
