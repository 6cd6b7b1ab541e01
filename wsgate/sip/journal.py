"""What a restart takes up: registrations of flows and live dialogs, as lines of text (rule D3, `state_file`). Pure.

The first line names the format; each further line is a CRC-32 and a JSON array: kind, key, value (null: forgotten).
Later lines win. A file that is torn or not ours is refused whole. Times in it are wall time, `now + wall_offset`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from wsgate.addr import Address, Hop, Transport
from wsgate.directory import Directory
from wsgate.errors import WsgateError
from wsgate.registrations import Registration, RegistrationKey
from wsgate.sip.dialogs import Dialog, DialogState, DialogTable, Key, Side
from wsgate.sip.flow import CONNECTION_ID_BYTES

HEAD = b"wsgate state 1\n"
REGISTRATION, DIALOG = "registration", "dialog"
SPARE_LINES = 1000
"""Superseded lines that a journal may hold besides as many as there are entries, before it is written anew."""


class JournalError(WsgateError):
    """The file is torn or foreign: it is not used at all."""


class Journal:
    """Reads the journal into the tables, and writes what has changed in them since."""

    def __init__(self, directory: Directory, dialogs: DialogTable, wall_offset: float) -> None:
        self._directory = directory
        self._dialogs = dialogs
        self._wall_offset = wall_offset
        self._lines = 0
        directory.changed = set()
        dialogs.changed = set()

    @property
    def is_long(self) -> bool:
        """True when most lines are superseded: the caller writes `whole` in place of the file."""
        live = len(self._dialogs) + self._directory.counts()["registrations"]
        return self._lines > 2 * live + SPARE_LINES

    def load(self, data: bytes, now: float) -> set[bytes]:
        """Fill the tables; returns the flows that they speak of, none of which is open. Raises JournalError."""
        entries: dict[tuple[str, str], Any] = {}
        try:
            for kind, key, value in _lines(data):
                entries[kind, json.dumps(key)] = (key, value)
            lost = self._take(entries, now)
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            self._directory.changed = self._dialogs.changed = None
            raise JournalError(f"it is torn or not a state file of wsgate ({type(error).__name__})") from None
        self._forget_changes()
        self._lines = len(entries)
        return lost

    def whole(self, now: float) -> bytes:
        """The whole file."""
        self._forget_changes()
        lines = [self._registration(key, now) for key in self._directory.registration_keys()]
        lines += [self._dialog(dialog.key, now) for dialog in self._dialogs]
        self._lines = len(lines)
        return HEAD + b"".join(lines)

    def changes(self, now: float) -> bytes:
        """Lines for what has changed since the last call, to be appended."""
        lines = [self._registration(key, now) for key in self._directory.changed or ()]
        lines += [self._dialog(key, now) for key in self._dialogs.changed or ()]
        self._forget_changes()
        self._lines += len(lines)
        return b"".join(lines)

    def _forget_changes(self) -> None:
        self._directory.changed = set()
        self._dialogs.changed = set()

    def _registration(self, key: RegistrationKey, now: float) -> bytes:
        flows = self._directory.flows_of(key)
        registration = self._directory.registration(key)
        value = None
        if registration is not None:
            value = {
                "instance": _text(registration.instance),
                "reg_id": registration.reg_id,
                "contact": _text(registration.contact),
                "handle": _text(registration.handle),
                "flows": [flow.hex() for flow in flows],
                "expires": round(registration.expires_at + self._wall_offset, 3),
            }
        return _line(REGISTRATION, [_text(key[0]), _text(key[1]), key[2]], value)

    def _dialog(self, key: Key, now: float) -> bytes:
        dialog = self._dialogs.get(key)
        value = None if dialog is None else dialog_value(dialog, self._wall_offset)
        return _line(DIALOG, key_value(key), value)

    def _take(self, entries: dict[tuple[str, str], Any], now: float) -> set[bytes]:
        """Read everything before anything is taken, so that a torn file leaves no trace."""
        registrations, dialogs = [], []
        for (kind, _), (key, value) in entries.items():
            if kind == REGISTRATION:
                registrations += list(self._read_registration(key, value or {"flows": []}))
            elif kind == DIALOG and value is not None:
                dialogs.append(read_dialog(key, value, now, self._wall_offset))
            elif kind != DIALOG:
                raise ValueError(kind)
        lost = set()
        for registration in registrations:
            # One that ran out meanwhile is over with the next timer, but whose calls these are stays known (D3).
            self._directory.restore(registration._replace(expires_at=max(registration.expires_at, now)), now)
            lost.add(registration.flow)
        for dialog in sorted(dialogs, key=lambda dialog: dialog.touched):
            if self._dialogs.restore(dialog, now):
                lost |= {dialog.caller.flow, dialog.callee.flow} - {b""}
        return lost

    def _read_registration(self, key: list[Any], value: dict[str, Any]) -> Iterator[Registration]:
        for flow in value["flows"]:
            yield Registration(
                _bytes(key[0]),
                _bytes(value["instance"]),
                _whole(value["reg_id"]),
                _bytes(value["contact"]),
                _flow(flow),
                _seconds(value["expires"]) - self._wall_offset,
                _bytes(value["handle"]),
            )


def key_value(key: Key) -> list[str]:
    """The key of a dialog as a JSON value."""
    return [_text(part) for part in key]


def read_key(value: list[str]) -> Key:
    """What `key_value` made. Raises ValueError or TypeError."""
    call_id, caller_tag, callee_tag = map(_bytes, value)
    return call_id, caller_tag, callee_tag


def dialog_value(dialog: Dialog, wall_offset: float) -> dict[str, Any]:
    """A dialog without its key as a JSON value."""
    return {
        "method": _text(dialog.method),
        "state": dialog.state.value,
        "touched": round(dialog.touched + wall_offset, 3),
        "caller": _side(dialog.caller),
        "callee": _side(dialog.callee),
    }


def read_dialog(key: list[Any], value: dict[str, Any], now: float, wall_offset: float) -> Dialog:
    """What `dialog_value` made. Raises KeyError, ValueError or TypeError."""
    touched = min(now, _seconds(value["touched"]) - wall_offset)
    caller, callee = _read_side(value["caller"]), _read_side(value["callee"])
    dialog = Dialog(read_key(key), _bytes(value["method"]), caller, callee, touched)
    dialog.state = DialogState(value["state"])
    return dialog


def _side(side: Side) -> dict[str, Any]:
    return {
        "flow": side.flow.hex(),
        "backend": side.backend,
        "name": _text(side.name),
        "routes": [_text(route) for route in side.routes],
        "target": _text(side.target),
        "cseq": side.cseq,
        "source": None if side.source is None else [side.source.transport.value, *side.source.address],
        "elsewhere": side.elsewhere.hex(),
    }


def _read_side(value: dict[str, Any]) -> Side:
    routes = [_bytes(route) for route in value["routes"]]
    flow = _flow(value["flow"]) if value["flow"] else b""
    name, target, cseq = _bytes(value["name"]), _bytes(value["target"]), _whole(value["cseq"])
    source, elsewhere = _read_source(value["source"]), _flow(value["elsewhere"]) if value.get("elsewhere") else b""
    return Side(flow, str(value["backend"]), name, routes, target, cseq, source, elsewhere)


def _read_source(value: list[Any] | None) -> Hop | None:
    if value is None:
        return None
    transport, host, port = value
    return Hop(Transport(transport), Address(str(host), _whole(port)))


def _text(data: bytes) -> str:
    """Bytes of the wire as JSON text, each byte one character."""
    return data.decode("latin-1")


def _bytes(text: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(text)
    if "\r" in text or "\n" in text:
        # What was read off a header line has none; in what is written from it it would begin another line.
        raise ValueError(text)
    return text.encode("latin-1")


def _flow(text: str) -> bytes:
    flow = bytes.fromhex(text)
    if len(flow) != CONNECTION_ID_BYTES:
        raise ValueError(text)
    return flow


def _whole(value: int) -> int:
    if not isinstance(value, int) or abs(value) > 2**32:
        raise ValueError(value)
    return value


def _seconds(value: float) -> float:
    """A time; JSON as Python reads it knows NaN, infinity and integers that no float can hold."""
    if not isinstance(value, int | float) or not abs(value) < 2**53:
        raise ValueError(value)
    return float(value)


def _line(kind: str, key: list[Any], value: object) -> bytes:
    text = json.dumps([kind, key, value], separators=(",", ":")).encode("ascii")
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _lines(data: bytes) -> Iterable[tuple[str, list[Any], Any]]:
    """The entries of a file. Raises ValueError where it is torn or foreign."""
    if not data.startswith(HEAD) or not data.endswith(b"\n"):
        raise ValueError("head or end")
    for line in data[len(HEAD) :].splitlines():
        checksum, _, text = line.partition(b" ")
        if int(checksum, 16) != zlib.crc32(text):
            raise ValueError("checksum")
        kind, key, value = json.loads(text)
        yield kind, key, value
