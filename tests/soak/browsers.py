"""Users of a gateway that behave as people do: they register, call, relay, leave with a word or without, come back."""

from __future__ import annotations

import itertools
import os
import random
import re
import time
from collections import Counter
from typing import Any

import gevent
from gevent.event import AsyncResult

from tests.interop.raw import answer, header, headers, sip
from tests.interop.registration import DOMAIN, PASSWORD, authorization
from tests.soak.places import Places, connected
from tests.soak.relays import NotRelayed, Refused, relay
from wsgate.ws.connection import Closed, Connection, Message, Role, WebSocketSettings
from wsgate.ws.handshake import ClientHandshake

FAR_DOMAIN = "far.test"
"""Its SIP server is restarted now and then; DOMAIN is served by the embedded registrar."""
ANSWER_SECONDS = 40.0
"""Longer than timers B and F (RFC 3261 §17): by then everything but a ringing INVITE has its answer."""
EXPIRES_SECONDS = 5
FRESH_SECONDS = 2.5
"""What a registration has to have before it ends, for TURN credentials to be used."""
CALL_STATUSES = {200, 404, 408, 480, 486, 487, 500, 503}
"""What a call may end with when users and servers come and go (table A)."""
CREDENTIALS = re.compile(rb'X-Turn-Credentials: username="([^"]+)", password="([^"]+)"')
SDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"

_numbers = itertools.count(1)


class Wrong(Exception):
    """The gateway did what it may not do; the text is for the verdict."""


class Lost(Exception):
    """The connection is gone."""


class WebSocket:
    """A browser's connection; requests that come in are answered with 200 at once."""

    def __init__(self, places: Places, contact: str) -> None:
        self._socket = connected(places.web, places.tls, ANSWER_SECONDS)
        self._contact = contact
        self._waiting: dict[bytes, AsyncResult[bytes]] = {}
        handshake = ClientHandshake("{}:{}".format(*places.web), "/ws", os.urandom)
        self._socket.sendall(handshake.request)
        rest = None
        while rest is None:
            data = self._socket.recv(65536)
            if not data:
                raise Lost
            rest = handshake.receive(data)
        self._machine = Connection(Role.CLIENT, WebSocketSettings(), os.urandom, 0.0)
        self._reader = gevent.spawn(self._read, rest)

    def _read(self, data: bytes) -> None:
        try:
            while True:
                for event in self._machine.receive(data, 0.0):
                    if isinstance(event, Message):
                        self._hear(event.data)
                    elif isinstance(event, Closed):
                        return
                self._flush()
                self._socket.settimeout(None)
                data = self._socket.recv(65536)
                if not data:
                    return
        except OSError:
            return
        finally:
            for waiting in self._waiting.values():
                waiting.set_exception(Lost())

    def _hear(self, message: bytes) -> None:
        if not message.startswith(b"SIP/2.0 "):
            if not message.startswith(b"ACK "):
                body = SDP if message.startswith(b"INVITE ") else ""
                typed = ("Content-Type: application/sdp",) if body else ()
                routes = [f"Record-Route: {value}" for value in headers(message, "Record-Route")]
                self._machine.send_message(
                    answer(message, "200 OK", f"Contact: <{self._contact}>", *routes, *typed, tag="callee", body=body)
                )
            return
        if message[8:9] != b"1" and (waiting := self._waiting.pop(_branch(message), None)) is not None:
            waiting.set(message)

    def _flush(self) -> None:
        self._socket.sendall(self._machine.data_to_send())

    def send(self, message: bytes) -> None:
        """One message. Raises Lost."""
        if self._reader.dead:
            raise Lost
        self._machine.send_message(message)
        try:
            self._flush()
        except OSError:
            raise Lost from None

    def ask(self, message: bytes) -> bytes:
        """A request and its final answer. Raises Lost, and Wrong when none comes."""
        waiting = self._waiting[_branch(message)] = AsyncResult()
        self.send(message)
        try:
            found: bytes = waiting.get(timeout=ANSWER_SECONDS)
        except gevent.Timeout:
            raise Wrong(f"no answer to {message[:60]!r}") from None
        return found

    def close(self) -> None:
        """Without a word."""
        self._reader.kill()
        self._socket.close()


def _branch(message: bytes) -> bytes:
    return header(message, "Via").partition("branch=")[2].partition(";")[0].encode()


