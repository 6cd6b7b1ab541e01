"""The embedded registrar through the edge: G1, G4, G6, W1, N3, C2 where both ends are browsers."""

from __future__ import annotations

import pytest

from tests.edge_world import PBX, World, ack_of, backend_request, request, response, routes_of
from tests.test_digest import Bytes, authorization, nonce_of
from wsgate.credentials import Users, hashes_of
from wsgate.directory import Directory
from wsgate.metrics import Counters
from wsgate.sip.digest import Digest, DigestAlgorithm
from wsgate.sip.flow import Flow
from wsgate.sip.message import Message
from wsgate.sip.registrar import Registrar, RegistrarSettings
from wsgate.sip.targets import BackendSettings

REALM = "example.com"
NAMES = ("alice", "bob", "carol")


class Office(World):
    """A world whose one domain is served by the embedded registrar."""

    def __init__(self, **options: object) -> None:
        directory = Directory()
        users = Users({(name, REALM): hashes_of(name, REALM, "wonder") for name in NAMES})
        self.digest = Digest(users, tuple(DigestAlgorithm), b"k" * 32, Bytes(), 1.7e9)
        registrar = Registrar(RegistrarSettings(), directory, self.digest, Counters())
        backends = {REALM: BackendSettings(target="embedded")}
        super().__init__({}, backends, registrar=registrar, directory=directory, **options)  # type: ignore[arg-type]

    def credentials(self, method: str, uri: str, user: str, *, proxy: bool) -> str:
        nonce = nonce_of(self.digest.challenge(REALM, proxy, False, self.now))
        value = authorization(nonce, user=user, method=method.encode(), uri=uri.encode()).decode()
        return ("Proxy-Authorization: " if proxy else "Authorization: ") + value

    def phone(self, user: str, *parameters: str, port: int = 40000) -> Flow:
        """A browser registered as `user`."""
        flow = self.browser(port=port)
        contact = "".join((f"Contact: <sip:{user}{port}@{user}.invalid;transport=ws>", *parameters))
        aor = f"<sip:{user}@{REALM}>"
        uri = f"sip:{REALM}"
        headers = [contact, "Supported: path, outbound", self.credentials("REGISTER", uri, user, proxy=False)]
        values = {"from": aor + ";tag=r", "to": aor, "call_id": f"r{user}{port}"}
        self.from_browser(flow, request("REGISTER", uri, *headers, **values))
        assert self.one(flow).status == 200
        return flow

    def call(self, flow: Flow, method: str = "INVITE", *headers: str, **fields: str) -> Message:
        """Alice asks for bob; returns the request as she sent it."""
        data = request(
            method, "sip:bob@example.com", "Contact: <sip:alice40000@alice.invalid;transport=ws>", *headers, **fields
        )
        self.from_browser(flow, data)
        return Message.parse(data)


INSTANCE = ';+sip.instance="<urn:uuid:{}>";reg-id=1'


def test_register_is_challenged_and_answered_here():
    """G2, G3 through the edge: no backend, nothing leaves but to the browser."""
    world = Office()
    flow = world.browser()
    world.from_browser(
        flow, request("REGISTER", "sip:example.com", "Contact: <sip:x@y.invalid>", to="<sip:bob@example.com>")
    )
    assert world.one(flow).status == 401
    world.phone("bob")
    assert world.sent == []
    assert world.edge.counts()["bindings"] == 1


