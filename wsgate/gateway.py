"""A whole gateway: every machine built from the configuration and put on the sockets that the supervisor opened."""

from __future__ import annotations

import dataclasses
import os
import random
import socket
import time
from collections.abc import Callable, Mapping

import gevent
import psutil
from gevent import ssl

from wsgate import web
from wsgate.addr import Address
from wsgate.call_peers import CallPeers
from wsgate.config import Configuration
from wsgate.crew import OwnAddresses, backend_sides, own_hosts
from wsgate.directory import Directory
from wsgate.errors import ConfigurationError, StartError
from wsgate.guard import Guard
from wsgate.handover import ALONE, Crew, Endpoint, Files, state_name
from wsgate.identity import Admission, Admitted
from wsgate.keys import Key
from wsgate.log import logger
from wsgate.media import Media, Place, Sockets
from wsgate.metrics import Counters
from wsgate.named_files import client_contexts, optional_path, read_all, read_jwt_keys, read_key_file, read_users
from wsgate.net.backend import BackendLimits, BackendSockets
from wsgate.net.backend_codec import StreamLimits
from wsgate.net.clock import now
from wsgate.net.listener import Listener, ListenerSettings
from wsgate.net.mesh import Mesh
from wsgate.net.resolver import Resolver
from wsgate.net.tls import ALPN_HTTP, ALPN_TURN, ServerContext
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
from wsgate.ws.handshake import Refusal

MEMORY_CHECK_SECONDS = 1.0
"""How often memory is compared with memory_high, and the addresses that TURN refuses with those of the backends."""

CLOSE_SECONDS = 3.0
"""How long browsers have to answer the close frame at the end."""


