"""Where a SIP URI leads: NAPTR, SRV and address selection (RFC 3263), without a socket.

`TargetResolution` says which questions to ask next and what the answers mean; `Resolution` draws the order in which the
targets are tried.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from wsgate.addr import Address, Transport, canonical_host, is_numeric
from wsgate.sip.targets import Target, TargetUri

MAX_SERVICES = 16
"""How many NAPTR records of one domain are followed, the most wanted first."""
MAX_HOSTS = 32
"""How many host names one resolution asks the addresses of, those of the best priority first."""
MAX_ADDRESSES_PER_HOST = 16

_NAPTR_SERVICES = {
    "SIP+D2U": Transport.UDP,
    "SIP+D2T": Transport.TCP,
    "SIPS+D2T": Transport.TLS,
    "SIP+D2W": Transport.WS,
    "SIPS+D2W": Transport.WSS,
}
_SRV_PREFIXES = {
    Transport.UDP: "_sip._udp",
    Transport.TCP: "_sip._tcp",
    Transport.TLS: "_sips._tcp",
    Transport.WS: "_sip._ws",
    Transport.WSS: "_sips._ws",
}


class Kind(enum.Enum):
    """The kinds of DNS records that lead to a SIP server; the value is the record type's name."""

    NAPTR = "NAPTR"
    SRV = "SRV"
    A = "A"
    AAAA = "AAAA"


ADDRESS_KINDS = (Kind.A, Kind.AAAA)


class Question(NamedTuple):
    """`name` in lower case without final dot."""

    name: str
    kind: Kind


class Naptr(NamedTuple):
    """A NAPTR record (RFC 3403 §4.1) without its regular expression, which SIP does not use."""

    order: int
    preference: int
    flags: str
    service: str
    replacement: str


class Srv(NamedTuple):
    """An SRV record (RFC 2782); an empty `target` says that there is no such service."""

    priority: int
    weight: int
    port: int
    target: str


Record = Naptr | Srv | str
"""An address record is its IP address as text."""


class Outcome(enum.Enum):
    """RECORDS: there are some; NONE: the DNS says there are none; FAILED: it did not say."""

    RECORDS = "records"
    NONE = "none"
    FAILED = "failed"


class Answer(NamedTuple):
    """What a question brought; `names` are the aliases met on the way, the last one owns the records."""

    outcome: Outcome
    records: tuple[Record, ...]
    names: tuple[str, ...]
    expires: float


class _Choice(NamedTuple):
    """One SRV record with its targets; `names` lead to them."""

    weight: int
    targets: tuple[Target, ...]
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Resolution:
    """All that one resolution found: `groups` in order of service and SRV priority, tried one after the other.

    `named` maps each name met on the way to the targets behind it (rule D1); `expires` is the earliest end of what it
    rests on, infinite where no question was asked; `problem` says why there is no target.
    """

    groups: tuple[tuple[_Choice, ...], ...]
    named: Mapping[str, tuple[Target, ...]]
    expires: float
    problem: str = ""

    @cached_property
    def is_fixed(self) -> bool:
        """True when no weight is to be drawn: every order is the same."""
        return all(len(group) == 1 for group in self.groups)

    def ordered(self, random: Callable[[], float]) -> tuple[Target, ...]:
        """Every target once, in the order to try; `random` gives floats in [0, 1) (RFC 2782, rule N2)."""
        targets: dict[Target, None] = {}
        for group in self.groups:
            for drawn in _draw(group, random):
                targets.update(dict.fromkeys(drawn.targets))
        return tuple(targets)


def _draw(group: Sequence[_Choice], random: Callable[[], float]) -> Iterable[_Choice]:
    """The choices of one priority in an order drawn by weight (RFC 2782, "Weight")."""
    rest = sorted(group, key=lambda one: one.weight)  # those of weight 0 first
    while len(rest) > 1:
        drawn = int(random() * (sum(one.weight for one in rest) + 1))
        running_sum = 0
        for index, one in enumerate(rest):
            running_sum += one.weight
            if running_sum >= drawn:
                yield rest.pop(index)
                break
    yield from rest


