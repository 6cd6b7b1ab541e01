"""The edge holds browsers to the identity of their upgrade, and gives forwarded headers to backends alone."""

from __future__ import annotations

import ipaddress

import pytest

from tests.edge_world import (
    BOB,
    CONTACT,
    PBX,
    Call,
    World,
    backend_request,
    request,
    response,
    routes_of,
    udp,
)
from wsgate.addr import Address, Transport
from wsgate.identity import AddressPattern, Admitted, Identity
from wsgate.sip.contexts import Disconnect
from wsgate.sip.flow import Flow
from wsgate.sip.message import Message
from wsgate.sip.targets import BackendSettings

ALICE = AddressPattern(b"alice", "example.com")
COOKIE = (b"X-WS-Cookie", b"session=hush")
NAMES = frozenset({b"x-ws-cookie", b"x-ws-origin"})


class IdentityWorld(World):
    """A world whose edge protects two headers."""

    def open(
        self,
        *addresses: AddressPattern,
        destination: AddressPattern | None = None,
        seconds: float = 600.0,
        forwarded: tuple[tuple[bytes, bytes], ...] = (COOKIE,),
    ) -> Flow:
        identity = Identity(addresses, destination, self.now + seconds) if addresses else None
        admitted = Admitted(identity, forwarded)
        return self.edge.flow_opened(Address("203.0.113.5", 40000), True, Address("gate.example.org", 443), admitted)


@pytest.fixture
def world() -> IdentityWorld:
    return IdentityWorld(protected_headers=NAMES)


def answer(world: World, flow: Flow, data: bytes) -> Message:
    """The final answer of wsgate itself to this request; nothing went anywhere else."""
    world.from_browser(flow, data)
    final = world.one()
    assert final.status >= 300
    return final


def warning_of(message: Message) -> str:
    return (message.header(b"warning") or b"").decode()


def protected(messages: list[Message]) -> list[bytes]:
    return [header.name for message in messages for header in message.headers if header.name in NAMES]


# From


@pytest.mark.parametrize(
    "sender",
    [
        "<sip:bob@example.com>",
        "<sip:Alice@example.com>",
        "<sip:alice@example.org>",
        "<sip:example.com>",
        "<tel:+4930123>",
        '"alice@example.com" <sip:bob@example.com>',
        "<sip:alice%40example.com@evil.test>",
        "<sip:anonymous@anonymous.invalid>",
    ],
)
@pytest.mark.parametrize("method", ["INVITE", "MESSAGE", "SUBSCRIBE", "OPTIONS", "PUBLISH", "REFER"])
def test_a_from_that_the_identity_does_not_allow_is_403(world: IdentityWorld, sender: str, method: str) -> None:
    flow = world.open(ALICE)
    final = answer(world, flow, request(method, "sip:bob@example.com", CONTACT, **{"from": f"{sender};tag=a1"}))
    assert final.status == 403
    assert "identity (cookie, token)" in warning_of(final)
    assert world.counters.values["sip_identity_refused"] == 1


@pytest.mark.parametrize(
    "sender", ["<sip:alice@example.com>", "sip:alice@EXAMPLE.COM", "<sips:%61lice@example.com:5061;user=phone>"]
)
def test_the_from_of_the_identity_passes_however_it_is_spelt(world: IdentityWorld, sender: str) -> None:
    flow = world.open(ALICE)
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", **{"from": f"{sender};tag=a1"}))
    assert world.one(PBX).method == b"MESSAGE"


def test_one_of_several_addresses_is_enough_and_without_identity_anything_passes(world: IdentityWorld) -> None:
    several = world.open(AddressPattern(b"carol", "example.com"), ALICE)
    nobody = world.open()
    for number, flow in enumerate((several, nobody)):
        world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", call_id=f"call-{number}"))
        assert world.one(PBX).method == b"MESSAGE"
    world.from_browser(nobody, request("MESSAGE", "sip:bob@example.com", **{"from": "<sip:x@y.test>;tag=z"}))
    assert world.one(PBX).method == b"MESSAGE"


