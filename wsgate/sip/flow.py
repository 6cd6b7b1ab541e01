"""A browser's connection as SIP sees it, and the token that names it (RFC 5626 §5.2, rules T1, T2). Pure."""

from __future__ import annotations

import base64
import binascii
import enum
import hmac
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from wsgate.addr import Address, Hop, Transport
from wsgate.identity import Identity
from wsgate.keys import Key

TOKEN_VERSION = 1
TOKEN_LENGTH = 38
HANDLE_VERSION = 2
CONNECTION_ID_BYTES = 8
_MAC_BYTES = 16
_SIGNED_BYTES = 4 + CONNECTION_ID_BYTES

RandomBytes = Callable[[int], bytes]


class Verdict(enum.Enum):
    """What a user part of a URI turned out to be."""

    FOREIGN = "not a token"
    FORGED = "a token with a wrong MAC"
    VALID = "a token of ours"


class Token(NamedTuple):
    """A read token; `connection` and `worker` mean something only when the verdict is VALID."""

    verdict: Verdict
    connection: bytes = b""
    worker: int = 0


_FOREIGN = Token(Verdict.FOREIGN)


class FlowTokens:
    """Makes and reads flow tokens with up to two live keys, the current one first (rule T1)."""

    def __init__(self, keys: Sequence[Key], worker: int = 0) -> None:
        self._keys = {key.id: key.secret for key in keys}
        self._current = keys[0]
        self._worker = worker
        self._open: dict[bytes, Token] = {}

    @property
    def worker(self) -> int:
        """The number of this worker, as it stands in its tokens."""
        return self._worker

    def make(self, connection: bytes, worker: int | None = None) -> bytes:
        """The token of a connection id of 8 bytes: 38 characters that need no escaping in a URI.

        `worker` is that of the connection where it is not this one.
        """
        number = self._worker if worker is None else worker
        signed = bytes((TOKEN_VERSION, self._current.id)) + number.to_bytes(2, "big") + connection
        mac = hmac.digest(self._current.secret, signed, "sha256")[:_MAC_BYTES]
        return base64.urlsafe_b64encode(signed + mac).rstrip(b"=")

    def opened(self, connection: bytes) -> bytes:
        """The token of a connection that is open now: until it is `closed` no MAC is needed to know it again."""
        text = self.make(connection)
        self._open[text] = Token(Verdict.VALID, connection, self._worker)
        return text

    def closed(self, token: bytes) -> None:
        """The connection of this token is gone."""
        self._open.pop(token, None)

    def handle(self, aor: bytes, contact: bytes) -> bytes:
        """The handle of a browser's own Contact URI under an address of record (rule R5): 24 characters.

        The same after every reconnect and restart, as long as the key is.
        """
        head = bytes((HANDLE_VERSION, self._current.id))
        mac = hmac.digest(self._current.secret, head + aor + b"\0" + contact, "sha256")[:_MAC_BYTES]
        return base64.urlsafe_b64encode(head + mac).rstrip(b"=")

    def read(self, text: bytes | None) -> Token:
        """What `text`, the user part of a URI, says; the MAC is compared in constant time.

        So is a token of an open connection: the table compares a hash with a random key, and bytes only where it fits.
        """
        if text is None or len(text) != TOKEN_LENGTH:
            return _FOREIGN
        known = self._open.get(text)
        if known is not None:
            return known
        try:
            raw = base64.b64decode(text + b"==", altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return Token(Verdict.FOREIGN)
        if raw[0] != TOKEN_VERSION:
            return Token(Verdict.FOREIGN)
        secret = self._keys.get(raw[1])
        if secret is None:
            return Token(Verdict.FORGED)
        mac = hmac.digest(secret, raw[:_SIGNED_BYTES], "sha256")[:_MAC_BYTES]
        # The last character of base64 carries four unused bits: only the canonical spelling is ours.
        if not hmac.compare_digest(mac, raw[_SIGNED_BYTES:]) or base64.urlsafe_b64encode(raw).rstrip(b"=") != text:
            return Token(Verdict.FORGED)
        return Token(Verdict.VALID, raw[4:_SIGNED_BYTES], int.from_bytes(raw[2:4], "big"))


class Flow:
    """One browser connection: who it is, how it was reached, what it has shown.

    `identity` and `forwarded` are what its upgrade gave: whose requests may come through it (None: anybody's), and the
    header lines for backends.
    """

    __slots__ = (
        "_handle",
        "forwarded",
        "hop",
        "host",
        "id",
        "identity",
        "is_open",
        "outbound",
        "remote",
        "secure",
        "token",
    )

    def __init__(self, connection: bytes, token: bytes, remote: Address, secure: bool, host: Address) -> None:
        self.id = connection
        self.token = token
        self.remote = remote
        self.secure = secure
        self.host = host
        self.outbound = False
        self.is_open = True
        self.identity: Identity | None = None
        self.forwarded: tuple[tuple[bytes, bytes], ...] = ()
        self.hop = Hop(Transport.WSS if secure else Transport.WS, remote, connection)
        """The neighbour at the other end of this connection."""
        self._handle = (b"", b"", b"")

    def handle(self, tokens: FlowTokens, aor: bytes, contact: bytes) -> bytes:
        """`tokens.handle`, of which the last one is kept: who refreshes a registration has the same again."""
        if self._handle[:2] != (aor, contact):
            self._handle = (aor, contact, tokens.handle(aor, contact))
        return self._handle[2]


class FlowTable:
    """The living flows by connection id; ids are random and never used again (rule T1)."""

    def __init__(self, tokens: FlowTokens, random_bytes: RandomBytes) -> None:
        self.tokens = tokens
        self._random_bytes = random_bytes
        self._flows: dict[bytes, Flow] = {}

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[Flow]:
        return iter(self._flows.values())

    def open(self, remote: Address, secure: bool, host: Address) -> Flow:
        """A flow for a connection that has just been upgraded. `host` is what the upgrade asked for."""
        connection = self._random_bytes(CONNECTION_ID_BYTES)
        flow = Flow(connection, self.tokens.opened(connection), remote, secure, host)
        self._flows[connection] = flow
        return flow

    def close(self, connection: bytes) -> Flow | None:
        """Forget a flow; None when it is not known."""
        flow = self._flows.pop(connection, None)
        if flow is not None:
            flow.is_open = False
            self.tokens.closed(flow.token)
        return flow

    def get(self, connection: bytes) -> Flow | None:
        """The living flow with this connection id."""
        return self._flows.get(connection)
