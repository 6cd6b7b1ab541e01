"""What is ours, and what wsgate writes of itself (the word "Ours", rules V1, C2)."""

from __future__ import annotations

import pytest

from wsgate.addr import Address, Hop, Transport
from wsgate.keys import Key
from wsgate.sip.flow import FlowTable, FlowTokens
from wsgate.sip.headers import parse_uri
from wsgate.sip.names import OWN_CONNECTIONS, Names, side_uri, via_value

V4, V6 = Address("192.0.2.1", 5060), Address("2001:db8::1", 5070)
PUBLIC = Address("gate.example.org", 443)


def names(**options) -> Names:
    values = {"advertise": [V4, V6], "public": PUBLIC, "aliases": ["alias.example.org", "other.example.org:7000"]}
    return Names(**(values | {"listeners": [Address("192.0.2.1", 8443)]} | options))


@pytest.mark.parametrize(
    "uri",
    [
        "sip:192.0.2.1",
        "sip:192.0.2.1:5060",
        "sip:192.0.2.1;transport=tcp",
        "sip:anyone@192.0.2.1:5060;lr",
        "sip:[2001:DB8:0::1]:5070",
        "sip:[::ffff:192.0.2.1]:5060",
        "sip:gate.example.org;transport=ws",
        "sip:GATE.example.ORG.:443",
        "sips:gate.example.org:443",
        "sip:gate.example.org;transport=wss",
        "sip:192.0.2.1:8443;transport=ws",
        "sip:alias.example.org",
        "sip:alias.example.org;transport=ws",
        "sip:alias.example.org:443;transport=ws",
        "sips:alias.example.org",
        "sip:other.example.org:7000",
    ],
)
def test_a_host_and_port_of_advertise_public_aliases_or_a_listener_is_ours(uri):
    """Ours: a port that is left out equals the default of scheme and transport."""
    assert names().is_ours(parse_uri(uri.encode()))


@pytest.mark.parametrize(
    "uri",
    [
        "sip:192.0.2.1:5061",
        "sips:192.0.2.1",
        "sip:192.0.2.1;transport=tls",
        "sip:192.0.2.2",
        "sip:[2001:db8::1]",
        "sip:gate.example.org",
        "sip:gate.example.org:5060",
        "sip:other.example.org",
        "sip:alias.example.org:5061",
        "sip:sub.gate.example.org:443",
        "sip:192.0.2.1.example.org",
    ],
)
def test_another_host_or_port_is_not_ours(uri):
    assert not names().is_ours(parse_uri(uri.encode()))


def test_the_host_of_the_upgrade_is_ours_for_that_connection_only():
    """Ours: JsSIP sends a preloaded Route of that form."""
    table = FlowTable(FlowTokens([Key(1, b"k" * 32)]), bytes)
    flow = table.open(Address("203.0.113.5", 1), True, Address("intranet.example", 443))
    plain = table.open(Address("203.0.113.5", 2), False, Address("intranet.example", 80))
    route = parse_uri(b"sip:intranet.example;transport=ws;lr")
    assert names().is_ours(route, flow)
    assert names().is_ours(route, plain)
    assert not names().is_ours(route)
    assert not names().is_ours(parse_uri(b"sip:intranet.example:8443;transport=ws"), flow)
    assert not names().is_ours(parse_uri(b"sip:intranet.example"), flow), "5060 is another port"


def test_the_near_end_of_a_connection_to_a_ws_backend_is_ours():
    """V1: it stands in Path and Record-Route, so requests of the backend name it."""
    own = names()
    local = Address("192.0.2.1", 51234)
    uri = parse_uri(b"sip:token@192.0.2.1:51234;transport=ws")
    assert not own.is_ours(uri)
    assert not own.is_own_address(local)
    own.connected(local)
    assert own.is_ours(uri)
    assert own.is_own_address(local)


