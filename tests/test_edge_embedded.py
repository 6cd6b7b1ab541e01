"""The embedded registrar through the whole edge: forking, several flows, GRUUs, phones (G1, G4 to G6, D1)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.edge_world import GATE, PBX, World, request, response, routes_of
from tests.test_digest import Bytes, authorization, nonce_of
from wsgate.addr import Address, Hop, Transport, parse_network
from wsgate.credentials import Users, hashes_of
from wsgate.directory import Directory
from wsgate.keys import Key
from wsgate.metrics import Counters
from wsgate.sip.digest import Digest, DigestAlgorithm
from wsgate.sip.flow import Flow
from wsgate.sip.gruu import TemporaryGruus
from wsgate.sip.message import Message
from wsgate.sip.registrar import Registrar, RegistrarSettings
from wsgate.sip.targets import BackendSettings, Target

REALM = "example.com"
PHONE = Address("10.1.1.20", 5062)
"""Where bob's phone sends from; its Contact says something else."""
PHONE_CONTACT = "<sip:bob@192.168.7.7:5060>"
BACKENDS = {"example.com": BackendSettings(target="embedded"), "pbx.example.com": BackendSettings(target="sip:pbx")}


class Office(World):
    """An edge whose domain example.com is served by the embedded registrar; 10.1.0.0/16 is trusted."""

    def __init__(self, **settings: Any) -> None:
        users = Users({(name, REALM): hashes_of(name, REALM, "wonder") for name in ("alice", "bob", "carol")})
        self.digest = Digest(users, (DigestAlgorithm.MD5,), b"k" * 32, Bytes(), 1.7e9)
        directory = Directory(60.0)
        registrar = Registrar(
            RegistrarSettings(),
            directory,
            self.digest,
            Counters(),
            temporary_gruus=TemporaryGruus([Key(1, b"t" * 32)], Bytes()),
        )
        super().__init__(
            {"pbx.example.com": [Target(Transport.UDP, PBX, "pbx.example.com")]},
            BACKENDS,
            registrar=registrar,
            directory=directory,
            trusted_sources=(parse_network("10.1.0.0/16"),),
            **settings,
        )
        self._calls = 0

    def registering(self, user: str, contact: str, *headers: str, via: str, call_id: str = "") -> bytes:
        """A REGISTER with credentials."""
        self._calls += 1
        nonce = nonce_of(self.digest.challenge(REALM, False, False, self.now))
        credentials = authorization(nonce, user=user, password="wonder", method=b"REGISTER", uri=b"sip:example.com")
        aor = f"<sip:{user}@example.com>"
        lines = ("Contact: " + contact, "Authorization: " + credentials.decode(), "Supported: path, outbound, gruu")
        fields = {"to": aor, "from": aor + ";tag=r", "call_id": call_id or f"reg{self._calls}"}
        return request("REGISTER", "sip:example.com", *lines, *headers, via=via, cseq=str(self._calls), **fields)

    def register_browser(self, flow: Flow, user: str, parameters: str = "", *headers: str) -> Message:
        contact = f"<sip:{user}-{flow.remote.port}@abc.invalid;transport=ws>{parameters}"
        via = f"SIP/2.0/WSS abc.invalid;branch=z9hG4bKreg{self._calls}"
        self.from_browser(flow, self.registering(user, contact, *headers, via=via))
        answer = self.one(flow)
        assert answer.status == 200, answer.data
        return answer

    def register_phone(
        self,
        user: str = "bob",
        contact: str = PHONE_CONTACT,
        source: Address = PHONE,
        transport: Transport = Transport.UDP,
        *headers: str,
        call_id: str = "",
    ) -> Message:
        word = transport.value
        via = f"SIP/2.0/{word} 192.168.7.7:5060;rport;branch=z9hG4bKreg{self._calls}"
        self.from_backend(self.registering(user, contact, *headers, via=via, call_id=call_id), source, transport)
        return self.one(source)


def invite(uri: str, *headers: str, user: str = "alice", call_id: str = "call-1@test", **fields: str) -> bytes:
    contact = f"Contact: <sip:{user}-40000@abc.invalid;transport=ws>"
    values = {
        "from": f"<sip:{user}@example.com>;tag=a1",
        "to": f"<{uri.partition(';')[0]}>",
        "call_id": call_id,
    } | fields
    return request("INVITE", uri, contact, *headers, **values)


