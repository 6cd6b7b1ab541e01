"""What outlives a process, and what goes with a client from worker to worker (rule D3). Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from wsgate.directory import Directory
from wsgate.sip.dialogs import DialogTable
from wsgate.sip.journal import Journal, dialog_value, key_value, read_dialog, read_key
from wsgate.sip.orphans import Orphans


class Continuity:
    """Writes and reads both; whoever is not back in time is left to `orphans` (rule D4)."""

    def __init__(self, dialogs: DialogTable, directory: Directory, orphans: Orphans) -> None:
        self._dialogs = dialogs
        self._directory = directory
        self._orphans = orphans
        self._journal: Journal | None = None

    # What a restart takes up

    def load_state(self, data: bytes, now: float, wall_offset: float) -> None:
        """Take up the journal of an earlier process (empty: begin one). Raises JournalError and then takes nothing.

        Browsers have `reconnect_grace` to come back before their calls are ended (rules D3, D4).
        """
        journal = Journal(self._directory, self._dialogs, wall_offset)
        if data:
            for flow in journal.load(data, now):
                self._orphans.flow_closed(flow, now)
        self._journal = journal

    def state_changes(self, now: float) -> tuple[bytes, bool]:
        """What to write into the journal, and whether it takes the place of all that stands there."""
        if self._journal is None:
            return b"", False
        if self._journal.is_long:
            return self._journal.whole(now), True
        return self._journal.changes(now), False

    def state(self, now: float) -> bytes:
        """The whole journal."""
        return self._journal.whole(now) if self._journal is not None else b""

    # Clients that move between workers (rule D3)

    def hand_over(self, flows: Collection[bytes]) -> list[object]:
        """The dialogs of these flows, whose client is at another worker now, as JSON values."""
        dialogs = {dialog.key: dialog for flow in flows for dialog in self._dialogs.of_flow(flow)}
        values: list[object] = []
        for dialog in dialogs.values():
            value = dialog_value(dialog, 0.0)
            for name, side in (("caller", dialog.caller), ("callee", dialog.callee)):
                if side.flow and side.flow not in flows:
                    # For the other worker this browser is elsewhere: here.
                    value[name] |= {"flow": "", "elsewhere": side.flow.hex()}
            values.append([key_value(dialog.key), value])
            self._dialogs.hand_over(dialog, flows)
        return values

    def take_over(self, value: Any, now: float) -> None:
        """What `hand_over` of another worker gave. Raises KeyError, ValueError or TypeError."""
        key, rest = value
        self._dialogs.take_over(read_dialog(key, rest, now, 0.0), now)

    def lost_elsewhere(self, flows: set[bytes], now: float) -> None:
        """The worker of these flows died: what it knew of their dialogs is lost, so ours are watched here (rule D4)."""
        for flow in self._dialogs.adopt(flows):
            self._orphans.flow_closed(flow, now)

    def ended_elsewhere(self, value: Any) -> None:
        """A dialog that another worker holds too is over there. Raises ValueError or TypeError."""
        self._dialogs.end_elsewhere(read_key(value))

    def ended_here(self) -> list[object]:
        """The dialogs that other workers hold too and that are over, as JSON values, each once."""
        ended, self._dialogs.ended_here = self._dialogs.ended_here, []
        return [key_value(key) for key in ended]
