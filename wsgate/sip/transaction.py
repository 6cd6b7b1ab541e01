"""The transaction layer: four machines, their tables, their timers (RFC 3261 §17 with RFC 6026 and RFC 4320). Pure.

Call a method, apply the effects it returns in their order, and call `handle_timer` when `next_timer` is due. What the
machines do stands in transaction_tables; here are the transactions, the matching and the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

from wsgate.addr import Address, Hop, Transport
from wsgate.errors import ProtocolError
from wsgate.metrics import Counters
from wsgate.sip.message import Message
from wsgate.sip.transaction_effects import (
    AckReceived,
    ClientTransaction,
    Effect,
    Ended,
    Failed,
    Failure,
    RequestReceived,
    ResponseReceived,
    Send,
    ServerTransaction,
    Transaction,
)
from wsgate.sip.transaction_messages import (
    Key,
    ack_key,
    ack_to,
    answer_port,
    cancel_of,
    client_key,
    has_next_via,
    has_transaction_branch,
    overload_tag,
    overloaded,
    server_key,
    trying,
)
from wsgate.sip.transaction_tables import Action, Event, Row, State
from wsgate.sip.transaction_timers import Timers, TransactionSettings

__all__ = [
    "AckReceived",
    "ClientTransaction",
    "Effect",
    "Ended",
    "Failed",
    "Failure",
    "RequestReceived",
    "ResponseReceived",
    "Send",
    "ServerTransaction",
    "State",
    "TransactionLayer",
    "TransactionSettings",
]

TIMERS_AT_ONCE = 1000
"""How many timers of one length one call of `handle_timer` serves; `next_timer` is then still due."""

PROVISIONALS_REMEMBERED = 16
"""Different provisionals of one INVITE (a forked one) among which a retransmission is known (I6)."""


class TransactionLayer:
    """All transactions of one worker. Not reentrant: apply the effects of a call after it has returned."""

    def __init__(self, settings: TransactionSettings, counters: Counters) -> None:
        self._settings = settings
        self._counters = counters
        self._servers: dict[Key, ServerTransaction] = {}
        self._acks: dict[Key, ServerTransaction] = {}
        self._clients: dict[Key, ClientTransaction] = {}
        self._live: dict[int, Transaction] = {}
        self._waiting: dict[object, dict[int, Transaction]] = {}
        self._asked: dict[bytes, int] = {}  # how many of the waiting are requests that the connection sent
        self._timers = Timers(settings, self._live)
        self._numbers: Iterator[int] = count(1)

    def __len__(self) -> int:
        return len(self._live)

    def receive_request(self, message: Message, hop: Hop, now: float, *, is_stranger: bool = False) -> list[Effect]:
        """A request from the wire. `hop` is where its answers go, `received` and `rport` already resolved (RFC 3581).

        Passes new requests up with their flaw, if any; drops what cannot be answered. The connection of a stranger (a
        browser) holds no more than its share of the table.
        """
        effects: list[Effect] = []
        try:
            key = server_key(message, hop)
        except ProtocolError:
            self._counters.count("sip_malformed_dropped")
            return effects
        if message.method == b"ACK":
            self._receive_ack(key, message, hop, now, effects)
            return effects
        server = self._servers.get(key)
        if server is None:
            full = self._full(hop, is_stranger)
            if full and not self._may_exceed(message, hop):
                self._counters.count("sip_transactions_full")
                effects.append(Send(hop, overloaded(message, full)))
                return effects
            server = ServerTransaction(key, hop, message, next(self._numbers))
            self._servers[key] = server
            self._live[server.number] = server
            if server.reliable and hop.connection:
                self._waiting.setdefault(hop.connection, {})[server.number] = server
                self._asked[hop.connection] = self._asked.get(hop.connection, 0) + 1
        else:
            # Rule B4: a retransmission ends here, it never reaches the other side.
            self._counters.count("sip_retransmissions_received")
        self._step(server, Event.REQUEST, now, effects)
        return effects

    def receive_response(self, message: Message, hop: Hop, now: float) -> list[Effect]:
        """A response from the wire that came from `hop`. What matches no transaction is dropped and counted (V3)."""
        effects: list[Effect] = []
        if message.flaw:
            self._counters.count("sip_malformed_dropped")
            return effects
        client = self._clients.get(client_key(message))
        if client is None:
            self._counters.count("sip_responses_unmatched")
        elif not client.accepts(hop):
            self._counters.count("sip_responses_from_elsewhere")
        elif not has_next_via(message) and has_next_via(client.request):
            # For the RFC an answer to us alone: who asked could not know it for its own (C1).
            self._counters.count("sip_responses_without_next_via")
        elif message.status >= 200:
            self._step(client, Event.SUCCESS if message.status < 300 else Event.FAILURE, now, effects, message)
        elif self._is_news(client, message, now):
            self._step(client, Event.PROVISIONAL, now, effects, message)
        return effects

    def respond(self, server: ServerTransaction, status: int, data: bytes, now: float) -> list[Effect]:
        """Answer with `data`, whose top Via is the requester's. What the state does not allow is not sent.

        Each 2xx to an INVITE is sent as passed, further ones too (6026 §7.1). To anything else no 408 is sent, no
        provisional but 100, and over UDP none of these: the layer makes that 100 itself when it is due (4320 §4).
        """
        effects: list[Effect] = []
        event = Event.PROVISIONAL if status < 200 else Event.SUCCESS if status < 300 else Event.FAILURE
        if not server.is_invite:
            if status == 408:
                event = Event.NO_ANSWER
            elif status < 200 and (status > 100 or not server.reliable):
                return effects
        elif status >= 200 and server.state is State.PROCEEDING and not has_transaction_branch(server.request.branch):
            server.ack_key = ack_key(server.key, data)
            self._acks[server.ack_key] = server
        self._step(server, event, now, effects, data=data)
        return effects

    def request(
        self, message: Message, hop: Hop, now: float, context: object, accepts: Callable[[Hop], bool]
    ) -> tuple[ClientTransaction, list[Effect]]:
        """Send a request that has our Via with a fresh branch on top. `accepts` judges where an answer comes from.

        Raises ProtocolError where Via cannot be read, ValueError for an ACK and for a branch in use.
        """
        return self.send_request(message.data, message.method, message.branch, hop, now, context, accepts)

    def send_request(
        self,
        data: bytes,
        method: bytes,
        branch: bytes,
        hop: Hop,
        now: float,
        context: object,
        accepts: Callable[[Hop], bool],
    ) -> tuple[ClientTransaction, list[Effect]]:
        """Send a request that was just written: its bytes, its method, and the branch of our Via on top.

        Raises ValueError for an ACK and for a branch in use.
        """
        effects: list[Effect] = []
        return self._request(data, method, branch, hop, now, context, accepts, effects), effects

    def cancel(self, client: ClientTransaction, now: float, reason: bytes = b"") -> list[Effect]:
        """End an INVITE: CANCEL once a provisional is here, never after a final response (RFC 3261 §9.1, B5).

        `reason` is the value of a Reason header (RFC 3326). No final response within 64*T1: Failed with TIMEOUT.
        """
        effects: list[Effect] = []
        if client.is_invite and client.cancel is None:
            self._step(client, Event.CANCEL, now, effects, data=reason)
        return effects

    def invite_server(self, cancel: Message, hop: Hop) -> ServerTransaction | None:
        """The INVITE that a CANCEL from `hop` speaks of (RFC 3261 §9.2); None: the answer is 481."""
        try:
            return self._servers.get(server_key(cancel, hop, b"INVITE"))
        except ProtocolError:
            return None

    def transport_failed(self, hop: Hop, now: float, reason: str) -> list[Effect]:
        """A hop cannot be reached, or its connection is gone: all that waits for it fails.

        UDP: what was sent to this address. A flow or stream: what belongs to its connection, and what was sent to
        its address by whatever connection there is. Only the answers to what came by TCP or TLS have another way: to
        the port of its Via (RFC 3261 §18.2.2). `reason` is passed on for the log.
        """
        effects: list[Effect] = []
        marks: list[object] = [(hop.transport, hop.address)]
        if hop.connection and hop.transport.reliable:
            marks.append(hop.connection)
        for mark in marks:
            for transaction in list(self._waiting.get(mark, {}).values()):
                if isinstance(transaction, ClientTransaction):
                    self._step(transaction, Event.TRANSPORT_ERROR, now, effects, data=reason.encode())
                elif transaction.hop.transport in (Transport.TCP, Transport.TLS):
                    self._let_go(transaction)
                    # The connection stays named: it is replaced towards backends alone, not towards strangers (N4).
                    address = Address(transaction.hop.address.host, answer_port(transaction.request, transaction.hop))
                    transaction.hop = transaction.hop._replace(address=address)
                else:
                    self._step(transaction, Event.CONNECTION_LOST, now, effects)
        return effects

    def next_timer(self) -> float | None:
        """When `handle_timer` is to be called, None for never. May lie in the past."""
        return self._timers.next()

    def handle_timer(self, now: float) -> list[Effect]:
        """Serve the timers that are due, at most TIMERS_AT_ONCE of each length."""
        effects: list[Effect] = []
        for transaction, event in self._timers.due(now, TIMERS_AT_ONCE):
            # One that ended meanwhile has no row for anything.
            self._step(transaction, event, now, effects)
        return effects

    def _receive_ack(self, key: Key, message: Message, hop: Hop, now: float, effects: list[Effect]) -> None:
        server = self._servers.get(key) or self._acks.get(key)
        if message.flaw:
            self._counters.count("sip_malformed_dropped")
        elif server is not None:
            self._step(server, Event.ACK, now, effects, message)
        elif message.to_tag != overload_tag(message):
            effects.append(AckReceived(message, hop))

    def _full(self, hop: Hop, is_stranger: bool) -> str:
        """The option of [limits] that has no room for another request of `hop`; empty when there is room."""
        if len(self._live) >= self._settings.transactions:
            return "transactions"
        if is_stranger and self._asked.get(hop.connection, 0) >= self._settings.transactions_per_connection:
            return "transactions_per_connection"
        return ""

    def _may_exceed(self, message: Message, hop: Hop) -> bool:
        """A CANCEL makes room, and there is at most one for each INVITE: a full table still takes it."""
        return message.method == b"CANCEL" and self.invite_server(message, hop) is not None

    def _is_news(self, client: ClientTransaction, message: Message, now: float) -> bool:
        """False for the retransmission of a provisional: the same bytes again (RFC 3261 §17.2.1, rule I6).

        One that differs in anything is news: a queue counts by the Reason phrases of several 182 (§21.1.5). The same
        one after 64*T1 is no retransmission but the sign of life of RFC 3261 §13.3.1.1, which is to reach
        Timer C of every proxy on the way.
        """
        provisional = hash(message.data)
        seen = client.provisionals
        if seen is None:
            seen = client.provisionals = {}
        last = seen.pop(provisional, None)
        if last is not None and now - last < 64 * self._settings.t1:
            seen[provisional] = last
            self._counters.count("sip_retransmissions_received")
            return False
        if len(seen) >= PROVISIONALS_REMEMBERED:
            del seen[next(iter(seen))]
        seen[provisional] = now
        return True

    def _request(
        self,
        data: bytes,
        method: bytes,
        branch: bytes,
        hop: Hop,
        now: float,
        context: object,
        accepts: Callable[[Hop], bool],
        effects: list[Effect],
        is_internal: bool = False,
    ) -> ClientTransaction:
        key: Key = (branch, method)
        if method == b"ACK" or key in self._clients:
            raise ValueError(f"no client transaction for {method!r} with branch {branch!r}")
        is_invite = method == b"INVITE"
        client = ClientTransaction(key, hop, data, next(self._numbers), is_invite, accepts, context, is_internal)
        self._clients[key] = client
        self._live[client.number] = client
        self._waiting.setdefault(_mark(hop), {})[client.number] = client
        self._step(client, Event.REQUEST, now, effects)
        return client

    def _step(
        self,
        transaction: Transaction,
        event: Event,
        now: float,
        effects: list[Effect],
        message: Message | None = None,
        data: bytes = b"",
    ) -> None:
        """Take the row for this event, if there is one. `data`: the response to send, or why it happened."""
        row: Row | None = transaction.table.get((transaction.state, event))
        if row is None:
            return
        transaction.state = row.state
        for action in row.actions:
            if isinstance(transaction, ClientTransaction):
                self._act_client(transaction, action, now, effects, message, data)
            else:
                self._act_server(transaction, action, effects, message, data)
        for timer in row.timers:
            if not self._timers.start(transaction, timer, now):
                self._step(transaction, timer, now, effects)
        if row.state is State.TERMINATED:
            self._end(transaction, effects)

    def _act_client(
        self,
        client: ClientTransaction,
        action: Action,
        now: float,
        effects: list[Effect],
        message: Message | None,
        data: bytes,
    ) -> None:
        if action is Action.SEND_REQUEST:
            effects.append(Send(client.hop, client.data))
        elif action is Action.PASS_RESPONSE and message is not None:
            if not client.is_internal:
                effects.append(ResponseReceived(client, message))
        elif action is Action.SEND_ACK and message is not None:
            effects.append(Send(client.hop, ack_to(client.request, message)))
        elif action is Action.HOLD_CANCEL:
            client.cancel = data
        elif action is Action.SEND_HELD_CANCEL:
            if client.cancel is not None:
                self._step(client, Event.CANCEL, now, effects, data=client.cancel)
        elif action is Action.SEND_CANCEL:
            client.cancel = data
            self._send_cancel(client, now, effects)
        elif not client.is_internal:
            why = Failure.TIMEOUT if action is Action.REPORT_TIMEOUT else Failure.TRANSPORT
            effects.append(Failed(client, why, data.decode()))

    def _act_server(
        self,
        server: ServerTransaction,
        action: Action,
        effects: list[Effect],
        message: Message | None,
        data: bytes,
    ) -> None:
        if action is Action.PASS_REQUEST:
            effects.append(RequestReceived(server, server.request, server.hop))
        elif action is Action.PASS_ACK and message is not None:
            effects.append(AckReceived(message, server.hop))
        elif action is not Action.RESEND_RESPONSE:
            server.response = trying(server.request) if action is Action.SEND_TRYING else data
            effects.append(Send(server.hop, server.response))
        elif server.response:
            effects.append(Send(server.hop, server.response))

    def _send_cancel(self, client: ClientTransaction, now: float, effects: list[Effect]) -> None:
        """The CANCEL lives in a non-INVITE transaction of its own, of which the proxy hears nothing (§9.1)."""
        data = cancel_of(client.request, client.cancel or b"")
        branch = client.request.branch
        self._request(data, b"CANCEL", branch, client.hop, now, None, client.accepts, effects, is_internal=True)

    def _end(self, transaction: Transaction, effects: list[Effect]) -> None:
        del self._live[transaction.number]
        if isinstance(transaction, ServerTransaction):
            del self._servers[transaction.key]
            if transaction.ack_key is not None:
                self._acks.pop(transaction.ack_key, None)
            self._let_go(transaction)
            effects.append(Ended(transaction, None))
        else:
            del self._clients[transaction.key]
            self._forget(_mark(transaction.hop), transaction.number)
            if not transaction.is_internal:
                effects.append(Ended(None, transaction))

    def _let_go(self, server: ServerTransaction) -> None:
        """It does not wait for the end of its connection any more, nor count for it."""
        connection = server.hop.connection
        if server.number not in self._waiting.get(connection, ()):
            return
        self._forget(connection, server.number)
        self._asked[connection] -= 1
        if not self._asked[connection]:
            del self._asked[connection]

    def _forget(self, mark: object, number: int) -> None:
        waiting = self._waiting.get(mark)
        if waiting is not None:
            waiting.pop(number, None)
            if not waiting:
                del self._waiting[mark]


def _mark(hop: Hop) -> bytes | tuple[Transport, Address]:
    """Under what a client transaction waits for its transport to fail."""
    if hop.connection and hop.transport.reliable:
        return hop.connection
    return hop.transport, hop.address
