"""The addresses of this gateway and of its other workers: where they reach each other, and what others call us."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence

import psutil

from wsgate.addr import Address, canonical_host
from wsgate.config import Configuration
from wsgate.handover import Crew, Endpoint
from wsgate.log import logger
from wsgate.settings import Switch
from wsgate.sip.names import Names

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What stands for every address of this machine, and the one by which another process on it reaches such a socket."""


def own_hosts() -> list[str]:
    """The IP addresses of this machine, that of the default route first, loopback and link-local last."""
    hosts = []
    for family, probe in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect((probe, 9))  # a datagram socket sends nothing by this
            except OSError:
                continue
            hosts.append(sock.getsockname()[0])
    for addresses in psutil.net_if_addrs().values():
        hosts += [
            canonical_host(entry.address.partition("%")[0])
            for entry in addresses
            if entry.family in (socket.AF_INET, socket.AF_INET6)
        ]
    unique = list(dict.fromkeys(hosts))
    return sorted(unique, key=lambda host: host.startswith(("127.", "::1", "fe80:")))


def hosts_of(bound: str, own_hosts: Sequence[str]) -> list[str]:
    """The addresses that a socket bound there has, wildcards written out."""
    if bound not in WILDCARDS:
        return [canonical_host(bound)]
    return [canonical_host(own) for own in own_hosts if (":" in own) == (":" in bound)]


def of_kind(crew: Crew, kind: str, worker: int) -> list[Address]:
    """What the sockets of this kind of a worker are bound to."""
    return [bound for endpoint, bound in crew.addresses.items() if (endpoint.kind, endpoint.worker) == (kind, worker)]


def backend_sides(crew: Crew) -> dict[int, list[Address]]:
    """Where the backend side of each other worker is reached from this machine, UDP and TCP (T3)."""
    return {
        other: [Address(WILDCARDS.get(host, host), port) for host, port in of_kind(crew, "sip-udp", other)]
        for other in crew.outlets
    }


def addresses_of_others(crew: Crew, own_hosts: Sequence[str]) -> set[Address]:
    """Every address and port of the backend sides of the other workers."""
    return set(_of_others(crew, own_hosts))


def _of_others(crew: Crew, own_hosts: Sequence[str]) -> Iterator[Address]:
    for endpoint, (host, port) in crew.addresses.items():
        if endpoint.worker != crew.number and not endpoint.shared:
            yield from (Address(own, port) for own in hosts_of(host, own_hosts))


class OwnAddresses:
    """What the sockets of one worker are bound to, and what they are called. `hosts` are those of this machine."""

    def __init__(
        self,
        configuration: Configuration,
        crew: Crew,
        endpoints: Mapping[Endpoint, socket.socket],
        hosts: Sequence[str],
    ) -> None:
        self._configuration = configuration
        self._crew = crew
        self._hosts = hosts
        self._bound = {endpoint: Address(*sock.getsockname()[:2]) for endpoint, sock in endpoints.items()}

    def own(self) -> set[Address]:
        """Every address and port that this worker listens on, wildcards written out."""
        return {Address(own, port) for host, port in self._bound.values() for own in hosts_of(host, self._hosts)}

    def of_all_workers(self) -> set[Address]:
        """The same with the backend sides of the other workers: nobody is forwarded or relayed there."""
        return self.own() | addresses_of_others(self._crew, self._hosts)

    def names(self) -> Names:
        """What is ours in a Route or Request-URI, and what we write (rule V1). `auto` goes to the log."""
        settings = self._configuration.sip
        advertise = self._advertised("sip-udp", self._crew.number)
        if not advertise:
            advertise = [Address(host, 5060) for host in self._hosts[:1]]
        public = settings.public or self._auto_public(advertise[0].host)
        if settings.advertise is None:
            logger.info("[sip] advertise is %s", ", ".join(map(str, advertise)))
        if settings.public is None:
            logger.info("[sip] public is %s", public)
        return Names(
            advertise=advertise,
            advertise_tls=self._advertised("sip-tls", self._crew.number),
            public=public,
            aliases=settings.aliases,
            # The backend sides of the other workers are ours too: what was meant for them is understood (T3).
            listeners=self.of_all_workers() | set(self._advertised_by_others()),
            first=dict(self._of_first()),
        )

    def _advertised_by_others(self) -> Iterator[Address]:
        for other in self._crew.outlets:
            for kind in ("sip-udp", "sip-tls"):
                yield from self._advertised(kind, other)

    def _of_first(self) -> Iterator[tuple[Address, Address]]:
        """What the first worker advertises, for each advertised address of this one (rule R5)."""
        for kind in ("sip-udp", "sip-tls"):
            own, first = (self._advertised(kind, worker) for worker in (self._crew.number, 0))
            yield from zip(own, first, strict=True)

    def _advertised(self, kind: str, worker: int) -> list[Address]:
        """What backends see of a worker's sockets: a name of `advertise` of the family of each, else its address."""
        found = []
        for host, port in self._of_kind(kind, worker):
            named = [own for own in self._configuration.sip.advertise or () if (":" in own) == (":" in host)]
            choice = named or ([host] if host not in WILDCARDS else self._hosts)
            family = [own for own in choice if (":" in own) == (":" in host)]
            found += [Address(own, port) for own in family[:1]]
        return found

    def _of_kind(self, kind: str, worker: int) -> list[Address]:
        if worker != self._crew.number:
            return of_kind(self._crew, kind, worker)
        return [bound for endpoint, bound in self._bound.items() if endpoint.kind == kind]

    def _auto_public(self, host: str) -> Address:
        """The first listener with TLS, else the first of all, by a name of its own where it is bound to one."""
        listeners = self._configuration.listeners
        for name in sorted(listeners, key=lambda name: listeners[name].tls is Switch.OFF):
            for endpoint, (bound, port) in self._bound.items():
                if (endpoint.kind, endpoint.name) == ("listener", name):
                    return Address(host if bound in WILDCARDS else canonical_host(bound), port)
        return Address(host, 443)
