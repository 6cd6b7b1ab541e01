"""Parties made of bytes that keep their side of a dialog as RFC 3261 §12 wants it: a browser, and a desk phone."""

from __future__ import annotations

import itertools
import os

from tests.interop.raw import RawWebSocket, UdpPeer, answer, header, headers, sip
from tests.interop.registration import register_browser

NUMBER = itertools.count(1)


class Party:
    """One user on a WebSocket of their own, and the one dialog it is in. `host` stands in its Contact."""

    def __init__(self, gateway: tuple[str, int], user: str, password: str, *, host: str = "browser.invalid") -> None:
        self.user, self.gateway, self.password = user, gateway, password
        self.aor = f"<sip:{user}@example.test>"
        self.uri = f"sip:{user}@{host};transport=ws"
        self.ws = RawWebSocket(gateway)
        self._forget()

    def _forget(self) -> None:
        self.call_id = self.tag = self.remote = self.target = ""
        self.routes: list[str] = []
        self.cseq = 0

    def register(self, *fields: str, parameters: str = "") -> bytes:
        """Register by digest; returns the 200."""
        contact = f"<{self.uri}>{parameters}"
        return register_browser(self.ws, self.user, *fields, contact=contact, password=self.password)

    def reconnect(self) -> None:
        """The connection is gone without a word; a new one."""
        self.ws.close()
        self.ws = RawWebSocket(self.gateway)

    def call(self, called: str, *fields: str, domain: str = "example.test", method: str = "INVITE") -> bytes:
        """A request outside a dialog to a user of `domain`; returns what was sent."""
        self._forget()
        self.call_id, self.tag = f"{os.urandom(6).hex()}@browser.invalid", f"{self.user}{next(NUMBER)}"
        self.remote, self.target = f"<sip:{called}@{domain}>", f"sip:{called}@{domain}"
        return self.send(method, *fields)

    def send(self, method: str, *fields: str, cseq: int = 0) -> bytes:
        """A request of the dialog, or the one that begins it; `cseq` for ACK and CANCEL, else the next number."""
        self.cseq += 0 if cseq else 1
        lines = [f"Via: SIP/2.0/WS browser.invalid;branch=z9hG4bK{next(NUMBER)}p", "Max-Forwards: 70"]
        lines += [f"From: {self.aor};tag={self.tag}", f"To: {self.remote}", f"Call-ID: {self.call_id}"]
        lines += [f"CSeq: {cseq or self.cseq} {method}", f"Contact: <{self.uri}>"]
        lines += [f"Route: {route}" for route in self.routes]
        message = sip(f"{method} {self.target} SIP/2.0", *lines, *fields)
        self.ws.send(message)
        return message

    def cancel(self, invite: bytes) -> None:
        """CANCEL an INVITE of ours (RFC 3261 §9.1)."""
        number = header(invite, "CSeq").split()[0]
        lines = [f"{name}: {header(invite, name)}" for name in ("Via", "Max-Forwards", "From", "To", "Call-ID")]
        self.ws.send(sip(f"CANCEL {self.target} SIP/2.0", *lines, f"CSeq: {number} CANCEL"))

    def request(self, method: str) -> bytes:
        """The next request, which is of this method; others than ACK and those that were expected fail the test."""
        message = self.ws.receive_until(lambda m: not m.startswith(b"SIP/2.0 "))
        assert message.startswith(method.encode() + b" "), message
        return message

    def answer(self, request: bytes, status: str, *fields: str) -> None:
        """Answer a request; the first answer to an INVITE makes this side of the dialog."""
        if not self.call_id or header(request, "Call-ID") != self.call_id:
            self._forget()
            self.call_id, self.tag = header(request, "Call-ID"), f"{self.user}{next(NUMBER)}"
            self.remote, self.target = header(request, "From"), _uri(header(request, "Contact"))
            self.routes = _split(headers(request, "Record-Route"))
        self.ws.send(answer(request, status, f"Contact: <{self.uri}>", *fields, tag=self.tag))

    def response(self, status: int, method: str, seconds: float = 10.0) -> bytes:
        """The next answer to this method that is no 100; it has this status. One with a To tag fixes the dialog."""
        message = self.ws.receive_until(
            lambda m: m[:8] == b"SIP/2.0 " and m[8:11] != b"100" and header(m, "CSeq").endswith(method), seconds
        )
        assert message.startswith(b"SIP/2.0 %d " % status), message
        if method == "INVITE" and status < 300 and not self.routes:
            self.remote, self.target = header(message, "To"), _uri(header(message, "Contact"))
            self.routes = _split(headers(message, "Record-Route"))[::-1]
        return message

    def close(self) -> None:
        """Close the connection."""
        self.ws.close()


class Desk:
    """A phone over UDP that calls through its server at `host`:`server`, one call at a time. It sends nothing twice."""

    def __init__(self, server: int, host: str = "127.0.0.1") -> None:
        self.peer = UdpPeer()
        self._server = (host, server)
        self._common: list[str] = []
        self._to = self._target = ""
        self._routes: list[str] = []

    def call(self, called: str) -> None:
        """INVITE."""
        number = next(NUMBER)
        self._common = [f"From: <sip:desk@example.test>;tag=d{number}", f"Call-ID: {os.urandom(6).hex()}@desk"]
        self._to, self._target, self._routes = f"<sip:{called}@example.test>", f"sip:{called}@example.test", []
        self.send("INVITE", 1)

    def answered(self) -> None:
        """Wait for the 200 and acknowledge it."""
        ok = self.peer.receive_until(b"SIP/2.0 200", 10)[0]
        self._to, self._target = header(ok, "To"), _uri(header(ok, "Contact"))
        self._routes = _split(headers(ok, "Record-Route"))[::-1]
        self.send("ACK", 1)

    def send(self, method: str, cseq: int) -> None:
        """A request of the dialog."""
        lines = [f"Via: SIP/2.0/UDP 127.0.0.1:{self.peer.port};branch=z9hG4bK{next(NUMBER)}d", "Max-Forwards: 70"]
        lines += [*self._common, f"To: {self._to}", f"CSeq: {cseq} {method}"]
        lines += [f"Contact: <sip:desk@127.0.0.1:{self.peer.port}>", *(f"Route: {route}" for route in self._routes)]
        self.peer.send(sip(f"{method} {self._target} SIP/2.0", *lines), self._server)

    def hang_up(self) -> None:
        """BYE and its 200."""
        self.send("BYE", 2)
        self.peer.receive_until(b"SIP/2.0 200", 10)

    def hung_up(self) -> None:
        """Wait for BYE and answer it."""
        bye, source = self.peer.receive_until(b"BYE ", 10)
        self.peer.send(answer(bye, "200 OK"), source)

    def close(self) -> None:
        """Close its socket."""
        self.peer.close()


def _split(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",")]


def _uri(value: str) -> str:
    return value.partition("<")[2].partition(">")[0]
