"""Imported by the Python of a daemon under soak at its start: at SIGUSR2 it writes how many greenlets it has."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from types import FrameType


def _count(number: int, frame: FrameType | None) -> None:
    from greenlet import greenlet

    alive = sum(isinstance(one, greenlet) and not one.dead for one in gc.get_objects())
    place = Path(os.environ["WSGATE_SOAK_DIRECTORY"])
    written = place / f"{os.getpid()}.new"
    written.write_text(str(alive))
    written.rename(place / f"{os.getpid()}.greenlets")


if "WSGATE_SOAK_DIRECTORY" in os.environ:
    signal.signal(signal.SIGUSR2, _count)
