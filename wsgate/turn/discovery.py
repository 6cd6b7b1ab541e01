"""NAT behaviour discovery (RFC 5780): Binding answers from another address or port, to another port, or padded.

Four UDP sockets of a family belong together: two addresses with the same two ports (§6). What is answered without
authentication is bounded as ever (rule S4); a padded answer is never longer than its request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wsgate.addr import Address, canonical_host
from wsgate.turn import stun
from wsgate.turn.answers import Answers, Field, Request, mapped_address
from wsgate.turn.effects import Client, Effect

DATAGRAM_BYTES_MAX = 2048
"""A padded request is as long as an MTU and its header (§7.6, which is an exception to rule S1)."""

_FINGERPRINT_BYTES = 8
_BOTH = 3


class Place(NamedTuple):
    """One of the four sockets: the path that clients of it have, and its own address."""

    path: int
    address: Address


class Discovery:
    """Answers Binding requests that arrive at one of the four sockets of a family."""

    def __init__(self, families: Iterable[Sequence[Place]]) -> None:
        """Four places each: first address and port, its other port, the other address, that with the other port."""
        self._seen_from: dict[int, tuple[Place, ...]] = {}
        for four in families:
            for index, place in enumerate(four):
                # By the two flags: 1 changes the port, 2 the address (§6.1, table 1).
                self._seen_from[place.path] = tuple(four[index ^ flags] for flags in range(4))

    def __contains__(self, path: int) -> bool:
        return path in self._seen_from

    def binding(self, request: Request, answers: Answers) -> list[Effect]:
        """The answer to a Binding request (§6.1). Raises ProtocolError for values that cannot be read."""
        message, client = request.message, request.client
        places = self._seen_from[client.path]
        change = message.get(stun.CHANGE_REQUEST) or 0
        port, padding = message.get(stun.RESPONSE_PORT), message.get(stun.PADDING)
        if port == 0 or (port is not None and padding is not None):
            return answers.error(request, 400)
        origin = places[change >> 1 & _BOTH]
        mapped = Address(canonical_host(client.address.host), client.address.port)
        fields: list[Field] = [
            mapped_address(client),
            stun.MAPPED_ADDRESS(mapped),
            stun.RESPONSE_ORIGIN(origin.address),
            stun.OTHER_ADDRESS(places[_BOTH].address),
        ]
        if padding is not None:
            fields.append(stun.PADDING(bytes(_padding_bytes(message, fields))))
        to = Client(origin.path, client.address if port is None else client.address._replace(port=port))
        return answers.success(request._replace(client=to), fields)


def _padding_bytes(message: stun.Message, fields: Sequence[Field]) -> int:
    """So many that the answer is as long as the request, or none: no amplification (rule S4)."""
    bare = stun.encode(
        stun.Method.BINDING, stun.MessageClass.SUCCESS, message.transaction_id, [*fields, stun.PADDING(b"")]
    )
    answer_bytes = len(bare) + (_FINGERPRINT_BYTES if message.fingerprint else 0)
    return max(0, message.size_bytes - answer_bytes) & ~3
