"""What signalling opens for TURN and closes again, counted (rule P6)."""

from __future__ import annotations

from wsgate.addr import ANY_PORT, Address
from wsgate.call_peers import ADDRESSES_PER_REGISTRATION_MAX, CallPeers

ONE, TWO = Address("192.0.2.1", 5000), Address("192.0.2.1", 5002)
ANY = Address("192.0.2.2", ANY_PORT)


def test_two_questions() -> None:
    peers = CallPeers()
    assert peers.open("r1", [ONE, ANY]) == {ONE, ANY}
    assert peers.allows_host("r1", "192.0.2.1")
    assert peers.allows("r1", *ONE)
    assert not peers.allows("r1", *TWO)
    assert peers.allows("r1", "192.0.2.2", 17)
    assert not peers.allows_host("r1", "192.0.2.3")
    assert not peers.allows_host("r2", "192.0.2.1")
    assert not peers.allows("r2", *ONE)


def test_what_two_calls_name_is_open_until_both_are_over() -> None:
    peers = CallPeers()
    peers.open("r1", [ONE, TWO])
    peers.open("r1", [ONE])
    peers.close("r1", [ONE, TWO])
    assert peers.allows("r1", *ONE)
    assert not peers.allows("r1", *TWO)
    assert peers.take_narrowed() == {"r1"}
    peers.close("r1", [ONE])
    assert not peers.allows_host("r1", "192.0.2.1")
    assert peers.take_narrowed() == {"r1"}
    assert peers.take_narrowed() == set()
    assert len(peers) == 0


def test_one_of_two_calls_narrows_nothing() -> None:
    peers = CallPeers()
    peers.open("r1", [ONE])
    peers.open("r1", [ONE])
    peers.close("r1", [ONE])
    assert peers.take_narrowed() == set()


def test_a_registration_opens_so_many_and_closes_as_many() -> None:
    peers = CallPeers()
    many = [Address(f"198.51.{n >> 8}.{n & 255}", 5000) for n in range(ADDRESSES_PER_REGISTRATION_MAX + 10)]
    taken = peers.open("r1", many)
    assert len(taken) == ADDRESSES_PER_REGISTRATION_MAX
    assert peers.open("r1", [ONE]) == frozenset()
    peers.close("r1", taken)
    assert len(peers) == 0