def located(world: Office, flow: Flow, data: bytes) -> None:
    """Send an INVITE and take the 100."""
    world.from_browser(flow, data)
    assert [message.status for message in world.take(flow)] == [100]


def parameter(answer: Message, name: str) -> str:
    """The value of a GRUU parameter in the Contact of a 200."""
    return answer.lines(b"contact")[0].decode().partition(f'{name}="')[2].partition('"')[0]


# Several instances, several flows


def test_each_instance_is_called_on_its_newest_flow_with_its_contact():
    """G6, RFC 5626 §7, C2: in parallel, one branch for an instance, the Request-URI is the registered Contact."""
    world = Office()
    alice, old, new, other = (world.browser(port=40000 + number) for number in range(4))
    world.register_browser(alice, "alice")
    world.register_browser(old, "bob", ';+sip.instance="<urn:uuid:b>";reg-id=1')
    world.now += 1
    world.register_browser(new, "bob", ';+sip.instance="<urn:uuid:b>";reg-id=2')
    world.register_browser(other, "bob", ';+sip.instance="<urn:uuid:c>"')
    located(world, alice, invite("sip:bob@example.com"))
    assert world.take(old) == []
    first, second = world.one(new), world.one(other)
    assert first.uri == b"sip:bob-40002@abc.invalid;transport=ws"
    assert second.uri == b"sip:bob-40003@abc.invalid;transport=ws"
    assert [message.header(b"max-breadth") for message in (first, second)] == [b"30", b"30"]


@pytest.mark.parametrize(
    ("contact", "uri"),
    [
        ("sip:bob@abc.invalid;transport=ws;method=BYE?Route=%3Csip:9.9.9.9%3E", "sip:bob@abc.invalid;transport=ws"),
        ("sip:bob@abc.invalid?Subject=x", "sip:bob@abc.invalid"),
        ("sip:b?b;method=x@[2001:db8::1]:5060;%6Dethod=x;lr;a=%20", "sip:b?b;method=x@[2001:db8::1]:5060;lr;a=%20"),
    ],
)
def test_what_a_request_uri_may_not_hold_is_taken_off_a_contact(contact: str, uri: str):
    """RFC 3261 §16.6 step 2, §19.1.1: the method and headers; wsgate itself would answer 400 to it (table A)."""
    world = Office()
    alice, bob = world.browser(port=40000), world.browser(port=40001)
    world.register_browser(alice, "alice")
    via = "SIP/2.0/WSS abc.invalid;branch=z9hG4bKreg9"
    world.from_browser(bob, world.registering("bob", f"<{contact}>", via=via))
    assert contact.encode() in (world.one(bob).header(b"contact") or b"")
    located(world, alice, invite("sip:bob@example.com"))
    assert world.one(bob).uri == uri.encode()


@pytest.mark.parametrize("status", [430, 408])
def test_when_a_flow_fails_the_next_flow_of_the_instance_is_tried(status: int):
    """RFC 5626 §7: 430 and 408 are no answer of the instance."""
    world = Office()
    alice, old, new = (world.browser(port=40000 + number) for number in range(3))
    world.register_browser(alice, "alice")
    world.register_browser(old, "bob", ';+sip.instance="<urn:uuid:b>";reg-id=1')
    world.now += 1
    world.register_browser(new, "bob", ';+sip.instance="<urn:uuid:b>";reg-id=2')
    located(world, alice, invite("sip:bob@example.com"))
    failed = world.one(new)
    world.from_browser(new, response(failed, status, "Failed", to_tag="b1"))
    assert [message.method for message in world.take(new)] == [b"ACK"]
    again = world.one(old)
    assert again.uri == b"sip:bob-40001@abc.invalid;transport=ws"
    assert again.via.branch != failed.via.branch
    assert world.take(alice) == []
    world.from_browser(old, response(again, status, "Failed", to_tag="b2"))
    world.take(old)
    assert world.one(alice).status == {430: 480, 408: 408}[status]


