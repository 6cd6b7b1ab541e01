"""A few seconds of scripts/soak, so that it keeps working: nothing grows, nothing fails."""

from __future__ import annotations

from pathlib import Path

from tests.soak.__main__ import Sample, Soak, soak

SECONDS = 5.0


def test_a_few_seconds_leave_nothing_behind(tmp_path: Path) -> None:
    assert soak(Soak(tmp_path), SECONDS, rounds=1, is_thorough=False) == []


def test_what_grows_is_named(tmp_path: Path) -> None:
    one = Soak(tmp_path)
    try:
        one.judge([Sample(1, 9, 1, 1), Sample(40000, 9, 10, 1), Sample(50000, 10, 20, 1)])
    finally:
        one.close()
    assert one.wrong[:2] == ["memory grew from 40000 to 50000 KiB", "descriptors grew from 10 to 20"]
    assert "nothing was done: calls" in one.wrong
