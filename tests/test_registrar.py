"""The embedded registrar: RFC 3261 §10.3 in its order (G2), location (G6), who may say which From (G4)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_digest import Bytes, authorization, nonce_of
from wsgate.addr import Address, Hop, Transport
from wsgate.credentials import Users, hashes_of
from wsgate.directory import Directory
from wsgate.keys import Key
from wsgate.metrics import Counters
from wsgate.sip.digest import Digest, DigestAlgorithm
from wsgate.sip.gruu import TemporaryGruus
from wsgate.sip.headers import parse_uri
from wsgate.sip.location_service import Location
from wsgate.sip.message import Message
from wsgate.sip.registrar import Registrar, RegistrarAnswer, RegistrarSettings

REALM = "example.com"
ALICE = b"alice@example.com"
INSTANCE = b'+sip.instance="<urn:uuid:8bbf1b1a-1>"'
CONTACT = b"<sip:k3s@d4f.invalid;transport=ws>"
NAMES = ("alice", "bob", "carol@example.com", "d e")


class Office:
    """A registrar with its users, a clock moved by hand, and clients that answer challenges."""

    def __init__(self, *, max_bindings=1000, **options) -> None:
        self.now = 1000.0
        self.directory = Directory(60.0, max_bindings=max_bindings)
        users = Users({(name, REALM): hashes_of(name, REALM, "wonder") for name in NAMES})
        self.digest = Digest(users, tuple(DigestAlgorithm), b"k" * 32, Bytes(), 1.7e9)
        self.counters = Counters()
        self.registrar = Registrar(
            RegistrarSettings(**options),
            self.directory,
            self.digest,
            self.counters,
            temporary_gruus=TemporaryGruus([Key(1, b"t" * 32)], Bytes()),
        )
        self.cseq = 0
        for flow in (b"one", b"two", b"three"):
            self.directory.flow_opened(flow)

    def request(
        self,
        *contacts: bytes,
        user="alice",
        password="wonder",
        to: bytes | None = None,
        uri=b"sip:example.com",
        call_id=b"c1",
        cseq: int | None = None,
        supported=b"path, outbound",
        headers: tuple[bytes, ...] = (),
        vias=1,
        authenticated=True,
        method=b"REGISTER",
        from_: bytes | None = None,
    ) -> Message:
        self.cseq += 1
        to = to or b"<sip:%b@example.com>" % user.encode()
        lines = [b"%b %b SIP/2.0" % (method, uri)]
        lines += [b"Via: SIP/2.0/WS d4f.invalid;branch=z9hG4bK%d" % number for number in range(vias)]
        lines += [b"From: %b;tag=f" % (from_ or to), b"To: " + to, b"Call-ID: " + call_id]
        lines += [b"CSeq: %d %b" % (self.cseq if cseq is None else cseq, method)]
        lines += [b"Contact: " + contact for contact in contacts]
        lines += [b"Supported: " + supported] if supported else []
        lines += headers
        if authenticated:
            proxy = method != b"REGISTER"
            nonce = nonce_of(self.digest.challenge(REALM, proxy, False, self.now))
            name = b"Proxy-Authorization" if proxy else b"Authorization"
            value = authorization(nonce, user=user, password=password, method=method, uri=uri)
            lines.append(name + b": " + value)
        return Message.parse(b"\r\n".join(lines) + b"\r\n\r\n")

    def register(self, *contacts: bytes, flow=b"one", source=None, **options) -> RegistrarAnswer:
        return self.registrar.register(self.request(*contacts, **options), flow, source, self.now)

    def lookup(self, aor: bytes, now: float) -> Location:
        return self.registrar.location.lookup(parse_uri(b"sip:" + aor), now)

    def contacts(self, aor=ALICE) -> list[bytes]:
        return [binding.contact for binding in self.directory.bindings(aor)]

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.directory.handle_timer(self.now)


def header(answer: RegistrarAnswer, name: bytes) -> list[bytes]:
    return [value for key, value in answer.headers if key == name]


# Authentication and authorization: steps 2 to 5


def test_without_credentials_the_answer_is_a_challenge():
    office = Office()
    answer = office.register(CONTACT, authenticated=False)
    assert (answer.status, answer.reason) == (401, "Unauthorized")
    assert [b"algorithm=MD5" in value for value in header(answer, b"WWW-Authenticate")] == [False, True]
    assert office.contacts() == []
    assert office.counters.values == {"digest_challenged": 1, "registrar_refused": 1}


def test_a_wrong_password_is_challenged_again_and_counted():
    office = Office()
    assert office.register(CONTACT, password="wrong").status == 401
    assert office.counters.values["digest_failed"] == 1
    assert office.contacts() == []


def test_an_old_nonce_is_answered_stale():
    office = Office()
    message = office.request(CONTACT)
    office.now += 400
    answer = office.registrar.register(message, b"one", None, office.now)
    assert answer.status == 401
    assert header(answer, b"WWW-Authenticate")[0].endswith(b"stale=true")


def test_a_replayed_register_fails():
    office = Office()
    message = office.request(CONTACT)
    assert office.registrar.register(message, b"one", None, office.now).status == 200
    assert office.registrar.register(message, b"two", None, office.now).status == 401
    assert office.directory.bindings(ALICE)[0].flow == b"one"


def test_another_users_address_of_record_is_forbidden():
    """RFC 3261 §10.3 step 4."""
    answer = Office().register(CONTACT, to=b"<sip:bob@example.com>")
    assert answer.status == 403
    assert b"may not register" in header(answer, b"Warning")[0]


def test_a_to_of_another_domain_is_not_found():
    """Step 5."""
    assert Office().register(CONTACT, to=b"<sip:alice@example.org>").status == 404


def test_the_address_of_record_is_canonical():
    """Step 5: escapes resolved, host in lower case, parameters and port away."""
    office = Office()
    assert office.register(CONTACT, to=b"<sip:%61lice:x@EXAMPLE.com:5060;transport=ws>").status == 200
    assert office.contacts(ALICE) == [b"sip:k3s@d4f.invalid;transport=ws"]
    assert office.register(CONTACT, user="carol@example.com", to=b"<sip:carol@example.com>").status == 200
    assert office.register(CONTACT, user="d e", to=b"<sip:d%20e@example.com>").status == 200


def test_unknown_require_comes_before_authentication():
    """Step 2: 420 names the extension."""
    answer = Office().register(CONTACT, authenticated=False, headers=(b"Require: path, magic, pref",))
    assert answer.status == 420
    assert header(answer, b"Unsupported") == [b"magic, pref"]
    assert Office().register(CONTACT, headers=(b"Require: Path, outbound",)).status == 200


@pytest.mark.parametrize(
    "contact", [b"<mailto:alice@example.com>", b"<tel:+49123>", b"<https://example.com/>", b"tel:1"]
)
def test_a_contact_that_nothing_could_reach_is_403_with_all_of_its_request(contact: bytes):
    """G2; RFC 3261 §10.2.1, §21.4.4: it is no malformed one, and nobody who calls is promised it."""
    office = Office()
    assert office.register(b"<sip:first@b>").status == 200
    answer = office.register(b"<sip:second@b>", contact)
    assert answer.status == 403
    assert b"sip and sips Contacts alone" in header(answer, b"Warning")[0]
    assert office.contacts() == [b"sip:first@b"]


@pytest.mark.parametrize(
    "options",
    [
        {"contacts": (b"<alice@example.com>",)},
        {"contacts": (b"<1tel:alice>",)},
        {"contacts": (b'"unclosed <sip:a@b>',)},
        {"contacts": (b"<sip:a@b", b"<sip:c@d>")},
        {"contacts": (b"<sip:" + b"a" * 3000 + b"@b>",)},
        {"contacts": (CONTACT,), "to": b"<tel:+491>"},
        {"contacts": (CONTACT,), "call_id": b"c" * 600},
        {"contacts": (CONTACT,), "headers": (b"Path: <sip:p@q>, nonsense",)},
        {"contacts": (CONTACT,), "headers": (b"Path: <sip:%b@q;lr>" % (b"p" * 5000),)},
        {"contacts": tuple(b"<sip:%d@b>" % number for number in range(17))},
        {"contacts": (CONTACT + b";reg-id=1;" + INSTANCE, b"<sip:b@c>;reg-id=2;" + INSTANCE)},
    ],
)
def test_what_cannot_be_read_is_400_and_changes_nothing(options):
    office = Office()
    assert office.register(b"<sip:first@b>").status == 200
    answer = office.register(*options.pop("contacts"), **options)
    assert answer.status == 400
    assert answer.reason[0].isupper()
    assert office.contacts() == [b"sip:first@b"]


# Contacts: steps 6 to 8


def test_the_clients_contact_comes_back_as_it_was_written():
    """C6: JsSIP compares the user, SIP.js wants expires."""
    office = Office()
    contact = b'"Al ,;<x> ice" <sip:k3s@D4F.invalid;transport=ws;ob>;+Sip.Instance="<urn:uuid:1;expires=5>";reg-id=1'
    answer = office.register(contact + b";expires=600;q=0.5")
    assert answer.status == 200
    assert header(answer, b"Contact") == [contact + b";q=0.5;expires=600"]
    again = office.register()
    assert header(again, b"Contact") == header(answer, b"Contact")


def test_contact_without_brackets_and_bare_expires():
    office = Office()
    answer = office.register(b"sip:alice@d4f.invalid;expires=120;foo=bar")
    assert header(answer, b"Contact") == [b"<sip:alice@d4f.invalid>;foo=bar;expires=120"]


def test_the_200_lists_every_binding_with_what_is_left_and_a_date():
    """Step 8."""
    office = Office()
    office.register(b"<sip:a@b>;expires=600")
    office.pass_time(100)
    answer = office.register(b"<sip:c@d>", headers=(b"Expires: 300",), call_id=b"c2", flow=b"two")
    assert header(answer, b"Contact") == [b"<sip:a@b>;expires=500", b"<sip:c@d>;expires=300"]
    assert header(answer, b"Date") == [b"Tue, 14 Nov 2023 22:31:40 GMT"]
    assert [binding.contact for binding in answer.registered] == [b"sip:c@d"]


def test_a_query_changes_nothing():
    """Step 6: without Contact only step 8 is left."""
    office = Office()
    office.register(CONTACT)
    before = office.directory.bindings(ALICE)
    answer = office.register(call_id=b"other", cseq=0)
    assert answer.status == 200
    assert len(header(answer, b"Contact")) == 1
    assert answer.registered == answer.removed == ()
    assert office.directory.bindings(ALICE) == before


@pytest.mark.parametrize(
    ("contact", "headers", "seconds"),
    [
        (b"<sip:a@b>;expires=100", (b"Expires: 200",), 100),
        (b"<sip:a@b>", (b"Expires: 200",), 200),
        (b"<sip:a@b>", (), 1800),
        (b"<sip:a@b>;expires=99999999999999999999", (), 1800),
        (b"<sip:a@b>;expires=soon", (), 1800),
        (b"<sip:a@b>;expires", (), 1800),
        (b"<sip:a@b>", (b"Expires: soon",), 1800),
    ],
)
def test_how_long_a_binding_lives(contact, headers, seconds):
    """Step 7, and §10.2.1.1: what cannot be read means an hour."""
    office = Office(max_expires=1800)
    office.register(contact, headers=headers)
    assert office.directory.bindings(ALICE)[0].expires_at == office.now + seconds
    office.pass_time(seconds - 1)
    assert len(office.contacts()) == 1
    office.pass_time(1)
    assert office.contacts() == []


def test_423_says_the_shortest_time_and_is_atomic():
    office = Office()
    answer = office.register(b"<sip:a@b>;expires=600", b"<sip:c@d>;expires=59")
    assert (answer.status, header(answer, b"Min-Expires")) == (423, [b"60"])
    assert office.contacts() == []
    assert office.register(b"<sip:a@b>;expires=60").status == 200


def test_an_hour_is_never_too_brief():
    """Step 7: 423 only below an hour, whatever min_expires says."""
    assert Office(min_expires=7200, max_expires=9000).register(b"<sip:a@b>;expires=3600").status == 200


def test_star_takes_all_away():
    """Step 6; and the directory forgets what flows had inherited."""
    office = Office()
    office.register(b"<sip:a@b>", b"<sip:c@d>")
    office.register(CONTACT + b";reg-id=1;" + INSTANCE, flow=b"two", call_id=b"c2")
    answer = office.register(b"*", headers=(b"Expires: 0",))
    assert answer.status == 200
    assert header(answer, b"Contact") == []
    assert len(answer.removed) == 3
    assert office.contacts() == []
    assert office.directory.counts()["registrations"] == 0


@pytest.mark.parametrize(
    ("contacts", "headers"),
    [
        ((b"*",), ()),
        ((b"*",), (b"Expires: 1",)),
        ((b"*",), (b"Expires: none",)),
        ((b"*", b"<sip:a@b>"), (b"Expires: 0",)),
        ((b"*;expires=0",), ()),
    ],
)
def test_star_only_alone_and_with_expires_0(contacts, headers):
    office = Office()
    office.register(b"<sip:a@b>")
    assert office.register(*contacts, headers=headers).status == 400
    assert office.contacts() == [b"sip:a@b"]


def test_expires_0_removes_one():
    office = Office()
    office.register(b"<sip:a@b>", b"<sip:c@d>")
    answer = office.register(b"<sip:a@B;unknown=1>;expires=0", flow=b"two")
    assert answer.status == 200
    assert [binding.contact for binding in answer.removed] == [b"sip:a@b"]
    assert office.contacts() == [b"sip:c@d"]
    assert office.register(b"<sip:never@there>;expires=0").status == 200


def test_cseq_must_rise_within_a_call_id_and_all_or_none():
    """Step 7 and §12.2.2; another Call-ID begins anew."""
    office = Office()
    office.register(b"<sip:a@b>", cseq=10)
    office.register(b"<sip:c@d>", cseq=20)
    answer = office.register(b"<sip:a@b>;expires=0", b"<sip:c@d>;expires=0", cseq=15)
    assert (answer.status, answer.reason) == (500, "CSeq out of order")
    assert office.contacts() == [b"sip:a@b", b"sip:c@d"]
    assert office.register(b"<sip:a@b>;expires=0", cseq=10).status == 500
    assert office.register(b"*", headers=(b"Expires: 0",), cseq=15).status == 500
    assert len(office.contacts()) == 2
    assert office.register(b"<sip:a@b>;expires=0", cseq=1, call_id=b"c2").status == 200
    assert office.register(b"*", headers=(b"Expires: 0",), cseq=21).status == 200
    assert office.contacts() == []


def test_two_contacts_of_one_request_that_mean_the_same_are_one():
    office = Office()
    assert office.register(b"<sip:a@b>;expires=100", b"<sip:a@b>;expires=200").status == 200
    assert [binding.expires_at for binding in office.directory.bindings(ALICE)] == [1200.0]


# Outbound (RFC 5626 §6) and Path (RFC 3327)


def test_outbound_is_used_answered_and_replaces_by_instance_and_reg_id():
    """RFC 5626 §6, R4 and R6: the new flow supersedes the old."""
    office = Office()
    contact = CONTACT + b";reg-id=1;" + INSTANCE
    answer = office.register(contact)
    assert header(answer, b"Require") == [b"outbound"]
    assert header(answer, b"Flow-Timer") == [b"120"]
    office.register(b"<sip:other@x.invalid>;reg-id=1;" + INSTANCE, flow=b"two", call_id=b"c2")
    assert office.contacts() == [b"sip:other@x.invalid"]
    assert office.directory.superseded(b"one", b"two")
    assert office.directory.newest_flow(ALICE, b"<urn:uuid:8bbf1b1a-1>", 1, b"") == b"two"
    office.register(contact.replace(b"reg-id=1", b"reg-id=2"), flow=b"three", call_id=b"c3")
    assert len(office.contacts()) == 2


@pytest.mark.parametrize(
    ("parameters", "supported"),
    [
        (b";reg-id=1", b"outbound"),
        (b";reg-id=1;" + INSTANCE, b"path"),
        (b";reg-id=1;" + INSTANCE, b""),
        (b";" + INSTANCE, b"outbound"),
        (b";reg-id=0;" + INSTANCE, b"outbound"),
        (b";reg-id=x;" + INSTANCE, b"outbound"),
    ],
)
def test_no_outbound_without_instance_reg_id_and_support(parameters, supported):
    office = Office()
    answer = office.register(CONTACT + parameters, supported=supported)
    assert answer.status == 200
    assert header(answer, b"Require") == header(answer, b"Flow-Timer") == []
    assert office.directory.bindings(ALICE)[0].reg_id == 0
    office.register(b"<sip:other@x.invalid>" + parameters, supported=supported, flow=b"two")
    assert len(office.contacts()) == 2


def test_without_instance_the_contact_uri_is_inherited():
    """D3 for SIP.js, which gives no instance (C5)."""
    office = Office()
    office.register(CONTACT)
    office.register(CONTACT, flow=b"two")
    assert office.directory.superseded(b"one", b"two")
    assert office.directory.bindings(ALICE)[0].flow == b"two"


def test_a_first_hop_without_outbound_is_439():
    """RFC 5626 §6: judged by the last Path URI once there is more than our client's own Via."""
    contact = CONTACT + b";reg-id=1;" + INSTANCE
    source = Hop(Transport.UDP, Address("192.0.2.7", 5060))
    office = Office()

    def status(*paths: bytes, vias=2) -> int:
        headers = tuple(b"Path: " + path for path in paths)
        return office.register(contact, vias=vias, flow=b"", source=source, headers=headers).status

    assert status() == 439
    assert status(b"<sip:edge.example.com;lr>") == 439
    assert status(b"<sip:edge.example.com;lr;ob>", b"<sip:x.example.com;lr>") == 439
    assert status(b"<sip:x.example.com;lr>, <sip:edge.example.com;lr;ob>") == 200
    assert status(vias=1) == 200
    assert office.register(contact + b";expires=0", vias=2, flow=b"", source=source).status == 200


