"""wsgate is no open relay and no port scanner: a browser with a valid token of its own, alone or with an accomplice
whose Contact and Record-Route lie, reaches nothing that D1 does not name, and nothing is looked up for it (D1, N4)."""

from __future__ import annotations

import itertools

import pytest

from tests.edge_world import CONTACT, EXAMPLE, PBX, TOKENS, Call, World, request, response, udp
from wsgate.addr import Address, Hop, Transport, parse_network
from wsgate.sip.contexts import Resolve
from wsgate.sip.targets import Target

VICTIM = "203.0.113.66"
SECOND = Address("198.51.100.8", 5070)
PLACES = [
    f"sip:x@{VICTIM}",
    f"sip:{VICTIM}",
    f"sip:x@{VICTIM}:22",
    f"sip:x@{VICTIM}:5060;transport=tcp",
    f"sip:x@{VICTIM};transport=tls",
    f"sips:x@{VICTIM}",
    f"sip:x@{VICTIM};transport=ws",
    f"sip:x@{VICTIM};transport=sctp",
    f"sip:x@{VICTIM};maddr=198.51.100.7",
    f"sip:198.51.100.7@{VICTIM}",
    f"sip:example.com@{VICTIM}",
    f"sip:{{token}}@{VICTIM}",
    f"sip:{{token}}@{VICTIM};r2=on;lr",
    "sip:x@victim.example",
    "sip:x@victim.example;transport=ws",
    "sip:victim.example:25",
    "sip:pbx.example.com.victim.example",
    "sip:example.com.victim.example",
    "sip:x@xexample.com",
    "sip:x@sub.example.com",
    "sip:x@198.51.100.7:22",
    "sip:x@198.51.100.7:5061",
    "sip:x@198.51.100.7:0",
    "sip:x@198.51.100.7:65535;transport=tcp",
    "sip:x@198.51.100.7;transport=tls",
    "sips:x@198.51.100.7",
    "sip:x@198.51.100.7;transport=ws",
    "sip:x@198.51.100.8",
    "sip:x@198.51.100.8:5060",
    "sip:x@198.51.100.9",
    "sip:x@pbx.example.com:22",
    "sip:x@pbx.example.com;transport=ws",
    "sip:x@pbx.example.com;transport=tls",
    "sips:x@pbx.example.com",
    "sip:x@198.51.100.7.victim.example",
    "sip:x@3325256711",
    "sip:x@0xc6336407",
    "sip:x@0306.063.0144.07",
    "sip:x@198.51.25607",
    "sip:x@127.0.0.1",
    "sip:x@localhost",
    "sip:x@[::1]",
    "sip:x@[::ffff:203.0.113.66]",
    "sip:x@[::ffff:198.51.100.7]:22",
    "sip:x@[fe80::1]",
    "sip:x@169.254.169.254:80",
    "sip:x@224.0.1.75",
    "sip:x@255.255.255.255",
    "sip:x@0.0.0.0",
    "sip:x@192.0.2.1:8080",
    "sip:x@203.0.113.5:40000",
    "sip:x@abc.invalid;transport=ws",
    "sip:x@.",
    "sip:x@198.51.100.7?Route=%3Csip:203.0.113.66%3E",
    "tel:+15551234;phone-context=victim.example",
    "http://victim.example/",
    "im:x@victim.example",
    "sip:",
    "sip:@",
    "sip:x@",
    "sip:x@[",
    "sip:x@198.51.100.7:99999",
]
METHODS = ["INVITE", "BYE", "ACK", "REGISTER"]
ALLOWED = {(Transport.UDP, PBX), (Transport.TCP, PBX), (Transport.UDP, SECOND), (Transport.TCP, SECOND)}


def relay() -> World:
    """A gate whose only backend is at two UDP addresses, in a world where everything else is the victim's."""
    return World({"example.com": [udp(), Target(Transport.UDP, SECOND, "pbx2.example.com")]}, {"example.com": EXAMPLE})


