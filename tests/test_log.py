"""What the log says of strangers is bounded."""

from __future__ import annotations

import logging

from wsgate.log import LineRate


def test_a_line_rate_says_so_many_and_then_waits_for_the_next_window() -> None:
    rate = LineRate(2, 60.0)
    assert [rate.level(now) for now in (0.0, 1.0, 2.0, 59.9, 60.0, 61.0, 62.0)] == [
        logging.INFO,
        logging.INFO,
        logging.DEBUG,
        logging.DEBUG,
        logging.INFO,
        logging.INFO,
        logging.DEBUG,
    ]


def test_what_was_left_out_is_told_once() -> None:
    rate = LineRate(1, 60.0)
    assert [rate.allows(at) for at in (100.0, 101.0, 102.0, 160.0)] == [True, False, False, True]
    assert (rate.take_left_out(), rate.take_left_out()) == (2, 0)
