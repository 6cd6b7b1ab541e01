"""TCP allocations, pure (RFC 6062; rule C1): Connect, ConnectionAttempt, ConnectionBind, errors, times and ends."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from tests.test_peers import METADATA, REFUSED_HOSTS, embeddings
from tests.turn_world import PEER, RELAY, SECRET, UDP, Phone, World, code
from wsgate.addr import Address
from wsgate.call_peers import CallPeers
from wsgate.turn import stun
from wsgate.turn.auth import SecretHash, time_limited_password
from wsgate.turn.connections import (
    BIND_SECONDS,
    CONNECT_SECONDS,
    DEADLINES_STALE_MAX,
    TRANSITIONS,
    Event,
    State,
)
from wsgate.turn.effects import (
    Client,
    CloseConnection,
    CloseRelay,
    Effect,
    JoinConnection,
    OpenConnection,
    OpenRelays,
    PassStream,
    RelayAddress,
    Reply,
)
from wsgate.turn.peers import Peers
from wsgate.turn.settings import PeerPolicy
from wsgate.turn.stun import Method
from wsgate.turn.values import EvenPort, Family

TCP = stun.REQUESTED_TRANSPORT(6)
OTHER_PEER = Address("8.8.4.4", 80)


class StreamWorld(World):
    """Every client comes by a stream; relayed addresses of TCP are noted in `listening`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.is_stream = True
        self.listening: list[Address] = []

    def receive(self, data: bytes, client: Client) -> list[Effect]:
        effects = self.server.receive(data, client, self.now, is_stream=self.is_stream)
        for effect in effects:
            if isinstance(effect, OpenRelays) and effect.is_tcp:
                self.listening += effect.relays
        return self.settle(effects)


class StreamPhone(Phone):
    """A client on a stream of its own."""

    world: StreamWorld

    def __init__(self, world: StreamWorld, path: int = 7, user: str = "alice", password: str = "pw") -> None:
        super().__init__(world, user=user, password=password)
        self.client = Client(path, Address("192.0.2.1", 40000 + path))
        self.transaction = path << 32

    def listens(self) -> Address:
        """Allocate for TCP and return the relayed address."""
        relayed = self.ask(Method.ALLOCATE, TCP).get(stun.XOR_RELAYED_ADDRESS)
        assert relayed is not None
        assert relayed == self.world.listening[-1]
        return relayed

    def connect(self, peer: Address = PEER) -> int:
        """Send a Connect that is not answered yet; the number of the connection."""
        opened = self.unanswered(Method.CONNECT, stun.XOR_PEER_ADDRESS(peer))
        assert isinstance(opened, OpenConnection)
        assert (opened.relay, opened.peer) == (self.world.listening[-1], peer)
        return opened.connection

    def unanswered(self, method: Method, *fields: Any) -> Effect:
        """Send a request that is not answered yet; what it brings about."""
        login = (stun.USERNAME(self.user), stun.REALM("sixteen.char.rlm"), stun.NONCE(self.nonce))
        assert self.raw(method, *login, *fields, integrity=(stun.Integrity.SHA1, self.key)) is None
        [effect] = self.effects
        return effect

    def refused(self, method: Method, *fields: Any) -> int:
        """The error of a request that comes to nothing else."""
        answer = self.ask(method, *fields)
        assert self.effects == []
        return code(answer)

    def claim(self, number: int) -> stun.Message:
        """ConnectionBind."""
        return self.ask(Method.CONNECTION_BIND, stun.CONNECTION_ID(number))


def denied(host: str) -> tuple[ipaddress.IPv4Network]:
    return (ipaddress.IPv4Network(host),)


def answer_in(effects: list[Effect]) -> stun.Message:
    [reply] = effects
    assert isinstance(reply, Reply)
    return stun.parse(reply.data)


def established(world: StreamWorld, phone: StreamPhone, peer: Address = PEER) -> int:
    """A connection with a peer, whose CONNECTION-ID the client has."""
    number = phone.connect(peer)
    answer = answer_in(world.server.connected(number, world.now))
    assert answer.method == Method.CONNECT
    assert answer.get(stun.CONNECTION_ID) == number
    return number


@pytest.fixture
def world() -> StreamWorld:
    return StreamWorld()


@pytest.fixture
def phone(world: StreamWorld) -> StreamPhone:
    phone = StreamPhone(world)
    phone.listens()
    return phone


# Allocate (RFC 6062 §5.1)


