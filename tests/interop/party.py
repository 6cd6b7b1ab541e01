"""Users, phones and SIP servers that a test plays message by message, and the dialogs between them (RFC 3261 §12).

`Party` and `Phone` are in one dialog at a time and remember it. `Browser` and `Desk` are the two ends of any number of
calls, which a test holds as `Call`.
"""

from __future__ import annotations

import itertools
import os
import queue
import socket
import threading
import time
from typing import NamedTuple

from tests.interop.process import PATIENCE_SECONDS
from tests.interop.raw import RawWebSocket, UdpPeer, answer, header, headers, sip
from tests.interop.registration import register_browser

DOMAIN = "example.test"
FAR = "sip:bob@192.0.2.77:5099"
"""Where the phone stands that the server's Record-Route leads to; nothing is ever sent there."""

SDP = (
    "v=0\r\no=- 7 1 IN IP4 192.0.2.77\r\ns=-\r\nt=0 0\r\nc=IN IP4 192.0.2.77\r\n"
    "m=audio 6000 UDP/TLS/RTP/SAVPF 0\r\na=rtpmap:0 PCMU/8000\r\na=sendrecv\r\n"
)
"""What JsSIP takes for an offer or an answer where media is only spoken of."""

_numbers = itertools.count(1)


def _typed(body: str) -> tuple[str, ...]:
    return ("Content-Type: application/sdp",) if body else ()


def branch() -> str:
    """A branch parameter that no other request has."""
    return f"branch=z9hG4bKparty{next(_numbers)}"


class Leg(NamedTuple):
    """What one party knows of a dialog (RFC 3261 §12)."""

    call_id: str
    local: str
    remote: str
    target: str
    routes: tuple[str, ...]

    def request(self, method: str, number: int, via: str, *more: str, body: str = "") -> bytes:
        """A request of this party."""
        lines = [f"Via: {via};{branch()}", "Max-Forwards: 70", *(f"Route: {route}" for route in self.routes)]
        lines += [f"From: {self.local}", f"To: {self.remote}", f"Call-ID: {self.call_id}", f"CSeq: {number} {method}"]
        return sip(f"{method} {self.target} SIP/2.0", *lines, *more, *_typed(body), body=body)

    @property
    def tag(self) -> str:
        """This party's own."""
        return self.local.partition(";tag=")[2]

    def reversed(self) -> Leg:
        """From and To as the other party writes them."""
        return self._replace(local=self.remote, remote=self.local)


NO_DIALOG = Leg("", "", "", "", ())


class Call(NamedTuple):
    """One dialog as both parties know it."""

    browser: Leg
    desk: Leg


def uri(value: str) -> str:
    """The URI between the brackets of a header value."""
    return value.partition("<")[2].partition(">")[0]


def routes_of(message: bytes, *, is_caller: bool) -> tuple[str, ...]:
    """The route set out of Record-Route (RFC 3261 §12.1)."""
    values = [route.strip() for line in headers(message, "Record-Route") for route in line.split(",")]
    return tuple(values[::-1] if is_caller else values)


def acknowledgement(invite: bytes, failure: bytes) -> bytes:
    """The ACK of a 3xx to 6xx: in the transaction of its INVITE (RFC 3261 §17.1.1.3)."""
    lines = [f"Via: {headers(invite, 'Via')[0]}", *(f"Route: {route}" for route in headers(invite, "Route"))]
    lines += [f"{name}: {header(invite, name)}" for name in ("Max-Forwards", "From", "Call-ID")]
    lines += [f"To: {header(failure, 'To')}", f"CSeq: {header(invite, 'CSeq').partition(' ')[0]} ACK"]
    return sip(f"ACK {invite.split(b' ', 2)[1].decode()} SIP/2.0", *lines)


def leg_of_called(invite: bytes, tag: str) -> Leg:
    """What the called party knows: the INVITE as it arrived, and its own tag."""
    routes = routes_of(invite, is_caller=False)
    local, target = f"{header(invite, 'To')};tag={tag}", uri(header(invite, "Contact"))
    return Leg(header(invite, "Call-ID"), local, header(invite, "From"), target, routes)


def leg_of_caller(ok: bytes, own_route: str = "") -> Leg:
    """What the caller knows from the 200; `own_route` is no next hop of who wrote it."""
    routes = tuple(route for route in routes_of(ok, is_caller=True) if route != own_route)
    return Leg(header(ok, "Call-ID"), header(ok, "From"), header(ok, "To"), uri(header(ok, "Contact")), routes)


