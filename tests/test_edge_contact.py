"""Registrars without Path: the rewritten Contact (rule R5), and flows that take over (R6, D3)."""

from __future__ import annotations

import re

import pytest

from tests.edge_world import GATE, PBX, TOKENS, World, request, response
from wsgate.addr import Address, Transport, parse_network
from wsgate.sip.flow import Flow
from wsgate.sip.message import Message
from wsgate.sip.targets import BackendSettings, ContactMode

ALICE = "<sip:alice@example.com>"
OWN = "sip:k3x@df7jal23ls0d.invalid;transport=ws"
CONTACT = f'"A, B" <{OWN}>;+sip.instance="<urn:uuid:1>";reg-id=1;expires=600'
AOR = b"alice@example.com"
HANDLE = TOKENS.handle(AOR, OWN.encode()).decode()


def world(mode: ContactMode = ContactMode.AUTO, **settings: object) -> World:
    backend = BackendSettings(target="sip:pbx.example.com", contact_mode=mode)
    return World(backends={"example.com": backend}, **settings)


def register(
    world: World, flow: Flow, *, contact: str = CONTACT, to: str = ALICE, registrar_contact: bool = True
) -> Message:
    """A REGISTER that the registrar grants with the very Contact it was given; returns what the registrar got."""
    numbered = str(world.counters.values["test_registers"] + 1)
    world.counters.count("test_registers")
    world.from_browser(
        flow,
        request(
            "REGISTER", "sip:example.com", f"Contact: {contact}", to=to, call_id=f"r{flow.id.hex()}", cseq=numbered
        ),
    )
    at_registrar = world.one(PBX)
    granted = (at_registrar.header(b"contact") or b"").decode()
    world.from_backend(response(at_registrar, 200, "OK", f"Contact: {granted}"))
    return at_registrar


def test_r5_auto_sends_path_and_a_contact_with_a_handle_and_undoes_it_exactly() -> None:
    w = world()
    flow = w.browser()
    at_registrar = register(w, flow)
    expected = f'"A, B" <sip:k3x@{GATE};transport=udp;wsg={HANDLE}>;+sip.instance="<urn:uuid:1>";reg-id=1;expires=600'
    assert at_registrar.lines(b"contact") == [expected.encode()]
    assert len(at_registrar.lines(b"path")) == 1
    assert w.one(flow).lines(b"contact") == [CONTACT.encode()]


def test_r5_contact_sends_no_path_and_path_leaves_the_contact_alone() -> None:
    by_contact, by_path = world(ContactMode.CONTACT), world(ContactMode.PATH)
    message = register(by_contact, by_contact.browser())
    assert message.lines(b"path") == []
    assert f"wsg={HANDLE}".encode() in message.data
    message = register(by_path, by_path.browser())
    assert len(message.lines(b"path")) == 1
    assert message.lines(b"contact") == [CONTACT.encode()]


def test_r5_what_the_registrar_makes_of_the_uri_does_not_matter_only_wsg_does() -> None:
    w = world()
    flow = w.browser()
    w.from_browser(flow, request("REGISTER", "sip:example.com", f"Contact: {CONTACT}", to=ALICE))
    at_registrar = w.one(PBX)
    rewritten = f"<sip:K3X@203.0.113.9:41234;wsg={HANDLE};x-ast-orig-host=a>;expires=300"
    other = "<sip:desk@198.51.100.44:5062>;expires=900"
    w.from_backend(response(at_registrar, 200, "OK", f"Contact: {rewritten}, {other}"))
    assert w.one(flow).values(b"contact") == [f"<{OWN}>;expires=300".encode(), other.encode()]
    assert [found.contact for found in w.directory.registrations_of(flow.id)] == [OWN.encode()]


def test_r5_three_reconnects_leave_one_binding_at_a_registrar_that_compares_uris() -> None:
    w = world()
    seen = set()
    for port in (40001, 40002, 40003):
        flow = w.browser(port=port)
        seen.add(re.search(rb"<([^>]*)>", register(w, flow).header(b"contact") or b"")[1])  # type: ignore[index]
        w.edge.flow_closed(flow.id, w.now)
    assert len(seen) == 1


