"""TURN credentials handed out with the registration (rule A5): who gets them, who does not, who cannot forge them."""

from __future__ import annotations

import pytest

from tests.edge_world import PBX, World, register, request, response
from tests.test_edge_registrar import Office
from wsgate.addr import Address
from wsgate.sip.message import Message
from wsgate.sip.services import TURN_CREDENTIALS

HEADER = TURN_CREDENTIALS.lower()
CONTACT = "Contact: <sip:x7@abc.invalid;transport=ws>"
TO = "<sip:alice@example.com>"
GRANTED = CONTACT + ";expires=600"


def hand_out(host: Address, registration: str) -> bytes:
    return b'username="%s@%s"' % (registration.encode(), host.host.encode())


def id_of(world: World) -> str:
    (registration,) = world.directory.registrations_for(b"alice@example.com")
    return registration.id


def answered(world: World, *headers: str, asked: str = CONTACT, status: int = 200) -> Message:
    """A REGISTER of a browser through the backend, answered with these headers."""
    flow = world.browser()
    world.from_browser(flow, request("REGISTER", "sip:example.com", asked, to=TO))
    world.from_backend(response(world.one(PBX), status, "Reason", *headers))
    return world.one(flow)


def test_with_a_2xx_of_a_backend() -> None:
    world = World(hand_out=hand_out)
    answer = answered(world, GRANTED)
    assert answer.header(HEADER) == b'username="%s@gate.example.org"' % id_of(world).encode()


def test_with_a_2xx_of_the_embedded_registrar() -> None:
    world = Office(hand_out=hand_out)
    flow = world.browser()
    uri, aor = "sip:example.com", "<sip:alice@example.com>"
    for expires, handed_out in (("600", 1), ("0", 0)):
        headers = [CONTACT + f";expires={expires}", world.credentials("REGISTER", uri, "alice", proxy=False)]
        world.from_browser(
            flow,
            request(
                "REGISTER", uri, *headers, **{"from": aor + ";tag=r", "to": aor, "cseq": "1" if handed_out else "2"}
            ),
        )
        answer = world.one(flow)
        assert (answer.status, len(answer.values(HEADER))) == (200, handed_out)


@pytest.mark.parametrize(
    ("asked", "headers", "status"),
    [
        (CONTACT + ";expires=0", (), 200),
        ("Contact: *", (), 200),
        (CONTACT, ("Contact: <sip:other@phone.test>;expires=600",), 200),
        (CONTACT, (CONTACT + ";expires=0",), 200),
        (CONTACT, (), 403),
        (CONTACT, (), 401),
    ],
    ids=["taken back", "all taken back", "not there", "0 granted", "forbidden", "challenged"],
)
def test_without_a_registration_of_this_flow_there_is_none(asked: str, headers: tuple[str, ...], status: int) -> None:
    world = World(hand_out=hand_out)
    assert answered(world, *headers, asked=asked, status=status).header(HEADER) is None


def test_off_there_is_none() -> None:
    assert answered(World(), GRANTED).header(HEADER) is None


def test_what_somebody_else_wrote_is_removed() -> None:
    """Rule A5, both ways."""
    world = World(hand_out=hand_out)
    answer = answered(world, GRANTED, "X-Turn-Credentials: username=theirs")
    assert answer.values(HEADER) == [b'username="%s@gate.example.org"' % id_of(world).encode()]
    world = World(hand_out=hand_out)
    assert answered(world, "x-turn-credentials: username=theirs", status=403).header(HEADER) is None
    flow = world.browser()
    world.from_browser(flow, request("REGISTER", "sip:example.com", CONTACT, "X-Turn-Credentials: a", to=TO))
    assert world.one(PBX).header(HEADER) is None


def test_the_registration_lasts_longer_than_its_socket() -> None:
    """Rule A5: revoked by its end, never by the loss of a socket."""
    world = World(hand_out=hand_out)
    flow = world.browser()
    register(world, flow)
    identity = id_of(world)
    world.edge.flow_closed(flow.id, world.now)
    assert world.directory.is_registered(identity, world.now + 10)
    assert not world.directory.is_registered(identity, world.now + 100000)
    assert not world.directory.is_registered("another", world.now)


def test_taken_back_it_is_over_at_once() -> None:
    world = World(hand_out=hand_out)
    answered(world, GRANTED)
    identity = id_of(world)
    answered(world, asked=CONTACT + ";expires=0")
    assert not world.directory.is_registered(identity, world.now)
