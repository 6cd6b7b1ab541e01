"""The dialog table: a bounded map of the calls and subscriptions that pass through (RFC 3261 §12). Pure.

A dialog has two sides. A side is what one party showed of itself: the flow it sits on (browsers) or the backend it
came through, its URI with tag as it stood in From or To, the routes and the target that lead to it, and the highest
CSeq it has sent. Entries begin with the first 101 to 2xx that has a To tag; they end with the final answer to BYE, a
final failure of the first request, a NOTIFY `terminated`, or `lifetime` seconds without a message.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from wsgate.addr import Hop

Key = tuple[bytes, bytes, bytes]
"""Call-ID, the caller's tag (From of the first request), the callee's tag."""


ENDED_ELSEWHERE = "another worker"
"""`ended_by` of a dialog of which another worker tells."""


class DialogState(enum.Enum):
    """RFC 3261 §12: before and after the first 2xx."""

    EARLY = "early"
    CONFIRMED = "confirmed"


class Side:
    """One party of a dialog, as far as wsgate saw it. `source` is where the packets of a phone came from (rule G5).

    `elsewhere` is the flow of a browser at another worker; `flow` is then empty, and `routes`, if any, lead there.
    """

    __slots__ = ("backend", "cseq", "elsewhere", "flow", "name", "routes", "source", "target")

    def __init__(
        self,
        flow: bytes,
        backend: str,
        name: bytes,
        routes: list[bytes],
        target: bytes,
        cseq: int,
        source: Hop | None = None,
        elsewhere: bytes = b"",
    ) -> None:
        self.elsewhere = elsewhere
        self.flow = flow
        self.backend = backend
        self.name = name
        self.routes = routes
        self.target = target
        self.cseq = cseq
        self.source = source


class Dialog:
    """One entry: the method that began it, both sides, the state, and when it was last touched.

    It is `shared` where its client moved from one worker to another, and both hold it.
    """

    __slots__ = ("answered_at", "callee", "caller", "ended_by", "key", "method", "shared", "state", "touched")

    def __init__(self, key: Key, method: bytes, caller: Side, callee: Side, now: float) -> None:
        self.key = key
        self.method = method
        self.caller = caller
        self.callee = callee
        self.state = DialogState.EARLY
        self.touched = now
        self.shared = False
        self.answered_at: float | None = None
        """When the first 2xx passed; None before that, and where another process saw it."""
        self.ended_by = ""
        """Who ended it, in words."""

    def holds_flow(self, flow: bytes) -> bool:
        """True when one side sits on this flow, here or at another worker."""
        sides = (self.caller, self.callee)
        return any(flow in (side.flow, side.elsewhere) for side in sides)


class Found(NamedTuple):
    """A dialog with the sides as a request sees them: who sends it and who is to get it."""

    dialog: Dialog
    sender: Side
    receiver: Side


class DialogTable:
    """Dialogs by Call-ID and tags, at most `limit`; the longest untouched stands first."""

    def __init__(self, limit: int, lifetime: float) -> None:
        self._limit = limit
        self._lifetime = lifetime
        self._dialogs: OrderedDict[Key, Dialog] = OrderedDict()
        self._keys_of_flow: dict[bytes, set[Key]] = {}
        self.changed: set[Key] | None = None
        """Keys of dialogs that changed since somebody who keeps a journal set it to an empty set."""
        self.ended: Callable[[Key], None] | None = None
        """Is told the key of every dialog that is over."""
        self.calls_over: list[Dialog] = []
        """Answered calls that are over since somebody who tells of them emptied the list."""
        self.ended_here: list[Key] = []
        """Keys of shared dialogs that ended since somebody who tells the other workers emptied the list."""

    def __len__(self) -> int:
        return len(self._dialogs)

    def __iter__(self) -> Iterator[Dialog]:
        return iter(self._dialogs.values())

    def get(self, key: Key) -> Dialog | None:
        """The dialog with exactly this key."""
        return self._dialogs.get(key)

    @property
    def full(self) -> bool:
        """True when no new dialog may begin: the caller refuses, no living one is ever forgotten for it."""
        return len(self._dialogs) >= self._limit

    def find(self, call_id: bytes, from_tag: bytes, to_tag: bytes) -> Found | None:
        """The dialog of a request with these tags, whichever party sends it (RFC 3261 §12.2.2)."""
        dialog = self._dialogs.get((call_id, from_tag, to_tag))
        if dialog is not None:
            return Found(dialog, dialog.caller, dialog.callee)
        dialog = self._dialogs.get((call_id, to_tag, from_tag))
        if dialog is not None:
            return Found(dialog, dialog.callee, dialog.caller)
        return None

    def begin(self, key: Key, method: bytes, caller: Side, callee: Side, now: float) -> Dialog | None:
        """A new early dialog, or the one that is there already; None when the table is full.

        A call that passes twice (two browsers through a backend) is one dialog: each pass adds its flow.
        """
        dialog = self._dialogs.get(key)
        if dialog is None:
            if self.full:
                return None
            dialog = self._dialogs[key] = Dialog(key, method, caller, callee, now)
        self._join(dialog, caller.flow, callee.flow)
        return dialog

    def of_flow(self, flow: bytes) -> list[Dialog]:
        """The dialogs with a side on this flow."""
        return [self._dialogs[key] for key in self._keys_of_flow.get(flow, ())]

    def touch(self, dialog: Dialog, now: float) -> None:
        """A message of this dialog passed: its lifetime begins again."""
        dialog.touched = now
        if dialog.key in self._dialogs:
            self._dialogs.move_to_end(dialog.key)
            self._note(dialog.key)

    def end(self, key: Key) -> None:
        """Forget a dialog; not known is fine."""
        dialog = self._dialogs.pop(key, None)
        if dialog is not None:
            self._note(key)
            if dialog.method == b"INVITE" and dialog.state is DialogState.CONFIRMED:
                self.calls_over.append(dialog)
            if dialog.shared:
                self.ended_here.append(key)
            for flow in {dialog.caller.flow, dialog.callee.flow} - {b""}:
                self._leave(key, flow)
            if self.ended is not None:
                self.ended(key)

    def next_timer(self) -> float | None:
        """When the longest untouched dialog has lived out its time."""
        for dialog in self._dialogs.values():
            return dialog.touched + self._lifetime
        return None

    def handle_timer(self, now: float) -> int:
        """Forget the dialogs that have lived out their time; returns how many."""
        ended = 0
        while self._dialogs:
            key, dialog = next(iter(self._dialogs.items()))
            if dialog.touched + self._lifetime > now:
                break
            self.end(key)
            ended += 1
        return ended

    def restore(self, dialog: Dialog, now: float) -> bool:
        """Take up a dialog of an earlier process; False when it has lived out its time or the table is full.

        Dialogs come in the order in which they were last touched.
        """
        if dialog.touched + self._lifetime <= now or self.full or dialog.key in self._dialogs:
            return False
        self._dialogs[dialog.key] = dialog
        self._join(dialog, dialog.caller.flow, dialog.callee.flow)
        return True

    def hand_over(self, dialog: Dialog, flows: Collection[bytes]) -> None:
        """The client that sat on one of these flows is at another worker now, which gets the dialog too."""
        dialog.shared = True
        for side in (dialog.caller, dialog.callee):
            if side.flow in flows:
                self._leave(dialog.key, side.flow)
                side.flow, side.elsewhere = b"", side.flow

    def take_over(self, dialog: Dialog, now: float) -> None:
        """A client is here now: a dialog that it had at another worker, or has here by its other party."""
        dialog.touched = now
        if dialog.key in self._dialogs or self.restore(dialog, now):
            known = self._dialogs[dialog.key]
            self._join(known, dialog.caller.flow, dialog.callee.flow)
            known.shared = True
            self.touch(known, now)

    def adopt(self, flows: Collection[bytes]) -> set[bytes]:
        """These flows of another worker are gone with it: from now on their dialogs are kept here as those of flows of
        ours. Returns the flows that have any."""
        adopted = set()
        for dialog in self._dialogs.values():
            for side in (dialog.caller, dialog.callee):
                if side.elsewhere in flows:
                    side.flow, side.elsewhere = side.elsewhere, b""
                    adopted.add(side.flow)
                    self._join(dialog, dialog.caller.flow, dialog.callee.flow)
                    self._note(dialog.key)
        return adopted

    def end_elsewhere(self, key: Key) -> None:
        """A shared dialog ended at another worker."""
        dialog = self._dialogs.get(key)
        if dialog is not None and dialog.shared:
            dialog.shared = False
            dialog.ended_by = ENDED_ELSEWHERE
            self.end(key)

    def _note(self, key: Key) -> None:
        if self.changed is not None:
            self.changed.add(key)

    def _leave(self, key: Key, flow: bytes) -> None:
        keys = self._keys_of_flow.get(flow, set())
        keys.discard(key)
        if not keys:
            self._keys_of_flow.pop(flow, None)

    def _join(self, dialog: Dialog, caller: bytes, callee: bytes) -> None:
        dialog.caller.flow = dialog.caller.flow or caller
        dialog.callee.flow = dialog.callee.flow or callee
        for flow in {dialog.caller.flow, dialog.callee.flow} - {b""}:
            self._keys_of_flow.setdefault(flow, set()).add(dialog.key)