def test_when_the_connection_ends_the_next_flow_of_the_instance_is_tried():
    world = Office()
    alice, old, new = (world.browser(port=40000 + number) for number in range(3))
    world.register_browser(alice, "alice")
    world.register_browser(old, "bob", ';+sip.instance="<urn:uuid:b>";reg-id=1')
    world.now += 1
    world.register_browser(new, "bob", ';+sip.instance="<urn:uuid:b>";reg-id=2')
    located(world, alice, invite("sip:bob@example.com"))
    world.take(new)
    world.apply(world.edge.flow_closed(new.id, world.now))
    ringing = world.one(old)
    world.apply(world.edge.flow_closed(old.id, world.now))
    assert ringing.method == b"INVITE"
    assert world.one(alice).status == 480


def test_a_flow_that_closed_in_the_meantime_is_passed_over():
    world = Office()
    alice, old, middle, new = (world.browser(port=40000 + number) for number in range(4))
    world.register_browser(alice, "alice")
    for number, flow in enumerate((old, middle, new), 1):
        world.now += 1
        world.register_browser(flow, "bob", f';+sip.instance="<urn:uuid:b>";reg-id={number}')
    located(world, alice, invite("sip:bob@example.com"))
    world.apply(world.edge.flow_closed(middle.id, world.now))
    world.from_browser(new, response(world.one(new), 430, "Flow Failed", to_tag="b1"))
    assert world.one(old).method == b"INVITE"
    assert world.take(middle) == []


def test_an_answer_of_the_instance_ends_its_branch():
    """RFC 5626 §7: what is neither 408 nor 430 is never asked a second time."""
    world = Office()
    alice, old, new = (world.browser(port=40000 + number) for number in range(3))
    world.register_browser(alice, "alice")
    world.register_browser(old, "bob", ';+sip.instance="<urn:uuid:b>";reg-id=1')
    world.now += 1
    world.register_browser(new, "bob", ';+sip.instance="<urn:uuid:b>";reg-id=2')
    located(world, alice, invite("sip:bob@example.com"))
    world.from_browser(new, response(world.one(new), 486, "Busy Here", to_tag="b1"))
    assert world.take(old) == []
    assert world.one(alice).status == 486


def test_a_cancelled_call_tries_no_further_flow():
    world = Office()
    alice, old, new = (world.browser(port=40000 + number) for number in range(3))
    world.register_browser(alice, "alice")
    world.register_browser(old, "bob", ';+sip.instance="<urn:uuid:b>";reg-id=1')
    world.now += 1
    world.register_browser(new, "bob", ';+sip.instance="<urn:uuid:b>";reg-id=2')
    data = invite("sip:bob@example.com", via="SIP/2.0/WSS abc.invalid;branch=z9hG4bKcancelled")
    located(world, alice, data)
    ringing = world.one(new)
    world.from_browser(new, response(ringing, 180, "Ringing", to_tag="b1"))
    world.from_browser(alice, data.replace(b"INVITE", b"CANCEL"))
    world.from_browser(new, response(ringing, 430, "Flow Failed", to_tag="b1"))
    assert world.take(old) == []
    assert [message.status for message in world.take(alice)][-1] == 487


def test_max_breadth_bounds_the_fork():
    """RFC 5393 §5.3.3: 440 where it does not suffice, a share for each branch where it does."""
    world = Office()
    flows = [world.browser(port=40000 + number) for number in range(3)]
    world.register_browser(flows[0], "alice")
    for flow in flows[1:]:
        world.register_browser(flow, "bob", f';+sip.instance="<urn:uuid:{flow.remote.port}>"')
    world.from_browser(flows[0], invite("sip:bob@example.com", "Max-Breadth: 1"))
    assert [message.status for message in world.take(flows[0])] == [440]
    located(world, flows[0], invite("sip:bob@example.com", "Max-Breadth: 5", call_id="two"))
    assert sorted(world.one(flow).header(b"max-breadth") or b"" for flow in flows[1:]) == [b"2", b"3"]


def test_the_stored_path_of_a_client_behind_a_proxy_is_its_route():
    """RFC 3327 §5.4: on top of what Route remains, the Request-URI is the Contact."""
    world = Office()
    alice, gate = world.browser(port=40000), world.browser(port=40001)
    world.register_browser(alice, "alice")
    world.register_browser(gate, "bob", "", "Path: <sip:t@edge.invalid;transport=ws;lr>")
    located(world, alice, invite("sip:bob@example.com"))
    arrived = world.one(gate)
    assert arrived.values(b"route") == [b"<sip:t@edge.invalid;transport=ws;lr>"]
    assert arrived.uri == b"sip:bob-40001@abc.invalid;transport=ws"


