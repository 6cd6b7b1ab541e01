"""The resolver against a DNS server of the tests' own, over real sockets on 127.0.0.1."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import dns.rrset
import gevent
import gevent.socket
import pytest

from tests.dns_server import DnsServer, Fault
from wsgate.addr import Address, Transport
from wsgate.metrics import Counters
from wsgate.net.clock import now
from wsgate.net.nameserver import MAX_RESPONSE_BYTES, Nameservers, parse_hosts, parse_resolv_conf, readable
from wsgate.net.resolver import AnswerCache, Resolver, ResolverSettings
from wsgate.sip.location import Answer, Kind, Outcome, Question
from wsgate.sip.targets import BackendSettings

ROOT = Path(__file__).parents[2]

ZONE = """
@       NAPTR 10 10 "s" "SIP+D2U" "" _sip._udp
@       NAPTR 20 10 "s" "SIP+D2T" "" _sip._tcp
@       NAPTR 30 10 "s" "SIPS+D2W" "" _sips._ws
_sip._udp  SRV 10 60 5060 one
_sip._udp  SRV 10 40 5060 two
_sip._udp  SRV 20 0 5070 three
_sip._tcp  SRV 0 0 5060 one
_sips._ws  SRV 0 0 443 edge
one     A 127.0.1.1
two     CNAME real
real    A 127.0.1.2
three   A 127.0.1.3
three   AAAA ::1
edge    A 127.0.1.4
plain   A 127.0.2.1
"""


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer(ZONE) as one:
        yield one


Make = Callable[..., Resolver]


@pytest.fixture
def make(server: DnsServer) -> Iterator[Make]:
    """Makes resolvers that ask `server` (or `nameservers`), and ends them."""
    made = []

    def new(*nameservers: tuple[str, int], **settings: float) -> Resolver:
        addresses = tuple(Address(*one) for one in nameservers or (server.address,))
        options = ResolverSettings(nameservers=addresses, **{"timeout": 5.0, **settings})  # type: ignore[arg-type]
        made.append(Resolver(options, Counters()))
        return made[-1]

    yield new
    for one in made:
        one.close()


def until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        gevent.sleep(0.01)


def backend(target: str, *transports: Transport) -> BackendSettings:
    return BackendSettings(target=target, transports=transports or tuple(Transport))


def tried(resolver: Resolver, domain: str = "example.com") -> list[str]:
    resolved = resolver.resolve(domain)
    return [f"{target.transport.value} {target.address}" for target in resolved.targets]


def silent_server() -> socket.socket:
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 0))
    return silent


def test_n1_naptr_srv_and_addresses(server: DnsServer, make: Make) -> None:
    resolver = make()
    assert resolver.cached("example.com") is None
    resolver.serve({"example.com": backend("sip:example.com")})
    seen = tried(resolver)
    assert sorted(seen[:2]) == ["UDP 127.0.1.1:5060", "UDP 127.0.1.2:5060"]
    assert seen[2:] == ["UDP 127.0.1.3:5070", "UDP [::1]:5070", "TCP 127.0.1.1:5060", "WSS 127.0.1.4:443"]
    resolved = resolver.cached("example.com")
    assert resolved is not None
    assert resolved.hosts == {"127.0.1.1", "127.0.1.2", "127.0.1.3", "::1", "127.0.1.4"}
    assert (Transport.UDP, Address("127.0.1.3", 5070)) in resolved.hops
    assert [t.address.host for t in resolved.named["real.example.com"]] == ["127.0.1.2"]
    assert set(resolved.named) == {f"{n}example.com" for n in ("", "one.", "two.", "real.", "three.", "edge.")}
    assert all(target.host == "example.com" for target in resolved.targets)


def test_n2_weights_are_drawn_for_each_caller(make: Make) -> None:
    resolver = make()
    resolver.serve({"example.com": backend("sip:example.com", Transport.UDP)})
    firsts = [tried(resolver)[0] for _ in range(1000)]
    assert 500 < firsts.count("UDP 127.0.1.1:5060") < 700
    assert firsts.count("UDP 127.0.1.3:5070") == 0


def test_addresses_are_known_from_the_start_without_blocking(make: Make) -> None:
    """Rules D1, N6, V3 and P5 read them at any time."""
    resolver = make()
    resolver.serve(
        {"a": backend("sip:plain.example.com:5060"), "b": backend("sip:127.0.3.1"), "c": backend("embedded")}
    )
    assert resolver.known_addresses().hosts == set()
    until(lambda: resolver.known_addresses().hosts == {"127.0.2.1", "127.0.3.1"})
    assert resolver.known_addresses("a").hops == {(Transport.UDP, Address("127.0.2.1", 5060))}
    assert resolver.domains_at("127.0.3.1") == ("b",)
    found = resolver.backend_at(Transport.UDP, Address("127.0.2.1", 5060))
    assert found is not None
    assert found[1].host == "plain.example.com"
    assert resolver.backend_at(Transport.TCP, Address("127.0.2.1", 5060)) is None
    assert resolver.cached("c") is None
    assert "no backend" in resolver.resolve("c").problem
    resolver.serve({"b": backend("sip:127.0.3.1")})
    assert resolver.known_addresses().hosts == {"127.0.3.1"}
    assert resolver.known_addresses("a").hosts == set()


def test_the_cache_keeps_for_the_ttl_and_a_change_is_taken_up(server: DnsServer, make: Make) -> None:
    server.serve("plain 60 A 127.0.2.1")
    resolver = make()
    resolver.serve({"a": backend("sip:plain.example.com:5060")})
    assert tried(resolver, "a") == ["UDP 127.0.2.1:5060"]
    for _ in range(20):
        tried(resolver, "a")
    assert server.count("plain.example.com", "A") == 1
    other = make()
    server.serve("plain 1 A 127.0.2.1")
    other.serve({"a": backend("sip:plain.example.com:5060")})
    assert tried(other, "a") == ["UDP 127.0.2.1:5060"]
    server.serve("plain 1 A 127.0.2.9")
    until(lambda: other.known_addresses("a").hosts == {"127.0.2.9"})
    assert tried(other, "a") == ["UDP 127.0.2.9:5060"]


def test_absence_is_cached_no_longer_than_negative_ttl(server: DnsServer) -> None:
    counters = Counters()
    servers = Nameservers((Address(*server.address),), 5.0, 30.0, counters)

    def kept(name: str, kind: Kind) -> tuple[float, float]:
        """Between how many seconds the absence is cached."""
        begin = now()
        absent = servers.ask(Question(name, kind))
        assert absent.outcome is Outcome.NONE
        return absent.expires - now(), absent.expires - begin

    server.minimum = 7
    server.serve(ZONE)
    least, most = kept("none.example.com", Kind.A)
    assert least <= 7 <= most
    server.minimum = 3600
    server.serve(ZONE, 3600)
    for name in ("none.example.com", "one.example.com"):  # NXDOMAIN and no records of this type
        least, most = kept(name, Kind.SRV)
        assert least <= 30 <= most


def test_truncated_answers_come_by_tcp(server: DnsServer, make: Make) -> None:
    server.faults[""] = Fault.TRUNCATE
    resolver = make()
    resolver.serve({"example.com": backend("sip:example.com")})
    assert len(tried(resolver)) == 6
    assert {over for _, _, over in server.asked} == {"udp", "tcp"}


@pytest.mark.parametrize("fault", [Fault.WRONG_ID, Fault.FORMERR_ON_EDNS])
def test_odd_servers_and_forged_answers(server: DnsServer, make: Make, fault: Fault) -> None:
    server.faults[""] = fault
    resolver = make()
    resolver.serve({"example.com": backend("sip:example.com")})
    assert len(tried(resolver)) == 6


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.SILENCE, Fault.GARBAGE])
def test_another_nameserver_takes_over(server: DnsServer, make: Make, fault: Fault) -> None:
    with DnsServer(ZONE) as bad:
        bad.faults[""] = fault
        resolver = make(bad.address, server.address, timeout=1.0)
        resolver.serve({"example.com": backend("sip:example.com")})
        assert len(tried(resolver)) == 6
        assert bad.asked
        assert server.asked


def test_a_refused_port_is_noticed_at_once(make: Make, server: DnsServer) -> None:
    with silent_server() as gone:
        address = gone.getsockname()
    resolver = make(address, server.address, timeout=30.0)
    resolver.serve({"example.com": backend("sip:plain.example.com:5060")})
    begin = time.monotonic()
    assert tried(resolver) == ["UDP 127.0.2.1:5060"]
    assert time.monotonic() - begin < 15


def test_a_naptr_question_that_fails_leaves_srv(server: DnsServer, make: Make) -> None:
    server.faults["example.com"] = Fault.SERVFAIL
    resolver = make()
    resolver.serve({"example.com": backend("sip:example.com", Transport.TCP)})
    assert tried(resolver) == ["TCP 127.0.1.1:5060"]


def test_servfail_and_nxdomain_give_a_problem_and_heal(server: DnsServer, make: Make) -> None:
    server.faults[""] = Fault.SERVFAIL
    resolver = make()
    resolver.serve({"a": backend("sip:plain.example.com:5060"), "b": backend("sip:none.example.com:5060")})
    resolved = resolver.resolve("a")
    assert resolved.targets == ()
    assert "no answer" in resolved.problem
    server.faults.clear()
    until(lambda: resolver.resolve("a").targets)
    until(lambda: "has no address" in resolver.resolve("b").problem)


def test_n2_stale_answers_serve_while_the_resolver_is_down(server: DnsServer, make: Make) -> None:
    server.serve("plain 1 A 127.0.2.1")
    resolver = make(stale_for=4.0)
    begin = time.monotonic()
    resolver.serve({"a": backend("sip:plain.example.com:5060")})
    assert tried(resolver, "a") == ["UDP 127.0.2.1:5060"]
    server.faults[""] = Fault.SERVFAIL
    asked = server.count("plain.example.com")
    until(lambda: server.count("plain.example.com") > asked + 2)  # A and AAAA in vain, and once more
    assert time.monotonic() - begin > 1.0  # the TTL is over
    assert tried(resolver, "a") == ["UDP 127.0.2.1:5060"]
    assert resolver.known_addresses().hosts == {"127.0.2.1"}
    until(lambda: not resolver.known_addresses().hosts)
    assert time.monotonic() - begin > 5.0
    assert resolver.resolve("a").targets == ()
    server.faults.clear()
    until(lambda: tried(resolver, "a") == ["UDP 127.0.2.1:5060"])


def test_a_name_that_is_gone_is_gone_at_once(server: DnsServer, make: Make) -> None:
    server.serve("plain 1 A 127.0.2.1")
    resolver = make()
    resolver.serve({"a": backend("sip:plain.example.com:5060")})
    assert tried(resolver, "a")
    server.faults[""] = Fault.NXDOMAIN
    until(lambda: not resolver.known_addresses().hosts)
    assert "has no address" in resolver.resolve("a").problem


def test_n5_silence_costs_the_one_that_asked(server: DnsServer, make: Make) -> None:
    server.faults["slow.example.com"] = Fault.SILENCE
    resolver = make(timeout=1.0)
    begin = time.monotonic()
    resolver.serve({"slow": backend("sip:slow.example.com:5060"), "fast": backend("sip:plain.example.com:5060")})
    waiting = gevent.spawn(resolver.resolve, "slow")
    ticks = 0
    assert tried(resolver, "fast") == ["UDP 127.0.2.1:5060"]
    while not waiting.ready():
        gevent.sleep(0.005)
        ticks += 1
    elapsed = time.monotonic() - begin
    assert elapsed > 1.5
    assert ticks > 20  # the loop ran on all the while
    assert waiting.get().targets == ()


def test_n6_a_first_look_waits_for_those_that_are_answered_and_a_bounded_time_for_others(
    server: DnsServer, make: Make
) -> None:
    server.faults["slow.example.com"] = Fault.SILENCE
    resolver = make(timeout=30.0)
    resolver.serve({"fast": backend("sip:plain.example.com:5060"), "b": backend("sip:127.0.3.1")})
    resolver.first_look(20.0)
    assert resolver.known_addresses().hosts == {"127.0.2.1", "127.0.3.1"}
    resolver.serve({"slow": backend("sip:slow.example.com:5060"), "fast": backend("sip:plain.example.com:5060")})
    begin = time.monotonic()
    resolver.first_look(0.3)
    assert 0.25 < time.monotonic() - begin < 15.0
    assert resolver.cached("slow") is None


def test_n5_many_silent_questions_hold_up_no_other_backend(server: DnsServer, make: Make) -> None:
    zone = "".join(f"_sip._udp SRV {n} 0 5060 h{n}\n" for n in range(32))
    server.serve(zone + "plain A 127.0.2.1")
    server.faults.update({f"h{n}.example.com": Fault.SILENCE for n in range(32)})
    resolver = make(timeout=10.0)
    resolver.serve({"slow": backend("sip:example.com", Transport.UDP)})
    until(lambda: server.count("h0.example.com"))
    resolver.serve({"slow": backend("sip:example.com", Transport.UDP), "fast": backend("sip:plain.example.com:5060")})
    begin = time.monotonic()
    assert tried(resolver, "fast") == ["UDP 127.0.2.1:5060"]
    assert time.monotonic() - begin < 9


def test_n5_an_answer_that_takes_long_to_read_stands_in_nobodys_way() -> None:
    """Names of many labels cost dnspython milliseconds each."""
    name = "a." * 100 + "example.com"
    query = dns.message.make_query(name, "SRV")
    question = query.to_wire()[12 : 12 + len(name) + 2 + 4]
    aliases = [b"\3%03x\xc0\x0c\0\5\0\1\0\0\0\x3c\0\2\xc0\x0c" % number for number in range(800)]
    ticks, ticks_at_answer = [0], []

    def tick() -> None:
        while True:
            ticks[0] += 1
            gevent.sleep(0.001)

    def serve(plain: socket.socket) -> None:
        gevent.socket.wait_read(plain.fileno())
        data, source = plain.recvfrom(512)
        counts = struct.pack("!HHHH", 1, len(aliases), 0, 0)
        plain.sendto(data[:2] + b"\x84\0" + counts + question + b"".join(aliases), source)
        ticks_at_answer.append(ticks[0])

    with silent_server() as plain:
        greenlets = [gevent.spawn(tick), gevent.spawn(serve, plain)]
        servers = Nameservers((Address(*plain.getsockname()),), 30.0, 30.0, Counters())
        assert servers.ask(Question(name, Kind.SRV)).outcome is not Outcome.RECORDS
        gevent.killall(greenlets)
    assert ticks[0] - ticks_at_answer[0] > 10


def test_n5_a_giant_answer_is_none() -> None:
    name, addresses = "pbx.example.com.", [f"192.0.2.{number}" for number in range(250)]
    responses = []
    for owners in (1, 5):
        response = dns.message.make_response(dns.message.make_query(name, "A"))
        response.answer = [
            dns.rrset.from_text(name if number == 0 else f"h{number}.{name}", 60, "IN", "A", *addresses)
            for number in range(owners)
        ]
        responses.append(response.to_wire(max_size=65535))
    small, giant = responses
    assert len(small) < MAX_RESPONSE_BYTES < len(giant)
    assert readable(small) is not None
    assert readable(giant) is None


def test_the_same_question_is_asked_once(server: DnsServer, make: Make) -> None:
    server.faults["slow.example.com"] = Fault.SILENCE
    resolver = make(timeout=20.0)
    resolver.serve({str(n): backend("sip:slow.example.com:5060") for n in range(10)})
    until(lambda: server.asked)
    gevent.sleep(0.2)
    assert server.count("slow.example.com", "A") == 1


def test_names_that_are_never_looked_up(server: DnsServer, make: Make) -> None:
    """Rule B6."""
    resolver = make()
    resolver.serve({"a": backend("sip:x.invalid")})
    assert resolver.resolve("a").targets == ()
    assert server.asked == []


def test_system_nameservers_and_hosts(server: DnsServer, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# comment\n127.0.4.1 pbx.test PBX # x\n::1 pbx.test\nnonsense\nbad.address x\n")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.99\n")  # nobody there: refused
    resolver = Resolver(
        ResolverSettings(timeout=0.3),
        Counters(),
        resolv_conf=str(tmp_path / "resolv.conf"),
        hosts=str(hosts),
    )
    try:
        resolver.serve({"a": backend("sip:pbx.test"), "b": backend("sip:other.test")})
        assert tried(resolver, "a") == ["UDP 127.0.4.1:5060", "UDP [::1]:5060"]
        assert "no answer" in resolver.resolve("b").problem
    finally:
        resolver.close()
    assert parse_resolv_conf("search x\nnameserver 10.0.0.1\nnameserver ::1 #c\n") == (
        Address("10.0.0.1", 53),
        Address("::1", 53),
    )
    assert parse_resolv_conf("") == (Address("127.0.0.1", 53),)
    assert parse_hosts("127.0.0.1 a. A\n") == {"a": ("127.0.0.1", "127.0.0.1")}
    configured = Nameservers((Address(*server.address),), 0.3, 30.0, Counters(), hosts=str(hosts))
    assert configured.ask(Question("pbx.test", Kind.A)).outcome is Outcome.FAILED  # refused, and hosts not read


def test_cname_across_zones_is_followed(server: DnsServer) -> None:
    server.serve("a CNAME b\nb CNAME c\nc A 127.0.0.9\nfar CNAME x.elsewhere.test.\nl1 CNAME l2\nl2 CNAME l1\n")
    with DnsServer("x A 127.0.0.10", origin="elsewhere.test") as elsewhere:
        servers = Nameservers((Address(*server.address), Address(*elsewhere.address)), 5.0, 30.0, Counters())
        found = servers.ask(Question("a.example.com", Kind.A))
        assert found.records == ("127.0.0.9",)
        assert found.names == ("b.example.com", "c.example.com")
        found = servers.ask(Question("far.example.com", Kind.A))
        assert found.records == ("127.0.0.10",)
        assert found.names == ("x.elsewhere.test",)
        assert servers.ask(Question("l1.example.com", Kind.A)).outcome is Outcome.FAILED


def test_addresses_that_are_no_servers_are_dropped(server: DnsServer) -> None:
    server.serve("a A 0.0.0.0\na A 224.0.0.1\na A 127.0.0.9\nb A 0.0.0.0\nc AAAA ::ffff:127.0.0.8\n")
    servers = Nameservers((Address(*server.address),), 5.0, 30.0, Counters())
    assert servers.ask(Question("a.example.com", Kind.A)).records == ("127.0.0.9",)
    assert servers.ask(Question("b.example.com", Kind.A)).outcome is Outcome.NONE
    assert servers.ask(Question("c.example.com", Kind.AAAA)).records == ("127.0.0.8",)


def test_the_cache_is_bounded_and_forgets_the_least_used() -> None:
    cache = AnswerCache(2, stale_for=10.0)
    first, second, third = (Question(name, Kind.A) for name in "abc")
    for question in (first, second):
        cache.put(question, Answer(Outcome.RECORDS, ("127.0.0.1",), (), 5.0))
    assert cache.fresh(first, 4.9) is not None
    cache.put(third, Answer(Outcome.NONE, (), (), 5.0))
    assert len(cache) == 2
    assert cache.fresh(second, 0.0) is None
    assert cache.fresh(first, 5.0) is None
    assert cache.stale(first, 15.0) is not None
    assert cache.stale(first, 15.1) is None


def test_the_server_as_a_process(tmp_path: Path) -> None:
    zone = tmp_path / "zone"
    zone.write_text("pbx A 127.0.5.1\n")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.dns_server",
            "--origin",
            "test",
            "--zone",
            str(zone),
            "--fault",
            "x.test=nxdomain",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        host, _, port = process.stdout.readline().split()[-1].rpartition(":")
        servers = Nameservers((Address(host, int(port)),), 5.0, 30.0, Counters())
        assert servers.ask(Question("pbx.test", Kind.A)).records == ("127.0.5.1",)
    finally:
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stdout is not None
        process.stdout.close()
