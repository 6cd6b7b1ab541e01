"""Where every configured backend is, now: asked at start, kept fresh in the background, read without blocking (N5).

Questions go through one cache (TTL, absence, stale answers while the resolver is down) and are asked once however many
wait for them. Nothing but the targets of configured backends is ever looked up.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import gevent
from gevent.event import AsyncResult, Event
from gevent.lock import BoundedSemaphore
from gevent.pool import Pool

from wsgate.addr import Address, Transport, split_host_port
from wsgate.log import logger
from wsgate.metrics import Counters
from wsgate.net.nameserver import Nameservers
from wsgate.settings import Parser, integer, listed, option, seconds
from wsgate.sip.location import ADDRESS_KINDS, Answer, Kind, Outcome, Question, Resolution, TargetResolution
from wsgate.sip.targets import EMBEDDED, BackendSettings, Target, parse_target

NAMESERVERS: Parser[tuple[Address, ...]] = listed((lambda text: split_host_port(text, 53), "host:port"))

MAX_QUESTIONS_IN_FLIGHT = 256
MAX_QUESTIONS_PER_BACKEND = 16
"""How many questions of one backend are on their way at once, so that a zone of silence holds up no other backend."""
LEAST_REFRESH_SECONDS = 1.0
MOST_REFRESH_MARGIN_SECONDS = 5.0
MOST_RETRY_SECONDS = 30.0
"""Failed resolutions are tried again after 1, 2, 4 ... up to this many seconds (RFC 8767 §5)."""
FIRST_LOOK_SECONDS = 2.0
"""How long a start waits for the DNS: what comes meanwhile waits in the sockets."""
RESOLVE_SECONDS = 10.0
"""How long a request waits for a backend that was never found."""


@dataclasses.dataclass(frozen=True)
class ResolverSettings:
    """[dns]"""

    nameservers: tuple[Address, ...] = option((), NAMESERVERS)
    timeout: float = option(2.0, seconds(0.1, 60))
    cache_size: int = option(10000, integer(10, 10000000))
    negative_ttl: float = option(30.0, seconds(0, 86400))
    stale_for: float = option(3600.0, seconds(0, 604800))


class ResolvedBackend(NamedTuple):
    """Where a backend is: `targets` in the order to try them, drawn anew for each caller (rule N2).

    `hosts` are the numeric IP addresses, `hops` the (transport, address) pairs, `named` the targets behind every name
    met in the resolution (rule D1). Without targets `problem` says why.
    """

    targets: tuple[Target, ...]
    hosts: frozenset[str]
    hops: frozenset[tuple[Transport, Address]]
    named: Mapping[str, tuple[Target, ...]]
    expires: float
    problem: str


class KnownAddresses(NamedTuple):
    """The latest resolved IP addresses and (transport, address) pairs, of one backend or of all."""

    hosts: frozenset[str]
    hops: frozenset[tuple[Transport, Address]]


NOWHERE = KnownAddresses(frozenset(), frozenset())


def _unresolved(problem: str, at: float) -> ResolvedBackend:
    return ResolvedBackend((), frozenset(), frozenset(), {}, at, problem)


class AnswerCache:
    """Answers by question, the least used thrown out above `size`; expired ones wait `stale_for` seconds longer."""

    def __init__(self, size: int, stale_for: float) -> None:
        self._size, self._stale_for = size, stale_for
        self._answers: OrderedDict[Question, Answer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def fresh(self, question: Question, at: float) -> Answer | None:
        """The answer, when it still holds at `at`."""
        answer = self._answers.get(question)
        if answer is None or answer.expires <= at:
            return None
        self._answers.move_to_end(question)
        return answer

    def stale(self, question: Question, now: float) -> Answer | None:
        """The answer though it expired, for when the resolver is down (RFC 8767)."""
        answer = self._answers.get(question)
        return None if answer is None or now > answer.expires + self._stale_for else answer

    def put(self, question: Question, answer: Answer) -> None:
        """Keep `answer`."""
        self._answers[question] = answer
        self._answers.move_to_end(question)
        if len(self._answers) > self._size:
            self._answers.popitem(last=False)


class _Backend:
    """One configured backend and what is known of it."""

    def __init__(self, domain: str, settings: BackendSettings) -> None:
        self.domain = domain
        self.settings = settings
        self.resolution: Resolution | None = None
        self.resolved: ResolvedBackend | None = None  # that resolution with one draw
        self.known = NOWHERE
        self.failures = 0
        self.retry_from = 0.0  # a request that waits may begin a new try from then on
        self.wake = Event()
        self.refreshed = Event()
        self.greenlet: gevent.Greenlet | None = None


class Resolver:
    """Keeps every backend of `serve` resolved. `own` are our addresses, which are no targets (rule N1).

    `kinds` are the address families to use, the wanted first. `random_float` gives floats in [0, 1).
    """

    def __init__(
        self,
        settings: ResolverSettings,
        counters: Counters,
        own: Collection[Address] = (),
        kinds: Sequence[Kind] = ADDRESS_KINDS,
        random_float: Callable[[], float] = random.random,
        now: Callable[[], float] = time.monotonic,
        resolv_conf: str = "/etc/resolv.conf",
        hosts: str = "/etc/hosts",
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._own = frozenset(own)
        self._kinds = kinds
        self._random = random_float
        self._now = now
        self._nameservers = Nameservers(
            settings.nameservers, settings.timeout, settings.negative_ttl, counters, now, resolv_conf, hosts
        )
        self._cache = AnswerCache(settings.cache_size, settings.stale_for)
        self._asked: dict[Question, AsyncResult] = {}
        self._in_flight = BoundedSemaphore(MAX_QUESTIONS_IN_FLIGHT)
        self._backends: dict[str, _Backend] = {}
        self._known = NOWHERE
        self._domains: dict[str, tuple[str, ...]] = {}
        self._at: dict[tuple[Transport, Address], tuple[str, Target]] = {}

    def serve(self, backends: Mapping[str, BackendSettings]) -> None:
        """Resolve these from now on and no others; those that did not change keep what is known. Does not block."""
        for domain, backend in list(self._backends.items()):
            if backends.get(domain) != backend.settings:
                self._stop(self._backends.pop(domain))
        for domain, settings in backends.items():
            if domain not in self._backends and settings.target and settings.target != EMBEDDED:
                backend = self._backends[domain] = _Backend(domain, settings)
                backend.greenlet = gevent.spawn(self._keep_fresh, backend)
        self._publish()

    def first_look(self, timeout: float = FIRST_LOOK_SECONDS) -> None:
        """Wait until each backend was looked for once, well or not, `timeout` seconds at most.

        Until then rule N6 would take a server for a stranger, and D1 its address for one of nobody. Blocks the calling
        greenlet only.
        """
        deadline = self._now() + timeout
        for backend in list(self._backends.values()):
            if backend.resolution is None:
                backend.refreshed.wait(max(0.0, deadline - self._now()))

    def close(self) -> None:
        """End all questions and refreshes."""
        self.serve({})

    def cached(self, domain: str) -> ResolvedBackend | None:
        """What is known of the backend `domain` (the name of its section); None when it was not resolved yet."""
        backend = self._backends.get(domain)
        return None if backend is None or backend.resolution is None else self._drawn(backend)

    def resolve(self, domain: str, timeout: float = RESOLVE_SECONDS) -> ResolvedBackend:
        """Like `cached`, but a backend without targets is looked for first, `timeout` seconds at most.

        Blocks the calling greenlet only. Never raises for what the DNS says: no targets, and `problem` tells why.
        """
        backend = self._backends.get(domain)
        if backend is None:
            return _unresolved(f"no backend for {domain}", self._now())
        if not backend.known.hops and (backend.resolution is None or self._now() >= backend.retry_from):
            backend.wake.set()
            backend.refreshed.wait(timeout)
        return self._drawn(backend)

    def known_addresses(self, domain: str | None = None) -> KnownAddresses:
        """The latest addresses of the backend `domain`, or of all backends; never blocks (D1, N6, V3, P5)."""
        if domain is None:
            return self._known
        backend = self._backends.get(domain)
        return NOWHERE if backend is None else backend.known

    def domains_at(self, host: str) -> tuple[str, ...]:
        """The backends that have the numeric IP address `host`."""
        return self._domains.get(host, ())

    def backend_at(self, transport: Transport, address: Address) -> tuple[BackendSettings, Target] | None:
        """The backend with this target, for what its connection needs to know (TLS name, path)."""
        found = self._at.get((transport, address))
        return None if found is None else (self._backends[found[0]].settings, found[1])

    def _stop(self, backend: _Backend) -> None:
        backend.refreshed.set()
        if backend.greenlet is not None:
            backend.greenlet.kill(block=False)

    def _drawn(self, backend: _Backend) -> ResolvedBackend:
        if backend.resolution is None or backend.resolved is None:
            return _unresolved(f"{backend.settings.target} is not resolved yet", self._now())
        if backend.resolution.is_fixed:
            return backend.resolved
        return backend.resolved._replace(targets=backend.resolution.ordered(self._random))

    def _keep_fresh(self, backend: _Backend) -> None:
        """Resolve, sleep until shortly before the answers expire, again; sooner when a request asks for it."""
        margin = 0.0
        while True:
            begun = self._now()
            try:
                resolution, healthy = self._resolution(backend, margin)
            except Exception:
                logger.exception("internal error while resolving backend %s", backend.domain)
                self._counters.count("internal_errors")
                resolution, healthy = Resolution((), {}, self._now(), "internal error"), False
            self._take(backend, resolution, healthy)
            lifetime = resolution.expires - begun
            margin = max(0.0, min(MOST_REFRESH_MARGIN_SECONDS, lifetime / 10))
            pause = max(LEAST_REFRESH_SECONDS, lifetime - margin)
            if not healthy or not resolution.groups:
                pause = min(pause, MOST_RETRY_SECONDS, 2.0 ** min(backend.failures, 10) / 2)
            backend.wake.clear()
            backend.refreshed.set()
            backend.refreshed = Event()
            backend.wake.wait(None if pause == float("inf") else max(0.0, begun + pause - self._now()))

    def _take(self, backend: _Backend, resolution: Resolution, healthy: bool) -> None:
        """Make a finished resolution the one that counts, unless it failed and the last one may still serve (N2)."""
        now, before = self._now(), backend.resolution
        if healthy and resolution.groups:
            backend.failures = 0
        else:
            backend.failures += 1
        backend.retry_from = now + LEAST_REFRESH_SECONDS
        if not healthy and backend.failures == 1:
            logger.warning("backend %s: not all questions for %s are answered", backend.domain, backend.settings.target)
        lost = not healthy and not resolution.groups
        if lost and before is not None and before.groups and now <= before.expires + self._settings.stale_for:
            self._counters.count("dns_stale_backends")
            return
        if resolution.problem and (before is None or before.problem != resolution.problem):
            logger.warning("backend %s: %s: %s", backend.domain, backend.settings.target, resolution.problem)
        backend.resolution = resolution
        hops = frozenset((one.transport, one.address) for targets in resolution.named.values() for one in targets)
        known = KnownAddresses(frozenset(address.host for _, address in hops), hops)
        backend.resolved = ResolvedBackend(
            resolution.ordered(self._random),
            known.hosts,
            known.hops,
            resolution.named,
            resolution.expires,
            resolution.problem,
        )
        if known != backend.known:
            backend.known = known
            places = ", ".join(f"{transport.value} {address}" for transport, address in sorted(hops, key=str))
            logger.info("backend %s is at %s", backend.domain, places or "no address")
            self._publish()

    def _publish(self) -> None:
        backends = self._backends.values()
        self._known = KnownAddresses(
            frozenset().union(*(backend.known.hosts for backend in backends)),
            frozenset().union(*(backend.known.hops for backend in backends)),
        )
        self._domains = {
            host: tuple(backend.domain for backend in backends if host in backend.known.hosts)
            for host in self._known.hosts
        }
        self._at = {
            (target.transport, target.address): (backend.domain, target)
            for backend in backends
            if backend.resolution is not None
            for targets in backend.resolution.named.values()
            for target in targets
        }

    def _resolution(self, backend: _Backend, margin: float) -> tuple[Resolution, bool]:
        """Run RFC 3263 for `backend`; answers that expire within `margin` are asked anew. Second: all were answered."""
        settings = backend.settings
        machine = TargetResolution(parse_target(settings.target), settings.transports, self._kinds, self._own)
        healthy = True
        pool = Pool(MAX_QUESTIONS_PER_BACKEND)
        try:
            while questions := machine.questions():
                answers = pool.map(lambda question: self._answer(question, margin), questions)
                for question, (answer, answered) in zip(questions, answers, strict=True):
                    machine.answered(question, answer)
                    healthy = healthy and answered
        finally:
            pool.kill(block=False)
        return machine.resolution(), healthy

    def _answer(self, question: Question, margin: float) -> tuple[Answer, bool]:
        """The answer from the cache or the nameservers, or a stale one; False when nobody answered."""
        cached = self._cache.fresh(question, self._now() + margin)
        if cached is not None:
            self._counters.count("dns_cache_hits")
            return cached, True
        answer = self._ask_once(question)
        if answer.outcome is not Outcome.FAILED:
            return answer, True
        stale = self._cache.stale(question, self._now())
        if stale is None:
            return answer, False
        self._counters.count("dns_stale_answers")
        return stale, False

    def _ask_once(self, question: Question) -> Answer:
        """Ask the nameservers; who asks the same while that is under way waits for the same answer."""
        waiting = self._asked.get(question)
        if waiting is not None:
            self._counters.count("dns_coalesced")
            answer: Answer = waiting.get()
            return answer
        result = self._asked[question] = AsyncResult()
        answer = Answer(Outcome.FAILED, (), (), self._now())
        try:
            with self._in_flight:
                answer = self._nameservers.ask(question)
            if answer.outcome is not Outcome.FAILED:
                self._cache.put(question, answer)
        finally:
            del self._asked[question]
            result.set(answer)
        return answer
