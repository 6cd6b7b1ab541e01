"""`wsgate turn-test URL`: what a STUN or TURN server does, step by step, with round-trip times (RFC 8489, RFC 8656).

Two allocations are made, each the peer of the other, so that nothing else is needed and any server can be asked.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.answers import Field
from wsgate.turn.client import Answered, Effect, FromPeer, Refused, Transmit, TurnClient, Unanswered
from wsgate.turn.stun import Method
from wsgate.turn.uri import TurnUri
from wsgate.turn.values import Family
from wsgate.turn_link import Link, LinkError, Trust, connect

UDP_PROTOCOL = 17
PAYLOAD_BYTES = 172
"""As much as 20 ms of G.711 in RTP."""
DATA_TRIES = 5
DATA_SECONDS = 1.0
"""How long one datagram may be under way before the next is sent."""
FAREWELL_SECONDS = 1.0
CHANNEL = 0x4000


class Outcome(enum.IntEnum):
    """What was found; the value is the exit status (2 is wrong usage)."""

    WORKS = 0
    MISUSED = 1
    UNREACHABLE = 3
    CERTIFICATE = 4
    CREDENTIALS = 5
    ALLOCATION = 6
    PEER = 7
    DATA = 8


class Failure(Exception):
    """A step failed: the exit status and the sentence that says what to look at."""

    def __init__(self, outcome: Outcome, sentence: str) -> None:
        super().__init__(sentence)
        self.outcome = outcome


class Target(NamedTuple):
    """The server, how it is trusted, how long it may take, and the family of the relayed addresses (None: IPv4)."""

    uri: TurnUri
    trust: Trust
    seconds: float
    family: Family | None


_ADVICE = {
    401: (Outcome.CREDENTIALS, "user name or password is wrong, expired, or made with another secret"),
    438: (Outcome.CREDENTIALS, "the nonce is stale each time: does the client's address change from packet to packet?"),
    441: (Outcome.CREDENTIALS, "the allocation belongs to another user"),
    403: (Outcome.ALLOCATION, "the server forbids it to this user"),
    437: (Outcome.ALLOCATION, "an allocation of this address and port is there already"),
    440: (Outcome.ALLOCATION, "the server does not relay in that address family: try with or without --ipv6"),
    442: (Outcome.ALLOCATION, "the server does not relay over UDP"),
    486: (Outcome.ALLOCATION, "the user's quota is used up: two allocations are needed"),
    508: (Outcome.ALLOCATION, "the server has no port or descriptor left"),
}
_PEER_ADVICE = (
    "the server refuses to relay to the address that it relays with. Look at its lists of peers (wsgate: deny_peers;"
    " coturn: denied-peer-ip, allow-loopback-peers), and behind a NAT at the address that it tells (wsgate:"
    " external_address; coturn: external-ip)"
)


class Session:
    """One 5-tuple: the pure client, its link, and what it learned."""

    def __init__(self, target: Target, username: str, password: str) -> None:
        began = time.monotonic()
        try:
            self._link, self.host = connect(target.uri, target.trust, target.seconds)
        except LinkError as error:
            outcome = Outcome.CERTIFICATE if error.certificate else Outcome.UNREACHABLE
            raise Failure(outcome, f"cannot connect to {target.uri}: {error}") from None
        self.seconds = time.monotonic() - began
        self.relayed = Address("", 0)
        self.allocated = False
        reliable = self._link.reliable
        self.client = TurnClient(username, password, os.urandom, reliable=reliable, give_up_seconds=target.seconds)
        self._arrived: list[FromPeer] = []

    @property
    def link(self) -> Link:
        """The transport."""
        return self._link

    def call(self, what: str, method: int, fields: Iterable[Field] = ()) -> Answered:
        """One request and its success answer. Raises Failure."""
        end = self._until_end(self.client.request(method, fields, time.monotonic()))
        if isinstance(end, Answered):
            return end
        if isinstance(end, Refused):
            raise _refusal(what, end, self.client)
        hint = f"; {end.rejected} answers came whose integrity is wrong" if end.rejected else ""
        raise Failure(
            Outcome.UNREACHABLE,
            f"{what}: no answer in {end.seconds:.1f} s{hint}: is it a STUN server, does a"
            " firewall drop it, does the transport fit?",
        )

    def transmit(self, effect: Transmit) -> None:
        """Send without waiting. Raises Failure."""
        try:
            self._link.send(effect.data)
        except LinkError as error:
            raise Failure(Outcome.UNREACHABLE, str(error)) from None

    def take(self, payload: bytes, seconds: float) -> FromPeer | None:
        """The peer's data `payload` when it comes in time. Raises Failure."""
        deadline = time.monotonic() + seconds
        while True:
            for one in self._arrived:
                if one.data == payload:
                    self._arrived.clear()
                    return one
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._receive(left)

    def close(self) -> None:
        """Free the allocation if there is one, and hang up; a server that is gone is let be."""
        if self.allocated:
            try:
                self._until_end(
                    self.client.request(Method.REFRESH, (stun.LIFETIME(0),), time.monotonic()),
                    time.monotonic() + FAREWELL_SECONDS,
                )
            except Failure:
                self.allocated = False
        self._link.close()

    def _until_end(self, effects: list[Effect], deadline: float = float("inf")) -> Answered | Refused | Unanswered:
        while True:
            for effect in effects:
                if isinstance(effect, Transmit):
                    self.transmit(effect)
                elif isinstance(effect, (Answered, Refused, Unanswered)):
                    return effect
            now, due = time.monotonic(), self.client.next_timer()
            if due is None or now >= deadline:
                return Unanswered(0.0, 0)
            effects = self._receive(due - now) if due > now else self.client.handle_timer(now)

    def _receive(self, seconds: float) -> list[Effect]:
        try:
            messages = self._link.receive(seconds)
        except LinkError as error:
            raise Failure(Outcome.UNREACHABLE, str(error)) from None
        now = time.monotonic()
        effects = [effect for message in messages for effect in self.client.receive(message, now)]
        self._arrived += [effect for effect in effects if isinstance(effect, FromPeer)]
        return effects


