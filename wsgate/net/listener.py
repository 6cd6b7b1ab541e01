"""The TCP ports of a [listener NAME]: browsers and relays connect to them, to speak HTTP, WebSocket and TURN."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from typing import Any

from gevent import ssl

from wsgate.addr import Address, Network
from wsgate.guard import Guard
from wsgate.metrics import Counters
from wsgate.net.fallback import Fallback
from wsgate.net.port import Port, PortSettings, Row, Speech
from wsgate.net.stream import FlowHandler, Streams
from wsgate.net.upgrade import Accepted, Admit, HttpServer, admit_all
from wsgate.settings import ADDRESS, ADDRESSES, BOOLEAN, NETWORKS, TEXT, Switch, choice, option, optional
from wsgate.ws.connection import WebSocketSettings


@dataclasses.dataclass(frozen=True)
class ListenerSettings:
    """[listener NAME]"""

    bind: tuple[Address, ...] = option((), ADDRESSES)
    tls: Switch = option(Switch.ON, choice(Switch))
    certificate: str = option("", TEXT)
    private_key: str = option("", TEXT)
    turn: bool = option(False, BOOLEAN)
    http_fallback: Address | None = option(None, optional(ADDRESS))
    trusted_proxies: tuple[Network, ...] = option((), NETWORKS)
    tls_at_relay: bool = option(False, BOOLEAN)
    proxy_protocol: bool = option(False, BOOLEAN)


class Listener:
    """One [listener NAME] in one worker."""

    def __init__(
        self,
        name: str,
        settings: ListenerSettings,
        websocket_settings: WebSocketSettings,
        sockets: list[socket.socket],
        tls_context_provider: Callable[[], ssl.SSLContext] | None,
        guard: Guard,
        flow_handler: FlowHandler,
        wsgi_application: Callable[..., Any],
        counters: Counters,
        admit: Admit = admit_all,
        speak_turn: Row | None = None,
        owns: Callable[[str], bool] = lambda _path: False,
    ) -> None:
        """`sockets` are bound and listen already; `tls_context_provider` gives the context for the next connection.

        `admit` judges the identity of an upgrade; `speak_turn` serves TURN where it is spoken here;
        `owns` says of a path that the application answers it, though there is an `http_fallback`.
        """
        self.name = name
        self.streams = Streams(websocket_settings, guard, flow_handler, counters)
        self._settings = settings
        self._fallback = Fallback(settings.http_fallback, counters)
        self._http = HttpServer(
            wsgi_application, lambda: self.streams.settings, guard, counters, admit, self._fallback, owns
        )
        rows: dict[Speech, Row] = {Speech.HTTP: self._speak_http}
        if speak_turn is not None:
            rows[Speech.STUN] = speak_turn
        self.port = Port(
            name,
            sockets,
            self._port_settings,
            tls_context_provider,
            guard,
            counters,
            rows,
            stun_in_clear=speak_turn is not None,
        )

    def start(self) -> None:
        """Accept connections from now on."""
        self.port.start()

    def stop_accepting(self) -> None:
        """Close the ports; what is connected stays."""
        self.port.stop_accepting()

    def close(self, code: int, reason: str) -> None:
        """Begin to close every WebSocket: 1001 shutting down, 1012 restarting."""
        self.streams.close(code, reason)

    def stop(self) -> None:
        """End everything now; the flow handler is told of each stream before this returns."""
        self.stop_accepting()
        self.port.serving.kill()
        self.streams.stop()

    def reload(self, settings: ListenerSettings, websocket_settings: WebSocketSettings) -> None:
        """New settings for new connections; those that are there, and the ports, stay as they are."""
        self._settings = settings
        self._fallback.address = settings.http_fallback
        self.streams.settings = websocket_settings

    @property
    def passing(self) -> int:
        """How many requests and tunnels are with the web server behind now."""
        return self._fallback.places.taken

    def _port_settings(self) -> PortSettings:
        settings = self._settings
        return PortSettings(
            settings.tls,
            settings.trusted_proxies,
            settings.tls_at_relay,
            settings.proxy_protocol,
            self.streams.settings.handshake_timeout,
        )

    def _speak_http(self, accepted: Accepted) -> None:
        taken = self._http.serve(accepted)
        accepted.limit(None)
        if taken is not None:
            stream = self.streams.adopt(taken.socket, taken.upgrade)
            accepted.socket = None
            stream.begin(taken.upgrade, taken.data)
