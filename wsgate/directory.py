"""What the workers know of each other's flows, registrations and bindings (DESIGN.md, Processes). Pure.

The narrow interface to three tables (`known_flows`, `registrations`, `bindings`); every call is synchronous and never
blocks. With several workers each has its own, notes in `told` what changed in it, and learns what changed in theirs
(`learn_...`; sharing.py has the words for it).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from wsgate.addr import Hop
from wsgate.bindings import MAX_BINDINGS, Binding, BindingKey, Bindings
from wsgate.known_flows import KnownFlows
from wsgate.registrations import MAX_REGISTRATIONS, Registration, RegistrationKey, Registrations, registration_key


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


class Directory:
    """Flows, registrations and bindings, as one worker knows them. `reconnect_grace` is of [sip]: seconds (D3, G2)."""

    def __init__(
        self,
        reconnect_grace: float = 60.0,
        *,
        max_registrations: int = MAX_REGISTRATIONS,
        max_bindings: int = MAX_BINDINGS,
    ) -> None:
        self.told: dict[Change, None] | None = None
        """What changed, in order, since somebody who tells the other workers set it to an empty dictionary."""
        self.changed: set[RegistrationKey] | None = None
        """Keys of registrations that changed since somebody who keeps a journal set it to an empty set."""
        self.changed_bindings: set[bytes] | None = None
        """AORs whose bindings changed since somebody who stores them set it to an empty set."""
        self._flows = KnownFlows()
        self._registrations = Registrations(
            self._flows,
            max_registrations,
            reconnect_grace,
            changed=self._registration_changed,
            release=self._release_flow,
        )
        self._bindings = Bindings(
            self._flows, max_bindings, reconnect_grace, changed=self._bindings_changed, release=self._release_flow
        )

    def _registration_changed(self, key: RegistrationKey) -> None:
        if self.changed is not None:
            self.changed.add(key)

    def _bindings_changed(self, aor: bytes) -> None:
        if self.changed_bindings is not None:
            self.changed_bindings.add(aor)

    # Flows

    def flow_opened(self, flow: bytes) -> None:
        """A browser connection is open; ids are never reused (T1)."""
        self._flows.here.add(flow)

    def flow_closed(self, flow: bytes, now: float) -> None:
        """It is gone; what was registered through it stays known until it expires or `reconnect_grace` is over."""
        if self._flow_gone(flow, now):
            self._tell(Gone(flow))

    def has_flow(self, flow: bytes) -> bool:
        """True while the connection is open, at whatever worker."""
        return self._flows.is_open(flow)

    def is_here(self, flow: bytes) -> bool:
        """True while the connection is open at this worker."""
        return flow in self._flows.here

    def worker_of(self, flow: bytes) -> int | None:
        """The other worker that has this open flow, as far as it told us."""
        return self._flows.worker_of(flow)

    def gone_since(self, flow: bytes) -> float | None:
        """When a flow that something was registered through was closed; None while it is open or was never known."""
        return self._flows.gone_since(flow)

    def _flow_gone(self, flow: bytes, at: float) -> bool:
        """It was closed at `at`. True when something is known by it."""
        self._flows.close(flow)
        if not self._is_used(flow):
            return False
        self._flows.note_gone(flow, at)
        self._bindings.flow_gone(flow)
        return True

    def _is_used(self, flow: bytes) -> bool:
        return self._registrations.is_known_by(flow) or self._bindings.is_known_by(flow)

    def _release_flow(self, flow: bytes) -> None:
        if not self._is_used(flow):
            self._flows.forget(flow)

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
            self._take_back(key, now)
            return True
        if not self._registrations.remember(registration, now):
            return False
        self._registrations.date(key, now)
        self._tell(Registered(key))
        return True

    def restore(self, registration: Registration, now: float) -> bool:
        """A registration of an earlier process; whatever the other workers know of it is newer."""
        return self._registrations.remember(registration, now)

    def forget(self, aor: bytes, instance: bytes, reg_id: int, contact: bytes, now: float) -> None:
        """The registration was taken back (R4)."""
        self._take_back(registration_key(aor, instance, reg_id, contact), now)

    def forget_all(self, aor: bytes, now: float) -> None:
        """`Contact: *` took back every registration of the AOR."""
        for key in self._registrations.keys_of(aor):
            self._take_back(key, now)

    def _take_back(self, key: RegistrationKey, now: float) -> None:
        self._registrations.forget(key, now)
        self._tell(Registered(key))

    def registration(self, key: RegistrationKey) -> Registration | None:
        """The registration with this key."""
        return self._registrations.get(key)

    def registration_keys(self) -> list[RegistrationKey]:
        """The keys of all registrations."""
        return self._registrations.keys()

    def registered_at(self, key: RegistrationKey) -> float:
        """Since when the registration with this key is known."""
        return self._registrations.registered_at(key)

    def registrations_of(self, flow: bytes) -> list[Registration]:
        """What is registered through `flow` now; not what a newer flow took over."""
        return self._registrations.through(flow)

    def registrations_for(self, aor: bytes) -> list[Registration]:
        """What is registered for an AOR, by whatever flow."""
        return self._registrations.of_aor(aor)

    def is_registered(self, id_: str, now: float) -> bool:
        """True while the registration with this `id` lasts, whether its connection does or not (rule A5)."""
        return self._registrations.is_registered(id_, now)

    def is_registered_through(self, flow: bytes) -> bool:
        """True when a registration, also one that is over, is known by this flow, its newest one or an older."""
        return self._registrations.is_known_by(flow)

    def flows_of(self, key: RegistrationKey) -> list[bytes]:
        """The flows that a registration was made through, the newest last."""
        return self._registrations.flows_of(key)

    def newest_flow(self, aor: bytes, instance: bytes, reg_id: int, contact: bytes) -> bytes | None:
        """The open flow of that registration, or None (D3)."""
        return self._registrations.newest_flow(aor, instance, reg_id, contact)

    def behind(self, handle: bytes) -> Registration | None:
        """The newest registration made under this handle (R5), or None."""
        return self._registrations.behind(handle)

    def heir(self, flow: bytes, contact: bytes | None = None) -> bytes | None:
        """The open flow that took over from `flow` (D3) for the client with this Contact URI, or None.

        A flow on which all is registered for one AOR is inherited whatever the Contact, without `contact` any flow is.
        """
        return self._registrations.heir(flow, contact)

    def ancestors(self, flow: bytes) -> set[bytes]:
        """The older flows whose registrations `flow` took over."""
        return self._registrations.ancestors(flow)

    def superseded(self, old_flow: bytes, new_flow: bytes, contact: bytes | None = None) -> bool:
        """True when `new_flow` took over a registration that `old_flow` once had (D3, W2); `contact` as for `heir`."""
        return self._registrations.superseded(old_flow, new_flow, contact)

    # Bindings

    def bindings(self, aor: bytes) -> tuple[Binding, ...]:
        """The bindings of an AOR, oldest first; those that are over leave with the timer."""
        return self._bindings.of_aor(aor)

    def binding(self, key: BindingKey) -> Binding | None:
        """The binding with this key."""
        return self._bindings.get(key)

    def aors_of(self, flow: bytes) -> frozenset[bytes]:
        """The AORs that have a binding through `flow` (G4)."""
        return self._bindings.aors_of(flow)

    def has_source(self, hop: Hop) -> bool:
        """True when a phone registered from there (rules D1, G5)."""
        return self._bindings.has_source(hop)

    def ends_at(self, binding: Binding) -> float:
        """When a binding is over: it expires, or its flow has been gone for `reconnect_grace` (G2)."""
        return self._bindings.ends_at(binding)

    def replace_bindings(self, aor: bytes, bindings: Iterable[Binding], now: float) -> bool:
        """Make these the bindings of an AOR, all or none (RFC 3261 §10.3). False when the table is full."""
        new = tuple(bindings)
        old = self._bindings.of_aor(aor)
        if not self._bindings.replace(aor, new, now):
            return False
        if self.told is not None:
            for binding in (*old, *new):
                if (binding in old) != (binding in new):
                    self._tell(Bound(binding.key))
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

    # Time and counts

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called, or None."""
        times = (self._registrations.next_timer(), self._bindings.next_timer())
        return min((time for time in times if time is not None), default=None)

    def handle_timer(self, now: float) -> list[Registration | Binding]:
        """Forget what has ended; returns it. Nobody is told: the other workers' clocks say the same."""
        return [*self._registrations.expire(now), *self._bindings.expire(now)]

    def counts(self) -> dict[str, int]:
        """Sizes for /status."""
        return {
            "flows": len(self._flows.here),
            "registrations": len(self._registrations),
            "bindings": len(self._bindings),
            "addresses_of_record": self._bindings.aors,
        }

    # What the other workers tell

    def learn_flow(self, flow: bytes, worker: int) -> None:
        """Another worker has this open flow; what is registered through it follows."""
        self._flows.learn(flow, worker)

    def learn_gone(self, flow: bytes, at: float) -> None:
        """A flow of another worker was closed at `at`."""
        if not self.is_here(flow):
            self._flow_gone(flow, at)

    def learn_registration(self, registration: Registration, flows: Iterable[bytes], at: float, now: float) -> bool:
        """A registration as another worker knows it since `at`, made through `flows`, the newest last.

        False when we know better, or a table is full. Older flows that only we know stay with it (D3).
        """
        return self._registrations.learn(registration, flows, at, now)

    def learn_taken_back(self, key: RegistrationKey, at: float) -> None:
        """A registration was taken back at another worker at `at`."""
        if self._registrations.registered_at(key) <= at:
            self._registrations.forget(key, at)

    def learn_binding(self, binding: Binding, now: float) -> bool:
        """A binding as another worker knows it. False when we know a newer one, or the table is full."""
        return self._bindings.learn(binding, now)

    def learn_unbound(self, key: BindingKey, at: float, now: float) -> None:
        """A binding was removed at another worker at `at`."""
        self._bindings.learn_removed(key, at, now)

    def learn_restart(self, worker: int, now: float) -> set[bytes]:
        """Another worker begins anew: its flows are gone. Returns those that we knew."""
        lost = self._flows.of_worker(worker)
        for flow in lost:
            self.learn_gone(flow, now)
        return lost

    # What the other workers are told

    def everything(self) -> Iterator[Change]:
        """All that there is to tell to a worker that knows nothing."""
        yield from map(Registered, self._registrations.keys())
        for binding in self._bindings:
            yield Bound(binding.key)
