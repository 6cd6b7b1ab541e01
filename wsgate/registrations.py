"""Who registered where through which flow, whatever registrar said yes (rules R4, R6, D3, W2). Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from wsgate.expiries import Expiries
from wsgate.known_flows import KnownFlows

MAX_REGISTRATIONS = 200_000
"""Registrations that are remembered; further ones still pass through, but their flows are not rebound."""
MAX_REGISTRATIONS_PER_FLOW = 64
"""Registrations that one flow may have remembered."""
MAX_FLOWS_PER_REGISTRATION = 16
"""Flows, the newest included, that one registration is known by; the oldest is forgotten first."""
MAX_LIFETIME_SECONDS = 30 * 86400
"""A registrar of another may promise more; we remember no longer."""

RegistrationKey = tuple[bytes, bytes, int]
"""AOR, instance, reg-id; or AOR, Contact URI, -1 where the client gives no instance (D3)."""


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


def registration_key(aor: bytes, instance: bytes, reg_id: int, contact: bytes) -> RegistrationKey:
    """AOR, instance and reg-id; AOR and Contact URI where a client gives no instance (D3)."""
    return (aor, instance, reg_id) if instance else (aor, contact, -1)


class Registrations:
    """The table of registrations, at most `limit` with those that are over.

    `changed` is called with each that came, changed or went, `release` with a flow that none is known by any more.
    Of one that is over the flows stay known until the newest has been gone for `grace_seconds`: a client whose
    registration ran out while it was away, or that takes all back before it registers anew, is the same one still (D3).
    """

    def __init__(
        self,
        flows: KnownFlows,
        limit: int,
        grace_seconds: float,
        *,
        changed: Callable[[RegistrationKey], None],
        release: Callable[[bytes], None],
    ) -> None:
        self._flows = flows
        self._release = release
        self._limit = limit
        self._grace_seconds = grace_seconds
        self._changed = changed
        self._registrations: dict[RegistrationKey, Registration] = {}
        self._registered_at: dict[RegistrationKey, float] = {}
        self._key_of_handle: dict[bytes, RegistrationKey] = {}
        self._key_of_id: dict[str, RegistrationKey] = {}
        self._flows_of_key: dict[RegistrationKey, list[bytes]] = {}
        self._keys_of_flow: dict[bytes, set[RegistrationKey]] = {}
        self._keys_of_aor: dict[bytes, set[RegistrationKey]] = {}
        self._expiries: Expiries[RegistrationKey] = Expiries()
        self._past: dict[RegistrationKey, None] = {}
        self._past_expiries: Expiries[RegistrationKey] = Expiries()

    def __len__(self) -> int:
        return len(self._registrations)

    def get(self, key: RegistrationKey) -> Registration | None:
        """The registration with this key."""
        return self._registrations.get(key)

    def keys(self) -> list[RegistrationKey]:
        """The keys of all registrations."""
        return list(self._registrations)

    def keys_of(self, aor: bytes) -> list[RegistrationKey]:
        """The keys of those of an AOR."""
        return list(self._keys_of_aor.get(aor, ()))

    def registered_at(self, key: RegistrationKey) -> float:
        """Since when the registration with this key is known."""
        return self._registered_at.get(key, 0.0)

    def is_known_by(self, flow: bytes) -> bool:
        """True when a registration, also one that is over, is known by this flow, its newest one or an older."""
        return flow in self._keys_of_flow

    def remember(self, registration: Registration, now: float) -> bool:
        """Take in a registration; the newer flow supersedes the older one (R4, R6). False when a table is full."""
        key = registration.key
        known = self._registrations.get(key)
        expires_at = min(registration.expires_at, now + MAX_LIFETIME_SECONDS)
        if known is not None and known[:5] == registration[:5] and known.handle == registration.handle:
            # Refreshed, as nearly always: nothing moves but the end.
            self._take_in(key, registration, expires_at)
            self._flows.note_use(registration.flow, now)
            return True
        if known is None and len(self._registrations) >= self._limit:
            return False
        if not self._has_room(key, registration.flow):
            return False
        self._drop_handle(key)
        self._take_in(key, registration, expires_at)
        if known is None:
            self._key_of_id[registration.id] = key
            self._past.pop(key, None)
            self._past_expiries.discard(key)
        self._keys_of_aor.setdefault(registration.aor, set()).add(key)
        self._add_flow(key, registration.flow, now)
        return True

    def _has_room(self, key: RegistrationKey, flow: bytes) -> bool:
        """True when this one may be known by this flow; one that is over goes first."""
        if key not in self._flows_of_key and len(self._flows_of_key) >= self._limit:
            self._drop_past(next(iter(self._past)))
        keys = self._keys_of_flow.get(flow, ())
        if key in keys or len(keys) < MAX_REGISTRATIONS_PER_FLOW:
            return True
        over = next((other for other in keys if other in self._past), None)
        if over is None:
            return False
        self._drop_past(over)
        return True

    def _take_in(self, key: RegistrationKey, registration: Registration, expires_at: float) -> None:
        if registration.expires_at != expires_at:
            registration = registration._replace(expires_at=expires_at)
        self._registrations[key] = registration
        if registration.handle:
            self._key_of_handle[registration.handle] = key
        self._changed(key)
        self._expiries.set(key, expires_at)

    def date(self, key: RegistrationKey, at: float) -> None:
        """It is as it is since `at`: of what workers tell each other the later word counts."""
        self._registered_at[key] = at

    def learn(self, registration: Registration, flows: Iterable[bytes], at: float, now: float) -> bool:
        """A registration as another worker knows it since `at`, made through `flows`, the newest last.

        False when we know better, or a table is full. Older flows that only we know stay with it (D3).
        """
        key = registration.key
        if registration.expires_at <= now or self._registered_at.get(key, at) > at:
            self._release(registration.flow)
            return False
        for flow in flows:
            if not self.remember(registration._replace(flow=flow), now):
                self._release(flow)
                return False
        self._registered_at[key] = at
        return True

    def forget(self, key: RegistrationKey, now: float) -> None:
        """The registration is over. Its flows stay known for as long as the same client may come back to its calls."""
        self._drop_handle(key)
        registration = self._registrations.pop(key, None)
        if registration is None:
            return
        self._key_of_id.pop(registration.id, None)
        self._registered_at.pop(key, None)
        self._changed(key)
        self._expiries.discard(key)
        keys = self._keys_of_aor[registration.aor]
        keys.discard(key)
        if not keys:
            del self._keys_of_aor[registration.aor]
        self._past[key] = None
        self._keep_past(key, now)

    def _keep_past(self, key: RegistrationKey, now: float) -> None:
        """One that is over: keep its flows until the newest has been gone for the time of grace."""
        gone_since = self._flows.gone_since(self._flows_of_key[key][-1])
        until = (now if gone_since is None else gone_since) + self._grace_seconds
        if until > now:
            self._past_expiries.set(key, until)
        else:
            self._drop_past(key)

    def _drop_past(self, key: RegistrationKey) -> None:
        del self._past[key]
        self._past_expiries.discard(key)
        for flow in self._flows_of_key.pop(key):
            self._drop_key_of_flow(flow, key)

    def expire(self, now: float) -> list[Registration]:
        """Forget those that have ended; returns them."""
        ended = [self._registrations[key] for key in self._expiries.due(now)]
        for registration in ended:
            self.forget(registration.key, now)
        for key in self._past_expiries.due(now):
            self._keep_past(key, now)
        return ended

    def next_timer(self) -> float | None:
        """When the next one ends, or the time of one that has ended; None where there is none."""
        times = (self._expiries.next_timer(), self._past_expiries.next_timer())
        return min((time for time in times if time is not None), default=None)

    def through(self, flow: bytes) -> list[Registration]:
        """What is registered through `flow` now; not what a newer flow took over."""
        found = map(self._registrations.get, self._keys_of_flow.get(flow, ()))
        return [registration for registration in found if registration is not None and registration.flow == flow]

    def newest_flow(self, aor: bytes, instance: bytes, reg_id: int, contact: bytes) -> bytes | None:
        """The open flow of that registration, or None (D3)."""
        registration = self._registrations.get(registration_key(aor, instance, reg_id, contact))
        return registration.flow if registration is not None and self._flows.is_open(registration.flow) else None

    def is_registered(self, id_: str, now: float) -> bool:
        """True while the registration with this `id` lasts, whether its connection does or not (rule A5)."""
        key = self._key_of_id.get(id_)
        return key is not None and self._registrations[key].expires_at > now

    def of_aor(self, aor: bytes) -> list[Registration]:
        """What is registered for an AOR, by whatever flow."""
        return [self._registrations[key] for key in self._keys_of_aor.get(aor, ())]

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
        for registration in self._clients(flow, contact):
            if registration.flow != flow and self._flows.is_open(registration.flow):
                return registration.flow
        return None

    def ancestors(self, flow: bytes) -> set[bytes]:
        """The older flows whose registrations `flow` took over."""
        found: set[bytes] = set()
        for key in self._keys_of_flow.get(flow, ()):
            if self._flows_of_key[key][-1] == flow:
                found.update(self._flows_of_key[key])
        return found - {flow}

    def superseded(self, old_flow: bytes, new_flow: bytes, contact: bytes | None = None) -> bool:
        """True when `new_flow` took over a registration that `old_flow` once had (D3, W2); `contact` as for `heir`."""
        if old_flow == new_flow:
            return False
        return any(registration.flow == new_flow for registration in self._clients(old_flow, contact))

    def _clients(self, flow: bytes, contact: bytes | None) -> list[Registration]:
        """Whose registrations count for a dialog: only those of one AOR inherit (D3).

        Behind another edge many users share a flow, and one who moves away takes along no call of the others.
        """
        keys = self._keys_of_flow.get(flow, ())
        found = [registration for key in keys if (registration := self._registrations.get(key)) is not None]
        if contact is None or len(keys) < 2 or len({key[0] for key in keys}) == 1:
            return found
        return [registration for registration in found if registration.contact == contact]

    def _add_flow(self, key: RegistrationKey, flow: bytes, now: float) -> None:
        self._keys_of_flow.setdefault(flow, set()).add(key)
        flows = self._flows_of_key.setdefault(key, [])
        if flow in flows:
            flows.remove(flow)
        flows.append(flow)
        if len(flows) > MAX_FLOWS_PER_REGISTRATION:
            self._drop_key_of_flow(flows.pop(0), key)
        self._flows.note_use(flow, now)

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
            self._release(flow)
