"""A NOTIFY that comes before the 200 to its SUBSCRIBE, or from a fork without any, begins the dialog (RFC 6665). Pure.

For 64*T1 after a SUBSCRIBE, or a REFER, was forwarded (Timer N, §4.1.2.4) a NOTIFY with its Call-ID and From tag begins
a dialog of the table, if it comes from where the request went (§4.4.1). So rules D1 and W2 let it pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from wsgate.metrics import Counters
from wsgate.sip.contexts import Branch, Context
from wsgate.sip.decisions import Arrival
from wsgate.sip.dialogs import DialogTable
from wsgate.sip.message import Message
from wsgate.sip.tracking import Party, Tracker

SUBSCRIBERS = frozenset((b"SUBSCRIBE", b"REFER"))
"""Methods that a NOTIFY may outrun (RFC 6665 §4.1.2.4, RFC 3515 §2.4.4)."""

TIMER_N_SECONDS = 32.0
"""64*T1 (RFC 6665 §4.1.2.4)."""
PENDING_MAX = 10000
"""Subscriptions that wait so; of more the oldest is forgotten, which costs it no more than an early NOTIFY."""
NOTIFIERS_MAX = 60
"""Dialogs that NOTIFYs begin for one SUBSCRIBE: as many as it may have branches (RFC 5393 §5.3.3)."""

_Key = tuple[bytes, bytes]
"""Call-ID and From tag of the SUBSCRIBE."""


class _Pending:
    """One subscription: `contexts` are its passes (several where a backend lies between two browsers of ours)."""

    __slots__ = ("contexts", "flows", "notifiers", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.contexts: list[tuple[Context, Party]] = []
        self.flows: set[bytes] = set()
        self.notifiers = 0


class Subscriptions:
    """The SUBSCRIBEs whose NOTIFYs may come from parties that the dialog table does not know yet."""

    def __init__(self, dialogs: DialogTable, tracker: Tracker, counters: Counters) -> None:
        self._dialogs = dialogs
        self._tracker = tracker
        self._counters = counters
        self._pending: OrderedDict[_Key, _Pending] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pending)

    def forwarded(self, context: Context, branches: Sequence[Branch], caller: Party, now: float) -> None:
        """A request of SUBSCRIBERS without To tag goes out by these branches. `caller` is who sent it."""
        if context.arrival.flow is None and all(branch.sibling for branch in branches):
            return  # the worker that it goes to keeps it (T3)
        key = (context.message.call_id, context.message.from_tag)
        pending = self._pending.get(key)
        if pending is None:
            if len(self._pending) >= PENDING_MAX:
                self._pending.popitem(last=False)
                self._counters.count("sip_subscriptions_forgotten")
            pending = self._pending[key] = _Pending(now + TIMER_N_SECONDS)
        if len(pending.contexts) < NOTIFIERS_MAX:
            pending.contexts.append((context, caller))
            for branch in branches:
                flows = (branch.flow, *(way.flow for way in branch.ways))
                pending.flows.update(flow.id for flow in flows if flow is not None)

    def notified(self, message: Message, arrival: Arrival, sender: Party, now: float) -> None:
        """A NOTIFY came from `sender`: if it belongs to one of these and to no dialog yet, that begins."""
        pending = self._pending.get((message.call_id, message.to_tag))
        if pending is None or not message.from_tag or pending.until <= now:
            return
        # From a browser only where the request went; the backend side has shown who it is (rule N6).
        is_notifier = arrival.flow.id in pending.flows if arrival.flow is not None else arrival.trusted
        if not is_notifier or pending.notifiers >= NOTIFIERS_MAX:
            return
        key = (message.call_id, message.to_tag, message.from_tag)
        if self._dialogs.get(key) is not None:
            return
        for context, caller in pending.contexts:
            # The 200 that follows the NOTIFY begins nothing again where that was the last one.
            if context.dialogs.get(key) or not self._tracker.notified(context.message, caller, message, sender, now):
                return
            context.dialogs[key] = True
        pending.notifiers += 1
        self._counters.count("sip_dialogs_begun_by_notify")

    def next_timer(self) -> float | None:
        """When the oldest is over."""
        for pending in self._pending.values():
            return pending.until
        return None

    def handle_timer(self, now: float) -> None:
        """Forget what is over."""
        while self._pending:
            key, pending = next(iter(self._pending.items()))
            if pending.until > now:
                break
            del self._pending[key]