# GRUUs


def test_a_call_to_a_gruu_rings_one_instance():
    """RFC 5627 §5.4; C2: the browser finds its own Contact in the Request-URI."""
    world = Office()
    alice, first, second = (world.browser(port=40000 + number) for number in range(3))
    world.register_browser(alice, "alice")
    answer = world.register_browser(first, "bob", ';+sip.instance="<urn:uuid:b>"')
    world.register_browser(second, "bob", ';+sip.instance="<urn:uuid:c>"')
    for number, name in enumerate(("pub-gruu", "temp-gruu")):
        located(world, alice, invite(parameter(answer, name), call_id=f"c{number}", to="<sip:bob@example.com>"))
        assert world.one(first).uri == b"sip:bob-40001@abc.invalid;transport=ws"
        assert world.take(second) == []


@pytest.mark.parametrize(
    ("uri", "status"),
    [
        ("sip:bob@example.com;gr=urn:uuid:none", 480),
        ("sip:nobody@example.com;gr=urn:uuid:none", 404),
        ("sip:AwHrr1zNbzcpHTg7@example.com;gr", 404),
    ],
)
def test_a_gruu_of_nobody_is_answered(uri: str, status: int):
    world = Office()
    alice = world.browser()
    world.register_browser(alice, "alice")
    world.from_browser(alice, invite(uri, to="<sip:bob@example.com>"))
    assert world.one(alice).status == status


@pytest.mark.parametrize("name", ["pub-gruu", "temp-gruu"])
def test_a_gruu_as_contact_reaches_the_browser_by_its_route(name: str):
    """JsSIP uses the GRUU as Contact and drops ;ob: the token in Record-Route leads to it, and its own URI arrives."""
    world = Office()
    alice, bob = world.browser(port=40000), world.browser(port=40001)
    gruu = parameter(world.register_browser(alice, "alice", ';+sip.instance="<urn:uuid:a>"'), name)
    world.register_browser(bob, "bob")
    located(
        world, alice, invite("sip:bob@example.com").replace(b"sip:alice-40000@abc.invalid;transport=ws", gruu.encode())
    )
    arrived = world.one(bob)
    assert gruu.encode() in arrived.lines(b"contact")[0]
    world.from_browser(
        bob, response(arrived, 200, "OK", "Contact: <sip:bob-40001@abc.invalid;transport=ws>", to_tag="b1")
    )
    assert world.one(alice).status == 200
    fields = {"from": "<sip:bob@example.com>;tag=b1", "to": "<sip:alice@example.com>;tag=a1"}
    route = "Route: " + routes_of(arrived, is_caller=False)
    world.from_browser(bob, request("BYE", gruu, route, **fields))
    bye = world.one(alice)
    assert bye.method == b"BYE"
    assert bye.uri == b"sip:alice-40000@abc.invalid;transport=ws"


def test_gruus_of_a_backends_registrar_pass_through():
    """In the 200, as Contact of a call, and as Request-URI of what comes back by the token."""
    world = World()
    flow = world.browser()
    contact = 'Contact: <sip:alice@abc.invalid;transport=ws>;+sip.instance="<urn:uuid:1>";reg-id=1;expires=600'
    world.from_browser(flow, request("REGISTER", "sip:example.com", contact, "Supported: path, gruu, outbound"))
    arrived = world.one(PBX)
    assert b"gruu" in (arrived.header(b"supported") or b"")
    gruus = ';pub-gruu="sip:alice@example.com;gr=urn:uuid:1";temp-gruu="sip:tgruu.7hs@example.com;gr"'
    world.from_backend(response(arrived, 200, "OK", contact + gruus, "Require: outbound", to_tag="r"))
    assert world.one(flow).lines(b"contact")[0].decode().endswith(gruus)
    public = "sip:alice@example.com;gr=urn:uuid:1"
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", f"Contact: <{public}>"))
    call = world.one(PBX)
    assert call.lines(b"contact") == [f"<{public}>".encode()]
    world.from_backend(response(call, 200, "OK", "Contact: <sip:bob@198.51.100.7>", to_tag="b1"))
    world.take(flow)
    fields = {"from": "<sip:bob@example.com>;tag=b1", "to": "<sip:alice@example.com>;tag=a1"}
    fields["via"] = "SIP/2.0/UDP 198.51.100.7:5060;branch=z9hG4bKback"
    world.from_backend(request("BYE", public, "Route: " + routes_of(call, is_caller=False), **fields))
    assert world.one(flow).uri == public.encode()


