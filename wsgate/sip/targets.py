"""What a backend is: its section of the ini file, the SIP URI that names it, and a server found behind it. Pure."""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple

from wsgate.addr import Address, Transport, is_host, split_host_port
from wsgate.settings import TEXT, Parser, choice, listed, option, seconds

EMBEDDED = "embedded"
"""The target of a domain that wsgate's own registrar serves."""

_URI_TRANSPORTS = {
    "udp": Transport.UDP,
    "tcp": Transport.TCP,
    "tls": Transport.TLS,
    "ws": Transport.WS,
    "wss": Transport.WSS,
}
_SECURED = {Transport.TCP: Transport.TLS, Transport.WS: Transport.WSS}


class TargetUri(NamedTuple):
    """A SIP URI that names a server: no user, `port` and `transport` None where it leaves them out."""

    secure: bool
    host: str
    port: int | None
    transport: Transport | None


def parse_target(text: str) -> TargetUri:
    """`sip:host[:port][;transport=x]` or `sips:...`. Raises ValueError with a sentence for the administrator.

    `sips:` asks for TLS or WSS: `transport=tcp` in it means TLS, `transport=ws` WSS (RFC 3261 §26.2.2, RFC 7118 §5).
    """
    scheme, colon, rest = text.strip().partition(":")
    if not colon or scheme.lower() not in ("sip", "sips"):
        raise ValueError(f"{text!r} does not begin with sip: or sips:")
    secure = scheme.lower() == "sips"
    host_port, *parameters = rest.split(";")
    if "@" in host_port or "?" in rest:
        raise ValueError(f"{text!r} names more than a server: leave out the user and any ?headers")
    address = split_host_port(host_port, -1)
    if address.port == 0:
        raise ValueError("port 0 cannot be reached")
    if not is_host(address.host):
        raise ValueError(f"{address.host!r} is neither a host name nor an IP address")
    transport = None
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() != "transport":
            raise ValueError(f"parameter {name.strip()!r} is not used here; only transport is")
        transport = _URI_TRANSPORTS.get(value.strip().lower())
        if transport is None:
            raise ValueError(f"transport {value.strip()!r} is not known ({', '.join(_URI_TRANSPORTS)})")
        if secure:
            transport = _SECURED.get(transport, transport)
            if not transport.secure:
                raise ValueError("sips: cannot be reached over UDP")
    return TargetUri(secure, address.host, None if address.port == -1 else address.port, transport)


def _checked_target(text: str) -> str:
    if text != EMBEDDED:
        parse_target(text)
    return text


def _request_path(text: str) -> str:
    if not text.startswith("/") or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"{text!r} is not a path")
    return text


TARGET: Parser[str] = (_checked_target, "embedded, or sip:host[:port][;transport=udp|tcp|tls|ws|wss]")
REQUEST_PATH: Parser[str] = (_request_path, "a path that begins with /")


class ContactMode(enum.Enum):
    """How a registrar learns the way to a browser (rule R5)."""

    PATH = "path"
    CONTACT = "contact"
    AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class BackendSettings:
    """[backend DOMAIN]"""

    target: str = option("", TARGET)
    transports: tuple[Transport, ...] = option(tuple(Transport), listed(choice(Transport)))
    ws_path: str = option("/", REQUEST_PATH)
    contact_mode: ContactMode = option(ContactMode.AUTO, choice(ContactMode))
    probe_interval: float = option(10.0, seconds(1, 3600))
    ca_file: str = option("", TEXT)
    server_name: str = option("", TEXT)
    client_certificate: str = option("", TEXT)
    client_private_key: str = option("", TEXT)


class Target(NamedTuple):
    """A server to try: `address` is numeric, `host` the URI's, whom a certificate must name (RFC 5922 §4)."""

    transport: Transport
    address: Address
    host: str
