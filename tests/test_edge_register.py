"""REGISTER through the edge: R1 to R4, R6, R7, C1, C5, C6, T2."""

from __future__ import annotations

import pytest

from tests.edge_world import PBX, World, register, request, response
from wsgate.sip.message import Message

AOR = b"alice@example.com"
CONTACT = "Contact: <sip:x7@abc.invalid;transport=ws>;expires=600"
OUTBOUND = 'Contact: <sip:x7@abc.invalid;transport=ws>;+sip.instance="<urn:uuid:1>";reg-id=1;expires=600'
TO = "<sip:alice@example.com>"


def registering(*headers: str, uri: str = "sip:example.com", **fields: str) -> bytes:
    return request("REGISTER", uri, *(headers or (CONTACT,)), **({"to": TO} | fields))


def test_a_register_with_max_forwards_0_that_would_go_on_is_answered_483():
    """R1; 3261 §16.3."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, registering(max_forwards="0"))
    assert world.one().status == 483


@pytest.mark.parametrize(
    "route",
    [
        "<sip:gate.example.org;transport=ws;lr>",
        "<sip:gate.example.org:443;lr>",
        "<sip:192.0.2.1;lr>, <sip:gate.alias;transport=ws;lr>",
    ],
)
def test_routes_that_are_ours_are_popped(route):
    """R1, Ours: also the Host of the browser's own upgrade (JsSIP preloads it)."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, registering(CONTACT, f"Route: {route}"))
    assert world.one(PBX).lines(b"route") == []


def test_what_remains_of_the_routes_must_be_an_address_of_a_backend():
    """R1, D1."""
    world = World()
    flow = world.browser()
    ours = "<sip:gate.example.org;transport=ws;lr>"
    world.from_browser(flow, registering(CONTACT, f"Route: {ours}, <sip:198.51.100.7;lr>"))
    assert world.one(PBX).values(b"route") == [b"<sip:198.51.100.7;lr>"]
    world.from_browser(flow, registering(CONTACT, f"Route: {ours}, <sip:203.0.113.99;lr>"))
    answer = world.one()
    assert answer.status == 403
    assert b"203.0.113.99" in answer.header(b"warning")
    assert b"direct_targets" in answer.header(b"warning")


def test_one_path_with_the_flow_token_and_no_record_route():
    """R2, R3, T2."""
    world = World()
    flow = world.browser()
    arrived = register(world, flow)
    assert arrived.values(b"path") == [b"<sip:%b@192.0.2.1:5060;lr>" % flow.token]
    assert arrived.has_token(b"supported", b"path")
    assert arrived.lines(b"record-route") == []


def test_the_browser_gets_exactly_its_own_via_back_unchanged():
    """C1: SIP.js drops a response with more than one."""
    world = World()
    flow = world.browser()
    via = "SIP/2.0/WSS Abc.invalid ;branch=z9hG4bKq ; keep"
    world.from_browser(flow, registering(via=via))
    arrived = world.one(PBX)
    assert len(arrived.values(b"via")) == 2
    world.from_backend(response(arrived, 200, "OK", CONTACT, to_tag="t"))
    assert world.one(flow).lines(b"via") == [via.encode()]


def test_the_browsers_own_contact_with_its_expires_comes_back():
    """C6: SIP.js ignores a Contact without expires."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, registering())
    world.from_backend(response(world.one(PBX), 200, "OK", CONTACT, to_tag="t"))
    assert world.one(flow).lines(b"contact") == [CONTACT.removeprefix("Contact: ").encode()]


@pytest.mark.parametrize(
    ("headers", "flow_timer"),
    [
        (["Require: outbound"], [b"120"]),
        (["Require: outbound", "Flow-Timer: 60"], [b"60"]),
        (["Require: gruu, Outbound"], [b"120"]),
        (["Supported: outbound"], []),
        (['Require: "outbound'], []),
    ],
)
def test_flow_timer_is_added_when_outbound_was_used_and_it_is_absent(headers, flow_timer):
    """R4; 5626 §5.4."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, registering(OUTBOUND, "Supported: path, outbound"))
    arrived = world.one(PBX)
    assert arrived.header(b"path").endswith(b";lr;ob>")
    world.from_backend(response(arrived, 200, "OK", OUTBOUND, *headers, to_tag="t"))
    assert world.one(flow).lines(b"flow-timer") == flow_timer


