"""Token buckets of users (rule Q1)."""

from __future__ import annotations

import gc

from wsgate.turn.bandwidth import BUCKETS_KEPT, BURST_MIN, Bucket, Buckets


def test_a_bucket_holds_a_second_and_fills_by_its_rate() -> None:
    bucket = Bucket(1000, 1000)
    assert bucket.take(1000, 5.0)
    assert not bucket.take(1, 5.0)
    assert bucket.available(5.5) == 500
    assert bucket.seconds_until(750) == 0.25
    assert bucket.take(500, 5.5)
    assert bucket.available(99.0) == 1000


def test_more_than_a_bucket_holds_is_never_there_but_waits_no_longer_than_a_full_one() -> None:
    bucket = Bucket(1000, 1000)
    bucket.take(1000, 0.0)
    assert bucket.seconds_until(5000) == 1.0
    assert not bucket.take(5000, 100.0)


def test_any_rate_lets_one_packet_pass() -> None:
    assert Buckets(10).of("alice").take(BURST_MIN, 0.0)


def test_a_user_has_one_bucket_also_after_a_while_without_allocation() -> None:
    buckets = Buckets(1000)
    assert buckets.of("alice") is buckets.of("alice")
    assert buckets.of("alice") is not buckets.of("bob")
    buckets.of("alice").take(1500, 0.0)
    gc.collect()
    assert not buckets.of("alice").take(1500, 0.0)


def test_the_table_is_bounded_by_who_is_there() -> None:
    buckets = Buckets(1000)
    held = buckets.of("alice")
    for number in range(BUCKETS_KEPT + 100):
        buckets.of(str(number))
    gc.collect()
    assert len(buckets) == BUCKETS_KEPT + 1
    assert buckets.of("alice") is held
