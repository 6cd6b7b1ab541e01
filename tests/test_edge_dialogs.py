"""Inside dialogs: D1, D2, W1, W2, N6, and what the dialog table keeps."""

from __future__ import annotations

import pytest

from tests.edge_world import (
    BOB,
    CONTACT,
    PBX,
    Call,
    World,
    backend_request,
    register,
    request,
    response,
    routes_of,
)
from wsgate.addr import Address, parse_network
from wsgate.sip.flow import Flow

DESK = Address("198.51.100.50", 5060)
DESK_PHONE = "Contact: <sip:bob@198.51.100.50>"
DIRECT = ((parse_network("198.51.100.48/28"), None),)
IN_DIALOG = ["BYE", "INFO", "UPDATE", "PRACK", "REFER", "NOTIFY", "MESSAGE", "INVITE", "SUBSCRIBE", "OPTIONS"]


@pytest.mark.parametrize("method", IN_DIALOG)
def test_every_method_passes_inside_a_dialog_both_ways(method):
    """D2."""
    world = World()
    call = Call(world, world.browser())
    world.from_browser(call.flow, call.request(method))
    out = world.one(PBX)
    world.from_backend(response(out, 200, "OK", BOB))
    assert [m.status for m in world.take(call.flow)] == ([100, 200] if method == "INVITE" else [200])
    if method == "BYE":
        return
    world.from_backend(call.backend_request(method))
    inside = next(message for message in world.take(call.flow) if message.is_request)
    world.take()
    world.from_browser(call.flow, response(inside, 200, "OK", CONTACT))
    assert world.one(PBX).status == 200


@pytest.mark.parametrize("status", [401, 407])
@pytest.mark.parametrize("from_backend", [True, False])
def test_a_challenge_to_bye_does_not_end_the_dialog(status: int, from_backend: bool) -> None:
    """RFC 3261 §22: it comes again with credentials, and D1 (b) and N6 ask the table whether it may pass."""
    world = World(direct_targets=DIRECT)
    call = Call(world, world.browser(), contact=DESK_PHONE)
    target = "sip:bob@198.51.100.50"
    for cseq, answer in (("2", status), ("3", 200)):
        assert world.edge.counts()["dialogs"] == 1
        if from_backend:
            via = f"SIP/2.0/UDP 198.51.100.50:5060;branch=z9hG4bKd{cseq}"
            world.from_backend(call.backend_request("BYE", cseq=cseq, via=via), DESK)
            bye = world.one(call.flow)
            world.from_browser(call.flow, response(bye, answer, "x"))
            assert world.one(DESK).status == answer
        else:
            world.from_browser(call.flow, call.request("BYE", target, cseq=cseq))
            bye = world.one(DESK)
            world.from_backend(response(bye, answer, "x"), DESK)
            assert world.one(call.flow).status == answer
    assert world.edge.counts()["dialogs"] == 0


# The dialog table


def test_a_2xx_that_comes_again_after_bye_begins_no_second_dialog():
    """Its ACK was lost, and the copy meets the BYE: the table would keep a call that nobody is in for its lifetime."""
    world = World()
    call = Call(world, world.browser())
    world.from_browser(call.flow, call.request("BYE"))
    world.from_backend(response(world.one(PBX), 200, "OK"))
    world.take()
    assert world.edge.counts()["dialogs"] == 0
    world.from_backend(response(call.invite, 200, "OK", BOB, to_tag="b1"))
    assert world.one(call.flow).status == 200, "I6: the copy passes all the same"
    assert world.edge.counts()["dialogs"] == 0


def test_a_2xx_of_a_fork_whose_early_dialog_is_over_begins_it_again():
    """I6: every forked 2xx is a call of its own (RFC 3261 §13.2.2.4)."""
    world = World()
    flow = world.browser()
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT))
    invite = world.one(PBX)
    world.from_backend(response(invite, 183, "x", BOB, to_tag="b2"))
    for tag, count in [("b1", 1), ("b2", 2)]:
        world.from_backend(response(invite, 200, "OK", BOB, to_tag=tag))
        assert world.edge.counts()["dialogs"] == count