def test_a_2xx_is_remembered_with_its_expiry_and_a_failure_is_not():
    """R4."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, registering(OUTBOUND, cseq="1"))
    first = world.one(PBX)
    world.from_backend(response(first, 401, "Unauthorized", to_tag="t"))
    assert world.one(flow).status == 401
    assert world.edge.registered(flow.id) == []
    world.from_browser(flow, registering(OUTBOUND, cseq="2"))
    granted = OUTBOUND.replace("expires=600", "expires=77")
    world.from_backend(response(world.one(PBX), 200, "OK", granted, to_tag="t"))
    (found,) = world.edge.registered(flow.id)
    assert (found.aor, found.instance, found.reg_id) == (AOR, b"<urn:uuid:1>", 1)
    assert found.contact == b"sip:x7@abc.invalid;transport=ws"
    assert found.expires_at == world.now + 77
    world.move(78)
    assert world.edge.registered(flow.id) == []


@pytest.mark.parametrize(
    ("asked", "told", "seconds"),
    [
        (";expires=300", ["Contact: <sip:x7@abc.invalid;transport=ws>"], 300),
        ("", ["Contact: <sip:x7@abc.invalid;transport=ws>"], 3600),
        (";expires=300", ["Contact: <sip:x7@abc.invalid;transport=ws>", "Expires: 200"], 200),
        (";expires=300", ["Contact: <sip:x7@abc.invalid;transport=ws>;expires=abc", "Expires: 200"], 3600),
        (";expires=300", ["Contact: <sip:x7@abc.invalid;transport=ws>;expires=99999999999999999999"], 30 * 86400),
        (";expires=300", ["Expires: 200"], 300),
        ("", [], 3600),
        (";expires=0", ["Contact: <sip:x7@abc.invalid;transport=ws>"], None),
        (";expires=300", ["Contact: <sip:other@abc.invalid;transport=ws>"], None),
    ],
)
def test_what_the_2xx_lists_is_registered_also_without_an_expiry_that_can_be_read(
    asked: str, told: list[str], seconds: int | None
) -> None:
    """R4; RFC 3261 §10.2.1.1, §20.10: malformed means 3600, and a Contact without one is listed all the same."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, registering("Contact: <sip:x7@abc.invalid;transport=ws>" + asked))
    world.from_backend(response(world.one(PBX), 200, "OK", *told))
    found = world.edge.registered(flow.id)
    assert [one.expires_at - world.now for one in found] == ([] if seconds is None else [seconds])


def test_expires_0_forgets_the_registration_and_a_star_all_of_them():
    """R4."""
    world = World()
    flow = world.browser()
    register(world, flow, CONTACT)
    assert len(world.edge.registered(flow.id)) == 1
    world.from_browser(flow, registering(CONTACT.replace("600", "0"), cseq="2"))
    world.from_backend(response(world.one(PBX), 200, "OK", to_tag="t"))
    assert world.edge.registered(flow.id) == []
    world.take()
    register(world, flow, CONTACT, cseq="3")
    world.from_browser(flow, registering("Contact: *", "Expires: 0", cseq="4"))
    world.from_backend(response(world.one(PBX), 200, "OK", to_tag="t"))
    assert world.edge.registered(flow.id) == []