def assert_harmless(world: World, what: object) -> None:
    """Nothing left but to a backend at its address and port or to a browser, and nothing was asked."""
    for hop, data in world.sent:
        if hop.connection:
            assert world.flows.get(hop.connection) is not None, what
        else:
            assert (hop.transport, hop.address) in ALLOWED, (what, hop, data)
    assert world.asked == [], what
    world.sent = []


def hostile(place: str, flow) -> list[tuple[str, list[str]]]:
    """Request-URI and Route lines that lead to `place`, or seem to: alone, behind our own, in front of the backend."""
    token = flow.token.decode()
    place = place.format(token=token)
    own = f"<sip:{token}@gate.example.org:443;transport=ws;r2=on;lr>, <sip:{token}@192.0.2.1:5060;r2=on;lr>"
    target = f"<{place};lr>" if "?" not in place else f"<{place}>"
    return [
        (place, []),
        (place, [f"Route: {own}"]),
        ("sip:bob@example.com", [f"Route: {target}"]),
        ("sip:bob@example.com", [f"Route: {own}, {target}"]),
        ("sip:bob@example.com", [f"Route: {own}", f"Route: {target}, <sip:198.51.100.7;lr>"]),
        ("sip:bob@example.com", [f"Route: {target}, {own}"]),
        (place, [f"Route: {target}", f"Record-Route: {target}", f"Path: {target}"]),
        ("sip:bob@example.com", [f"Route: {place}"]),
        ("sip:bob@example.com", [f'Route: "<sip:198.51.100.7>" {target}']),
    ]


@pytest.mark.parametrize("place", PLACES)
def test_no_route_request_uri_tag_transport_or_port_reaches_what_d1_does_not_name(place):
    """D1 (a), N4: by any method, with and without To tag, Via and Contact lying as well."""
    world = relay()
    flow = world.browser()
    fields = [
        {},
        {"to": f"<{place.format(token='t')}>;tag=x1"},
        {"via": f"SIP/2.0/UDP {VICTIM}:9;branch=z9hG4bK{{}};maddr={VICTIM};received={VICTIM};rport=7"},
    ]
    for number, (method, (uri, routes), field) in enumerate(itertools.product(METHODS, hostile(place, flow), fields)):
        via = field.get("via", "SIP/2.0/WSS abc.invalid;branch=z9hG4bK{}").format(number)
        lying = f"Contact: <{place.format(token='t')}>"
        headers = [*routes, lying, f"Record-Route: <{place.format(token='t')};lr>"]
        values = {"call_id": f"c{number}"} | field | {"via": via}
        world.from_browser(flow, request(method, uri, *headers, **values))
        assert_harmless(world, (method, uri, routes, field))
    world.move(100)
    assert_harmless(world, "later")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("with_direct_targets", [False, True])
def test_an_accomplice_whose_contact_and_record_route_lie_opens_no_other_way(place, with_direct_targets):
    """D1 (b): a Contact or Record-Route of the far party is a stranger's too; direct_targets bounds it."""
    direct = ((parse_network("198.51.100.64/28"), 5060),) if with_direct_targets else ()
    world = World({"example.com": [udp()]}, direct_targets=direct)
    flow = world.browser()
    place = place.format(token=TOKENS.make(b"accomplc").decode())
    for number, (contact, record_route) in enumerate(
        [(place, ""), ("sip:bob@198.51.100.7", f"<{place};lr>"), (place, f"<{place};lr>, <sip:{VICTIM};lr>")]
    ):
        call_id = f"c{number}"
        data = request("INVITE", "sip:bob@example.com", CONTACT, call_id=call_id)
        world.from_browser(flow, data)
        invite = next(m for m in world.take(PBX) if m.method == b"INVITE")
        ok = response(invite, 200, "OK", f"Contact: <{contact}>", to_tag="b1")
        if record_route:
            ok = ok.replace(b"Record-Route:", f"Record-Route: {record_route}\r\nRecord-Route:".encode(), 1)
        world.from_backend(ok)
        world.take(flow)
        answers = {"to": "<sip:bob@example.com>;tag=b1", "call_id": call_id}
        for method, (uri, routes) in itertools.product(["ACK", "BYE", "INVITE"], hostile(place, flow)):
            extra = [f"Route: {record_route}"] if record_route else []
            world.from_browser(flow, request(method, uri, *routes, *extra, **answers))
            assert_harmless(world, (method, uri, routes, contact, record_route))