def test_a_register_is_for_the_own_address_alone(world: IdentityWorld) -> None:
    """The destination of a cookie is about calls; what is registered is the To."""
    flow = world.open(ALICE, destination=AddressPattern(b"bob", "example.com"))
    own = "<sip:alice@example.com>"
    world.from_browser(flow, request("REGISTER", "sip:example.com", CONTACT, to=own))
    assert world.one(PBX).method == b"REGISTER"
    final = answer(world, flow, request("REGISTER", "sip:example.com", CONTACT, to="<sip:bob@example.com>"))
    assert (final.status, "To of a REGISTER" in warning_of(final)) == (403, True)
    foreign = request("REGISTER", "sip:example.com", CONTACT, to=own, **{"from": "<sip:bob@example.com>;tag=1"})
    assert answer(world, flow, foreign).status == 403


# Destination


@pytest.mark.parametrize(
    ("uri", "to", "status"),
    [
        ("sip:bob@example.com", "<sip:bob@example.com>", 0),
        ("sip:bob@example.com", "<sip:carol@example.com>", 403),
        ("sip:carol@example.com", "<sip:bob@example.com>", 403),
        ("sip:bob@example.com;user=phone", "<sip:bob@example.com:5060>", 0),
        ("sip:example.com", "<sip:bob@example.com>", 403),
        ("sip:bob@198.51.100.7", "<sip:bob@example.com>", 403),
    ],
)
def test_the_destination_of_the_cookie_holds_for_request_uri_and_to(
    world: IdentityWorld, uri: str, to: str, status: int
) -> None:
    flow = world.open(ALICE, destination=AddressPattern(b"bob", "example.com"))
    data = request("MESSAGE", uri, to=to)
    if status:
        final = answer(world, flow, data)
        assert (final.status, "WSSessionInfo" in warning_of(final)) == (status, True)
    else:
        world.from_browser(flow, data)
        assert world.one(PBX).uri == uri.encode()


# Inside dialogs


def test_inside_a_dialog_of_the_flow_the_dialog_counts_in_both_roles(world: IdentityWorld) -> None:
    flow = world.open(ALICE, destination=AddressPattern(b"bob", "example.com"))
    call = Call(world, flow)
    ack = call.request("ACK", cseq="1")
    world.from_browser(flow, ack)
    assert world.one(PBX).method == b"ACK"
    # From is the dialog's own, the Request-URI is the far Contact: neither is the identity's business.
    world.from_browser(flow, call.request("BYE", **{"from": "<sip:+4930@example.com>;tag=a1"}))
    assert world.one(PBX).method == b"BYE"


def test_a_called_browser_answers_and_hangs_up_under_the_name_it_was_called_by(world: IdentityWorld) -> None:
    flow = world.open(ALICE, destination=AddressPattern(b"nobody", "example.com"))
    route = f"Route: <sip:{flow.token.decode()}@192.0.2.1;lr>"
    invite = backend_request("INVITE", "sip:alice@abc.invalid", route, BOB, to="<sip:+4930@example.com>")
    world.from_backend(invite)
    arrived = next(message for message in world.take(flow) if message.method == b"INVITE")
    world.take()
    world.from_browser(flow, response(arrived, 200, "OK", CONTACT, to_tag="a9"))
    world.take()
    bye = request(
        "BYE",
        "sip:bob@198.51.100.7",
        f"Route: {routes_of(arrived, is_caller=False)}",
        to="<sip:bob@example.com>;tag=b1",
        **{"from": "<sip:+4930@example.com>;tag=a9"},
    )
    world.from_browser(flow, bye)
    assert world.one(PBX).method == b"BYE"


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE", "BYE", "REFER", "ACK"])
def test_a_to_tag_proves_nothing(world: IdentityWorld, method: str) -> None:
    """Rule D1: a dialog that nobody knows lets no other From, and no other destination, through to a backend."""
    flow = world.open(ALICE, destination=AddressPattern(b"bob", "example.com"))
    to = "<sip:bob@example.com>;tag=forged"
    for number, (sender, uri) in enumerate(
        (
            ("<sip:boss@example.com>;tag=a1", "sip:bob@example.com"),
            ("<sip:alice@example.com>;tag=a1", "sip:+900123@198.51.100.7"),
        )
    ):
        data = request(method, uri, CONTACT, to=to, call_id=f"c{number}", **{"from": sender})
        if method == "ACK":
            world.from_browser(flow, data)
            assert world.take() == []
        else:
            assert answer(world, flow, data).status == 481
    assert not world.asked


