"""TURN registration id -> the peers that its calls allow (rule P6): what signalling tells and TURN asks. Pure.

`sip/calls` opens and closes addresses as SDP passes and calls end; TURN asks for every permission, channel and Send,
each time by one look-up. Addresses are counted, as two calls may name the same one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from wsgate.addr import ANY_PORT, Address

_Key = TypeVar("_Key", str, Address)

ADDRESSES_PER_REGISTRATION_MAX = 4096
"""Addresses with port that all calls of one registration may open together; further ones stay closed."""


class _Open:
    """What is open for one registration, with how many descriptions name it."""

    __slots__ = ("addresses", "hosts")

    def __init__(self) -> None:
        self.addresses: Counter[Address] = Counter()
        self.hosts: Counter[str] = Counter()


class CallPeers:
    """The addresses that stand in the other party's SDP, by registration id. Hosts are numeric and canonical."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._narrowed: set[str] = set()
        self._elsewhere: dict[str, dict[int, frozenset[Address]]] = {}
        self.told: dict[str, None] | None = None
        """Registrations for which something changed at this worker, since somebody who tells the others emptied it."""

    def __len__(self) -> int:
        return len(self._open)

    def open(self, registration: str, addresses: Iterable[Address]) -> frozenset[Address]:
        """Allow these, port ANY_PORT for all of a host. Returns what is to be closed again, which may be less."""
        self._tell(registration)
        return self._allow(registration, addresses)

    def _tell(self, registration: str) -> None:
        if self.told is not None:
            self.told[registration] = None

    def _allow(self, registration: str, addresses: Iterable[Address]) -> frozenset[Address]:
        found = self._open.get(registration) or _Open()
        taken = set()
        for address in addresses:
            if address in found.addresses or len(found.addresses) < ADDRESSES_PER_REGISTRATION_MAX:
                found.addresses[address] += 1
                found.hosts[address.host] += 1
                taken.add(address)
        if taken:
            self._open[registration] = found
        return frozenset(taken)

    def close(self, registration: str, addresses: Iterable[Address]) -> None:
        """Take back what `open` returned."""
        self._tell(registration)
        self._disallow(registration, addresses)

    def _disallow(self, registration: str, addresses: Iterable[Address]) -> None:
        found = self._open.get(registration)
        if found is None:
            return
        for address in addresses:
            _take_one(found.addresses, address)
            _take_one(found.hosts, address.host)
            if address not in found.addresses:
                self._narrowed.add(registration)
        if not found.addresses:
            del self._open[registration]

    def allows_host(self, registration: str, host: str) -> bool:
        """Is any port of this host allowed?"""
        found = self._open.get(registration)
        return found is not None and host in found.hosts

    def allows(self, registration: str, host: str, port: int) -> bool:
        """Is this address and port allowed?"""
        found = self._open.get(registration)
        if found is None:
            return False
        return (host, port) in found.addresses or (host, ANY_PORT) in found.addresses

    # Workers among each other

    def learn(self, worker: int, registration: str, addresses: frozenset[Address]) -> None:
        """All that the calls at another worker allow for this registration now."""
        by_worker = self._elsewhere.pop(registration, {})
        known = by_worker.pop(worker, frozenset())
        opened = self._allow(registration, addresses - known)
        self._disallow(registration, known - addresses)
        now_open = (known & addresses) | opened
        if now_open:
            by_worker[worker] = now_open
        if by_worker:
            self._elsewhere[registration] = by_worker

    def learn_restart(self, worker: int) -> None:
        """Another worker begins anew: it knows of no calls."""
        for registration in [one for one, by_worker in self._elsewhere.items() if worker in by_worker]:
            self.learn(worker, registration, frozenset())

    def everybody(self) -> list[str]:
        """The registrations for which something is open."""
        return list(self._open)

    def opened_here(self, registration: str) -> list[Address]:
        """What the calls at this worker allow for this registration."""
        found = self._open.get(registration)
        if found is None:
            return []
        elsewhere: Counter[Address] = Counter()
        for addresses in self._elsewhere.get(registration, {}).values():
            elsewhere.update(addresses)
        return [address for address, number in found.addresses.items() if number > elsewhere[address]]

    def take_narrowed(self) -> set[str]:
        """The registrations for which something was closed since this was last asked."""
        narrowed, self._narrowed = self._narrowed, set()
        return narrowed


def _take_one(counter: Counter[_Key], key: _Key) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
