"""HTTP requests that are not ours, passed to the web server behind (`http_fallback`): streamed both ways, upgrades too.

Each request has a connection of its own to that server: what one client sends can never be read as part of the request
of another. Back-pressure is that of TCP: not more than one read of each direction is in memory.
"""

from __future__ import annotations

import socket
from http import HTTPStatus
from typing import Any, NamedTuple

import gevent
from gevent import socket as gevent_socket

from wsgate.addr import Address, uri_host
from wsgate.errors import ProtocolError
from wsgate.guard import RETRY_AFTER, Places
from wsgate.http.body import BodyReader, chunk, last_chunk
from wsgate.http.head import NO_BODY, AnswerHead, AnswerReader, Body, BodyKind, HeadError, RequestHead, answer_body
from wsgate.http.passing import (
    Client,
    passed_answer,
    passed_request,
    passed_trailers,
    passed_upgrade,
)
from wsgate.log import logger
from wsgate.metrics import Counters
from wsgate.net.request_head import HeadBuffer
from wsgate.net.tunnel import READ_BYTES, Tunnel, shut

REQUESTS = 1000
"""That one listener of one worker passes on at a time, tunnels included; each holds a connection to the server."""

REQUESTS_PER_ADDRESS = 100
"""Of one client address (IPv6: one /64) among them."""

CONNECT_TIMEOUT = 5.0
"""Seconds for TCP to the server behind."""

ANSWER_TIMEOUT = 120.0
"""Seconds from the end of a request to the head of its answer."""

IDLE_TIMEOUT = 60.0
"""Seconds without a byte from, or taken by, either side while a body passes."""

LINGER_TIMEOUT = 2.0
"""Seconds for a client to stop sending what nobody reads any more, so that it can read its answer."""

LINGER_BYTES = 1048576
"""Of that at most."""


class Passing(NamedTuple):
    """A request that is passed on: its head as read, how its body ends, who asks, and if the connection is kept."""

    head: RequestHead
    body: Body
    client: Client
    keep: bool


class _ClientFailed(Exception):
    """The client is gone or too slow: nothing is left to be told to it."""


