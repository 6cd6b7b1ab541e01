"""The ini file: one section to one settings dataclass, cross checks, and what the supervisor must open for it.

The settings stand beside the machines that obey them; the sections that no machine owns are declared here. Every error
is a ConfigurationError that names file, section, option and what is allowed.
"""

from __future__ import annotations

import configparser
import dataclasses
import difflib
import enum
import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from wsgate.addr import Address, Network, canonical_host, is_host
from wsgate.errors import ConfigurationError
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
from wsgate.sip.proxy import SipSettings
from wsgate.sip.registrar import MEMORY, RegistrarSettings
from wsgate.sip.targets import EMBEDDED, BackendSettings
from wsgate.turn.alternates import alternates, fault
from wsgate.turn.server import PeerPolicy, RelayEngine, TurnSettings
from wsgate.ws.connection import WebSocketSettings

T = TypeVar("T")

SELF_SIGNED_CERTIFICATE = "wsgate.pem"
SELF_SIGNED_PRIVATE_KEY = "wsgate-key.pem"
"""Beside the ini file: made on the first run where a listener with TLS names no certificate."""

MAX_INI_BYTES = 4 * 1024 * 1024
"""An ini file beyond this is refused: somebody named the wrong file."""


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
        return tuple(endpoint for endpoint, _ in _endpoints(self))

    def places(self) -> tuple[str, ...]:
        """For each of `endpoints()` the section and option that ask for it, as an error names them."""
        return tuple(f"[{section}] {option_name}" for _, (section, option_name) in _endpoints(self))

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


class Section(NamedTuple):
    """A kind of section: the field of Configuration, its dataclass, and whether it carries a name."""

    field: str
    settings: Any
    named: str = ""


SECTIONS = {
    "wsgate": Section("process", ProcessSettings),
    "listener": Section("listeners", ListenerSettings, "NAME"),
    "websocket": Section("websocket", WebSocketSettings),
    "sip": Section("sip", SipSettings),
    "backend": Section("backends", BackendSettings, "DOMAIN"),
    "registrar": Section("registrar", RegistrarSettings),
    "dns": Section("dns", ResolverSettings),
    "turn": Section("turn", TurnSettings),
    "limits": Section("limits", LimitSettings),
    "identity": Section("identity", IdentitySettings),
    "web": Section("web", WebSettings),
    "trace": Section("trace", TraceSettings),
}


def load(path: str | Path, source: str | Path | None = None) -> Configuration:
    """The configuration in the file `path`, read from `source` where that is another (a memory file with its bytes).

    Raises ConfigurationError.
    """
    return parse(_read(str(path), Path(source or path)), str(path))


def parse(text: str, path: str) -> Configuration:
    """The configuration in `text`, whose errors name the file `path`. Raises ConfigurationError."""
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";",), default_section="\n")
    try:
        parser.read_string(text, source=path)
    except configparser.Error as error:
        raise _syntax_error(error, path) from None
    fields: dict[str, Any] = {field: ({} if section.named else section.settings()) for _, field, section in _kinds()}
    fields["turn"] = None
    notices: list[str] = []
    for title in parser.sections():
        section, name = _section(title, path)
        values = dict(parser.items(title))
        settings = _settings(section.settings, title, values, path)
        notices += _later(title, settings, path)
        if not section.named:
            fields[section.field] = settings
        elif name in fields[section.field]:
            raise ConfigurationError(f"the section stands twice for {name}", file=path, section=title)
        else:
            fields[section.field][name] = settings
    configuration = Configuration(path=path, directory=Path(path).absolute().parent, **fields)
    _check(configuration)
    return _completed(configuration, notices)


def _kinds() -> Iterator[tuple[str, str, Section]]:
    return ((kind, section.field, section) for kind, section in SECTIONS.items())


