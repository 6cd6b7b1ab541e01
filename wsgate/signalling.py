"""Drives the SIP edge: WebSocket streams and backend sockets in, effects applied without blocking, one timer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gevent

from wsgate.addr import Address, Hop, split_host_port
from wsgate.log import LineRate, logger
from wsgate.metrics import Counters
from wsgate.net.backend import BackendSockets
from wsgate.net.clock import LoopTimer, now
from wsgate.net.resolver import Resolver
from wsgate.net.stream import Upgrade, WebSocketStream
from wsgate.sip.contexts import Disconnect, Resolve
from wsgate.sip.edge import Edge, Effect
from wsgate.sip.flow import Flow
from wsgate.sip.outline import outline
from wsgate.sip.targets import Target
from wsgate.sip.transaction import Send
from wsgate.ws.frames import CloseCode

TIMER_TICK_SECONDS = 0.02
"""The timers of the machines gather so long: none that counts is shorter than half a second, and under load there is
one for every message."""

AFTER_ERROR_SECONDS = 1.0
"""After an internal error the timers run again, but not at once."""

FAILURES_LOGGED, FAILURES_LOGGED_SECONDS = 10, 60.0
"""So many lines within this time on hops that cannot be reached: whoever asks and is not there any more makes one."""


class ResolvedBackends:
    """What the resolver knows, as the proxy asks it: read at any time, never blocking (rules D1, N5, N6)."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    def targets(self, backend: str, now: float) -> Sequence[Target] | None:
        """Best first; None while nothing is known."""
        found = self._resolver.cached(backend)
        return found.targets if found is not None and found.targets else None

    def named(self, backend: str) -> Mapping[str, Sequence[Target]]:
        """The names met in the resolution."""
        found = self._resolver.cached(backend)
        return found.named if found is not None else {}

    def backend_of(self, host: str) -> str | None:
        """The backend with this IP address."""
        return next(iter(self._resolver.domains_at(host)), None)


