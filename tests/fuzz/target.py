"""What is fuzzed: a name, where inputs come from, and what to do with one. Anything that it raises is a finding."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.fuzz.chance import INTERESTING, Choices, spoil

SCRIPT_BYTES = 4096
"""The longest list of decisions of a target that has no inputs to begin with."""


class Target(NamedTuple):
    """`run` takes one input. `seeds` are good inputs to be spoiled with `pieces`; without any, an input is a list of
    decisions (`Choices`) that `run` follows. The first `prefix_bytes` of an input are decisions in any case."""

    name: str
    run: Callable[[bytes], None]
    seeds: Sequence[bytes] = ()
    pieces: Sequence[bytes] = ()
    prefix_bytes: int = 0
    test_inputs: int = 200
    """How many inputs the tests try; about half a second."""

    def input(self, seed: int, number: int) -> bytes:
        """The input with this number: the same for the same seed, and the good inputs themselves first."""
        chance = random.Random(f"{seed} {self.name} {number}")
        if not self.seeds:
            return chance.randbytes(chance.randrange(16, SCRIPT_BYTES))
        prefix = chance.randbytes(self.prefix_bytes)
        if number < len(self.seeds):
            return prefix + self.seeds[number]
        data = chance.choice(self.seeds)
        pieces = [*INTERESTING, *self.pieces]
        for _ in range(chance.choice((1, 1, 1, 2, 3, 5, 9))):
            data = spoil(Choices(chance.randbytes(16)), data, pieces, self.seeds)
        return prefix + data


class Finding(AssertionError):
    """An input broke a rule."""


def require(holds: object, *said: object) -> None:
    """Raise Finding unless `holds`; unlike `assert` it is never optimised away, and says what is wrong."""
    if not holds:
        raise Finding(*said)
