"""The ports that tests pick: files of tests run side by side, and none may take what another has picked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.interop.process import Ports, free_port

ROOT = Path(__file__).parents[2]
PICKS = "import sys; from tests.interop.process import free_port; print(*(free_port() for _ in range(200)), flush=True)"


def test_no_port_is_picked_twice_here_or_by_another_process() -> None:
    command = [sys.executable, "-c", PICKS + "; sys.stdin.read()"]
    others = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    picked = [first + number for first in [free_port(count=3) for _ in range(50)] for number in range(3)]
    for other in others:
        assert other.stdout is not None
        picked += map(int, other.stdout.readline().split())
    for other in others:
        other.communicate(timeout=60)
    assert len(picked) == len(set(picked)) == 750
    assert {port - port % Ports.PER_SHARE for port in picked} <= set(range(10000, 30000, Ports.PER_SHARE))