class Signalling:
    """The FlowHandler of the listeners and the receiver of the backend sockets. Nothing here blocks."""

    def __init__(self, edge: Edge, resolver: Resolver, counters: Counters) -> None:
        self._edge = edge
        self._resolver = resolver
        self._counters = counters
        self._streams: dict[bytes, WebSocketStream] = {}
        self._timer = LoopTimer(self._due)
        self._failures = LineRate(FAILURES_LOGGED, FAILURES_LOGGED_SECONDS)
        self.backends: BackendSockets | None = None
        self.after: Callable[[], None] | None = None
        """Called when the effects of the edge are applied; does not block."""
        self.hear: Callable[[], None] | None = None
        """Called before a message is judged: takes what the other workers have told. Does not block."""
        self.tell: Callable[[], None] | None = None
        """Called before the effects of the edge are applied: tells the other workers what changed. Does not block."""

    def __len__(self) -> int:
        return len(self._streams)

    # Browsers

    def opened(self, stream: WebSocketStream, upgrade: Upgrade) -> None:
        """A browser's WebSocket is open."""
        flow = self._edge.flow_opened(upgrade.remote, upgrade.secure, _host(upgrade), upgrade.admitted)
        stream.flow = flow
        self._streams[flow.id] = stream
        if flow.identity is not None:
            self._arm()

    def message(self, stream: WebSocketStream, data: bytes) -> None:
        """One message of a browser."""
        _show("from", stream.flow.hop, data)
        if self.hear is not None:
            self.hear()
        self.apply(self._edge.from_browser(stream.flow.id, data, now()))

    def refused(self, stream: WebSocketStream, data: bytes) -> None:
        """One message over the rate."""
        _show("over the rate from", stream.flow.hop, data)
        self.apply(self._edge.refused(stream.flow.id, data))

    def closed(self, stream: WebSocketStream) -> None:
        """The stream is gone."""
        flow = stream.flow
        if flow is not None and self._streams.pop(flow.id, None) is not None:
            self.apply(self._edge.flow_closed(flow.id, now()))

    # Backends

    def received(self, hop: Hop, data: bytes, local: Address) -> None:
        """One message from the backend side."""
        _show("from", hop, data)
        if self.hear is not None:
            self.hear()
        self.apply(self._edge.from_backend(hop, data, now()))

    def unframed(self, hop: Hop, head: bytes, reason: str) -> None:
        """The head of a message on a stream whose end cannot be known, with the reason."""
        _show(f"not framed ({reason}) from", hop, head)
        self.apply(self._edge.from_backend(hop, head, now(), flaw=reason))

    def connected(self, hop: Hop, local: Address) -> None:
        """A connection to a WS backend stands."""
        self.apply(self._edge.connected(hop, local, now()))

    def failed(self, hop: Hop, reason: str) -> None:
        """A hop cannot be reached."""
        at = now()
        # Of who is dead the log has told; each probe would tell it again until somebody is awake.
        is_known = (hop.transport, hop.address) in self._edge.dead_targets()
        level = logging.DEBUG if is_known else self._failures.level(at)
        logger.log(level, "backend side %s %s: %s", hop.transport.value, hop.address, reason)
        self.apply(self._edge.failed(hop, reason, at))

    # Effects and time

    def apply(self, effects: Iterable[Effect]) -> None:
        """Do what the edge decided, in order."""
        if self.tell is not None:
            self.tell()
        for effect in effects:
            if isinstance(effect, Send):
                self._send(effect)
            elif isinstance(effect, Resolve):
                gevent.spawn(self._resolve, effect.backend)
            elif isinstance(effect, Disconnect):
                self._disconnect(effect)
            elif self.backends is not None:
                self.backends.connect(effect.hop)
        if self.after is not None:
            self.after()
        self._arm()

    def _arm(self) -> None:
        """See that the timers run when they are due; where they run within a tick anyway, nothing is asked."""
        tick = now() + TIMER_TICK_SECONDS
        if self._timer.is_due_by(tick):
            return
        deadline = self._edge.next_timer()
        self._timer.arm(None if deadline is None else max(deadline, tick))

    def stop(self) -> None:
        """No more timers."""
        self._timer.stop()

    def flows(self) -> list[dict[str, Any]]:
        """For /status: every browser connection."""
        return [self._flow_status(stream.flow) for stream in self._streams.values()]

    def _flow_status(self, flow: Flow) -> dict[str, Any]:
        aors = sorted({registration.aor.decode("utf-8", "replace") for registration in self._edge.registered(flow.id)})
        transport = flow.hop.transport.value
        return {"remote": str(flow.remote), "transport": transport, "outbound": flow.outbound, "aors": aors}

    def _send(self, effect: Send) -> None:
        _show("to", effect.hop, effect.data)
        stream = self._streams.get(effect.hop.connection) if effect.hop.connection else None
        if stream is not None:
            if not stream.send(effect.data):
                self._counters.count("sip_sends_to_closed_flows")
        elif self.backends is not None:
            self.backends.send(effect.hop, effect.data)

    def _disconnect(self, effect: Disconnect) -> None:
        stream = self._streams.get(effect.connection)
        if stream is not None:
            logger.info("%s is disconnected: %s", stream.remote, effect.reason)
            stream.close(CloseCode.POLICY_VIOLATION, effect.reason)

    def _resolve(self, backend: str) -> None:
        found = self._resolver.resolve(backend)
        if not found.targets:
            # A line for each request; the resolver has a warning for each change.
            logger.debug("backend %s: no target: %s", backend, found.problem)
        self.apply(self._edge.resolved(backend, now()))

    def _due(self) -> None:
        # Runs in the hub; what it applies does not block. An error here must not stop the clock of everybody else.
        try:
            self.apply(self._edge.handle_timer(now()))
        except Exception:
            logger.exception("internal error in the timers")
            self._counters.count("internal_errors")
            self._timer.arm(now() + AFTER_ERROR_SECONDS)


def _show(direction: str, hop: Hop, data: bytes) -> None:
    """Every message at the level debug: each side of a call can be followed by its Call-ID."""
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s %s %s: %s", direction, hop.transport.value, hop.address, outline(data))


def _host(upgrade: Upgrade) -> Address:
    """The Host of the upgrade with the default port of its scheme; an odd one names nobody."""
    try:
        return split_host_port(upgrade.host, 443 if upgrade.secure else 80)
    except ValueError:
        return Address("", 0)