def test_a_dialog_begins_with_the_first_101_to_2xx_that_has_a_to_tag():
    world = World()
    flow = world.browser()
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT))
    invite = world.one(PBX)
    for status, tag, count in [(100, "", 0), (180, "", 0), (183, "b1", 1), (180, "b1", 1), (180, "b2", 2)]:
        world.from_backend(response(invite, status, "x", BOB, to_tag=tag))
        assert world.edge.counts()["dialogs"] == count, (status, tag)
    world.from_backend(response(invite, 200, "OK", BOB, to_tag="b1"))
    assert world.edge.counts()["dialogs"] == 1, "the early dialog of the other fork is over"


def test_a_final_failure_ends_the_early_dialogs():
    world = World()
    flow = world.browser()
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT))
    invite = world.one(PBX)
    for tag in ("b1", "b2"):
        world.from_backend(response(invite, 180, "Ringing", BOB, to_tag=tag))
    world.from_backend(response(invite, 486, "Busy", to_tag="b1"))
    assert world.edge.counts()["dialogs"] == 0


@pytest.mark.parametrize("status", [200, 403, 481])
@pytest.mark.parametrize("from_backend", [True, False])
def test_the_final_answer_to_bye_ends_the_dialog(status, from_backend):
    world = World()
    call = Call(world, world.browser())
    if from_backend:
        world.from_backend(call.backend_request("BYE"))
        assert world.edge.counts()["dialogs"] == 1
        world.from_browser(call.flow, response(world.one(call.flow), status, "x"))
    else:
        world.from_browser(call.flow, call.request("BYE"))
        world.from_backend(response(world.one(PBX), status, "x"))
    assert world.edge.counts()["dialogs"] == 0


def test_a_notify_terminated_ends_a_subscription_but_not_the_call_around_a_refer():
    world = World()
    call = Call(world, world.browser())
    world.from_browser(call.flow, call.request("REFER"))
    world.from_backend(response(world.one(PBX), 202, "Accepted", BOB))
    world.take()
    world.from_backend(call.backend_request("NOTIFY", "Subscription-State: terminated;reason=noresource"))
    world.from_browser(call.flow, response(world.one(call.flow), 200, "OK"))
    assert world.edge.counts()["dialogs"] == 1
    world.from_browser(call.flow, request("SUBSCRIBE", "sip:bob@example.com", CONTACT, call_id="sub"))
    subscribe = next(message for message in world.take(PBX) if message.method == b"SUBSCRIBE")
    world.from_backend(response(subscribe, 200, "OK", BOB, to_tag="b9"))
    assert world.edge.counts()["dialogs"] == 2
    routes = routes_of(subscribe, is_caller=False)
    notify = call.backend_request("NOTIFY", "Subscription-State: Terminated ;reason=x")
    notify = notify.replace(b"call-1@test", b"sub").replace(b"tag=b1", b"tag=b9")
    world.take()
    world.from_backend(notify)
    assert routes
    world.from_browser(call.flow, response(world.one(call.flow), 200, "OK"))
    assert world.edge.counts()["dialogs"] == 1


def test_a_full_table_refuses_new_dialogs_and_never_forgets_a_live_one():
    """503 with Retry-After to a browser, 480 to a backend (table A)."""
    world = World(dialogs=1)
    flow = world.browser()
    path = register(world, flow).header(b"path").decode()
    call = Call(world, flow)
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT, call_id="c2"))
    answer = world.one()
    assert (answer.status, answer.header(b"retry-after")) == (503, b"10")
    world.from_backend(backend_request("INVITE", "sip:alice@abc.invalid", f"Route: {path}", call_id="c3"))
    assert world.one(PBX).status == 480
    world.from_browser(flow, call.request("INVITE"))
    assert world.one(PBX).method == b"INVITE", "inside the living dialog all goes on"
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", call_id="c4"))
    assert world.one(PBX).method == b"MESSAGE", "what begins no dialog too"


