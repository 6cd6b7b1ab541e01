"""The addresses of all workers, and their parts of the relay ports."""

from __future__ import annotations

import pytest

from wsgate.addr import Address
from wsgate.crew import addresses_of_others, backend_sides, hosts_of, of_kind
from wsgate.handover import Crew, Endpoint, state_name
from wsgate.turn.settings import part_of_ports

HOSTS = ["192.0.2.1", "127.0.0.1", "2001:db8::1"]


def crew(host: str, number: int = 0, workers: int = 3) -> Crew:
    bound = {}
    for worker in range(workers):
        for kind, port in (("sip-udp", 5060), ("sip-tcp", 5060), ("sip-tls", 5070)):
            bound[Endpoint(kind, "sip", Address(host, port), worker)] = Address(host, port + worker)
        bound[Endpoint("listener", "a", Address(host, 443), worker)] = Address(host, 443)
    outlets = {other: None for other in range(workers) if other != number}
    return Crew(number, workers, bound, None, outlets)  # type: ignore[arg-type]


@pytest.mark.parametrize(("bound", "reached"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("192.0.2.1", "192.0.2.1")])
def test_workers_reach_each_other_on_this_machine(bound: str, reached: str):
    """T3: a wildcard by loopback, so that no address of the outside is needed."""
    sides = backend_sides(crew(bound, 1))
    assert sides == {0: [Address(reached, 5060)], 2: [Address(reached, 5062)]}


def test_the_ports_of_the_others_are_named_on_every_interface():
    """P5: nobody relays to them; what all share is no other's."""
    found = addresses_of_others(crew("0.0.0.0", 1), HOSTS)
    assert found == {Address(host, port) for host in ("192.0.2.1", "127.0.0.1") for port in (5060, 5062, 5070, 5072)}
    assert hosts_of("::", HOSTS) == ["2001:db8::1"]
    assert of_kind(crew("0.0.0.0"), "sip-tls", 2) == [Address("0.0.0.0", 5072)]


@pytest.mark.parametrize("ports", [(49152, 65535), (50000, 50020), (50001, 50007)])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_relay_ports_are_divided(ports: tuple[int, int], workers: int):
    """No two workers have a port in common; each has pairs of an even and the next odd one (RFC 8656 §7.2)."""
    parts = [part_of_ports(ports, number, workers) for number in range(workers)]
    taken = [port for low, high in parts for port in range(low, high + 1)]
    assert len(taken) == len(set(taken))
    assert min(taken) >= ports[0]
    assert max(taken) <= ports[1]
    assert all(high > low for low, high in parts)
    assert workers == 1 or all(low % 2 == 0 and high % 2 == 1 for low, high in parts)


def test_the_first_worker_has_the_state_file_by_its_name():
    assert [state_name("calls", number) for number in range(3)] == ["calls", "calls.1", "calls.2"]