def test_what_the_2xx_does_not_list_is_not_registered():
    """R4; 3261 §10.3 step 8: it lists every binding. A 2xx without any Contact says nothing against it."""
    world = World()
    flow = world.browser()
    for cseq, others, count in (("1", (), 1), ("2", ("Contact: <sip:desk@198.51.100.50>;expires=60",), 0)):
        world.from_browser(flow, registering(cseq=cseq))
        world.from_backend(response(world.one(PBX), 200, "OK", *others, to_tag="t"))
        assert len(world.edge.registered(flow.id)) == count


def test_a_provisional_answer_to_a_register_registers_nothing():
    """R4: on 2xx."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, registering())
    world.from_backend(response(world.one(PBX), 183, "Progress", CONTACT, to_tag="t"))
    assert world.edge.registered(flow.id) == []


@pytest.mark.parametrize(
    "contact", ["Contact: <sip:x7@abc", 'Contact: "', "Contact: <tel:1>", "Contact: <>", "Contact: ,,;;"]
)
def test_a_2xx_whose_contact_cannot_be_read_passes_and_is_counted_at_most(contact):
    """What a registrar writes is its own; nothing else is lost."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, registering())
    world.from_backend(response(world.one(PBX), 200, "OK", contact, to_tag="t"))
    assert world.one(flow).status == 200


def test_a_newer_flow_of_the_same_client_supersedes_the_older_once_its_2xx_came():
    """R6."""
    world = World()
    old, new = world.browser(), world.browser(port=40001)
    register(world, old, OUTBOUND)
    world.from_browser(new, registering(OUTBOUND, call_id="r2", cseq="9"))
    assert not world.directory.superseded(old.id, new.id)
    world.from_backend(response(world.one(PBX), 200, "OK", OUTBOUND, to_tag="t"))
    assert world.directory.superseded(old.id, new.id)
    assert world.edge.registered(old.id) == []
    assert len(world.edge.registered(new.id)) == 1


def test_a_lost_socket_sends_nothing():
    """R7: a de-REGISTER is not ours to sign."""
    world = World()
    flow = world.browser()
    register(world, flow)
    world.apply(world.edge.flow_closed(flow.id, world.now))
    assert world.sent == []
    assert world.asked == []


def test_after_a_restart_a_token_with_a_right_mac_is_answered_as_a_flow_that_is_gone():
    """T2, B1: never 403."""
    before, after = World(), World()
    path = register(before, before.browser()).header(b"path").decode()
    after.from_backend(incoming(path))
    assert after.one(PBX).status == 480


def incoming(route: str) -> bytes:
    via = "SIP/2.0/UDP 198.51.100.7:5060;branch=z9hG4bKin"
    return request("INVITE", "sip:x7@abc.invalid;transport=ws", f"Route: {route}", via=via)


def test_a_register_for_a_domain_that_is_not_served_is_answered_404():
    """N4."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, registering(uri="sip:elsewhere.example"))
    assert world.one().status == 404


def test_the_contact_without_brackets_that_holds_an_instance_is_understood():
    """3261 §20: its parameters belong to the header."""
    world = World()
    flow = world.browser()
    bare = 'Contact: sip:x7@abc.invalid;+sip.instance="<urn:uuid:1>";reg-id=1;expires=600'
    register(world, flow, bare)
    (found,) = world.edge.registered(flow.id)
    assert (found.contact, found.instance) == (b"sip:x7@abc.invalid", b"<urn:uuid:1>")


def test_a_supported_that_cannot_be_read_goes_on_as_it_is():
    """R2: our own line is added; the malformed one is the registrar's to judge."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, registering(CONTACT, 'Supported: "path'))
    assert world.one(PBX).lines(b"supported") == [b'"path', b"path"]


def test_what_came_behind_content_length_is_cut_off_and_counted():
    """H4; 3261 §18.3."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, registering() + b"BYE sip:x SIP/2.0\r\n\r\n")
    assert Message.parse(world.sent[0][1]).body == b""
    assert b"BYE" not in world.sent[0][1]
    assert world.counters.values["sip_bytes_behind_body"] == 1