def test_r5_a_register_too_large_for_udp_has_the_same_contact_as_a_small_one() -> None:
    """R5, I4: sent over TCP it is no second binding."""
    w = world()
    flow = w.browser()
    seen = []
    for cseq, size in (("1", 10), ("2", 1500), ("3", 10)):
        headers = (f"Contact: {CONTACT}", f"User-Agent: {'x' * size}")
        w.from_browser(flow, request("REGISTER", "sip:example.com", *headers, to=ALICE, cseq=cseq))
        seen.append((w.sent[0][0].transport, w.one(PBX).lines(b"contact")))
    assert [transport for transport, _ in seen] == [Transport.UDP, Transport.TCP, Transport.UDP]
    assert seen[0][1] == seen[1][1] == seen[2][1]


@pytest.mark.parametrize("mode", [ContactMode.CONTACT, ContactMode.AUTO])
def test_r5_a_call_to_the_handle_reaches_the_browser_with_its_own_uri(mode: ContactMode) -> None:
    w = world(mode)
    flow = w.browser()
    register(w, flow)
    w.take()
    uri = f"sip:k3x@{GATE};transport=udp;wsg={HANDLE}"
    w.from_backend(request("INVITE", uri, via=f"SIP/2.0/UDP {PBX};branch=z9hG4bKb1", to=ALICE))
    invite = w.one(flow)
    assert invite.uri == OWN.encode()
    assert invite.values(b"record-route")[0].startswith(b"<sip:" + flow.token + b"@gate.example.org:443;transport=ws")


def test_r5_with_path_the_route_decides_and_the_uri_is_restored() -> None:
    w = world()
    old, new = w.browser(port=1), w.browser(port=2)
    register(w, old)
    register(w, new, contact=CONTACT.replace("uuid:1", "uuid:2"))
    w.take()
    uri = f"sip:k3x@{GATE};transport=udp;wsg={HANDLE}"
    route = f"Route: <sip:{old.token.decode()}@{GATE};lr>"
    w.from_backend(request("INVITE", uri, route, via=f"SIP/2.0/UDP {PBX};branch=z9hG4bKb2", to=ALICE))
    assert w.one(old).uri == OWN.encode()


@pytest.mark.parametrize("handle", ["", "AAAAAAAAAAAAAAAAAAAAAAAA", HANDLE])
def test_r5_a_handle_that_nobody_registered_is_480(handle: str) -> None:
    w = world()
    w.from_backend(request("INVITE", f"sip:k3x@{GATE};wsg={handle}", via=f"SIP/2.0/UDP {PBX};branch=z9hG4bKb3"))
    # Without any handle it is a request without a token for nobody here.
    assert [message.status for message in w.take(PBX)][-1] == (480 if handle else 404)


def test_r5_chan_pjsip_rewrite_contact_comes_back_over_udp_and_after_a_switch_to_tcp() -> None:
    """res_pjsip_nat writes the source of our packet over host, port and transport of our topmost Record-Route."""
    w = world()
    flow = w.browser()
    register(w, flow)
    w.take()
    w.from_browser(flow, request("INVITE", "sip:100@example.com", f"Contact: <{OWN}>", call_id="c1"))
    invite = w.take(PBX)[0]
    w.take()
    for source, transport in ((GATE, ""), (Address(GATE.host, 40123), ";transport=TCP")):
        answer = response(invite, 200, "OK", f"Contact: <sip:asterisk@{PBX}>", to_tag="ast1")
        w.from_backend(answer)
        token = flow.token.decode()
        web_side = f"<sip:{token}@gate.example.org:443;transport=ws;r2=on;lr>"
        route = f"Route: <sip:{token}@{source}{transport};r2=on;lr>, {web_side}"
        bye = request(
            "BYE",
            OWN,
            route,
            via=f"SIP/2.0/UDP {PBX};branch=z9hG4bKbye{source.port}",
            call_id="c1",
            to="<sip:alice@example.com>;tag=a1",
            **{"from": "<sip:100@example.com>;tag=ast1"},
        )
        w.take(flow)
        w.from_backend(bye)
        assert [message.method for message in w.take(flow)] == [b"BYE"]


