"""A machine with several addresses and TURN on a wildcard: who asks one of them is answered from there (rule E1)."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.interop.addresses_scenario import PAIRS

ROOT = Path(__file__).resolve().parents[2]


def test_answers_come_from_where_was_asked(tmp_path: Path) -> None:
    """RFC 8489 §6.3.1: NATs and connected sockets take an answer from nowhere else."""
    addresses = [f"ip addr add {host}/{128 if ':' in host else 24} dev lo" for pair in PAIRS for host in pair]
    run = [sys.executable, "-m", "tests.interop.addresses_scenario", str(tmp_path)]
    script = " && ".join(["ip link set lo up", *addresses, f"exec {shlex.join(run)}"])
    command = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]
    done = subprocess.run(
        [*command, "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.endswith("done\n")
