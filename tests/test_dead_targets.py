"""Targets that did not answer are left alone, longer each time (rule N3)."""

from __future__ import annotations

from wsgate.addr import Address, Transport
from wsgate.sip.dead_targets import (
    FIRST_BACK_OFF_SECONDS,
    MAX_DEAD_TARGETS,
    MOST_BACK_OFF_SECONDS,
    DeadTargets,
)
from wsgate.sip.targets import Target

UDP, TCP = Transport.UDP, Transport.TCP
ONE, TWO = (Target(UDP, Address(f"10.0.0.{n}", 5060), "a.example") for n in (1, 2))


def test_n3_a_dead_target_backs_off_exponentially_and_comes_back() -> None:
    dead = DeadTargets()
    now, back_off = 100.0, FIRST_BACK_OFF_SECONDS
    for _ in range(12):
        dead.failed(UDP, ONE.address, now)
        dead.failed(UDP, ONE.address, now + back_off / 2)  # one of several that were on their way
        assert dead.usable((ONE, TWO), now + back_off - 0.1) == (TWO,)
        now += back_off
        assert dead.usable((ONE, TWO), now) == (ONE, TWO)
        back_off = min(2 * back_off, MOST_BACK_OFF_SECONDS)
    assert back_off == MOST_BACK_OFF_SECONDS
    dead.failed(UDP, ONE.address, now)
    dead.succeeded(UDP, ONE.address)
    assert dead.usable((ONE, TWO), now) == (ONE, TWO)
    dead.failed(TCP, ONE.address, now)
    assert dead.usable((ONE, TWO), now) == (ONE, TWO)


def test_n3_all_dead_tries_the_least_bad_once() -> None:
    dead = DeadTargets()
    dead.failed(UDP, TWO.address, 0.0)
    dead.failed(UDP, ONE.address, 1.0)
    assert dead.usable((ONE, TWO), 2.0) == (TWO,)
    assert dead.usable((), 2.0) == ()


def test_n3_the_memory_is_bounded() -> None:
    dead = DeadTargets()
    for n in range(MAX_DEAD_TARGETS + 1):
        dead.failed(UDP, Address("10.0.0.1", n), 0.0)
    first, last = (Target(UDP, Address("10.0.0.1", n), "") for n in (0, MAX_DEAD_TARGETS))
    assert dead.usable((first, last), 1.0) == (first,)


def test_n3_when_its_time_is_over_one_request_tries_a_dead_target_first() -> None:
    """A server that swallows everything costs one caller per back-off, not all that come until Timer B."""
    dead = DeadTargets()
    dead.failed(UDP, ONE.address, 0.0)
    back = FIRST_BACK_OFF_SECONDS
    assert dead.usable((ONE, TWO), back) == (ONE, TWO)
    dead.tried(ONE, back)
    dead.tried(TWO, back)
    assert dead.usable((ONE, TWO), back) == (TWO,)
    assert dead.usable((ONE, TWO), 3 * back - 0.1) == (TWO,)
    dead.succeeded(UDP, ONE.address)
    assert dead.usable((ONE, TWO), back) == (ONE, TWO)


def test_n3_while_a_probe_is_out_nobody_is_risked_on_a_dead_target() -> None:
    dead = DeadTargets()
    dead.failed(UDP, ONE.address, 0.0)
    dead.probe_is_out((UDP, ONE.address), True)
    assert dead.usable((ONE, TWO), 1000.0) == (TWO,)
    assert dead.usable((ONE,), 1000.0) == (ONE,)
    dead.probe_is_out((UDP, ONE.address), False)
    assert dead.usable((ONE, TWO), 1000.0) == (ONE, TWO)
    dead.probe_is_out((UDP, TWO.address), True)
    assert (UDP, TWO.address) not in dead
    assert len(dead) == 1


def test_n3_a_target_that_says_when_to_come_back_is_left_alone_so_long() -> None:
    dead = DeadTargets()
    dead.failed(UDP, ONE.address, 0.0, at_least=60.0)
    assert dead.usable((ONE, TWO), 59.0) == (TWO,)
    assert dead.usable((ONE, TWO), 60.0) == (ONE, TWO)
    dead.failed(UDP, ONE.address, 100.0)
    dead.failed(UDP, ONE.address, 101.0, at_least=1e9)
    assert dead.usable((ONE, TWO), 101.0 + MOST_BACK_OFF_SECONDS) == (ONE, TWO)