def test_a_call_between_two_browsers_has_both_tokens_the_callees_above_the_callers():
    """W1: two Record-Routes with transport=ws; B6: the .invalid Contact goes by its flow."""
    world = Office()
    alice, bob = world.phone("alice"), world.phone("bob", port=40001)
    world.call(alice)
    assert world.one(alice).status == 100
    invite = world.one(bob)
    assert invite.uri == b"sip:bob40001@bob.invalid;transport=ws", "C2: the user that registered"
    assert invite.values(b"record-route") == [
        b"<sip:%b@gate.example.org:443;transport=ws;r2=on;lr>" % bob.token,
        b"<sip:%b@gate.example.org:443;transport=ws;r2=on;lr>" % alice.token,
    ]
    contact = "Contact: <sip:bob40001@bob.invalid;transport=ws>"
    world.from_browser(bob, response(invite, 200, "OK", contact, to_tag="b1"))
    ok = world.one(alice)
    to = "<sip:bob@example.com>;tag=b1"
    uri = "sip:bob40001@bob.invalid;transport=ws"
    world.from_browser(alice, request("ACK", uri, f"Route: {routes_of(ok, is_caller=True)}", to=to))
    assert world.one(bob).method == b"ACK"
    back = {"from": to, "to": "<sip:alice@example.com>;tag=a1", "cseq": "9"}
    route = f"Route: {routes_of(invite, is_caller=False)}"
    world.from_browser(bob, request("BYE", "sip:alice40000@alice.invalid;transport=ws", route, **back))
    bye = world.one(alice)
    assert (bye.method, bye.lines(b"route")) == (b"BYE", [])
    world.from_browser(alice, response(bye, 200, "OK"))
    assert world.one(bob).status == 200
    assert world.edge.counts()["dialogs"] == 0


def test_an_unknown_user_is_404_and_a_known_one_that_cannot_be_reached_480():
    """G1."""
    world = Office()
    alice = world.phone("alice")
    for uri, status in [("sip:nobody@example.com", 404), ("sip:carol@example.com", 480)]:
        world.from_browser(alice, request("MESSAGE", uri))
        assert world.one(alice).status == status
    bob = world.phone("bob", port=40001)
    world.apply(world.edge.flow_closed(bob.id, world.now))
    world.call(alice, "MESSAGE")
    assert world.one(alice).status == 480


def test_from_must_be_registered_on_this_flow_or_authenticated():
    """G4: otherwise 407; another user's after authentication 403."""
    world = Office()
    world.phone("bob", port=40001)
    flow = world.browser(port=40002)
    world.call(flow, "MESSAGE")
    challenge = world.one(flow)
    assert challenge.status == 407
    assert challenge.header(b"proxy-authenticate") is not None
    for user, status in [("carol", 403), ("alice", 0)]:
        proof = world.credentials("MESSAGE", "sip:bob@example.com", user, proxy=True)
        world.call(flow, "MESSAGE", proof)
        answers = world.take(flow)
        assert [answer.status for answer in answers] == ([status] if status else [])
    assert [message.method for message in world.take()] == [b"MESSAGE"]


@pytest.mark.parametrize(
    ("from_", "status"),
    [
        ("<sip:bob@example.com>;tag=a1", 407),
        ("<sip:alice@elsewhere.example>;tag=a1", 407),
        ('"Bob" <sip:BOB@example.com>;tag=a1', 407),
        ("<sip:alice@example.com>;tag=a1", 0),
        ("<sip:alice@EXAMPLE.com:5060;x=y>;tag=a1", 0),
        ("<sip:%61lice@example.com>;tag=a1", 0),
        ("Anonymous <sip:anonymous@anonymous.invalid>;tag=a1", 0),
    ],
)
def test_a_registered_flow_speaks_as_its_own_aor_or_anonymous(from_, status):
    """G4."""
    world = Office()
    alice, bob = world.phone("alice"), world.phone("bob", port=40001)
    world.call(alice, "MESSAGE", **{"from": from_})
    assert [answer.status for answer in world.take(alice)] == ([status] if status else [])
    assert len(world.take(bob)) == (0 if status else 1)


def test_a_flow_that_has_not_registered_is_not_anonymous():
    """G4."""
    world = Office()
    world.phone("bob", port=40001)
    flow = world.browser(port=40002)
    world.call(flow, "MESSAGE", **{"from": "<sip:anonymous@anonymous.invalid>;tag=a1"})
    assert world.one(flow).status == 407


def test_a_to_tag_opens_no_way_round_the_judgement_of_from():
    """G4, D1: a To tag proves nothing."""
    world = Office()
    world.phone("bob", port=40001)
    flow = world.browser(port=40002)
    for method in ("INVITE", "MESSAGE", "BYE", "ACK"):
        for uri in ("sip:bob@example.com", "sip:bob40001@bob.invalid;transport=ws"):
            world.from_browser(flow, request(method, uri, to="<sip:bob@example.com>;tag=zz"))
            assert {answer.status for answer in world.take()} <= {481}