def test_path_is_stored_and_given_back():
    """RFC 3327 §5.3."""
    office = Office()
    headers = (b"Path: <sip:p1.example.com;lr>,<sip:p2.example.com;lr>", b"Path: <sip:p3.example.com;lr>")
    source = Hop(Transport.UDP, Address("192.0.2.7", 5060))
    answer = office.register(b"<sip:a@192.0.2.7>", headers=headers, flow=b"", source=source)
    paths = [b"<sip:p%d.example.com;lr>" % number for number in (1, 2, 3)]
    assert header(answer, b"Path") == paths
    stored = office.directory.bindings(ALICE)[0]
    assert stored.path == tuple(paths)
    assert (stored.flow, stored.source) == (b"", source)


def test_path_that_the_client_does_not_know_is_421():
    answer = Office().register(CONTACT, headers=(b"Path: <sip:p1.example.com;lr>",), supported=b"outbound")
    assert (answer.status, header(answer, b"Require")) == (421, [b"path"])


# How many


def test_max_contacts_403_while_all_live():
    office = Office(max_contacts=2)
    office.register(b"<sip:a@b>", b"<sip:c@d>")
    answer = office.register(b"<sip:e@f>", flow=b"two")
    assert answer.status == 403
    assert header(answer, b"Warning") == [b'399 wsgate "[registrar] max_contacts is 2"']
    assert len(office.contacts()) == 2
    assert office.register(b"<sip:a@b>").status == 200
    assert office.register(b"<sip:a@b>;expires=0", b"<sip:e@f>").status == 200


