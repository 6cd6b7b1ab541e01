"""Calls whose browser vanished are ended for the other party (rule D4). Pure.

A browser that goes with its own INVITE unanswered: CANCEL after `orphan_grace`, and a 2xx that still comes is
acknowledged and hung up (that of a re-INVITE only acknowledged). With a call up: BYE to the side that still can hear,
`reconnect_grace` after the last loss, unless the same client has come back on a newer flow (JsSIP keeps its sessions
and comes back after 2 to 30 s, rule C7).
A subscription is forgotten then: its NOTIFY finds nobody, and the table has room for the living. A BYE of ours speaks
for the browser: its From and To, its route set and target as that side gave them, its highest CSeq + 1. Whatever it is
answered, our part ends.
"""

from __future__ import annotations

import enum
import heapq
from itertools import count

from wsgate.addr import Address, Hop, Transport
from wsgate.directory import Directory
from wsgate.errors import ProtocolError
from wsgate.metrics import Counters
from wsgate.sip.compose import Leg
from wsgate.sip.contexts import Branch, Context, Effect, Orphaned, Stray, branch_to
from wsgate.sip.decisions import Arrival, ToDirect, ToFlow, ToSibling
from wsgate.sip.dialogs import Dialog, DialogState, DialogTable, Found, Side
from wsgate.sip.flow import FlowTable
from wsgate.sip.forwarding import Forwarding
from wsgate.sip.headers import in_request_line
from wsgate.sip.message import Message
from wsgate.sip.proxy import Proxy
from wsgate.sip.settings import SipSettings
from wsgate.sip.siblings import Siblings

CANCELLED = b'SIP;cause=480;text="The caller\'s browser is gone"'
HUNG_UP = b'SIP;cause=480;text="The browser is gone"'
"""Reason headers that tell the other party why (RFC 3326)."""

BROWSER_GONE = "wsgate: the browser is gone (reconnect_grace)"
"""Who ended such a call, for the log."""

NOBODY = Hop(Transport.UDP, Address("", 0))
"""Where our own requests come from."""


class Grace(enum.Enum):
    """What is waited for."""

    ANSWER = "orphan_grace"
    RETURN = "reconnect_grace"