# Phones (G5)


@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP, Transport.TLS])
def test_a_phone_registers_from_a_trusted_source_and_is_reached_there(transport: Transport):
    """G5: the binding is the packet's source, whatever the Contact says; I2: our backend side stands on top."""
    world = Office(udp_max_bytes=0)
    alice = world.browser()
    world.register_browser(alice, "alice")
    assert world.register_phone(transport=transport).status == 200
    located(world, alice, invite("sip:bob@example.com"))
    [(hop, data)] = world.sent
    assert hop == Hop(transport, PHONE)
    arrived = world.one(PHONE)
    assert arrived.uri == b"sip:bob@192.168.7.7:5060"
    assert arrived.via.transport == transport.value.encode()
    top, below = arrived.values(b"record-route")
    assert (b"@192.0.2.1:5061;transport=tls" if transport.secure else b"@192.0.2.1:5060") in top
    assert b"@gate.example.org:443;transport=ws" in below
    assert data == arrived.data


def test_an_unknown_phone_is_challenged():
    world = Office()
    plain = request("REGISTER", "sip:example.com", "Contact: <sip:bob@x>", to="<sip:bob@example.com>")
    world.from_backend(plain, PHONE)
    [answer] = world.take()
    assert answer.status == 401


@pytest.mark.parametrize(("source", "status"), [(Address("203.0.113.77", 5060), 403), (PBX, 403)])
def test_nobody_registers_from_elsewhere(source: Address, status: int):
    """G5, N6: neither a stranger nor a backend that is no trusted source; nothing is bound."""
    world = Office()
    assert world.register_phone(source=source).status == status
    assert world.edge.counts()["bindings"] == 0


def test_a_refused_phone_registers_anew_under_the_same_contact():
    """A phone behind a NAT whose port changed: one binding, at the new source."""
    world = Office()
    world.register_phone(call_id="phone")
    moved = PHONE._replace(port=6000)
    world.register_phone(source=moved, call_id="phone")
    assert [binding.source for binding in world.directory.bindings(b"bob@example.com")] == [Hop(Transport.UDP, moved)]
    assert world.directory.has_source(Hop(Transport.UDP, moved))
    assert not world.directory.has_source(Hop(Transport.UDP, PHONE))


def called_phone(world: Office, contact: str = PHONE_CONTACT) -> tuple[Flow, Message, Message]:
    """A call of alice's browser to bob's phone, taken: her flow, the INVITE at the phone, the 200 at alice."""
    alice = world.browser()
    world.register_browser(alice, "alice")
    world.register_phone()
    located(world, alice, invite("sip:bob@example.com"))
    arrived = world.one(PHONE)
    world.from_backend(response(arrived, 200, "OK", f"Contact: {contact}", to_tag="b1"), PHONE)
    taken = world.one(alice)
    assert taken.status == 200
    return alice, arrived, taken


def in_dialog(taken: Message, method: str, uri: str, **fields: str) -> bytes:
    """A request of alice inside the call."""
    values = {"to": "<sip:bob@example.com>;tag=b1", "cseq": "2"} | fields
    return request(method, uri, "Route: " + routes_of(taken, is_caller=True), **values)


def test_requests_of_the_browser_reach_the_phone_at_its_source():
    """D1 (b): the source of a binding, though the Contact of the phone is an address that nobody can reach."""
    world = Office()
    alice, _, taken = called_phone(world)
    world.from_browser(alice, in_dialog(taken, "ACK", "sip:bob@192.168.7.7:5060", cseq="1"))
    assert world.one(PHONE).method == b"ACK"
    world.from_browser(alice, in_dialog(taken, "BYE", "sip:bob@192.168.7.7:5060"))
    bye = world.one(PHONE)
    assert (bye.method, bye.uri, bye.lines(b"route")) == (b"BYE", b"sip:bob@192.168.7.7:5060", [])
    world.from_backend(response(bye, 200, "OK"), PHONE)
    assert world.one(alice).status == 200
    assert world.edge.counts()["dialogs"] == 0