@pytest.mark.parametrize(
    ("place", "transport"), [(GATE, Transport.UDP), (Address(GATE.host, 40123), Transport.TCP)], ids=["udp", "tcp"]
)
def test_r5_chan_pjsip_calls_the_source_of_the_register(place: Address, transport: Transport) -> None:
    """rewrite_contact=yes puts the source of our REGISTER into the Contact that it stores and calls."""
    w = world()
    flow = w.browser()
    register(w, flow)
    w.take()
    word = ";transport=TCP" if transport is Transport.TCP else ""
    uri = f"sip:k3x@{place}{word};wsg={HANDLE};x-ast-orig-host={GATE}"
    via = f"SIP/2.0/{transport.value} {PBX};rport;branch=z9hG4bKPjregister"
    w.from_backend(request("INVITE", uri, via=via, to=f"<{uri}>"), transport=transport)
    assert w.one(flow).uri == OWN.encode()


def test_r6_d3_after_a_reconnect_calls_of_the_old_flow_reach_the_new_one_both_ways() -> None:
    w = world()
    old = w.browser(port=1)
    register(w, old)
    w.take()
    w.from_browser(old, request("INVITE", "sip:100@example.com", f"Contact: <{OWN}>", call_id="c1"))
    invite = w.take(PBX)[0]
    w.from_backend(response(invite, 200, "OK", f"Contact: <sip:100@{PBX}>", to_tag="b1"))
    routes = [value.decode() for value in w.take(old)[-1].values(b"record-route")]
    w.edge.flow_closed(old.id, w.now)
    new = w.browser(port=2)
    route_to_browser = "Route: " + ", ".join(routes)
    in_dialog = {"call_id": "c1", "to": f"{ALICE};tag=a1", "from": "<sip:bob@example.com>;tag=b1"}
    info = request("INFO", OWN, route_to_browser, via=f"SIP/2.0/UDP {PBX};branch=z9hG4bKi1", **in_dialog)
    w.from_backend(info)
    assert w.one(PBX).status == 480, "the new flow has not registered yet (B1)"
    register(w, new)
    w.take()
    w.from_backend(info.replace(b"z9hG4bKi1", b"z9hG4bKi2"))
    assert w.one(new).method == b"INFO"
    # The browser still sends the old tokens in its route set.
    bye = request(
        "BYE",
        f"sip:100@{PBX}",
        "Route: " + ", ".join(reversed(routes)),
        call_id="c1",
        cseq="2",
        to="<sip:bob@example.com>;tag=b1",
    )
    w.from_browser(new, bye)
    assert w.one(PBX).method == b"BYE"


def test_d3_one_who_leaves_a_shared_flow_takes_along_no_call_of_the_others() -> None:
    """D3, W2: only flows registered for the same AOR inherit; behind another edge many users share a flow."""
    w = world()
    shared, new = w.browser(port=1), w.browser(port=2)
    bobs = OWN.replace("k3x", "b0b")
    users = ((ALICE, CONTACT, OWN), ("<sip:bob@example.com>", CONTACT.replace(OWN, bobs).replace(":1>", ":2>"), bobs))
    for to, contact, _ in users:
        register(w, shared, contact=contact, to=to)
    register(w, new, contact=users[0][1], to=ALICE)
    w.take()
    for closed in (False, True):
        if closed:
            w.edge.flow_closed(shared.id, w.now)
        for (to, _, uri), expected in zip(users, (new, None if closed else shared), strict=True):
            route = f"Route: <sip:{shared.token.decode()}@{GATE};lr>"
            via = f"SIP/2.0/UDP {PBX};branch=z9hG4bK{closed}{uri}"
            w.from_backend(request("INFO", uri, route, via=via, to=f"{to};tag=1"))
            if expected is None:
                assert w.one().status == 480
            else:
                assert w.one(expected).uri == uri.encode()
                assert w.sent == []


