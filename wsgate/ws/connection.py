"""One WebSocket connection as a pure machine (RFC 6455): bytes in, messages and bytes to send out."""

from __future__ import annotations

import dataclasses

from wsgate.settings import STRINGS, TEXT, integer, option, seconds


@dataclasses.dataclass(frozen=True)
class WebSocketSettings:
    """[websocket]"""

    path: str = option("/ws", TEXT)
    origins: tuple[str, ...] = option(("same",), STRINGS)
    ping_interval: float = option(25.0, seconds(1, 3600))
    ping_misses: int = option(2, integer(1, 100))
    handshake_timeout: float = option(5.0, seconds(0.1, 300))
    max_message_bytes: int = option(262144, integer(1024, 16777216))
    max_fragments: int = option(256, integer(1, 65536))
    max_send_queue: int = option(1048576, integer(4096, 268435456))
