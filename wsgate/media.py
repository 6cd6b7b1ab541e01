"""Builds the TURN server from the configuration and puts it on its sockets (spec/TURN)."""

from __future__ import annotations

import hmac
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from wsgate.addr import Address, canonical_host, uri_host
from wsgate.call_peers import CallPeers
from wsgate.credentials import CredentialsError, parse_users
from wsgate.errors import ConfigurationError, StartError
from wsgate.guard import Guard
from wsgate.handover import Files
from wsgate.log import logger
from wsgate.metrics import Counters
from wsgate.net.dtls import Associations
from wsgate.net.port import Port, PortSettings, Speech
from wsgate.net.relay import Relay
from wsgate.net.tls import ALPN_TURN, ServerContext
from wsgate.net.turn_stream import TurnStreams
from wsgate.settings import Switch
from wsgate.turn.auth import Credentials, HandedOut, Registrations, UserKeys, users_of_realm
from wsgate.turn.discovery import Discovery
from wsgate.turn.discovery import Place as PlaceOfSocket
from wsgate.turn.effects import RelayAddress
from wsgate.turn.peers import Peers
from wsgate.turn.server import TurnServer
from wsgate.turn.settings import TurnSettings
from wsgate.turn.tokens import TokenKeys, parse_keys


class Place(NamedTuple):
    """A port that speaks TURN, as a URI names it (RFC 7065)."""

    scheme: str
    port: int
    transport: str


class Sockets(NamedTuple):
    """The sockets of [turn], by transport."""

    udp: list[socket.socket]
    tcp: list[socket.socket]
    tls: list[socket.socket]
    alternate: list[socket.socket]
    """For each of `alternate_address` three UDP sockets: the other port, the address, the address with that port."""

    def places(self) -> list[Place]:
        """Where TURN is spoken."""
        return [
            *(Place("turn", sock.getsockname()[1], "udp") for sock in self.udp),
            *(Place("turn", sock.getsockname()[1], "tcp") for sock in self.tcp),
            *(Place("turns", sock.getsockname()[1], "tcp") for sock in self.tls),
        ]