def test_while_draining_new_dialogs_get_503_and_living_ones_go_on():
    """Table A."""
    world = World()
    call = Call(world, world.browser())
    world.edge.draining = True
    world.from_browser(call.flow, request("INVITE", "sip:bob@example.com", CONTACT, call_id="c2"))
    answer = world.one()
    assert (answer.status, answer.header(b"retry-after")) == (503, b"10")
    world.from_browser(call.flow, call.request("BYE"))
    assert world.one(PBX).method == b"BYE"


def test_a_silent_dialog_ends_after_dialog_lifetime():
    world = World(dialog_lifetime=100.0)
    call = Call(world, world.browser())
    world.move(60)
    world.from_browser(call.flow, call.request("INFO"))
    world.take()
    world.move(99)
    assert world.edge.counts()["dialogs"] == 1
    world.move(2)
    assert world.edge.counts()["dialogs"] == 0
    assert world.counters.values["sip_dialogs_forgotten"] == 1


def test_a_contact_or_record_route_that_cannot_be_read_is_no_target():
    """H4: what a far party writes harms nobody."""
    world = World()
    flow = world.browser()
    for number, broken in enumerate(['Contact: "', "Contact: <sip:", "Record-Route: <", 'Record-Route: "<sip:a;lr>']):
        world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT, broken, call_id=f"c{number}"))
        invite = world.one(PBX)
        world.take()
        for status in (180, 200):
            world.from_backend(response(invite, status, "x", broken, to_tag="b1"))
            assert world.one(flow).status == status
        world.from_browser(
            flow, request("UPDATE", "sip:b@198.51.100.7", broken, call_id=f"c{number}", to="<sip:b@x>;tag=b1")
        )
        assert world.one(PBX).method == b"UPDATE"


# Where a browser may send inside a dialog (D1)


def test_a_remote_target_inside_direct_targets_is_reached_exactly_as_it_was_given():
    """D1 (b)."""
    world = World(direct_targets=DIRECT)
    call = Call(world, world.browser(), contact=DESK_PHONE)
    world.from_browser(call.flow, call.request("BYE", "sip:bob@198.51.100.50"))
    assert world.one(DESK).method == b"BYE"


@pytest.mark.parametrize(
    ("uri", "tag", "status"),
    [
        ("sip:bob@198.51.100.50:5061", "b1", 403),
        ("sip:bob@198.51.100.50;transport=tcp", "b1", 403),
        ("sip:bob@198.51.100.51", "b1", 403),
        ("sip:carol@198.51.100.50", "b1", 403),
        ("sip:bob@desk.example", "b1", 403),
        ("sip:bob@198.51.100.50", "b2", 481),
    ],
)
def test_another_target_inside_direct_targets_is_not(uri, tag, status):
    """D1 (b), table A: a To tag proves nothing."""
    world = World(direct_targets=DIRECT)
    call = Call(world, world.browser(), contact=DESK_PHONE)
    world.from_browser(call.flow, call.request("BYE", uri, to=f"<sip:bob@example.com>;tag={tag}"))
    assert world.one().status == status


def test_the_next_route_that_the_backend_side_gave_is_reached_inside_direct_targets():
    """D1 (b): the far proxy's Record-Route."""
    world = World(direct_targets=DIRECT)
    call = Call(world, world.browser(), contact=DESK_PHONE, record_route="<sip:198.51.100.52;lr>")
    assert call.routes.endswith("<sip:198.51.100.52;lr>")
    world.from_browser(call.flow, call.request("BYE", "sip:bob@198.51.100.50"))
    bye = world.one(Address("198.51.100.52", 5060))
    assert bye.values(b"route") == [b"<sip:198.51.100.52;lr>"]
    world.from_browser(
        call.flow, call.request("INFO", "sip:bob@198.51.100.50", route=call.routes.split(", <sip:198")[0])
    )
    assert world.one().status == 403, "its target is behind that route and not in reach without it"


