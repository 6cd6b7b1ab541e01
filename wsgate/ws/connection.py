"""One WebSocket connection as a pure machine (RFC 6455, RFC 7118): bytes in, messages and bytes to send out.

The rules in prose; `_TRANSITIONS` below is their table:
- OPEN: messages pass both ways, pings go out (rule H5).
- CLOSING: our close frame is out; frames are still read, but only the peer's close or the deadline matters.
- CLOSED: nothing is read or sent any more; the driver sends what is left and closes TCP. A close frame is answered with
  the same code, a broken rule with its code (rule H3); nothing behind either is looked at.

How to drive it: `receive` or `handle_timer` gives events, in order, the last of which may be `Closed`; after either,
and after `send_message` or `close`, take `data_to_send`; re-arm the timer with `next_timer`.
"""

from __future__ import annotations

import codecs
import dataclasses
import enum
from collections.abc import Callable
from typing import NamedTuple

from wsgate.settings import TEXT, integer, listed, option, seconds
from wsgate.ws.frames import (
    CloseCode,
    FrameError,
    Header,
    Opcode,
    apply_mask,
    close_body,
    parse_close,
    parse_header,
    serialize,
)


def _origin(text: str) -> str:
    if text not in ("same", "*", "null") and "://" not in text:
        raise ValueError(f"{text!r} has no scheme: browsers send it")
    return text


@dataclasses.dataclass(frozen=True)
class WebSocketSettings:
    """[websocket]"""

    path: str = option("/ws", TEXT)
    origins: tuple[str, ...] = option(
        ("same",), listed((_origin, "same, *, or an origin such as https://www.example.com"))
    )
    ping_interval: float = option(25.0, seconds(1, 3600))
    ping_misses: int = option(2, integer(1, 100))
    handshake_timeout: float = option(5.0, seconds(0.1, 300))
    max_message_bytes: int = option(262144, integer(1024, 16777216))
    max_fragments: int = option(256, integer(1, 65536))
    max_send_queue: int = option(1048576, integer(4096, 268435456))


CLOSE_TIMEOUT = 5.0
"""Seconds that the peer has for its close frame after ours (RFC 6455 §7.1.1)."""


class Role(enum.Enum):
    """Who we are on this connection: a server never masks, a client always does (RFC 6455 §5.1)."""

    SERVER = "server"
    CLIENT = "client"


