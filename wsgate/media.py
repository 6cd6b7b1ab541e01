"""Builds the TURN server from the configuration and puts it on its sockets (spec/TURN)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence

from wsgate.addr import Address
from wsgate.credentials import CredentialsError, parse_users
from wsgate.errors import ConfigurationError, StartError
from wsgate.handover import Files
from wsgate.log import logger
from wsgate.metrics import Counters
from wsgate.net.relay import Relay
from wsgate.turn.allocation import RelayAddress
from wsgate.turn.auth import Credentials, UserKeys, users_of_realm
from wsgate.turn.peers import Peers
from wsgate.turn.server import TurnServer, TurnSettings


class Media:
    """The embedded TURN server of one worker."""

    def __init__(
        self,
        settings: TurnSettings,
        files: Files,
        sockets: Sequence[socket.socket],
        *,
        own_hosts: Sequence[str],
        nonce_keys: Sequence[bytes],
        counters: Counters,
    ) -> None:
        """`own_hosts` are addresses of this machine, the wanted first. Raises StartError."""
        self._settings = settings
        self._relay_addresses = _relay_addresses(settings, own_hosts)
        self._forbidden: frozenset[Address] = frozenset()
        self.server = TurnServer(
            settings,
            credentials=_credentials(settings, files),
            peers=self._peers(settings),
            relay_addresses=self._relay_addresses,
            nonce_keys=nonce_keys,
            unix_time=time.time,
            random_bytes=os.urandom,
            counters=counters,
        )
        self._relay = Relay(self.server, sockets, tick=settings.relay_tick)
        self.port = sockets[0].getsockname()[1] if sockets else None

    def start(self) -> None:
        """Begin to serve. Raises OSError."""
        self._relay.start()

    def stop(self) -> None:
        """Free every allocation and its sockets."""
        self._relay.stop()

    def forbid(self, addresses: Iterable[Address]) -> None:
        """No relaying to these addresses and ports: our own listeners and the backends' SIP (rule P5)."""
        forbidden = frozenset(addresses)
        if forbidden != self._forbidden:
            self._forbidden = forbidden
            self.server.peers.forbid(forbidden)
            self._relay.apply(self.server.reconsider())

    def reload(self, settings: TurnSettings, files: Files) -> None:
        """Take users, secrets and the lists of peers anew. Raises WsgateError and then changes nothing."""
        credentials = _credentials(settings, files)
        self.server.reload(credentials)
        self.server.peers = self._peers(settings)
        self.server.peers.forbid(self._forbidden)
        self._relay.apply(self.server.reconsider())

    def status(self) -> dict[str, object]:
        """For /status."""
        return {"allocations": self.server.allocations, "users": self.server.users()}

    def _peers(self, settings: TurnSettings) -> Peers:
        hosts = [host for relay in self._relay_addresses for host in (relay.host, relay.public)]
        return Peers(
            own_hosts=hosts,
            relay_ports=settings.relay_ports,
            allow=settings.allow_peers,
            deny=settings.deny_peers,
            forbidden=self._forbidden,
        )


def _relay_addresses(settings: TurnSettings, own_hosts: Sequence[str]) -> list[RelayAddress]:
    hosts = settings.relay_address
    if hosts is None:
        hosts = tuple(host for host in own_hosts if ":" not in host)[:1]
        logger.info("[turn] relay_address is %s", ", ".join(hosts) or "nowhere")
    if not hosts:
        raise StartError("[turn] relay_address: this machine has no IPv4 address; name one")
    public = {":" in host: host for host in settings.external_address}
    return [RelayAddress(host, public.get(":" in host, host)) for host in hosts]


def _credentials(settings: TurnSettings, files: Files) -> Credentials:
    users: Mapping[str, UserKeys] = {}
    secrets = list(settings.shared_secret)
    if settings.users:
        try:
            users = users_of_realm(parse_users(_read(files, settings.users, "users")), settings.realm)
        except CredentialsError as error:
            raise ConfigurationError(f"{settings.users}: {error}", section="turn", option="users") from None
    if settings.shared_secret_file:
        text = _read(files, settings.shared_secret_file, "shared_secret_file")
        secrets += [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return Credentials(settings.realm, users, secrets, settings.shared_secret_hash)


def _read(files: Files, name: str, option: str) -> str:
    try:
        with open(files.path(name), encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise ConfigurationError(f"cannot read {name}: {error.strerror}", section="turn", option=option) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name} is not UTF-8", section="turn", option=option) from None
