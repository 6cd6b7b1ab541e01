"""What the supervisor hands to a worker: the open sockets by endpoint and the files that options name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from wsgate.addr import Address

INI = ""
"""The name under which the ini file itself is handed over."""


SQLITE_MAGIC = b"SQLite format 3\0"
"""How every SQLite database begins."""

STORE_ID = 0x77736762
"""The application id in the header of the database of bindings."""


class Endpoint(NamedTuple):
    """One socket that the supervisor opens: `kind` is listener, sip-udp, -tcp, -tls, or turn-udp, -tcp, -tls,
    -alternate-udp.

    `name` is that of the listener, else that of the section; `address` is as configured (port 0: any free one).
    """

    kind: str
    name: str
    address: Address

    @property
    def datagram(self) -> bool:
        """True for UDP, False for TCP."""
        return self.kind.endswith("-udp")


class FileReference(NamedTuple):
    """A file that an option names: read by the supervisor, handed to the worker under `name`."""

    section: str
    option: str
    name: str


class Files:
    """The files that options name, by the name written there.

    A file that the supervisor read is a descriptor of a memory file; any other name is a path relative to `directory`.
    """

    def __init__(self, directory: Path, descriptors: Mapping[str, int] | None = None) -> None:
        self.directory = directory
        self.descriptors = dict(descriptors or {})

    def path(self, name: str) -> str:
        """A path that this process can open and read for the configured file `name`."""
        descriptor = self.descriptors.get(name)
        return f"/proc/self/fd/{descriptor}" if descriptor is not None else str(self.directory / name)

    def named(self, text: str) -> str:
        """An error's text with the names that an administrator knows in place of the paths of memory files."""
        names = {str(descriptor): name for name, descriptor in self.descriptors.items()}
        return _MEMORY_PATH.sub(lambda found: str(self.directory / names.get(found[1], found[0])), text)


_MEMORY_PATH = re.compile(r"/proc/self/fd/(\d+)")