def test_a_dialog_of_others_lets_nobody_in(world: IdentityWorld) -> None:
    call = Call(world, world.open(ALICE))
    stranger = world.open(AddressPattern(b"eve", "example.com"))
    final = answer(world, stranger, call.request("BYE", route=""))
    assert final.status == 403


def test_an_unknown_dialog_passes_to_the_backend_under_the_own_name(world: IdentityWorld) -> None:
    """After a restart without state_file: through backends that stay in the path."""
    flow = world.open(ALICE)
    world.from_browser(flow, request("BYE", "sip:bob@198.51.100.7", to="<sip:bob@example.com>;tag=old"))
    assert world.one(PBX).method == b"BYE"


def test_a_cancel_goes_with_its_invite(world: IdentityWorld) -> None:
    flow = world.open(ALICE)
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT))
    invite = world.one(PBX)
    world.take()
    world.from_backend(response(invite, 180, "Ringing", to_tag="b1"))
    ringing = world.one(flow)
    world.from_browser(flow, request("CANCEL", "sip:bob@example.com", via=ringing.via_bytes.decode()))
    assert {message.method for message in world.take(PBX)} == {b"CANCEL"}


# Expiry


def test_an_expired_identity_ends_the_connection_with_1008(world: IdentityWorld) -> None:
    """Rule H3."""
    short, long = world.open(ALICE, seconds=10.0), world.open(ALICE, seconds=100.0)
    world.open()
    assert world.edge.next_timer() == world.now + 10.0
    world.move(9.9)
    assert world.asked == []
    world.move(0.2)
    assert world.asked == [Disconnect(short.id, "identity expired")]
    # What still came in between says no more.
    final = answer(world, short, request("MESSAGE", "sip:bob@example.com"))
    assert (final.status, "expired" in warning_of(final)) == (403, True)
    world.edge.flow_closed(short.id, world.now)
    world.move(100.0)
    assert world.asked[1:] == [Disconnect(long.id, "identity expired")]


def test_connections_that_went_leave_no_timers_behind(world: IdentityWorld) -> None:
    stays = world.open(ALICE, seconds=5000.0)
    identities = world.edge._identities
    for _ in range(1000):
        world.edge.flow_closed(world.open(ALICE, seconds=1e9).id, world.now)
    assert len(identities) == 1
    assert len(identities._timers) < 100
    world.move(5001.0)
    assert world.asked == [Disconnect(stays.id, "identity expired")]


# Forwarded headers


def test_every_request_to_a_backend_carries_the_headers_of_the_upgrade(world: IdentityWorld) -> None:
    flow = world.open(forwarded=(COOKIE, (b"X-WS-Origin", "https://grüße.test".encode())))
    call = Call(world, flow)
    assert call.invite.lines(b"x-ws-cookie") == [b"session=hush"]
    assert call.invite.lines(b"x-ws-origin") == ["https://grüße.test".encode()]
    for method, cseq in (("ACK", "1"), ("BYE", "2")):
        world.from_browser(flow, call.request(method, cseq=cseq))
        arrived = world.one(PBX)
        assert (arrived.method, arrived.lines(b"x-ws-cookie")) == (method.encode(), [b"session=hush"])
        assert not arrived.flaw


def test_the_same_names_of_a_client_are_removed_from_requests_and_responses(world: IdentityWorld) -> None:
    plain, flow = world.open(forwarded=()), world.open()
    forged = ("x-ws-COOKIE: root", "X-WS-Cookie : more,\r\n and folded", "X-WS-Origin: https://evil.test")
    world.from_browser(plain, request("MESSAGE", "sip:bob@example.com", *forged, body=b"hello"))
    arrived = world.one(PBX)
    assert protected([arrived]) == []
    assert (arrived.body, arrived.flaw) == (b"hello", "")
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", *forged, call_id="call-2"))
    assert world.one(PBX).lines(b"x-ws-cookie") == [b"session=hush"]
    assert world.counters.values["sip_protected_headers_removed"] == 2
    # And from what a browser answers.
    route = f"Route: <sip:{flow.token.decode()}@192.0.2.1;lr>"
    world.from_backend(backend_request("MESSAGE", "sip:alice@abc.invalid", route))
    world.from_browser(flow, response(world.one(flow), 200, "OK", *forged, to_tag="a1"))
    assert protected([world.one(PBX)]) == []