class _Stage(enum.Enum):
    """Where a resolution stands (RFC 3263 §4.1, §4.1, §4.2, -)."""

    NAPTR = "naptr"
    SRV = "srv"
    ADDRESSES = "addresses"
    DONE = "done"


class _Place(NamedTuple):
    """A host and port that a service runs on, before its addresses are known."""

    priority: int
    weight: int
    port: int
    host: str


class TargetResolution:
    """RFC 3263 for one URI as a machine (rule N1): ask what `questions` names, hand each answer to `answered`.

    Repeat until `questions` is empty; those of one turn may be asked at the same time. Then `resolution` is the result.
    `transports` are those to use, the wanted first: they decide where the DNS leaves the choice. `kinds` are the
    address families to use, the wanted first. A target in `own` (numeric, or a name met in SRV) is ourselves: skipped.
    """

    def __init__(
        self,
        uri: TargetUri,
        transports: Sequence[Transport],
        kinds: Sequence[Kind] = ADDRESS_KINDS,
        own: Collection[Address] = (),
    ) -> None:
        self._uri = uri
        self._kinds = kinds
        self._own = own
        self._transports = [transport for transport in transports if transport.secure or not uri.secure]
        if uri.transport is not None:
            self._transports = [transport for transport in self._transports if transport is uri.transport]
        self._services: list[tuple[Transport, str]] = []
        self._places: list[tuple[Transport, list[_Place]]] = []
        self._answers: dict[Question, Answer] = {}
        self._pending: list[Question] = []
        self._expires = math.inf
        self._problem = ""
        self._stage = _Stage.DONE
        self._begin()

    def questions(self) -> tuple[Question, ...]:
        """What to ask now; empty when the resolution is complete."""
        return tuple(self._pending)

    def answered(self, question: Question, answer: Answer) -> None:
        """What the DNS said to one of `questions`."""
        self._pending.remove(question)
        self._answers[question] = answer
        self._expires = min(self._expires, answer.expires)
        if self._pending:
            return
        if self._stage is _Stage.NAPTR:
            self._follow_naptr(question.name, answer)
        elif self._stage is _Stage.SRV:
            self._follow_srv()
        else:
            self._stage = _Stage.DONE

    def resolution(self) -> Resolution:
        """The result; call it when `questions` is empty."""
        named: dict[str, dict[Target, None]] = {self._uri.host: {}}
        groups = []
        for transport, places in self._places:
            for priority in sorted({place.priority for place in places}):
                group = tuple(self._choice(transport, place) for place in places if place.priority == priority)
                for chosen in group:
                    for name in (self._uri.host, *chosen.names):
                        named.setdefault(name, {}).update(dict.fromkeys(chosen.targets))
                if any(chosen.targets for chosen in group):
                    groups.append(tuple(chosen for chosen in group if chosen.targets))
        problem = self._problem or ("" if groups else self._why_no_address())
        return Resolution(
            tuple(groups), {name: tuple(targets) for name, targets in named.items()}, self._expires, problem
        )

    def _begin(self) -> None:
        """Rule N1: numeric, port given, transport given, else NAPTR (RFC 3263 §4.1, §4.2)."""
        uri = self._uri
        if not self._transports:
            self._problem = "no transport of the target is among those to be used"
        elif is_numeric(uri.host) or uri.port is not None:
            self._ask_addresses_of_host()
        elif uri.transport is not None:
            self._ask_services([(uri.transport, f"{_SRV_PREFIXES[uri.transport]}.{uri.host}")])
        else:
            self._stage = _Stage.NAPTR
            self._pending = [Question(uri.host, Kind.NAPTR)]

    def _follow_naptr(self, host: str, answer: Answer) -> None:
        """Services by order and preference; where no NAPTR speaks of ours, every SRV name of ours (RFC 3263 §4.1)."""
        wanted = []
        for record in answer.records:
            if isinstance(record, Naptr) and record.flags.lower() == "s" and record.replacement:
                transport = _NAPTR_SERVICES.get(record.service.upper())
                if transport in self._transports:
                    rank = (record.order, record.preference, self._transports.index(transport))
                    wanted.append((rank, (transport, record.replacement)))
        services = [service for _, service in sorted(wanted, key=lambda item: item[0])][:MAX_SERVICES]
        self._ask_services(
            services or [(transport, f"{_SRV_PREFIXES[transport]}.{host}") for transport in self._transports]
        )

    def _ask_services(self, services: Iterable[tuple[Transport, str]]) -> None:
        self._stage = _Stage.SRV
        self._services = list(dict.fromkeys(services))
        self._pending = list(dict.fromkeys(Question(name, Kind.SRV) for _, name in self._services))

    def _follow_srv(self) -> None:
        """The hosts by priority; no SRV record at all: the host itself (RFC 3263 §4.2). `.` means no service."""
        outcomes = set()
        hosts: set[str] = set()
        for transport, name in self._services:
            answer = self._answers[Question(name, Kind.SRV)]
            outcomes.add(answer.outcome)
            places = []
            for record in sorted(record for record in answer.records if isinstance(record, Srv)):
                if not record.target or not record.port or Address(record.target, record.port) in self._own:
                    continue
                if record.target in hosts or len(hosts) < MAX_HOSTS:
                    hosts.add(record.target)
                    places.append(_Place(record.priority, record.weight, record.port, record.target))
            if places:
                self._places.append((transport, places))
        if self._places:
            self._ask_addresses()
        elif Outcome.RECORDS in outcomes:
            self._stop(f"the SRV records of {self._uri.host} name no server")
        elif Outcome.FAILED in outcomes:
            # The host itself is no guess for a service that was not heard of: it may be a web server.
            self._stop(f"no answer to the SRV questions for {self._uri.host}")
        else:
            self._ask_addresses_of_host()

    def _ask_addresses_of_host(self) -> None:
        transport, uri = self._transports[0], self._uri
        port = transport.default_port if uri.port is None else uri.port
        self._places = [(transport, [_Place(0, 0, port, uri.host)])]
        self._ask_addresses()

    def _ask_addresses(self) -> None:
        self._stage = _Stage.ADDRESSES
        hosts = dict.fromkeys(place.host for _, places in self._places for place in places)
        names = [host for host in hosts if not is_numeric(host)]
        self._pending = [Question(name, kind) for name in names for kind in self._kinds]
        if not self._pending:
            self._stage = _Stage.DONE

    def _stop(self, problem: str) -> None:
        self._stage, self._problem = _Stage.DONE, problem

    def _choice(self, transport: Transport, place: _Place) -> _Choice:
        """The targets at one place, and the names that lead to them."""
        names = dict.fromkeys([place.host])
        hosts = [canonical_host(place.host)] if is_numeric(place.host) else []
        for kind in self._kinds:
            answer = self._answers.get(Question(place.host, kind))
            if answer is not None:
                names.update(dict.fromkeys(answer.names))
                hosts += [record for record in answer.records if isinstance(record, str)][:MAX_ADDRESSES_PER_HOST]
        addresses = [Address(host, place.port) for host in hosts]
        targets = (Target(transport, address, self._uri.host) for address in addresses if address not in self._own)
        return _Choice(place.weight, tuple(targets), tuple(names))

    def _why_no_address(self) -> str:
        hosts = ", ".join(dict.fromkeys(place.host for _, places in self._places for place in places))
        answers = [answer for question, answer in self._answers.items() if question.kind in ADDRESS_KINDS]
        if any(answer.records for answer in answers) or not answers:
            return f"{hosts} is this gateway itself"
        failed = any(answer.outcome is Outcome.FAILED for answer in answers)
        return f"no answer to the address questions for {hosts}" if failed else f"{hosts} has no address"
