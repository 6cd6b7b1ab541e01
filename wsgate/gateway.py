"""A whole gateway: its parts put together, started, reloaded, drained and stopped."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable, Mapping

import gevent
import psutil
from gevent import ssl

from wsgate import __version__, web
from wsgate.addr import Address
from wsgate.config import Configuration
from wsgate.errors import ConfigurationError, StartError
from wsgate.handover import ALONE, Crew, Endpoint, Files
from wsgate.identity import Admission, Admitted
from wsgate.named_files import client_contexts, optional_path, read_all, read_jwt_keys, read_users
from wsgate.net.clock import now
from wsgate.net.listener import Listener, ListenerSettings
from wsgate.net.tls import ALPN_HTTP, ALPN_TURN, ServerContext
from wsgate.parts import (
    Foundation,
    new_backend_sockets,
    new_digest,
    new_edge,
    new_media,
    new_mesh,
    new_resolver,
    open_bindings,
    open_state,
)
from wsgate.settings import Switch
from wsgate.signalling import Signalling
from wsgate.sip.targets import BackendSettings
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
        base = Foundation(configuration, endpoints, files, crew)
        self._base = base
        self._configuration = configuration
        self._process = psutil.Process()
        self._started = time.time()
        self._counters, self._guard = base.counters, base.guard
        self._backend_settings: dict[str, BackendSettings] = dict(configuration.backends)
        self._digest = new_digest(base)
        self._admission = Admission(configuration.identity, read_jwt_keys(configuration, files), time.time)
        self._resolver = new_resolver(base)
        self._turn_offer = offer = TurnOffer(configuration, base.directory, self._admit)
        self._edge = new_edge(base, self._backend_settings, self._digest, self._resolver, offer)
        self._signalling = Signalling(self._edge, self._resolver, self._counters)
        self._contexts: dict[str, ServerContext] = {}
        self._backends = new_backend_sockets(base, self._signalling, self._resolver, self._edge, self._tls_context)
        self._signalling.backends = self._backends
        self._web = web.WebApplication(
            configuration, web.phone_files(), self.status, self._counters, offer.uris, offer.rtc_configuration
        )
        self._media = offer.media = new_media(base, self._refused_peers())
        self._listeners = [self._new_listener(name, files) for name in configuration.listeners]
        self._store = open_bindings(base)
        self._housekeeper: gevent.Greenlet | None = None
        self._state = open_state(base, self._edge)
        self._mesh = new_mesh(base, self._edge, self._learnt)
        if self._mesh is not None:
            # Told before it is answered, and heard before it is judged: who has a 200 is known at every worker.
            self._signalling.tell, self._signalling.hear = self._mesh.flush, self._mesh.drain
            if self._media is not None:
                self._media.hear_others(self._mesh.drain)
                self._media.pass_streams(self._mesh.pass_stream)
                self._mesh.adopt = self._media.streams.adopt
        if base.call_peers is not None:
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
            self._state.replace(self._edge.continuity.state(now()))
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
        # All is read before anything changes: one bad certificate must not leave half of the new settings behind.
        prepared = [
            self._contexts[name].prepare(files.path(settings.certificate), optional_path(files, settings.private_key))
            for name, settings in configuration.listeners.items()
            if name in self._contexts and settings.certificate
        ]
        if self._media is not None and configuration.turn is not None:
            prepared.append(self._media.prepare(configuration.turn, files))
        for take in prepared:
            take()
        for listener in self._listeners:
            if listener.name in configuration.listeners:
                listener.reload(configuration.listeners[listener.name], configuration.websocket)
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
            "version": __version__,
            "worker": self._base.crew.number,
            "workers": self._base.crew.workers,
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

    def _learnt(self) -> None:
        self._signalling.apply(())

    def _admit(self, fields: tuple[tuple[str, str], ...], query: str) -> Admitted | Refusal:
        return self._admission.judge(fields, query, now())

    def _tls_context(self) -> ssl.SSLContext:
        """Servers that connect by TLS are shown the certificate of a listener."""
        return self._contexts[self._base.configuration.tls_listener]()

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
            self._base.sockets("listener", name),
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
        if settings.http_fallback in self._base.addresses.own():
            problem = f"{settings.http_fallback} is our own port"
            raise ConfigurationError(problem, section=f"listener {name}", option="http_fallback")

    def _narrow(self) -> None:
        """After signalling: calls that ended, or moved their media, allow less than before (rule P6)."""
        narrowed = self._base.call_peers.take_narrowed() if self._base.call_peers is not None else None
        if narrowed and self._media is not None:
            self._media.narrow(narrowed)

    # Addresses

    def _refused_peers(self) -> tuple[set[Address], set[Address]]:
        """Rule P5: our own listeners, and the SIP transport addresses of every backend."""
        backends = {address for _, address in self._resolver.known_addresses().hops}
        return self._base.addresses.of_all_workers(), backends

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
                self._media.forbid(*self._refused_peers())
            self._write_state()
            gevent.sleep(MEMORY_CHECK_SECONDS)

    def _write_state(self) -> None:
        if self._state is None:
            return
        data, is_whole = self._edge.continuity.state_changes(now())
        if is_whole:
            self._state.replace(data)
        else:
            self._state.append(data)

    def _wait_for(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = now() + seconds
        while not done() and now() < deadline:
            gevent.sleep(0.02)
