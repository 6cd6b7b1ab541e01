"""Two and three edges as workers of one gateway, joined by hand (T3): what is forwarded, to whom, and what never is.

They meet at a PBX that does not record-route: rules W1, W2, D1, D3, D4, B1, N6, R5.
"""

from __future__ import annotations

import pytest

from tests.edge_world import (
    BOB,
    CONTACT,
    PBX,
    PUBLIC,
    World,
    backend_request,
    register,
    request,
    response,
    routes_of,
)
from wsgate.addr import Address, Hop, Transport
from wsgate.metrics import Counters
from wsgate.registrations import Registration
from wsgate.sharing import Sharing
from wsgate.sip.flow import Flow
from wsgate.sip.message import Message

ALICE = "sip:alice@abc.invalid;transport=ws"
CALLEE = "sip:bob@def.invalid;transport=ws"


class Crew:
    """Workers, and the wires between them. `hops` counts what passed from one to another."""

    def __init__(self, count: int = 2, **settings: object) -> None:
        self.worlds = [
            World(worker=number, workers=count, first_number=1 + number * 10**9, **settings)  # type: ignore[arg-type]
            for number in range(count)
        ]
        self.sharing = [self._share(number, world) for number, world in enumerate(self.worlds)]
        self.hops = 0

    def _share(self, number: int, world: World) -> Sharing:
        return Sharing(
            number,
            [other for other in range(len(self.worlds)) if other != number],
            world.directory,
            Counters(),
            hand_over=world.edge.continuity.hand_over,
            take_dialog=world.edge.continuity.take_over,
            end_dialog=world.edge.continuity.ended_elsewhere,
            lost=world.edge.continuity.lost_elsewhere,
        )

    def restart(self, number: int) -> World:
        """A worker is killed and another one takes its place, with nothing but what the others tell."""
        count = len(self.worlds)
        world = self.worlds[number] = World(worker=number, workers=count, first_number=5 * 10**9)
        world.now = self.worlds[1 - min(number, 1)].now
        self.sharing[number] = self._share(number, world)
        self.sharing[number].hello()
        self.settle()
        return world

    def settle(self) -> None:
        """Deliver what they send and tell each other until nothing is under way."""
        busy = True
        while busy:
            busy = False
            for number, world in enumerate(self.worlds):
                busy |= self._tell(number, world) or self._forward(number, world)

    def _tell(self, number: int, world: World) -> bool:
        told = False
        self.sharing[number].tell_changes(world.now)
        self.sharing[number].tell_ended(world.edge.continuity.ended_here())
        for other, receiver in enumerate(self.sharing):
            while other != number and (data := self.sharing[number].next_message(other, world.now)) is not None:
                receiver.take(data, world.now)
                told = True
        return told

    def _forward(self, number: int, world: World) -> bool:
        gates = world.gates
        between = [entry for entry in world.sent if entry[0].address in gates]
        world.sent = [entry for entry in world.sent if entry[0].address not in gates]
        for hop, data in between:
            self.hops += 1
            assert self.hops < 500, "messages go round"
            receiver = self.worlds[gates.index(hop.address)]
            receiver.apply(receiver.edge.from_backend(Hop(Transport.UDP, gates[number]), data, receiver.now))
        return bool(between)

    def move(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            for world in self.worlds:
                world.move(1.0)
            self.settle()


class Call:
    """Alice at worker 0 calls bob at worker 1 through a PBX that stays out of the dialog; it is up."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        first, second = crew.worlds[:2]
        self.alice, self.bob = first.browser(), second.browser("203.0.113.6")
        register(first, self.alice)
        contact = f"Contact: <{CALLEE}>;expires=600"
        self.path = header(register(second, self.bob, contact, user="bob"), b"path")
        crew.settle()
        first.from_browser(self.alice, request("INVITE", "sip:bob@example.com", CONTACT))
        out = first.one(PBX)
        first.take(self.alice)
        second.from_backend(forwarded(out, CALLEE, self.path))
        second.take(PBX)  # 100
        self.invite = second.one(self.bob)
        second.from_browser(self.bob, response(self.invite, 200, "OK", f"Contact: <{CALLEE}>", to_tag="b1"))
        back = second.one(PBX)
        first.from_backend(without_top_via(back))
        self.routes_of_alice = routes_of(first.one(self.alice), is_caller=True)
        self.routes_of_bob = routes_of(self.invite, is_caller=False)

    def of_alice(self, method: str = "BYE", number: int = 2) -> bytes:
        to = "<sip:bob@example.com>;tag=b1"
        return request(method, CALLEE, f"Route: {self.routes_of_alice}", to=to, cseq=str(number))

    def of_bob(self, method: str = "BYE", number: int = 1) -> bytes:
        names = {"from": "<sip:bob@example.com>;tag=b1", "to": "<sip:alice@example.com>;tag=a1"}
        return request(method, ALICE, f"Route: {self.routes_of_bob}", cseq=str(number), **names)

    def reconnect_alice(self, worker: int) -> Flow:
        """Alice's connection is gone; she registers at another worker."""
        self.lose_alice()
        world = self.crew.worlds[worker]
        flow = world.browser()
        register(world, flow, call_id="again")
        self.crew.settle()
        return flow

    def lose_alice(self) -> None:
        world = self.crew.worlds[0]
        world.apply(world.edge.flow_closed(self.alice.id, world.now))
        self.crew.settle()


def header(message: Message, name: bytes) -> str:
    return (message.header(name) or b"").decode()


def forwarded(message: Message, uri: str, path: str) -> bytes:
    """What the PBX makes of an INVITE for a registered user: its Via, the Contact as Request-URI, the Path as Route."""
    data = message.data.replace(message.uri, uri.encode(), 1)
    via = b"\r\nVia: SIP/2.0/UDP 198.51.100.7:5060;branch=z9hG4bKpbx\r\nRoute: " + path.encode() + b"\r\n"
    return data.replace(b"\r\n", via, 1)


def without_top_via(message: Message) -> bytes:
    """What the PBX passes back."""
    start = message.data.index(b"Via:")
    return message.data[:start] + message.data[message.data.index(b"\r\n", start) + 2 :]


@pytest.fixture
def crew() -> Crew:
    return Crew()


def test_each_browser_reaches_the_other_by_the_worker_that_has_it(crew: Crew):
    """W1, W2, V1: four Record-Routes, each pair with its own worker's port."""
    call = Call(crew)
    places = [part.partition("@")[2].partition(";")[0] for part in call.routes_of_alice.split(", ")]
    assert places == ["gate.example.org:443", "192.0.2.1:5060", "192.0.2.1:5160", "gate.example.org:443"]
    for sender, data, receiver in ((0, call.of_alice("INFO"), call.bob), (1, call.of_bob("INFO"), call.alice)):
        flow = call.alice if sender == 0 else call.bob
        crew.worlds[sender].from_browser(flow, data)
        crew.settle()
        arrived = crew.worlds[1 - sender].one(receiver)
        assert arrived.header(b"route") is None
        assert arrived.header(b"max-forwards") == b"68"
        crew.worlds[1 - sender].from_browser(receiver, response(arrived, 200, "OK"))
        crew.settle()
        assert crew.worlds[sender].one(flow).status == 200


def test_the_bye_ends_the_dialog_at_both_workers(crew: Crew):
    call = Call(crew)
    assert [world.edge.counts()["dialogs"] for world in crew.worlds] == [1, 1]
    crew.worlds[1].from_browser(call.bob, call.of_bob())
    crew.settle()
    crew.worlds[0].from_browser(call.alice, response(crew.worlds[0].one(call.alice), 200, "OK"))
    crew.settle()
    assert crew.worlds[1].one(call.bob).status == 200
    assert [world.edge.counts()["dialogs"] for world in crew.worlds] == [0, 0]


def test_another_workers_token_opens_nothing_outside_a_dialog_and_nobody_elses_dialog(crew: Crew):
    """W2, D1, N4: 403 without To tag, 481 in an unknown dialog, 403 for who is no party; nothing leaves."""
    call = Call(crew)
    mallory = crew.worlds[0].browser("203.0.113.66")
    to_bob = f"Route: <sip:gate.example.org;transport=ws;lr>, <sip:{call.bob.token.decode()}@192.0.2.1:5160;lr>"
    known = {"to": "<sip:bob@example.com>;tag=b1", "from": "<sip:alice@example.com>;tag=a1"}
    unknown = known | {"call_id": "unknown@test"}
    for fields, status in (({}, 403), (unknown, 481), (known, 403)):
        crew.worlds[0].from_browser(mallory, request("INFO", CALLEE, to_bob, **fields))
        crew.settle()
        assert crew.worlds[0].one(mallory).status == status
    assert crew.hops == 0
    assert crew.worlds[1].take(call.bob) == []


def test_the_backend_side_of_another_worker_is_no_target(crew: Crew):
    """D1, N4: its port is ours; without a token nothing is sent there."""
    world = crew.worlds[0]
    flow = world.browser()
    for uri in ("sip:192.0.2.1:5160", "sip:bob@192.0.2.1:5160"):
        world.from_browser(flow, request("INFO", uri, "Route: <sip:192.0.2.1:5160;lr>"))
    assert [message.status for message in world.take(flow)] == [403, 403]
    assert world.sent == []


@pytest.mark.parametrize("place", [1, 2])
def test_a_client_at_another_worker_has_its_dialogs(place: int):
    """D3, T3: at the worker of the other party, and at a third one; both ways, to the end."""
    crew = Crew(3)
    call = Call(crew)
    flow = call.reconnect_alice(place)
    crew.worlds[1].from_browser(call.bob, call.of_bob("INFO"))
    crew.settle()
    arrived = crew.worlds[place].one(flow)
    assert arrived.method == b"INFO"
    crew.worlds[place].from_browser(flow, response(arrived, 200, "OK"))
    crew.settle()
    assert crew.worlds[1].one(call.bob).status == 200
    crew.worlds[place].from_browser(flow, call.of_alice())
    crew.settle()
    arrived = crew.worlds[1].one(call.bob)
    crew.worlds[1].from_browser(call.bob, response(arrived, 200, "OK"))
    crew.settle()
    assert crew.worlds[place].one(flow).status == 200
    assert [world.edge.counts()["dialogs"] for world in crew.worlds] == [0, 0, 0]


def test_a_token_that_the_arriving_flow_inherits_is_never_forwarded():
    """T3, D3: a request for a backend with the old token in its Route leaves by the new worker, not by the old one."""
    crew = Crew(2)
    call = Call(crew)
    flow = call.reconnect_alice(1)
    own = ", ".join(call.routes_of_alice.split(", ")[:2])
    to = "<sip:pbx@example.com>;tag=p"
    crew.worlds[1].from_browser(flow, request("INFO", "sip:pbx@198.51.100.7", f"Route: {own}", to=to))
    crew.settle()
    assert crew.worlds[1].one(PBX).header(b"route") is None
    assert crew.hops == 0


def test_without_rebind_no_dialog_moves():
    """`flow_rebind = off`: the old token is gone, at every worker."""
    crew = Crew(2, flow_rebind=False)
    call = Call(crew)
    call.reconnect_alice(1)
    crew.worlds[1].from_browser(call.bob, call.of_bob("INFO"))
    crew.settle()
    assert crew.worlds[1].one(call.bob).status == 480


def test_who_vanished_for_good_is_hung_up_across_workers(crew: Crew):
    """D4: the worker that lost the browser tells the other party, and once."""
    call = Call(crew)
    call.lose_alice()
    crew.move(59)
    assert crew.worlds[1].take(call.bob) == []
    crew.move(3)
    bye = crew.worlds[1].one(call.bob)
    assert bye.method == b"BYE"
    assert b"browser is gone" in (bye.header(b"reason") or b"")
    crew.worlds[1].from_browser(call.bob, response(bye, 200, "OK"))
    crew.settle()
    assert [world.edge.counts()["dialogs"] for world in crew.worlds] == [0, 0]


def test_who_came_back_elsewhere_is_not_hung_up_until_gone_from_there():
    """D4: the worker that a client left watches its calls no longer; the one where it is does."""
    crew = Crew(3)
    call = Call(crew)
    flow = call.reconnect_alice(2)
    crew.move(120)
    assert crew.worlds[1].take(call.bob) == []
    world = crew.worlds[2]
    world.apply(world.edge.flow_closed(flow.id, world.now))
    crew.move(62)
    assert crew.worlds[1].one(call.bob).method == b"BYE"


def test_who_comes_back_elsewhere_after_the_registration_ran_out_has_its_call():
    """D3, D4: the dialog moves all the same, and nobody hangs up."""
    crew = Crew(3)
    call = Call(crew)
    world = crew.worlds[0]
    crew.move(570)
    world.apply(world.edge.flow_closed(call.alice.id, world.now))
    crew.move(40)
    assert [one.edge.counts()["registrations"] for one in crew.worlds] == [0, 0, 0]
    flow = call.reconnect_alice(2)
    crew.move(60)
    assert crew.worlds[1].take(call.bob) == []
    crew.worlds[2].from_browser(flow, call.of_alice())
    crew.settle()
    assert crew.worlds[1].one(call.bob).method == b"BYE"


def test_the_party_that_stayed_is_still_watched_by_its_worker():
    """D4: alice moved away from worker 0; bob, who is at worker 1, vanishes: she hears of it where she is."""
    crew = Crew(3)
    call = Call(crew)
    flow = call.reconnect_alice(2)
    world = crew.worlds[1]
    world.apply(world.edge.flow_closed(call.bob.id, world.now))
    crew.move(62)
    assert crew.worlds[2].one(flow).method == b"BYE"


def test_who_lost_a_worker_and_stays_away_is_hung_up_by_the_other_one(crew: Crew):
    """D4: the dead worker can tell nobody; that of the other party does, after the grace."""
    call = Call(crew)
    crew.restart(1)
    crew.move(59)
    assert crew.worlds[0].take(call.alice) == []
    crew.move(3)
    bye = crew.worlds[0].one(call.alice)
    assert bye.method == b"BYE"
    crew.worlds[0].from_browser(call.alice, response(bye, 200, "OK"))
    assert crew.worlds[0].edge.counts()["dialogs"] == 0


@pytest.mark.parametrize("place", [1, 2])
def test_who_lost_a_worker_and_comes_back_has_its_call(place: int):
    """D3: at the worker that was started again, or at another one; the other party's worker hands the dialog over."""
    crew = Crew(3)
    call = Call(crew)
    crew.restart(1)
    world = crew.worlds[place]
    flow = world.browser("203.0.113.6")
    register(world, flow, f"Contact: <{CALLEE}>;expires=600", user="bob", call_id="again")
    crew.settle()
    crew.worlds[0].from_browser(call.alice, call.of_alice("INFO"))
    crew.settle()
    arrived = world.one(flow)
    world.from_browser(flow, response(arrived, 200, "OK"))
    crew.settle()
    assert crew.worlds[0].one(call.alice).status == 200
    world.from_browser(flow, call.of_bob())
    crew.settle()
    bye = crew.worlds[0].one(call.alice)
    assert bye.method == b"BYE"
    crew.worlds[0].from_browser(call.alice, response(bye, 200, "OK"))
    crew.settle()
    assert world.one(flow).status == 200
    crew.move(120)
    assert crew.worlds[0].take(call.alice) == []
    assert [one.edge.counts()["dialogs"] for one in crew.worlds] == [0, 0, 0]


def test_workers_that_disagree_end_it_soon(crew: Crew):
    """T3: each believes that the client is at the other one; the loop hash ends what goes round."""
    old, left, right = b"old-flow", b"flow-lft", b"flow-rgt"
    for world, other, flows in zip(crew.worlds, (1, 0), ((old, left, right), (old, right, left)), strict=True):
        world.directory.learn_flow(flows[-1], other)
        registration = Registration(b"alice@example.com", b"", 0, ALICE.encode(), flows[-1], 5000.0)
        assert world.directory.learn_registration(registration, flows, 1.0, world.now)
    token = crew.worlds[0].tokens.make(old).decode()
    tag = "<sip:alice@example.com>;tag=x"
    crew.worlds[0].from_backend(backend_request("INFO", ALICE, f"Route: <sip:{token}@192.0.2.1:5060;lr>", to=tag))
    crew.settle()
    assert 2 <= crew.hops <= 10
    assert crew.worlds[0].one(PBX).status == 482


def test_only_a_worker_shows_the_proof():
    """T3, N6: a program on this machine is a stranger, whatever it writes into its Via."""
    crew = Crew(2)
    world = crew.worlds[0]
    flow = world.browser()
    path = header(register(world, flow), b"path")
    source = Hop(Transport.UDP, Address("192.0.2.1", 5160))
    for proof in ("", ";wsg-worker", ";wsg-worker=" + "0" * 32):
        via = f"SIP/2.0/UDP 192.0.2.1:5160;branch=z9hG4bKx{len(proof)};rport{proof}"
        data = request("MESSAGE", ALICE, f"Route: {path}", via=via, call_id=f"c{len(proof)}")
        world.apply(world.edge.from_backend(source, data, world.now))
    assert world.take(flow) == []
    assert world.counters.values["sip_requests_of_strangers"] == 3


def test_a_rewritten_contact_names_the_first_worker_and_leads_to_the_flow():
    """R5: found at once by the worker that has it, forwarded by the first one."""
    crew = Crew(2)
    first, second = crew.worlds
    flow = second.browser()
    register(second, flow)
    crew.settle()
    handle = second.tokens.handle(b"alice@example.com", ALICE.encode()).decode()
    uri = f"sip:alice@192.0.2.1:5060;transport=udp;wsg={handle}"
    assert second.names.of_first_worker(second.gates[1]) == first.gates[0]
    first.from_backend(backend_request("MESSAGE", uri))
    crew.settle()
    arrived = second.one(flow)
    assert arrived.uri == ALICE.encode()
    second.from_browser(flow, response(arrived, 200, "OK"))
    crew.settle()
    assert first.one(PBX).status == 200


def test_a_worker_that_only_passes_a_call_on_keeps_nothing_of_it(crew: Crew):
    """T3: the dialog is the owner's; no Record-Route of the other."""
    first, second = crew.worlds
    flow = first.browser()
    path = header(register(first, flow), b"path")
    second.from_backend(backend_request("INVITE", ALICE, f"Route: {path}", BOB))
    crew.settle()
    invite = first.one(flow)
    assert len(invite.values(b"record-route")) == 2
    first.from_browser(flow, response(invite, 200, "OK", CONTACT, to_tag="a9"))
    crew.settle()
    assert [world.edge.counts()["dialogs"] for world in crew.worlds] == [1, 0]
    assert [message.status for message in second.take(PBX)] == [100, 200]


def test_a_forged_token_at_another_workers_address_is_403(crew: Crew):
    """B1: also where it was sent to the wrong port."""
    token = crew.worlds[1].tokens.make(b"12345678")[:-3].decode() + "AAA"
    crew.worlds[0].from_backend(backend_request("MESSAGE", ALICE, f"Route: <sip:{token}@192.0.2.1:5160;lr>"))
    assert crew.worlds[0].one(PBX).status == 403


def test_a_token_of_a_worker_that_is_no_more_is_of_a_flow_that_is_gone(crew: Crew):
    """T2: started again with fewer workers."""
    token = crew.worlds[0].tokens.make(b"12345678", 9).decode()
    crew.worlds[0].from_backend(backend_request("MESSAGE", ALICE, f"Route: <sip:{token}@192.0.2.1:5060;lr>"))
    assert crew.worlds[0].one(PBX).status == 480


def test_public_is_the_same_for_all(crew: Crew):
    assert {world.names.public for world in crew.worlds} == {PUBLIC}