class State(enum.Enum):
    """RFC 6455 §7.1, without CONNECTING (that is ws/handshake)."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Step(enum.Enum):
    """What can happen to the state."""

    SEND_CLOSE = "we close"
    RECEIVE_CLOSE = "the peer closes"
    FAIL = "the peer broke a rule"
    LOSE = "TCP ended, or nothing was heard in time"


_TRANSITIONS = {
    (State.OPEN, Step.SEND_CLOSE): State.CLOSING,  # RFC 6455 §7.1.2
    (State.OPEN, Step.RECEIVE_CLOSE): State.CLOSED,  # §5.5.1: answered, then TCP closes
    (State.OPEN, Step.FAIL): State.CLOSED,  # §7.1.7
    (State.OPEN, Step.LOSE): State.CLOSED,  # §7.1.5, code 1006
    (State.CLOSING, Step.RECEIVE_CLOSE): State.CLOSED,  # §7.1.4
    (State.CLOSING, Step.FAIL): State.CLOSED,  # §7.1.7, our close frame is out already
    (State.CLOSING, Step.LOSE): State.CLOSED,  # §7.1.5
}


class Message(NamedTuple):
    """One whole message, its fragments joined; text is valid UTF-8 (RFC 6455 §5.4, §8.1)."""

    data: bytes
    is_text: bool


class KeepAlive(NamedTuple):
    """CRLFCRLF (already answered with CRLF), a lone CRLF or an empty message (both ignored): rule H5."""

    data: bytes


class Ping(NamedTuple):
    """A ping, already answered (RFC 6455 §5.5.2)."""

    data: bytes


class Pong(NamedTuple):
    """A pong, asked for or not (RFC 6455 §5.5.3)."""

    data: bytes


class Closed(NamedTuple):
    """The end; nothing comes after it. `code` as received or as sent, 1006 where TCP ended or the peer fell silent."""

    code: int
    reason: str


Event = Message | KeepAlive | Ping | Pong | Closed

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class _Fragments:
    """A message of which not all fragments are there; exists only while there is one."""

    __slots__ = ("count", "data", "decoder", "is_text")

    def __init__(self, is_text: bool) -> None:
        self.is_text = is_text
        self.data = bytearray()
        self.count = 0
        self.decoder = _Utf8Decoder() if is_text else None


class Connection:
    """RFC 6455 after the handshake, in either role. `random_bytes(n)` makes masks; `now` is monotonic seconds."""

    __slots__ = (
        "_buffer",
        "_deadline",
        "_fragments",
        "_missed",
        "_output",
        "_random_bytes",
        "_role",
        "_settings",
        "_state",
    )

    def __init__(
        self, role: Role, settings: WebSocketSettings, random_bytes: Callable[[int], bytes], now: float
    ) -> None:
        self._role = role
        self._settings = settings
        self._random_bytes = random_bytes
        self._state = State.OPEN
        self._buffer: bytes | bytearray = b""
        self._output: list[bytes] | None = None
        self._fragments: _Fragments | None = None
        self._missed = 0
        self._deadline = now + settings.ping_interval

    @property
    def state(self) -> State:
        """OPEN, CLOSING or CLOSED."""
        return self._state

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the peer. Never raises: a broken rule ends in Closed, its close frame is in data_to_send."""
        if self._state is State.CLOSED:
            return []
        self._missed = 0
        if self._buffer:
            if isinstance(self._buffer, bytes):
                self._buffer = bytearray(self._buffer)
            self._buffer += data
        else:
            self._buffer = data
        events: list[Event] = []
        try:
            consumed = self._read_frames(events)
        except FrameError as error:
            self._send_close(error.code, error.reason)
            events.append(self._closed(Step.FAIL, error.code, error.reason))
            return events
        if consumed >= len(self._buffer):
            self._buffer = b""
        elif consumed:
            self._buffer = bytearray(memoryview(self._buffer)[consumed:])
        return events

    def receive_eof(self) -> list[Event]:
        """TCP ended."""
        if self._state is State.CLOSED:
            return []
        return [self._closed(Step.LOSE, CloseCode.ABNORMAL, "connection lost")]

    def send_message(self, data: bytes) -> None:
        """Queue one message: text when it is valid UTF-8, else binary (rule H4). Ignored unless OPEN."""
        if self._state is State.OPEN:
            self._send(Opcode.TEXT if _is_utf8(data) else Opcode.BINARY, data)

    def send_ping(self, data: bytes = b"") -> None:
        """Queue a ping of at most 125 bytes. Ignored unless OPEN."""
        if self._state is State.OPEN:
            self._send(Opcode.PING, data)

    def close(self, code: int, reason: str, now: float) -> None:
        """Begin to close (1001 going away, 1012 restarting, 1008 policy); the peer has CLOSE_TIMEOUT to answer."""
        if self._state is State.OPEN:
            self._send_close(code, reason)
            self._state = _TRANSITIONS[self._state, Step.SEND_CLOSE]
            self._deadline = now + CLOSE_TIMEOUT

    def data_to_send(self) -> bytes:
        """The bytes for the peer since the last call, whole frames only."""
        output = self._output
        if not output:
            return b""
        self._output = None
        return output[0] if len(output) == 1 else b"".join(output)

    def next_timer(self) -> float | None:
        """When handle_timer wants to be called; None once CLOSED."""
        return None if self._state is State.CLOSED else self._deadline

    def handle_timer(self, now: float) -> list[Event]:
        """Ping, give up a peer that missed `ping_misses` of them (rule H5), or give up waiting for its close."""
        if self._state is State.CLOSED or now < self._deadline:
            return []
        if self._state is State.CLOSING:
            return [self._closed(Step.LOSE, CloseCode.ABNORMAL, "no answer to close")]
        if self._missed >= self._settings.ping_misses:
            return [self._closed(Step.LOSE, CloseCode.ABNORMAL, "no answer to ping")]
        self._missed += 1
        self._deadline = now + self._settings.ping_interval
        self._send(Opcode.PING, b"")
        return []

    def _read_frames(self, events: list[Event]) -> int:
        """Read whole frames off the buffer into `events`; returns the bytes consumed. Raises FrameError."""
        buffer, offset, masked = self._buffer, 0, self._role is Role.SERVER
        while self._state is not State.CLOSED:
            header = parse_header(buffer, offset, masked)
            if header is None:
                break
            self._check(header)
            end = offset + header.size + header.length
            if len(buffer) < end:
                break
            payload: bytes | bytearray = buffer[offset + header.size : end]
            payload = apply_mask(payload, header.mask) if masked else bytes(payload)
            offset = end
            event = self._control(header, payload) if header.opcode & 0x08 else self._data(header, payload)
            if event is not None:
                events.append(event)
        return offset

    def _check(self, header: Header) -> None:
        """What a header breaks in this state of the message, before any payload is buffered (rule H3)."""
        if header.opcode & 0x08:
            return
        fragments, settings = self._fragments, self._settings
        size = header.length
        if fragments is None:
            if header.opcode == Opcode.CONTINUATION:
                raise FrameError(CloseCode.PROTOCOL_ERROR, "continuation without a start")
        else:
            if header.opcode != Opcode.CONTINUATION:
                raise FrameError(CloseCode.PROTOCOL_ERROR, "new message inside a message")
            size += len(fragments.data)
            if fragments.count >= settings.max_fragments:
                raise FrameError(CloseCode.TOO_BIG, "too many fragments")
        if size > settings.max_message_bytes:
            raise FrameError(CloseCode.TOO_BIG, "message is too big")

    def _control(self, header: Header, payload: bytes) -> Event | None:
        if header.opcode == Opcode.CLOSE:
            code, reason = parse_close(payload)
            if self._state is State.OPEN:
                self._send_close(code, "")
            return self._closed(Step.RECEIVE_CLOSE, code, reason)
        if header.opcode == Opcode.PING:
            if self._state is State.OPEN:
                self._send(Opcode.PONG, payload)
            return Ping(payload)
        return Pong(payload)

    def _data(self, header: Header, payload: bytes) -> Event | None:
        fragments = self._fragments
        if fragments is None:
            if header.final:
                is_text = header.opcode == Opcode.TEXT
                if is_text and not _is_utf8(payload):
                    raise FrameError(CloseCode.INVALID_DATA, "text is not UTF-8")
                return self._message(payload, is_text)
            fragments = self._fragments = _Fragments(header.opcode == Opcode.TEXT)
        fragments.count += 1
        fragments.data += payload
        if fragments.decoder is not None:
            try:
                fragments.decoder.decode(payload, header.final)
            except UnicodeDecodeError:
                raise FrameError(CloseCode.INVALID_DATA, "text is not UTF-8") from None
        if not header.final:
            return None
        self._fragments = None
        return self._message(bytes(fragments.data), fragments.is_text)

    def _message(self, data: bytes, is_text: bool) -> Event | None:
        """Rule H5: keep-alives are answered or ignored here and never reach SIP (RFC 5626 §4.4.1, RFC 7118 §6)."""
        if self._state is not State.OPEN:
            return None
        if data == b"\r\n\r\n":
            self._send(Opcode.TEXT if is_text else Opcode.BINARY, b"\r\n")
            return KeepAlive(data)
        return KeepAlive(data) if data in (b"", b"\r\n") else Message(data, is_text)

    def _send(self, opcode: Opcode, payload: bytes) -> None:
        mask = self._random_bytes(4) if self._role is Role.CLIENT else b""
        frame = serialize(opcode, payload, mask)
        if self._output is None:
            self._output = [frame]
        else:
            self._output.append(frame)

    def _send_close(self, code: int, reason: str) -> None:
        if self._state is State.OPEN:
            self._send(Opcode.CLOSE, close_body(code, reason))

    def _closed(self, step: Step, code: int, reason: str) -> Closed:
        self._state = _TRANSITIONS[self._state, step]
        self._buffer, self._fragments = b"", None
        return Closed(int(code), reason)


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
