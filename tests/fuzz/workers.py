"""Workers among each other: directories that tell and forget, lose messages and lives; requests of workers (T3).

However messages are lost and workers begin anew, all is forgotten once it has expired; nothing lost, all agree.
"""

from __future__ import annotations

import json

from tests.edge_world import KEYS
from tests.fuzz.chance import Choices, spoil
from tests.fuzz.sip import PIECES
from tests.fuzz.target import Target, require
from tests.test_sharing import Worker, binding, exchange
from wsgate.addr import Address, Hop, Transport
from wsgate.errors import ProtocolError
from wsgate.sharing import MAX_WAITING
from wsgate.sip.flow import FlowTokens
from wsgate.sip.message import Message
from wsgate.sip.siblings import PROOF_PARAMETER, Siblings, origin

WORKERS = 3
STEPS_MAX = 150
LIFETIMES = (1.0, 5.0, 600.0)
AORS = (b"alice@example.com", b"bob@example.com")
LATER = 10_000.0
KEPT = ("hello", "gone")
"""What is never lost here: whoever misses that takes a flow for open until its worker begins anew, but no more than
MAX_REGISTRATIONS of them."""


class Mesh:
    """Three workers, what is on its way between them, and what a browser of each would know."""

    def __init__(self, chance: Choices) -> None:
        self.chance = chance
        self.now = 1.0
        self.loses = chance.percent(50)
        self.workers = [Worker(number, WORKERS) for number in range(WORKERS)]
        self.open: dict[bytes, int] = {}
        self.opened: list[list[frozenset[Address]]] = [[] for _ in self.workers]
        self.number = 0

    def run(self) -> None:
        """Until no decision is left; then all that is on its way arrives."""
        steps = [self._open, self._register, self._register, self._bind, self._close, self._take_back]
        steps += [self._deliver, self._deliver, self._wait, self._call, self._restart]
        for _ in range(STEPS_MAX):
            if self.chance.is_over:
                break
            self.now += 0.001
            self.chance.pick(steps)()
            for worker in self.workers:
                worker.sharing.tell_changes(self.now)
            if not self.loses:
                # Told before it is answered, heard before anything is judged.
                exchange(self.workers, self.now)
        self._settle()
        if not self.loses:
            self._agree()
        for flow in list(self.open):
            self._close(flow)
        for worker, opened in zip(self.workers, self.opened, strict=True):
            for one in opened:
                worker.peers.close("r", one)
        self._settle()
        for _ in range(3):
            self.now += LATER
            for worker in self.workers:
                worker.directory.handle_timer(self.now)
            self._settle()
        for worker in self.workers:
            self._is_empty(worker)

    def _pick(self) -> Worker:
        return self.chance.pick(self.workers)

    def _flow(self, worker: Worker) -> bytes | None:
        found = [flow for flow, number in self.open.items() if number == worker.number]
        return self.chance.pick(found) if found else None

    def _open(self) -> None:
        self.number += 1
        flow = b"flow%04d" % self.number
        worker = self._pick()
        worker.directory.flow_opened(flow)
        self.open[flow] = worker.number

    def _register(self) -> None:
        worker = self._pick()
        flow = self._flow(worker)
        if flow is not None:
            instance = self.chance.pick((b"<urn:1>", b"<urn:2>", b""))
            expires_at = self.now + self.chance.pick(LIFETIMES)
            worker.register(flow, self.now, expires_at=expires_at, aor=self.chance.pick(AORS), instance=instance)

    def _bind(self) -> None:
        worker = self._pick()
        flow, aor = self._flow(worker), self.chance.pick(AORS)
        if flow is None:
            return
        new = binding(flow, reg_id=self.chance.pick((0, 1)), registered_at=self.now)
        new = new._replace(aor=aor, expires_at=self.now + self.chance.pick(LIFETIMES))
        kept = () if self.chance.percent(30) else worker.directory.bindings(aor)
        kept = tuple(one for one in kept if one.key != new.key)
        worker.directory.replace_bindings(aor, (*kept, new) if self.chance.percent(80) else kept, self.now)

    def _close(self, flow: bytes | None = None) -> None:
        flow = flow or self._flow(self._pick())
        if flow is not None:
            self.workers[self.open.pop(flow)].directory.flow_closed(flow, self.now)

    def _take_back(self) -> None:
        worker = self._pick()
        for key in worker.directory.registration_keys()[:1]:
            worker.directory.forget(key[0], key[1] if key[2] >= 0 else b"", max(key[2], 0), key[1], self.now)

    def _call(self) -> None:
        worker = self._pick()
        opened = self.opened[worker.number]
        if self.chance.percent(60):
            opened.append(worker.peers.open("r", [Address("192.0.2.1", 1 + self.chance.number(5))]))
        elif opened:
            worker.peers.close("r", opened.pop(self.chance.number(len(opened))))

    def _wait(self) -> None:
        self.now += self.chance.pick((0.1, 2.0, 70.0))
        for worker in self.workers:
            worker.directory.handle_timer(self.now)

    def _deliver(self) -> None:
        sender, receiver = self._pick(), self._pick()
        if sender is receiver:
            return
        for _ in range(self.chance.number(9)):
            data = sender.sharing.next_message(receiver.number, self.now)
            if data is None:
                return
            if self.loses and json.loads(data)[0] not in KEPT and self.chance.percent(30):
                continue
            receiver.sharing.take(data, self.now)

    def _restart(self) -> None:
        """A worker dies; what it still had to say is lost, and what waits for it reaches its next life."""
        if not self.loses:
            return
        number = self._pick().number
        self.workers[number] = Worker(number, WORKERS)
        self.opened[number] = []
        self.open = {flow: owner for flow, owner in self.open.items() if owner != number}
        self.workers[number].sharing.hello()

    def _settle(self) -> None:
        exchange(self.workers, self.now)
        for worker in self.workers:
            require(not worker.counters.values.get("directory_messages_malformed"), "not understood")
            require(all(len(waiting) <= MAX_WAITING for waiting in worker.sharing._waiting.values()), "too many wait")

    def _agree(self) -> None:
        for worker in self.workers:
            worker.directory.handle_timer(self.now)
        first, *others = self.workers
        keys = {key for worker in self.workers for key in worker.directory.registration_keys()}
        for key in keys:
            found = {worker.directory.registration(key) for worker in self.workers}
            require(len(found) == 1, "registrations differ", found)
        for aor in AORS:
            held = [{one.key: one.contact for one in worker.directory.bindings(aor)} for worker in self.workers]
            require(all(one == held[0] for one in held), "bindings differ", held)
        for flow, owner in self.open.items():
            for worker in self.workers:
                if worker.number != owner and worker.directory.registrations_of(flow):
                    require(worker.directory.worker_of(flow) == owner, "at another worker", flow)
        for worker in others:
            require(
                {one for one in AORS if worker.directory.bindings(one)}
                == {one for one in AORS if first.directory.bindings(one)},
                "AORs differ",
            )

    def _is_empty(self, worker: Worker) -> None:
        flows, counts = worker.directory._flows, worker.directory.counts()
        require(not any(counts.values()), "left behind", counts)
        require(not flows._elsewhere and not flows._gone, "flows left behind", flows._elsewhere, flows._gone)
        require(worker.directory.next_timer() is None, "a timer for nothing")
        if not self.loses:
            require(not len(worker.peers) and not worker.peers._elsewhere, "peers left behind", worker.peers._elsewhere)


