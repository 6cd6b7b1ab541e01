"""Requests held to the identity that their connection showed at its upgrade (table A), and its end (rule H3). Pure."""

from __future__ import annotations

import heapq

from wsgate.errors import ProtocolError
from wsgate.identity import Identity
from wsgate.metrics import Counters
from wsgate.sip.contexts import Disconnect
from wsgate.sip.decisions import NO_DIALOG, Answer
from wsgate.sip.dialogs import DialogTable
from wsgate.sip.flow import Flow
from wsgate.sip.headers import parse_uri
from wsgate.sip.message import Message, warning
from wsgate.sip.proxy import Proxy

EXPIRED = "the identity of this connection has expired"
FOREIGN_FROM = "From is not of the identity (cookie, token) that this connection showed"
FOREIGN_TO = "To of a REGISTER is not of the identity (cookie, token) that this connection showed"
FOREIGN_DESTINATION = "the cookie WSSessionInfo of this connection does not allow this destination"


class Identities:
    """Judges the requests of flows that have an identity, and knows when each identity ends."""

    def __init__(self, dialogs: DialogTable, proxy: Proxy, counters: Counters) -> None:
        self._dialogs = dialogs
        self._proxy = proxy
        self._counters = counters
        self._ends: dict[bytes, float] = {}
        self._timers: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._ends)

    def opened(self, flow: Flow) -> None:
        """A connection with an identity is there."""
        if flow.identity is None:
            return
        self._ends[flow.id] = flow.identity.expires_at
        heapq.heappush(self._timers, (flow.identity.expires_at, flow.id))

    def closed(self, connection: bytes) -> None:
        """It is gone. What stays in the heap of those that went is never more than what lives."""
        self._ends.pop(connection, None)
        if len(self._timers) > 2 * len(self._ends) + 64:
            self._timers = [(at, living) for living, at in self._ends.items()]
            heapq.heapify(self._timers)

    def refusal(self, message: Message, flow: Flow | None, now: float) -> Answer | None:
        """What stands against a request of this flow; None where nothing does.

        A request inside a dialog of this flow goes by that dialog. One that only claims a dialog which nobody here
        knows must say what a new one might say, else it is 481: a To tag proves nothing (rule D1).
        """
        if flow is None or flow.identity is None:
            return None
        found = None
        if message.to_tag:
            found = self._dialogs.find(message.call_id, message.from_tag, message.to_tag)
            if found is not None and self._proxy.is_party(found.sender, flow.id):
                return None
        text = _against(message, flow.identity, now)
        if not text:
            return None
        self._counters.count("sip_identity_refused")
        return NO_DIALOG if message.to_tag and found is None else Answer(403, "Forbidden", (warning(text),))

    def next_timer(self) -> float | None:
        """When the earliest identity ends."""
        while self._timers and self._timers[0][1] not in self._ends:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def handle_timer(self, now: float) -> list[Disconnect]:
        """The connections whose identity has ended are closed with 1008 (rule H3)."""
        ended = []
        while self._timers and self._timers[0][0] <= now:
            _, connection = heapq.heappop(self._timers)
            if self._ends.pop(connection, None) is not None:
                self._counters.count("sip_identities_expired")
                ended.append(Disconnect(connection, "identity expired"))
        return ended


def _against(message: Message, identity: Identity, now: float) -> str:
    """The rule that speaks against this request, in words; empty where none does. Raises ProtocolError."""
    if identity.expires_at <= now:
        return EXPIRED
    if not _is_own(identity, message.from_uri):
        return FOREIGN_FROM
    if message.method == b"REGISTER":
        # What is registered is the To (RFC 3261 §10.2); the destination of the cookie is about calls.
        return "" if _is_own(identity, message.to_uri) else FOREIGN_TO
    if identity.destination is None:
        return ""
    reachable = all(identity.may_reach(parse_uri(uri)) for uri in (message.uri, message.to_uri))
    return "" if reachable else FOREIGN_DESTINATION


def _is_own(identity: Identity, uri: bytes) -> bool:
    try:
        return identity.is_own(parse_uri(uri))
    except ProtocolError:
        return False