@pytest.mark.parametrize("uri", ["sip:bob@192.168.7.8:5060", "sip:bob@10.1.1.20:5063", "sip:bob@192.168.7.7:22"])
def test_nothing_but_what_the_phone_gave_is_reached(uri: str):
    """D1: exactly as the backend side gave it."""
    world = Office()
    alice, _, taken = called_phone(world)
    world.from_browser(alice, in_dialog(taken, "BYE", uri))
    assert world.one(alice).status == 403
    assert world.sent == []


@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_a_phone_that_moved_during_a_call_is_reached_where_it_registered_last(transport: Transport):
    """D1 (b), G5: a new connection, or a NAT that gave it another port. D4 finds it too."""
    world = Office()
    alice = world.browser(port=40000)
    world.register_browser(alice, "alice")
    world.register_phone(transport=transport)
    located(world, alice, invite("sip:bob@example.com"))
    world.from_backend(
        response(world.one(PHONE), 200, "OK", f"Contact: {PHONE_CONTACT}", to_tag="b1"), PHONE, transport
    )
    route = "Route: " + routes_of(world.one(alice), is_caller=True)
    moved = PHONE._replace(port=6666)
    uri, to = PHONE_CONTACT[1:-1], "<sip:bob@example.com>;tag=b1"
    world.register_phone(transport=transport, source=moved)
    world.from_browser(alice, request("INFO", uri, route, to=to, cseq="2"))
    info = world.one(moved)
    assert info.method == b"INFO"
    world.from_backend(response(info, 200, "OK"), moved, transport)
    assert world.one(alice).status == 200
    world.apply(world.edge.flow_closed(alice.id, world.now))
    world.move(60.1)
    assert world.take(moved)[0].method == b"BYE"


@pytest.mark.parametrize("moved", [PHONE, PHONE._replace(port=6666)])
def test_a_phone_may_change_its_contact_from_where_it_is_registered(moved: Address):
    """N6, G5: its place counts for its address. A stranger who knows the dialog changes nothing."""
    world = Office()
    alice, arrived, taken = called_phone(world)
    route = "Route: " + routes_of(arrived, is_caller=False)
    new = "<sip:bob@192.168.7.7:5999>"
    names = {"to": "<sip:alice@example.com>;tag=a1", "from": "<sip:bob@example.com>;tag=b1"}

    def renewed(source: Address, cseq: str) -> None:
        via = f"SIP/2.0/UDP 192.168.7.7:5060;rport;branch=z9hG4bKnew{cseq}"
        data = request("UPDATE", "sip:alice@abc.invalid", route, f"Contact: {new}", via=via, cseq=cseq, **names)
        world.from_backend(data, source)
        world.from_browser(alice, response(world.one(alice), 200, "OK"))
        assert world.one(source).status == 200

    renewed(Address("10.1.1.99", 5060), "1")
    world.from_browser(alice, in_dialog(taken, "INFO", new[1:-1]))
    assert world.one(alice).status == 403
    world.register_phone(contact=new, source=moved)
    renewed(moved, "2")
    world.from_browser(alice, in_dialog(taken, "INFO", new[1:-1], cseq="3"))
    assert world.one(moved).method == b"INFO"


def test_without_its_binding_the_phone_is_a_stranger():
    world = Office()
    alice, _, taken = called_phone(world)
    world.register_phone("bob", PHONE_CONTACT + ";expires=0")
    world.from_browser(alice, in_dialog(taken, "BYE", "sip:bob@192.168.7.7:5060"))
    assert world.one(alice).status == 403
    assert world.take(PHONE) == []


def test_a_numeric_target_that_is_the_source_of_a_binding_is_reached():
    """D1 (b): a phone that another one's call was transferred to; the address alone tells it."""
    world = Office()
    alice = world.browser()
    world.register_browser(alice, "alice")
    world.register_phone()
    carol = Address("10.1.1.99", 5060)
    located(world, alice, invite("sip:bob@example.com"))
    arrived = world.one(PHONE)
    world.register_phone("carol", "<sip:carol@10.1.1.99>", carol)
    world.register_phone("bob", PHONE_CONTACT + ";expires=0")
    world.from_backend(response(arrived, 200, "OK", "Contact: <sip:carol@10.1.1.99>", to_tag="b1"), PHONE)
    taken = world.one(alice)
    world.from_browser(alice, in_dialog(taken, "BYE", "sip:carol@10.1.1.99"))
    assert world.one(carol).method == b"BYE"