def mesh(data: bytes) -> None:
    """Three workers through good and bad times."""
    Mesh(Choices(data)).run()


SIBLINGS = Siblings(FlowTokens(KEYS), {1: [Address("127.0.0.1", 5061)]}, KEYS)
BRANCH = b"z9hG4bKabc"
PROOF = SIBLINGS.proof(BRANCH)
FROM_WORKER = (
    b"INVITE sip:bob@example.com SIP/2.0\r\n"
    b"Via: SIP/2.0/UDP 127.0.0.1:5061;branch=" + BRANCH + b";rport;" + PROOF_PARAMETER + b"=" + PROOF + b"\r\n"
    b"Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKdef;received=192.0.2.9;rport=5070\r\n"
    b"From: <sip:a@example.com>;tag=1\r\nTo: <sip:bob@example.com>\r\nCall-ID: c\r\nCSeq: 1 INVITE\r\n\r\n"
)
VIAS = [
    b"SIP/2.0/TCP [2001:db8::1];branch=z9hG4bKx",
    b"SIP/2.0/WS a.invalid;branch=z9hG4bKx",
    b"SIP / 2.0 / UDP 192.0.2.1 : 99999;rport",
    b";rport=-1;received=::1",
    b";rport=00000",
    b";" + PROOF_PARAMETER + b"=" + PROOF,
]


def sibling(data: bytes) -> None:
    """Only a proof of ours shows a worker, and only from this machine; where it had the request from is an address."""
    chance = Choices(data)
    spoiled = FROM_WORKER
    for _ in range(chance.number(6)):
        spoiled = spoil(chance, spoiled, [*PIECES, *VIAS], VIAS)
    try:
        message = Message.parse(spoiled)
    except ProtocolError:
        return
    here, elsewhere = (Hop(Transport.UDP, Address(host, 5061)) for host in ("127.0.0.1", "192.0.2.1"))
    require(not SIBLINGS.is_from(message, elsewhere), "a worker on another machine", spoiled)
    if SIBLINGS.is_from(message, here):
        require(message.via.parameters[b"branch"] == BRANCH, "believed with another branch", spoiled)
        require(message.via.parameters[PROOF_PARAMETER] == PROOF, "believed without proof", spoiled)
    found = origin(message)
    require(found is None or 0 <= found.address.port < 65536, "no port", found)


TARGETS = [
    Target("workers", mesh, test_inputs=30),
    Target("sibling", sibling, test_inputs=1000),
]
