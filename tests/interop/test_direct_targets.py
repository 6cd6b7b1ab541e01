"""A server that does not record-route: browser and desk phone speak straight, within `direct_targets` (D1 b, N6).

Loopback never counts as a direct target, so this runs with other addresses in a network namespace of its own.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ("10.99.0.1", "10.99.0.10", "10.99.0.20", "10.99.0.30")


def test_desk_phone_without_record_route(tmp_path: Path) -> None:
    steps = ["ip link set lo up", *(f"ip addr add {address}/24 dev lo" for address in ADDRESSES)]
    run = [sys.executable, "-m", "tests.interop.direct_scenario", str(tmp_path / "wsgate")]
    script = " && ".join([*steps, f"exec {shlex.join(run)}"])
    command = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]
    done = subprocess.run(
        [*command, "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.endswith("done\n")
