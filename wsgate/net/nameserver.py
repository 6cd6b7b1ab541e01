"""One DNS question on the wire: nameservers in turn, UDP first, TCP where an answer was cut; /etc/hosts (rule N5).

dnspython encodes, decodes and validates; the sockets are ours. A question blocks the greenlet that asks it
and nothing else.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdatatype
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.IN.NAPTR import NAPTR
from dns.rdtypes.IN.SRV import SRV
from gevent import get_hub
from gevent.lock import BoundedSemaphore
from gevent.socket import wait_read, wait_write

from wsgate.addr import Address, canonical_host, canonical_ip, split_host_port
from wsgate.metrics import Counters
from wsgate.sip.location import ADDRESS_KINDS, Answer, Kind, Naptr, Outcome, Question, Record, Srv

T = TypeVar("T")

EDNS_PAYLOAD_BYTES = 1232
"""The largest UDP answer we ask for: it passes every path in one piece."""
MAX_RESPONSE_BYTES = 16384
"""A longer one is no answer: hundreds of servers fit."""
MAX_TTL_SECONDS = 86400
MAX_ALIASES = 8
MAX_NAMESERVERS = 8
MAX_STRAY_PACKETS = 100
"""How many packets that answer nothing one attempt looks at before it gives its nameserver up."""
ROUNDS = 2
PENALTY_SECONDS = 10.0
"""How long a nameserver that was silent is asked last."""
LOOK_AT_FILES_SECONDS = 5.0
HOSTS_TTL_SECONDS = 30.0


_reading = BoundedSemaphore(1)


class _Attempt(NamedTuple):
    """What one nameserver said: a usable `response`, or nothing; `silent`: it may be worth another try."""

    response: dns.message.Message | None
    silent: bool = False


class WatchedFile(Generic[T]):
    """A file of the system, parsed again after it changed; looked at every LOOK_AT_FILES_SECONDS at most."""

    def __init__(self, path: str, parse: Callable[[str], T], now: Callable[[], float]) -> None:
        self._path, self._parse, self._now = path, parse, now
        self._value = parse("")
        self._stamp: tuple[int, int] | None = None
        self._look_at = float("-inf")

    def value(self) -> T:
        """What the file says; one that cannot be read says what it said last."""
        now = self._now()
        if now >= self._look_at:
            self._look_at = now + LOOK_AT_FILES_SECONDS
            try:
                status = os.stat(self._path)
                stamp = (status.st_mtime_ns, status.st_ino)
                if stamp != self._stamp:
                    with open(self._path, encoding="utf-8", errors="replace") as file:
                        self._value, self._stamp = self._parse(file.read()), stamp
            except OSError:
                return self._value
        return self._value


def parse_resolv_conf(text: str) -> tuple[Address, ...]:
    """The nameservers of resolv.conf; none: the local one, as in resolv.conf(5)."""
    words = (line.split() for line in text.splitlines())
    hosts = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]
    return tuple(Address(host, 53) for host in hosts[:MAX_NAMESERVERS]) or (Address("127.0.0.1", 53),)


def parse_hosts(text: str) -> Mapping[str, tuple[str, ...]]:
    """The addresses of each name in /etc/hosts; lines that make no sense are passed over."""
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        try:
            numeric = split_host_port(address, 0).host
            ipaddress.ip_address(numeric)
        except ValueError:
            continue
        for name in names:
            found[name.lower().rstrip(".")] = (*found.get(name.lower().rstrip("."), ()), numeric)
    return found


class Nameservers:
    """Asks the configured nameservers, or where there are none the system's, its /etc/hosts first.

    `timeout` is for one attempt, in seconds; `negative_ttl` caps how long the absence of records is believed.
    """

    def __init__(
        self,
        nameservers: tuple[Address, ...],
        timeout: float,
        negative_ttl: float,
        counters: Counters,
        now: Callable[[], float] = time.monotonic,
        resolv_conf: str = "/etc/resolv.conf",
        hosts: str = "/etc/hosts",
    ) -> None:
        self._configured = nameservers[:MAX_NAMESERVERS]
        self._timeout = timeout
        self._negative_ttl = negative_ttl
        self._counters = counters
        self._now = now
        self._resolv_conf = WatchedFile(resolv_conf, parse_resolv_conf, now)
        self._hosts = WatchedFile(hosts, parse_hosts, now)
        self._penalties: dict[Address, float] = {}

    def ask(self, question: Question) -> Answer:
        """The answer, its aliases followed; FAILED when no nameserver gave one. Blocks the calling greenlet only."""
        if question.name == "invalid" or question.name.endswith(".invalid"):  # rule B6, RFC 6761 §6.4
            return Answer(Outcome.NONE, (), (), self._now() + MAX_TTL_SECONDS)
        local = self._from_hosts(question)
        if local is not None and question.kind in ADDRESS_KINDS:
            return local
        answer = self._from_servers(question)
        # Who stands in /etc/hosts is found also where no nameserver is: that is what the file is for.
        return local if local is not None and answer.outcome is Outcome.FAILED else answer

    def _from_hosts(self, question: Question) -> Answer | None:
        if self._configured:
            return None
        host = question.name
        if question.kind is Kind.SRV:
            host = host.split(".", 2)[-1]
        addresses = self._hosts.value().get(host)
        if addresses is None:
            return None
        wanted = {Kind.A: 4, Kind.AAAA: 6}.get(question.kind)
        records = tuple(address for address in addresses if ipaddress.ip_address(address).version == wanted)
        outcome = Outcome.RECORDS if records else Outcome.NONE
        return Answer(outcome, records, (), self._now() + HOSTS_TTL_SECONDS)

    def _from_servers(self, question: Question) -> Answer:
        """Ask, and ask again for an alias whose records the answer did not bring (RFC 1034 §5.3.3)."""
        names: tuple[str, ...] = ()
        expires = self._now() + MAX_TTL_SECONDS
        failed = Answer(Outcome.FAILED, (), (), self._now())
        for _ in range(MAX_ALIASES):
            response = self._exchange(Question(names[-1], question.kind) if names else question)
            if response is None:
                return failed
            try:
                chain = response.resolve_chaining()  # type: ignore[attr-defined]
            except dns.exception.DNSException:
                return failed
            met = tuple(name_text(record.target) for aliases in chain.cnames for record in aliases)
            names += met
            expires = min(expires, self._now() + chain.minimum_ttl)
            if chain.answer is not None:
                records = tuple(record for record in map(_record, chain.answer) if record is not None)
                return Answer(Outcome.RECORDS if records else Outcome.NONE, records, names, expires)
            authority = any(rrset.rdtype == dns.rdatatype.SOA for rrset in response.authority)
            if not met or authority or response.rcode() == dns.rcode.NXDOMAIN:
                return Answer(Outcome.NONE, (), names, min(expires, self._now() + self._negative_ttl))
        return failed

    def _exchange(self, question: Question) -> dns.message.Message | None:
        """The first usable response; a server that was silent is asked again after the others."""
        try:
            name = dns.name.from_text(question.name)
        except dns.exception.DNSException:
            return None
        servers = self._configured or self._resolv_conf.value()
        now = self._now()
        rest = sorted(servers, key=lambda server: max(now, self._penalties.get(server, now)))
        self._penalties = {server: until for server, until in self._penalties.items() if until > now}
        for _ in range(ROUNDS):
            silent = []
            for server in rest:
                attempt = self._attempt(name, question.kind, server)
                if attempt.response is not None:
                    self._penalties.pop(server, None)
                    return attempt.response
                if attempt.silent:
                    silent.append(server)
                    self._penalties[server] = self._now() + PENALTY_SECONDS
            rest = silent
        self._counters.count("dns_questions_failed")
        return None

    def _attempt(self, name: dns.name.Name, kind: Kind, server: Address) -> _Attempt:
        """One question to one nameserver; once more without EDNS where it does not know that (RFC 6891 §7)."""
        for payload in (EDNS_PAYLOAD_BYTES, 0):
            query = dns.message.make_query(name, kind.value, use_edns=0 if payload else False, payload=payload or None)
            self._counters.count("dns_questions_sent")
            try:
                response = over_udp(query, server, self._timeout)
                if response.flags & dns.flags.TC:
                    self._counters.count("dns_truncated")
                    response = over_tcp(query, server, self._timeout)
            except TimeoutError:
                self._counters.count("dns_timeouts")
                return _Attempt(None, silent=True)
            except (OSError, EOFError):
                return _Attempt(None)
            rcode = response.rcode()
            if rcode in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                return _Attempt(response)
            if rcode not in (dns.rcode.FORMERR, dns.rcode.NOTIMP):
                break
        return _Attempt(None)


def over_udp(query: dns.message.Message, server: Address, timeout: float) -> dns.message.Message:
    """The response to `query` in one datagram. Raises TimeoutError after `timeout` seconds, OSError.

    A socket of its own on a random port, connected, and the random id of `query`: what does not fit all of them is not
    an answer and is passed over (RFC 5452).
    """
    deadline = time.monotonic() + timeout
    with _connected(server, socket.SOCK_DGRAM) as plain:
        plain.send(query.to_wire())
        for _ in range(MAX_STRAY_PACKETS):
            _wait(wait_read, plain, deadline)
            try:
                data = plain.recv(65535)
            except BlockingIOError:
                continue
            response = read(data) if data[:2] == query.id.to_bytes(2, "big") else None
            if response is not None and query.is_response(response):
                return response
    raise TimeoutError("only packets that answer nothing")


def over_tcp(query: dns.message.Message, server: Address, timeout: float) -> dns.message.Message:
    """The response to `query` over TCP (RFC 7766). Raises TimeoutError, OSError, EOFError."""
    deadline = time.monotonic() + timeout
    with _connected(server, socket.SOCK_STREAM) as plain:
        _wait(wait_write, plain, deadline)
        wire = query.to_wire()
        plain.sendall(struct.pack("!H", len(wire)) + wire)  # fits the empty buffer of a new connection
        (length,) = struct.unpack("!H", _read(plain, 2, deadline))
        response = read(_read(plain, length, deadline)) if length <= MAX_RESPONSE_BYTES else None
    if response is None or not query.is_response(response):
        raise OSError("the response does not fit the question")
    return response


def read(data: bytes) -> dns.message.Message | None:
    """The message that `data` is, or None. Blocks the calling greenlet only.

    A thread reads it: names of many labels, a hundred times in a datagram and thousands of times in a stream, take
    dnspython from a tenth of a second to half a minute (rule N5). One at a time, so that the loop keeps its share.
    """
    with _reading:
        found: dns.message.Message | None = get_hub().threadpool.apply(readable, (data,))
    return found


def readable(data: bytes) -> dns.message.Message | None:
    """The message that `data` is; None for what is none, or longer than MAX_RESPONSE_BYTES."""
    if len(data) > MAX_RESPONSE_BYTES:
        return None
    try:
        return dns.message.from_wire(data)
    except (dns.exception.DNSException, ValueError):
        return None


def _connected(server: Address, kind: socket.SocketKind) -> socket.socket:
    """A plain non-blocking socket, its connection begun."""
    family, _, _, _, address = socket.getaddrinfo(server.host, server.port, type=kind, flags=socket.AI_NUMERICHOST)[0]
    plain = socket.socket(family, kind)
    plain.setblocking(False)
    try:
        plain.connect(address)
    except BlockingIOError:
        return plain
    except OSError:
        plain.close()
        raise
    return plain


def _wait(wait: Callable[[int, float, Exception], None], plain: socket.socket, deadline: float) -> None:
    silence = TimeoutError("no answer in time")
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise silence
    wait(plain.fileno(), remaining, silence)


def _read(plain: socket.socket, length: int, deadline: float) -> bytes:
    """Exactly `length` bytes, at most 65,535 of them."""
    data = b""
    while len(data) < length:
        _wait(wait_read, plain, deadline)
        try:
            piece = plain.recv(length - len(data))
        except BlockingIOError:
            continue
        if not piece:
            raise EOFError("the nameserver closed")
        data += piece
    return data


def name_text(name: dns.name.Name) -> str:
    """A name as Question and Srv have it: lower case, no final dot; the root is empty."""
    return "" if name == dns.name.root else name.to_text(omit_final_dot=True).lower()


def _record(rdata: dns.rdata.Rdata) -> Record | None:
    """Our record for dnspython's; None for an address that is no server's: unspecified, multicast."""
    if isinstance(rdata, SRV):
        return Srv(rdata.priority, rdata.weight, rdata.port, name_text(rdata.target))
    if isinstance(rdata, NAPTR):
        flags, service = (text.decode("ascii", "replace") for text in (rdata.flags, rdata.service))
        return Naptr(rdata.order, rdata.preference, flags, service, name_text(rdata.replacement))
    if not isinstance(rdata, (A, AAAA)):
        return None
    address = canonical_ip(ipaddress.ip_address(rdata.address))
    return None if address.is_unspecified or address.is_multicast else canonical_host(str(address))
