"""`scripts/fuzz`: inputs for the pure machines until the time is over; exit 1 when one of them was a finding."""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FunctionType

from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

SHRINK_SECONDS = 5.0
"""How long a finding is made smaller."""


def fault_of(target: Target, data: bytes) -> tuple[str, str] | None:
    """What this input breaks: where and what kind, and the trace; None for nothing."""
    try:
        target.run(data)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-2:]
        kind = f"{type(error).__name__} {error.args[:1]} " + " ".join(f"{one.name}:{one.lineno}" for one in place)
        return kind, traceback.format_exc()
    return None


def shrink(target: Target, data: bytes, kind: str, clock: Callable[[], float] = time.monotonic) -> bytes:
    """A shorter input with the same finding, as far as SHRINK_SECONDS go."""
    end = clock() + SHRINK_SECONDS
    size = max(1, len(data) // 2)
    while size:
        at = 0
        while at < len(data) and clock() < end:
            less = data[:at] + data[at + size :]
            found = fault_of(target, less)
            if found is not None and found[0] == kind:
                data = less
            else:
                at += size
        size //= 2
    return data


def fuzz(target: Target, seed: int, seconds: float, inputs: int | None, findings: Path) -> set[str]:
    """Run one target; returns the kinds of its findings, each written into a file once."""
    kinds: set[str] = set()
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < seconds if inputs is None else number < inputs:
        data = target.input(seed, number)
        number += 1
        found = fault_of(target, data)
        if found is None or found[0] in kinds:
            continue
        kind, trace = found
        kinds.add(kind)
        data = shrink(target, data, kind)
        findings.mkdir(parents=True, exist_ok=True)
        file = findings / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
        file.write_bytes(data)
        print(f"{trace}{target.name}: seed {seed}, input {number - 1}: scripts/fuzz {target.name} --replay {file}\n")
    spent = time.monotonic() - began
    print(f"{target.name:16} {number:8} inputs in {spent:6.1f} s, {len(kinds)} findings", flush=True)
    return kinds


def replay(target: Target, files: Sequence[Path]) -> bool:
    """Run files; True when all are well."""
    good = True
    for file in files:
        found = fault_of(target, file.read_bytes())
        print(found[1] if found is not None else f"{file}: well")
        good &= found is None
    return good


def _functions() -> Iterator[FunctionType]:
    """Every function and plain method of wsgate that is imported; to instrument all of Python takes minutes."""
    for name in [name for name in sys.modules if name.startswith("wsgate.")]:
        for value in vars(sys.modules[name]).values():
            found = vars(value).values() if isinstance(value, type) else (value,)
            yield from (one for one in found if isinstance(one, FunctionType) and one.__module__ == name)


def guided(target: Target, seed: int, seconds: float, corpus: Path) -> None:
    """Let atheris choose the inputs by what they reach. Does not return; a finding ends it with its file."""
    # Not a dependency: it has wheels for some versions of Python and needs clang for all others.
    import atheris

    for function in _functions():
        atheris.instrument_func(function)
    corpus.mkdir(parents=True, exist_ok=True)
    for number in range(max(16, len(target.seeds))):
        (corpus / f"seed-{number}").write_bytes(target.input(seed, number))
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed + 1}", "-artifact_prefix=fuzz-findings/", str(corpus)]
    Path("fuzz-findings").mkdir(exist_ok=True)
    atheris.Setup([sys.argv[0], *options], target.run)
    atheris.Fuzz()


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help=f"all without, or of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same inputs")
    parser.add_argument("--inputs", type=int, help="so many for each target instead of --seconds")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="where their inputs are written")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="run these inputs of one target")
    parser.add_argument("--guided", type=Path, metavar="CORPUS", help="one target with atheris, which pip installs")
    options = parser.parse_args()
    if unknown := set(options.target) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    logging.disable()
    chosen = [TARGETS[name] for name in options.target or TARGETS]
    if (options.replay or options.guided) and len(chosen) != 1:
        parser.error("--replay and --guided take one target")
    if options.replay:
        return 0 if replay(chosen[0], options.replay) else 1
    if options.guided:
        guided(chosen[0], options.seed, options.seconds, options.guided)
    share = options.seconds / len(chosen)
    found = [fuzz(target, options.seed, share, options.inputs, options.findings) for target in chosen]
    return 1 if any(found) else 0


if __name__ == "__main__":
    sys.exit(main())
