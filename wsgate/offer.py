"""A reload: settings and files that the workers who serve judge before they count; without any, the next one. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

from wsgate.plan import Plan


class Verdict(enum.Enum):
    """What became of an offer."""

    OPEN = "some are still to answer, or none has judged it"
    TAKEN = "it counts from now on"
    REFUSED = "everything stays as it was"


class Offer:
    """One reload. `serving` are the numbers of the workers that are asked; a worker that cannot start refuses too.

    Who ends before it has answered did not refuse. Where that was the last one, the offer waits for the next start: a
    reload is not lost with a worker, and settings that nobody could use never take the place of good ones.
    """

    def __init__(self, plan: Plan, files: Mapping[str, int], serving: Iterable[int]) -> None:
        self.plan = plan
        self.files = dict(files)
        self.refusals: list[str] = []
        self._asked = set(serving)
        self._on_trial: int | None = None
        self._accepted = False

    @property
    def verdict(self) -> Verdict:
        """What became of it up to now. All judge the same files, so one refusal is enough."""
        if self._asked:
            return Verdict.OPEN
        if self.refusals:
            return Verdict.REFUSED
        return Verdict.TAKEN if self._accepted else Verdict.OPEN

    def begins(self, worker: int) -> bool:
        """A worker is started. True where it starts with what is offered, for want of others to judge it."""
        if self._asked or self.verdict is not Verdict.OPEN:
            return False
        self._asked.add(worker)
        self._on_trial = worker
        return True

    def is_on_trial(self, worker: int) -> bool:
        """True for the worker that starts with what is offered."""
        return worker == self._on_trial

    def accepted(self, worker: int) -> None:
        """A worker uses it."""
        self._asked.discard(worker)
        self._accepted = True

    def refused(self, worker: int, text: str) -> None:
        """A worker cannot use it."""
        self._asked.discard(worker)
        self.refusals.append(text)

    def ended(self, worker: int, reason: str, *, was_killed: bool) -> None:
        """A worker has ended. One that was on trial has refused, unless a signal killed it."""
        if self.is_on_trial(worker):
            self._on_trial = None
            if not was_killed:
                self.refused(worker, reason)
        self._asked.discard(worker)