def test_requests_of_the_phone_reach_the_browser_by_its_token():
    world = Office()
    alice, arrived, _ = called_phone(world)
    fields = {"from": "<sip:bob@example.com>;tag=b1", "to": "<sip:alice@example.com>;tag=a1"}
    fields["via"] = "SIP/2.0/UDP 192.168.7.7:5060;rport;branch=z9hG4bKphone"
    route = "Route: " + routes_of(arrived, is_caller=False)
    world.from_backend(request("BYE", "sip:alice-40000@abc.invalid;transport=ws", route, **fields), PHONE)
    assert world.one(alice).method == b"BYE"


def phone_calls(world: Office, uri: str = "sip:alice@example.com") -> None:
    fields = {"from": "<sip:bob@example.com>;tag=b1", "to": f"<{uri}>", "call_id": "phones-call"}
    fields["via"] = "SIP/2.0/UDP 192.168.7.7:5060;rport;branch=z9hG4bKinvite"
    world.from_backend(request("INVITE", uri, f"Contact: {PHONE_CONTACT}", **fields), PHONE)


def test_a_phone_calls_a_browser_and_both_can_hang_up():
    """G1: a location lookup for a trusted source; D1 (b) for the browser's BYE."""
    world = Office()
    alice = world.browser()
    world.register_browser(alice, "alice")
    world.register_phone()
    phone_calls(world)
    assert world.one(PHONE).status == 100
    arrived = world.one(alice)
    assert arrived.uri == b"sip:alice-40000@abc.invalid;transport=ws"
    contact = "Contact: <sip:alice-40000@abc.invalid;transport=ws>"
    world.from_browser(alice, response(arrived, 200, "OK", contact, to_tag="a9"))
    assert world.one(PHONE).status == 200
    fields = {"from": "<sip:alice@example.com>;tag=a9", "to": "<sip:bob@example.com>;tag=b1", "call_id": "phones-call"}
    route = "Route: " + routes_of(arrived, is_caller=False)
    world.from_browser(alice, request("BYE", "sip:bob@192.168.7.7:5060", route, **fields))
    assert world.one(PHONE).method == b"BYE"


@pytest.mark.parametrize(("user", "status"), [("nobody", 404), ("carol", 480)])
def test_a_phone_that_calls_nobody_is_told_so(user: str, status: int):
    """G1: none 404, known but unreachable 480."""
    world = Office()
    world.register_phone()
    phone_calls(world, f"sip:{user}@example.com")
    assert world.one(PHONE).status == status


def test_phone_to_phone_leaves_no_trace_of_us_in_their_route():
    """Both are reached without us: no Record-Route, the callee's Contact as Request-URI."""
    world = Office()
    carol = Address("10.1.1.99", 5060)
    world.register_phone()
    world.register_phone("carol", "<sip:carol@10.1.1.99>", carol)
    phone_calls(world, "sip:carol@example.com")
    arrived = world.one(carol)
    assert arrived.uri == b"sip:carol@10.1.1.99"
    assert arrived.lines(b"record-route") == []
    assert arrived.via.host == GATE.host


def test_a_phone_that_is_off_is_480_for_a_browser():
    world = Office()
    alice = world.browser()
    world.register_browser(alice, "alice")
    world.register_phone()
    located(world, alice, invite("sip:bob@example.com"))
    world.take(PHONE)
    world.apply(world.edge.failed(Hop(Transport.UDP, PHONE), "port unreachable", world.now))
    assert world.one(alice).status == 480


def test_a_phone_behind_another_proxy_is_reached_through_its_path():
    """RFC 3327: the Route is the stored Path, the packet goes to where the REGISTER came from."""
    world = Office()
    alice = world.browser()
    world.register_browser(alice, "alice")
    answer = world.register_phone("bob", PHONE_CONTACT, PHONE, Transport.UDP, "Path: <sip:10.1.1.20:5062;lr>")
    assert answer.values(b"path") == [b"<sip:10.1.1.20:5062;lr>"]
    located(world, alice, invite("sip:bob@example.com"))
    arrived = world.one(PHONE)
    assert arrived.values(b"route") == [b"<sip:10.1.1.20:5062;lr>"]
    assert arrived.uri == b"sip:bob@192.168.7.7:5060"


