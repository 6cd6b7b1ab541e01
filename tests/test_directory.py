"""The directory: flows, registrations that flows inherit (R4, R6, D3, W2), bindings that end (G2, G6)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsgate.addr import Address, Hop, Transport
from wsgate.bindings import Binding
from wsgate.directory import Directory
from wsgate.expiries import Expiries
from wsgate.registrations import (
    MAX_FLOWS_PER_REGISTRATION,
    MAX_LIFETIME_SECONDS,
    MAX_REGISTRATIONS_PER_FLOW,
    Registration,
)

AOR = b"alice@example.com"
CONTACT = b"sip:k3@d4.invalid;transport=ws"
INSTANCE = b"<urn:uuid:1>"


def registration(flow: bytes, *, aor=AOR, instance=INSTANCE, reg_id=1, contact=CONTACT, expires_at=600.0):
    return Registration(aor, instance, reg_id, contact, flow, expires_at)


def binding(flow: bytes, *, aor=AOR, contact=CONTACT, expires_at=600.0, registered_at=0.0):
    return Binding(aor, contact, b"", b"", 0, (), flow, None, b"call", 1, expires_at, registered_at)


def directory(*flows: bytes, **limits) -> Directory:
    made = Directory(60.0, **limits)
    for flow in flows:
        made.flow_opened(flow)
    return made


def test_a_newer_flow_supersedes_the_older_one():
    """R6: same instance and reg-id on another flow."""
    book = directory(b"one", b"two")
    assert book.remember(registration(b"one"), 0.0)
    assert book.newest_flow(AOR, INSTANCE, 1, CONTACT) == b"one"
    assert book.remember(registration(b"two", contact=b"sip:other@d4.invalid"), 1.0)
    assert book.newest_flow(AOR, INSTANCE, 1, CONTACT) == b"two"
    assert book.superseded(b"one", b"two")
    assert not book.superseded(b"two", b"one")
    assert not book.superseded(b"two", b"two")
    assert book.heir(b"one") == b"two"
    assert book.heir(b"two") is None
    assert book.registrations_of(b"one") == []
    assert [found.flow for found in book.registrations_of(b"two")] == [b"two"]


def test_a_client_has_the_handle_of_its_last_contact_and_leaves_none_behind():
    """R5, C3: who registers with a new Contact each time is not known by ever more handles."""
    book = directory(b"one")
    for number in range(100):
        handle = b"handle-%d" % number
        book.remember(registration(b"one", contact=b"sip:k%d@d4.invalid" % number)._replace(handle=handle), 0.0)
    assert [book.behind(b"handle-%d" % number) for number in range(99)] == [None] * 99
    known = book.behind(b"handle-99")
    assert known is not None
    assert known.contact == b"sip:k99@d4.invalid"
    assert len(book._registrations._key_of_handle) == 1
    book.forget(AOR, INSTANCE, 1, CONTACT, 0.0)
    assert book.behind(b"handle-99") is None
    assert book._registrations._key_of_handle == {}


def test_without_an_instance_the_contact_uri_tells_who_it_is():
    """D3: (AOR, Contact URI) where a client gives no instance."""
    book = directory(b"one", b"two", b"three")
    book.remember(registration(b"one", instance=b"", reg_id=0), 0.0)
    book.remember(registration(b"two", instance=b"", reg_id=0, contact=b"sip:x@y.invalid"), 0.0)
    assert not book.superseded(b"one", b"two")
    book.remember(registration(b"three", instance=b"", reg_id=0), 0.0)
    assert book.superseded(b"one", b"three")


def test_another_reg_id_or_another_user_inherits_nothing():
    """D3: only flows registered for the same AOR inherit."""
    book = directory(b"one", b"two", b"three")
    book.remember(registration(b"one"), 0.0)
    book.remember(registration(b"two", reg_id=2), 0.0)
    book.remember(registration(b"three", aor=b"mallory@example.com"), 0.0)
    assert not book.superseded(b"one", b"two")
    assert not book.superseded(b"one", b"three")


def test_a_chain_of_reconnects_ends_at_the_newest_flow():
    book = directory(b"0")
    book.remember(registration(b"0"), 0.0)
    for number in range(1, 5):
        book.flow_closed(b"%d" % (number - 1), float(number))
        book.flow_opened(b"%d" % number)
        book.remember(registration(b"%d" % number), float(number))
    assert all(book.heir(b"%d" % old) == b"4" for old in range(4))
    assert book.gone_since(b"0") == 1.0


def test_flows_per_registration_are_bounded():
    book = directory()
    for number in range(MAX_FLOWS_PER_REGISTRATION + 1):
        flow = b"%d" % number
        book.flow_opened(flow)
        book.remember(registration(flow), 0.0)
        book.flow_closed(flow, 1.0)
    last = b"%d" % MAX_FLOWS_PER_REGISTRATION
    assert not book.superseded(b"0", last)
    assert book.gone_since(b"0") is None
    assert book.superseded(b"1", last)


def test_a_closed_flow_is_not_the_newest():
    book = directory(b"one")
    book.remember(registration(b"one"), 0.0)
    book.flow_closed(b"one", 5.0)
    assert not book.has_flow(b"one")
    assert book.newest_flow(AOR, INSTANCE, 1, CONTACT) is None
    assert book.gone_since(b"one") == 5.0


def test_a_flow_that_never_registered_leaves_nothing():
    book = directory(b"one")
    book.flow_closed(b"one", 5.0)
    assert book.gone_since(b"one") is None
    assert book.counts()["flows"] == 0


def test_a_registration_is_forgotten_at_expires_zero_by_forget_and_by_star():
    """R4: forgotten at expires=0."""
    book = directory(b"one")
    book.remember(registration(b"one"), 0.0)
    book.remember(registration(b"one", expires_at=10.0), 10.0)
    assert book.registrations_of(b"one") == []
    book.remember(registration(b"one"), 0.0)
    book.forget(AOR, INSTANCE, 1, b"whatever", 0.0)
    assert book.counts()["registrations"] == 0
    book.remember(registration(b"one"), 0.0)
    book.remember(registration(b"one", reg_id=2), 0.0)
    book.remember(registration(b"one", aor=b"bob@example.com"), 0.0)
    book.forget_all(AOR, 0.0)
    assert [found.aor for found in book.registrations_of(b"one")] == [b"bob@example.com"]


def test_a_registration_expires_by_the_clock():
    book = directory(b"one")
    book.remember(registration(b"one", expires_at=600.4), 0.0)
    assert book.next_timer() == 601.0
    book.remember(registration(b"one", expires_at=1200.0), 500.0)
    assert book.next_timer() == 1200.0
    assert book.handle_timer(1199.0) == []
    assert [ended.flow for ended in book.handle_timer(1200.0)] == [b"one"]
    book.flow_closed(b"one", 1210.0)
    assert book.gone_since(b"one") == 1210.0, "its calls may still be asked for (D3)"
    assert book.handle_timer(1269.0) == []
    assert book.is_registered_through(b"one")
    assert book.handle_timer(1270.0) == []
    assert not book.is_registered_through(b"one")
    assert book.next_timer() is None
    assert book.gone_since(b"one") is None
    assert book.newest_flow(AOR, INSTANCE, 1, CONTACT) is None


def test_registrations_are_bounded_and_live_ones_stay():
    book = directory(b"one", max_registrations=2)
    assert book.remember(registration(b"one", reg_id=1), 0.0)
    assert book.remember(registration(b"one", reg_id=2), 0.0)
    assert not book.remember(registration(b"one", reg_id=3), 0.0)
    assert book.remember(registration(b"one", reg_id=2, expires_at=700.0), 0.0)
    assert book.counts()["registrations"] == 2


def test_what_is_over_takes_no_room_from_what_is_not():
    """The tables hold no more with it than without, however often somebody registers and takes back."""
    book = directory(b"one", b"two", max_registrations=2)
    for number in range(200):
        assert book.remember(registration(b"one", reg_id=number), 0.0)
        book.forget(AOR, INSTANCE, number, CONTACT, 0.0)
    assert len(book._registrations._flows_of_key) == 2
    assert book.remember(registration(b"two", reg_id=500), 0.0)
    assert book.remember(registration(b"two", reg_id=501), 0.0)
    assert not book.is_registered_through(b"one")
    book = directory(b"one")
    for number in range(200):
        assert book.remember(registration(b"one", reg_id=number), 0.0)
        book.forget(AOR, INSTANCE, number, CONTACT, 0.0)
    assert len(book._registrations._keys_of_flow[b"one"]) == 64


def test_one_flow_cannot_fill_the_table():
    book = directory(b"one", b"two")
    taken = [
        book.remember(registration(b"one", reg_id=number), 0.0) for number in range(MAX_REGISTRATIONS_PER_FLOW + 1)
    ]
    assert taken == [True] * MAX_REGISTRATIONS_PER_FLOW + [False]
    assert book.remember(registration(b"two", reg_id=1000), 0.0)


def test_a_lifetime_is_bounded():
    book = directory(b"one")
    book.remember(registration(b"one", expires_at=2.0**32), 0.0)
    assert book.next_timer() == MAX_LIFETIME_SECONDS


def test_bindings_are_replaced_as_a_whole():
    book = directory(b"one", b"two")
    assert book.replace_bindings(AOR, [binding(b"one"), binding(b"two", contact=b"sip:b@c")], 0.0)
    assert [found.flow for found in book.bindings(AOR)] == [b"one", b"two"]
    assert book.aors_of(b"one") == {AOR}
    assert book.replace_bindings(AOR, [binding(b"two")], 0.0)
    assert book.aors_of(b"one") == frozenset()
    assert book.aors_of(b"two") == {AOR}
    assert book.counts()["bindings"] == 1
    assert book.replace_bindings(AOR, [], 0.0)
    assert book.bindings(AOR) == ()
    assert book.counts()["addresses_of_record"] == 0
    assert book.next_timer() is None


def test_bindings_are_bounded():
    book = directory(b"one", max_bindings=2)
    assert book.replace_bindings(AOR, [binding(b"one"), binding(b"one")], 0.0)
    assert not book.replace_bindings(b"bob@example.com", [binding(b"one")], 0.0)
    assert book.replace_bindings(AOR, [binding(b"one")], 0.0)
    assert book.replace_bindings(b"bob@example.com", [binding(b"one")], 0.0)


def test_a_binding_expires_and_the_others_stay():
    book = directory(b"one")
    early, late = binding(b"one", expires_at=100.0), binding(b"one", contact=b"sip:b@c", expires_at=200.0)
    book.replace_bindings(AOR, [early, late], 0.0)
    assert book.next_timer() == 100.0
    assert book.handle_timer(100.0) == [early]
    assert book.bindings(AOR) == (late,)
    assert book.next_timer() == 200.0


def test_a_binding_whose_flow_is_gone_ends_after_the_grace():
    """G2: known to be gone for longer than `reconnect_grace` (60 s here)."""
    book = directory(b"one", b"two")
    gone, there = binding(b"one"), binding(b"two", contact=b"sip:b@c")
    book.replace_bindings(AOR, [gone, there], 0.0)
    book.flow_closed(b"one", 10.0)
    assert book.next_timer() == 70.0
    assert book.handle_timer(69.0) == []
    assert book.handle_timer(70.0) == [gone]
    assert book.bindings(AOR) == (there,)
    assert book.gone_since(b"one") is None


def test_a_binding_of_no_flow_does_not_end_early():
    book = directory()
    phone = binding(b"")
    book.replace_bindings(AOR, [phone], 0.0)
    book.flow_closed(b"", 1.0)
    assert book.ends_at(phone) == 600.0


def test_a_flow_already_gone_when_its_answer_comes_counts_as_gone():
    book = directory()
    book.replace_bindings(AOR, [binding(b"one")], 5.0)
    assert book.gone_since(b"one") == 5.0
    book.remember(registration(b"two"), 6.0)
    assert book.gone_since(b"two") == 6.0


@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.floats(0, 100)))))
def test_expiries_agree_with_a_plain_dictionary(steps):
    expiries: Expiries[int] = Expiries()
    model: dict[int, float] = {}
    for key, at in steps:
        if at is None:
            expiries.discard(key)
            model.pop(key, None)
        else:
            expiries.set(key, at)
            model[key] = at
    due = expiries.due(50.0)
    assert sorted(due) == sorted(key for key, at in model.items() if at <= 50.0)
    later = [at for at in model.values() if at > 50.0]
    assert (expiries.next_timer() is None) == (not later)
    if later:
        assert 0 <= (expiries.next_timer() or 0) - min(later) < 1


def test_moving_one_expiry_about_does_not_grow():
    expiries: Expiries[str] = Expiries()
    for number in range(10_000):
        expiries.set("key", 10_000.0 - number)
    assert len(expiries._heap) < 100
    assert expiries.next_timer() == 1.0


# Phones, and what a store needs


def test_a_phone_is_known_by_its_source_as_long_as_it_is_bound():
    """D1, G5: counted, for two users may share a phone."""
    known = directory()
    source = Hop(Transport.UDP, Address("10.0.0.7", 5062))
    phone = binding(b"")._replace(source=source._replace(connection=b"12345678"))
    known.replace_bindings(AOR, [phone], 0.0)
    known.replace_bindings(b"bob@example.com", [phone._replace(aor=b"bob@example.com")], 0.0)
    assert known.has_source(source)
    assert not known.has_source(source._replace(transport=Transport.TCP))
    known.replace_bindings(AOR, [], 1.0)
    assert known.has_source(source)
    known.handle_timer(600.0)
    assert not known.has_source(source)


def test_the_source_of_a_browser_is_no_phones():
    known = directory(b"one")
    known.replace_bindings(AOR, [binding(b"one")._replace(source=Hop(Transport.WSS, Address("1.2.3.4", 5)))], 0.0)
    assert not known.has_source(Hop(Transport.WSS, Address("1.2.3.4", 5)))


def test_changed_bindings_are_noted_for_who_wants_to_know():
    known = directory(b"one")
    known.replace_bindings(AOR, [binding(b"one", expires_at=50.0)], 0.0)
    assert known.changed_bindings is None
    known.changed_bindings = set()
    known.handle_timer(51.0)
    assert known.changed_bindings == {AOR}


def test_restored_browsers_have_the_grace_to_come_back_and_inherit():
    """D3, G2: the flow of before is known to be gone; the same instance on a new flow takes its dialogs over."""
    known = directory()
    mine = binding(b"before")._replace(instance=INSTANCE, reg_id=1)
    over = binding(b"older", contact=b"sip:over@x", expires_at=5.0)
    known.restore_bindings([over, mine], 10.0)
    assert known.bindings(AOR) == (mine,)
    assert known.gone_since(b"before") == 10.0
    known.flow_opened(b"new")
    known.remember(registration(b"new"), 20.0)
    assert known.heir(b"before") == b"new"
    assert known.superseded(b"before", b"new")
    known.handle_timer(70.0)
    assert known.bindings(AOR) == ()


def test_restoring_keeps_to_the_limit():
    known = directory(max_bindings=1)
    known.restore_bindings([binding(b"a"), binding(b"b", aor=b"bob@example.com")], 0.0)
    assert known.counts()["bindings"] == 1
