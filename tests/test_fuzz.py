"""A little of scripts/fuzz: each target with its first inputs, and the inputs that were findings once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.__main__ import fault_of, shrink
from tests.fuzz.chance import Choices, cuts
from tests.fuzz.target import Target, require
from tests.fuzz.targets import TARGETS

VECTORS = sorted((Path(__file__).resolve().parent / "vectors" / "fuzz").glob("*/*"))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_spoiled_inputs_break_no_rule(name: str) -> None:
    target = TARGETS[name]
    for number in range(target.test_inputs):
        target.run(target.input(0, number))


@pytest.mark.parametrize("file", VECTORS, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_what_was_a_finding_is_none_any_more(file: Path) -> None:
    assert fault_of(TARGETS[file.parent.name], file.read_bytes()) is None


def test_the_same_seed_makes_the_same_inputs() -> None:
    for target in TARGETS.values():
        assert [target.input(3, number) for number in range(9)] == [target.input(3, number) for number in range(9)]
        assert target.input(3, 999) != target.input(4, 999)


def test_a_finding_is_made_smaller_as_long_as_it_stays_the_same() -> None:
    def run(data: bytes) -> None:
        require(b"x" not in data, "x")

    target = Target("example", run)
    found = fault_of(target, b"a" * 50 + b"x" + b"b" * 50)
    assert found is not None
    assert shrink(target, b"a" * 50 + b"x" + b"b" * 50, found[0]) == b"x"
    assert fault_of(target, b"aaa") is None


def test_decisions_end_with_the_input_and_cuts_lose_nothing() -> None:
    chance = Choices(b"\x05\xff\xff")
    assert (chance.number(4), chance.number(1000), chance.is_over) == (1, 0xFFFF % 1000, True)
    assert (chance.number(7), chance.pick("abc"), chance.rest()) == (0, "a", b"")
    assert b"".join(cuts(b"0123456789", [3, 0, 2])) == b"0123456789"