def test_a_tcp_allocation_needs_a_stream() -> None:
    world = StreamWorld()
    world.is_stream = False
    assert StreamPhone(world).refused(Method.ALLOCATE, TCP) == 400
    world.is_stream = True
    assert code(StreamPhone(world, path=8).ask(Method.ALLOCATE, TCP)) == 0


@pytest.mark.parametrize(
    "field", [stun.DONT_FRAGMENT(True), stun.EVEN_PORT(EvenPort(True)), stun.RESERVATION_TOKEN(bytes(8))]
)
def test_what_only_udp_has_is_400(world: StreamWorld, field: Any) -> None:
    assert StreamPhone(world).refused(Method.ALLOCATE, TCP, field) == 400
    assert world.listening == []


def test_a_tcp_allocation_does_not_move() -> None:
    """RFC 8016, E4: 405 whether mobility is on or off."""
    for mobility in (True, False):
        phone = StreamPhone(StreamWorld(mobility=mobility))
        assert phone.refused(Method.ALLOCATE, TCP, stun.MOBILITY_TICKET(b"")) == 405


def test_channels_and_indications_are_not_for_tcp(world: StreamWorld, phone: StreamPhone) -> None:
    assert code(phone.permit(PEER)) == 0
    assert phone.refused(Method.CHANNEL_BIND, stun.CHANNEL_NUMBER(0x4000), stun.XOR_PEER_ADDRESS(PEER)) == 403
    assert phone.send(PEER, b"x") == []
    assert world.counters.values["turn_send_dropped"] == 1


# Connect (RFC 6062 §5.2)


def test_connect_opens_and_tells_the_connection_id(world: StreamWorld, phone: StreamPhone) -> None:
    first, second = established(world, phone), established(world, phone, OTHER_PEER)
    assert first != second
    assert 0 < first < 2**32


def test_connect_needs_a_tcp_allocation_of_this_user(world: StreamWorld) -> None:
    phone = StreamPhone(world)
    assert phone.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(PEER)) == 437
    phone.ask(Method.ALLOCATE, UDP)
    assert phone.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(PEER)) == 437
    other = StreamPhone(world, path=9)
    other.listens()
    other.user, other.key = "bob", StreamPhone(world, user="bob").key
    assert other.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(PEER)) == 441


def test_connect_to_what_may_not_be(world: StreamWorld, phone: StreamPhone) -> None:
    """Without a peer 400, of another family 443, refused by address or by port 403 (P5)."""
    assert phone.refused(Method.CONNECT) == 400
    assert phone.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(Address("2001:4860::8", 1))) == 443
    for host in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1"):
        assert phone.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(Address(host, 80))) == 403
    assert phone.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(Address(RELAY, 22))) == 403
    assert world.counters.values["turn_peers_refused"] == 6


def test_a_peer_that_cannot_be_reached_is_447_and_may_be_tried_again(world: StreamWorld, phone: StreamPhone) -> None:
    number = phone.connect()
    assert code(answer_in(world.server.connect_failed(number, world.now))) == 447
    assert world.server.connect_failed(number, world.now) == []
    established(world, phone)


def test_the_same_peer_twice_is_446(world: StreamWorld, phone: StreamPhone) -> None:
    """While it is being connected, while it waits and while it is joined."""
    number = phone.connect()
    assert phone.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(PEER)) == 446
    world.server.connected(number, world.now)
    assert phone.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(PEER)) == 446
    assert code(StreamPhone(world, path=8).claim(number)) == 0
    assert phone.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(PEER)) == 446
    world.server.connection_closed(number)
    established(world, phone)


def test_a_peer_has_thirty_seconds(world: StreamWorld, phone: StreamPhone) -> None:
    number = phone.connect()
    assert world.wait(CONNECT_SECONDS - 0.1) == []
    closed, *reply = world.wait(0.2)
    assert closed == CloseConnection(number)
    assert code(answer_in(reply)) == 447
    assert world.server.connected(number, world.now) == []
    assert world.server.connection_closed(number) is None


# Peers that connect (RFC 6062 §5.3)


def test_a_peer_with_permission_is_announced(world: StreamWorld, phone: StreamPhone) -> None:
    phone.permit(PEER)
    number, effects = world.server.accepted(phone.client, PEER, world.now)
    attempt = answer_in(effects)
    assert (attempt.method, attempt.message_class) == (Method.CONNECTION_ATTEMPT, stun.MessageClass.INDICATION)
    assert (attempt.get(stun.XOR_PEER_ADDRESS), attempt.get(stun.CONNECTION_ID)) == (PEER, number)
    assert code(StreamPhone(world, path=8).claim(number)) == 0


