"""A DNS server of the tests' own, UDP and TCP on one port: a zone as text, and switches for every kind of fault.

In-process: `with DnsServer(zone) as server: server.address`. As a process, for network namespaces:
`python -m tests.dns_server --bind 127.0.0.1:5353 --origin example.com --zone FILE` prints one line when it is ready.
"""

from __future__ import annotations

import argparse
import enum
import select
import signal
import socket
import struct
import sys
import threading
import time

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.zone
from dns.rdataclass import IN

SOA = "@ {ttl} SOA ns hostmaster 1 3600 600 86400 {minimum}\n@ {ttl} NS ns\nns {ttl} A 127.0.0.1\n"
TCP_TIMEOUT_SECONDS = 2.0


class Fault(enum.Enum):
    """What the server does instead of answering well."""

    NONE = "none"
    SERVFAIL = "servfail"
    SILENCE = "silence"
    TRUNCATE = "truncate"  # over UDP: TC and no records; over TCP the whole answer
    NXDOMAIN = "nxdomain"
    WRONG_ID = "wrong-id"  # a forged answer comes before the true one
    GARBAGE = "garbage"
    FORMERR_ON_EDNS = "formerr-on-edns"


class DnsServer:
    """Serves `zone` (master file text below `origin`; SOA and NS are added) from a thread until `close`.

    `faults` maps a name (lower case, no final dot) or "" for every name to a Fault; `asked` lists (name, type, "udp" or
    "tcp") as they came; both may be changed while it runs, and so may the zone by `serve`.
    """

    def __init__(
        self, zone: str, origin: str = "example.com", bind: tuple[str, int] = ("127.0.0.1", 0), minimum: int = 1
    ) -> None:
        self.origin = dns.name.from_text(origin)
        self.minimum = minimum
        self.faults: dict[str, Fault] = {}
        self.asked: list[tuple[str, str, str]] = []
        self._zone = dns.zone.Zone(self.origin)
        self.serve(zone)
        self._udp, self._tcp = _bound_pair(bind)
        self.address: tuple[str, int] = self._udp.getsockname()[:2]
        self._wake_read, self._wake_write = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="dns-server", daemon=True)
        self._thread.start()

    def __enter__(self) -> DnsServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def serve(self, zone: str, ttl: int = 60) -> None:
        """Serve this zone from now on."""
        text = f"$TTL {ttl}\n" + SOA.format(ttl=ttl, minimum=self.minimum) + zone
        self._zone = dns.zone.from_text(text, origin=self.origin, relativize=False, check_origin=True)

    def count(self, name: str, kind: str | None = None) -> int:
        """How often `name` was asked (for `kind`)."""
        return sum(1 for asked, asked_kind, _ in list(self.asked) if asked == name and kind in (None, asked_kind))

    def close(self) -> None:
        """Stop and free the port."""
        self._wake_write.send(b"x")
        self._thread.join()
        for one in (self._udp, self._tcp, self._wake_read, self._wake_write):
            one.close()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._udp, self._tcp, self._wake_read], [], [])
            if self._wake_read in ready:
                return
            if self._udp in ready:
                wire, source = self._udp.recvfrom(65535)
                for answer in self._answers(wire, "udp"):
                    self._udp.sendto(answer, source)
            if self._tcp in ready:
                connection, _ = self._tcp.accept()
                threading.Thread(target=self._serve_tcp, args=(connection,), daemon=True).start()

    def _serve_tcp(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(TCP_TIMEOUT_SECONDS)
            try:
                stream = connection.makefile("rb")
                (length,) = struct.unpack("!H", stream.read(2))
                for answer in self._answers(stream.read(length), "tcp"):
                    # In pieces, as a slow network would bring it.
                    wire = struct.pack("!H", len(answer)) + answer
                    connection.sendall(wire[:1])
                    time.sleep(0.01)
                    connection.sendall(wire[1:])
            except (OSError, struct.error):
                return

    def _answers(self, wire: bytes, over: str) -> list[bytes]:
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return []
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.asked.append((name, dns.rdatatype.to_text(question.rdtype), over))
        fault = self.faults.get(name, self.faults.get("", Fault.NONE))
        if fault is Fault.SILENCE:
            return []
        if fault is Fault.GARBAGE:
            return [wire[:2] + b"\x84\x00\xff\xff"]
        response = dns.message.make_response(query, recursion_available=True)
        if fault is Fault.SERVFAIL:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif fault is Fault.FORMERR_ON_EDNS and query.edns >= 0:
            response.use_edns(False)
            response.set_rcode(dns.rcode.FORMERR)
        elif fault is Fault.TRUNCATE and over == "udp":
            response.flags |= dns.flags.TC
        elif fault is Fault.NXDOMAIN:
            response.set_rcode(dns.rcode.NXDOMAIN)
            self._add_soa(response)
        else:
            self._fill(response, question.name, question.rdtype)
        if fault is Fault.WRONG_ID:
            forged = dns.message.make_response(query)
            forged.id ^= 1
            forged.set_rcode(dns.rcode.NXDOMAIN)
            return [forged.to_wire(), response.to_wire()]
        return [response.to_wire()]

    def _fill(self, response: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> None:
        zone = self._zone
        if not name.is_subdomain(self.origin):
            response.set_rcode(dns.rcode.REFUSED)
            return
        for _ in range(8):
            node = zone.get_node(name)
            if node is None:
                if not response.answer:
                    response.set_rcode(dns.rcode.NXDOMAIN)
                break
            found = node.get_rdataset(IN, kind)
            if found is not None:
                response.answer.append(_rrset(name, found))
                return
            alias = node.get_rdataset(IN, dns.rdatatype.CNAME)
            if alias is None:
                break
            response.answer.append(_rrset(name, alias))
            name = alias[0].target
            if not name.is_subdomain(self.origin):
                return
        self._add_soa(response)

    def _add_soa(self, response: dns.message.Message) -> None:
        soa = self._zone.get_rdataset(self.origin, dns.rdatatype.SOA)
        assert soa is not None
        response.authority.append(_rrset(self.origin, soa))


def _rrset(name: dns.name.Name, rdataset: dns.rdataset.Rdataset) -> dns.rrset.RRset:
    rrset = dns.rrset.RRset(name, rdataset.rdclass, rdataset.rdtype)
    rrset.update(rdataset)
    return rrset


def _bound_pair(bind: tuple[str, int]) -> tuple[socket.socket, socket.socket]:
    """UDP and TCP on the same port, a free one where the port is 0."""
    family = socket.AF_INET6 if ":" in bind[0] else socket.AF_INET
    for _ in range(100):
        udp = socket.socket(family, socket.SOCK_DGRAM)
        udp.bind(bind)
        tcp = socket.socket(family, socket.SOCK_STREAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tcp.bind(udp.getsockname())
        except OSError:
            udp.close()
            tcp.close()
            if bind[1]:
                raise
            continue
        tcp.listen(16)
        return udp, tcp
    raise OSError("no port is free for both UDP and TCP")


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bind", default="127.0.0.1:0", help="host:port")
    parser.add_argument("--origin", default="example.com")
    parser.add_argument("--zone", default="-", help="file with the records, - for standard input")
    parser.add_argument("--ttl", type=int, default=60)
    parser.add_argument("--fault", action="append", default=[], help="NAME=FAULT; an empty NAME means every name")
    options = parser.parse_args(arguments)
    host, _, port = options.bind.rpartition(":")
    if options.zone == "-":
        zone = sys.stdin.read()
    else:
        with open(options.zone) as file:
            zone = file.read()
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    server = DnsServer("", options.origin, (host.strip("[]"), int(port)))
    server.serve(zone, options.ttl)
    for text in options.fault:
        name, _, fault = text.rpartition("=")
        server.faults[name] = Fault(fault)
    print(f"ready on {server.address[0]}:{server.address[1]}", flush=True)
    signal.sigwait(signals)
    server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
