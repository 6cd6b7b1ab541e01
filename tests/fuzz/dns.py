"""Answers of nameservers: spoiled on the wire, and zones of chains, loops and masses of records (rules N1, N5).

What reads them is the real thing but for its sockets: a nameserver is what `answers` has for a question.
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import time

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from tests.fuzz.chance import Choices
from tests.fuzz.target import Target, require
from wsgate.addr import ANY_PORT, Address, Transport
from wsgate.metrics import Counters
from wsgate.net.nameserver import MAX_ALIASES, MAX_TTL_SECONDS, Nameservers, readable
from wsgate.sip.location import (
    MAX_ADDRESSES_PER_HOST,
    MAX_HOSTS,
    MAX_SERVICES,
    Answer,
    Kind,
    Naptr,
    Outcome,
    Question,
    Srv,
    TargetResolution,
)
from wsgate.sip.targets import parse_target

NOW = 1000.0
QUESTIONS_MAX = 1 + max(MAX_SERVICES, len(Transport)) + 2 * MAX_HOSTS
STALL_SECONDS = 1.0
"""Of processor time; far more than any answer should take: the loop stands still meanwhile (N5)."""


class Zone(Nameservers):
    """Nameservers without sockets: `said` is the response to each question."""

    def __init__(self) -> None:
        super().__init__((Address("192.0.2.53", 53),), 1.0, 30.0, Counters(), lambda: NOW)
        self.said: dict[Question, dns.message.Message] = {}
        self.exchanges = 0

    def _exchange(self, question: Question) -> dns.message.Message | None:
        self.exchanges += 1
        try:
            dns.name.from_text(question.name)
        except dns.exception.DNSException:
            return None
        return self.said.get(question)


def _check(question: Question, answer: Answer) -> None:
    require(answer.expires <= NOW + MAX_TTL_SECONDS, "for ever", answer)
    require(answer.outcome is not Outcome.RECORDS or answer.records, "records, and none", answer)
    require(len(answer.names) <= 16 * MAX_ALIASES, "too many aliases", answer)
    for record in answer.records:
        if isinstance(record, str):
            address = ipaddress.ip_address(record)
            require(str(address) == record and not address.is_multicast, "no address of a server", record)
        elif isinstance(record, Srv):
            require(0 <= record.port < 65536 and record.target == record.target.lower(), "no SRV", record)
        else:
            require(isinstance(record, Naptr), "an unknown record", record)


def _resolve(zone: Zone, target: str) -> None:
    """RFC 3263 for this target comes to an end, with bounded questions and targets that can be reached."""
    machine = TargetResolution(parse_target(target), tuple(Transport))
    asked = 0
    while questions := machine.questions():
        for question in questions:
            asked += 1
            before = zone.exchanges
            answer = zone.ask(question)
            require(zone.exchanges - before <= MAX_ALIASES, "one question, too many exchanges", question)
            _check(question, answer)
            machine.answered(question, answer)
    require(asked <= QUESTIONS_MAX, "too many questions", asked)
    resolution = machine.resolution()
    require(bool(resolution.groups) != bool(resolution.problem), "neither targets nor a problem", resolution)
    targets = resolution.ordered(lambda: 0.5)
    require(len(targets) <= MAX_SERVICES * MAX_HOSTS * 2 * MAX_ADDRESSES_PER_HOST, "too many targets", len(targets))
    for one in targets:
        require(0 < one.address.port < 65536 and one.address.port != ANY_PORT, "no port", one)
        ipaddress.ip_address(one.address.host)
    require(set().union(*resolution.named.values()) == set(targets), "named and targets differ", resolution)


QUESTION = Question("example.com", Kind.SRV)
KINDS = {dns.rdatatype.from_text(kind.value): kind for kind in Kind}
RESPONSES_MAX = 24
NAMES = ["example.com", "_sip._udp.example.com", "_sip._tcp.example.com", "a.example.com", "b.example.com", "c.test"]
RDATA = {
    Kind.NAPTR: [
        '10 10 "s" "SIP+D2U" "" _sip._udp.example.com.',
        '10 20 "S" "sip+d2t" "" _sip._tcp.example.com.',
        '20 0 "s" "SIPS+D2T" "" example.com.',
        '0 0 "u" "E2U+sip" "!^.*$!sip:a@b!" .',
        '0 0 "s" "SIP+D2U" "" .',
    ],
    Kind.SRV: [
        "0 5 5060 a.example.com.",
        "0 0 5061 b.example.com.",
        "1 65535 65535 c.test.",
        "0 0 0 .",
        "9 0 0 a.test.",
    ],
    Kind.A: ["192.0.2.1", "0.0.0.0", "224.0.0.1", "127.0.0.1", "255.255.255.255"],
    Kind.AAAA: ["2001:db8::1", "::", "ff02::1", "::ffff:192.0.2.9", "::1"],
}


def _rrset(name: str, ttl: int, kind: str, texts: list[str]) -> dns.rrset.RRset:
    rrset = dns.rrset.RRset(dns.name.from_text(name), dns.rdataclass.IN, dns.rdatatype.from_text(kind))
    for text in texts:
        rrset.add(_rdata(kind, text), ttl)
    return rrset


@functools.cache
def _rdata(kind: str, text: str) -> dns.rdata.Rdata:
    return dns.rdata.from_text("IN", kind, text)


def _response(question: Question, *rrsets: dns.rrset.RRset, soa: bool = False) -> dns.message.Message:
    query = dns.message.make_query(question.name, question.kind.value)
    query.id = 7
    response = dns.message.make_response(query)
    response.answer += rrsets
    if soa:
        response.authority.append(_rrset("example.com", 60, "SOA", ["ns.example.com. host.example.com. 1 2 3 4 5"]))
    return response


def _chain(question: Question, length: int, *, is_loop: bool) -> dns.message.Message:
    names = [question.name, *(f"alias-{number}.example.com" for number in range(length))]
    if is_loop:
        names.append(question.name)
    aliases = [_rrset(one, 60, "CNAME", [f"{other}."]) for one, other in itertools.pairwise(names)]
    return _response(question, *aliases, _rrset(names[-1], 60, question.kind.value, RDATA[question.kind]))


def zone(data: bytes) -> None:
    """A zone made of decisions: aliases that lead anywhere, all kinds of records, masses of them."""
    chance, nameservers = Choices(data), Zone()
    for _ in range(RESPONSES_MAX):
        if chance.is_over:
            break
        question = Question(chance.pick(NAMES), chance.pick(list(Kind)))
        kind, name = chance.number(8), question.name
        rrsets = []
        for _ in range(chance.pick((0, 0, 1, 1, 2, 9)) if kind else 0):
            alias = chance.pick([*NAMES, f"x{chance.number(20)}.example.com"])
            rrsets.append(_rrset(name, chance.pick((0, 1, 60, 2**31 - 1)), "CNAME", [f"{alias}."]))
            name = alias
        texts = [text for text in RDATA[question.kind] if chance.percent(60)]
        if kind == 1:
            texts = [f"{number} 1 {number} h{number}.example.com." for number in range(200)]
            texts = texts if question.kind is Kind.SRV else [RDATA[question.kind][0]]
        if texts:
            rrsets.append(_rrset(name, chance.pick((0, 1, 60, 2**31 - 1)), question.kind.value, texts))
        response = _response(question, *rrsets, soa=chance.percent(30))
        if chance.percent(20):
            response.set_rcode(dns.rcode.NXDOMAIN)
        nameservers.said[question] = response
    for target in ("sip:example.com", "sips:example.com", "sip:example.com;transport=tcp", "sip:a.example.com:5070"):
        _resolve(nameservers, target)


def wire(data: bytes) -> None:
    """A spoiled response is read or is none, in bounded time; whatever it says is judged as the zones are."""
    begun = time.process_time()
    response = readable(data)
    require(time.process_time() - begun < STALL_SECONDS, "the loop stood still", time.process_time() - begun)
    if response is None or response.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return
    for one in response.question[:1]:
        query = dns.message.make_query(one.name, one.rdtype, one.rdclass, id=response.id)
        if not query.is_response(response) or one.rdtype not in KINDS:
            return
        question = Question(one.name.to_text(omit_final_dot=True).lower(), KINDS[one.rdtype])
        nameservers = Zone()
        nameservers.said[question] = response
        _check(question, nameservers.ask(question))
        nameservers.said = {Question(name, kind): response for name in NAMES for kind in Kind}
        _resolve(nameservers, "sip:example.com")
    require(time.process_time() - begun < 2 * STALL_SECONDS, "the loop stood still", time.process_time() - begun)


def _wires() -> list[bytes]:
    made = [
        *(
            _response(Question("example.com", kind), _rrset("example.com", 60, kind.value, RDATA[kind]))
            for kind in Kind
        ),
        _chain(QUESTION, 3, is_loop=False),
        _chain(QUESTION, 3, is_loop=True),
        _chain(QUESTION, 40, is_loop=False),
        _response(QUESTION, soa=True),
    ]
    return [one.to_wire(max_size=65535) for one in made]


PIECES = [
    b"\xc0\x0c",
    b"\xc0\x00",
    b"\xff\xff",
    b"\x00\x05\x00\x01",
    b"\x00\x21\x00\x01",
    b"\x00\x23\x00\x01",
    b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00",
    b"\x3f" + b"a" * 63,
    b"\x01\xff\x01.\x01\\",
]

TARGETS = [
    Target("dns-wire", wire, _wires(), PIECES, test_inputs=300),
    Target("dns-zone", zone, test_inputs=20),
]