class OneDialog:
    """A user `name`, in at most one dialog; how its messages leave is up to its kind."""

    def __init__(self, name: str, via: str, uri: str) -> None:
        self.user, self.via, self.uri = name, via, uri
        self.aor = f"<sip:{name}@{DOMAIN}>"
        self.leg = NO_DIALOG
        self.cseq = 0

    def transmit(self, message: bytes) -> None:
        """Send one message."""
        raise NotImplementedError

    def call(self, called: str, *fields: str, domain: str = DOMAIN, method: str = "INVITE", body: str = "") -> bytes:
        """A request outside a dialog to a user of `domain`; returns what was sent."""
        called_uri = f"sip:{called}@{domain}"
        local = f"{self.aor};tag={self.user}{next(_numbers)}"
        self.leg = Leg(f"{os.urandom(6).hex()}@caller.invalid", local, f"<{called_uri}>", called_uri, ())
        self.cseq = 0
        return self.send(method, *fields, body=body)

    def send(self, method: str, *fields: str, cseq: int = 0, body: str = "") -> bytes:
        """A request of the dialog, or the one that begins it; `cseq` for ACK and CANCEL, else the next number."""
        self.cseq += 0 if cseq else 1
        message = self.leg.request(method, cseq or self.cseq, self.via, f"Contact: <{self.uri}>", *fields, body=body)
        self.transmit(message)
        return message


class Party(OneDialog):
    """A user of the embedded registrar on a WebSocket of their own. `host` stands in its Contact."""

    def __init__(self, gateway: tuple[str, int], user: str, password: str, *, host: str = "browser.invalid") -> None:
        super().__init__(user, "SIP/2.0/WS browser.invalid", f"sip:{user}@{host};transport=ws")
        self.gateway, self.password = gateway, password
        self.ws = RawWebSocket(gateway)

    def transmit(self, message: bytes) -> None:
        self.ws.send(message)

    def register(self, *fields: str, parameters: str = "") -> bytes:
        """Register by digest; returns the 200."""
        contact = f"<{self.uri}>{parameters}"
        return register_browser(self.ws, self.user, *fields, contact=contact, password=self.password)

    def reconnect(self) -> None:
        """The connection is gone without a word; a new one."""
        self.ws.close()
        self.ws = RawWebSocket(self.gateway)

    def cancel(self, invite: bytes) -> None:
        """CANCEL an INVITE of ours (RFC 3261 §9.1)."""
        number = header(invite, "CSeq").split()[0]
        lines = [f"{name}: {header(invite, name)}" for name in ("Via", "Max-Forwards", "From", "To", "Call-ID")]
        self.ws.send(sip(f"CANCEL {invite.split(b' ')[1].decode()} SIP/2.0", *lines, f"CSeq: {number} CANCEL"))

    def request(self, method: str) -> bytes:
        """The next request, which is of this method; others than ACK and those that were expected fail the test."""
        message = self.ws.receive_until(lambda m: not m.startswith(b"SIP/2.0 "))
        assert message.startswith(method.encode() + b" "), message
        return message

    def answer(self, request: bytes, status: str, *fields: str) -> None:
        """Answer a request; the first answer to an INVITE makes this side of the dialog."""
        if header(request, "Call-ID") != self.leg.call_id:
            self.leg, self.cseq = leg_of_called(request, f"{self.user}{next(_numbers)}"), 0
        self.ws.send(answer(request, status, f"Contact: <{self.uri}>", *fields, tag=self.leg.tag))

    def response(self, status: int, method: str, seconds: float = PATIENCE_SECONDS) -> bytes:
        """The next answer to this method that is no 100; it has this status. One with a To tag fixes the dialog."""
        message = self.ws.receive_until(
            lambda m: m[:8] == b"SIP/2.0 " and m[8:11] != b"100" and header(m, "CSeq").endswith(method), seconds
        )
        assert message.startswith(b"SIP/2.0 %d " % status), message
        if method == "INVITE" and status < 300 and not self.leg.routes:
            self.leg = leg_of_caller(message)
        return message

    def close(self) -> None:
        """Close the connection."""
        self.ws.close()