def test_a_peer_without_permission_is_not(world: StreamWorld, phone: StreamPhone) -> None:
    assert world.server.accepted(phone.client, PEER, world.now) == (0, [])
    phone.permit(PEER)
    world.wait(301)
    assert world.server.accepted(phone.client, PEER, world.now) == (0, [])
    assert world.server.accepted(Client(99, PEER), PEER, world.now) == (0, [])
    phone.permit(PEER)
    world.server.peers = Peers(own_hosts=[RELAY], relay_ports=(50000, 50999), deny=denied(PEER.host))
    assert world.server.accepted(phone.client, PEER, world.now) == (0, [])
    assert world.counters.values["turn_connections_refused"] == 4


# ConnectionBind (RFC 6062 §5.4)


def test_connection_bind_joins_the_stream(world: StreamWorld, phone: StreamPhone) -> None:
    number = established(world, phone)
    data = StreamPhone(world, path=8)
    assert code(data.claim(number)) == 0
    assert data.effects == [JoinConnection(number, data.client, "alice")]
    world.wait(BIND_SECONDS + 1)
    assert world.server.connection_closed(number) is None


def test_connection_bind_of_nothing_is_400(world: StreamWorld, phone: StreamPhone) -> None:
    """Without a number, with one that is not there, still connecting, bound already, or on the control stream."""
    data = StreamPhone(world, path=8)
    assert data.refused(Method.CONNECTION_BIND) == 400
    assert data.refused(Method.CONNECTION_BIND, stun.CONNECTION_ID(12345)) == 400
    number = phone.connect()
    assert data.refused(Method.CONNECTION_BIND, stun.CONNECTION_ID(number)) == 400
    world.server.connected(number, world.now)
    assert phone.refused(Method.CONNECTION_BIND, stun.CONNECTION_ID(number)) == 400
    world.is_stream = False
    assert data.refused(Method.CONNECTION_BIND, stun.CONNECTION_ID(number)) == 400
    world.is_stream = True
    assert code(data.claim(number)) == 0
    assert StreamPhone(world, path=9).refused(Method.CONNECTION_BIND, stun.CONNECTION_ID(number)) == 400


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_of_several_workers_the_owner_of_a_connection_gets_its_stream(worker: int) -> None:
    """Rule C1: the kernel spreads the streams of a client, RFC 6062 §5.4 knows nothing of that."""
    world = StreamWorld(share=(worker, 3))
    control = StreamPhone(world)
    control.listens()
    numbers = [established(world, control, Address("8.8.4.4", port)) for port in range(1, 21)]
    assert {number % 3 for number in numbers} == {worker}
    other = StreamWorld(share=((worker + 1) % 3, 3))
    data = StreamPhone(other, path=8)
    assert data.refused(Method.CONNECTION_BIND, stun.CONNECTION_ID(numbers[0] + 1)) == 400, "its own, and unknown"
    passed = data.unanswered(Method.CONNECTION_BIND, stun.CONNECTION_ID(numbers[0]))
    assert isinstance(passed, PassStream)
    assert (passed.worker, passed.client) == (worker, data.client)
    same = StreamPhone(world, path=8)
    [_, joined] = world.receive(passed.request, same.client)
    assert joined == JoinConnection(numbers[0], same.client, "alice"), "judged again there, with the same nonce"


def test_who_asks_is_judged_before_a_connection_id_that_cannot_be_read(world: StreamWorld, phone: StreamPhone) -> None:
    """Rule A1."""
    cut_short = stun.Attribute(stun.CONNECTION_ID.number, "CUT", lambda value, _: value, lambda value, _: value)
    data = StreamPhone(world, path=8)
    assert code(data.raw(Method.CONNECTION_BIND, cut_short(b"\0\0"))) == 401
    assert data.refused(Method.CONNECTION_BIND, cut_short(b"\0\0")) == 400
    data.key = b"wrong"
    assert data.refused(Method.CONNECTION_BIND, cut_short(b"\0\0")) == 401


def test_a_stream_is_passed_to_no_other_worker_without_authentication() -> None:
    """Rules A1, C1."""
    world = StreamWorld(share=(0, 2))
    phone = StreamPhone(world)
    assert code(phone.raw(Method.CONNECTION_BIND, stun.CONNECTION_ID(1))) == 401
    phone.key = b"wrong"
    assert phone.refused(Method.CONNECTION_BIND, stun.CONNECTION_ID(1)) == 401
    assert "turn_streams_passed" not in world.counters.values