# Forking (G6)


def forked(world: Office) -> tuple[Flow, list[Flow], list[Message]]:
    """Alice's INVITE at the three browsers of bob."""
    alice = world.phone("alice")
    bobs = [world.phone("bob", INSTANCE.format(n), port=40001 + n) for n in range(3)]
    world.call(alice)
    assert world.one(alice).status == 100
    return alice, bobs, [world.one(bob) for bob in bobs]


def contact_of(number: int) -> str:
    return f"Contact: <sip:bob{40001 + number}@bob.invalid;transport=ws>"


def test_a_call_goes_to_the_newest_flow_of_each_instance_in_parallel():
    """G6."""
    world = Office()
    alice = world.phone("alice")
    old = world.phone("bob", INSTANCE.format(1), port=40001)
    new = world.phone("bob", INSTANCE.format(1), port=40002)
    other = world.phone("bob", INSTANCE.format(2), port=40003)
    world.call(alice)
    assert world.take(old) == []
    assert world.one(new).branch != world.one(other).branch


def test_the_first_2xx_wins_and_the_losers_are_cancelled():
    """G6; each forked 2xx that crossed passes."""
    world = Office()
    alice, bobs, invites = forked(world)
    for number in range(3):
        world.from_browser(
            bobs[number], response(invites[number], 180, "Ringing", contact_of(number), to_tag=f"b{number}")
        )
    assert [answer.status for answer in world.take(alice)] == [180] * 3
    world.from_browser(bobs[1], response(invites[1], 200, "OK", contact_of(1), to_tag="b1"))
    assert world.one(alice).to_tag == b"b1"
    for number in (0, 2):
        cancel = world.one(bobs[number])
        assert (cancel.method, cancel.branch) == (b"CANCEL", invites[number].branch)
        assert b"Call completed elsewhere" in cancel.header(b"reason")
    world.from_browser(bobs[0], response(invites[0], 200, "OK", contact_of(0), to_tag="b0"))
    assert world.one(alice).to_tag == b"b0"
    world.from_browser(bobs[2], response(invites[2], 487, "Request Terminated", to_tag="b2"))
    assert world.one(bobs[2]).method == b"ACK"
    assert world.take(alice) == []
    assert world.edge.counts()["dialogs"] == 2


@pytest.mark.parametrize(
    ("answers", "best"),
    [
        ((486, 404, 480), 486),
        ((408, 486, 480), 486),
        ((408, 404, 430), 404),
        ((404, 480, 488), 488),
        ((486, 422, 408), 422),
        ((503, 486, 500), 486),
        ((503, 503, 503), 500),
        ((302, 486, 404), 302),
        ((404, 407, 486), 407),
        ((500, 408, 501), 408),
    ],
)
def test_the_best_answer_goes_back_when_all_have_answered(answers, best):
    """G6; 3261 §16.7 step 6."""
    world = Office()
    alice, bobs, invites = forked(world)
    for bob, invite, status in zip(bobs, invites, answers, strict=True):
        assert world.take(alice) == []
        world.from_browser(bob, response(invite, status, "x", to_tag="t"))
    assert world.one(alice).status == best


@pytest.mark.parametrize(
    ("answers", "best"), [((500, 501), 408), ((486, 500), 486), ((404, 501), 404), ((603, 486), 603)]
)
def test_a_branch_without_an_answer_counts_as_408(answers, best):
    """G6; 3261 §16.8, §16.7 step 6: of the lowest class, so it beats a 5xx; a 4xx that came says more."""
    world = Office()
    alice, bobs, invites = forked(world)
    for bob, invite, status in zip(bobs, invites, answers, strict=False):
        world.from_browser(bob, response(invite, status, "x", to_tag="t"))
    world.take(alice)
    world.move(40)
    assert world.one(alice).status == best


