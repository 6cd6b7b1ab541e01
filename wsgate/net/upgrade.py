"""HTTP on gevent.pywsgi, and the upgrade to WebSocket with strict checks of our own before gevent-websocket's.

gevent-websocket's handler answers 101; after that its socket and the bytes already read are taken away from it, and
nothing of it, nor of the request, stays in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NamedTuple

import gevent
from gevent.pywsgi import WSGIHandler, WSGIServer
from geventwebsocket.handler import WebSocketHandler

from wsgate.addr import Address, Network
from wsgate.guard import RETRY_AFTER, Guard
from wsgate.http.head import HeadError, RequestHead, request_body, request_line
from wsgate.http.passing import Client
from wsgate.identity import Admitted
from wsgate.log import escaped, logger
from wsgate.metrics import Counters
from wsgate.net.clock import now
from wsgate.net.fallback import Fallback, Passing, error_answer
from wsgate.net.forwarded import asked_host, client_address
from wsgate.net.request_head import HeadBuffer, HeaderFields
from wsgate.net.stream import Upgrade
from wsgate.ws.connection import WebSocketSettings
from wsgate.ws.handshake import (
    SUBPROTOCOL,
    Refusal,
    UpgradeRequest,
    asks_for_websocket,
    refusal,
    tokens,
    values,
)

MAX_BODY_BYTES = 65536
"""Of a request to the WSGI application."""

KEEP_ALIVE_TIMEOUT = 15.0
"""Seconds between two requests on one connection, head of the next included."""

ANSWER_TIMEOUT = 120.0
"""Seconds for one answer of the application to leave, the body of its request included."""

_OVERLOADED = Refusal("503 Service Unavailable", "overloaded", (("Retry-After", str(RETRY_AFTER)),))
_TOO_FAST = Refusal("503 Service Unavailable", "too many connections", (("Retry-After", "1"),))


Admit = Callable[[tuple[tuple[str, str], ...], str], Admitted | Refusal]
"""What judges the identity of an upgrade by its header fields and its query."""


def admit_all(_fields: tuple[tuple[str, str], ...], _query: str) -> Admitted:
    """Where no identity is asked for."""
    return Admitted()


class HeadTimeout(gevent.Timeout):  # type: ignore[misc]
    """handshake_timeout, KEEP_ALIVE_TIMEOUT or ANSWER_TIMEOUT is over: the connection is closed."""


class Accepted:
    """One connection as the listener hands it over: its socket, who is there, and what the guard counts for it."""

    __slots__ = ("claim", "head", "peer", "secure", "socket", "timeout", "trusted")

    def __init__(self, sock: Any, peer: Address, trusted: tuple[Network, ...], secure: bool) -> None:
        self.socket = sock
        self.peer = peer
        self.trusted = trusted
        self.secure = secure
        self.timeout: HeadTimeout | None = None
        self.claim = ""
        """The address for which a place is claimed in the guard; empty: none yet, the peer is a relay."""
        self.head = HeadBuffer(sock)

    def renew_head(self) -> None:
        """Read from `socket`, which TLS has wrapped."""
        self.head = HeadBuffer(self.socket)

    def limit(self, seconds: float | None) -> None:
        """Raise HeadTimeout in this greenlet after `seconds`; what ran before is over. None: no limit."""
        if self.timeout is not None:
            self.timeout.close()
        self.timeout = None if seconds is None else HeadTimeout.start_new(seconds)


class Taken(NamedTuple):
    """A connection that became a WebSocket: its socket, the bytes behind the head, and the request."""

    socket: Any
    data: bytes
    upgrade: Upgrade


class HttpServer(WSGIServer):  # type: ignore[misc]
    """What pywsgi's handler wants of a server; it never listens itself."""

    def __init__(
        self,
        application: Callable[..., Any],
        settings: Callable[[], WebSocketSettings],
        guard: Guard,
        counters: Counters,
        admit: Admit = admit_all,
        fallback: Fallback | None = None,
        owns: Callable[[str], bool] = lambda _path: False,
    ) -> None:
        """`fallback` gets, where it has an address, each path but that of the WebSocket and those that `owns` names."""
        super().__init__(
            ("127.0.0.1", 0), application, log=None, error_log=None, environ={"SERVER_NAME": "", "SERVER_PORT": ""}
        )
        self.settings = settings
        self.guard = guard
        self.counters = counters
        self.admit = admit
        self.fallback = fallback or Fallback(None, counters)
        self.owns = owns
        self.logger = logger

    def serve(self, accepted: Accepted) -> Taken | None:
        """Answer requests until the connection ends (None; the socket is closed) or becomes a WebSocket."""
        handler = UpgradeHandler(accepted, self)
        try:
            handler.handle()
            return handler.taken
        finally:
            # The request, its environ and gevent-websocket's objects refer to each other: free them now.
            handler.forget()


