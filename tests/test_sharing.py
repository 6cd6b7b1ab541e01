"""What workers tell each other: registrations, bindings, flows that went, dialogs. Bounded, the later one wins (T3)."""

from __future__ import annotations

import json

import pytest

from wsgate.addr import Address, Hop, Transport
from wsgate.bindings import Binding
from wsgate.call_peers import CallPeers
from wsgate.directory import Directory
from wsgate.metrics import Counters
from wsgate.registrations import Registration
from wsgate.sharing import MAX_MESSAGE_BYTES, MAX_WAITING, Sharing

AOR = b"alice@example.com"
INSTANCE = b"<urn:uuid:1>"
CONTACT = b"sip:alice\xe9@d4.invalid;transport=ws"
ONE, TWO, THREE = b"flow-one", b"flow-two", b"flow-3.."


class Worker:
    """One worker's directory and its side of the channel. `dialogs` are those that it holds, by flow."""

    def __init__(self, number: int, workers: int = 3) -> None:
        self.number = number
        self.directory = Directory(60.0)
        self.counters = Counters()
        self.peers = CallPeers()
        self.dialogs: dict[bytes, list[object]] = {}
        self.taken: list[object] = []
        self.ended: list[object] = []
        self.lost: set[bytes] = set()
        self.sharing = Sharing(
            number,
            [other for other in range(workers) if other != number],
            self.directory,
            self.counters,
            hand_over=lambda flows: [dialog for flow in flows for dialog in self.dialogs.pop(flow, [])],
            take_dialog=lambda value, now: self.taken.append(value),
            end_dialog=self.ended.append,
            lost=lambda flows, now: self.lost.update(flows),
            call_peers=self.peers,
        )

    def register(self, flow: bytes, now: float, *, expires_at: float = 600.0, **changes: object) -> bool:
        registration = Registration(AOR, INSTANCE, 1, CONTACT, flow, expires_at, b"handle")
        return self.directory.remember(registration._replace(**changes), now)

    def bind(self, now: float, *bindings: Binding) -> None:
        assert self.directory.replace_bindings(AOR, bindings, now)

    def heir(self, flow: bytes) -> bytes | None:
        return self.directory.heir(flow)


def binding(flow: bytes, contact: bytes = CONTACT, *, registered_at: float = 0.0, reg_id: int = 0) -> Binding:
    instance = INSTANCE if reg_id else b""
    return Binding(
        AOR, contact, b";x=1", instance, reg_id, (b"<sip:p;lr>",), flow, None, b"call", 1, 600.0, registered_at
    )


def crew(count: int = 3) -> list[Worker]:
    return [Worker(number, count) for number in range(count)]


def exchange(workers: list[Worker], now: float) -> int:
    """Move every message; returns how many."""
    moved = 0
    for sender in workers:
        sender.sharing.tell_changes(now)
        for receiver in workers:
            while receiver is not sender and (data := sender.sharing.next_message(receiver.number, now)) is not None:
                receiver.sharing.take(data, now)
                moved += 1
    if moved:
        exchange(workers, now)
    return moved


def test_a_registration_is_known_everywhere_with_its_handle_and_id():
    """R4, R5, A5."""
    workers = crew()
    workers[1].directory.flow_opened(ONE)
    assert workers[1].register(ONE, 1.0)
    exchange(workers, 1.0)
    registration = Registration(AOR, INSTANCE, 1, CONTACT, ONE, 600.0, b"handle")
    for worker in workers:
        assert worker.directory.behind(b"handle") == registration
        assert worker.directory.is_registered(registration.id, 2.0)
        assert worker.directory.has_flow(ONE)
    assert [worker.directory.worker_of(ONE) for worker in workers] == [1, None, 1]


def test_a_client_that_comes_back_elsewhere_inherits_at_every_worker():
    """D3: and whoever missed the first of both has the older flow from those who know it."""
    workers = crew()
    workers[0].directory.flow_opened(ONE)
    workers[0].register(ONE, 1.0)
    exchange(workers[:2], 1.0)
    workers[0].sharing.next_message(2, 1.0)  # lost
    workers[0].directory.flow_closed(ONE, 2.0)
    workers[1].directory.flow_opened(TWO)
    workers[1].register(TWO, 3.0)
    exchange(workers, 3.0)
    assert [worker.heir(ONE) for worker in workers] == [TWO, TWO, TWO]
    assert workers[2].directory.worker_of(TWO) == 1
    assert all(worker.directory.superseded(ONE, TWO) for worker in workers)


def test_the_later_registration_wins_whatever_comes_last():
    workers = crew(2)
    for worker, flow in zip(workers, (ONE, TWO), strict=True):
        worker.directory.flow_opened(flow)
    workers[0].register(ONE, 5.0)
    workers[1].register(TWO, 4.0)
    exchange(workers, 6.0)
    assert [worker.directory.newest_flow(AOR, INSTANCE, 1, CONTACT) for worker in workers] == [ONE, ONE]