def test_dead_bindings_go_first_oldest_first():
    """G2: a page that is reloaded registers as a new instance each time."""
    office = Office(max_contacts=3)
    for number, flow in enumerate((b"one", b"two", b"three")):
        office.now += 1
        office.register(b"<sip:%d@b>" % number, flow=flow, call_id=b"%d" % number)
    office.directory.flow_closed(b"two", office.now)
    office.directory.flow_closed(b"one", office.now)
    office.directory.flow_opened(b"four")
    office.now += 1
    answer = office.register(b"<sip:new@b>", flow=b"four", call_id=b"new")
    assert answer.status == 200
    assert [binding.contact for binding in answer.removed] == [b"sip:0@b"]
    assert office.contacts() == [b"sip:1@b", b"sip:2@b", b"sip:new@b"]


def test_the_oldest_is_the_one_not_refreshed_for_longest():
    """G2: not the one that was there first."""
    office = Office(max_contacts=2)
    for number, contact in enumerate((b"<sip:0@b>", b"<sip:1@b>", b"<sip:0@b>")):
        office.now += 1
        office.register(contact, flow=b"one", call_id=b"%d" % number)
    office.directory.flow_closed(b"one", office.now)
    office.directory.flow_opened(b"four")
    answer = office.register(b"<sip:new@b>", flow=b"four", call_id=b"new")
    assert [binding.contact for binding in answer.removed] == [b"sip:1@b"]