@pytest.mark.parametrize("status", [404, 500])
def test_a_branch_without_an_answer_is_no_408_for_what_is_no_invite(status: int):
    """RFC 4320 §4.2: nothing would go upstream, so what came does."""
    world = Office()
    alice, bob = world.phone("alice"), world.phone("bob", INSTANCE.format(1), port=40001)
    silent = world.phone("bob", INSTANCE.format(2), port=40002)
    fields = {"from": "<sip:alice@example.com>;tag=a1", "to": "<sip:bob@example.com>"}
    world.from_browser(alice, request("OPTIONS", "sip:bob@example.com", **fields))
    assert world.one(silent).method == b"OPTIONS"
    world.from_browser(bob, response(world.one(bob), status, "x", to_tag="t"))
    world.move(40)
    assert [answer.status for answer in world.take(alice)] == [100, status]


def test_a_branch_whose_browser_went_counts_as_480():
    """D5, G6: better than a 5xx of another device."""
    world = Office()
    alice, bobs, invites = forked(world)
    for number in (0, 1):
        world.from_browser(bobs[number], response(invites[number], 500, "x", to_tag="t"))
    world.apply(world.edge.flow_closed(bobs[2].id, world.now))
    assert world.one(alice).status == 480


def test_a_6xx_ends_it_for_all():
    """G6; 3261 §16.7 step 5: the others are cancelled, the 6xx goes back when they are over."""
    world = Office()
    alice, bobs, invites = forked(world)
    for number in range(3):
        world.from_browser(
            bobs[number], response(invites[number], 180, "Ringing", contact_of(number), to_tag=f"b{number}")
        )
    world.take()
    world.from_browser(bobs[0], response(invites[0], 603, "Decline", to_tag="b0"))
    for number in (1, 2):
        assert world.one(bobs[number]).method == b"CANCEL"
        world.from_browser(bobs[number], response(invites[number], 487, "Request Terminated", to_tag=f"b{number}"))
    assert world.one(alice).status == 603


def test_the_challenges_of_several_refusals_are_merged():
    """G6; 3261 §16.7 step 7."""
    world = Office()
    alice, bobs, invites = forked(world)
    for number, (status, name) in enumerate([(401, "WWW"), (407, "Proxy"), (486, "X")]):
        line = f'{name}-Authenticate: Digest realm="r{number}"'
        world.from_browser(bobs[number], response(invites[number], status, "x", line, to_tag="t"))
    answer = world.one(alice)
    assert answer.lines(b"www-authenticate") == [b'Digest realm="r0"']
    assert answer.lines(b"proxy-authenticate") == [b'Digest realm="r1"']


def test_a_cancel_reaches_every_branch_and_487_comes_back():
    """B5, G6."""
    world = Office()
    alice = world.phone("alice")
    bobs = [world.phone("bob", INSTANCE.format(n), port=40001 + n) for n in range(2)]
    invite = world.call(alice)
    arrived = [world.one(bob) for bob in bobs]
    for number in range(2):
        world.from_browser(
            bobs[number], response(arrived[number], 180, "Ringing", contact_of(number), to_tag=f"b{number}")
        )
    world.take()
    lines = [b"CANCEL sip:bob@example.com SIP/2.0", b"Via: " + invite.via_bytes]
    lines += [b"From: " + invite.header(b"from"), b"To: " + invite.header(b"to"), b"Call-ID: " + invite.call_id]
    world.from_browser(alice, b"\r\n".join([*lines, b"CSeq: 1 CANCEL", b"", b""]))
    assert world.one(alice).status == 200
    for number in range(2):
        assert world.one(bobs[number]).method == b"CANCEL"
        world.from_browser(bobs[number], response(arrived[number], 487, "Request Terminated", to_tag=f"b{number}"))
        world.take(bobs[number])
    ended = world.one(alice)
    assert ended.status == 487
    world.from_browser(alice, ack_of(ended, invite))
    assert world.sent == []


def test_a_lost_browser_of_several_leaves_the_others_ringing():
    """D5, G6."""
    world = Office()
    alice, bobs, invites = forked(world)
    world.apply(world.edge.flow_closed(bobs[0].id, world.now))
    assert world.take(alice) == []
    for number in (1, 2):
        world.from_browser(bobs[number], response(invites[number], 486, "Busy", to_tag="t"))
    assert world.one(alice).status == 486


