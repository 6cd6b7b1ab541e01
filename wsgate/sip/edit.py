"""Edits of a SIP message as splices over its bytes: what is not edited leaves as it came. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter

from wsgate.sip.header_lines import Line, length_of
from wsgate.sip.headers import split_spans
from wsgate.sip.message import Message

_PLACE = itemgetter(0, 1)


class Edit:
    """Splices over one message; `build` writes the new bytes. Each header may be touched by one kind of edit."""

    __slots__ = ("_message", "_splices")

    def __init__(self, message: Message) -> None:
        self._message = message
        self._splices: list[tuple[int, int, bytes]] = []

    def request_uri(self, uri: bytes) -> None:
        """Replace the Request-URI."""
        start = len(self._message.method) + 1
        self._splices.append((start, start + len(self._message.uri), uri))

    def insert_first(self, name: bytes, *values: bytes) -> None:
        """Put header lines on top: in front of the first of the same name, or behind the start line."""
        found = self._message.found(name.lower())
        place = self._message.place(found[0]) if found else self._message.line_end
        line_begin = name + b": "
        text = line_begin + (b"\r\n" + line_begin).join(values) + b"\r\n" if values else b""
        self._splices.append((place, place, text))

    def append(self, name: bytes, value: bytes) -> None:
        """Put a header line behind all others."""
        place = self._message.body_start - 2
        self._splices.append((place, place, b"%b: %b\r\n" % (name, value)))

    def remove(self, name: bytes) -> None:
        """Take away every header line called `name` (lower case)."""
        for line in self._message.found(name):
            self._remove(line)

    def remove_lines(self, name: bytes, unwanted: Callable[[bytes], bool]) -> None:
        """Take away the header lines called `name` (lower case) whose unfolded value is unwanted."""
        for line, value in zip(self._message.found(name), self._message.lines(name), strict=True):
            if unwanted(value):
                self._remove(line)

    def replace(self, name: bytes, value: bytes) -> None:
        """Give `name` this one value: in the first line of that name, further ones removed; appended when absent."""
        found = self._message.found(name.lower())
        if not found:
            self.append(name, value)
            return
        start = self._value_place(found[0])
        self._splices.append((start, start + len(found[0][2]), b" " + value))
        for line in found[1:]:
            self._remove(line)

    def replace_first_value(self, name: bytes, value: bytes) -> None:
        """Replace the topmost value of a list header (lower case name). Raises ProtocolError."""
        for line in self._message.found(name):
            for start, end in split_spans(line[2]):
                place = self._value_place(line)
                self._splices.append((place + start, place + end, value))
                return

    def replace_values(self, name: bytes, changed: Iterable[tuple[int, bytes]]) -> None:
        """Replace single values of a list header by their number from the top (0 is first). Raises ProtocolError."""
        wanted = dict(changed)
        number = 0
        for line in self._message.found(name):
            place = self._value_place(line)
            for start, end in split_spans(line[2]):
                if number in wanted:
                    self._splices.append((place + start, place + end, wanted[number]))
                number += 1

    def drop_values(self, name: bytes, count: int) -> None:
        """Take `count` values of a list header (lower case name) off the top. Raises ProtocolError."""
        for line in self._message.found(name):
            if count <= 0:
                return
            spans = split_spans(line[2])
            if len(spans) <= count:
                self._remove(line)
            else:
                place = self._value_place(line)
                self._splices.append((place, place + spans[count][0], b" "))
            count -= len(spans)

    def body(self, data: bytes) -> None:
        """Replace the body; the caller sets Content-Length."""
        self._splices.append((self._message.body_start, len(self._message.data), data))

    def _remove(self, line: Line) -> None:
        place = self._message.place(line)
        self._splices.append((place, place + length_of(line), b""))

    def _value_place(self, line: Line) -> int:
        return self._message.place(line) + len(line[0]) + 1

    def build(self) -> bytes:
        """The edited message."""
        if not self._splices:
            return self._message.data
        data = self._message.data
        pieces = []
        position = 0
        for start, end, text in sorted(self._splices, key=_PLACE):
            pieces.append(data[position:start])
            pieces.append(text)
            position = end
        pieces.append(data[position:])
        return b"".join(pieces)