def test_a_page_reloaded_many_times_never_meets_403():
    office = Office(max_contacts=2)
    for number in range(20):
        flow = b"reload%d" % number
        office.directory.flow_opened(flow)
        instance = b'reg-id=1;+sip.instance="<urn:uuid:%d>"' % number
        assert office.register(b"<sip:%d@x.invalid>;%b" % (number, instance), flow=flow, call_id=flow).status == 200
        office.directory.flow_closed(flow, office.now)
        office.now += 1
    assert len(office.contacts()) == 2


def test_a_binding_whose_flow_is_gone_longer_than_the_grace_is_removed():
    """G2, also before the timer has run."""
    office = Office()
    office.register(CONTACT, flow=b"one")
    office.directory.flow_closed(b"one", office.now)
    office.now += 61
    answer = office.register(b"<sip:new@b>", flow=b"two", call_id=b"new")
    assert header(answer, b"Contact") == [b"<sip:new@b>;expires=3600"]


def test_a_full_table_is_503_and_changes_nothing():
    office = Office(max_bindings=1)
    office.register(CONTACT)
    answer = office.register(CONTACT, user="bob", to=b"<sip:bob@example.com>")
    assert (answer.status, header(answer, b"Retry-After")) == (503, [b"60"])
    assert office.contacts(b"bob@example.com") == []
    assert office.counters.values["registrar_full"] == 1