@pytest.mark.parametrize(
    ("breadth", "refused"), [("2", True), ("3", False), ("0", True), ("x", False), ("9" * 50, False)]
)
def test_more_branches_than_max_breadth_are_440(breadth, refused):
    """G6; 5393 §5.3.3."""
    world = Office()
    alice = world.phone("alice")
    for number in range(3):
        world.phone("bob", INSTANCE.format(number), port=40001 + number)
    world.call(alice, "INVITE", f"Max-Breadth: {breadth}")
    statuses = [answer.status for answer in world.take(alice)]
    assert statuses == ([440] if refused else [100])


def test_sips_towards_a_browser_is_416():
    """C2, table A."""
    world = Office()
    alice = world.phone("alice")
    world.phone("bob", port=40001)
    world.from_browser(alice, request("MESSAGE", "sips:bob@example.com"))
    assert world.one(alice).status == 416


def test_without_a_registrar_an_embedded_domain_is_404():
    world = World({}, {REALM: BackendSettings(target="embedded")})
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com"))
    assert world.one(flow).status == 404


def test_the_embedded_domain_is_no_way_in_for_strangers():
    """G1, N6: from a backend or trusted source only."""
    world = Office()
    world.phone("bob", port=40001)
    world.from_backend(backend_request("INVITE", "sip:bob@example.com"), PBX)
    assert world.one(PBX).status == 403


def test_who_knows_a_call_gets_in_by_its_token_and_no_other_way():
    """G1, N6: the tags and a token below a Route that is not ours open the location service to nobody."""
    world = Office()
    alice, bob = world.phone("alice"), world.phone("bob", port=40001)
    world.call(alice)
    invite = world.one(bob)
    world.from_browser(bob, response(invite, 200, "OK", "Contact: <sip:bob40001@bob.invalid>", to_tag="b1"))
    world.take()
    routes = ("Route: <sip:203.0.113.99;lr>", f"Route: {invite.values(b'record-route')[0].decode()}")
    tags = {"from": "<sip:alice@example.com>;tag=a1", "to": "<sip:bob@example.com>;tag=b1"}
    world.from_backend(backend_request("INFO", "sip:bob@example.com", *routes, **tags), PBX)
    assert world.one(PBX).status == 404
    assert world.sent == []


def test_a_register_that_ends_here_needs_no_hop() -> None:
    """RFC 3261 §8.1.1.6, §10.3: Max-Forwards counts those who pass a request on."""
    world = Office()
    flow = world.browser()
    world.from_browser(flow, request("REGISTER", "sip:example.com", max_forwards="0", to="<sip:alice@example.com>"))
    assert world.one(flow).status == 401


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE"])
def test_g4_the_credentials_for_us_are_not_shown_to_the_far_end(method: str) -> None:
    """RFC 3261 §22.3: who is called could try passwords against them. Those of another realm are not ours to take."""
    world = Office()
    bob, alice = world.phone("bob"), world.browser(port=40001)
    uri = "sip:bob@example.com"
    other = 'Proxy-Authorization: Digest username="a", realm="far", nonce="n", uri="sip:x", response="r"'
    ours = world.credentials(method, uri, "alice", proxy=True)
    folded = ours.replace(", ", ",\r\n ", 1)
    names = {"from": "<sip:alice@example.com>;tag=a1", "to": f"<{uri}>"}
    world.from_browser(alice, request(method, uri, "Contact: <sip:a@abc.invalid>", folded, other, folded, **names))
    arrived = world.one(bob)
    assert arrived.lines(b"proxy-authorization") == [other.partition(": ")[2].encode()]
    if method == "INVITE":
        world.from_browser(bob, response(arrived, 200, "OK", "Contact: <sip:b@abc.invalid>", to_tag="b1"))
        answers = world.take(alice)
        routes = routes_of(answers[-1], is_caller=True)
        names["to"] += ";tag=b1"
        world.from_browser(alice, request("ACK", "sip:b@abc.invalid", f"Route: {routes}", ours, **names))
        assert world.one(bob).lines(b"proxy-authorization") == []
        world.from_browser(alice, request("BYE", "sip:b@abc.invalid", f"Route: {routes}", ours, cseq="2", **names))
        assert world.one(bob).lines(b"proxy-authorization") == []
