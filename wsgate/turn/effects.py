"""The effects of the TURN server: what the relay engine does to follow it, and the clients and addresses they name."""

from __future__ import annotations

from typing import NamedTuple

from wsgate.addr import Address


class Client(NamedTuple):
    """The client's side of a 5-tuple: `path` is the number of the socket or stream, opaque here; `address` its own."""

    path: int
    address: Address


class RelayAddress(NamedTuple):
    """An address that relay sockets are bound to, and the one that clients are told (`external_address`)."""

    host: str
    public: str


class Reply(NamedTuple):
    """Send a STUN message to a client."""

    client: Client
    data: bytes


class OpenRelays(NamedTuple):
    """Bind these addresses, all or none; the answer is `relays_opened` or `relays_refused` of the server, at once.

    With `is_tcp` they are listened on for the connections of peers (RFC 6062 §5.1).
    """

    relays: tuple[Address, ...]
    is_tcp: bool = False


class CloseRelay(NamedTuple):
    """Close a relayed address and forget what was set on it."""

    relay: Address


class Join(NamedTuple):
    """What arrives at `relay` belongs to `client`, and the client's channels go out there."""

    relay: Address
    client: Client


class Part(NamedTuple):
    """The client of `relay` is gone and may come back elsewhere (RFC 8016): what arrives is dropped until a Join."""

    relay: Address


class Permit(NamedTuple):
    """Take data from any port of `host`."""

    relay: Address
    host: str


class Revoke(NamedTuple):
    """Take no more data from `host`."""

    relay: Address
    host: str


class Bind(NamedTuple):
    """Channel `number` is `peer`, both ways."""

    relay: Address
    number: int
    peer: Address


class Unbind(NamedTuple):
    """Channel `number` is nothing any more."""

    relay: Address
    number: int
    peer: Address


class SendToPeer(NamedTuple):
    """Send `data` from `relay` to `peer`, with the DF bit when `dont_fragment` (RFC 8656 §18.9)."""

    relay: Address
    peer: Address
    data: bytes
    dont_fragment: bool


class OpenConnection(NamedTuple):
    """Connect from `relay` to `peer`; the answer is `connected` or `connect_failed` of the server."""

    connection: int
    relay: Address
    peer: Address


class JoinConnection(NamedTuple):
    """The stream of `client` is joined to the connection: every byte behind this message goes to the peer, and back."""

    connection: int
    client: Client
    user: str


class PassStream(NamedTuple):
    """The stream of `client` is for a connection of another worker: `request` and what follows is to be carried there,
    and back."""

    worker: int
    client: Client
    request: bytes


class CloseConnection(NamedTuple):
    """Close the connection with the peer, and the stream that is joined to it."""

    connection: int


Effect = (
    Reply
    | OpenRelays
    | CloseRelay
    | Join
    | Part
    | Permit
    | Revoke
    | Bind
    | Unbind
    | SendToPeer
    | OpenConnection
    | JoinConnection
    | PassStream
    | CloseConnection
)