# Location (G6)


def test_lookup_finds_the_newest_live_flow_of_each_instance():
    office = Office()
    for reg_id, flow in ((b"1", b"one"), (b"2", b"two")):
        office.now += 1
        office.register(CONTACT + b";reg-id=" + reg_id + b";" + INSTANCE, flow=flow, call_id=flow)
    office.now += 1
    office.register(b"<sip:plain@b>;q=0.3", flow=b"three", call_id=b"c3")
    found = office.lookup(ALICE, office.now)
    assert [(binding.flow, binding.q) for binding in found.bindings] == [(b"two", 1.0), (b"three", 0.3)]
    office.directory.flow_closed(b"two", office.now)
    found = office.lookup(ALICE, office.now)
    assert [binding.flow for binding in found.bindings] == [b"one", b"three"]


def test_lookup_tells_unknown_from_unreachable():
    """G1: nobody is 404; a user whose browser is gone, or who has none now, is 480 (RFC 3261 §21.4.18)."""
    office = Office()
    assert office.lookup(b"nobody@example.com", office.now)[1:] == (404, "Not Found")
    office.register(CONTACT)
    office.directory.flow_closed(b"one", office.now)
    assert office.lookup(ALICE, office.now)[1:] == (480, "Temporarily Unavailable")
    assert office.lookup(b"bob@example.com", office.now).status == 480
    assert office.lookup(b"carol@example.com", office.now).status == 480