def test_where_the_backend_is_not_known_yet_only_configured_backends_are_resolved():
    """N5, D1: no name is looked up for a browser."""
    world = World({"example.com": None}, transactions_per_connection=1000)
    for number, place in enumerate(PLACES):
        flow = world.browser()
        for uri, routes in hostile(place, flow):
            world.from_browser(flow, request("INVITE", uri, *routes, CONTACT, call_id=f"c{number}"))
        assert {hop.connection for hop, _ in world.sent} == {flow.id}
        world.take(flow)
    world.from_browser(world.browser(), request("INVITE", "sip:bob@example.com", CONTACT, call_id="good"))
    assert set(world.asked) == {Resolve("example.com")}


@pytest.mark.parametrize(
    ("uri", "hop"),
    [
        ("sip:x@198.51.100.7", Hop(Transport.UDP, PBX)),
        ("sip:x@198.51.100.7:5060;transport=udp", Hop(Transport.UDP, PBX)),
        ("sip:x@198.51.100.7;transport=tcp", Hop(Transport.TCP, PBX)),
        ("sip:x@198.51.100.8:5070", Hop(Transport.UDP, SECOND)),
        ("sip:x@pbx.example.com", Hop(Transport.UDP, PBX)),
        ("sip:x@pbx2.example.com", Hop(Transport.UDP, SECOND)),
        ("sip:x@PBX2.example.com.:5070", Hop(Transport.UDP, SECOND)),
        ("sip:x@[::ffff:198.51.100.7]", Hop(Transport.UDP, PBX)),
    ],
)
def test_an_address_and_port_to_which_a_backend_resolved_is_reached_by_its_transports_or_names(uri, hop):
    """D1 (a)."""
    world = relay()
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", uri))
    assert [sent for sent, _ in world.sent] == [hop]


@pytest.mark.parametrize(
    ("uri", "status"),
    [
        ("sip:x@elsewhere.example", 404),
        ("sip:x@203.0.113.66", 403),
        ("sip:x@198.51.100.7:22", 403),
        ("sip:nobody@gate.example.org:443", 404),
        ("sip:x@pbx.example.com:22", 404),
        ("sip:x@pbx.example.com;transport=tls", 404),
        ("sips:x@pbx.example.com", 404),
    ],
)
def test_an_unknown_domain_is_404_and_a_foreign_address_403_with_a_warning_that_names_it(uri, status):
    """N4, D1, table A."""
    world = relay()
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", uri))
    answer = world.one(flow)
    assert answer.status == status
    if status == 403:
        assert uri.partition("@")[2].encode() in answer.header(b"warning")
    with_tag = request("MESSAGE", uri, to="<sip:bob@example.com>;tag=zz")
    world.from_browser(flow, with_tag)
    assert world.one(flow).status == 481, "with a To tag of an unknown dialog"


def test_a_foreign_route_in_a_known_dialog_is_403():
    """Table A."""
    world = relay()
    call = Call(world, world.browser())
    world.from_browser(call.flow, call.request("INFO", route="<sip:203.0.113.66;lr>"))
    assert world.one(call.flow).status == 403


def test_routes_of_our_own_in_front_of_a_foreign_one_open_no_way():
    """N4: also where the browser asked for the victim's name in its upgrade."""
    world = relay()
    flow = world.edge.flow_opened(Address("203.0.113.5", 1), True, Address(VICTIM, 5060))
    for uri, routes in [
        ("sip:bob@example.com", [f"Route: <sip:{VICTIM}:5060;lr>, <sip:{VICTIM}:5061;lr>"]),
        (f"sip:x@{VICTIM}:5060", []),
        (f"sip:{VICTIM}:5060", [f"Route: <sip:{VICTIM}:5060;lr>"]),
    ]:
        world.from_browser(flow, request("MESSAGE", uri, *routes))
        assert [message.status for message in world.take(flow)] in ([403], [404])
        assert_harmless(world, uri)
