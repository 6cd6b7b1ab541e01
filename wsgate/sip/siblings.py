"""The other workers of this gateway as next hops: where they are, and how one knows a request of another (T3). Pure.

A request for a flow of another worker goes to that worker's backend side with the flow's token as its Route. It is
trusted there as if a backend had sent it, because its Via carries a proof that only a worker can make: the address of
this machine alone would speak for every program on it.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence

from wsgate.addr import Address, Hop, Transport, canonical_host, is_numeric
from wsgate.errors import ProtocolError
from wsgate.keys import Key
from wsgate.sip.flow import FlowTokens
from wsgate.sip.headers import Via, parse_via
from wsgate.sip.message import Message
from wsgate.sip.names import side_uri
from wsgate.sip.targets import Target

PROOF_PARAMETER = b"wsg-worker"
"""Of the Via on a request from worker to worker."""

_PROOF_BYTES = 16

_TRANSPORTS = {one.value.encode(): one for one in (Transport.UDP, Transport.TCP, Transport.TLS)}


class Siblings:
    """`places` are the backend sides of the other workers by their numbers, UDP and TCP on the same port.

    `keys` are those of the key file. Without places this is the only worker.
    """

    def __init__(
        self, tokens: FlowTokens, places: Mapping[int, Sequence[Address]] | None = None, keys: Sequence[Key] = ()
    ) -> None:
        self._tokens = tokens
        self._keys = [hmac.digest(key.secret, b"from worker to worker", "sha256") for key in keys]
        self._targets = {
            worker: tuple(Target(Transport.UDP, address, address.host) for address in addresses)
            for worker, addresses in (places or {}).items()
            if addresses
        }
        self._hosts = {target.address.host for targets in self._targets.values() for target in targets}

    def has(self, worker: int) -> bool:
        """True for the number of another worker."""
        return worker in self._targets

    def is_host(self, host: str) -> bool:
        """True for the address of this machine by which workers reach each other."""
        return host in self._hosts

    def targets(self, worker: int) -> tuple[Target, ...]:
        """Where its backend side is."""
        return self._targets[worker]

    def route(self, worker: int, connection: bytes, outbound: bool) -> bytes:
        """The Route that leads there and down this flow; with `outbound` a flow that is gone is told by 430 (B1)."""
        address = self._targets[worker][0].address
        parameters = (b"lr", b"ob") if outbound else (b"lr",)
        return side_uri(self._tokens.make(connection, worker), Transport.UDP, address, *parameters)

    def proof(self, branch: bytes) -> bytes:
        """The value of the parameter that shows a Via with this branch to be a worker's."""
        return self._proof(self._keys[0], branch)

    def is_from(self, message: Message, hop: Hop) -> bool:
        """True for a request of another worker."""
        if not self._targets or hop.address.host not in self._hosts:
            return False
        try:
            via = message.via
        except ProtocolError:
            return False
        given, branch = via.parameters.get(PROOF_PARAMETER), via.parameters.get(b"branch")
        if not given or not branch:
            return False
        return any(hmac.compare_digest(self._proof(key, branch), given) for key in self._keys)

    def _proof(self, key: bytes, branch: bytes) -> bytes:
        return hmac.digest(key, branch, "sha256")[:_PROOF_BYTES].hex().encode()


def origin(message: Message) -> Hop | None:
    """From where the other worker had a request: its Via is the second one; None where it was a browser."""
    try:
        vias = message.values(b"via")
        return _place(parse_via(vias[1])) if len(vias) > 1 else None
    except ProtocolError:
        return None


def _place(via: Via) -> Hop | None:
    transport = _TRANSPORTS.get(via.transport)
    if transport is None:
        return None
    host = (via.parameters.get(b"received") or b"").decode("ascii", "replace") or via.host
    port = via.parameters.get(b"rport") or b""
    number = int(port) if port.isdigit() and len(port) < 6 else via.port or transport.default_port
    return Hop(transport, Address(canonical_host(host), number)) if is_numeric(host) else None
