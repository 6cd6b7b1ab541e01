"""An allocation goes along from socket to socket, with its channels, over every transport (RFC 8016; rules E4, L4)."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.turn_process import PASSWORD, USER, TurnProcess
from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.stun import Method
from wsgate.turn.uri import parse_uri
from wsgate.turn_link import Trust
from wsgate.turn_trial import Failure, Session, Target

SECONDS = 20.0
CHANNEL = 0x4001
WAYS = ("turn:127.0.0.1:{0.port}", "turn:127.0.0.1:{0.port}?transport=tcp", "turns:127.0.0.1:{0.tls_port}",
        "turns:127.0.0.1:{0.port}?transport=udp")  # fmt: skip


@pytest.fixture(scope="module")
def turn() -> Iterator[TurnProcess]:
    with TurnProcess(allow=("127.0.0.0/8",), mobility=True, unauthenticated_rate=10**6) as process:
        yield process
    assert process.counters["turn_allocations_moved"] >= len(WAYS)


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.2", 0))
        sock.settimeout(SECONDS)
        yield sock


def session(turn: TurnProcess, way: str) -> Session:
    uri = parse_uri(way.format(turn))
    return Session(Target(uri, Trust(insecure=True), SECONDS, None), USER, PASSWORD)


def begin(turn: TurnProcess, way: str, peer: socket.socket) -> tuple[Session, Address, bytes]:
    """A client with a channel to the peer, its relayed address and its ticket."""
    one = session(turn, way)
    answer = one.call("allocate", Method.ALLOCATE, (stun.REQUESTED_TRANSPORT(17), stun.MOBILITY_TICKET(b"")))
    relayed, ticket = answer.message.get(stun.XOR_RELAYED_ADDRESS), answer.message.get(stun.MOBILITY_TICKET)
    assert relayed is not None
    assert ticket is not None
    fields = (stun.CHANNEL_NUMBER(CHANNEL), stun.XOR_PEER_ADDRESS(Address(*peer.getsockname())))
    one.call("channel", Method.CHANNEL_BIND, fields)
    assert_relays(one, relayed, peer, b"at first")
    return one, relayed, ticket


def assert_relays(one: Session, relayed: Address, peer: socket.socket, data: bytes) -> None:
    """Both ways, on the channel that was bound at the beginning."""
    one.transmit(one.client.send_on_channel(CHANNEL, data))
    assert peer.recvfrom(2000) == (data, relayed)
    peer.sendto(data + b" back", relayed)
    heard = one.take(data + b" back", SECONDS)
    assert heard is not None
    assert heard.channel == CHANNEL


def move(two: Session, ticket: bytes) -> bytes:
    answer = two.call("refresh", Method.REFRESH, (stun.MOBILITY_TICKET(ticket),))
    return answer.message.get(stun.MOBILITY_TICKET) or b""


@pytest.mark.parametrize("old", WAYS)
@pytest.mark.parametrize("new", WAYS)
def test_from_one_socket_to_another(turn: TurnProcess, peer: socket.socket, old: str, new: str) -> None:
    """The old socket lives and gets nothing any more."""
    one, relayed, ticket = begin(turn, old, peer)
    two = session(turn, new)
    assert move(two, ticket) not in (b"", ticket)
    assert_relays(two, relayed, peer, b"moved")
    one.transmit(one.client.send_on_channel(CHANNEL, b"stale"))
    with pytest.raises(Failure, match="437"):
        one.call("refresh", Method.REFRESH)
    assert_relays(two, relayed, peer, b"and nothing stale was before it")
    two.call("refresh to 0", Method.REFRESH, (stun.LIFETIME(0),))
    one.close()
    two.close()


@pytest.mark.parametrize("way", WAYS[1:3])
def test_a_stream_that_is_lost_leaves_its_allocation(turn: TurnProcess, peer: socket.socket, way: str) -> None:
    """What peers send meanwhile is dropped; the same channel goes on over a new connection, and over a third."""
    one, relayed, ticket = begin(turn, way, peer)
    for _ in range(2):
        one.link.close()
        peer.sendto(b"into the void", relayed)
        one = session(turn, way)
        ticket = move(one, ticket)
        assert_relays(one, relayed, peer, b"here again")
    one.call("refresh to 0", Method.REFRESH, (stun.LIFETIME(0),))
    one.close()
