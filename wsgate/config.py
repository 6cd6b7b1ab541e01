"""What an ini file says as one value: a settings dataclass for each section, and what the supervisor must open for it.

The settings stand beside the machines that obey them; the sections that no machine owns are declared here.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
from collections.abc import Iterator
from pathlib import Path

from wsgate.addr import Address, Network
from wsgate.guard import LimitSettings
from wsgate.handover import Endpoint, FileReference, state_name
from wsgate.identity import IdentitySettings
from wsgate.net.listener import ListenerSettings
from wsgate.net.resolver import ResolverSettings
from wsgate.settings import (
    ADDRESS,
    BOOLEAN,
    NETWORKS,
    TEXT,
    Parser,
    Switch,
    auto,
    choice,
    integer,
    option,
    optional,
    seconds,
)
from wsgate.sip.registrar import MEMORY, RegistrarSettings
from wsgate.sip.settings import SipSettings
from wsgate.sip.targets import EMBEDDED, BackendSettings
from wsgate.turn.alternates import alternates
from wsgate.turn.settings import TurnSettings
from wsgate.ws.connection import WebSocketSettings

SELF_SIGNED_CERTIFICATE = "wsgate.pem"
SELF_SIGNED_PRIVATE_KEY = "wsgate-key.pem"
"""Beside the ini file: made on the first run where a listener with TLS names no certificate."""

MAX_WORKERS = 256
"""More would help nobody; the token has room for 65536 (rule T1)."""


def _name(text: str) -> str:
    if not text:
        raise ValueError("it must not be empty")
    return text


FILE_NAME: Parser[str] = (_name, "a file name")


class LogLevel(enum.Enum):
    """From which importance on a line is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclasses.dataclass(frozen=True)
class ProcessSettings:
    """[wsgate]"""

    workers: int = option(1, integer(1, MAX_WORKERS))
    user: str | None = option(None, auto(TEXT))
    group: str | None = option(None, auto(TEXT))
    pidfile: str = option("", TEXT)
    log_level: LogLevel = option(LogLevel.INFO, choice(LogLevel))
    log_target: str = option("stderr", (_name, "stderr, syslog, or a file name"))
    drain_timeout: float = option(30.0, seconds(0, 86400))
    key_file: str = option("wsgate.key", FILE_NAME)
    control_socket: str = option("wsgate.sock", TEXT, later="wsgate ctl")


@dataclasses.dataclass(frozen=True)
class WebSettings:
    """[web]"""

    phone: bool = option(True, BOOLEAN)
    health: bool = option(True, BOOLEAN)
    metrics_from: tuple[Network, ...] = option(
        (ipaddress.ip_network("127.0.0.1/32"), ipaddress.ip_network("::1/128")), NETWORKS
    )


@dataclasses.dataclass(frozen=True)
class TraceSettings:
    """[trace]"""

    hep: Address | None = option(None, optional(ADDRESS), later="tracing to a collector")
    pcap: str = option("", TEXT, later="tracing to a file")


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A whole ini file, judged. Relative file names in it are relative to `directory`, where the file lies.

    `turn` is None where the section is absent or off. A listener with TLS always names a certificate: the self-signed
    one where none was configured (then `self_signed` is true). `notices` are lines for the log at start.
    """

    path: str
    directory: Path
    process: ProcessSettings
    listeners: dict[str, ListenerSettings]
    websocket: WebSocketSettings
    sip: SipSettings
    backends: dict[str, BackendSettings]
    registrar: RegistrarSettings
    dns: ResolverSettings
    turn: TurnSettings | None
    limits: LimitSettings
    identity: IdentitySettings
    web: WebSettings
    trace: TraceSettings
    self_signed: bool = False
    notices: tuple[str, ...] = ()

    @property
    def embedded_domains(self) -> tuple[str, ...]:
        """The domains that the embedded registrar serves, as in the file."""
        return tuple(domain for domain, backend in self.backends.items() if backend.target == EMBEDDED)

    @property
    def tls_listener(self) -> str:
        """The first listener with TLS, whose certificate [sip] tls_bind shows; empty where there is none."""
        return next((name for name, listener in self.listeners.items() if listener.tls is not Switch.OFF), "")

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every socket of this configuration, worker by worker, in the order of the file."""
        return tuple(endpoint for endpoint, _ in placed_endpoints(self))

    def places(self) -> tuple[str, ...]:
        """For each of `endpoints()` the section and option that ask for it, as an error names them."""
        return tuple(f"[{section}] {option_name}" for _, (section, option_name) in placed_endpoints(self))

    def files(self) -> tuple[FileReference, ...]:
        """Every file that a worker reads and that must be there, each once."""
        seen: dict[str, FileReference] = {}
        for reference in _file_references(self):
            if reference.name:
                seen.setdefault(reference.name, reference)
        return tuple(seen.values())

    def states(self) -> tuple[FileReference, ...]:
        """Every file that a worker writes, one for each: opened by the supervisor, made when missing."""
        name = self.sip.state_file
        numbers = range(self.process.workers) if name else ()
        return tuple(FileReference("sip", "state_file", state_name(name, number)) for number in numbers)

    def databases(self) -> tuple[FileReference, ...]:
        """Every database that a worker writes: made by the supervisor when missing, the worker's user's own."""
        store = self.registrar.store
        return (FileReference("registrar", "store", store),) if self.embedded_domains and store != MEMORY else ()

    def written(self) -> tuple[FileReference, ...]:
        """Every file that may be made at start, or later: its directory must be there."""
        process = self.process
        target = "" if process.log_target in ("stderr", "syslog") else process.log_target
        own = {"pidfile": process.pidfile, "log_target": target, "key_file": process.key_file}
        references = [FileReference("wsgate", option, name) for option, name in own.items() if name]
        return (*references, *self.states(), *self.databases())


