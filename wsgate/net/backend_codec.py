"""SIP messages to bytes and back on an open stream to a SIP server: as on TCP and TLS, and in WebSocket frames."""

from __future__ import annotations

import os
import random
from typing import Any, NamedTuple, Protocol

from wsgate.sip.framing import KEEP_ALIVE_PING, KEEP_ALIVE_PONG, Broken, Framed, Ping, StreamFramer
from wsgate.ws.connection import Closed, Connection, Message, Role, WebSocketSettings

KEEP_ALIVE_SECONDS = (25.0, 30.0)
"""Between two CRLFCRLF on a connection that we opened, drawn from this range (RFC 5626 §4.4)."""
GOING_AWAY = 1001


class StreamLimits(NamedTuple):
    """What a SIP server can make one stream hold."""

    header_bytes: int = 16384
    message_bytes: int = 262144
    queue_bytes: int = 1048576


class Step(NamedTuple):
    """What bytes or time brought: whole messages, bytes to send, and why the stream ends (empty: it goes on).

    `broken` says that it ends because no border of messages is known any more.
    """

    messages: list[bytes]
    output: bytes
    end: str
    broken: Broken | None = None


class Codec(Protocol):
    """SIP messages to bytes on an open stream and back."""

    def encode(self, data: bytes) -> bytes:
        """The bytes that carry one message."""

    def receive(self, data: bytes, at: float) -> Step:
        """Take bytes of the peer."""

    def handle_timer(self, at: float) -> Step:
        """Let time pass: keep-alives."""

    def close(self, at: float) -> bytes:
        """The last bytes to send."""


class StreamCodec:
    """SIP as it is on TCP and TLS (RFC 3261 §18.3); keep-alives only where we opened the connection (RFC 5626 §3.5)."""

    def __init__(self, limits: StreamLimits, keeps_alive: bool, at: float) -> None:
        self._framer = StreamFramer(limits.header_bytes, limits.message_bytes)
        self._ping_at = at + random.uniform(*KEEP_ALIVE_SECONDS) if keeps_alive else None

    def encode(self, data: bytes) -> bytes:
        """`data` as it is."""
        return data

    def receive(self, data: bytes, at: float) -> Step:
        """Cut messages out of the stream and answer pings."""
        messages: list[bytes] = []
        output = b""
        for event in self._framer.receive(data):
            if isinstance(event, Framed):
                messages.append(event.data)
            elif isinstance(event, Ping):
                output += KEEP_ALIVE_PONG
            elif isinstance(event, Broken):
                return Step(messages, output, event.reason, event)
        return Step(messages, output, "")

    def handle_timer(self, at: float) -> Step:
        """CRLFCRLF when it is time for it."""
        if self._ping_at is None or at < self._ping_at:
            return Step([], b"", "")
        self._ping_at = at + random.uniform(*KEEP_ALIVE_SECONDS)
        self._framer.ping_sent()
        return Step([], KEEP_ALIVE_PING, "")

    def close(self, at: float) -> bytes:
        """Nothing: the end of TCP says it."""
        return b""


class WebSocketCodec:
    """SIP over WebSocket as a client (RFC 7118), kept alive by pings (rule H5)."""

    def __init__(self, settings: WebSocketSettings, at: float) -> None:
        self._connection = Connection(Role.CLIENT, settings, os.urandom, at)

    def encode(self, data: bytes) -> bytes:
        """One message in one frame."""
        self._connection.send_message(data)
        return self._connection.data_to_send()

    def receive(self, data: bytes, at: float) -> Step:
        """Messages out of frames."""
        return self._step(self._connection.receive(data, at))

    def handle_timer(self, at: float) -> Step:
        """Pings, and the end when none was answered."""
        return self._step(self._connection.handle_timer(at))

    def close(self, at: float) -> bytes:
        """A close frame."""
        self._connection.close(GOING_AWAY, "", at)
        return self._connection.data_to_send()

    def _step(self, events: list[Any]) -> Step:
        messages = [event.data for event in events if isinstance(event, Message)]
        ends = [f"WebSocket closed with {event.code}" for event in events if isinstance(event, Closed)]
        return Step(messages, self._connection.data_to_send(), "".join(ends))
