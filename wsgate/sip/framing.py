"""SIP messages cut out of a TCP or TLS stream (RFC 3261 §18.3), with the keep-alives between them (RFC 5626 §4.4.1)."""

from __future__ import annotations

import re
from typing import NamedTuple

from wsgate.errors import ProtocolError

HEAD_END = b"\r\n\r\n"
KEEP_ALIVE_PING = b"\r\n\r\n"
"""What asks for a sign of life between two messages (RFC 5626 §3.5.1)."""
TOO_LARGE = "message too large"
"""The reason of a Broken that is answered with 513 (RFC 3261 §21.5.7), all others with 400."""
KEEP_ALIVE_PONG = b"\r\n"
"""What answers KEEP_ALIVE_PING."""

# A field name at the start of a line; the value with its folded lines behind it (RFC 3261 §7.3.1).
_CONTENT_LENGTH = re.compile(rb"\r\n(?:content-length|l)(?:[ \t]|\r\n[ \t])*:((?:[^\r\n]|\r\n[ \t])*)", re.IGNORECASE)
_LENGTH_VALUE = re.compile(rb"[ \t\r\n]*([0-9]{1,18})[ \t\r\n]*")
# The characters of RFC 3261 `token`: what a method or "SIP/2.0" begins with.
_TOKEN_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-.!%*_+`'~")


class Framed(NamedTuple):
    """One whole message, head and body, nothing behind it."""

    data: bytes


class Ping(NamedTuple):
    """The peer sent CRLFCRLF between messages: KEEP_ALIVE_PONG answers it."""


class Pong(NamedTuple):
    """The peer answered our CRLFCRLF."""


class Broken(NamedTuple):
    """The peer's bytes break the protocol; always the last event: the stream has no known border any more.

    `head` is that of the message that has no border, as far as it was read, for an answer; empty where there is none.
    """

    reason: str
    head: bytes = b""


Event = Framed | Ping | Pong | Broken


class StreamFramer:
    """Cuts one direction of a stream into messages; `receive` takes the bytes in whatever pieces they come.

    Content-Length is required, as on every stream (RFC 3261 §20.14). Nothing is kept beyond `max_header_bytes` of an
    unfinished head or `max_message_bytes` of a message, which is judged by its Content-Length before its body comes.
    After `Broken` the caller closes the stream.
    """

    def __init__(self, max_header_bytes: int, max_message_bytes: int) -> None:
        self.max_header_bytes = max_header_bytes
        self.max_message_bytes = max_message_bytes
        self._buffer = bytearray()
        self._searched = 0  # bytes of the unfinished head in which HEAD_END does not begin
        self._message_bytes = 0  # length of the message whose head is complete, else 0
        self._pongs_expected = 0
        self._broken = False

    def ping_sent(self) -> None:
        """Say that KEEP_ALIVE_PING was sent: the next lone CRLF answers it (RFC 5626 §4.4.1)."""
        self._pongs_expected += 1

    @property
    def unfinished(self) -> bool:
        """True when bytes of a message that is not complete are waiting."""
        return len(self._buffer) > len(KEEP_ALIVE_PING)

    def receive(self, data: bytes) -> list[Event]:
        """Take `data` and return what it completed, in order. Never raises; nothing comes after `Broken`."""
        if self._broken:
            return []
        self._buffer += data
        events: list[Event] = []
        start = 0
        try:
            while start < len(self._buffer):
                if not self._message_bytes:
                    event, start, wait = self._between_messages(start)
                    if event is not None:
                        events.append(event)
                        continue
                    if wait or not self._measure(start):
                        break
                end = start + self._message_bytes
                if len(self._buffer) < end:
                    break
                events.append(Framed(bytes(memoryview(self._buffer)[start:end])))
                start, self._message_bytes, self._searched = end, 0, 0
        except ProtocolError as error:
            self._broken = True
            events.append(Broken(error.reason, self._head(start)))
            start = len(self._buffer)
        del self._buffer[:start]
        return events

    def _between_messages(self, start: int) -> tuple[Ping | Pong | None, int, bool]:
        """What stands where a message may begin: (event, new start, True when more bytes must come first).

        Raises ProtocolError.
        """
        buffer = self._buffer
        while buffer.startswith(b"\r", start):
            if buffer.startswith(KEEP_ALIVE_PING, start):
                self._pongs_expected = 0
                return Ping(), start + 4, False
            if len(buffer) - start == 2 and self._pongs_expected and buffer.startswith(KEEP_ALIVE_PONG, start):
                self._pongs_expected -= 1
                return Pong(), start + 2, False
            if KEEP_ALIVE_PING.startswith(buffer[start : start + 4]):
                return None, start, True
            if not buffer.startswith(b"\r\n", start):
                raise ProtocolError("bare CR between messages")
            start += 2  # a lone CRLF before a start line is ignored (RFC 3261 §7.5)
        if start < len(buffer) and buffer[start] not in _TOKEN_BYTES:
            raise ProtocolError("not a SIP message")
        return None, start, start >= len(buffer)

    def _head(self, start: int) -> bytes:
        """The head at `start`; of one that is too large the whole lines within its limit."""
        if start >= len(self._buffer) or self._buffer[start] not in _TOKEN_BYTES:
            return b""
        head = bytes(memoryview(self._buffer)[start : start + self.max_header_bytes])
        end = head.find(HEAD_END)
        end = head.rfind(b"\r\n") if end < 0 else end
        return head[:end] + HEAD_END if end >= 0 else b""

    def _measure(self, start: int) -> bool:
        """Find the end of the head at `start` and with it the message's length; False when the head is unfinished.

        Raises ProtocolError.
        """
        buffer = self._buffer
        head_end = buffer.find(HEAD_END, start + self._searched)
        head_bytes = (len(buffer) if head_end < 0 else head_end + len(HEAD_END)) - start
        if head_bytes > self.max_header_bytes:
            raise ProtocolError("header section too large")
        if head_end < 0:
            self._searched = max(0, head_bytes - len(HEAD_END) + 1)
            return False
        # From the CRLF of the start line on; a field never begins in the start line itself.
        length = content_length(bytes(memoryview(buffer)[start : head_end + 2]))
        if head_bytes + length > self.max_message_bytes:
            raise ProtocolError(TOO_LARGE)
        self._message_bytes = head_bytes + length
        return True


def content_length(head: bytes) -> int:
    """The value of Content-Length in `head`, also as `l`, folded, in any case. Raises ProtocolError.

    It must be there (RFC 3261 §20.14); twice the same value is borne, two values are not.
    """
    values = set()
    for text in _CONTENT_LENGTH.findall(head):
        match = _LENGTH_VALUE.fullmatch(text)
        if match is None:
            raise ProtocolError("Content-Length is not a number")
        values.add(int(match[1]))
    if not values:
        raise ProtocolError("Content-Length is missing")
    if len(values) > 1:
        raise ProtocolError("two values of Content-Length")
    return values.pop()