def test_a_registration_that_comes_too_late_leaves_no_flow_behind():
    workers = crew(2)
    for worker, flow in zip(workers, (ONE, TWO), strict=True):
        worker.directory.flow_opened(flow)
    workers[0].register(ONE, 5.0)
    workers[1].register(TWO, 4.0)
    exchange(workers, 6.0)
    assert not workers[0].directory.has_flow(TWO)
    workers[1].directory.flow_opened(THREE)
    workers[1].register(THREE, 7.0, expires_at=8.0, aor=b"bob@example.com")
    workers[1].sharing.tell_changes(7.0)
    message = workers[1].sharing.next_message(0, 7.0)
    assert message is not None
    workers[0].sharing.take(message, 9.0)
    assert not workers[0].directory.has_flow(THREE)


def test_what_a_restart_restored_is_older_than_what_the_others_know():
    workers = crew(2)
    workers[0].directory.flow_opened(TWO)
    workers[0].register(TWO, 5.0)
    workers[1].directory.restore(Registration(AOR, INSTANCE, 1, CONTACT, ONE, 600.0), 50.0)
    for worker in workers:
        worker.sharing.hello()
    exchange(workers, 51.0)
    assert [worker.directory.newest_flow(AOR, INSTANCE, 1, CONTACT) for worker in workers] == [TWO, TWO]
    assert workers[1].heir(ONE) == TWO


def test_what_is_taken_back_is_taken_back_everywhere():
    workers = crew()
    workers[0].directory.flow_opened(ONE)
    workers[0].register(ONE, 1.0)
    workers[0].bind(1.0, binding(ONE))
    exchange(workers, 1.0)
    workers[2].directory.forget(AOR, INSTANCE, 1, CONTACT, 2.0)
    workers[2].bind(2.0)
    exchange(workers, 2.0)
    for worker in workers:
        assert worker.directory.counts()["registrations"] == 0
        assert worker.directory.bindings(AOR) == ()


def test_two_instances_that_register_at_two_workers_at_once_are_both_bound():
    """G2: what is told is one Contact, never all of an AOR."""
    workers = crew()
    for worker, flow in zip(workers, (ONE, TWO), strict=False):
        worker.directory.flow_opened(flow)
    first = binding(ONE, b"sip:a@one.invalid", registered_at=1.0)
    second = binding(TWO, b"sip:b@two.invalid", registered_at=1.0, reg_id=1)
    workers[0].bind(1.0, first)
    workers[1].bind(1.0, second)
    exchange(workers, 1.0)
    for worker in workers:
        assert set(worker.directory.bindings(AOR)) == {first, second}
    refreshed = second._replace(flow=THREE, contact=b"sip:c@three.invalid", registered_at=2.0)
    workers[2].directory.flow_opened(THREE)
    workers[2].bind(2.0, first, refreshed)
    exchange(workers, 2.0)
    for worker in workers:
        assert set(worker.directory.bindings(AOR)) == {first, refreshed}


def test_a_phone_is_bound_with_its_source():
    """G5."""
    workers = crew(2)
    source = Hop(Transport.UDP, Address("10.1.0.7", 5060))
    workers[0].bind(1.0, binding(b"")._replace(source=source))
    exchange(workers, 1.0)
    assert workers[1].directory.has_source(source)


def test_a_flow_that_went_is_gone_everywhere_and_its_binding_after_the_grace():
    """G2, B1."""
    workers = crew()
    workers[0].directory.flow_opened(ONE)
    workers[0].bind(1.0, binding(ONE))
    exchange(workers, 1.0)
    workers[0].directory.flow_closed(ONE, 10.0)
    exchange(workers, 10.0)
    for worker in workers:
        assert not worker.directory.has_flow(ONE)
        assert worker.directory.gone_since(ONE) == 10.0
        worker.directory.handle_timer(71.0)
        assert worker.directory.bindings(AOR) == ()
    assert exchange(workers, 72.0) == 0, "each worker's own clock says so"


def test_a_worker_that_begins_learns_all_and_its_own_earlier_life_is_over():
    workers = crew()
    for worker, flow in zip(workers, (ONE, TWO, THREE), strict=True):
        worker.directory.flow_opened(flow)
        worker.register(flow, 1.0, instance=b"<%d>" % worker.number)
        worker.bind(1.0, *worker.directory.bindings(AOR), binding(flow, b"sip:%d@x" % worker.number))
        exchange(workers, 1.0)
    workers[1] = Worker(1)
    workers[1].sharing.hello()
    exchange(workers, 5.0)
    assert workers[1].directory.counts()["registrations"] == 3
    assert len(workers[1].directory.bindings(AOR)) == 3
    for worker in workers:
        assert [worker.directory.has_flow(flow) for flow in (ONE, TWO, THREE)] == [True, False, True]
        assert worker.directory.gone_since(TWO) is not None
    assert [worker.lost for worker in workers] == [{TWO}, set(), {TWO}]


