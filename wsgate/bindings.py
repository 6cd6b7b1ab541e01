"""The bindings of the embedded registrar, its location service (RFC 3261 §10.3, rules G2 and G6). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from wsgate.addr import Address, Hop, Transport
from wsgate.expiries import Expiries
from wsgate.known_flows import KnownFlows

MAX_BINDINGS = 200_000
"""Bindings that the embedded registrar keeps."""

BindingKey = tuple[bytes, bytes, int, bytes]
"""AOR, instance, reg-id, empty where outbound is used, else AOR, empty, 0, Contact URI: one Contact of an AOR (G2)."""


class Binding(NamedTuple):
    """One Contact of an AOR at the embedded registrar (RFC 3261 §10).

    `contact` is the URI without brackets, `parameters` the header parameters as the client wrote them, `expires`
    apart, each with its semicolon. `reg_id` is 0 unless outbound was used (RFC 5626 §6). `flow` is the browser's flow,
    empty for others, which are reached at `source`.
    """

    aor: bytes
    contact: bytes
    parameters: bytes
    instance: bytes
    reg_id: int
    path: tuple[bytes, ...]
    flow: bytes
    source: Hop | None
    call_id: bytes
    cseq: int
    expires_at: float
    registered_at: float
    display: bytes = b""
    q: float = 1.0

    @property
    def key(self) -> BindingKey:
        """What tells it from the others of its AOR."""
        return (self.aor, self.instance, self.reg_id, b"") if self.reg_id else (self.aor, b"", 0, self.contact)


def _sources_of(bindings: Iterable[Binding]) -> Iterator[tuple[Transport, Address]]:
    for binding in bindings:
        if not binding.flow and binding.source is not None:
            yield binding.source.transport, binding.source.address


class Bindings:
    """The table of bindings by AOR, at most `limit`; those of a closed flow last `reconnect_grace` seconds (G2).

    `changed` is called with each AOR whose bindings changed, `release` with a flow that none has any more.
    """

    def __init__(
        self,
        flows: KnownFlows,
        limit: int,
        reconnect_grace: float,
        *,
        changed: Callable[[bytes], None],
        release: Callable[[bytes], None],
    ) -> None:
        self._reconnect_grace = reconnect_grace
        self._flows = flows
        self._release = release
        self._limit = limit
        self._changed = changed
        self._bindings: dict[bytes, tuple[Binding, ...]] = {}
        self._total = 0
        self._aors_of_flow: dict[bytes, set[bytes]] = {}
        self._sources: Counter[tuple[Transport, Address]] = Counter()
        self._expiries: Expiries[bytes] = Expiries()

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[Binding]:
        for bindings in self._bindings.values():
            yield from bindings

    @property
    def aors(self) -> int:
        """How many AORs have a binding."""
        return len(self._bindings)

    def of_aor(self, aor: bytes) -> tuple[Binding, ...]:
        """The bindings of an AOR, oldest first; those that are over leave with the timer."""
        return self._bindings.get(aor, ())

    def get(self, key: BindingKey) -> Binding | None:
        """The binding with this key."""
        return next((one for one in self._bindings.get(key[0], ()) if one.key == key), None)

    def is_known_by(self, flow: bytes) -> bool:
        """True when an AOR has a binding through this flow."""
        return flow in self._aors_of_flow

    def aors_of(self, flow: bytes) -> frozenset[bytes]:
        """The AORs that have a binding through `flow` (G4)."""
        return frozenset(self._aors_of_flow.get(flow, ()))

    def has_source(self, hop: Hop) -> bool:
        """True when a phone registered from there (rules D1, G5)."""
        return (hop.transport, hop.address) in self._sources

    def replace(self, aor: bytes, new: tuple[Binding, ...], now: float) -> bool:
        """Make these the bindings of an AOR, all or none (RFC 3261 §10.3). False when the table is full."""
        old = self._bindings.get(aor, ())
        total = self._total + len(new) - len(old)
        if total > self._limit and len(new) > len(old):
            return False
        self._total = total
        if new:
            self._bindings[aor] = new
        else:
            self._bindings.pop(aor, None)
        old_flows = {binding.flow for binding in old if binding.flow}
        new_flows = {binding.flow for binding in new if binding.flow}
        for flow in new_flows - old_flows:
            self._aors_of_flow.setdefault(flow, set()).add(aor)
            self._flows.note_use(flow, now)
        for flow in old_flows - new_flows:
            self._drop_aor_of_flow(flow, aor)
        self._sources.update(_sources_of(new))
        for source in _sources_of(old):
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]
        self._schedule(aor)
        self._changed(aor)
        return True

    def learn(self, binding: Binding, now: float) -> bool:
        """A binding as another worker knows it. False when we know a newer one, or the table is full."""
        known = self._bindings.get(binding.aor, ())
        same = next((one for one in known if one.key == binding.key), None)
        is_older = same is not None and same.registered_at > binding.registered_at
        others = tuple(one for one in known if one is not same)
        if is_older or binding.expires_at <= now or not self.replace(binding.aor, (*others, binding), now):
            self._release(binding.flow)
            return False
        return True

    def learn_removed(self, key: BindingKey, at: float, now: float) -> None:
        """A binding was removed at another worker at `at`."""
        known = self._bindings.get(key[0], ())
        kept = tuple(one for one in known if one.key != key or one.registered_at > at)
        if len(kept) < len(known):
            self.replace(key[0], kept, now)

    def ends_at(self, binding: Binding) -> float:
        """When a binding is over: it expires, or its flow has been gone for `reconnect_grace` (G2)."""
        gone_since = self._flows.gone_since(binding.flow) if binding.flow else None
        return binding.expires_at if gone_since is None else min(binding.expires_at, gone_since + self._reconnect_grace)

    def flow_gone(self, flow: bytes) -> None:
        """The flow was closed: its bindings end sooner (G2)."""
        for aor in self._aors_of_flow.get(flow, ()):
            self._schedule(aor)

    def expire(self, now: float) -> list[Binding]:
        """Remove those that have ended; returns them."""
        ended: list[Binding] = []
        for aor in self._expiries.due(now):
            kept: list[Binding] = []
            for binding in self._bindings[aor]:
                (kept if self.ends_at(binding) > now else ended).append(binding)
            self.replace(aor, tuple(kept), now)
        return ended

    def next_timer(self) -> float | None:
        """When the next one ends, or None."""
        return self._expiries.next_timer()

    def _schedule(self, aor: bytes) -> None:
        bindings = self._bindings.get(aor)
        if bindings:
            self._expiries.set(aor, min(self.ends_at(binding) for binding in bindings))
        else:
            self._expiries.discard(aor)

    def _drop_aor_of_flow(self, flow: bytes, aor: bytes) -> None:
        aors = self._aors_of_flow[flow]
        aors.discard(aor)
        if not aors:
            del self._aors_of_flow[flow]
            self._release(flow)