def test_lookup_gives_no_expired_binding_and_keeps_phones():
    office = Office()
    source = Hop(Transport.UDP, Address("192.0.2.7", 5060))
    office.register(b"<sip:phone@192.0.2.7>;expires=600", flow=b"", source=source)
    assert office.lookup(ALICE, office.now + 599).bindings[0].source == source
    assert office.lookup(ALICE, office.now + 600).status == 480


# Who may say which From (G4)


def invite(office: Office, from_: bytes, **options) -> Message:
    options = {"authenticated": False, **options}
    return office.request(
        method=b"INVITE", uri=b"sip:bob@example.com", to=b"<sip:bob@example.com>", from_=from_, **options
    )


FROM_ALICE = b"<sip:alice@example.com>"
FROM_ANONYMOUS = b'"Anonymous" <sip:anonymous@anonymous.invalid>'


def test_from_registered_on_this_flow_passes():
    office = Office()
    office.register(CONTACT, flow=b"one")
    assert office.registrar.accounts.judge_from(
        invite(office, b"<sip:alice@EXAMPLE.com;x=y>"), b"one", office.now
    ).allowed
    judged = office.registrar.accounts.judge_from(invite(office, FROM_ALICE), b"two", office.now)
    assert (judged.allowed, judged.status) == (False, 407)
    assert judged.headers[0][0] == b"Proxy-Authenticate"
    assert not office.registrar.accounts.judge_from(
        invite(office, b"<sip:bob@example.com>"), b"one", office.now
    ).allowed