def _read(path: str, source: Path) -> str:
    try:
        with source.open("rb") as file:
            data = file.read(MAX_INI_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror}", file=path) from None
    if len(data) > MAX_INI_BYTES:
        raise ConfigurationError("is too large for an ini file", file=path, allowed=f"up to {MAX_INI_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"line {line} is not text in UTF-8", file=path, allowed="UTF-8") from None


def _syntax_error(error: configparser.Error, path: str) -> ConfigurationError:
    if isinstance(error, configparser.DuplicateSectionError):
        return ConfigurationError(f"the section stands twice (line {error.lineno})", file=path, section=error.section)
    if isinstance(error, configparser.DuplicateOptionError):
        problem = f"the option stands twice (line {error.lineno})"
        return ConfigurationError(problem, file=path, section=error.section, option=error.option)
    if isinstance(error, configparser.MissingSectionHeaderError):
        return ConfigurationError(f"line {error.lineno} stands before the first [section]", file=path)
    if isinstance(error, configparser.ParsingError):
        line = error.errors[0][0]
        return ConfigurationError(f"line {line} cannot be understood", file=path, allowed="[section], option = value")
    return ConfigurationError(error.message, file=path)


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _section(title: str, path: str) -> tuple[Section, str]:
    """The kind of section that `title` names, and the name it carries (a domain in its one spelling)."""
    kind, _, name = title.partition(" ")
    name = name.strip()
    section = SECTIONS.get(kind)
    forms = [f"[{known} {entry.named}]" if entry.named else f"[{known}]" for known, entry in SECTIONS.items()]
    if section is None:
        near = difflib.get_close_matches(kind, list(SECTIONS), n=1, cutoff=0.5)
        hint = f"; did you mean {forms[list(SECTIONS).index(near[0])]}?" if near else ""
        raise ConfigurationError(f"unknown section{hint}", file=path, section=title, allowed=", ".join(forms))
    if section.named and not name:
        allowed = f"[{kind} {section.named}]"
        raise ConfigurationError("the section needs a name", file=path, section=title, allowed=allowed)
    if name and not section.named:
        raise ConfigurationError("the section takes no name", file=path, section=title, allowed=f"[{kind}]")
    if kind == "backend" and name != "*" and not is_host(name):
        problem = f"{name!r} is no SIP domain"
        raise ConfigurationError(problem, file=path, section=title, allowed="the host of SIP addresses, or *")
    return section, canonical_host(name) if kind == "backend" else name


def _settings(kind: type[T], title: str, values: Mapping[str, str], path: str) -> T:
    """One section as its dataclass; every value goes through the parser of its field."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    parsed: dict[str, Any] = {}
    for name, text in values.items():
        field = fields.get(name)
        if field is None:
            problem = f"unknown option{_nearest(name, list(fields))}"
            raise ConfigurationError(problem, file=path, section=title, option=name, allowed=", ".join(fields))
        try:
            parsed[name] = field.metadata["parse"](text)
        except ValueError as error:
            problem = f"{text!r} cannot be used: {error}"
            allowed = field.metadata["allowed"]
            raise ConfigurationError(problem, file=path, section=title, option=name, allowed=allowed) from None
    return kind(**parsed)


def _later(title: str, settings: object, path: str) -> list[str]:
    """One line for each option that is set and whose feature this version does not have."""
    return [
        f"{path} [{title}] {field.name}: no effect: this version does not have {field.metadata['later']} yet"
        for field in dataclasses.fields(settings)  # type: ignore[arg-type]
        if field.metadata["later"] and getattr(settings, field.name) != field.default
    ]


def _completed(configuration: Configuration, notices: list[str]) -> Configuration:
    """Certificates filled in where a listener names none, TURN that is off left out, notices put in."""
    listeners = {name: _with_certificate(settings) for name, settings in configuration.listeners.items()}
    turn = configuration.turn if configuration.turn is not None and configuration.turn.enabled else None
    if turn is not None:
        turn = _turn_with_certificate(turn, listeners.get(configuration.tls_listener))
    if turn is not None and not turn.credentials_with_register:
        if not any((turn.users, turn.shared_secret, turn.shared_secret_file, turn.oauth_keys)):
            notices.append(
                f"{configuration.path} [turn]: no users, no shared secret, no oauth_keys, no credentials_with_register:"
                " nobody can relay, STUN alone is served"
            )
        if turn.peer_policy is PeerPolicy.CALL:
            notices.append(
                f"{configuration.path} [turn] peer_policy: without credentials_with_register no call is known to allow"
                " anything: clients of this server reach each other alone"
            )
    if turn is not None and turn.mobility and configuration.process.workers > 1:
        notices.append(
            f"{configuration.path} [turn] mobility: an allocation stays with its worker: a client whose new address"
            " comes to another one is refused and has to allocate anew"
        )
    if turn is not None and turn.relay_engine is RelayEngine.COMPILED:
        notices.append(
            f"{configuration.path} [turn] relay_engine: this version has no compiled engine; the pure one relays"
        )
    for name, listener in configuration.listeners.items():
        if listener.http_fallback is not None and configuration.web.phone:
            notices.append(
                f"{configuration.path} [listener {name}] http_fallback: the web phone stands at /, not the page of that"
                " server, while [web] phone is on"
            )
    if not configuration.backends:
        notices.append(f"{configuration.path}: no [backend DOMAIN]: no SIP domain is served")
    self_signed = any(
        settings.tls is not Switch.OFF and not settings.certificate for settings in configuration.listeners.values()
    ) or (turn is not None and turn.certificate == SELF_SIGNED_CERTIFICATE)
    return dataclasses.replace(
        configuration, listeners=listeners, turn=turn, self_signed=self_signed, notices=tuple(notices)
    )


def _with_certificate(settings: ListenerSettings) -> ListenerSettings:
    if settings.tls is Switch.OFF:
        return settings
    if not settings.certificate:
        return dataclasses.replace(settings, certificate=SELF_SIGNED_CERTIFICATE, private_key=SELF_SIGNED_PRIVATE_KEY)
    return dataclasses.replace(settings, private_key=settings.private_key or settings.certificate)


def _turn_with_certificate(turn: TurnSettings, listener: ListenerSettings | None) -> TurnSettings:
    """The certificate of TURN over TLS and DTLS: its own, else that of the first listener with TLS (rule E1)."""
    if turn.certificate:
        return dataclasses.replace(turn, private_key=turn.private_key or turn.certificate)
    if listener is not None:
        return dataclasses.replace(turn, certificate=listener.certificate, private_key=listener.private_key)
    if turn.tls:
        return dataclasses.replace(turn, certificate=SELF_SIGNED_CERTIFICATE, private_key=SELF_SIGNED_PRIVATE_KEY)
    return turn


def _endpoints(configuration: Configuration) -> Iterator[tuple[Endpoint, tuple[str, str]]]:
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


def _check(configuration: Configuration) -> None:
    """What single options cannot see. Raises ConfigurationError."""
    _check_listeners(configuration)
    _check_alternates(configuration)
    _check_binds(configuration)
    _check_fallbacks(configuration)
    _check_backends(configuration)
    _check_ranges(configuration)
    _check_identity(configuration)


def _check_listeners(configuration: Configuration) -> None:
    path = configuration.path
    if not configuration.listeners and (configuration.turn is None or not configuration.turn.enabled):
        raise ConfigurationError("there is no [listener NAME] section: nobody could connect", file=path)
    for name, listener in configuration.listeners.items():
        title = f"listener {name}"
        if not listener.bind:
            raise ConfigurationError(
                "a listener needs an address and port",
                file=path,
                section=title,
                option="bind",
                allowed="host:port, ...",
            )
        if listener.private_key and not listener.certificate:
            raise ConfigurationError(
                "a private key needs its certificate",
                file=path,
                section=title,
                option="certificate",
                allowed="a PEM file",
            )
        if listener.turn and (configuration.turn is None or not configuration.turn.enabled):
            raise ConfigurationError(
                "there is no TURN server: the section [turn] is missing or off",
                file=path,
                section=title,
                option="turn",
                allowed="on where [turn] stands, off",
            )
        for option_name in ("tls_at_relay", "proxy_protocol"):
            if getattr(listener, option_name) and not listener.trusted_proxies:
                raise ConfigurationError(
                    f"{option_name} = on is believed from trusted_proxies alone, and there are none",
                    file=path,
                    section=title,
                    option="trusted_proxies",
                    allowed="a list of addresses or CIDRs",
                )
    if not configuration.websocket.path.startswith("/"):
        raise ConfigurationError(
            f"{configuration.websocket.path!r} is no path",
            file=path,
            section="websocket",
            option="path",
            allowed="/...",
        )


def _check_alternates(configuration: Configuration) -> None:
    turn = configuration.turn
    found = fault(turn.udp, turn.alternate_address, turn.alternate_port) if turn is not None else None
    if found is not None:
        raise ConfigurationError(
            found.problem, file=configuration.path, section="turn", option=found.option, allowed=found.allowed
        )


def _check_binds(configuration: Configuration) -> None:
    path = configuration.path
    if not configuration.sip.bind:
        raise ConfigurationError(
            "the backend side needs an address and port",
            file=path,
            section="sip",
            option="bind",
            allowed="host:port, ...",
        )
    if configuration.sip.tls_bind and not configuration.tls_listener:
        raise ConfigurationError(
            "SIP over TLS shows the certificate of the first [listener ...] with TLS, and there is none",
            file=path,
            section="sip",
            option="tls_bind",
            allowed="empty, or a listener with tls = on",
        )
    taken: list[tuple[Endpoint, str]] = []
    for endpoint, (section, option_name) in _endpoints(configuration):
        if endpoint.worker and endpoint.shared:
            continue
        if endpoint.address.port > 65535:
            raise ConfigurationError(
                f"worker {endpoint.worker} would need port {endpoint.address.port}",
                file=path,
                section=section,
                option=option_name,
                allowed="a port with room for one more for each further worker ([wsgate] workers)",
            )
        try:
            ipaddress.ip_address(endpoint.address.host)
        except ValueError:
            problem = f"{endpoint.address.host!r} is no IP address"
            raise ConfigurationError(
                problem,
                file=path,
                section=section,
                option=option_name,
                allowed="IP address:port, 0.0.0.0 or [::] for all",
            ) from None
        for other, other_place in taken:
            same_protocol = endpoint.datagram == other.datagram
            if endpoint == other or (same_protocol and _overlap(endpoint.address, other.address)):
                protocol = "UDP" if endpoint.datagram else "TCP"
                raise ConfigurationError(
                    f"{protocol} {endpoint.address} is taken by {other_place} ({other.address})",
                    file=path,
                    section=section,
                    option=option_name,
                    allowed="every address and port once",
                )
        taken.append((endpoint, f"[{section}] {option_name}"))


def _check_fallbacks(configuration: Configuration) -> None:
    """A request handed to one of our own ports would come back for ever."""
    for name, listener in configuration.listeners.items():
        fallback = listener.http_fallback
        if fallback is None:
            continue
        place = {"file": configuration.path, "section": f"listener {name}", "option": "http_fallback"}
        if fallback.port == 0:
            raise ConfigurationError("the port is missing", **place, allowed="host:port of a web server")
        hosts = ("127.0.0.1", "::1") if fallback.host == "localhost" else (fallback.host,)
        for endpoint, (section, option_name) in _endpoints(configuration):
            if not endpoint.datagram and any(_leads_to(endpoint.address, host, fallback.port) for host in hosts):
                problem = f"{fallback} is our own port ([{section}] {option_name})"
                raise ConfigurationError(problem, **place, allowed="host:port of a web server that is not wsgate")


def _leads_to(bound: Address, host: str, port: int) -> bool:
    """True when who connects to `host` and `port` reaches the socket at `bound`, as far as can be seen here."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    own = ipaddress.ip_address(bound.host)
    if bound.port != port:
        return False
    return own == ip or ((own.is_unspecified or ip.is_unspecified) and (ip.is_loopback or ip.is_unspecified))


def _overlap(one: Address, other: Address) -> bool:
    """True when both cannot be bound: the same port, and the same host or one that means all of its family."""
    if one.port != other.port or one.port == 0:
        return False
    first, second = ipaddress.ip_address(one.host), ipaddress.ip_address(other.host)
    same_family = first.version == second.version
    return same_family and (first == second or first.is_unspecified or second.is_unspecified)


def _check_backends(configuration: Configuration) -> None:
    for domain, backend in configuration.backends.items():
        place = {"file": configuration.path, "section": f"backend {domain}"}
        if not backend.target:
            allowed = "a SIP URI (sip:..., sips:...) or embedded"
            raise ConfigurationError("the target is missing", **place, option="target", allowed=allowed)
        if not backend.transports:
            allowed = "udp, tcp, tls, ws, wss"
            raise ConfigurationError("at least one is needed", **place, option="transports", allowed=allowed)
        if backend.client_private_key and not backend.client_certificate:
            problem = "a private key needs its certificate"
            raise ConfigurationError(problem, **place, option="client_certificate", allowed="a PEM file")


def _check_ranges(configuration: Configuration) -> None:
    path, registrar, turn = configuration.path, configuration.registrar, configuration.turn
    if registrar.min_expires > registrar.max_expires:
        raise ConfigurationError(
            "min_expires is above max_expires", file=path, section="registrar", option="min_expires"
        )
    if not registrar.digest_algorithms:
        raise ConfigurationError(
            "at least one algorithm is needed",
            file=path,
            section="registrar",
            option="digest_algorithms",
            allowed="MD5, SHA-256",
        )
    if turn is None:
        return
    if turn.private_key and not turn.certificate:
        problem = "a private key needs its certificate"
        raise ConfigurationError(problem, file=path, section="turn", option="certificate", allowed="a PEM file")
    workers = configuration.process.workers
    if workers > 1 and turn.relay_ports[1] - turn.relay_ports[0] < 2 * workers:
        raise ConfigurationError(
            f"{workers} workers cannot share so few ports",
            file=path,
            section="turn",
            option="relay_ports",
            allowed="at least three for each worker ([wsgate] workers)",
        )
    if turn.min_lifetime > turn.max_lifetime:
        raise ConfigurationError("min_lifetime is above max_lifetime", file=path, section="turn", option="min_lifetime")
    for option_name in ("relay_address", "external_address"):
        for host in getattr(turn, option_name) or ():
            try:
                ipaddress.ip_address(host)
            except ValueError:
                problem = f"{host!r} is no IP address"
                raise ConfigurationError(
                    problem, file=path, section="turn", option=option_name, allowed="IP addresses, one per family"
                ) from None


def _check_identity(configuration: Configuration) -> None:
    identity = configuration.identity
    if identity.jwt_keys and not identity.jwt_from:
        raise ConfigurationError(
            "with jwt_keys a token must come from somewhere",
            file=configuration.path,
            section="identity",
            option="jwt_from",
            allowed="header, query, cookie",
        )
    if identity.cookie_option and "*" in configuration.websocket.origins:
        # A browser adds its cookies to what any page opens: any page could then phone as the user.
        raise ConfigurationError(
            f"* opens the door to every page while cookies count ([identity] {identity.cookie_option})",
            file=configuration.path,
            section="websocket",
            option="origins",
            allowed="same, or a list of origins; * where no Cookie is forwarded, cookie_secret is empty and jwt_from"
            " is without cookie",
        )
