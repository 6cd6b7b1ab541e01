"""GRUUs: made, read back, opaque, void when their registration is (RFC 5627 §3, §5)."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_digest import Bytes
from tests.test_registrar import ALICE, CONTACT, INSTANCE, Office, header
from wsgate.keys import Key
from wsgate.sip.flow import FlowTokens, Verdict
from wsgate.sip.gruu import TemporaryGruus, fingerprint, is_named, public_gruu
from wsgate.sip.headers import parse_uri
from wsgate.sip.location_service import Location

GRUU = b"path, outbound, gruu"
OLD, NEW = Key(1, b"o" * 32), Key(2, b"n" * 32)
OTHER = b'+sip.instance="<urn:uuid:2>"'


def maker(*keys: Key) -> TemporaryGruus:
    return TemporaryGruus(keys or (NEW, OLD), Bytes())


def gruus_of(office: Office, *contacts: bytes, **options) -> list[tuple[bytes, bytes]]:
    """The public and temporary GRUU of each Contact in the answer to a REGISTER."""
    answer = office.register(*contacts, supported=GRUU, **options)
    assert answer.status == 200
    pairs = []
    for value in header(answer, b"Contact"):
        found = re.search(rb'pub-gruu="([^"]+)";temp-gruu="([^"]+)"', value)
        assert found is not None, value
        pairs.append((found[1], found[2]))
    return pairs


def located(office: Office, uri: bytes) -> Location:
    return office.registrar.location.lookup(parse_uri(uri), office.now)


def test_the_public_gruu_is_the_aor_with_the_instance():
    """RFC 5627 §3.1.1; what a URI cannot hold is escaped and comes back the same."""
    assert public_gruu(ALICE, b"<urn:uuid:f81d>") == b"sip:alice@example.com;gr=urn:uuid:f81d"
    odd = parse_uri(public_gruu(b"a:b c\xc3\xa9@2001:db8::1", b'<x;y="z">'))
    assert odd.address_of_record == b"a:b c\xc3\xa9@2001:db8::1"
    assert odd.parameters[b"gr"] == b'x;y="z"'


def test_the_temporary_gruu_hides_whom_it_means_and_is_new_each_time():
    """RFC 5627 §3.1.2: neither AOR nor instance can be seen, and two of them do not look alike."""
    gruus = maker()
    first, second = (gruus.make(ALICE, b"<urn:uuid:1>", b"call") for _ in range(2))
    assert first != second
    assert first[4:20] != second[4:20]
    uri = parse_uri(first)
    assert uri.host == "example.com"
    assert uri.parameters == {b"gr": None}
    assert b"alice" not in first
    assert b"urn" not in first
    for made in (first, second):
        read = gruus.read(parse_uri(made).user or b"")
        assert read == (ALICE, fingerprint(b"<urn:uuid:1>", b"call"))


def test_two_keys_are_live_and_a_third_is_none_of_ours():
    made = parse_uri(maker(OLD).make(ALICE, b"i", b"c")).user or b""
    assert maker(NEW, OLD).read(made) is not None
    assert maker(NEW).read(made) is None


def test_a_temporary_gruu_is_no_flow_token():
    user = parse_uri(maker().make(b"a@b", b"i", b"c")).user or b""
    assert FlowTokens([NEW, OLD]).read(user).verdict is Verdict.FOREIGN


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_character_makes_it_void(position, change):
    made = parse_uri(maker().make(ALICE, b"<urn:uuid:1>", b"call")).user or b""
    place = position % len(made)
    changed = made[:place] + bytes((made[place] ^ change,)) + made[place + 1 :]
    assert maker().read(changed) is None


def test_only_the_one_spelling_of_a_temporary_gruu_counts():
    """The last character of base64 may carry bits that mean nothing."""
    made = parse_uri(maker().make(b"bob@example.com", b"i", b"c")).user or b""
    assert len(made) % 4 == 2
    digits = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    other = digits[digits.index(chr(made[-1])) + 1].encode()
    assert maker().read(made) is not None
    assert maker().read(made[:-1] + other) is None


@given(st.binary(max_size=200))
def test_strangers_user_parts_are_none_of_ours(user):
    assert maker().read(user) is None


def test_gruus_only_for_who_asks_and_has_an_instance():
    """RFC 5627 §5.2: Supported says gruu, the Contact has an instance; Require never names it."""
    office = Office()
    plain = office.register(CONTACT + b";" + INSTANCE)
    assert b"gruu" not in header(plain, b"Contact")[0]
    answer = office.register(b"<sip:b@c>", supported=GRUU, call_id=b"c2")
    first, second = header(answer, b"Contact")
    assert b'pub-gruu="sip:alice@example.com;gr=urn:uuid:8bbf1b1a-1"' in first
    assert b"gruu" not in second
    assert header(answer, b"Require") == []
    assert b"gruu" in header(answer, b"Supported")[0]


def test_what_the_client_echoes_is_replaced():
    office = Office()
    echoed = CONTACT + b';pub-gruu="sip:old@x;gr=1";' + INSTANCE + b';temp-gruu="sip:t@x;gr";x="pub-gruu=1;"'
    value = header(office.register(echoed, supported=GRUU), b"Contact")[0]
    assert value.count(b"pub-gruu=") == 2
    assert b"old@x" not in value
    assert b"sip:t@x" not in value
    assert b';x="pub-gruu=1;"' in value


def test_a_gruu_leads_to_its_instance_alone():
    """RFC 5627 §5.4: the newest flow of that instance, whoever else registered the AOR."""
    office = Office()
    [(public, temporary)] = gruus_of(office, CONTACT + b";" + INSTANCE + b";reg-id=1")
    office.now += 1
    office.register(b"<sip:other@x>;" + OTHER, call_id=b"c2", flow=b"two")
    office.now += 1
    office.register(CONTACT + b";" + INSTANCE + b";reg-id=2", call_id=b"c3", flow=b"three")
    assert len(located(office, b"sip:alice@example.com").instances) == 2
    for uri in (public, temporary):
        [flows] = located(office, uri).instances
        assert [binding.flow for binding in flows] == [b"three", b"one"]


@pytest.mark.parametrize(
    ("instance", "gr", "named"),
    [
        (b"<urn:uuid:AB>", b"URN:uuid:ab", True),
        (b"<urn:uuid:AB>", b"urn:uuid:abc", False),
        (b"<urn:x%41>", b"urn:x%41", True),
        (b"<urn:x%41>", b"urn:xA", False),
        (b"<>", b"", False),
        (b"", b"", False),
    ],
)
def test_an_instance_is_named_in_any_case_and_by_its_own_escapes(instance: bytes, gr: bytes, named: bool) -> None:
    """RFC 3261 §19.1.4; the escapes of the URI are resolved already."""
    assert is_named(instance, gr) is named


def test_a_gruu_of_nobody():
    """480 while the AOR is known or the binding waits for its browser, 404 for what never was or is no more."""
    office = Office()
    assert located(office, b"sip:alice@example.com;gr=urn:uuid:none").status == 480
    assert located(office, b"sip:nobody@example.com;gr=urn:uuid:none").status == 404
    assert located(office, b"sip:alice@example.com;gr").status == 404
    [(public, temporary)] = gruus_of(office, CONTACT + b";" + INSTANCE + b";expires=100")
    office.directory.flow_closed(b"one", office.now)
    assert [located(office, uri).status for uri in (public, temporary)] == [480, 480]
    office.pass_time(101)
    assert [located(office, uri).status for uri in (public, temporary)] == [480, 404]


def test_a_temporary_gruu_stays_through_refreshes_and_ends_with_the_call_id():
    """RFC 5627 §3.1.2, §5.1: a REGISTER of another Call-ID takes the old temporary GRUUs away."""
    office = Office()
    contact = CONTACT + b";" + INSTANCE
    [(_, first)] = gruus_of(office, contact)
    [(_, second)] = gruus_of(office, contact)
    assert first != second
    assert [located(office, uri).status for uri in (first, second)] == [0, 0]
    [(_, third)] = gruus_of(office, contact, call_id=b"another")
    assert [located(office, uri).status for uri in (first, second, third)] == [404, 404, 0]


def test_a_temporary_gruu_of_another_domain_is_none():
    office = Office()
    [(_, temporary)] = gruus_of(office, CONTACT + b";" + INSTANCE)
    assert located(office, temporary.replace(b"@example.com", b"@example.org")).status == 404


def test_a_gruu_of_the_domain_is_no_contact():
    """RFC 5627 §5.1: it would lead to itself."""
    office = Office()
    answer = office.register(b"<sip:alice@example.com;gr=urn:uuid:1>;" + INSTANCE)
    assert answer.status == 403
    assert office.contacts() == []
    assert office.register(b"<sip:alice@elsewhere.example;gr=urn:uuid:1>;" + INSTANCE).status == 200


@pytest.mark.parametrize("number", [0, 1])
def test_the_contact_behind_a_gruu_is_that_of_the_flow(number):
    office = Office()
    pair = gruus_of(office, CONTACT + b";" + INSTANCE + b";reg-id=1")[0]
    office.register(b"<sip:new@x>;" + INSTANCE + b";reg-id=2", call_id=b"c1", flow=b"two")
    location, uri = office.registrar.location, parse_uri(pair[number])
    assert location.contact_on(uri, b"one", office.now) == b"sip:k3s@d4f.invalid;transport=ws"
    assert location.contact_on(uri, b"two", office.now) == b"sip:new@x"
    assert location.contact_on(uri, b"three", office.now) is None
    assert location.contact_on(parse_uri(b"sip:alice@example.com"), b"one", office.now) is None