class _SipOnly:
    """gevent-websocket asks the application which subprotocol it speaks."""

    @staticmethod
    def app_protocol(_path: str) -> str:
        return SUBPROTOCOL


class UpgradeHandler(WebSocketHandler):  # type: ignore[misc]
    """gevent-websocket's handler behind the checks of rules H1 and H2; every other path goes to the application."""

    socket: Any

    def __init__(self, accepted: Accepted, server: HttpServer) -> None:
        super().__init__(accepted.socket, accepted.peer, server, rfile=accepted.head)
        self.taken: Taken | None = None
        self._passing: Passing | None = None
        self._accepted = accepted
        self._relayed = client_address(accepted.peer, (), ())

    def forget(self) -> None:
        """Let go of everything."""
        if self.environ is not None:
            self.environ.clear()
        self.__dict__.clear()

    MessageClass = HeaderFields

    def handle_one_request(self) -> Any:
        """The next head may be as long as one may be."""
        self.rfile.begin()
        return super().handle_one_request()

    def read_request(self, raw_requestline: str) -> bool:
        """Raises HeadError. Nothing is left to pywsgi, which would let much pass, and repair it."""
        self.command, self.path, self.request_version = request_line(raw_requestline)
        self.headers = HeaderFields(self.rfile)
        fields = self.headers.fields
        asked = [token.lower() for token in tokens(fields, "connection")]
        is_modern = self.request_version == "HTTP/1.1"
        self.close_connection = "close" in asked or not (is_modern or "keep-alive" in asked)
        self._relayed = client_address(self._accepted.peer, fields, self._accepted.trusted)
        self.content_length = None
        path = self.path.partition("?")[0]
        if self.server.fallback.address is None or path == self.server.settings().path or self.server.owns(path):
            self._passing = None
            self.content_length = self._own_body()
        else:
            self._passing = self._pass_on()
        return True

    def _own_body(self) -> int | None:
        """The Content-Length of a request to us. Raises HeadError, also for a body that is not taken."""
        lengths = values(self.headers.fields, "content-length")
        if values(self.headers.fields, "transfer-encoding"):
            raise HeadError(HTTPStatus.NOT_IMPLEMENTED, "no Transfer-Encoding is understood")
        if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,10}", length) for length in lengths):
            raise HeadError(HTTPStatus.BAD_REQUEST, "malformed Content-Length")
        length = int(lengths[0]) if lengths else None
        if length and length > MAX_BODY_BYTES:
            raise HeadError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body is too big")
        if length and self.command == "HEAD":
            raise HeadError(HTTPStatus.BAD_REQUEST, "HEAD has no body")
        return length

    def _pass_on(self) -> Passing:
        """Raises HeadError."""
        head = RequestHead(self.command, self.path, self.request_version, self.headers.fields)
        accepted = self._accepted
        peer, remote = accepted.peer.host, self._relayed.remote.host
        client = Client(peer, remote, self._relayed.relays > 0, accepted.secure)
        keep = self.request_version == "HTTP/1.1" and not self.close_connection
        return Passing(head, request_body(head), client, keep)

    def get_environ(self) -> dict[str, Any]:
        """The application sees the client's real address."""
        environ: dict[str, Any] = super().get_environ()
        remote = self._relayed.remote
        environ["REMOTE_ADDR"] = remote.host
        environ["REMOTE_PORT"] = str(remote.port)
        environ["wsgate.remote"] = remote
        environ["wsgate.fields"] = self.headers.fields
        environ["wsgate.host"] = asked_host(self.headers.fields, self._relayed.relays)
        environ["wsgate.secure"] = self._accepted.secure
        environ["wsgi.url_scheme"] = "https" if self._accepted.secure else "http"
        return environ

    def handle_one_response(self) -> None:
        """The head is there: the time limit of the answer begins, and after it that of the next request."""
        if self._passing is None:
            self._accepted.limit(ANSWER_TIMEOUT)
            super().handle_one_response()
        else:
            self._accepted.limit(None)
            self._serve_from_fallback(self._passing)
        if not self.close_connection:
            self._accepted.limit(KEEP_ALIVE_TIMEOUT)

    def _serve_from_fallback(self, passing: Passing) -> None:
        guard: Guard = self.server.guard
        if guard.overloaded or guard.crowded(passing.client.remote):
            fields = f"Retry-After: {RETRY_AFTER}\r\n"
            self.socket.sendall(error_answer(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", fields))
            self.close_connection = True
        else:
            self.close_connection = not self.server.fallback.serve(passing, self.socket, self.rfile)

    def run_application(self) -> None:
        """An upgrade where WebSockets are spoken, else the WSGI application or the web server behind."""
        path = self.path.partition("?")[0]
        if path == self.server.settings().path:
            self._upgrade_or_refuse()
        elif asks_for_websocket(self.headers.fields):
            self._refuse(Refusal("404 Not Found", "no WebSocket here"))
        else:
            WSGIHandler.run_application(self)

    def _upgrade_or_refuse(self) -> None:
        fields = self.headers.fields
        host = asked_host(fields, self._relayed.relays)
        request = UpgradeRequest(self.command, self.request_version, fields)
        against = refusal(request, host, self.server.settings().origins) or self._limit()
        if against is not None:
            self._refuse(against)
            return
        # Last, for it is the dearest: a signature may have to be verified.
        admitted = self.server.admit(fields, self.path.partition("?")[2])
        if isinstance(admitted, Refusal):
            self._refuse(admitted)
            return
        self.application = _SipOnly
        # Judged above as a list (rule H1); gevent-websocket knows a single word only.
        self.environ["HTTP_UPGRADE"] = "websocket"
        self.upgrade_websocket()
        # Its WebSocket writes a close frame into our socket when it is freed: it is not to know the socket.
        self.websocket.closed = True
        self.websocket.raw_write = self.websocket.raw_read = self.websocket.stream = None
        self.close_connection = True
        self.write(b"")
        upgrade = Upgrade(self._relayed.remote, self._accepted.secure, host, fields, admitted)
        self.taken = Taken(self.socket, self.rfile.take(), upgrade)
        self.socket = None

    def _limit(self) -> Refusal | None:
        """Rule H1, 503: the limits of the worker and of the client's real address."""
        guard: Guard = self.server.guard
        host = self._relayed.remote.host
        if guard.overloaded:
            return _OVERLOADED
        if not self._accepted.claim:
            if not guard.claim(host):
                return _OVERLOADED
            self._accepted.claim = host
        if guard.crowded(host):
            return _OVERLOADED
        return None if guard.upgrade(host, now()) else _TOO_FAST

    def _refuse(self, against: Refusal) -> None:
        status = against.status.partition(" ")[0]
        self.server.counters.count(f"websocket_refused_{status}")
        logger.debug("refused %s: %s %s", self._relayed.remote, against.status, against.reason)
        body = f"{against.reason}\n".encode()
        self.close_connection = True
        # No body is waited for only to throw it away.
        self.wsgi_input.content_length = 0
        fields = [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), ("Connection", "close")]
        WSGIHandler.start_response(self, against.status, [*fields, *against.fields])
        self.write(body)

    def log_request(self) -> None:
        """The application counts its own requests; a line for each would let strangers fill the disk."""

    def log_error(self, msg: str, *args: Any) -> None:
        """At level debug: what is wrong is a stranger's request, and counted."""
        logger.debug("%s: %s", self._accepted.peer, escaped(msg % args if args else msg))

    def handle_error(self, kind: Any, value: Any, traceback: Any) -> None:
        """A time limit that ended inside the application is no error of its own."""
        if isinstance(value, HeadTimeout):
            self.close_connection = True
        else:
            super().handle_error(kind, value, traceback)

    def _log_error(self, kind: Any, value: Any, traceback: Any) -> None:
        if not issubclass(kind, gevent.GreenletExit):
            self.server.counters.count("internal_errors")
            logger.error("internal error in an HTTP request", exc_info=(kind, value, traceback))

    def _handle_client_error(self, error: Exception) -> tuple[str, bytes]:
        status = error.status if isinstance(error, HeadError) else HTTPStatus.BAD_REQUEST
        self.server.counters.count("http_malformed")
        self.log_error("%s", str(error))
        line = f"{status.value} {status.phrase}"
        head = f"HTTP/1.1 {line}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        return line, head.encode()