def test_a_browser_asserts_no_identity_and_a_backend_does() -> None:
    """RFC 3325 §5: a browser may prefer an identity; whoever trusts wsgate's address would take an asserted one."""
    world = IdentityWorld()
    flow = world.open()
    asserted = (
        "P-Asserted-Identity: <sip:boss@example.com>",
        "p-asserted-identity: <tel:+1>",
        "Remote-Party-ID: <sip:b@c>",
    )
    preferred = "P-Preferred-Identity: <sip:alice@example.com>"
    names = (b"p-asserted-identity", b"remote-party-id", b"p-preferred-identity")
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", *asserted, preferred, body=b"hello"))
    arrived = world.one(PBX)
    assert [arrived.lines(name) for name in names] == [[], [], [b"<sip:alice@example.com>"]]
    assert (arrived.body, arrived.flaw) == (b"hello", "")
    route = f"Route: <sip:{flow.token.decode()}@192.0.2.1;lr>"
    world.from_backend(backend_request("MESSAGE", "sip:alice@abc.invalid", route, *asserted))
    shown = world.one(flow)
    assert [len(shown.lines(name)) for name in names] == [2, 1, 0]
    world.from_browser(flow, response(shown, 200, "OK", *asserted, to_tag="a1"))
    answered = world.one(PBX)
    assert answered.status == 200
    assert [answered.lines(name) for name in names] == [[], [], []]


def test_no_browser_ever_sees_them(world: IdentityWorld) -> None:
    flow = world.open()
    echoed = ("X-WS-Cookie: session=hush", "X-WS-Origin: x")
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com"))
    world.from_backend(response(world.one(PBX), 200, "OK", *echoed, to_tag="b1"))
    ok = world.one(flow)
    assert (ok.status, protected([ok])) == (200, [])
    route = f"Route: <sip:{flow.token.decode()}@192.0.2.1;lr>"
    world.from_backend(backend_request("MESSAGE", "sip:alice@abc.invalid", route, *echoed))
    assert protected([world.one(flow)]) == []
    # Nor in an answer of our own, not even to a malformed request.
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", *echoed, cseq="x"))
    assert protected(world.take()) == []


def test_neither_another_browser_nor_a_direct_target_gets_them() -> None:
    world = IdentityWorld(protected_headers=NAMES, direct_targets=((ipaddress.ip_network("203.0.113.0/24"), None),))
    caller = world.open()
    call = Call(world, caller, contact="Contact: <sip:bob@203.0.113.77>")
    world.from_browser(caller, call.request("BYE", "sip:bob@203.0.113.77"))
    direct = world.one(Address("203.0.113.77", 5060))
    assert (direct.method, protected([direct])) == (b"BYE", [])
    # Two browsers through a token: the called one is no backend.
    callee = world.open(forwarded=())
    world.from_browser(callee, request("MESSAGE", "sip:carol@example.com", call_id="c9"))
    assert protected(world.take()) == []


def test_a_request_that_grows_by_them_goes_by_tcp() -> None:
    """Rule I4: what is forwarded counts for the size."""
    world = IdentityWorld(protected_headers=NAMES)
    data = request("MESSAGE", "sip:bob@example.com")
    for forwarded, transport in (((), Transport.UDP), (((b"X-WS-Cookie", b"c" * 1000),), Transport.TCP)):
        flow = world.open(forwarded=forwarded)
        world.from_browser(flow, data)
        assert [hop.transport for hop, _ in world.sent if hop.address == PBX] == [transport]
        world.sent.clear()


def test_two_backends_each_get_them() -> None:
    other = Address("198.51.100.8", 5060)
    world = IdentityWorld(
        {"example.com": [udp()], "example.org": [udp(other, "pbx.example.org")]},
        {
            "example.com": BackendSettings(target="sip:pbx.example.com"),
            "example.org": BackendSettings(target="sip:pbx.example.org"),
        },
        protected_headers=NAMES,
    )
    flow = world.open()
    for number, (domain, address) in enumerate((("example.com", PBX), ("example.org", other))):
        world.from_browser(flow, request("MESSAGE", f"sip:bob@{domain}", call_id=f"c{number}"))
        assert world.one(address).lines(b"x-ws-cookie") == [b"session=hush"]
