"""Connections to backends whose near end names us: which stand, and what waits for one (rule V1). Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from wsgate.addr import Address, Hop, Transport
from wsgate.metrics import Counters
from wsgate.sip.contexts import Connect, Effect
from wsgate.sip.dead_targets import Place
from wsgate.sip.decisions import Backends
from wsgate.sip.names import Names

MAX_WAITING = 1000
"""Requests that wait for one connection; a further one has no target."""


class Connection(NamedTuple):
    """Its id, and the address that our Via, Path and Record-Route show on it."""

    id: bytes
    local: Address


class Connections:
    """One connection for each WS, WSS or TLS target where nothing else leads back to us."""

    def __init__(self, names: Names, counters: Counters) -> None:
        self._names = names
        self._counters = counters
        self._standing: dict[Place, Connection] = {}
        self._waiting: dict[Place, list[object]] = {}

    def get(self, place: Place) -> Connection | None:
        """The connection that stands."""
        return self._standing.get(place)

    def wait_for(self, place: Place, backend: str, waiting: object, effects: list[Effect]) -> bool:
        """Keep `waiting` until there is a connection; asks for one. False: too many wait already."""
        queue = self._waiting.setdefault(place, [])
        if len(queue) >= MAX_WAITING:
            self._counters.count("sip_waiting_full")
            return False
        queue.append(waiting)
        if len(queue) == 1:
            effects.append(Connect(Hop(*place), backend))
        return True

    def connected(self, hop: Hop, local: Address) -> list[object]:
        """A connection stands. Returns what waited for it."""
        place = (hop.transport, hop.address)
        if not self._names.by_connection(hop.transport):
            return []
        self._standing[place] = Connection(hop.connection, local)
        self._names.connected(local)
        return self._waiting.pop(place, [])

    def disconnected(self, hop: Hop) -> list[object]:
        """A connection is gone, or none could be made. Returns what waited for it."""
        place = (hop.transport, hop.address)
        known = self._standing.get(place)
        if known is not None and hop.connection in (b"", known.id):
            del self._standing[place]
        return self._waiting.pop(place, [])

    def local_of(self, hop: Hop) -> Address | None:
        """The near end of the connection to this hop, None for others."""
        known = self._standing.get((hop.transport, hop.address))
        return known.local if known else None


def accepted_from(hop: Hop, backend: str, backends: Backends) -> Callable[[Hop], bool]:
    """Where the answer to a request for `hop` may come from (rule V3).

    The same connection where one was named; over TLS only by TLS; else from any address of the backend, whatever the
    port and transport.
    """
    if hop.connection:
        return lambda source: source.connection == hop.connection
    host = hop.address.host
    over_tls = hop.transport is Transport.TLS

    def accepts(source: Hop) -> bool:
        if source.transport is not Transport.TLS if over_tls else source.transport.is_websocket:
            return False
        return source.address.host == host or (bool(backend) and backends.backend_of(source.address.host) == backend)

    return accepts
