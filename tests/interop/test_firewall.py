"""A network that lets out nothing but port 443 of one address: page, SIP and media pass there (rule E1)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(240)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory near the root: Chromium makes sockets in it, whose paths are bounded."""
    with tempfile.TemporaryDirectory(prefix="wsg") as name:
        yield Path(name)


def test_browsers_phone_through_one_open_port(short_path: Path) -> None:
    """`turn:` over UDP and TCP and `turns:`, on the port of the page and of WSS; then with an Apache behind wsgate.

    Apache gives root up, which root alone can do.
    """
    unshare, more = (["unshare", "-nm"], ["apache"]) if os.geteuid() == 0 else (["unshare", "-Urnm"], [])
    done = subprocess.run(
        [*unshare, sys.executable, "-m", "tests.interop.firewall_scenario", str(short_path), *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.endswith("done\n")
