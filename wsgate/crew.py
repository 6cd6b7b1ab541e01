"""The addresses of all workers: where they reach each other, and what of them the outside may not reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wsgate.addr import Address, canonical_host
from wsgate.handover import Crew

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What stands for every address of this machine, and the one by which another process on it reaches such a socket."""


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