def test_a_gruu_of_a_phone_is_found_inside_a_dialog_only_there():
    """RFC 5627: a phone with a GRUU as Contact; without the dialog 481, and From is not judged in it (G4)."""
    world = Office()
    contact = PHONE_CONTACT + ';+sip.instance="<urn:uuid:p>"'
    alice = world.browser()
    world.register_browser(alice, "alice")
    gruu = parameter(world.register_phone("bob", contact), "pub-gruu")
    located(world, alice, invite("sip:bob@example.com"))
    world.from_backend(response(world.one(PHONE), 200, "OK", f"Contact: <{gruu}>", to_tag="b1"), PHONE)
    taken = world.one(alice)
    world.from_browser(alice, in_dialog(taken, "ACK", gruu, cseq="1"))
    assert world.one(PHONE).uri == b"sip:bob@192.168.7.7:5060"
    world.from_browser(alice, in_dialog(taken, "BYE", gruu, to="<sip:bob@example.com>;tag=other"))
    assert world.one(alice).status == 481
    world.register_browser(alice, "alice", ";expires=0")
    world.from_browser(alice, in_dialog(taken, "BYE", gruu))
    assert world.one(PHONE).method == b"BYE"


def test_sips_reaches_phones_over_tls_only():
    """C2: a browser is no end for sips:, a phone over TLS is."""
    world = Office()
    alice, bob = world.browser(port=40000), world.browser(port=40001)
    world.register_browser(alice, "alice")
    world.register_browser(bob, "bob")
    world.from_browser(alice, invite("sips:bob@example.com"))
    assert world.one(alice).status == 416
    world.register_phone(transport=Transport.TLS)
    located(world, alice, invite("sips:bob@example.com", call_id="two"))
    assert world.one(PHONE).method == b"INVITE"
    assert world.take(bob) == []


def test_two_parties_behind_one_edge_reach_each_other_over_its_one_flow():
    """W2: another wsgate in front is one flow with many users; inside their dialog a request goes back down it."""
    world = Office()
    edge = world.browser()
    world.register_browser(edge, "alice")
    world.register_browser(edge, "bob")
    front = "<sip:token-of-bob@203.0.113.5:40000;transport=ws;lr>"
    world.from_browser(edge, invite("sip:bob@example.com"))
    trying, arrived = world.take(edge)
    assert (trying.status, arrived.method) == (100, b"INVITE")
    world.from_browser(edge, response(arrived, 200, "OK", "Contact: <sip:bob@abc.invalid;transport=ws>", to_tag="b1"))
    answered = world.one(edge)
    own = routes_of(answered, is_caller=True)
    fields = {"from": "<sip:alice@example.com>;tag=a1", "to": "<sip:bob@example.com>;tag=b1"}
    uri = "sip:bob@abc.invalid;transport=ws"
    for method in ("ACK", "BYE"):
        data = request(method, uri, f"Route: {own}, {front}", call_id="call-1@test", **fields)
        world.from_browser(edge, data)
        passed = [message for message in world.take(edge) if message.is_request]
        assert [message.method for message in passed] == [method.encode()]
        assert passed[0].values(b"route") == [front.encode()]
    stranger = request("BYE", uri, f"Route: {own}, {front}", call_id="another@test", **fields)
    world.from_browser(edge, stranger)
    assert world.one(edge).status == 481
    alone = request("BYE", uri, f"Route: {front}", call_id="call-1@test", **fields)
    world.from_browser(edge, alone)
    assert world.one(edge).status == 403


def test_credentials_pass_to_a_real_backend() -> None:
    """They are for that one, whatever its realm."""
    world = Office()
    flow = world.browser()
    line = 'Proxy-Authorization: Digest username="a", realm="example.com", nonce="n", uri="sip:x", response="r"'
    world.from_browser(flow, request("MESSAGE", "sip:bob@pbx.example.com", line))
    assert world.one(PBX).lines(b"proxy-authorization") == [line.partition(": ")[2].encode()]
