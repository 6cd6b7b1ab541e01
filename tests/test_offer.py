"""A reload that workers judge: all that serve, or the next that starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from wsgate.offer import Offer, Verdict

PLAN: Any = SimpleNamespace()


def test_all_that_serve_are_asked_and_one_refusal_is_enough() -> None:
    offer = Offer(PLAN, {}, [0, 1])
    assert not offer.begins(2)
    offer.accepted(0)
    assert offer.verdict is Verdict.OPEN
    offer.refused(1, "no")
    assert (offer.verdict, offer.refusals) == (Verdict.REFUSED, ["no"])


def test_who_dies_before_the_answer_leaves_it_to_the_others() -> None:
    offer = Offer(PLAN, {}, [0, 1])
    offer.ended(1, "killed", was_killed=True)
    assert offer.verdict is Verdict.OPEN
    offer.accepted(0)
    assert offer.verdict is Verdict.TAKEN


def test_with_nobody_left_the_next_start_judges() -> None:
    offer = Offer(PLAN, {}, [0])
    offer.ended(0, "crashed", was_killed=False)
    assert offer.verdict is Verdict.OPEN
    assert offer.begins(0)
    assert offer.is_on_trial(0)
    assert not offer.begins(1), "one is enough: the others start with what was good"
    offer.accepted(0)
    assert offer.verdict is Verdict.TAKEN


def test_a_start_that_fails_refuses_and_one_that_is_killed_does_not() -> None:
    offer = Offer(PLAN, {}, [])
    assert offer.verdict is Verdict.OPEN
    assert offer.begins(1)
    offer.ended(1, "killed", was_killed=True)
    assert offer.verdict is Verdict.OPEN
    assert offer.begins(0)
    offer.ended(1, "another", was_killed=False)
    assert offer.verdict is Verdict.OPEN
    offer.ended(0, "cannot read", was_killed=False)
    assert (offer.verdict, offer.refusals) == (Verdict.REFUSED, ["cannot read"])
