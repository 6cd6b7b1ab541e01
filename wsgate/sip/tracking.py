"""What passes through is written into the dialog table: beginnings, targets, CSeq numbers, ends. Pure.

Rules: "dialog table" of the specification, D1 (what each side gave), N6 (who may change a target), W2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from wsgate.addr import Hop
from wsgate.errors import ProtocolError
from wsgate.sip.dialogs import Dialog, DialogState, DialogTable, Found, Key, Side
from wsgate.sip.flow import FlowTokens, Token, Verdict
from wsgate.sip.headers import parse_name_addr, parse_uri
from wsgate.sip.message import Message

BEGINNERS = frozenset((b"INVITE", b"SUBSCRIBE", b"REFER"))
"""Methods whose first answer with a To tag makes a dialog (RFC 3261 §12.1, RFC 6665 §4.1, RFC 3515 §2.4)."""

REFRESHERS = BEGINNERS | {b"UPDATE", b"NOTIFY"}
"""Methods whose Contact is the new remote target (RFC 3261 §12.2, RFC 3311 §5.1, RFC 6665 §4.4.1)."""

CHALLENGES = (401, 407)
"""What is answered with the same request once more, with credentials."""

NONE_BEGUN: Mapping[Key, bool] = MappingProxyType({})


class Party(NamedTuple):
    """Who sits on one side of wsgate: a flow, or else a backend (empty: a target of direct_targets, a phone of ours).

    `source` is where a phone's packets come from, if there is one.
    """

    flow: bytes
    backend: str
    source: Hop | None = None


class Tracker:
    """Reads requests and responses that pass and keeps the dialog table true."""

    def __init__(self, dialogs: DialogTable, tokens: FlowTokens) -> None:
        self._dialogs = dialogs
        self._tokens = tokens

    def request(self, message: Message, now: float, may_change_target: bool) -> Found | None:
        """A request inside a dialog passes: the sender's CSeq and, where it may, its target are noted (N6)."""
        found = self._dialogs.find(message.call_id, message.from_tag, message.to_tag)
        if found is None:
            return None
        self._dialogs.touch(found.dialog, now)
        found.sender.cseq = max(found.sender.cseq, message.cseq[0])
        if may_change_target and message.method in REFRESHERS:
            found.sender.target = _contact(message) or found.sender.target
        return found

    def response(
        self,
        request: Message,
        caller: Party,
        callee: Party,
        response: Message,
        now: float,
        begun: Mapping[Key, bool] = NONE_BEGUN,
    ) -> Key | None:
        """A response passes upstream. Returns the key of the dialog that it began, if it began one.

        `begun` are the dialogs that earlier answers to the same request began, True where a 2xx did. None of those
        begins twice: a 2xx comes again when its ACK was lost, maybe behind the BYE of its call (RFC 3261 §13.3.1.4).
        """
        if not 100 < response.status < 300 or not response.to_tag:
            return None
        if request.to_tag:
            self._within(request, response, now)
            return None
        if request.method not in BEGINNERS:
            return None
        key = (request.call_id, request.from_tag, response.to_tag)
        if begun.get(key) and self._dialogs.get(key) is None:
            return None
        dialog = self._dialogs.begin(
            key, request.method, self._caller(request, caller), self._callee(response, callee), now
        )
        if dialog is None:
            return None
        if response.status >= 200:
            if dialog.state is DialogState.EARLY:
                dialog.answered_at = now
            dialog.state = DialogState.CONFIRMED
            dialog.callee.target = _contact(response) or dialog.callee.target
        self._dialogs.touch(dialog, now)
        return key

    def notified(self, subscribe: Message, caller: Party, notify: Message, notifier: Party, now: float) -> bool:
        """A NOTIFY answers `subscribe` and begins a dialog (RFC 6665 §4.4.1); False when the table is full."""
        key = (subscribe.call_id, subscribe.from_tag, notify.from_tag)
        sides = self._caller(subscribe, caller), self._caller(notify, notifier)
        dialog = self._dialogs.begin(key, subscribe.method, *sides, now)
        if dialog is None:
            return False
        dialog.state = DialogState.CONFIRMED
        self._dialogs.touch(dialog, now)
        return True

    def refused(self, keys: Iterable[Key]) -> None:
        """The first request failed: its early dialogs are over (RFC 3261 §12.3)."""
        for key in keys:
            found = self._dialogs.find(*key)
            if found is not None and found.dialog.state is DialogState.EARLY:
                self._dialogs.end(found.dialog.key)

    def answered(self, request: Message, status: int, *, is_ours: bool = False) -> None:
        """The final answer to a request inside a dialog: BYE, NOTIFY `terminated` or 481 to NOTIFY ends it.

        A challenge does not: the request comes again with credentials (RFC 3261 §22). Our own has none, and ends all
        the same (rule D4).
        """
        if status < 200 or not request.to_tag or (status in CHALLENGES and not is_ours):
            return
        found = self._dialogs.find(request.call_id, request.from_tag, request.to_tag)
        if found is not None and self._is_last(request, status, found.dialog):
            by = "the caller" if found.sender is found.dialog.caller else "the callee"
            found.dialog.ended_by = found.dialog.ended_by or by
            self._dialogs.end(found.dialog.key)

    def _is_last(self, request: Message, status: int, dialog: Dialog) -> bool:
        if request.method == b"BYE":
            return dialog.method == b"INVITE"
        if request.method == b"NOTIFY" and status == 481:
            return dialog.method != b"INVITE"  # the subscriber knows nothing of it (RFC 6665 §4.2.2)
        state = (request.header(b"subscription-state") or b"").partition(b";")[0].strip().lower()
        # A REFER inside a call ends its own subscription, not the call (RFC 3515 §2.4.7).
        return request.method == b"NOTIFY" and state == b"terminated" and dialog.method != b"INVITE"

    def _within(self, request: Message, response: Message, now: float) -> None:
        found = self._dialogs.find(request.call_id, request.from_tag, request.to_tag)
        if found is None:
            return
        self._dialogs.touch(found.dialog, now)
        if response.status >= 200 and request.method in REFRESHERS:
            found.receiver.target = _contact(response) or found.receiver.target

    def _caller(self, request: Message, party: Party) -> Side:
        # Who sends a NOTIFY shows itself in the same way.
        routes = [route for route in _routes(request) if not self._is_ours(route)]
        name, cseq = request.header(b"from") or b"", request.cseq[0]
        return self._side(party, name, routes, _contact(request), cseq)

    def _callee(self, response: Message, party: Party) -> Side:
        # What stands above our own Record-Route was added behind us; from here the nearest comes first.
        routes: list[bytes] = []
        for route in _routes(response):
            if self._is_ours(route):
                break
            routes.insert(0, route)
        name = response.header(b"to") or b""
        return self._side(party, name, routes, _contact(response), 0)

    def _side(self, party: Party, name: bytes, routes: list[bytes], target: bytes, cseq: int) -> Side:
        first = self._token(routes[0]) if routes and not party.flow else None
        elsewhere = first.connection if first is not None else b""
        return Side(party.flow, party.backend, name, routes, target, cseq, party.source, elsewhere)

    def _is_ours(self, route: bytes) -> bool:
        token = self._token(route)
        return token is not None and token.worker == self._tokens.worker

    def _token(self, route: bytes) -> Token | None:
        """The flow token of a Route, also one of another worker (T3)."""
        try:
            token = self._tokens.read(parse_uri(route).user)
        except ProtocolError:
            return None
        return token if token.verdict is Verdict.VALID else None


def is_at(target: bytes, host: str) -> bool:
    """True when the remote target stands at this IP address."""
    try:
        return bool(target) and parse_uri(target).host == host
    except ProtocolError:
        return False


def _routes(message: Message) -> list[bytes]:
    """The URIs of Record-Route; none at all where one cannot be read: a route with a hole leads nowhere."""
    try:
        return [parse_name_addr(value).uri for value in message.values(b"record-route")]
    except ProtocolError:
        return []


def _contact(message: Message) -> bytes:
    """The URI of the first Contact; empty where there is none that can be read."""
    try:
        values = message.values(b"contact")
        return parse_name_addr(values[0]).uri if values else b""
    except ProtocolError:
        return b""
