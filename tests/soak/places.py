"""Where a gateway under soak is reached, and how."""

from __future__ import annotations

from typing import Any, NamedTuple

from gevent import socket, ssl


class Places(NamedTuple):
    """Its ports. `tls` is for `web` and `turn_tls`; None: in clear, and there is no `turn_tls`."""

    web: tuple[str, int]
    sip: tuple[str, int]
    turn: tuple[str, int]
    turn_tls: tuple[str, int] | None = None
    tls: Any = None


def trusting(ca_file: str) -> Any:
    """A TLS client that takes certificates of this authority for 127.0.0.1, and no others."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca_file)
    return context


def connected(address: tuple[str, int], tls: Any, timeout: float) -> Any:
    """A stream to there. Raises OSError."""
    sock = socket.create_connection(address, timeout=timeout)
    if tls is None:
        return sock
    try:
        return tls.wrap_socket(sock, server_hostname=address[0])
    except OSError:
        sock.close()
        raise
