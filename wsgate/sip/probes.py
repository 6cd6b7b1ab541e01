"""Dead targets are asked by OPTIONS whether they are back (rule N3). Pure.

Every `probe_interval` a dead target of a configured backend gets an OPTIONS; any answer but 408 and 503 revives it.
What is no target of a backend is never probed (rule N4).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import count

from wsgate.addr import Address, Hop, uri_host
from wsgate.log import logger
from wsgate.metrics import Counters
from wsgate.sip.connections import Connections, accepted_from
from wsgate.sip.contexts import Effect
from wsgate.sip.dead_targets import MAX_DEAD_TARGETS, DeadTargets, Place
from wsgate.sip.decisions import Backends
from wsgate.sip.flow import RandomBytes
from wsgate.sip.message import Message
from wsgate.sip.names import Names, via_value
from wsgate.sip.targets import BackendSettings, Target
from wsgate.sip.transaction import TransactionLayer

NO_ANSWERS = (408, 503)
"""Answers that say no more than silence does: a proxy's for a server behind it, or an overloaded server's."""

LOG_INTERVAL_SECONDS = 60.0
"""A target that comes and goes is spoken of once in this time: whoever can draw a 503 from a backend would else write
the log."""

MAX_PROBES = 1024
"""Targets under probe at once; further dead ones come back when their back-off is over."""


class Probe:
    """The probing of one dead target, from its death to its revival; `is_out` while an OPTIONS waits for its answer."""

    __slots__ = ("backend", "interval", "is_out", "target")

    def __init__(self, backend: str, target: Target, interval: float) -> None:
        self.backend = backend
        self.target = target
        self.interval = interval
        self.is_out = False

    @property
    def place(self) -> Place:
        """The target as DeadTargets knows it."""
        return self.target.transport, self.target.address


class Probes:
    """Keeps DeadTargets, and probes what is in it."""

    def __init__(
        self,
        backend_settings: Mapping[str, BackendSettings],
        layer: TransactionLayer,
        names: Names,
        backends: Backends,
        connections: Connections,
        random_bytes: RandomBytes,
        counters: Counters,
    ) -> None:
        self.dead = DeadTargets()
        self._backend_settings = backend_settings
        self._layer = layer
        self._names = names
        self._backends = backends
        self._connections = connections
        self._random_bytes = random_bytes
        self._counters = counters
        self._probes: dict[Place, Probe] = {}
        self._spoken_of: dict[Place, float] = {}
        self._said_dead: set[Place] = set()
        self._due: list[tuple[float, int, Probe]] = []
        self._numbers = count()

    def failed(
        self, backend: str, target: Target, now: float, at_least: float = 0.0, *, is_silent: bool = False
    ) -> None:
        """A target of `backend` did not serve a request; `at_least` are the seconds that it asked for.

        One that `is_silent` is asked at once: a proxy says nothing when it is the phone behind it that does not answer
        a request other than INVITE (RFC 4320 §4.2).
        """
        place = (target.transport, target.address)
        if place not in self.dead:
            self._counters.count("sip_targets_dead")
            self._say_dead(backend, place, now)
        self.dead.failed(*place, now, at_least)
        settings = self._backend_settings.get(backend)
        if settings is None or place in self._probes or len(self._probes) >= MAX_PROBES:
            return
        probe = self._probes[place] = Probe(backend, target, settings.probe_interval)
        self._wait(probe, now if is_silent else now + probe.interval)

    def succeeded(self, backend: str, target: Target) -> None:
        """A target answered."""
        if len(self.dead) and (target.transport, target.address) in self.dead:
            self.dead.succeeded(target.transport, target.address)
            self._counters.count("sip_targets_revived")
            self._say_back(backend, (target.transport, target.address))

    def next_timer(self) -> float | None:
        """When the next probe is due."""
        return self._due[0][0] if self._due else None

    def handle_timer(self, now: float, effects: list[Effect]) -> None:
        """Send what is due; who has come back by itself, or left the DNS, is probed no more."""
        while self._due and self._due[0][0] <= now:
            _, _, probe = heapq.heappop(self._due)
            if probe.place in self.dead and self._is_target(probe, now):
                self._begin(probe, now, effects)
            else:
                del self._probes[probe.place]

    def send(self, probe: Probe, now: float, effects: list[Effect]) -> None:
        """Send the OPTIONS; called again once the connection that it waited for stands."""
        place = probe.place
        known = self._connections.get(place)
        hop = Hop(*place, known.id) if known else Hop(*place)
        local = known.local if known else None
        message = Message.parse(self._request(probe, hop, local))
        accepts = accepted_from(hop, probe.backend, self._backends)
        self._counters.count("sip_probes_sent")
        _, sent = self._layer.request(message, hop, now, probe, accepts)
        effects += sent

    def ended(self, probe: Probe, status: int | None, now: float) -> None:
        """The final answer to a probe came, or (None) none."""
        self._mark(probe, False)
        if status is not None and status not in NO_ANSWERS:
            self.succeeded(probe.backend, probe.target)
            del self._probes[probe.place]
            return
        # The back-off is not made longer: who serves requests and swallows OPTIONS must come back too.
        self._counters.count("sip_probes_failed")
        self._say_dead(probe.backend, probe.place, now)
        self._wait(probe, now + probe.interval)

    def _say_dead(self, backend: str, place: Place, now: float) -> None:
        """One line for a death, when the last one of this target is long enough ago; later, if it lasts."""
        last = self._spoken_of.get(place)
        if place in self._said_dead or (last is not None and now - last < LOG_INTERVAL_SECONDS):
            return
        self._spoken_of.pop(place, None)
        if len(self._spoken_of) >= MAX_DEAD_TARGETS:
            oldest = next(iter(self._spoken_of))
            del self._spoken_of[oldest]
            self._said_dead.discard(oldest)
        self._spoken_of[place] = now
        self._said_dead.add(place)
        logger.warning("backend %s: %s %s does not serve", backend, place[0].value, place[1])

    def _say_back(self, backend: str, place: Place) -> None:
        """Whose death was told comes back with a line too."""
        if place in self._said_dead:
            self._said_dead.discard(place)
            logger.info("backend %s: %s %s serves again", backend, place[0].value, place[1])

    @property
    def under_way(self) -> int:
        """How many probes wait for their answer."""
        return sum(probe.is_out for probe in self._probes.values())

    def _mark(self, probe: Probe, is_out: bool) -> None:
        probe.is_out = is_out
        self.dead.probe_is_out(probe.place, is_out)

    def _wait(self, probe: Probe, until: float) -> None:
        heapq.heappush(self._due, (until, next(self._numbers), probe))

    def _is_target(self, probe: Probe, now: float) -> bool:
        """True while the backend is configured and resolves to this target, or is not known to be elsewhere."""
        if probe.backend not in self._backend_settings:
            return False
        targets = self._backends.targets(probe.backend, now)
        return targets is None or any((target.transport, target.address) == probe.place for target in targets)

    def _begin(self, probe: Probe, now: float, effects: list[Effect]) -> None:
        self._mark(probe, True)
        place = probe.place
        if self._names.by_connection(place[0]) and self._connections.get(place) is None:
            if not self._connections.wait_for(place, probe.backend, probe, effects):
                self.ended(probe, None, now)
            return
        self.send(probe, now, effects)

    def _request(self, probe: Probe, hop: Hop, local: Address | None) -> bytes:
        sent_by = self._names.sent_by(hop, local)
        domain = uri_host(probe.target.host if probe.backend == "*" else probe.backend).encode()
        us = uri_host(sent_by.host).encode()
        branch, tag, call_id = (self._random_bytes(8).hex().encode() for _ in range(3))
        return (
            b"OPTIONS sip:%b SIP/2.0\r\nVia: %b\r\nMax-Forwards: 70\r\n"
            b"From: <sip:wsgate@%b>;tag=%b\r\nTo: <sip:%b>\r\nCall-ID: %b\r\nCSeq: 1 OPTIONS\r\n"
            b"Accept: application/sdp\r\nUser-Agent: wsgate\r\nContent-Length: 0\r\n\r\n"
        ) % (domain, via_value(hop, sent_by, b"z9hG4bK" + branch), us, tag, domain, call_id)