class _ServerFailed(Exception):
    """The server behind cannot be used; the text is for the client."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Fallback:
    """The web server behind one listener. `address` None: there is none; it may be replaced at any time (reload)."""

    def __init__(self, address: Address | None, counters: Counters) -> None:
        self.address = address
        self.places = Places(REQUESTS, REQUESTS_PER_ADDRESS)
        self.counters = counters

    def serve(self, passing: Passing, sock: Any, buffer: HeadBuffer) -> bool:
        """Pass one request on and its answer back. True when the connection may carry another request.

        The limits of time on `sock` are set here and taken off again.
        """
        if self.address is None or not self.places.enter(passing.client.remote):
            self.counters.count("http_fallback_refused")
            status, fields = HTTPStatus.SERVICE_UNAVAILABLE, f"Retry-After: {RETRY_AFTER}\r\n"
            sock.sendall(error_answer(status, "Too many requests at a time.", fields))
            return False
        self.counters.count("http_fallback_requests")
        exchange = _Exchange(self, self.address, passing, sock, buffer)
        try:
            return exchange.run()
        finally:
            self.places.leave(passing.client.remote)
            if sock.fileno() >= 0:
                sock.settimeout(None)


def error_answer(status: HTTPStatus, reason: str, fields: str = "") -> bytes:
    """An answer of our own, after which the connection ends; `fields` are whole lines."""
    body = f"{reason}\n".encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n{fields}"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


class _Exchange:
    """One request and its answer: the body goes up in a greenlet of its own, the answer comes down in the caller's."""

    def __init__(self, fallback: Fallback, address: Address, passing: Passing, sock: Any, buffer: HeadBuffer) -> None:
        self._address = address
        self._counters = fallback.counters
        self._passing = passing
        self._client = sock
        self._buffer = buffer
        self._server: Any = None
        self._uploader: gevent.Greenlet | None = None
        self._uploaded = passing.body == NO_BODY
        self._fault: Exception | None = None
        """What ended the upload before its end, other than the server's own wish."""
        self._answered = False
        """True when the head of the answer is out: nothing else can be said any more."""

    def run(self) -> bool:
        """True when the client's connection may carry another request."""
        self._client.settimeout(IDLE_TIMEOUT)
        keep = False
        try:
            keep = self._exchange()
        except _ServerFailed as error:
            self._fail(error.status, str(error))
        except HeadError as error:
            self._fail(error.status, str(error))
        except ProtocolError as error:
            self._fail(HTTPStatus.BAD_GATEWAY, f"The web server behind cannot be understood: {error.reason}.")
        except _ClientFailed:
            self._counters.count("http_fallback_clients_gone")
        finally:
            if self._uploader is not None:
                self._uploader.kill()
            if self._server is not None:
                self._server.close()
        if not self._uploaded:
            self._linger()
        return keep and self._uploaded

    def _exchange(self) -> bool:
        passing = self._passing
        default_host = f"{uri_host(self._address.host)}:{self._address.port}"
        head = passed_request(passing.head, passing.body, passing.client, default_host)
        self._connect()
        try:
            self._server.sendall(head)
        except OSError as error:
            raise _gone(error) from None
        if not self._uploaded:
            self._uploader = gevent.spawn(self._upload)
        reader = AnswerReader()
        answer = self._final_answer(reader)
        if answer.status == HTTPStatus.SWITCHING_PROTOCOLS:
            return self._tunnel(answer, reader)
        return self._download(answer, answer_body(passing.head.method, answer), reader.rest)

    def _connect(self) -> None:
        try:
            self._server = gevent_socket.create_connection(tuple(self._address), timeout=CONNECT_TIMEOUT)
            self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except TimeoutError:
            raise _ServerFailed(HTTPStatus.GATEWAY_TIMEOUT, "The web server behind does not answer.") from None
        except OSError as error:
            logger.debug("http_fallback %s: %s", self._address, error)
            raise _ServerFailed(HTTPStatus.BAD_GATEWAY, "The web server behind cannot be reached.") from None
        self._server.settimeout(IDLE_TIMEOUT)

    def _upload(self) -> None:
        """The body of the request, in its greenlet."""
        reader = BodyReader(self._passing.body)
        chunked = self._passing.body.kind is BodyKind.CHUNKED
        while not reader.complete:
            try:
                payload = self._read_upload(reader)
            except (OSError, ProtocolError, _ClientFailed) as error:
                self._fault = error
                shut(self._server)
                return
            try:
                if payload:
                    self._server.sendall(chunk(payload) if chunked else payload)
            except OSError as error:
                # It may have answered without waiting for the rest: that is for who reads its answer.
                logger.debug("http_fallback %s: upload: %s", self._address, error)
                return
        self._buffer.put_back(reader.rest)
        try:
            if chunked:
                self._server.sendall(last_chunk(passed_trailers(reader.trailers)))
        except OSError as error:
            logger.debug("http_fallback %s: upload: %s", self._address, error)
        self._uploaded = True

    def _read_upload(self, reader: BodyReader) -> bytes:
        data = self._buffer.receive(READ_BYTES)
        if not data:
            raise _ClientFailed
        return reader.receive(data)

    def _final_answer(self, reader: AnswerReader) -> AnswerHead:
        """The answer that is no interim one; those are passed on. Raises _ServerFailed, ProtocolError."""
        self._server.settimeout(ANSWER_TIMEOUT)
        answer = None
        while True:
            answer = reader.receive(self._read_head()) if answer is None else reader.receive()
            if answer is None:
                continue
            if answer.status >= 200 or answer.status == HTTPStatus.SWITCHING_PROTOCOLS:
                self._server.settimeout(IDLE_TIMEOUT)
                return answer
            if self._passing.head.version == "HTTP/1.1":
                self._tell(passed_answer(answer, NO_BODY, chunked=False, close=False))

    def _read_head(self) -> bytes:
        """Something of the answer's head; while a body goes up, its own limits of time count."""
        while True:
            try:
                data: bytes = self._server.recv(READ_BYTES)
            except TimeoutError:
                if self._uploader is not None and not self._uploader.dead:
                    continue
                raise _ServerFailed(HTTPStatus.GATEWAY_TIMEOUT, "The web server behind does not answer.") from None
            except OSError as error:
                data = b""
                logger.debug("http_fallback %s: %s", self._address, error)
            if data:
                return data
            raise self._why_it_ended()

    def _why_it_ended(self) -> Exception:
        """The server's side of TCP is at its end before the answer was: whose fault is it?"""
        if isinstance(self._fault, ProtocolError):
            return HeadError(HTTPStatus.BAD_REQUEST, self._fault.reason)
        if isinstance(self._fault, TimeoutError):
            return HeadError(HTTPStatus.REQUEST_TIMEOUT, "the body of the request did not come")
        if self._fault is not None:
            return _ClientFailed()
        return _ServerFailed(HTTPStatus.BAD_GATEWAY, "The web server behind ended without an answer.")

    def _download(self, answer: AnswerHead, body: Body, data: bytes) -> bool:
        """The answer and its body; True when the connection may be kept."""
        modern = self._passing.head.version == "HTTP/1.1"
        chunked = modern and body.kind in (BodyKind.CHUNKED, BodyKind.UNTIL_END)
        delimited = modern or body.kind in (BodyKind.NONE, BodyKind.LENGTH)
        keep = self._passing.keep and delimited and self._uploaded
        self._answered = True
        self._tell(passed_answer(answer, body, chunked=chunked, close=not keep))
        reader = BodyReader(body)
        while True:
            payload = reader.receive(data)
            if payload:
                self._tell(chunk(payload) if chunked else payload)
            if reader.complete:
                break
            data = self._read_body()
            if not data:
                reader.receive_eof()
                break
        if chunked:
            self._tell(last_chunk(passed_trailers(reader.trailers)))
        return keep

    def _read_body(self) -> bytes:
        try:
            return self._server.recv(READ_BYTES)  # type: ignore[no-any-return]
        except OSError as error:
            raise _gone(error) from None

    def _tunnel(self, answer: AnswerHead, reader: AnswerReader) -> bool:
        """Another application's protocol, when the server takes up what the client offered (RFC 9110 §7.8)."""
        head = passed_upgrade(self._passing.head, answer)
        self._counters.count("http_fallback_tunnels")
        self._answered = True
        self._tell(head + reader.rest)
        try:
            if early := self._buffer.take():
                self._server.sendall(early)
        except OSError as error:
            raise _gone(error) from None
        Tunnel(self._client, self._server).run()
        return False

    def _tell(self, data: bytes) -> None:
        try:
            self._client.sendall(data)
        except OSError:
            raise _ClientFailed from None

    def _fail(self, status: HTTPStatus, reason: str) -> None:
        """Say why there is no answer, unless a part of one is out already: then cutting it off says it."""
        self._counters.count(f"http_fallback_failed_{status.value}")
        logger.debug("http_fallback %s: %s %s", self._address, status.value, reason)
        if self._answered:
            return
        try:
            self._client.sendall(error_answer(status, reason))
        except OSError:
            self._counters.count("http_fallback_clients_gone")

    def _linger(self) -> None:
        """Closing TCP while the client still sends would reset it, and the answer with it would be lost."""
        left = LINGER_BYTES
        with gevent.Timeout(LINGER_TIMEOUT, False):
            try:
                while left > 0 and (data := self._buffer.receive(READ_BYTES)):
                    left -= len(data)
            except OSError:
                return


def _gone(error: OSError) -> _ServerFailed:
    if isinstance(error, TimeoutError):
        return _ServerFailed(HTTPStatus.GATEWAY_TIMEOUT, "The web server behind stopped in the middle.")
    return _ServerFailed(HTTPStatus.BAD_GATEWAY, "The web server behind ended in the middle.")