def test_a_browser_that_is_no_party_reaches_no_direct_target():
    """D1 (b): also one that knows Call-ID and tags."""
    world = World(direct_targets=DIRECT)
    call = Call(world, world.browser(), contact=DESK_PHONE)
    other = world.browser(port=40001)
    world.from_browser(other, call.request("BYE", "sip:bob@198.51.100.50", route=""))
    assert world.one(other).status == 403


NEVER = "127.0.0.1 169.254.169.254 224.0.0.1 0.0.0.0 [::1] [fe80::1] [::ffff:127.0.0.1] 192.0.2.1 255.255.255.255"
METADATA = "100.100.100.200 168.63.129.16 192.0.0.192 [fd00:ec2::254]"


@pytest.mark.parametrize("host", [*NEVER.split(), *METADATA.split()])
def test_loopback_link_local_multicast_metadata_and_ourselves_never_count(host):
    """D1: even where direct_targets is everything."""
    everything = ((parse_network("0.0.0.0/0"), None), (parse_network("::/0"), None))
    world = World(direct_targets=everything)
    call = Call(world, world.browser(), contact=f"Contact: <sip:bob@{host}>")
    world.from_browser(call.flow, call.request("BYE", f"sip:bob@{host}"))
    assert world.one(call.flow).status in (403, 404)
    assert world.sent == []


def test_a_direct_target_may_be_bound_to_a_port():
    """D1: CIDR[:port]."""
    world = World(direct_targets=((parse_network("198.51.100.50"), 5070),))
    for number, (port, status) in enumerate([(5060, 403), (5070, 0)]):
        contact = f"Contact: <sip:bob@198.51.100.50:{port}>"
        call = Call(world, world.browser(port=40000 + number), contact=contact, call_id=f"c{port}")
        world.from_browser(call.flow, call.request("BYE", f"sip:bob@198.51.100.50:{port}"))
        assert world.one().status == status


# Who may send from the backend side (N6)


def test_a_stranger_gets_one_403_within_the_rate_limit_then_nothing():
    """N6."""
    world = World()
    stranger = Address("203.0.113.77", 5060)
    for _ in range(5):
        world.from_backend(backend_request("OPTIONS", "sip:alice@example.com"), stranger)
    assert [message.status for message in world.take()] == [403]
    world.move(11)
    world.from_backend(backend_request("OPTIONS", "sip:alice@example.com"), stranger)
    assert world.one().status == 403
    assert world.counters.values["sip_requests_of_strangers"] == 6


def test_a_stranger_never_gets_an_answer_to_an_ack_or_to_what_cannot_be_answered():
    """N6, I7."""
    world = World()
    stranger = Address("203.0.113.77", 5060)
    world.from_backend(backend_request("ACK", "sip:alice@example.com"), stranger)
    world.from_backend(b"OPTIONS sip:x SIP/2.0\r\n\r\n", stranger)
    world.from_backend(b"\x00\x01\r\n\r\n", stranger)
    assert world.sent == []


def test_the_strangers_that_are_remembered_are_bounded():
    """N6: a flood of sources gets no more than the limit."""
    world = World()
    for number in range(1500):
        stranger = Address(f"203.0.{113 + number // 250}.{number % 250}", 5060)
        world.from_backend(backend_request("OPTIONS", "sip:alice@example.com"), stranger)
    assert len(world.take()) == 1024


