"""How the server answers: success, error and challenge, with what rules S4 and S5 add or withhold."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from wsgate.addr import Address, canonical_host
from wsgate.metrics import Counters
from wsgate.turn import stun
from wsgate.turn.auth import Accepted, Authenticator, UnauthenticatedRate
from wsgate.turn.effects import Client, Effect, Reply
from wsgate.turn.stun import Attribute, Message, MessageClass
from wsgate.turn.values import ErrorCode

REASONS = {
    400: "Bad Request",
    401: "Unauthenticated",
    403: "Forbidden",
    405: "Mobility Forbidden",
    420: "Unknown Attribute",
    437: "Allocation Mismatch",
    438: "Stale Nonce",
    440: "Address Family not Supported",
    441: "Wrong Credentials",
    442: "Unsupported Transport Protocol",
    443: "Peer Address Family Mismatch",
    446: "Connection Already Exists",
    447: "Connection Timeout or Failure",
    486: "Allocation Quota Reached",
    508: "Insufficient Capacity",
}
"""RFC 8489 §14.8, RFC 8656 §19, RFC 8016 §3.4."""

Field = tuple[Attribute[Any], Any]

ANSWERS_WAITING_MAX = 64
"""Answers without authentication to the streams of one source that wait for its bucket; more are dropped."""
SOURCES_WAITING_MAX = 1024
WAIT_SECONDS = 0.1
"""How often the bucket is asked again for them."""


class Request(NamedTuple):
    """A request on its way through the server; `accepted` once its sender is known."""

    message: Message
    client: Client
    now: float
    accepted: Accepted | None = None
    is_stream: bool = False
    """It came by TCP or TLS."""

    @property
    def user(self) -> str:
        """Who sent it, empty while that is not known."""
        return "" if self.accepted is None else self.accepted.user


def error_code(code: int) -> ErrorCode:
    """The value of ERROR-CODE for one of REASONS."""
    return ErrorCode(code, REASONS[code])


def mapped_address(client: Client) -> Field:
    """XOR-MAPPED-ADDRESS of a client."""
    return stun.XOR_MAPPED_ADDRESS(Address(canonical_host(client.address.host), client.address.port))


class Answers:
    """Writes answers. One to a request without authentication leaves only as the bucket of rule S4 allows.

    What the bucket withholds is dropped, as a client over UDP asks again. One on a stream does not (RFC 8489 §6.2.2):
    its answer waits, so that an office behind one address gets through where only TLS does.
    """

    def __init__(
        self, authenticator: Authenticator, rate: UnauthenticatedRate, software: str, counters: Counters
    ) -> None:
        self._authenticator = authenticator
        self._rate = rate
        self._software = software
        self._counters = counters
        self._waiting: dict[str, deque[Reply]] = {}
        self._again_at = 0.0

    def next_timer(self) -> float | None:
        """When `handle_timer` is to be called, None for not at all."""
        return self._again_at if self._waiting else None

    def handle_timer(self, now: float) -> list[Effect]:
        """Send what waited, as far as the buckets allow."""
        if not self._waiting or now < self._again_at:
            return []
        self._again_at = now + WAIT_SECONDS
        effects: list[Effect] = []
        for source, waiting in list(self._waiting.items()):
            while waiting and self._rate.take(waiting[0].client.address.host, len(waiting[0].data), now):
                effects.append(waiting.popleft())
            if not waiting:
                del self._waiting[source]
        return effects

    def forget(self, client: Client) -> None:
        """The stream of `client` is gone."""
        source = self._rate.source_of(client.address.host)
        waiting = deque(reply for reply in self._waiting.pop(source, ()) if reply.client != client)
        if waiting:
            self._waiting[source] = waiting

    def success(self, request: Request, fields: Iterable[Field] = ()) -> list[Effect]:
        """The success answer."""
        return self._answer(request, MessageClass.SUCCESS, fields)

    def error(
        self, request: Request, code: int, fields: Iterable[Field] = (), *, reason: str | None = None
    ) -> list[Effect]:
        """The error answer, counted by its code; `reason` instead of that of REASONS."""
        self._counters.count(f"turn_answered_{code}")
        value = error_code(code) if reason is None else ErrorCode(code, reason)
        return self._answer(request, MessageClass.ERROR, (stun.ERROR_CODE(value), *fields))

    def unknown(self, request: Request) -> list[Effect]:
        """420 for the attributes that are required and unknown (rule S3)."""
        return self.error(request, 420, (stun.UNKNOWN_ATTRIBUTES(tuple(request.message.unknown)),))

    def refused(self, request: Request, code: int, *, challenge: bool) -> list[Effect]:
        """The answer to a request that was not accepted; 401 and 438 challenge with a new nonce (rule A1)."""
        if not challenge:
            return self.error(request, code)
        credentials = self._authenticator.credentials
        fields: tuple[Field, ...] = (
            stun.REALM(credentials.realm),
            stun.NONCE(self._authenticator.nonce(request.client.address)),
            stun.PASSWORD_ALGORITHMS(credentials.algorithms),
        )
        if code == 401 and credentials.token_keys is not None:
            # RFC 7635 §6.1; the reason gives way to it, so that the answer stays within 128 bytes (rule S4).
            fields = (*fields, stun.THIRD_PARTY_AUTHORIZATION(credentials.token_keys.server_name))
            return self.error(request, code, fields, reason="")
        return self.error(request, code, fields)

    def take_unauthenticated(self, host: str, size: int, now: float) -> bool:
        """True when `size` bytes may go to `host` without authentication; they are then counted (rule S4)."""
        may = self._rate.take(host, size, now)
        if not may:
            self._counters.count("turn_unauthenticated_limited")
        return may

    def _answer(self, request: Request, message_class: MessageClass, fields: Iterable[Field]) -> list[Effect]:
        message, accepted = request.message, request.accepted
        integrity = None
        if accepted is not None and message.integrity is not None:
            integrity = (message.integrity, accepted.key)
            if self._software:
                fields = (*fields, stun.SOFTWARE(self._software))
        data = stun.encode(
            message.method,
            message_class,
            message.transaction_id,
            fields,
            integrity=integrity,
            fingerprint=message.fingerprint,
        )
        reply = Reply(request.client, data)
        if accepted is None and not self.take_unauthenticated(request.client.address.host, len(data), request.now):
            if request.is_stream:
                self._wait(reply, request.now)
            return []
        return [reply]

    def _wait(self, reply: Reply, now: float) -> None:
        source = self._rate.source_of(reply.client.address.host)
        if not self._waiting:
            self._again_at = now + WAIT_SECONDS
        elif source not in self._waiting and len(self._waiting) >= SOURCES_WAITING_MAX:
            return
        waiting = self._waiting.setdefault(source, deque())
        if len(waiting) < ANSWERS_WAITING_MAX:
            waiting.append(reply)
