"""scripts/bench measures: both servers do the work, every figure comes out (smallest runs, no judgement of speed)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNS = {
    "edge": (["--connections=5", "--operations=60"], ["KiB per connection", "REGISTER", "MESSAGE", "call"]),
    "turn": (["--allocations=2", "--rate=2000", "--seconds=1"], ["us per packet", "lost %", "packets/s"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_bench_runs(name: str) -> None:
    options, figures = RUNS[name]
    command = [sys.executable, "-m", f"tests.bench.{name}", "--runs=1", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    for figure in figures:
        assert re.search(rf"^{re.escape(figure)} +-?[\d.]+ +-?[\d.]+ +-?[\d.]+$", done.stdout, re.MULTILINE), (
            done.stdout
        )