def test_a_trusted_source_may_send_to_a_browser_by_its_token():
    """N6: trusted_sources says who may send to us."""
    world = World(trusted_sources=(parse_network("203.0.113.64/26"),))
    flow = world.browser()
    path = register(world, flow).header(b"path").decode()
    trusted = Address("203.0.113.77", 5060)
    world.from_backend(backend_request("MESSAGE", "sip:alice@abc.invalid", f"Route: {path}"), trusted)
    assert world.one(flow).method == b"MESSAGE"


def test_trusted_sources_say_never_where_a_browser_may_send():
    """D1."""
    world = World(trusted_sources=(parse_network("203.0.113.64/26"),))
    flow = world.browser()
    world.from_browser(flow, request("OPTIONS", "sip:x@203.0.113.77"))
    assert world.one(flow).status == 403


def test_a_request_in_a_known_dialog_with_a_valid_token_is_taken_from_any_address():
    """N6: a desk phone behind a proxy that does not record-route sends its BYE straight to us."""
    world = World()
    call = Call(world, world.browser())
    world.from_backend(call.backend_request("BYE", via="SIP/2.0/UDP 198.51.100.50;branch=z9hG4bKdesk"), DESK)
    assert world.one(call.flow).method == b"BYE"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"tag=b1", b"tag=b2"),
        (b"tag=a1", b"tag=a2"),
        (b"Call-ID: call-1", b"Call-ID: call-2"),
        (b"Route: ", b"X-Route: "),
        (b"<sip:AQ", b"<sip:AR"),
    ],
)
def test_without_the_right_token_call_id_and_tags_a_stranger_stays_a_stranger(old, new):
    """N6."""
    world = World()
    call = Call(world, world.browser())
    world.from_backend(call.backend_request("BYE").replace(old, new), DESK)
    answer = world.one(DESK)
    assert answer.status == 403
    assert b"trusted_sources" in answer.header(b"warning")


def test_the_tags_of_one_call_open_no_way_to_another_flow():
    """N6: the token must be of a flow of that dialog."""
    world = World()
    call = Call(world, world.browser())
    other = world.browser(port=40001)
    world.from_backend(call.backend_request("INFO").replace(call.flow.token, other.token), DESK)
    assert world.one(DESK).status == 403


def test_a_mid_dialog_request_changes_the_target_only_from_a_backend_or_from_the_target_itself():
    """N6."""
    moved = "Contact: <sip:bob@198.51.100.60>"
    for source, changes in [(PBX, True), (DESK, True), (Address("198.51.100.51", 5060), False)]:
        world = World(direct_targets=((parse_network("198.51.100.0/24"), None),))
        call = Call(world, world.browser(), contact=DESK_PHONE)
        via = f"SIP/2.0/UDP {source.host};branch=z9hG4bKmove"
        world.from_backend(call.backend_request("UPDATE", moved, via=via), source)
        assert world.one(call.flow).method == b"UPDATE"
        world.from_browser(call.flow, call.request("BYE", "sip:bob@198.51.100.60"))
        world.take(call.flow)
        assert bool(world.take(Address("198.51.100.60", 5060))) is changes, source


# Two browsers in one call


def two_browsers() -> tuple[World, Flow, Flow, str]:
    """Alice calls bob through a PBX that does not record-route: both are browsers; bob's view of the route set."""
    world = World()
    alice, bob = world.browser(), world.browser(port=40001)
    path = register(world, bob, user="bob").header(b"path")
    world.from_browser(alice, request("INVITE", "sip:bob@example.com", CONTACT))
    out = world.one(PBX)
    passed = out.data.replace(b"sip:bob@example.com SIP", b"sip:bob@abc.invalid;transport=ws SIP")
    own = b"Via: SIP/2.0/UDP 198.51.100.7;branch=z9hG4bKpbx\r\nRoute: %b\r\nVia:" % path
    world.from_backend(passed.replace(b"Via:", own, 1))
    arrived = world.one(bob)
    world.from_browser(bob, response(arrived, 200, "OK", "Contact: <sip:bob@abc.invalid;transport=ws>", to_tag="b1"))
    back = next(message for message in world.take(PBX) if message.status == 200)
    world.from_backend(back.data[: back.headers[0].start] + back.data[back.headers[0].end :])
    ok = next(message for message in world.take(alice) if message.status == 200)
    assert ok.values(b"record-route") == arrived.values(b"record-route")
    return world, alice, bob, routes_of(arrived, is_caller=False)