class Phone(OneDialog):
    """A phone over UDP that calls through its server at `host`:`server`. It sends nothing twice."""

    def __init__(self, server: int, host: str = "127.0.0.1") -> None:
        self.peer = UdpPeer()
        place = f"127.0.0.1:{self.peer.port}"
        super().__init__("desk", f"SIP/2.0/UDP {place}", f"sip:desk@{place}")
        self._server = (host, server)

    def transmit(self, message: bytes) -> None:
        self.peer.send(message, self._server)

    def answered(self) -> None:
        """Wait for the 200 and acknowledge it."""
        self.leg = leg_of_caller(self.peer.receive_until(b"SIP/2.0 200")[0])
        self.send("ACK", cseq=self.cseq)

    def hung_up(self) -> None:
        """Wait for BYE and answer it."""
        bye, source = self.peer.receive_until(b"BYE ")
        self.peer.send(answer(bye, "200 OK"), source)

    def close(self) -> None:
        """Close its socket."""
        self.peer.close()


class Browser:
    """A client with a WebSocket, which a thread reads. `is_known_by` "instance" or "contact" alone (rule D3)."""

    def __init__(self, address: tuple[str, int], *, user: str = "", is_known_by: str = "instance") -> None:
        number = next(_numbers)
        self.address, self.user = address, user or f"alice{number}"
        self.aor = f"<sip:{self.user}@{DOMAIN}>"
        self.contact = f"<sip:u{number}@b{number}.invalid;transport=ws>"
        self.via = f"SIP/2.0/WS b{number}.invalid"
        self._instance = f';+sip.instance="<urn:uuid:{number}>";reg-id=1' if is_known_by == "instance" else ""
        self.connect()

    def connect(self) -> None:
        """Open a WebSocket; what came on an older one is forgotten."""
        self.socket = RawWebSocket(self.address)
        self._inbox: queue.Queue[bytes] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(self.socket, self._inbox), daemon=True)
        self._thread.start()

    @staticmethod
    def _read(websocket: RawWebSocket, inbox: queue.Queue[bytes]) -> None:
        # None: nothing in an hour, or it is closed.
        while (message := websocket.receive(3600)) is not None:
            inbox.put(message)
        websocket.close()

    def close_tab(self) -> None:
        """The TCP connection ends, without a close frame; one that has ended already is fine."""
        try:
            self.socket.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join(10)

    def send(self, message: bytes) -> None:
        """One message."""
        self.socket.send(message)

    def expect(self, start: str, cseq: str = "", seconds: float = PATIENCE_SECONDS) -> bytes:
        """The next message that begins with `start` and whose CSeq ends with `cseq`; others are dropped."""
        deadline, others = time.monotonic() + seconds, []
        while True:
            try:
                message = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{self.user} got no {start} {cseq}; instead: {others}") from None
            if message.startswith(start.encode()) and header(message, "CSeq").endswith(cseq):
                return message
            others.append(message)

    def answer(self, request: bytes, status: str = "200 OK") -> None:
        """A response with our Contact."""
        self.send(answer(request, status, f"Contact: {self.contact}", tag="browser"))

    def register(self, desk: Desk) -> None:
        """REGISTER through the gateway, granted by the server."""
        lines = [f"Via: {self.via};{branch()}", "Max-Forwards: 70", f"From: {self.aor};tag=r", f"To: {self.aor}"]
        lines += [f"Call-ID: register{next(_numbers)}", "CSeq: 1 REGISTER", "Supported: path, outbound"]
        lines += [f"Contact: {self.contact}{self._instance};expires=600"]
        self.send(sip(f"REGISTER sip:{DOMAIN} SIP/2.0", *lines))
        self.path = desk.grant()
        self.expect("SIP/2.0 200", "REGISTER")

    def invite(self) -> bytes:
        """Send an INVITE to bob; returns it."""
        number = next(_numbers)
        lines = [f"Via: {self.via};{branch()}", "Max-Forwards: 70", f"From: {self.aor};tag=b{number}"]
        lines += [f"To: <sip:bob@{DOMAIN}>", f"Call-ID: call{number}", "CSeq: 1 INVITE", f"Contact: {self.contact}"]
        request = sip(f"INVITE sip:bob@{DOMAIN} SIP/2.0", *lines)
        self.send(request)
        return request


