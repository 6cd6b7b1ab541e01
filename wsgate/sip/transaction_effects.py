"""Transactions, and what the transaction layer wants done (RFC 3261 §17). Data only."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from wsgate.addr import Hop
from wsgate.sip.message import Message
from wsgate.sip.transaction_messages import Key
from wsgate.sip.transaction_tables import (
    INVITE_CLIENT,
    INVITE_SERVER,
    NON_INVITE_CLIENT,
    NON_INVITE_SERVER,
    State,
    Table,
)


class Failure(enum.Enum):
    """Why a client transaction ended without a final response."""

    TIMEOUT = "timeout"
    """Timer B or F fired, or nothing came within 64*T1 after a CANCEL (§9.1)."""
    TRANSPORT = "transport"
    """The hop cannot be reached or is gone (§17.1.4)."""


class _Transaction:
    __slots__ = ("hop", "interval", "is_invite", "key", "number", "reliable", "state", "table")

    def __init__(self, key: Key, hop: Hop, number: int, is_invite: bool, table: Table) -> None:
        self.key = key
        self.hop = hop
        self.number = number
        self.table = table
        self.is_invite = is_invite
        self.state = State.NEW
        self.reliable = hop.transport.reliable
        self.interval = 0.0


class ServerTransaction(_Transaction):
    """A request that came in. `user` is the proxy's own; all else is for reading. Answers leave to `hop`."""

    __slots__ = ("ack_key", "request", "response", "user")

    def __init__(self, key: Key, hop: Hop, request: Message, number: int) -> None:
        is_invite = request.method == b"INVITE"
        super().__init__(key, hop, number, is_invite, INVITE_SERVER if is_invite else NON_INVITE_SERVER)
        self.request = request
        self.user: object | None = None
        self.response = b""
        self.ack_key: Key | None = None


class ClientTransaction(_Transaction):
    """A request that went out to `hop`, `data` its bytes. `context` is the proxy's own; all else is for reading."""

    __slots__ = ("_request", "accepts", "cancel", "context", "data", "is_internal", "provisionals")

    def __init__(
        self,
        key: Key,
        hop: Hop,
        data: bytes,
        number: int,
        is_invite: bool,
        accepts: Callable[[Hop], bool],
        context: object,
        is_internal: bool,
    ) -> None:
        super().__init__(key, hop, number, is_invite, INVITE_CLIENT if is_invite else NON_INVITE_CLIENT)
        self.data = data
        self._request: Message | None = None
        self.accepts = accepts
        self.context = context
        self.cancel: bytes | None = None
        self.is_internal = is_internal
        self.provisionals: dict[int, float] | None = None

    @property
    def request(self) -> Message:
        """The request as a message, read only when somebody asks: for its ACK or CANCEL."""
        if self._request is None:
            self._request = Message.parse(self.data)
        return self._request


Transaction = ServerTransaction | ClientTransaction


class Send(NamedTuple):
    """Bytes for the wire."""

    hop: Hop
    data: bytes


class RequestReceived(NamedTuple):
    """A new request for the proxy, never a retransmission. A CANCEL comes in a transaction of its own."""

    server: ServerTransaction
    message: Message
    hop: Hop


class AckReceived(NamedTuple):
    """The ACK of a 2xx: a request without transaction, never answered (I7)."""

    message: Message
    hop: Hop


class ResponseReceived(NamedTuple):
    """A response for the proxy, our own Via still on top. Retransmissions only of a 2xx to INVITE (I6)."""

    client: ClientTransaction
    message: Message


class Failed(NamedTuple):
    """There will be no final response; `reason` is the transport's own word for it. `Ended` follows."""

    client: ClientTransaction
    why: Failure
    reason: str = ""


class Ended(NamedTuple):
    """The one of the two that is not None is gone from the tables."""

    server: ServerTransaction | None
    client: ClientTransaction | None


Effect = Send | RequestReceived | AckReceived | ResponseReceived | Failed | Ended
