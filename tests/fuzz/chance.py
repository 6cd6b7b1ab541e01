"""Decisions out of bytes, so that one file holds all that a run did; and inputs that are spoiled by such decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

MARK = b"Injected"
"""What no head may have at the start of a line: it stands in inputs only behind bare CR, bare LF or in bodies."""

INTERESTING = [
    *(bytes((byte,)) for byte in b'"<>,;:@%\\\r\n\0\xff \t=?[]*.0'),
    *(b"\r\n", b"\r\n ", b"\r\n\r\n", b"\n\n", b"%41", b"%0d%0a", b"\xc3\xa9", b"\xed\xa0\x80", b"-1", b"99999999999"),
    *(b"\r" + MARK + b": 1", b"\n" + MARK + b": 1", b"\0" + MARK + b": 1", b"\n\r" + MARK + b": 1\r"),
    b"a" * 300,
]
"""Bytes that parsers stumble over."""


class Choices:
    """Reads decisions off `data`; when it is used up every decision is the first one, and `is_over` is true."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_over(self) -> bool:
        """True when no decision is left."""
        return self._at >= len(self._data)

    def number(self, limit: int) -> int:
        """A number from 0 to below `limit`."""
        size = 1 if limit <= 0x100 else 2 if limit <= 0x10000 else 4
        return int.from_bytes(self.take(size), "big") % limit

    def percent(self, likely: int) -> bool:
        """True so often of a hundred."""
        return self.number(100) < likely

    def pick(self, among: Sequence[T]) -> T:
        """One of them."""
        return among[self.number(len(among))]

    def take(self, size: int) -> bytes:
        """The next bytes themselves, fewer at the end."""
        data = self._data[self._at : self._at + size]
        self._at += size
        return data

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self._data))


def spoil(chance: Choices, data: bytes, pieces: Sequence[bytes], others: Sequence[bytes] = ()) -> bytes:
    """`data` with one change: bytes cut out, doubled, turned over, a piece put in, or a part of another input."""
    at = chance.number(len(data) + 1)
    kind = chance.number(8)
    if kind < 3:
        return data[:at] + chance.pick(pieces) + data[at + chance.pick((0, 0, 0, 1, 2, 5, 12)) :]
    if kind == 3:
        return data[:at] + data[at + 1 + chance.number(40) :]
    if kind == 4:
        return data[:at] + bytes((data[at] ^ 1 << chance.number(8),)) + data[at + 1 :] if at < len(data) else data
    if kind == 5:
        size = 1 + chance.number(60)
        return data[:at] + data[at : at + size] * (1 + chance.pick((1, 1, 2, 20))) + data[at + size :]
    if kind == 6 and others:
        other = chance.pick(others)
        start = chance.number(len(other) + 1)
        return data[:at] + other[start : start + 1 + chance.number(200)] + data[at:]
    return data[:at] + chance.take(1 + chance.number(4)) + data[at + chance.number(4) :]


def unmarked(data: bytes) -> bytes:
    """`data` where MARK begins no line of its own that the sender meant: that would be no injection."""
    return data.replace(b"\r\n" + MARK, b"\r\nMeant")


def cuts(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """`data` in pieces of these sizes, over and over."""
    found, at, number = [], 0, 0
    while at < len(data):
        size = max(1, sizes[number % len(sizes)])
        found.append(data[at : at + size])
        at, number = at + size, number + 1
    return found