def _refusal(what: str, refused: Refused, client: TurnClient) -> Failure:
    code, reason = refused.error
    if code == 401 and client.login is None:
        sentence = "the server asks for credentials: give --user, or -c with an ini file that has a shared secret"
        return Failure(Outcome.CREDENTIALS, f"{what}: 401 {reason!a}: {sentence}")
    outcome, advice = _ADVICE.get(code, (Outcome.ALLOCATION, "the server does not do that"))
    if code == 403 and what.startswith(("permission", "channel")):
        outcome, advice = Outcome.PEER, _PEER_ADVICE
    realm = f" (realm {client.login.realm!a})" if client.login is not None and code == 401 else ""
    return Failure(outcome, f"{what}: {code} {reason!a}{realm}: {advice}")


def run(target: Target, username: str, password: str, tell: Callable[[str], None]) -> Outcome:
    """Try everything in turn and tell each step in a line; what was found. The last line is the verdict."""
    sessions: list[Session] = []
    tell(f"{target.uri}")
    try:
        _run(target, username, password, sessions, lambda *row: tell(_line(*row)))
    except Failure as failure:
        tell(f"FAILED: {failure}")
        return failure.outcome
    finally:
        for session in sessions:
            session.close()
    tell("all is well: media is relayed" if target.uri.relays else "all is well: Binding is answered")
    return Outcome.WORKS


def _line(step: str, seconds: float, found: str) -> str:
    return f"  {step:<14}{seconds * 1000:9.2f} ms  {found}"


_Tell = Callable[[str, float, str], None]