def test_the_near_ends_that_are_remembered_are_bounded():
    own = names()
    for port in range(OWN_CONNECTIONS + 1):
        own.connected(Address("192.0.2.1", 10000 + port))
    assert not own.is_own_address(Address("192.0.2.1", 10000))
    assert own.is_own_address(Address("192.0.2.1", 10001))


def test_towards_a_backend_the_address_of_its_family_is_named_towards_a_browser_the_public_one():
    """V1: HOST:PORT; for a WS backend the local address of that connection."""
    own = names()
    assert own.sent_by(Hop(Transport.UDP, Address("198.51.100.7", 5060))) == V4
    assert own.sent_by(Hop(Transport.TLS, Address("2001:db8::7", 5061))) == V6
    assert own.sent_by(Hop(Transport.WSS, Address("203.0.113.5", 40000), b"flow")) == PUBLIC
    local = Address("192.0.2.1", 51234)
    assert own.sent_by(Hop(Transport.WS, Address("198.51.100.7", 80), b"stream"), local) == local
    assert names(advertise=[V4]).sent_by(Hop(Transport.UDP, Address("2001:db8::7", 5060))) == V4


def test_v1_towards_tls_backends_it_is_the_tls_port_or_the_near_end_of_our_connection():
    """Where no TLS port is open, nothing but our own connection leads back to us."""
    tls_v4, tls_v6 = V4._replace(port=5061), V6._replace(port=5071)
    local = Address("192.0.2.1", 51234)
    hops = [Hop(Transport.TLS, Address(host, 5061), b"stream") for host in ("198.51.100.7", "2001:db8::7")]
    own = names(advertise_tls=[tls_v4, tls_v6])
    assert [own.sent_by(hop, local) for hop in hops] == [tls_v4, tls_v6]
    assert own.sent_by(hops[0]._replace(transport=Transport.TCP)) == V4
    assert own.is_ours(parse_uri(b"sip:token@192.0.2.1:5061;transport=tls;lr"))
    assert own.is_own_address(tls_v6)
    assert [transport for transport in Transport if own.by_connection(transport)] == [Transport.WS, Transport.WSS]
    assert names().by_connection(Transport.TLS)
    assert [names().sent_by(hop, local) for hop in hops] == [local, local]


@pytest.mark.parametrize(
    ("transport", "address", "via"),
    [
        (Transport.UDP, V4, b"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKx;rport"),
        (Transport.TCP, V6, b"SIP/2.0/TCP [2001:db8::1]:5070;branch=z9hG4bKx;rport"),
        (Transport.TLS, V4, b"SIP/2.0/TLS 192.0.2.1:5060;branch=z9hG4bKx;rport"),
        (Transport.WS, PUBLIC, b"SIP/2.0/WS gate.example.org:443;branch=z9hG4bKx"),
        (Transport.WSS, PUBLIC, b"SIP/2.0/WSS gate.example.org:443;branch=z9hG4bKx"),
    ],
)
def test_our_via_names_the_transport_and_asks_for_rport_where_answers_go_by_address(transport, address, via):
    """V1."""
    assert via_value(Hop(transport, address), address, b"z9hG4bKx") == via


@pytest.mark.parametrize(
    ("transport", "uri"),
    [
        (Transport.UDP, b"<sip:T@192.0.2.1:5060;r2=on;lr>"),
        (Transport.TCP, b"<sip:T@192.0.2.1:5060;transport=tcp;r2=on;lr>"),
        (Transport.TLS, b"<sip:T@192.0.2.1:5060;transport=tls;r2=on;lr>"),
        (Transport.WS, b"<sip:T@192.0.2.1:5060;transport=ws;r2=on;lr>"),
        (Transport.WSS, b"<sip:T@192.0.2.1:5060;transport=ws;r2=on;lr>"),
    ],
)
def test_uris_of_our_own_are_sip_with_transport_ws_never_sips_or_wss(transport, uri):
    """C2, R2, I2; 5658, 7118 §5.2.2."""
    assert side_uri(b"T", transport, V4, b"r2=on", b"lr") == uri
