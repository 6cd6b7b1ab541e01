"""Tickets by which a client takes its allocation to another address (RFC 8016; rule E4).

A ticket is a random name with a MAC over it, in characters that clients may take for text. It is good for one move.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable

from wsgate.errors import ProtocolError
from wsgate.turn.allocation import Allocation

NAME_BYTES = MAC_BYTES = 12
"""Together 32 characters of base64: turnutils_uclient keeps no more."""


class Tickets:
    """The tickets that are good now, one for each allocation that asked for it; so there are as many at most."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._key = random_bytes(32)  # allocations do not outlive the process, nor need tickets
        self._holders: dict[bytes, Allocation] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def issue(self, allocation: Allocation) -> bytes:
        """A new ticket; the one before it is spent."""
        self.forget(allocation)
        name = self._random_bytes(NAME_BYTES)
        allocation.ticket = base64.urlsafe_b64encode(name + self._mac(name))
        self._holders[allocation.ticket] = allocation
        return allocation.ticket

    def forget(self, allocation: Allocation) -> None:
        """The allocation is gone, or its ticket was used."""
        self._holders.pop(allocation.ticket, None)

    def holder(self, ticket: bytes) -> Allocation | None:
        """Whose ticket it is, None for one that is spent. Raises ProtocolError for one that was never issued."""
        try:
            opened = base64.b64decode(ticket, b"-_", validate=True)
        except ValueError:
            opened = b""
        name, mac = opened[:NAME_BYTES], opened[NAME_BYTES:]
        if not hmac.compare_digest(mac, self._mac(name)):
            raise ProtocolError("not a ticket of this server")
        return self._holders.get(ticket)

    def _mac(self, name: bytes) -> bytes:
        return hmac.digest(self._key, name, "sha256")[:MAC_BYTES]
