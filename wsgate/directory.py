"""What the workers know of each other's flows, registrations and bindings (DESIGN.md, Processes). Pure.

It is a set of dictionaries; every call is synchronous and never blocks. With several workers each has its own, notes
in `told` what changed in it, and learns what changed in theirs (`learn_...`; sharing.py has the words for it). Three
kinds of things live here:

- *flows*: which browser connections are open, and since when a closed one is gone; of the other workers' those that
  something is registered through;
- *registrations*: who registered where through which flow, whatever registrar said yes (R4, R6, D3, W2);
- *bindings*: the location service of the embedded registrar (RFC 3261 §10.3, rules G2 and G6).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from wsgate.addr import Address, Hop, Transport
from wsgate.expiries import Expiries

MAX_REGISTRATIONS = 200_000
"""Registrations that are remembered; further ones still pass through, but their flows are not rebound."""
MAX_REGISTRATIONS_PER_FLOW = 64
"""Registrations that one flow may have remembered."""
MAX_BINDINGS = 200_000
"""Bindings that the embedded registrar keeps."""
MAX_FLOWS_PER_REGISTRATION = 16
"""Flows, the newest included, that one registration is known by; the oldest is forgotten first."""
MAX_LIFETIME_SECONDS = 30 * 86400
"""A registrar of another may promise more; we remember no longer."""

RegistrationKey = tuple[bytes, bytes, int]
"""AOR, instance, reg-id; or AOR, Contact URI, -1 where the client gives no instance (D3)."""


BindingKey = tuple[bytes, bytes, int, bytes]
"""AOR, instance, reg-id, empty where outbound is used, else AOR, empty, 0, Contact URI: one Contact of an AOR (G2)."""


class Registered(NamedTuple):
    """Something happened to the registration with this key."""

    key: RegistrationKey


class Bound(NamedTuple):
    """Something happened to the binding with this key."""

    key: BindingKey


class Gone(NamedTuple):
    """A flow was closed that something is registered through."""

    flow: bytes


Change = Registered | Bound | Gone


class Registration(NamedTuple):
    """A REGISTER that was answered with 2xx (R4). `instance` is empty and `reg_id` 0 where the client gave none."""

    aor: bytes
    instance: bytes
    reg_id: int
    contact: bytes
    flow: bytes
    expires_at: float
    handle: bytes = b""

    @property
    def key(self) -> RegistrationKey:
        """What makes two registrations the same client (D3)."""
        return registration_key(self.aor, self.instance, self.reg_id, self.contact)

    @property
    def id(self) -> str:
        """What TURN credentials that were handed out with it carry (rule A5): the same for the same client."""
        aor, client, reg_id = self.key
        return hashlib.sha256(b"%d:%b%d:%b%d" % (len(aor), aor, len(client), client, reg_id)).hexdigest()[:24]


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


def registration_key(aor: bytes, instance: bytes, reg_id: int, contact: bytes) -> RegistrationKey:
    """AOR, instance and reg-id; AOR and Contact URI where a client gives no instance (D3)."""
    return (aor, instance, reg_id) if instance else (aor, contact, -1)


def _sources_of(bindings: Iterable[Binding]) -> Iterator[tuple[Transport, Address]]:
    for binding in bindings:
        if not binding.flow and binding.source is not None:
            yield binding.source.transport, binding.source.address


class Directory:
    """Flows, registrations and bindings, as one worker knows them.

    `reconnect_grace` is of [sip], in seconds (G2); it may be changed on a reload.
    """

    def __init__(
        self,
        reconnect_grace: float = 60.0,
        *,
        max_registrations: int = MAX_REGISTRATIONS,
        max_bindings: int = MAX_BINDINGS,
    ) -> None:
        self.reconnect_grace = reconnect_grace
        self._max_registrations = max_registrations
        self._max_bindings = max_bindings
        self._live: set[bytes] = set()
        self._elsewhere: dict[bytes, int] = {}
        self.told: dict[Change, None] | None = None
        """What changed, in order, since somebody who tells the other workers set it to an empty dictionary."""
        self._registered_at: dict[RegistrationKey, float] = {}
        self._gone: dict[bytes, float] = {}
        self._registrations: dict[RegistrationKey, Registration] = {}
        self._key_of_handle: dict[bytes, RegistrationKey] = {}
        self._key_of_id: dict[str, RegistrationKey] = {}
        self.changed: set[RegistrationKey] | None = None
        """Keys of registrations that changed since somebody who keeps a journal set it to an empty set."""
        self.changed_bindings: set[bytes] | None = None
        """AORs whose bindings changed since somebody who stores them set it to an empty set."""
        self._flows_of_key: dict[RegistrationKey, list[bytes]] = {}
        self._keys_of_flow: dict[bytes, set[RegistrationKey]] = {}
        self._keys_of_aor: dict[bytes, set[RegistrationKey]] = {}
        self._registration_expiries: Expiries[RegistrationKey] = Expiries()
        self._bindings: dict[bytes, tuple[Binding, ...]] = {}
        self._binding_total = 0
        self._aors_of_flow: dict[bytes, set[bytes]] = {}
        self._sources: Counter[tuple[Transport, Address]] = Counter()
        self._binding_expiries: Expiries[bytes] = Expiries()

    # Flows

    def flow_opened(self, flow: bytes) -> None:
        """A browser connection is open; ids are never reused (T1)."""
        self._live.add(flow)

    def flow_closed(self, flow: bytes, now: float) -> None:
        """It is gone; what was registered through it stays known until it expires or `reconnect_grace` is over."""
        self._live.discard(flow)
        if flow in self._keys_of_flow or flow in self._aors_of_flow:
            self._gone.setdefault(flow, now)
            self._tell(Gone(flow))
        for aor in self._aors_of_flow.get(flow, ()):
            self._schedule_bindings(aor)

    def has_flow(self, flow: bytes) -> bool:
        """True while the connection is open, at whatever worker."""
        return flow in self._live or flow in self._elsewhere

    def worker_of(self, flow: bytes) -> int | None:
        """The other worker that has this open flow, as far as it told us."""
        return self._elsewhere.get(flow)

    def gone_since(self, flow: bytes) -> float | None:
        """When a flow that something was registered through was closed; None while it is open or was never known."""
        return self._gone.get(flow)

    def _release_flow(self, flow: bytes) -> None:
        if flow not in self._keys_of_flow and flow not in self._aors_of_flow:
            self._gone.pop(flow, None)
            self._elsewhere.pop(flow, None)

    def _tell(self, change: Change) -> None:
        if self.told is None:
            return
        self.told.pop(change, None)
        self.told[change] = None

    # Registrations

    def remember(self, registration: Registration, now: float) -> bool:
        """A 2xx to REGISTER: the newer flow supersedes the older one (R4, R6). False when a table is full."""
        key = registration.key
        if registration.expires_at <= now:
            self._take_back(key)
            return True
        if not self._remember(registration, now):
            return False
        self._registered_at[key] = now
        self._tell(Registered(key))
        return True

    def restore(self, registration: Registration, now: float) -> bool:
        """A registration of an earlier process; whatever the other workers know of it is newer."""
        return self._remember(registration, now)

    def _remember(self, registration: Registration, now: float) -> bool:
        key = registration.key
        keys = self._keys_of_flow.get(registration.flow, ())
        if key not in keys and len(keys) >= MAX_REGISTRATIONS_PER_FLOW:
            return False
        if key not in self._registrations and len(self._registrations) >= self._max_registrations:
            return False
        expires_at = min(registration.expires_at, now + MAX_LIFETIME_SECONDS)
        self._drop_handle(key)
        self._registrations[key] = registration._replace(expires_at=expires_at)
        if registration.handle:
            self._key_of_handle[registration.handle] = key
        self._key_of_id[registration.id] = key
        if self.changed is not None:
            self.changed.add(key)
        self._registration_expiries.set(key, expires_at)
        self._keys_of_aor.setdefault(registration.aor, set()).add(key)
        self._add_flow(key, registration.flow, now)
        return True

    def forget(self, aor: bytes, instance: bytes, reg_id: int, contact: bytes) -> None:
        """The registration was taken back (R4)."""
        self._take_back(registration_key(aor, instance, reg_id, contact))

    def forget_all(self, aor: bytes) -> None:
        """`Contact: *` took back every registration of the AOR."""
        for key in tuple(self._keys_of_aor.get(aor, ())):
            self._take_back(key)

    def _take_back(self, key: RegistrationKey) -> None:
        self._forget_key(key)
        self._tell(Registered(key))

    def registrations_of(self, flow: bytes) -> list[Registration]:
        """What is registered through `flow` now; not what a newer flow took over."""
        found = (self._registrations[key] for key in self._keys_of_flow.get(flow, ()))
        return [registration for registration in found if registration.flow == flow]

    def newest_flow(self, aor: bytes, instance: bytes, reg_id: int, contact: bytes) -> bytes | None:
        """The open flow of that registration, or None (D3)."""
        registration = self._registrations.get(registration_key(aor, instance, reg_id, contact))
        return registration.flow if registration is not None and self.has_flow(registration.flow) else None

    def is_registered_through(self, flow: bytes) -> bool:
        """True when a registration is known by this flow, its newest one or an older."""
        return flow in self._keys_of_flow

    def registration(self, key: RegistrationKey) -> Registration | None:
        """The registration with this key."""
        return self._registrations.get(key)

    def is_registered(self, id_: str, now: float) -> bool:
        """True while the registration with this `id` lasts, whether its connection does or not (rule A5)."""
        key = self._key_of_id.get(id_)
        return key is not None and self._registrations[key].expires_at > now

    def registrations_for(self, aor: bytes) -> list[Registration]:
        """What is registered for an AOR, by whatever flow."""
        return [self._registrations[key] for key in self._keys_of_aor.get(aor, ())]

    def registration_keys(self) -> list[RegistrationKey]:
        """The keys of all registrations."""
        return list(self._registrations)

    def flows_of(self, key: RegistrationKey) -> list[bytes]:
        """The flows that a registration was made through, the newest last."""
        return list(self._flows_of_key.get(key, ()))

    def behind(self, handle: bytes) -> Registration | None:
        """The newest registration made under this handle (R5), or None."""
        key = self._key_of_handle.get(handle)
        return None if key is None else self._registrations.get(key)

    def heir(self, flow: bytes, contact: bytes | None = None) -> bytes | None:
        """The open flow that took over from `flow` (D3) for the client with this Contact URI, or None.

        A flow on which all is registered for one AOR is inherited whatever the Contact, without `contact` any flow is.
        """
        for key in self._clients(flow, contact):
            newest = self._registrations[key].flow
            if newest != flow and self.has_flow(newest):
                return newest
        return None

    def ancestors(self, flow: bytes) -> set[bytes]:
        """The older flows whose registrations `flow` took over."""
        found: set[bytes] = set()
        for key in self._keys_of_flow.get(flow, ()):
            if self._registrations[key].flow == flow:
                found.update(self._flows_of_key[key])
        return found - {flow}

    def superseded(self, old_flow: bytes, new_flow: bytes, contact: bytes | None = None) -> bool:
        """True when `new_flow` took over a registration that `old_flow` once had (D3, W2); `contact` as for `heir`."""
        if old_flow == new_flow:
            return False
        return any(self._registrations[key].flow == new_flow for key in self._clients(old_flow, contact))

    def _clients(self, flow: bytes, contact: bytes | None) -> Collection[RegistrationKey]:
        """Whose registrations count for a dialog: only those of one AOR inherit (D3).

        Behind another edge many users share a flow, and one who moves away takes along no call of the others.
        """
        keys = self._keys_of_flow.get(flow, ())
        if contact is None or len(keys) < 2 or len({key[0] for key in keys}) == 1:
            return keys
        return [key for key in keys if self._registrations[key].contact == contact]

    def _add_flow(self, key: RegistrationKey, flow: bytes, now: float) -> None:
        self._keys_of_flow.setdefault(flow, set()).add(key)
        flows = self._flows_of_key.setdefault(key, [])
        if flow in flows:
            flows.remove(flow)
        flows.append(flow)
        if len(flows) > MAX_FLOWS_PER_REGISTRATION:
            self._drop_key_of_flow(flows.pop(0), key)
        if not self.has_flow(flow):
            # The 2xx came when its browser had already left.
            self._gone.setdefault(flow, now)

    def _forget_key(self, key: RegistrationKey) -> None:
        self._drop_handle(key)
        registration = self._registrations.pop(key, None)
        if registration is None:
            return
        self._key_of_id.pop(registration.id, None)
        self._registered_at.pop(key, None)
        if self.changed is not None:
            self.changed.add(key)
        self._registration_expiries.discard(key)
        keys = self._keys_of_aor[registration.aor]
        keys.discard(key)
        if not keys:
            del self._keys_of_aor[registration.aor]
        for flow in self._flows_of_key.pop(key):
            self._drop_key_of_flow(flow, key)

    def _drop_handle(self, key: RegistrationKey) -> None:
        """A client has one handle, that of its last Contact: by two of them one INVITE would reach it twice (C3)."""
        registration = self._registrations.get(key)
        if registration is not None and self._key_of_handle.get(registration.handle) == key:
            del self._key_of_handle[registration.handle]

    def _drop_key_of_flow(self, flow: bytes, key: RegistrationKey) -> None:
        keys = self._keys_of_flow[flow]
        keys.discard(key)
        if not keys:
            del self._keys_of_flow[flow]
            self._release_flow(flow)

    # Bindings

    def bindings(self, aor: bytes) -> tuple[Binding, ...]:
        """The bindings of an AOR, oldest first; those that are over leave with the timer."""
        return self._bindings.get(aor, ())

    def aors_of(self, flow: bytes) -> frozenset[bytes]:
        """The AORs that have a binding through `flow` (G4)."""
        return frozenset(self._aors_of_flow.get(flow, ()))

    def has_source(self, hop: Hop) -> bool:
        """True when a phone registered from there (rules D1, G5)."""
        return (hop.transport, hop.address) in self._sources

    def replace_bindings(self, aor: bytes, bindings: Iterable[Binding], now: float) -> bool:
        """Make these the bindings of an AOR, all or none (RFC 3261 §10.3). False when the table is full."""
        new = tuple(bindings)
        old = self._bindings.get(aor, ())
        if not self._replace_bindings(aor, new, now):
            return False
        if self.told is not None:
            for binding in (*old, *new):
                if (binding in old) != (binding in new):
                    self._tell(Bound(binding.key))
        return True

    def _replace_bindings(self, aor: bytes, new: tuple[Binding, ...], now: float) -> bool:
        old = self._bindings.get(aor, ())
        total = self._binding_total + len(new) - len(old)
        if total > self._max_bindings and len(new) > len(old):
            return False
        self._binding_total = total
        if new:
            self._bindings[aor] = new
        else:
            self._bindings.pop(aor, None)
        old_flows = {binding.flow for binding in old if binding.flow}
        new_flows = {binding.flow for binding in new if binding.flow}
        for flow in new_flows - old_flows:
            self._aors_of_flow.setdefault(flow, set()).add(aor)
            if not self.has_flow(flow):
                self._gone.setdefault(flow, now)
        for flow in old_flows - new_flows:
            self._drop_aor_of_flow(flow, aor)
        self._sources.update(_sources_of(new))
        for source in _sources_of(old):
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]
        self._schedule_bindings(aor)
        if self.changed_bindings is not None:
            self.changed_bindings.add(aor)
        return True

    def restore_bindings(self, bindings: Iterable[Binding], now: float) -> None:
        """Take up what an earlier process stored. Its browsers are gone, and have `reconnect_grace` to come back.

        Dialogs of theirs are theirs again then (rule D3); phones are where they were (G5).
        """
        by_aor: dict[bytes, list[Binding]] = {}
        for binding in bindings:
            if binding.expires_at > now:
                by_aor.setdefault(binding.aor, []).append(binding)
        for aor, found in by_aor.items():
            if self.replace_bindings(aor, found, now):
                for one in found:
                    if one.flow:
                        key = one.aor, one.instance, one.reg_id, one.contact
                        self.restore(Registration(*key, one.flow, one.expires_at), now)

    def ends_at(self, binding: Binding) -> float:
        """When a binding is over: it expires, or its flow has been gone for `reconnect_grace` (G2)."""
        gone_since = self._gone.get(binding.flow) if binding.flow else None
        return binding.expires_at if gone_since is None else min(binding.expires_at, gone_since + self.reconnect_grace)

    def _schedule_bindings(self, aor: bytes) -> None:
        bindings = self._bindings.get(aor)
        if bindings:
            self._binding_expiries.set(aor, min(self.ends_at(binding) for binding in bindings))
        else:
            self._binding_expiries.discard(aor)

    def _drop_aor_of_flow(self, flow: bytes, aor: bytes) -> None:
        aors = self._aors_of_flow[flow]
        aors.discard(aor)
        if not aors:
            del self._aors_of_flow[flow]
            self._release_flow(flow)

    # Time and counts

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called, or None."""
        times = (self._registration_expiries.next_timer(), self._binding_expiries.next_timer())
        return min((time for time in times if time is not None), default=None)

    def handle_timer(self, now: float) -> list[Registration | Binding]:
        """Forget what has ended; returns it."""
        ended: list[Registration | Binding] = []
        for key in self._registration_expiries.due(now):
            ended.append(self._registrations[key])
            self._forget_key(key)
        for aor in self._binding_expiries.due(now):
            kept: list[Binding] = []
            for binding in self._bindings[aor]:
                (kept if self.ends_at(binding) > now else ended).append(binding)
            self._replace_bindings(aor, tuple(kept), now)  # the other workers' clocks say the same
        return ended

    # What the other workers tell

    def learn_flow(self, flow: bytes, worker: int) -> None:
        """Another worker has this open flow; what is registered through it follows."""
        if flow not in self._live:
            self._elsewhere[flow] = worker
            self._gone.pop(flow, None)

    def learn_gone(self, flow: bytes, at: float) -> None:
        """A flow of another worker was closed at `at`."""
        if flow in self._live:
            return
        self._elsewhere.pop(flow, None)
        if flow in self._keys_of_flow or flow in self._aors_of_flow:
            self._gone.setdefault(flow, at)
        for aor in self._aors_of_flow.get(flow, ()):
            self._schedule_bindings(aor)

    def learn_registration(self, registration: Registration, flows: Iterable[bytes], at: float, now: float) -> bool:
        """A registration as another worker knows it since `at`, made through `flows`, the newest last.

        False when we know better, or a table is full. Older flows that only we know stay with it (D3).
        """
        key = registration.key
        if registration.expires_at <= now or self._registered_at.get(key, at) > at:
            return False
        for flow in flows:
            if not self._remember(registration._replace(flow=flow), now):
                self._release_flow(flow)
                return False
        self._registered_at[key] = at
        return True

    def learn_taken_back(self, key: RegistrationKey, at: float) -> None:
        """A registration was taken back at another worker at `at`."""
        if self._registered_at.get(key, at) <= at:
            self._forget_key(key)

    def learn_binding(self, binding: Binding, now: float) -> bool:
        """A binding as another worker knows it. False when we know a newer one, or the table is full."""
        known = self._bindings.get(binding.aor, ())
        same = next((one for one in known if one.key == binding.key), None)
        is_older = same is not None and same.registered_at > binding.registered_at
        others = tuple(one for one in known if one is not same)
        if is_older or binding.expires_at <= now or not self._replace_bindings(binding.aor, (*others, binding), now):
            self._release_flow(binding.flow)
            return False
        return True

    def learn_unbound(self, key: BindingKey, at: float, now: float) -> None:
        """A binding was removed at another worker at `at`."""
        known = self._bindings.get(key[0], ())
        kept = tuple(one for one in known if one.key != key or one.registered_at > at)
        if len(kept) < len(known):
            self._replace_bindings(key[0], kept, now)

    def learn_restart(self, worker: int, now: float) -> set[bytes]:
        """Another worker begins anew: its flows are gone. Returns those that we knew."""
        lost = {flow for flow, of in self._elsewhere.items() if of == worker}
        for flow in lost:
            self.learn_gone(flow, now)
        return lost

    # What the other workers are told

    def is_here(self, flow: bytes) -> bool:
        """True while the connection is open at this worker."""
        return flow in self._live

    def registered_at(self, key: RegistrationKey) -> float:
        """Since when the registration with this key is known."""
        return self._registered_at.get(key, 0.0)

    def binding(self, key: BindingKey) -> Binding | None:
        """The binding with this key."""
        return next((one for one in self._bindings.get(key[0], ()) if one.key == key), None)

    def everything(self) -> Iterator[Change]:
        """All that there is to tell to a worker that knows nothing."""
        for key in self._registrations:
            yield Registered(key)
        for bindings in self._bindings.values():
            for binding in bindings:
                yield Bound(binding.key)

    def counts(self) -> dict[str, int]:
        """Sizes for /status."""
        return {
            "flows": len(self._live),
            "registrations": len(self._registrations),
            "bindings": self._binding_total,
            "addresses_of_record": len(self._bindings),
        }