class User:
    """One person: a life is a page that is opened, used and left."""

    def __init__(self, name: str, places: Places, done: Counter[str]) -> None:
        self.name, self._places, self._done = name, places, done
        self._chance = random.Random(name)
        self._web_socket: WebSocket | None = None
        self._credentials: tuple[str, str] | None = None
        self._registered_at = 0.0
        self._cseq = 0
        self._host = ""

    def live(self, others: list[str]) -> None:
        """One page: register, do some things, leave. Raises Wrong."""
        self._credentials = None
        self._host = f"{self.name}-{next(_numbers)}.invalid"
        try:
            self._web_socket = WebSocket(self._places, self._contact)
            self._register(EXPIRES_SECONDS)
            for _ in range(self._chance.randrange(1, 6)):
                self._act(others)
            if self._chance.random() < 0.3:
                self._register(0)
                self._done["unregistered"] += 1
        except (Lost, OSError):
            self._done["cut off"] += 1
        finally:
            if self._web_socket is not None:
                self._web_socket.close()

    def _act(self, others: list[str]) -> None:
        what = self._chance.randrange(6)
        if what == 0:
            self._register(EXPIRES_SECONDS)
        elif what == 1:
            self._expect(self._ask("MESSAGE", f"sip:{self._chance.choice(others)}@{DOMAIN}"), CALL_STATUSES, "messages")
        elif what == 2:
            self._relay()
        elif what == 3:
            self._call(f"sip:desk@{FAR_DOMAIN}")
        else:
            self._call(f"sip:{self._chance.choice(others)}@{DOMAIN}")
        gevent.sleep(self._chance.random() * 0.2)

    @property
    def _contact(self) -> str:
        return f"sip:{self.name}@{self._host};transport=ws"

    def _request(self, method: str, uri: str, *more: str, cseq: int, call_id: str, to: str, body: str = "") -> bytes:
        return sip(
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/WS {self._host};branch=z9hG4bK{next(_numbers)}",
            f"From: <sip:{self.name}@{DOMAIN}>;tag={self.name}",
            f"To: {to}",
            f"Call-ID: {call_id}",
            f"CSeq: {cseq} {method}",
            "Max-Forwards: 70",
            f"Contact: <{self._contact}>" + (f";expires={more[0]}" if method == "REGISTER" else ""),
            *more[method == "REGISTER" :],
            body=body,
        )

    def _ask(self, method: str, uri: str, *more: str, call_id: str = "", to: str = "", body: str = "") -> bytes:
        """A request outside or inside a dialog, with credentials where they are asked for."""
        assert self._web_socket is not None
        self._cseq += 1
        fields: dict[str, Any] = {
            "call_id": call_id or f"{self._host}-{self._cseq}",
            "to": to or f"<{uri}>",
            "body": body,
        }
        found = self._web_socket.ask(self._request(method, uri, *more, cseq=self._cseq, **fields))
        for code, name in ((b"401", "Authorization"), (b"407", "Proxy-Authorization")):
            if found.startswith(b"SIP/2.0 " + code):
                if method == "INVITE":
                    self._acknowledge(found, uri)
                self._cseq += 1
                shown = f"{name}: {authorization(found, self.name, method, uri, PASSWORD)}"
                return self._web_socket.ask(self._request(method, uri, *more, shown, cseq=self._cseq, **fields))
        return found

    def _expect(self, found: bytes, statuses: set[int], done: str) -> bool:
        """True for a success. Raises Wrong for a status that is none of these."""
        status = int(found[8:11])
        if status not in statuses:
            raise Wrong(f"{done} of {self.name}: {found[:300]!r}")
        self._done[done if status == 200 else f"{done} ended with {status}"] += 1
        return status == 200

    def _register(self, expires: int) -> None:
        aor = f"<sip:{self.name}@{DOMAIN}>"
        found = self._ask("REGISTER", f"sip:{DOMAIN}", str(expires), to=aor, call_id=f"r-{self._host}")
        self._expect(found, {200}, "registered")
        self._registered_at = time.monotonic()
        shown = CREDENTIALS.search(found)
        if shown is not None:
            self._credentials = shown[1].decode(), shown[2].decode()

    def _acknowledge(self, found: bytes, uri: str) -> None:
        """The ACK of a failure, in the transaction of its INVITE (RFC 3261 §17.1.1.3)."""
        assert self._web_socket is not None
        kept = [f"{name}: {header(found, name)}" for name in ("Via", "From", "To", "Call-ID")]
        number = header(found, "CSeq").split()[0]
        self._web_socket.send(sip(f"ACK {uri} SIP/2.0", *kept, f"CSeq: {number} ACK", "Max-Forwards: 70"))

    def _call(self, uri: str) -> None:
        """INVITE, ACK and mostly BYE; else the page is left in the middle of the call."""
        assert self._web_socket is not None
        typed = "Content-Type: application/sdp"
        found = self._ask("INVITE", uri, typed, body=SDP)
        if not self._expect(found, CALL_STATUSES, "calls"):
            self._acknowledge(found, uri)
            return
        routes = [f"Route: {value}" for value in reversed(headers(found, "Record-Route"))]
        target = header(found, "Contact").partition("<")[2].partition(">")[0]
        call_id, to, number = header(found, "Call-ID"), header(found, "To"), int(header(found, "CSeq").split()[0])
        self._web_socket.send(self._request("ACK", target, *routes, cseq=number, call_id=call_id, to=to))
        if self._chance.random() < 0.15:
            raise Lost
        gevent.sleep(self._chance.random() * 0.2)
        self._expect(self._ask("BYE", target, *routes, call_id=call_id, to=to), CALL_STATUSES | {481}, "hung up")

    def _relay(self) -> None:
        # The credentials are good as long as the registration is (A5): a call may have taken longer.
        if time.monotonic() > self._registered_at + EXPIRES_SECONDS - FRESH_SECONDS:
            self._register(EXPIRES_SECONDS)
        if self._credentials is None:
            raise Wrong("no TURN credentials with a registration (A5)")
        begun = time.monotonic()
        try:
            self._done[relay(self._places, self._chance, *self._credentials)] += 1
        except Refused as error:
            if time.monotonic() < begun + FRESH_SECONDS:
                raise Wrong(str(error)) from None
            self._done["allocations came too late"] += 1
        except NotRelayed as error:
            raise Wrong(str(error)) from None
