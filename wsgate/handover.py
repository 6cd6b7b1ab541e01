"""What the supervisor hands to a worker: open sockets by endpoint, the files that options name, the other workers."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
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

    `name` is that of the listener, else that of the section; `address` is as configured (port 0: any free one), on the
    backend side with the number of the `worker` added to its port. The ports of all others are open once per worker.
    """

    kind: str
    name: str
    address: Address
    worker: int = 0

    @property
    def datagram(self) -> bool:
        """True for UDP, False for TCP."""
        return self.kind.endswith("-udp")

    @property
    def shared(self) -> bool:
        """True where every worker listens on the same port; the backend side has one for each (rule V1)."""
        return not self.kind.startswith("sip-")


class Crew(NamedTuple):
    """A worker among the others: its number and how many there are.

    `addresses` says what every socket of every worker is bound to. What the others tell comes by `inbox`, datagrams on
    a Unix socket; `outlets` lead to theirs, by their numbers.
    """

    number: int = 0
    workers: int = 1
    addresses: Mapping[Endpoint, Address] = MappingProxyType({})
    inbox: socket.socket | None = None
    outlets: Mapping[int, socket.socket] = MappingProxyType({})


ALONE = Crew()
"""The only worker."""


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


def state_name(name: str, worker: int) -> str:
    """The name of a worker's own state file: as configured for the first one, with its number behind for the others."""
    return f"{name}.{worker}" if worker else name


_MEMORY_PATH = re.compile(r"/proc/self/fd/(\d+)")