def _run(target: Target, username: str, password: str, sessions: list[Session], tell: _Tell) -> None:
    one = Session(target, username, password)
    sessions.append(one)
    tell("connect", one.seconds, f"{Address(one.host, target.uri.port)} over {one.link.described}")
    answer = one.call("binding", Method.BINDING)
    mapped = answer.message.get(stun.XOR_MAPPED_ADDRESS)
    tell("binding", answer.seconds, f"the server sees this client at {mapped}")
    if not target.uri.relays:
        return
    _allocate(one, "allocate", target, tell)
    two = Session(target, username, password)
    sessions.append(two)
    _allocate(two, "allocate peer", target, tell)
    for session, peer in ((one, two), (two, one)):
        field = stun.XOR_PEER_ADDRESS(peer.relayed)
        answer = session.call(f"permission for {peer.relayed}", Method.CREATE_PERMISSION, (field,))
        tell("permission", answer.seconds, f"for {peer.relayed}")
    _round_trip("send and data", tell, (one, two), (one.client.send, two.client.send), (two.relayed, one.relayed))
    for number, session, peer in ((CHANNEL, one, two), (CHANNEL + 1, two, one)):
        fields = (stun.CHANNEL_NUMBER(number), stun.XOR_PEER_ADDRESS(peer.relayed))
        answer = session.call(f"channel to {peer.relayed}", Method.CHANNEL_BIND, fields)
        tell("channel bind", answer.seconds, f"0x{number:04X} is {peer.relayed}")
    senders = (one.client.send_on_channel, two.client.send_on_channel)
    _round_trip("channel data", tell, (one, two), senders, (CHANNEL, CHANNEL + 1))
    for session in (one, two):
        answer = session.call("refresh to 0", Method.REFRESH, (stun.LIFETIME(0),))
        session.allocated = False
        tell("refresh to 0", answer.seconds, f"{session.relayed} is freed")


def _allocate(session: Session, step: str, target: Target, tell: _Tell) -> None:
    fields: list[Field] = [stun.REQUESTED_TRANSPORT(UDP_PROTOCOL)]
    if target.family is not None:
        fields.append(stun.REQUESTED_ADDRESS_FAMILY(target.family))
    answer = session.call("allocate", Method.ALLOCATE, fields)
    relayed = answer.message.get(stun.XOR_RELAYED_ADDRESS)
    if relayed is None:
        raise Failure(Outcome.ALLOCATION, "allocate: the answer has no relayed address")
    session.relayed, session.allocated = relayed, True
    login = session.client.login
    how = (
        ""
        if login is None
        else f", realm {login.realm!a}, key by {login.algorithm.name}, integrity by {login.kind.name}"
    )
    lifetime = answer.message.get(stun.LIFETIME)
    tell(step, answer.seconds, f"relayed address {relayed} for {lifetime} s{how}")


def _round_trip(
    step: str,
    tell: _Tell,
    sessions: tuple[Session, Session],
    senders: tuple[Callable[..., Transmit], Callable[..., Transmit]],
    places: tuple[Address | int, Address | int],
) -> None:
    """A payload from the first to the second, and another back. Raises Failure."""
    one, two = sessions
    for lost in range(DATA_TRIES):
        there, back = os.urandom(PAYLOAD_BYTES), os.urandom(PAYLOAD_BYTES)
        began = time.monotonic()
        one.transmit(senders[0](places[0], there))
        reached = two.take(there, DATA_SECONDS)
        if reached is not None:
            two.transmit(senders[1](places[1], back))
            if one.take(back, DATA_SECONDS) is not None:
                note = f", after {lost} that were lost" if lost else ""
                tell(step, time.monotonic() - began, f"{PAYLOAD_BYTES} bytes through both relays and back{note}")
                return
    raise Failure(
        Outcome.DATA,
        f"{step}: none of {DATA_TRIES} datagrams came through from {one.relayed} to {two.relayed} and back, though the"
        " server permitted it: can it reach the address that it tells (a NAT without hairpin, a firewall on the ports"
        " that it relays with)?",
    )
