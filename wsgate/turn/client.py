"""A STUN and TURN client as a pure machine: requests out, answers and peers' data in (RFC 8489 §6, §9.2; RFC 8656).

One request is open at a time. It is sent again while nothing comes (over datagrams), and once more with credentials or
a new nonce when the server asks for them (rules A1 to A3, seen from the other side).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import NamedTuple

from wsgate.addr import Address
from wsgate.errors import ProtocolError
from wsgate.turn import stun
from wsgate.turn.answers import Field
from wsgate.turn.auth import (
    NONCE_COOKIE,
    PASSWORD_ALGORITHMS_BIT,
    USERNAME_ANONYMITY_BIT,
    long_term_key,
    user_hash,
)
from wsgate.turn.stun import Integrity, Message, MessageClass, Method
from wsgate.turn.values import ErrorCode, PasswordAlgorithm

RETRANSMISSION_SECONDS = 0.5
"""RTO of RFC 8489 §6.2.1; doubled after each transmission."""
TRANSMISSIONS_MAX = 7
"""Rc of RFC 8489 §6.2.1."""
GIVE_UP_SECONDS = 39.5
"""A request without an answer has failed after so long, over any transport (RFC 8489 §6.2.1, §6.2.2)."""
CHALLENGES_MAX = 3
"""How often one request is sent again because of 401 and 438."""


class Transmit(NamedTuple):
    """Send these bytes to the server."""

    data: bytes


class Answered(NamedTuple):
    """The open request has its success answer, `seconds` after it was first sent."""

    message: Message
    seconds: float
    transmissions: int


class Refused(NamedTuple):
    """The open request has its error answer."""

    error: ErrorCode
    message: Message
    seconds: float


class Unanswered(NamedTuple):
    """Nothing came in time. `rejected` answers came whose integrity was wrong or missing (RFC 8489 §9.2.5)."""

    seconds: float
    rejected: int


class FromPeer(NamedTuple):
    """A peer's data: by a Data indication with `peer`, or on `channel` with `peer` None."""

    peer: Address | None
    channel: int
    data: bytes


Effect = Transmit | Answered | Refused | Unanswered | FromPeer


class Login(NamedTuple):
    """What the server asked for, and the key made for it. `kind` is the integrity that requests carry."""

    realm: str
    nonce: bytes
    algorithms: tuple[int, ...]
    algorithm: PasswordAlgorithm
    kind: Integrity
    key: bytes
    anonymous: bool


class _Open:
    """The request that waits for its answer."""

    __slots__ = (
        "began",
        "challenges",
        "data",
        "fields",
        "login",
        "method",
        "next_at",
        "rejected",
        "transaction_id",
        "transmissions",
        "wait",
    )

    def __init__(self, method: int, fields: tuple[Field, ...], now: float) -> None:
        self.method = method
        self.fields = fields
        self.began = self.next_at = now
        self.challenges = 0
        self.rejected = 0
        self.transaction_id = self.data = b""
        self.transmissions = 0
        self.wait = RETRANSMISSION_SECONDS
        self.login: Login | None = None


