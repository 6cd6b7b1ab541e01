"""What the bucket of unauthenticated answers withholds: dropped over UDP, later on a stream (rule S4)."""

from __future__ import annotations

from tests.test_connections import StreamWorld
from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.allocation import Client, Effect, Reply
from wsgate.turn.answers import ANSWERS_WAITING_MAX, SOURCES_WAITING_MAX
from wsgate.turn.stun import MessageClass, Method

RATE = 512
OFFICE = "192.0.2.1"


def allocate(world: StreamWorld, path: int, host: str = OFFICE) -> list[Effect]:
    """An Allocate without authentication, on a stream of its own."""
    request = stun.encode(Method.ALLOCATE, MessageClass.REQUEST, path.to_bytes(12, "big"), ())
    return world.receive(request, Client(path, Address(host, 40000 + path % 20000)))


def answered(effects: list[Effect]) -> list[int]:
    replies = [effect for effect in effects if isinstance(effect, Reply)]
    assert all(stun.parse(reply.data).get(stun.NONCE) for reply in replies)
    return [reply.client.path for reply in replies]


def later(world: StreamWorld, seconds: float) -> list[Effect]:
    """Let this time pass as the engine does, timer by timer."""
    end = world.now + seconds
    effects: list[Effect] = []
    while (at := world.server.next_timer()) is not None and at <= end:
        assert at > world.now
        effects += world.wait(at - world.now)
    world.now = end
    return effects


def test_an_office_behind_one_address_gets_through_by_streams() -> None:
    """A client on a stream sends no request again (RFC 8489 §6.2.2): what is dropped would cost it its call."""
    world = StreamWorld(unauthenticated_rate=RATE)
    clients = list(range(7, 57))
    at_once = [path for client in clients for path in answered(allocate(world, client))]
    assert 0 < len(at_once) < 10
    sent: list[int] = []
    seconds = 0
    while len(at_once) + len(sent) < len(clients):
        effects = later(world, 1)
        sent += answered(effects)
        seconds += 1
        assert sum(len(effect.data) for effect in effects if isinstance(effect, Reply)) <= RATE + 128
        assert seconds < 30
    assert sorted(at_once + sent) == clients
    assert world.server.next_timer() is None


def test_over_udp_it_is_dropped() -> None:
    world = StreamWorld(unauthenticated_rate=RATE)
    world.is_stream = False
    for client in range(7, 57):
        allocate(world, client)
    assert world.server.next_timer() is None


def test_who_is_gone_gets_nothing() -> None:
    world = StreamWorld(unauthenticated_rate=RATE)
    waiting = [client for client in range(7, 27) if not answered(allocate(world, client))]
    for client in waiting[1:]:
        world.server.client_closed(Client(client, Address(OFFICE, 40000 + client)), world.now)
    assert answered(later(world, 30)) == waiting[:1]


def test_what_waits_is_bounded_by_source_and_in_all() -> None:
    """Rule Q2."""
    world = StreamWorld(unauthenticated_rate=RATE)
    for client in range(500):
        allocate(world, client)
    assert len(answered(later(world, 1000))) == ANSWERS_WAITING_MAX
    for number in range(SOURCES_WAITING_MAX + 100):
        for client in range(8):
            allocate(world, 8 * number + client, f"198.18.{number >> 8}.{number & 255}")
    assert len(world.server._answers._waiting) == SOURCES_WAITING_MAX
    later(world, 1000)
    assert world.server.next_timer() is None
