"""The parts of a gateway, built from the configuration and put on the sockets that the supervisor opened."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Mapping

from gevent import ssl

from wsgate.addr import Address
from wsgate.call_peers import CallPeers
from wsgate.config import Configuration
from wsgate.crew import OwnAddresses, backend_sides, own_hosts
from wsgate.directory import Directory
from wsgate.guard import Guard
from wsgate.handover import Crew, Endpoint, Files, state_name
from wsgate.keys import Key
from wsgate.log import logger
from wsgate.media import Media, Place, Sockets
from wsgate.metrics import Counters
from wsgate.named_files import client_contexts, read_key_file, read_users
from wsgate.net.backend import BackendLimits, BackendSockets
from wsgate.net.backend_codec import StreamLimits
from wsgate.net.clock import now
from wsgate.net.mesh import Mesh
from wsgate.net.resolver import Resolver
from wsgate.settings import Switch
from wsgate.sharing import Sharing
from wsgate.signalling import ResolvedBackends, Signalling
from wsgate.sip.digest import Digest
from wsgate.sip.edge import Edge
from wsgate.sip.flow import FlowTable, FlowTokens
from wsgate.sip.gruu import TemporaryGruus
from wsgate.sip.journal import JournalError
from wsgate.sip.registrar import Registrar
from wsgate.sip.siblings import Siblings
from wsgate.sip.targets import BackendSettings
from wsgate.sip.transaction import TransactionSettings
from wsgate.statefile import StateFile
from wsgate.store import StoreWriter, open_store
from wsgate.turn.settings import PeerPolicy
from wsgate.turn_offer import TurnOffer


class Foundation:
    """What every part stands on: configuration, files, sockets, keys, our names, the directory, counters.

    Raises ConfigurationError.
    """

    def __init__(
        self,
        configuration: Configuration,
        endpoints: Mapping[Endpoint, socket.socket],
        files: Files,
        crew: Crew,
    ) -> None:
        self.configuration = configuration
        self.files = files
        self.crew = crew
        self.counters = Counters()
        self.guard = Guard(configuration.limits)
        self.secrets: tuple[Key, ...] = read_key_file(configuration, files)
        self.tokens = FlowTokens(self.secrets, crew.number)
        self.hosts = own_hosts()
        self.addresses = OwnAddresses(configuration, crew, endpoints, self.hosts)
        self.names = self.addresses.names()
        self.directory = Directory(configuration.sip.reconnect_grace)
        self.call_peers = _call_peers(configuration)
        self._endpoints = endpoints

    def sockets(self, kind: str, name: str = "") -> list[socket.socket]:
        """Our sockets of a kind, of all names or of one."""
        return [
            sock for endpoint, sock in self._endpoints.items() if endpoint.kind == kind and name in ("", endpoint.name)
        ]


def _call_peers(configuration: Configuration) -> CallPeers | None:
    """Where signalling tells TURN of calls, if TURN wants to know (rule P6)."""
    turn = configuration.turn
    return CallPeers() if turn is not None and turn.peer_policy is PeerPolicy.CALL else None


def new_digest(base: Foundation) -> Digest:
    """Who may register, and call, at the embedded registrar. Raises ConfigurationError."""
    return Digest(
        read_users(base.configuration, base.files),
        base.configuration.registrar.digest_algorithms,
        base.secrets[0].secret,
        os.urandom,
        time.time() - now(),
    )


def new_resolver(base: Foundation) -> Resolver:
    """Where the backends are."""
    return Resolver(
        base.configuration.dns,
        base.counters,
        own=base.addresses.of_all_workers() | base.names.known_as(),
        random_float=random.random,
    )


def new_edge(
    base: Foundation,
    backends: Mapping[str, BackendSettings],
    digest: Digest,
    resolver: Resolver,
    offer: TurnOffer,
) -> Edge:
    """The SIP side. `backends` by domain; they may change at any time."""
    configuration = base.configuration
    registrar = None
    if configuration.embedded_domains:
        registrar = Registrar(
            configuration.registrar,
            base.directory,
            digest,
            base.counters,
            flow_timer=configuration.sip.flow_timer,
            temporary_gruus=TemporaryGruus(base.secrets, os.urandom),
        )
    turn = configuration.turn
    hands_out = turn is not None and turn.credentials_with_register
    return Edge(
        configuration.sip,
        backends,
        transactions=TransactionSettings(
            transactions=configuration.limits.transactions,
            transactions_per_connection=configuration.limits.transactions_per_connection,
        ),
        dialogs_limit=configuration.limits.dialogs,
        names=base.names,
        flows=FlowTable(base.tokens, os.urandom),
        backends=ResolvedBackends(resolver),
        directory=base.directory,
        registrar=registrar,
        random_bytes=os.urandom,
        counters=base.counters,
        protected_headers=configuration.identity.protected_headers,
        hand_out=offer.hand_out if hands_out else None,
        call_peers=base.call_peers,
        siblings=Siblings(base.tokens, backend_sides(base.crew), base.secrets),
    )


def new_backend_sockets(
    base: Foundation,
    signalling: Signalling,
    resolver: Resolver,
    edge: Edge,
    server_context: Callable[[], ssl.SSLContext],
) -> BackendSockets:
    """The sockets towards backends. Raises ConfigurationError."""
    configuration = base.configuration
    limits = StreamLimits(
        header_bytes=configuration.sip.max_header_bytes, message_bytes=configuration.websocket.max_message_bytes
    )
    return BackendSockets(
        base.sockets("sip-udp"),
        base.sockets("sip-tcp"),
        signalling.received,
        signalling.connected,
        signalling.failed,
        resolver.backend_at,
        edge.is_trusted,
        base.counters,
        signalling.unframed,
        configuration.websocket,
        BackendLimits(stream=limits),
        contexts=client_contexts(configuration, base.files),
        tls_listeners=base.sockets("sip-tls"),
        server_context=server_context,
    )


def new_media(base: Foundation, refused: tuple[set[Address], set[Address]]) -> Media | None:
    """The TURN server, which relays nothing to `refused`: our listeners, and the SIP addresses of backends (rule P5).
    None where there is none. Raises WsgateError."""
    configuration = base.configuration
    if configuration.turn is None:
        return None
    media = Media(
        configuration.turn,
        base.files,
        Sockets(*map(base.sockets, ("turn-udp", "turn-tcp", "turn-tls", "turn-alternate-udp"))),
        base.guard,
        own_hosts=base.hosts,
        keys=[key.secret for key in base.secrets],
        is_registered=lambda id_: base.directory.is_registered(id_, now()),
        counters=base.counters,
        call_peers=base.call_peers,
        share=(base.crew.number, base.crew.workers),
    )
    media.forbid(*refused)
    for name, listener in configuration.listeners.items():
        ports = [sock.getsockname()[1] for sock in base.sockets("listener", name) if listener.turn]
        if listener.tls is not Switch.OFF:
            media.places += [Place("turns", port, "tcp") for port in ports]
        if listener.tls is not Switch.ON:
            media.places += [Place("turn", port, "tcp") for port in ports]
    return media


def new_mesh(base: Foundation, edge: Edge, learnt: Callable[[], None]) -> Mesh | None:
    """The channel to the other workers' directories; None where there are none."""
    if base.crew.inbox is None:
        return None
    sharing = Sharing(
        base.crew.number,
        base.crew.outlets,
        base.directory,
        base.counters,
        hand_over=edge.continuity.hand_over,
        take_dialog=edge.continuity.take_over,
        end_dialog=edge.continuity.ended_elsewhere,
        lost=edge.continuity.lost_elsewhere,
        call_peers=base.call_peers,
    )
    return Mesh(sharing, base.crew.inbox, base.crew.outlets, edge.continuity.ended_here, learnt, base.counters)


def open_state(base: Foundation, edge: Edge) -> StateFile | None:
    """Take up what an earlier process left; a file that cannot be used costs one line (rule D3)."""
    if not base.configuration.sip.state_file:
        return None
    name = state_name(base.configuration.sip.state_file, base.crew.number)
    state = StateFile(base.files, name)
    try:
        edge.continuity.load_state(state.read(), now(), time.time() - now())
    except JournalError as error:
        logger.error("[sip] state_file %s is not used and nothing is written into it: %s", name, error)
        state.close()
        return None
    state.replace(edge.continuity.state(now()))
    return state


def open_bindings(base: Foundation) -> StoreWriter | None:
    """The bindings of an earlier process, taken up; None where they are kept in memory alone."""
    configuration = base.configuration
    # One process alone may hold the file: the first worker, which learns the bindings of all.
    if not configuration.databases() or base.crew.number:
        return None
    name = configuration.registrar.store
    return open_store(configuration.directory / name, name, base.directory, time.time() - now(), base.counters)