def test_through_a_backend_that_does_not_record_route_each_leg_has_its_own_pair():
    """W1: four entries in all, and one dialog that holds both flows."""
    world, alice, bob, routes = two_browsers()
    tokens = [route.partition("sip:")[2].partition("@")[0].encode() for route in routes.split(", ")]
    assert tokens == [bob.token, bob.token, alice.token, alice.token]
    assert world.edge.counts()["dialogs"] == 1


def test_the_target_is_the_last_popped_token_that_is_not_the_arriving_flow():
    """W2, B2: a token that names the flow a request came in on is not its target."""
    world, alice, bob, routes = two_browsers()
    back = ", ".join(routes.split(", ")[::-1])
    tags = {"from": "<sip:bob@example.com>;tag=b1", "to": "<sip:alice@example.com>;tag=a1"}
    world.from_browser(bob, request("INFO", "sip:alice@abc.invalid;transport=ws", f"Route: {routes}", **tags))
    assert world.one(alice).lines(b"route") == []
    world.from_browser(
        alice, request("BYE", "sip:bob@abc.invalid;transport=ws", f"Route: {back}", to="<sip:bob@example.com>;tag=b1")
    )
    assert world.one(bob).method == b"BYE"


def test_of_several_tokens_the_last_that_was_popped_leads():
    """W2: what stands above it is ours and passed over, whosever it is."""
    world, alice, bob, _ = two_browsers()
    third = world.browser(port=40002)
    place = "gate.example.org:443;transport=ws;lr"
    routes = [f"Route: <sip:{flow.token.decode()}@{place}>" for flow in (third, bob, alice)]
    to = "<sip:bob@example.com>;tag=b1"
    world.from_browser(alice, request("INFO", "sip:bob@abc.invalid;transport=ws", *routes, to=to))
    assert world.one(bob).method == b"INFO"


def test_the_token_of_another_flow_outside_a_known_dialog_leads_nowhere():
    """W2: without To tag 403, unknown dialog 481, known but without this flow 403."""
    world, alice, bob, _ = two_browsers()
    third = world.browser(port=40002)
    route = f"Route: <sip:{bob.token.decode()}@gate.example.org:443;transport=ws;lr>"
    uri = "sip:bob@abc.invalid;transport=ws"
    for flow, to, status in [
        (alice, "<sip:bob@example.com>", 403),
        (alice, "<sip:bob@example.com>;tag=zz", 481),
        (third, "<sip:bob@example.com>;tag=b1", 403),
    ]:
        world.from_browser(flow, request("MESSAGE", uri, route, to=to))
        assert world.one(flow).status == status
    route = f"Route: <sip:{third.token.decode()}@gate.example.org:443;transport=ws;lr>"
    world.from_browser(alice, request("MESSAGE", uri, route, to="<sip:bob@example.com>;tag=b1"))
    assert world.one(alice).status == 403, "nor does a token of a flow that is no party"


def test_a_token_of_the_flow_that_this_one_superseded_is_its_own():
    """W2, D3: after a reconnect the browser's route set still names the old one."""
    world = World()
    old = world.browser()
    contact = 'Contact: <sip:alice@abc.invalid;transport=ws>;+sip.instance="<urn:uuid:1>";reg-id=1;expires=600'
    register(world, old, contact)
    call = Call(world, old)
    world.apply(world.edge.flow_closed(old.id, world.now))
    new = world.browser(port=40009)
    register(world, new, contact, cseq="7", call_id="again")
    world.from_browser(new, call.request("BYE"))
    assert world.one(PBX).method == b"BYE"
    stranger = world.browser(port=40010)
    world.from_browser(stranger, call.request("INFO"))
    assert world.one(stranger).status == 403