def test_connection_bind_of_another_user_is_441(world: StreamWorld, phone: StreamPhone) -> None:
    number = established(world, phone)
    assert StreamPhone(world, path=8, user="bob").refused(Method.CONNECTION_BIND, stun.CONNECTION_ID(number)) == 441
    assert code(StreamPhone(world, path=9).claim(number)) == 0


def test_credentials_that_expired_claim_the_connections_of_their_allocation(world: StreamWorld) -> None:
    """Rules A4, C1: the stream is new, what it carries was begun in time."""
    name = f"{int(world.now) + 100}:phone7"
    login = {"user": name, "password": time_limited_password(SECRET, name, SecretHash.SHA1)}
    control, data = StreamPhone(world, **login), StreamPhone(world, path=8, **login)
    control.listens()
    world.now += 200
    number = established(world, control)
    assert data.refused(Method.CONNECTION_BIND, stun.CONNECTION_ID(number + 1)) == 401
    assert data.refused(Method.CONNECTION_BIND) == 401
    assert code(data.claim(number)) == 0
    assert data.effects == [JoinConnection(number, data.client, ":phone7")]


def test_a_client_has_thirty_seconds_to_claim(world: StreamWorld, phone: StreamPhone) -> None:
    number = established(world, phone)
    assert world.wait(BIND_SECONDS - 0.1) == []
    assert world.wait(0.2) == [CloseConnection(number)]
    assert StreamPhone(world, path=8).refused(Method.CONNECTION_BIND, stun.CONNECTION_ID(number)) == 400


# Ends and limits


def test_connections_end_with_their_allocation(world: StreamWorld, phone: StreamPhone) -> None:
    numbers = {phone.connect(), established(world, phone, OTHER_PEER)}
    phone.refresh(stun.LIFETIME(0))
    assert {effect.connection for effect in phone.effects if isinstance(effect, CloseConnection)} == numbers
    assert [type(effect) for effect in phone.effects] == [CloseConnection, CloseConnection, CloseRelay]
    assert world.open == set()
    assert world.wait(1000) == []
    again = StreamPhone(world, path=8)
    again.listens()
    number = established(world, again)
    effects = world.settle(world.server.client_closed(again.client, world.now))
    assert effects == [CloseConnection(number), CloseRelay(world.listening[-1])]


def test_an_allocation_has_so_many_connections(world: StreamWorld) -> None:
    """Rule Q1: further ones are 508, peers that connect are turned away."""
    world = StreamWorld(connections_per_allocation=2, total_connections=3)
    phone, other = StreamPhone(world), StreamPhone(world, path=9, user="bob")
    phone.listens()
    numbers = [established(world, phone, Address("8.8.8.8", port)) for port in (1, 2)]
    assert phone.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(PEER)) == 508
    phone.permit(PEER)
    assert world.server.accepted(phone.client, PEER, world.now) == (0, [])
    other.listens()
    established(world, other)
    assert other.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(OTHER_PEER)) == 508
    world.server.connection_closed(numbers[0])
    established(world, other, OTHER_PEER)


def test_a_user_has_so_many_connections(world: StreamWorld) -> None:
    """Rule Q1: over all allocations of the user."""
    world = StreamWorld(connections_per_user=2)
    first, second, bob = StreamPhone(world, path=7), StreamPhone(world, path=8), StreamPhone(world, path=9, user="bob")
    first.listens()
    number = established(world, first)
    second.listens()
    established(world, second)
    assert second.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(OTHER_PEER)) == 508
    second.permit(OTHER_PEER)
    assert world.server.accepted(second.client, OTHER_PEER, world.now) == (0, [])
    world.server.connection_closed(number)
    assert world.server.accepted(second.client, OTHER_PEER, world.now)[0] != 0
    bob.listens()
    established(world, bob)


def test_connects_come_at_a_bounded_rate() -> None:
    """Rule Q1: a relay is no port scanner."""
    world = StreamWorld(connects_per_second=3)
    phone, bob = StreamPhone(world), StreamPhone(world, path=9, user="bob")
    phone.listens()
    for port in (1, 2, 3):
        world.server.connect_failed(phone.connect(Address("8.8.8.8", port)), world.now)
    assert phone.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(PEER)) == 508
    assert world.counters.values["turn_connects_limited"] == 1
    bob.listens()
    bob.connect()
    world.now += 1
    world.listening.append(world.listening.pop(0))
    phone.connect()