class Orphans:
    """Knows which flows went, and what they left behind."""

    def __init__(
        self,
        settings: SipSettings,
        dialogs: DialogTable,
        directory: Directory,
        flows: FlowTable,
        proxy: Proxy,
        forwarding: Forwarding,
        counters: Counters,
        siblings: Siblings,
    ) -> None:
        self._siblings = siblings
        self._settings = settings
        self._dialogs = dialogs
        self._directory = directory
        self._flows = flows
        self._proxy = proxy
        self._forwarding = forwarding
        self._counters = counters
        self._timers: list[tuple[float, int, Grace, bytes]] = []
        self._returns_until: dict[bytes, float] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._timers)

    def flow_closed(self, flow: bytes, now: float) -> None:
        """A flow is gone: its calls have their time of grace, those that it took over from older flows too."""
        if not self._settings.orphan_cleanup:
            return
        if self._forwarding.invites_of(flow):
            self._wait(now + self._settings.orphan_grace, Grace.ANSWER, flow)
        for lost in (flow, *self._directory.ancestors(flow)):
            if self._dialogs.of_flow(lost):
                self._wait(now + self._settings.reconnect_grace, Grace.RETURN, lost)

    def stopping(self, now: float) -> list[Effect]:
        """This process ends: what rings for a browser is cancelled at once, for no later one would know of it."""
        effects: list[Effect] = []
        if self._settings.orphan_cleanup:
            for context in self._forwarding.invites_of_browsers():
                self._counters.count("sip_orphans_cancelled")
                effects += self._forwarding.cancel(context, now, CANCELLED)
        return effects

    def next_timer(self) -> float | None:
        """When the earliest grace is over."""
        return self._timers[0][0] if self._timers else None

    def handle_timer(self, now: float) -> list[Effect]:
        """End what nobody came back for."""
        effects: list[Effect] = []
        while self._timers and self._timers[0][0] <= now:
            _, _, grace, flow = heapq.heappop(self._timers)
            if grace is Grace.ANSWER:
                for context in self._forwarding.invites_of(flow):
                    self._counters.count("sip_orphans_cancelled")
                    effects += self._forwarding.cancel(context, now, CANCELLED)
                continue
            if self._returns_until.get(flow, now) > now:
                # Its client came back and went again since: that loss has its own time of grace.
                continue
            self._returns_until.pop(flow, None)
            for dialog in self._dialogs.of_flow(flow):
                effects += self._hang_up(dialog, now)
        return effects

    def answered(self, orphaned: Orphaned, now: float) -> list[Effect]:
        """A 2xx came for a caller that is gone: ACK it each time, and hang up once.

        That of a re-INVITE is only acknowledged: its call is up, and the browser has `reconnect_grace` to come back.
        """
        request, response = orphaned.context.message, orphaned.response
        found = self._dialogs.find(request.call_id, request.from_tag, response.to_tag)
        if not self._settings.orphan_cleanup or found is None:
            return []
        ack = _message(b"ACK", found, request.cseq[0])
        branch = self._branch(found.receiver, now)
        if ack is None or branch is None:
            return []
        effects = self._forwarding.stray(Stray(ack, _leg(), branch), now)
        if not request.to_tag:
            found.dialog.ended_by = BROWSER_GONE
        if not request.to_tag and response.to_tag not in orphaned.context.hung_up:
            orphaned.context.hung_up.add(response.to_tag)
            effects += self._bye(found, now)
        return effects

    def _wait(self, until: float, grace: Grace, flow: bytes) -> None:
        if grace is Grace.RETURN:
            self._returns_until[flow] = until
        heapq.heappush(self._timers, (until, next(self._numbers), grace, flow))

    def _hang_up(self, dialog: Dialog, now: float) -> list[Effect]:
        lost = [side for side in (dialog.caller, dialog.callee) if side.flow and not self._is_heard(side)]
        if not lost or dialog.state is not DialogState.CONFIRMED:
            return []
        dialog.ended_by = BROWSER_GONE
        if len(lost) == 2 or dialog.method != b"INVITE":
            self._dialogs.end(dialog.key)
            return []
        other = dialog.callee if lost[0] is dialog.caller else dialog.caller
        return self._bye(Found(dialog, lost[0], other), now)

    def _is_heard(self, side: Side) -> bool:
        if self._flows.get(side.flow) is not None:
            return True
        return self._settings.flow_rebind and self._directory.heir(side.flow, side.target) is not None

    def _bye(self, found: Found, now: float) -> list[Effect]:
        found.sender.cseq += 1
        message = _message(b"BYE", found, found.sender.cseq)
        branch = self._branch(found.receiver, now)
        if message is None or branch is None:
            self._counters.count("sip_orphans_unreachable")
            self._dialogs.end(found.dialog.key)
            return []
        self._counters.count("sip_orphans_hung_up")
        context = Context(None, message, Arrival(NOBODY, None, True), _leg())
        return self._forwarding.start(context, [branch], now)

    def _branch(self, side: Side, now: float) -> Branch | None:
        try:
            way = self._proxy.way_to(side, now)
        except ProtocolError:
            return None
        if way is None:
            return None
        if isinstance(way, ToFlow):
            return Branch(flow=way.flow, drop_routes=way.drop_routes)
        if isinstance(way, ToSibling):
            return branch_to(way, self._siblings)
        if isinstance(way, ToDirect):
            return Branch(targets=[way.target])
        return Branch(backend=way.backend, targets=way.targets)


def _leg() -> Leg:
    return Leg(None, NOBODY, NOBODY.address)


def _message(method: bytes, found: Found, number: int) -> Message | None:
    """A request of ours inside a dialog, as `found.sender` would write it; None where the far side gave no target, or
    a state file a name that is none."""
    receiver = found.receiver
    if not receiver.target:
        return None
    call_id = found.dialog.key[0]
    # A flow is reached directly; towards a backend the routes lead (RFC 3261 §12.2.1.1).
    routes = b"" if receiver.flow else b"".join(b"Route: <%b>\r\n" % route for route in receiver.routes)
    reason = b"Reason: %b\r\n" % HUNG_UP if method == b"BYE" else b""
    text = (
        b"%b %b SIP/2.0\r\n%bMax-Forwards: 70\r\nFrom: %b\r\nTo: %b\r\nCall-ID: %b\r\nCSeq: %d %b\r\n"
        b"%bContent-Length: 0\r\n\r\n"
    )
    message = Message.parse(
        text
        % (
            method,
            in_request_line(receiver.target),
            routes,
            found.sender.name,
            receiver.name,
            call_id,
            number,
            method,
            reason,
        )
    )
    try:
        _ = message.from_, message.to
    except ProtocolError:
        return None
    return message