class Media:
    """The embedded TURN server of one worker."""

    def __init__(
        self,
        settings: TurnSettings,
        files: Files,
        sockets: Sockets,
        guard: Guard,
        *,
        own_hosts: Sequence[str],
        keys: Sequence[bytes],
        is_registered: Callable[[str], bool],
        counters: Counters,
        call_peers: CallPeers | None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """`own_hosts` are addresses of this machine, the wanted first; `keys` are those of the key file.

        `share` is the number of this worker and how many there are: ports and `total_quota` are divided among them.

        `is_registered` is asked for the registrations that credentials were handed out with (rule A5),
        `call_peers` for what their calls allow (rule P6). Raises StartError.
        """
        self._settings = settings
        secrets = tuple(hmac.digest(key, b"TURN credentials of registrations", "sha256") for key in keys)
        self._registrations = Registrations(secrets, is_registered) if settings.credentials_with_register else None
        self._machine_hosts = [host for host in own_hosts if not host.startswith(("127.", "::1"))]
        self._relay_addresses = _relay_addresses(settings, own_hosts)
        self._relay_ports = settings.relay_ports
        self._listeners: frozenset[Address] = frozenset()
        self._backends: frozenset[Address] = frozenset()
        self.server = TurnServer(
            settings,
            credentials=read_credentials(settings, files, self._registrations),
            peers=self._peers(settings),
            relay_addresses=self._relay_addresses,
            nonce_keys=keys,
            unix_time=time.time,
            random_bytes=os.urandom,
            counters=counters,
            calls=call_peers,
            share=share,
        )
        if sockets.alternate:
            self.server.discovery = _discovery(sockets)
        self._relay = Relay(self.server, [*sockets.udp, *sockets.alternate], tick=settings.relay_tick)
        self.streams = TurnStreams(self._relay, guard, counters)
        self._context: ServerContext | None = None
        certificate = _certificate(settings, files)
        if settings.certificate:
            self._context = ServerContext(*certificate, alpn_protocols=ALPN_TURN)
        self._dtls: Associations | None = None
        if settings.dtls and settings.certificate:
            self._dtls = Associations(self._relay, guard, counters, os.urandom, *certificate)
            self._relay.secured = self._dtls.receive
        rows = {Speech.STUN: self.streams.speak}
        clear, secure = PortSettings(Switch.OFF), PortSettings(Switch.ON)
        self._ports = [
            Port("[turn] tcp", sockets.tcp, lambda: clear, None, guard, counters, rows),
            Port("[turn] tls", sockets.tls, lambda: secure, self._context, guard, counters, rows),
        ]
        self.places = sockets.places()

    def start(self) -> None:
        """Begin to serve. Raises OSError."""
        self._relay.start()
        for port in self._ports:
            port.start()

    def stop(self) -> None:
        """Free every allocation and its sockets."""
        for port in self._ports:
            port.stop_accepting()
            port.serving.kill()
        self.streams.stop()
        if self._dtls is not None:
            self._dtls.stop()
        self._relay.stop()

    def hear_others(self, hear: Callable[[], None]) -> None:
        """What takes in what the other workers have told (rules A5, P6)."""
        self._relay.hear = hear

    def pass_streams(self, pass_stream: Callable[[int, Address, socket.socket], bool]) -> None:
        """Where streams for TCP allocations of other workers go (RFC 6062; rule C1)."""
        self._relay.connections.pass_stream = pass_stream

    def forbid(self, listeners: Iterable[Address], backends: Iterable[Address]) -> None:
        """No relaying to these addresses and ports: our own listeners and the backends' SIP (rule P5)."""
        forbidden = frozenset(listeners), frozenset(backends)
        if forbidden != (self._listeners, self._backends):
            self._listeners, self._backends = forbidden
            self.server.peers.forbid(*forbidden)
            self._relay.apply(self.server.reconsider())

    def narrow(self, registrations: Iterable[str]) -> None:
        """The calls of these registrations allow fewer peers than before: what was installed for others is taken away
        (rule P6)."""
        self._relay.apply(self.server.reconsider_registrations(registrations))

    def prepare(self, settings: TurnSettings, files: Files) -> Callable[[], None]:
        """Read users, secrets, certificates and the lists of peers anew (SIGHUP).

        Nothing has changed until what this returns is called, which cannot fail. Raises WsgateError.
        """
        credentials = read_credentials(settings, files, self._registrations)
        peers = self._peers(settings)
        contexts: list[Callable[[], None]] = []
        if self._context is not None and settings.certificate:
            certificate = _certificate(settings, files)
            contexts.append(self._context.prepare(*certificate))
            if self._dtls is not None:
                contexts.append(self._dtls.prepare(*certificate))

        def take() -> None:
            for take_context in contexts:
                take_context()
            self._settings = settings
            self.server.reload(credentials)
            self.server.peers = peers
            self.server.peers.forbid(self._listeners, self._backends)
            self._relay.apply(self.server.reconsider())

        return take

    def uris(self, host: str) -> tuple[str, ...]:
        """What browsers are told of this server (`uris`): as configured, or every port of it at `host` (rule A5)."""
        return uris_at(self._settings, host, self.places)

    def hand_out(self, registration: str) -> HandedOut | None:
        """Credentials that go with the registration of this id; None where none are handed out (rule A5)."""
        return self.server.credentials.hand_out(registration, self._settings.credential_ttl, time.time())

    def status(self) -> dict[str, object]:
        """For /status."""
        return {"allocations": self.server.allocations, "streams": len(self.streams), "users": self.server.users()}

    def _peers(self, settings: TurnSettings) -> Peers:
        hosts = [host for relay in self._relay_addresses for host in (relay.host, relay.public)]
        return Peers(
            own_hosts=hosts,
            relay_ports=self._relay_ports,
            allow=settings.allow_peers,
            deny=settings.deny_peers,
            machine_hosts=self._machine_hosts,
        )


def _discovery(sockets: Sockets) -> Discovery:
    """RFC 5780 on the four UDP sockets of each family; their paths are those of the relay engine."""
    first = len(sockets.udp)
    names = [Address(*sock.getsockname()[:2]) for sock in (*sockets.udp, *sockets.alternate)]
    families = []
    for path in range(first, len(names), 3):
        primary = names.index(Address(names[path].host, names[path + 1].port))
        families.append([PlaceOfSocket(one, names[one]) for one in (primary, path, path + 1, path + 2)])
    return Discovery(families)


def uris_at(settings: TurnSettings, host: str, places: Iterable[Place]) -> tuple[str, ...]:
    """`uris` as configured, or each of `places` at `host`; none where there is no host (rule A5)."""
    if settings.uris is not None:
        return settings.uris
    return tuple(
        f"{scheme}:{uri_host(host)}:{port}?transport={transport}"
        for scheme, port, transport in (dict.fromkeys(places) if host else ())
    )


def shared_secrets(settings: TurnSettings, files: Files) -> list[str]:
    """The secrets of time-limited credentials, the newest first (rule A4). Raises ConfigurationError."""
    secrets = list(settings.shared_secret)
    if settings.shared_secret_file:
        text = _read(files, settings.shared_secret_file, "shared_secret_file")
        lines = (line.strip() for line in text.splitlines())
        secrets += [line for line in lines if line and not line.startswith("#")]
    return secrets


def _relay_addresses(settings: TurnSettings, own_hosts: Sequence[str]) -> list[RelayAddress]:
    hosts = settings.relay_address
    if hosts is None:
        hosts = _one_per_family(own_hosts)
        logger.info("[turn] relay_address is %s", ", ".join(hosts) or "nowhere")
    if not hosts:
        raise StartError("[turn] relay_address: this machine has no address; name one")
    if all(":" in host for host in hosts):
        logger.info("[turn] relays on IPv6 alone: clients that ask for IPv4 get 440")
    hosts = tuple(canonical_host(host) for host in hosts)
    public = {":" in host: canonical_host(host) for host in settings.external_address}
    return [RelayAddress(host, public.get(":" in host, host)) for host in hosts]


def _one_per_family(own_hosts: Sequence[str]) -> tuple[str, ...]:
    """The first IPv4 address, and the first of IPv6 that others can reach (rule L2)."""
    four = [host for host in own_hosts if ":" not in host]
    six = [host for host in own_hosts if ":" in host and not host.startswith(("fe80:", "::1"))]
    return (*four[:1], *six[:1])


def read_credentials(settings: TurnSettings, files: Files, registrations: Registrations | None = None) -> Credentials:
    """Who may relay: the users, secrets and token keys of [turn]. Raises ConfigurationError."""
    users: Mapping[str, UserKeys] = {}
    secrets = shared_secrets(settings, files)
    if settings.users:
        try:
            users = users_of_realm(parse_users(_read(files, settings.users, "users")), settings.realm)
        except CredentialsError as error:
            raise ConfigurationError(f"{settings.users}: {error}", section="turn", option="users") from None
    token_keys = None
    if settings.oauth_keys:
        try:
            token_keys = TokenKeys(parse_keys(_read(files, settings.oauth_keys, "oauth_keys")), settings.realm)
        except CredentialsError as error:
            raise ConfigurationError(f"{settings.oauth_keys}: {error}", section="turn", option="oauth_keys") from None
    return Credentials(settings.realm, users, secrets, settings.shared_secret_hash, registrations, token_keys)


def _certificate(settings: TurnSettings, files: Files) -> tuple[str, str]:
    """Where certificate and key are opened; without `private_key` the key stands behind the certificate."""
    return files.path(settings.certificate), files.path(settings.private_key or settings.certificate)


def _read(files: Files, name: str, option: str) -> str:
    try:
        with open(files.path(name), encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise ConfigurationError(f"cannot read {name}: {error.strerror}", section="turn", option=option) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name} is not UTF-8", section="turn", option=option) from None