class Desk:
    """A SIP server over UDP that record-routes, and the phone behind it, in one."""

    def __init__(self) -> None:
        """`gate` is set once the gateway runs, for which this is the backend."""
        self.peer = UdpPeer()
        self.place = f"127.0.0.1:{self.peer.port}"
        self.gate = ("", 0)
        self.via = f"SIP/2.0/UDP {self.place};rport"
        self.route = f"<sip:{self.place};lr;x=1>"

    def send(self, message: bytes) -> None:
        """One datagram to the gateway."""
        self.peer.send(message, self.gate)

    def expect(self, start: str, cseq: str = "", seconds: float = PATIENCE_SECONDS) -> bytes:
        """The next datagram that begins with `start` and whose CSeq ends with `cseq`; others are dropped."""
        deadline = time.monotonic() + seconds
        while True:
            message, _ = self.peer.receive_until(start.encode(), max(0.01, deadline - time.monotonic()))
            if header(message, "CSeq").endswith(cseq):
                return message

    def is_left_alone(self, seconds: float) -> bool:
        """True when nothing comes for this time."""
        return self.peer.receive(seconds) is None

    def answer(self, request: bytes, status: str = "200 OK", *more: str, tag: str = "desk", body: str = "") -> None:
        """A response with the phone's Contact, or `more` in its place; the first of a dialog has our Record-Route."""
        if "tag=" not in header(request, "To") and header(request, "CSeq").endswith("INVITE"):
            request = request.replace(
                b"\r\nRecord-Route:", f"\r\nRecord-Route: {self.route}\r\nRecord-Route:".encode(), 1
            )
        self.send(answer(request, status, *(more or (f"Contact: <{FAR}>", *_typed(body))), tag=tag, body=body))

    def grant(self) -> tuple[str, ...]:
        """200 to the REGISTER that comes; returns its Path."""
        request = self.expect("REGISTER ")
        self.answer(request, "200 OK", f"Contact: {header(request, 'Contact')}", "Require: outbound")
        return tuple(headers(request, "Path"))

    def invite(self, aor: str, contact: str, path: tuple[str, ...], body: str = "") -> bytes:
        """Send an INVITE along the Path of a registration; returns it."""
        number = next(_numbers)
        lines = [f"Via: {self.via};{branch()}", "Max-Forwards: 70", *(f"Route: {route}" for route in path)]
        lines += [f"Record-Route: {self.route}", f"From: <sip:bob@{DOMAIN}>;tag=d{number}", f"To: {aor}"]
        lines += [f"Call-ID: call{number}", "CSeq: 1 INVITE", f"Contact: <{FAR}>", *_typed(body)]
        request = sip(f"INVITE {uri(contact)} SIP/2.0", *lines, body=body)
        self.send(request)
        return request

    def close(self) -> None:
        """Close the socket."""
        self.peer.close()


def call_from_browser(browser: Browser, desk: Desk) -> Call:
    """INVITE, 200, ACK."""
    browser.invite()
    arrived = desk.expect("INVITE ")
    desk.answer(arrived)
    leg = leg_of_caller(browser.expect("SIP/2.0 200", "INVITE"))
    browser.send(leg.request("ACK", 1, browser.via))
    desk.expect("ACK ")
    return Call(leg, leg_of_called(arrived, "desk"))


def call_from_desk(browser: Browser, desk: Desk) -> Call:
    """INVITE, 200, ACK."""
    desk.invite(browser.aor, browser.contact, browser.path)
    arrived = browser.expect("INVITE ")
    browser.answer(arrived)
    leg = leg_of_caller(desk.expect("SIP/2.0 200", "INVITE"), desk.route)
    desk.send(leg.request("ACK", 1, desk.via))
    browser.expect("ACK ")
    return Call(leg_of_called(arrived, "browser"), leg)


CALLS = {"browser": call_from_browser, "desk": call_from_desk}
"""By who calls."""


def desk_asks(browser: Browser, desk: Desk, leg: Leg, method: str, number: int) -> None:
    """A request of the desk inside a call reaches the browser and is answered end to end."""
    desk.send(leg.request(method, number, desk.via, f"Contact: <{FAR}>"))
    arrived = browser.expect(f"{method} ", f"{number} {method}")
    assert header(arrived, "Call-ID") == leg.call_id
    assert arrived.startswith(f"{method} {uri(browser.contact)} ".encode())
    browser.answer(arrived)
    desk.expect("SIP/2.0 200", f"{number} {method}")
    if method == "INVITE":
        desk.send(leg.request("ACK", number, desk.via))
        browser.expect("ACK ", f"{number} ACK")


def browser_asks(browser: Browser, desk: Desk, leg: Leg, method: str, number: int) -> None:
    """A request of the browser inside a call, with the Routes it always had, reaches the desk and is answered."""
    browser.send(leg.request(method, number, browser.via, f"Contact: {browser.contact}"))
    arrived = desk.expect(f"{method} ", f"{number} {method}")
    assert header(arrived, "Call-ID") == leg.call_id
    assert headers(arrived, "Route") == [desk.route]
    desk.answer(arrived)
    browser.expect("SIP/2.0 200", f"{number} {method}")
    if method == "INVITE":
        browser.send(leg.request("ACK", number, browser.via))
        desk.expect("ACK ", f"{number} ACK")