def test_d3_the_calls_of_others_on_a_shared_flow_are_not_open_to_one_who_left() -> None:
    """D3, W2: nor may the newer flow of one user speak in a call of another."""
    w = world(direct_targets=((parse_network("198.51.100.50"), None),))
    shared, new = w.browser(port=1), w.browser(port=2)
    bobs = OWN.replace("k3x", "b0b")
    register(w, shared)
    register(w, shared, contact=CONTACT.replace(OWN, bobs).replace(":1>", ":2>"), to="<sip:bob@example.com>")
    w.take()
    w.from_browser(shared, request("INVITE", "sip:100@example.com", f"Contact: <{bobs}>", call_id="c1"))
    invite = w.take(PBX)[0]
    w.from_backend(response(invite, 200, "OK", "Contact: <sip:100@198.51.100.50>", to_tag="x1"))
    [routes] = [m for m in w.take(shared) if m.status == 200]
    register(w, new)
    w.take()
    route = "Route: " + ", ".join(value.decode() for value in reversed(routes.values(b"record-route")))
    data = request("INFO", "sip:100@198.51.100.50", route, call_id="c1", cseq="2", to="<sip:bob@example.com>;tag=x1")
    w.from_browser(new, data)
    assert w.one(new).status == 403
    w.from_browser(shared, data)
    assert w.one(Address("198.51.100.50", 5060)).method == b"INFO"


def test_d3_a_new_call_by_the_old_token_is_430_and_rings_on_no_other_flow() -> None:
    """D3, B1, C3: the registrar calls the newer flow by its own binding; twice down one flow would be 482."""
    w = world()
    old = w.browser(port=1)
    register(w, old)
    w.edge.flow_closed(old.id, w.now)
    new = w.browser(port=2)
    register(w, new)
    w.take()
    route = f"Route: <sip:{old.token.decode()}@{GATE};lr;ob>"
    w.from_backend(request("INVITE", OWN, route, via=f"SIP/2.0/UDP {PBX};branch=z9hG4bKy", to=ALICE))
    assert w.take(new) == []
    assert [message.status for message in w.take(PBX)][-1] == 430


def test_d3_another_users_flow_inherits_nothing_and_off_means_off() -> None:
    for settings, contact, to in (
        ({}, CONTACT, "<sip:mallory@example.com>"),
        ({"flow_rebind": False}, CONTACT, ALICE),
    ):
        w = world(**settings)
        old = w.browser(port=1)
        register(w, old)
        w.edge.flow_closed(old.id, w.now)
        register(w, w.browser(port=2), contact=contact, to=to)
        w.take()
        route = f"Route: <sip:{old.token.decode()}@{GATE};lr;ob>"
        w.from_backend(request("BYE", OWN, route, via=f"SIP/2.0/UDP {PBX};branch=z9hG4bKx", to=f"{ALICE};tag=1"))
        assert w.one(PBX).status == 430


def test_r5_towards_a_websocket_backend_the_near_end_of_the_connection_stands_in_the_contact() -> None:
    from wsgate.addr import Hop
    from wsgate.sip.targets import Target

    place = Address("198.51.100.9", 443)
    backend = BackendSettings(target="sip:pbx.example.com")
    w = World({"example.com": [Target(Transport.WSS, place, "pbx.example.com")]}, {"example.com": backend})
    flow = w.browser()
    w.from_browser(flow, request("REGISTER", "sip:example.com", f"Contact: {CONTACT}", to=ALICE))
    near = Address("192.0.2.1", 51000)
    w.apply(w.edge.connected(Hop(Transport.WSS, place, b"backend1"), near, w.now))
    assert f"<sip:k3x@{near};transport=ws;wsg={HANDLE}>".encode() in (w.one(place).header(b"contact") or b"")