def test_a_registration_that_is_over_proves_nothing():
    office = Office()
    office.register(CONTACT + b";expires=60")
    assert office.registrar.accounts.judge_from(invite(office, FROM_ALICE), b"one", office.now + 59).allowed
    assert office.registrar.accounts.judge_from(invite(office, FROM_ALICE), b"one", office.now + 60).status == 407


def test_anonymous_only_from_a_flow_that_has_registered_or_by_digest():
    office = Office()
    judge = office.registrar.accounts.judge_from
    assert judge(invite(office, FROM_ANONYMOUS), b"one", office.now).status == 407
    assert judge(invite(office, FROM_ANONYMOUS, authenticated=True), b"one", office.now).allowed
    office.register(CONTACT, flow=b"one")
    assert judge(invite(office, FROM_ANONYMOUS), b"one", office.now).allowed
    assert judge(invite(office, FROM_ANONYMOUS), b"two", office.now).status == 407


def test_digest_lets_a_user_speak_for_himself_only():
    """G4: another user's AOR after authentication is 403."""
    office = Office()

    def judged(from_: bytes, **options) -> int:
        message = invite(office, from_, authenticated=True, **options)
        judgement = office.registrar.accounts.judge_from(message, b"one", office.now)
        return 200 if judgement.allowed else judgement.status

    assert judged(FROM_ALICE) == 200
    assert judged(b"<sip:bob@example.com>") == 403
    assert judged(b"<sip:alice@example.org>") == 403
    assert judged(FROM_ALICE, password="wrong") == 407
    assert judged(b"<tel:+49123>") == 400


# Anything at all


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.binary(max_size=60), st.from_regex(rb"<sip:[ab]@[cd]>(;expires=[0-9]{1,4})?", fullmatch=True)),
        max_size=4,
    ),
    st.sampled_from([(), (b"Expires: 0",), (b"Expires: x",), (b"Path: <sip:p@q;lr>",)]),
)
def test_any_contact_gets_an_answer_and_the_directory_stays_whole(contacts, headers):
    office = Office(max_contacts=3)
    clean = [re.sub(rb"[\r\n]", b"", contact) for contact in contacts]
    answer = office.register(*clean, headers=headers)
    assert answer.status in (200, 400, 403, 423)
    assert office.directory.counts()["bindings"] == len(office.contacts()) <= 3
    assert len(header(answer, b"Contact")) == (len(office.contacts()) if answer.status == 200 else 0)