def placed_endpoints(configuration: Configuration) -> Iterator[tuple[Endpoint, tuple[str, str]]]:
    """Every socket of every worker with the section and option that asks for it."""
    for number in range(configuration.process.workers):
        for endpoint, place in _endpoints_of_one(configuration):
            address = endpoint.address
            if not endpoint.shared and address.port:
                address = address._replace(port=address.port + number)
            yield endpoint._replace(address=address, worker=number), place


def _endpoints_of_one(configuration: Configuration) -> Iterator[tuple[Endpoint, tuple[str, str]]]:
    for name, listener in configuration.listeners.items():
        for address in listener.bind:
            yield Endpoint("listener", name, address), (f"listener {name}", "bind")
    for address in configuration.sip.bind:
        yield Endpoint("sip-udp", "sip", address), ("sip", "bind")
        yield Endpoint("sip-tcp", "sip", address), ("sip", "bind")
    for address in configuration.sip.tls_bind:
        yield Endpoint("sip-tls", "sip", address), ("sip", "tls_bind")
    turn = configuration.turn
    if turn is not None and turn.enabled:
        for address in turn.udp:
            yield Endpoint("turn-udp", "turn", address), ("turn", "udp")
        for address in alternates(turn.udp, turn.alternate_address, turn.alternate_port):
            yield Endpoint("turn-alternate-udp", "turn", address), ("turn", "alternate_address")
        for address in turn.tcp:
            yield Endpoint("turn-tcp", "turn", address), ("turn", "tcp")
        for address in turn.tls:
            yield Endpoint("turn-tls", "turn", address), ("turn", "tls")


def _file_references(configuration: Configuration) -> Iterator[FileReference]:
    yield FileReference("wsgate", "key_file", configuration.process.key_file)
    for name, listener in configuration.listeners.items():
        if listener.tls is not Switch.OFF:
            yield FileReference(f"listener {name}", "certificate", listener.certificate)
            yield FileReference(f"listener {name}", "private_key", listener.private_key)
    for domain, backend in configuration.backends.items():
        yield FileReference(f"backend {domain}", "ca_file", backend.ca_file)
        yield FileReference(f"backend {domain}", "client_certificate", backend.client_certificate)
        yield FileReference(f"backend {domain}", "client_private_key", backend.client_private_key)
    if configuration.embedded_domains:
        yield FileReference("registrar", "users", configuration.registrar.users)
    yield FileReference("identity", "jwt_keys", configuration.identity.jwt_keys)
    turn = configuration.turn
    if turn is not None:
        yield FileReference("turn", "users", turn.users)
        yield FileReference("turn", "shared_secret_file", turn.shared_secret_file)
        yield FileReference("turn", "oauth_keys", turn.oauth_keys)
        yield FileReference("turn", "certificate", turn.certificate)
        yield FileReference("turn", "private_key", turn.private_key)