def strict(world: World, call: Call, method: str, **fields: str) -> bytes:
    """A request of bob by way of a strict router: our Record-Route is the Request-URI, the target the last Route."""
    first, second = (value.strip(" <>") for value in routes_of(call.invite, is_caller=False).split(","))
    target = "<sip:alice@abc.invalid;transport=ws>"
    values = {
        "from": "<sip:bob@example.com>;tag=b1",
        "to": "<sip:alice@example.com>;tag=a1",
        "call_id": call.call_id,
    } | fields
    return backend_request(method, first, f"Route: <{second}>,{target}", **values)


@pytest.mark.parametrize("method", ["BYE", "ACK", "INFO"])
def test_what_a_strict_router_in_front_of_us_sends_reaches_the_browser(method: str) -> None:
    """RFC 3261 §16.4; D1: the token in the Request-URI decides."""
    world = World()
    call = Call(world, world.browser())
    world.from_backend(strict(world, call, method))
    arrived = world.one(call.flow)
    assert (arrived.method, arrived.uri) == (method.encode(), b"sip:alice@abc.invalid;transport=ws")
    assert arrived.header(b"route") is None
    if method == "BYE":
        world.from_browser(call.flow, response(arrived, 200, "OK"))
        assert world.one(PBX).status == 200
        assert world.edge.counts()["dialogs"] == 0


def test_a_strict_router_may_follow_a_path() -> None:
    """RFC 3261 §16.4 for the token of a Path, of which there is but one (R2, B1)."""
    world = World()
    flow = world.browser()
    path = register(world, flow).values(b"path")[0].strip(b"<>").decode()
    route = "Route: <sip:alice@abc.invalid;transport=ws>"
    world.from_backend(backend_request("INVITE", path, route, BOB))
    arrived = world.one(flow)
    assert arrived.uri == b"sip:alice@abc.invalid;transport=ws"
    assert arrived.header(b"route") is None
    assert world.one(PBX).status == 100


def test_a_request_uri_with_a_forged_token_is_no_route_of_ours() -> None:
    """T1, N4: nothing is taken out of Route for it."""
    world = World()
    call = Call(world, world.browser())
    message = strict(world, call, "BYE")
    world.from_backend(message.replace(call.flow.token, call.flow.token[:-1] + b"~"))
    assert world.one(PBX).status in (403, 404)
    assert world.take(call.flow) == []


@pytest.mark.parametrize("method", ["BYE", "ACK"])
def test_a_strict_router_behind_us_finds_itself_in_the_request_uri(method: str) -> None:
    """RFC 3261 §16.6 step 6, §16.12.1.2: the Route that has no `lr` and the Request-URI change places."""
    world = World()
    call = Call(world, world.browser(), record_route="<sip:198.51.100.7;x=y>")
    world.from_browser(call.flow, call.request(method, "sip:bob@203.0.113.9;z"))
    arrived = world.one(PBX)
    assert arrived.uri == b"sip:198.51.100.7;x=y"
    assert arrived.values(b"route") == [b"<sip:bob@203.0.113.9;z>"]


def test_a_loose_router_behind_us_keeps_its_route() -> None:
    """RFC 3261 §16.6 step 6."""
    world = World()
    call = Call(world, world.browser(), record_route="<sip:far.example.net>, <sip:198.51.100.7;x=y;LR=on>")
    world.from_browser(call.flow, call.request("BYE", "sip:bob@203.0.113.9;z"))
    arrived = world.one(PBX)
    assert arrived.uri == b"sip:bob@203.0.113.9;z"
    assert arrived.values(b"route") == [b"<sip:198.51.100.7;x=y;LR=on>", b"<sip:far.example.net>"]
