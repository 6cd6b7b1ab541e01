"""TURN over UDP on a machine with several addresses: run by test_own_addresses.py in a network namespace.

`python -m tests.interop.addresses_scenario DIRECTORY`, with 10.98.0.1, 10.98.0.2, fd98::1 and fd98::2 on lo.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from tests.interop.daemon import Daemon
from tests.interop.process import free_port
from wsgate.turn import stun
from wsgate.turn.stun import MessageClass, Method

PAIRS = (("10.98.0.1", "10.98.0.2"), ("fd98::1", "fd98::2"))


def answered(client: str, server: str, port: int) -> bool:
    """A client whose socket is connected, as that of a NAT is, hears only whom it has asked."""
    with socket.socket(socket.AF_INET6 if ":" in client else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((client, 0))
        sock.connect((server, port))
        sock.settimeout(30)
        sock.send(stun.encode(Method.BINDING, MessageClass.REQUEST, bytes(12), ()))
        answer = stun.parse(sock.recv(1500))
        return answer.get(stun.XOR_MAPPED_ADDRESS) == sock.getsockname()[:2]


def main() -> None:
    port = free_port()
    turn = f"""
        udp = 0.0.0.0:{port}, [::]:{port}
        tcp =
        relay_address = 10.98.0.1, fd98::1
    """
    for workers in (1, 2):
        daemon = Daemon(Path(sys.argv[1]) / str(workers), "", turn=turn, workers=workers)
        try:
            for one, other in PAIRS:
                assert answered(one, other, port)
                assert answered(other, one, port)
                assert answered(one, one, port)
            assert answered("127.0.0.1", "127.0.0.1", port)
        finally:
            daemon.stop()
    print("done")


if __name__ == "__main__":
    main()