class TurnClient:
    """The client of one 5-tuple. `reliable` says that the transport retransmits itself (TCP, TLS)."""

    def __init__(
        self,
        username: str,
        password: str,
        random_bytes: Callable[[int], bytes],
        *,
        reliable: bool,
        give_up_seconds: float = GIVE_UP_SECONDS,
    ) -> None:
        self.login: Login | None = None
        """Once the server has asked for credentials."""
        self._username = username
        self._password = password
        self._random_bytes = random_bytes
        self._reliable = reliable
        self._give_up_seconds = give_up_seconds
        self._open: _Open | None = None

    def request(self, method: int, fields: Iterable[Field], now: float) -> list[Effect]:
        """Begin a request; one that was open is given up. Its end is Answered, Refused or Unanswered."""
        self._open = _Open(method, tuple(fields), now)
        return self._transmit_anew(self._open, now)

    def send(self, peer: Address, data: bytes) -> Transmit:
        """A Send indication (RFC 8656 §11.1)."""
        fields = (stun.XOR_PEER_ADDRESS(peer), stun.DATA(data))
        transaction_id = self._random_bytes(stun.TRANSACTION_ID_BYTES)
        return Transmit(stun.encode(Method.SEND, MessageClass.INDICATION, transaction_id, fields))

    def send_on_channel(self, channel: int, data: bytes) -> Transmit:
        """ChannelData (RFC 8656 §12.5), padded to 4 over a stream."""
        head = channel.to_bytes(2, "big") + len(data).to_bytes(2, "big")
        return Transmit(head + data + (bytes(-len(data) % 4) if self._reliable else b""))

    def receive(self, data: bytes, now: float) -> list[Effect]:
        """One datagram, or one frame of a stream. What is neither an answer nor a peer's data is dropped."""
        if len(data) >= 4 and 0x40 <= data[0] <= 0x7F:
            size = int.from_bytes(data[2:4], "big")
            if size > len(data) - 4:
                return []
            return [FromPeer(None, int.from_bytes(data[:2], "big"), data[4 : 4 + size])]
        try:
            message = stun.parse(data)
            if (message.method, message.message_class) == (Method.DATA, MessageClass.INDICATION):
                peer, payload = message.get(stun.XOR_PEER_ADDRESS), message.get(stun.DATA)
                return [FromPeer(peer, 0, payload)] if peer is not None and payload is not None else []
            return self._answer(message, now)
        except ProtocolError:
            return []

    def next_timer(self) -> float | None:
        """When `handle_timer` is to be called, None for not at all."""
        return None if self._open is None else self._open.next_at

    def handle_timer(self, now: float) -> list[Effect]:
        """Send the open request again, or give it up (RFC 8489 §6.2.1)."""
        request = self._open
        if request is None or request.next_at > now:
            return []
        if now >= request.began + self._give_up_seconds:
            self._open = None
            return [Unanswered(now - request.began, request.rejected)]
        return [self._transmit(request, now)]

    def _answer(self, message: Message, now: float) -> list[Effect]:
        request = self._open
        if (
            request is None
            or message.message_class not in (MessageClass.SUCCESS, MessageClass.ERROR)
            or (message.transaction_id, message.method) != (request.transaction_id, request.method)
        ):
            return []
        error = None
        if message.message_class is MessageClass.ERROR:
            error = message.get(stun.ERROR_CODE)
            if error is None:
                return []
        if not self._believed(message, request, error):
            request.rejected += 1
            return []
        if error is not None:
            if self._challenged(request, message, error):
                return self._transmit_anew(request, now)
            self._open = None
            return [Refused(error, message, now - request.began)]
        self._open = None
        return [Answered(message, now - request.began, request.transmissions)]

    @staticmethod
    def _believed(message: Message, request: _Open, error: ErrorCode | None) -> bool:
        """A success answer must show the integrity of its request (RFC 8489 §9.2.5).

        Errors are believed without it, for servers that do not know the user cannot make any.
        """
        login = request.login
        if login is None or (error is not None and message.integrity is None):
            return True
        return message.integrity is login.kind and message.verify(login.key)

    def _challenged(self, request: _Open, message: Message, error: ErrorCode) -> bool:
        """True when the request is to be sent again with what a 401 or 438 asks for (RFC 8489 §9.2.5)."""
        first = error.code == 401 and request.login is None
        if not (first or error.code == 438) or request.challenges >= CHALLENGES_MAX or not self._username:
            return False
        login = self._login(message)
        if login is None:
            return False
        request.challenges += 1
        self.login = login
        return True

    def _login(self, message: Message) -> Login | None:
        realm, nonce = message.get(stun.REALM), message.get(stun.NONCE)
        if realm is None or nonce is None:
            return None
        features = _features(nonce)
        offered = message.get(stun.PASSWORD_ALGORITHMS)
        if features & PASSWORD_ALGORITHMS_BIT and offered is None:
            return None  # somebody on the way took the list out (RFC 8489 §9.2.5, §16.1.3)
        algorithm, kind = PasswordAlgorithm.MD5, Integrity.SHA1
        if offered is not None:
            known = [PasswordAlgorithm(one) for one in offered if one in set(PasswordAlgorithm)]
            if not known:
                return None
            algorithm, kind = known[0], Integrity.SHA256
        key = long_term_key(self._username, realm, self._password, algorithm)
        anonymous = bool(features & USERNAME_ANONYMITY_BIT)
        return Login(realm, nonce, offered or (), algorithm, kind, key, anonymous)

    def _fields(self, request: _Open) -> tuple[Field, ...]:
        """What the request says and, once the server has asked, who says it (RFC 8489 §9.2.3)."""
        login = request.login
        if login is None:
            return request.fields
        shown: list[Field] = [stun.REALM(login.realm), stun.NONCE(login.nonce)]
        if login.anonymous:
            shown.append(stun.USERHASH(user_hash(self._username, login.realm)))
        else:
            shown.append(stun.USERNAME(self._username))
        if login.algorithms:
            shown += [stun.PASSWORD_ALGORITHMS(login.algorithms), stun.PASSWORD_ALGORITHM(login.algorithm)]
        return (*request.fields, *shown)

    def _transmit_anew(self, request: _Open, now: float) -> list[Effect]:
        """The first transmission of a new transaction."""
        request.login = None if request.method == Method.BINDING else self.login
        request.transaction_id = self._random_bytes(stun.TRANSACTION_ID_BYTES)
        integrity = None if request.login is None else (request.login.kind, request.login.key)
        request.data = stun.encode(
            request.method,
            MessageClass.REQUEST,
            request.transaction_id,
            self._fields(request),
            integrity=integrity,
            fingerprint=True,
        )
        request.transmissions = 0
        request.wait = RETRANSMISSION_SECONDS
        return [self._transmit(request, now)]

    def _transmit(self, request: _Open, now: float) -> Transmit:
        end = request.began + self._give_up_seconds
        request.transmissions += 1
        if self._reliable or request.transmissions >= TRANSMISSIONS_MAX:
            request.next_at = end
        else:
            request.next_at = min(now + request.wait, end)
            request.wait *= 2
        return Transmit(request.data)


def _features(nonce: bytes) -> int:
    """The security feature bits of a nonce, 0 where it has none (RFC 8489 §9.2, §18.1)."""
    if not nonce.startswith(NONCE_COOKIE):
        return 0
    try:
        return int.from_bytes(base64.b64decode(nonce[len(NONCE_COOKIE) : len(NONCE_COOKIE) + 4]), "big")
    except ValueError:
        return 0