def test_no_descriptor_is_508(world: StreamWorld, phone: StreamPhone) -> None:
    """Rule Q1."""
    number = phone.connect()
    assert code(answer_in(world.server.connect_failed(number, world.now, exhausted=True))) == 508


def test_a_waiting_connect_keeps_no_bytes_of_its_request(world: StreamWorld, phone: StreamPhone) -> None:
    """Up to 64 KiB could come with each."""
    kept = world.server._connections._connections[phone.connect()].request
    assert kept is not None
    assert (kept.message.size_bytes, kept.message.values) == (0, [])


def test_a_relayed_address_is_not_connected_with_itself(world: StreamWorld) -> None:
    phone = StreamPhone(world)
    relayed = phone.listens()
    assert phone.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(relayed)) == 403
    other = StreamPhone(world, path=8)
    inside = other.listens()
    world.listening.append(relayed)
    phone.connect(inside)


@pytest.mark.parametrize("host", [*REFUSED_HOSTS, *METADATA])
def test_no_refused_range_is_connected_to_in_any_notation(host: str) -> None:
    """Rule P5."""
    relays = (RelayAddress(RELAY, RELAY), RelayAddress("2600::9", "2600::9"))
    world = StreamWorld(relay_addresses=relays)
    phone = StreamPhone(world)
    assert code(phone.ask(Method.ALLOCATE, TCP, stun.ADDITIONAL_ADDRESS_FAMILY(Family.IPV6))) == 0
    notations = [host, *(embeddings(host) if ":" not in host else ())]
    assert {phone.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(Address(one, 80))) for one in notations} == {403}


def test_under_peer_policy_call_there_is_the_relay_range_alone_without_a_call() -> None:
    """Rule P6."""
    world = StreamWorld(calls=CallPeers(), peer_policy=PeerPolicy.CALL)
    phone, other = StreamPhone(world), StreamPhone(world, path=8)
    inside, _ = other.listens(), phone.listens()
    assert phone.refused(Method.CONNECT, stun.XOR_PEER_ADDRESS(PEER)) == 403
    phone.connect(inside)


def test_a_family_given_up_ends_its_connections() -> None:
    """RFC 8656 §8.2 for one of two families."""
    relays = (RelayAddress(RELAY, RELAY), RelayAddress("2600::9", "2600::9"))
    world = StreamWorld(relay_addresses=relays)
    phone = StreamPhone(world)
    phone.ask(Method.ALLOCATE, TCP, stun.ADDITIONAL_ADDRESS_FAMILY(Family.IPV6))
    six = phone.connect(Address("2600::1", 80))
    world.listening.reverse()
    phone.connect(PEER)
    assert code(phone.refresh(stun.LIFETIME(0), stun.REQUESTED_ADDRESS_FAMILY(Family.IPV6))) == 0
    closed = [effect for effect in phone.effects if isinstance(effect, CloseConnection)]
    assert closed == [CloseConnection(six)]


def test_new_lists_of_peers_end_connections(world: StreamWorld, phone: StreamPhone) -> None:
    """Rules P5, P6."""
    first, second = established(world, phone), established(world, phone, OTHER_PEER)
    assert code(StreamPhone(world, path=8).claim(second)) == 0
    world.server.peers = Peers(own_hosts=[RELAY], relay_ports=(50000, 50999), deny=denied(OTHER_PEER.host))
    assert world.server.reconsider() == [CloseConnection(second)]
    assert code(StreamPhone(world, path=10).claim(first)) == 0


def test_every_state_can_be_left() -> None:
    """The table: what is closed stays closed."""
    assert {state for state, _ in TRANSITIONS} == set(State) - {State.CLOSED}
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_peers_that_come_and_go_leave_no_deadlines(world: StreamWorld, phone: StreamPhone) -> None:
    """C1, Q1: behind a connection that waits to be claimed, those that ended at once do not gather for 30 s."""
    phone.permit(PEER)
    assert world.server.accepted(phone.client, PEER, world.now)[0]
    for port in range(1, 1000):
        number, _ = world.server.accepted(phone.client, PEER._replace(port=port), world.now)
        world.server.connection_closed(number)
    assert len(world.server._connections._deadlines) <= DEADLINES_STALE_MAX + 2
    assert CloseConnection in map(type, world.wait(CONNECT_SECONDS)), "the one that waits still has its own"