class Gateway:
    """One worker's gateway. `endpoints` are the open sockets, `files` what the options name, `crew` the other workers.

    Raises WsgateError.
    """

    def __init__(
        self,
        configuration: Configuration,
        endpoints: Mapping[Endpoint, socket.socket],
        files: Files,
        crew: Crew = ALONE,
    ) -> None:
        self._configuration = configuration
        self._crew = crew
        self._endpoints = endpoints
        self._process = psutil.Process()
        self._started = time.time()
        self._hosts = own_hosts()
        self._counters = Counters()
        self._guard = Guard(configuration.limits)
        self._secrets: tuple[Key, ...] = read_key_file(configuration, files)
        self._tokens = FlowTokens(self._secrets, crew.number)
        self._addresses = OwnAddresses(configuration, crew, endpoints, self._hosts)
        self._names = self._addresses.names()
        self._backend_settings: dict[str, BackendSettings] = dict(configuration.backends)
        self._directory = Directory(configuration.sip.reconnect_grace)
        self._call_peers = _call_peers(configuration)
        self._digest = self._new_digest(configuration, files)
        self._admission = Admission(configuration.identity, read_jwt_keys(configuration, files), time.time)
        self._resolver = Resolver(
            configuration.dns,
            self._counters,
            own=self._addresses.of_all_workers() | self._names.known_as(),
            random_float=random.random,
        )
        self._turn_offer = TurnOffer(configuration, self._directory, self._admit)
        self._edge = self._new_edge(configuration)
        self._signalling = Signalling(self._edge, self._resolver, self._counters)
        self._contexts: dict[str, ServerContext] = {}
        self._backends = self._new_backend_sockets(files)
        self._signalling.backends = self._backends
        offer = self._turn_offer
        self._web = web.WebApplication(
            configuration, web.phone_files(), self.status, self._counters, offer.uris, offer.rtc_configuration
        )
        self._media = self._turn_offer.media = self._new_media(configuration, files)
        self._listeners = [self._new_listener(name, files) for name in configuration.listeners]
        self._store = self._open_store(configuration)
        self._housekeeper: gevent.Greenlet | None = None
        self._state = self._open_state(configuration, files)
        self._mesh = self._new_mesh()
        if self._mesh is not None:
            # Told before it is answered, and heard before it is judged: who has a 200 is known at every worker.
            self._signalling.tell, self._signalling.hear = self._mesh.flush, self._mesh.drain
        if self._call_peers is not None:
            self._signalling.after = self._narrow

    def start(self) -> None:
        """Begin to serve. Raises StartError."""
        self._resolver.serve(self._backend_settings)
        self._resolver.first_look()
        self._backends.start()
        if self._mesh is not None:
            self._mesh.start()
        if self._media is not None:
            try:
                self._media.start()
            except OSError as error:
                raise StartError(f"[turn]: cannot start: {error.strerror}") from None
        for listener in self._listeners:
            listener.start()
        if self._store is not None:
            self._store.start()
        self._housekeeper = gevent.spawn(self._keep_house)

    def stop(self, reason_code: int) -> None:
        """Drain: no new calls, wait for those that are up, close every WebSocket with `reason_code`, free all."""
        self._edge.draining = True
        self._wait_for(lambda: not self._edge.counts()["dialogs"], self._configuration.process.drain_timeout)
        self._guard.draining = True
        self._signalling.apply(self._edge.stopping(now()))
        for listener in self._listeners:
            listener.stop_accepting()
            listener.close(reason_code, "going away")
        self._wait_for(lambda: not len(self._signalling), CLOSE_SECONDS)
        for listener in self._listeners:
            listener.stop()
        if self._housekeeper is not None:
            self._housekeeper.kill()
        if self._media is not None:
            self._media.stop()
        if self._state is not None:
            self._state.replace(self._edge.state(now()))
            self._state.close()
        if self._store is not None:
            self._store.stop()
        if self._mesh is not None:
            self._mesh.stop()
        self._backends.close()
        self._resolver.close()
        self._signalling.stop()

    def reload(self, configuration: Configuration, files: Files) -> None:
        """Take certificates, users, secrets, backends and the settings of the web pages anew, keep all connections.

        What shapes sockets and tables ([sip], [limits], [websocket] path, [identity] forward_headers) counts from the
        next start. Raises WsgateError and then keeps what was.
        """
        for name, listener_settings in configuration.listeners.items():
            self._check_fallback(name, listener_settings)
        read_all(configuration, files)
        users = read_users(configuration, files)
        jwt_keys = read_jwt_keys(configuration, files)
        contexts = client_contexts(configuration, files)
        for listener in self._listeners:
            settings = configuration.listeners.get(listener.name)
            context = self._contexts.get(listener.name)
            if settings is None:
                continue
            if context is not None and settings.certificate:
                context.reload(files.path(settings.certificate), optional_path(files, settings.private_key))
            listener.reload(settings, configuration.websocket)
        if self._media is not None and configuration.turn is not None:
            self._media.reload(configuration.turn, files)
        self._digest.users = users
        forward_headers = self._configuration.identity.forward_headers
        identity = dataclasses.replace(configuration.identity, forward_headers=forward_headers)
        configuration = dataclasses.replace(configuration, identity=identity)
        self._admission = Admission(identity, jwt_keys, time.time)
        self._backend_settings.clear()
        self._backend_settings.update(configuration.backends)
        self._resolver.serve(self._backend_settings)
        self._backends.reload(contexts)
        self._configuration = self._web.configuration = self._turn_offer.configuration = configuration

    def status(self) -> dict[str, object]:
        """What /status and /metrics show of this worker."""
        counts = self._edge.counts()
        return {
            "worker": self._crew.number,
            "workers": self._crew.workers,
            "connections": self._guard.connections,
            "http_fallback": sum(listener.passing for listener in self._listeners),
            "flows": self._signalling.flows(),
            "registrations": counts["registrations"],
            "bindings": counts["bindings"],
            "transactions": counts["transactions"],
            "dialogs": counts["dialogs"],
            "backends": {domain: self._backend_status(domain) for domain in self._backend_settings},
            "allocations": self._media.server.allocations if self._media is not None else 0,
            "memory_bytes": self._process.memory_info().rss,
            "descriptors": self._process.num_fds(),
            "uptime_seconds": round(time.time() - self._started, 1),
            "counters": dict(self._counters.values),
        }

    # Parts

    def _new_edge(self, configuration: Configuration) -> Edge:
        registrar = None
        if configuration.embedded_domains:
            registrar = Registrar(
                configuration.registrar,
                self._directory,
                self._digest,
                self._counters,
                flow_timer=configuration.sip.flow_timer,
                temporary_gruus=TemporaryGruus(self._secrets, os.urandom),
            )
        turn = configuration.turn
        hands_out = turn is not None and turn.credentials_with_register
        return Edge(
            configuration.sip,
            self._backend_settings,
            transactions=TransactionSettings(
                transactions=configuration.limits.transactions,
                transactions_per_connection=configuration.limits.transactions_per_connection,
            ),
            dialogs_limit=configuration.limits.dialogs,
            names=self._names,
            flows=FlowTable(self._tokens, os.urandom),
            backends=ResolvedBackends(self._resolver),
            directory=self._directory,
            registrar=registrar,
            random_bytes=os.urandom,
            counters=self._counters,
            protected_headers=configuration.identity.protected_headers,
            hand_out=self._turn_offer.hand_out if hands_out else None,
            call_peers=self._call_peers,
            siblings=Siblings(self._tokens, backend_sides(self._crew), self._secrets),
        )

    def _new_mesh(self) -> Mesh | None:
        """The channel to the other workers' directories; None where there are none."""
        if self._crew.inbox is None:
            return None
        sharing = Sharing(
            self._crew.number,
            self._crew.outlets,
            self._directory,
            self._counters,
            hand_over=self._edge.hand_over,
            take_dialog=self._edge.take_over,
            end_dialog=self._edge.ended_elsewhere,
            lost=self._edge.lost_elsewhere,
            call_peers=self._call_peers,
        )
        return Mesh(sharing, self._crew.inbox, self._crew.outlets, self._edge.ended_here, self._learnt, self._counters)

    def _learnt(self) -> None:
        self._signalling.apply(())

    def _admit(self, fields: tuple[tuple[str, str], ...], query: str) -> Admitted | Refusal:
        return self._admission.judge(fields, query, now())

    def _open_state(self, configuration: Configuration, files: Files) -> StateFile | None:
        """Take up what an earlier process left; a file that cannot be used costs one line (rule D3)."""
        if not configuration.sip.state_file:
            return None
        name = state_name(configuration.sip.state_file, self._crew.number)
        state = StateFile(files, name)
        try:
            self._edge.load_state(state.read(), now(), time.time() - now())
        except JournalError as error:
            logger.error("[sip] state_file %s is not used and nothing is written into it: %s", name, error)
            state.close()
            return None
        state.replace(self._edge.state(now()))
        return state

    def _open_store(self, configuration: Configuration) -> StoreWriter | None:
        """The bindings of an earlier process, taken up; None where they are kept in memory alone."""
        # One process alone may hold the file: the first worker, which learns the bindings of all.
        if not configuration.databases() or self._crew.number:
            return None
        name = configuration.registrar.store
        return open_store(configuration.directory / name, name, self._directory, time.time() - now(), self._counters)

    def _new_digest(self, configuration: Configuration, files: Files) -> Digest:
        return Digest(
            read_users(configuration, files),
            configuration.registrar.digest_algorithms,
            self._secrets[0].secret,
            os.urandom,
            time.time() - now(),
        )

    def _new_backend_sockets(self, files: Files) -> BackendSockets:
        certified = self._configuration.tls_listener

        def server_context() -> ssl.SSLContext:
            return self._contexts[certified]()

        return BackendSockets(
            self._sockets("sip-udp"),
            self._sockets("sip-tcp"),
            self._signalling.received,
            self._signalling.connected,
            self._signalling.failed,
            self._resolver.backend_at,
            self._edge.is_trusted,
            self._counters,
            self._configuration.websocket,
            BackendLimits(
                stream=StreamLimits(
                    header_bytes=self._configuration.sip.max_header_bytes,
                    message_bytes=self._configuration.websocket.max_message_bytes,
                )
            ),
            contexts=client_contexts(self._configuration, files),
            tls_listeners=self._sockets("sip-tls"),
            server_context=server_context,
        )

    def _new_listener(self, name: str, files: Files) -> Listener:
        settings = self._configuration.listeners[name]
        self._check_fallback(name, settings)
        context = None
        if settings.tls is not Switch.OFF:
            alpn = (*ALPN_TURN, ALPN_HTTP) if settings.turn else (ALPN_HTTP,)
            context = ServerContext(files.path(settings.certificate), optional_path(files, settings.private_key), alpn)
            self._contexts[name] = context
        return Listener(
            name,
            settings,
            self._configuration.websocket,
            self._sockets("listener", name),
            context,
            self._guard,
            self._signalling,
            self._web,
            self._counters,
            self._admit,
            self._media.streams.speak if settings.turn and self._media is not None else None,
            self._web.owns,
        )

    def _check_fallback(self, name: str, settings: ListenerSettings) -> None:
        """Where a listener is bound to a wildcard, only here it is known which addresses are ours."""
        if settings.http_fallback in self._addresses.own():
            problem = f"{settings.http_fallback} is our own port"
            raise ConfigurationError(problem, section=f"listener {name}", option="http_fallback")

    def _new_media(self, configuration: Configuration, files: Files) -> Media | None:
        if configuration.turn is None:
            return None
        media = Media(
            configuration.turn,
            files,
            Sockets(*map(self._sockets, ("turn-udp", "turn-tcp", "turn-tls", "turn-alternate-udp"))),
            self._guard,
            own_hosts=self._hosts,
            keys=[key.secret for key in self._secrets],
            is_registered=lambda id_: self._directory.is_registered(id_, now()),
            counters=self._counters,
            call_peers=self._call_peers,
            share=(self._crew.number, self._crew.workers),
        )
        media.forbid(self._refused_peers())
        for name, listener in configuration.listeners.items():
            ports = [sock.getsockname()[1] for sock in self._sockets("listener", name) if listener.turn]
            if listener.tls is not Switch.OFF:
                media.places += [Place("turns", port, "tcp") for port in ports]
            if listener.tls is not Switch.ON:
                media.places += [Place("turn", port, "tcp") for port in ports]
        return media

    def _narrow(self) -> None:
        """After signalling: calls that ended, or moved their media, allow less than before (rule P6)."""
        narrowed = self._call_peers.take_narrowed() if self._call_peers is not None else None
        if narrowed and self._media is not None:
            self._media.narrow(narrowed)

    def _sockets(self, kind: str, name: str = "") -> list[socket.socket]:
        return [
            sock for endpoint, sock in self._endpoints.items() if endpoint.kind == kind and name in ("", endpoint.name)
        ]

    # Addresses

    def _refused_peers(self) -> set[Address]:
        """Rule P5: our own listeners and the SIP transport addresses of every backend."""
        return self._addresses.of_all_workers() | {address for _, address in self._resolver.known_addresses().hops}

    def _backend_status(self, domain: str) -> dict[str, object]:
        if domain in self._configuration.embedded_domains:
            return {"target": "embedded"}
        found = self._resolver.cached(domain)
        targets = found.targets if found is not None else ()
        places = {(target.transport, target.address) for target in targets}
        dead = [place for place in self._edge.dead_targets() if place in places]
        return {
            "target": self._backend_settings[domain].target,
            "addresses": [f"{target.transport.value} {target.address}" for target in targets],
            "dead": [f"{transport.value} {address}" for transport, address in dead],
            "problem": found.problem if found is not None else "not resolved yet",
        }

    # Time

    def _keep_house(self) -> None:
        """Compare memory with its limit, and tell TURN where the backends are now."""
        while True:
            try:
                self._guard.memory_used = psutil.virtual_memory().percent / 100
            except OSError:
                # No descriptor is left to read it with (rule H7): the next second may tell.
                self._counters.count("memory_checks_failed")
            if self._media is not None:
                self._media.forbid(self._refused_peers())
            self._write_state()
            gevent.sleep(MEMORY_CHECK_SECONDS)

    def _write_state(self) -> None:
        if self._state is None:
            return
        data, is_whole = self._edge.state_changes(now())
        if is_whole:
            self._state.replace(data)
        else:
            self._state.append(data)

    def _wait_for(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = now() + seconds
        while not done() and now() < deadline:
            gevent.sleep(0.02)


def _call_peers(configuration: Configuration) -> CallPeers | None:
    """Where signalling tells TURN of calls, if TURN wants to know (rule P6)."""
    turn = configuration.turn
    return CallPeers() if turn is not None and turn.peer_policy is PeerPolicy.CALL else None