def test_the_dialogs_of_a_client_go_with_it_once():
    """D3."""
    workers = crew()
    workers[0].directory.flow_opened(ONE)
    workers[0].register(ONE, 1.0)
    exchange(workers, 1.0)
    workers[0].dialogs[ONE] = [["call"]]
    workers[2].directory.flow_opened(TWO)
    for now in (2.0, 3.0):
        workers[2].register(TWO, now)
        exchange(workers, now)
    assert [worker.taken for worker in workers] == [[], [], [["call"]]]
    workers[2].sharing.tell_ended([["call-id", "a", "b"]])
    exchange(workers, 4.0)
    assert [worker.ended for worker in workers] == [[["call-id", "a", "b"]]] * 2 + [[]]


def test_what_calls_allow_counts_at_every_worker_until_they_end():
    """P6: the TURN client may be at another worker than its WebSocket."""
    workers = crew(2)
    peer, other = Address("203.0.113.9", 4000), Address("203.0.113.10", 4002)
    workers[0].peers.open("id", [peer, other])
    exchange(workers, 1.0)
    assert workers[1].peers.allows("id", *peer)
    workers[1].peers.open("id", [peer])
    exchange(workers, 1.5)
    workers[0].peers.close("id", [peer, other])
    exchange(workers, 2.0)
    assert [worker.peers.allows("id", *peer) for worker in workers] == [True, True], "a call of worker 1 has it still"
    assert [worker.peers.allows("id", *other) for worker in workers] == [False, False]
    assert workers[1].peers.take_narrowed() == {"id"}
    workers[1] = Worker(1, 2)
    workers[1].sharing.hello()
    exchange(workers, 3.0)
    assert [worker.peers.allows("id", *peer) for worker in workers] == [False, False]


def test_a_worker_that_does_not_read_costs_a_bounded_queue_and_the_oldest_news():
    workers = crew()
    workers[0].directory.flow_opened(ONE)
    for number in range(MAX_WAITING + 7):
        workers[0].bind(1.0, binding(ONE, b"sip:%d@x" % number))
        workers[0].sharing.tell_changes(1.0)
    assert workers[0].counters.values["directory_messages_dropped"] > 0
    waiting = 0
    while workers[0].sharing.next_message(1, 1.0) is not None:
        waiting += 1
    assert waiting == MAX_WAITING


def test_what_could_not_be_sent_is_the_next_again():
    workers = crew(2)
    workers[0].directory.flow_opened(ONE)
    workers[0].register(ONE, 1.0)
    workers[0].bind(1.0, binding(ONE))
    workers[0].sharing.tell_changes(1.0)
    first = workers[0].sharing.next_message(1, 1.0)
    assert first is not None
    workers[0].sharing.put_back(1, first)
    assert workers[0].sharing.next_message(1, 1.0) == first
    second = workers[0].sharing.next_message(1, 1.0)
    assert second is not None
    assert json.loads(second)[0] == "binding"


def test_what_is_too_large_is_not_told():
    workers = crew(2)
    workers[0].directory.flow_opened(ONE)
    workers[0].bind(1.0, binding(ONE, b"sip:" + b"x" * MAX_MESSAGE_BYTES))
    assert exchange(workers, 1.0) == 0
    assert workers[0].counters.values["directory_messages_too_large"] == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b"[]",
        b'["hello"]',
        b'["hello",7]',
        b'["hello",0]',
        b'["nonsense",1]',
        b'["gone",1,"zz",0]',
        b'["gone",1]',
        b'["registration",1,null,{},[],0]',
        b'["registration",1,1,{"aor":1},["00"],0]',
        b'["binding",1,1,[]]',
        b'["taken_back",1,["a"],0]',
        b'["unbound",1,["a","b","c","d"],0]',
        b'["peers",1,"id",[["h"]]]',
        b'["unbound",1,["a","b",Infinity,"d"],0]',
        b'["gone",1,"00",1' + b"0" * 400 + b"]",
        b'["dialog",1,' + b"[" * 20000,
    ],
)
def test_a_message_that_cannot_be_read_is_counted_and_changes_nothing(data: bytes):
    worker = Worker(0)
    worker.sharing.take(data, 1.0)
    assert worker.counters.values["directory_messages_malformed"] == 1
    assert worker.counters.values["directory_messages_received"] == 0
    assert sum(worker.directory.counts().values()) == 0
