"""guard: every limit refuses one too many, gives back what was given back, and holds a bounded table."""

from __future__ import annotations

import pytest

from wsgate import guard
from wsgate.guard import ANSWERED_ABOVE_LIMIT, Guard, LimitSettings, MessageRate, Verdict, take


def test_connections_are_answered_above_the_limit_and_dropped_above_that() -> None:
    limits = Guard(LimitSettings(connections=10))
    assert [limits.open() for _ in range(10)] == [True] * 10
    assert not limits.overloaded
    assert limits.open()
    assert limits.overloaded
    assert [limits.open() for _ in range(ANSWERED_ABOVE_LIMIT)] == [True] * (ANSWERED_ABOVE_LIMIT - 1) + [False]
    for _ in range(ANSWERED_ABOVE_LIMIT):
        limits.close()
    assert not limits.overloaded
    assert limits.connections == 10


def test_connections_per_address() -> None:
    limits = Guard(LimitSettings(connections_per_address=2))
    assert all(limits.claim("192.0.2.1") for _ in range(2))
    assert not limits.crowded("192.0.2.1")
    assert limits.claim("192.0.2.1")
    assert limits.crowded("192.0.2.1")
    assert not limits.crowded("192.0.2.2")
    assert [limits.claim("192.0.2.1") for _ in range(ANSWERED_ABOVE_LIMIT)][-1] is False
    for _ in range(2 + ANSWERED_ABOVE_LIMIT):
        limits.release("192.0.2.1")
    assert limits.claimed("192.0.2.1") == 0
    assert limits._claims == {}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_ipv6_counts_by_its_64(one: str, other: str, same: bool) -> None:
    limits = Guard(LimitSettings())
    limits.claim(one)
    assert limits.claimed(other) == int(same)


def test_tls_handshakes_in_progress() -> None:
    limits = Guard(LimitSettings(tls_handshakes=1))
    assert limits.begin_tls()
    assert not limits.begin_tls()
    limits.end_tls()
    assert limits.begin_tls()


def test_memory_and_draining_refuse_new_work() -> None:
    limits = Guard(LimitSettings(memory_high=0.8))
    limits.memory_used = 0.79
    assert not limits.overloaded
    limits.memory_used = 0.8
    assert limits.overloaded
    limits.memory_used = 0.1
    limits.draining = True
    assert limits.overloaded


def test_a_bucket_holds_twice_its_rate_and_refills() -> None:
    full_at, taken = 0.0, 0
    while (later := take(full_at, 50, 1000.0)) is not None:
        full_at, taken = later, taken + 1
    assert taken == 100
    assert take(full_at, 50, 1000.019) is None
    assert take(full_at, 50, 1000.02) is not None


def test_upgrades_per_second_per_address() -> None:
    limits = Guard(LimitSettings(upgrades_per_second=5))
    assert [limits.upgrade("192.0.2.1", 0.0) for _ in range(11)] == [True] * 10 + [False]
    assert limits.upgrade("192.0.2.2", 0.0)
    assert limits.upgrade("192.0.2.1", 0.2)
    assert not limits.upgrade("192.0.2.1", 0.2)


def test_the_upgrade_table_is_bounded_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "UPGRADE_TABLE", 3)
    limits = Guard(LimitSettings(upgrades_per_second=1))
    for host in ("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.1", "192.0.2.4"):
        assert limits.upgrade(host, 0.0)
    assert list(limits._upgrades) == ["192.0.2.3", "192.0.2.1", "192.0.2.4"]


def flood(rate: MessageRate, per_second: int, start: float, seconds: float) -> list[Verdict]:
    return [rate.judge(50, start + number / per_second) for number in range(int(per_second * seconds))]


def test_messages_in_excess_are_answered_and_after_10_s_the_connection_closes() -> None:
    rate = MessageRate()
    assert set(flood(rate, 50, 0.0, 20.0)) == {Verdict.PASS}
    verdicts = flood(rate, 100, 20.0, 11.0)
    first = verdicts.index(Verdict.EXCESS)
    assert 100 <= first <= 250
    assert Verdict.FLOOD not in verdicts
    assert flood(rate, 100, 31.0, 3.0).count(Verdict.FLOOD) > 0


def test_a_burst_now_and_then_is_forgiven() -> None:
    rate = MessageRate()
    for start in range(0, 60, 5):
        verdicts = [rate.judge(50, float(start)) for _ in range(150)]
        assert verdicts == [Verdict.PASS] * 100 + [Verdict.EXCESS] * 50
