"""The file behind `[sip] state_file`: read once, appended to while running, written anew when it has grown.

The supervisor opens it, so a worker without rights to the directory can still write it. What is written leaves at once
for the system's cache, which survives the end of the process; a power cut may tear the file, and then it is refused.
"""

from __future__ import annotations

import os

from wsgate.errors import StartError
from wsgate.handover import Files
from wsgate.log import logger

MAX_STATE_BYTES = 256 * 1024 * 1024
"""A larger file is refused; far above what the limits of dialogs and registrations can fill."""


class StateFile:
    """One open file. After an error it is left alone: the daemon goes on without it."""

    def __init__(self, files: Files, name: str) -> None:
        """Raises StartError when it cannot be opened."""
        self.name = name
        self._descriptor: int | None = None
        try:
            handed = files.descriptors.get(name)
            if handed is not None:
                self._descriptor = os.dup(handed)
            else:
                self._descriptor = os.open(files.path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"[sip] state_file: cannot open {name}: {error.strerror}") from None

    def read(self) -> bytes:
        """All that stands in it; more than MAX_STATE_BYTES is cut, and so refused by whoever parses it."""
        if self._descriptor is None:
            return b""
        pieces = []
        position = 0
        while position < MAX_STATE_BYTES and (data := os.pread(self._descriptor, 1 << 20, position)):
            pieces.append(data)
            position += len(data)
        return b"".join(pieces)

    def append(self, data: bytes) -> None:
        """Write behind what stands there."""
        if data and self._descriptor is not None:
            self._write(data, os.fstat(self._descriptor).st_size)

    def replace(self, data: bytes) -> None:
        """Write in place of what stands there."""
        if self._descriptor is not None:
            self._write(data, 0)

    def close(self) -> None:
        """Nothing is written any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, data: bytes, position: int) -> None:
        descriptor = self._descriptor
        assert descriptor is not None
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(descriptor, view, position)
                position += written
                view = view[written:]
            os.ftruncate(descriptor, position)
        except OSError as error:
            logger.error("[sip] state_file: cannot write %s, going on without it: %s", self.name, error.strerror)
            self.close()
