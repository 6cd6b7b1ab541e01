"""URIs of STUN and TURN servers: `stun:host`, `turn:host:port?transport=tcp`, `turns:host` (RFC 7064, RFC 7065)."""

from __future__ import annotations

from typing import NamedTuple

from wsgate.addr import Address, split_host_port, uri_host

DEFAULT_PORT, DEFAULT_SECURE_PORT = 3478, 5349

SCHEMES = ("stun", "stuns", "turn", "turns")
TRANSPORTS = ("udp", "tcp")


class TurnUri(NamedTuple):
    """A server as a URI names it; `transport` is udp or tcp, below TLS or DTLS where `secure`."""

    scheme: str
    host: str
    port: int
    transport: str

    def __str__(self) -> str:
        text = f"{self.scheme}:{uri_host(self.host)}:{self.port}"
        return f"{text}?transport={self.transport}" if self.relays else text

    @property
    def address(self) -> Address:
        """Host and port."""
        return Address(self.host, self.port)

    @property
    def secure(self) -> bool:
        """True for TLS and DTLS."""
        return self.scheme.endswith("s")

    @property
    def relays(self) -> bool:
        """True for a TURN server, False for one that is asked for Binding alone."""
        return self.scheme.startswith("turn")


def parse_uri(text: str) -> TurnUri:
    """The server that `text` names; port and transport by default as RFC 7064 §3.1 and RFC 7065 §3.1 say.

    Raises ValueError with a reason for whoever wrote it.
    """
    scheme, colon, rest = text.strip().partition(":")
    scheme = scheme.lower()
    if not colon or scheme not in SCHEMES:
        raise ValueError(f"{text!r} does not begin with {', '.join(one + ':' for one in SCHEMES)}")
    where, question, query = rest.partition("?")
    if where.startswith("//"):
        raise ValueError(f"{text!r}: these URIs have no //")
    secure = scheme.endswith("s")
    transport = "tcp" if secure else "udp"
    if question:
        name, _, transport = query.lower().partition("=")
        if name != "transport" or transport not in TRANSPORTS or not scheme.startswith("turn"):
            raise ValueError(f"{text!r}: what may follow is ?transport=udp or ?transport=tcp, of turn: and turns:")
    address = split_host_port(where, DEFAULT_SECURE_PORT if secure else DEFAULT_PORT)
    if not address.port:
        raise ValueError(f"{text!r}: there is no port 0")
    return TurnUri(scheme, address.host, address.port, transport)
