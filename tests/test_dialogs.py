"""The dialog table: begins, is found from both sides, never forgets a living dialog for a new one, ends."""

from __future__ import annotations

from wsgate.sip.dialogs import DialogState, DialogTable, Side

KEY = (b"call", b"a1", b"b1")


def side(flow: bytes = b"", backend: str = "") -> Side:
    return Side(flow, backend, b"<sip:x@example.com>;tag=t", [], b"sip:x@192.0.2.9", 1)


def begin(table: DialogTable, key=KEY, now=0.0):
    return table.begin(key, b"INVITE", side(flow=b"browser"), side(backend="example.com"), now)


def test_a_dialog_is_found_by_call_id_and_both_tags_from_both_sides():
    """Dialog table, RFC 3261 §12.2.2: sender and receiver are told apart by the tags."""
    table = DialogTable(10, 100)
    dialog = begin(table)
    from_caller, from_callee = table.find(*KEY), table.find(b"call", b"b1", b"a1")
    assert from_caller == (dialog, dialog.caller, dialog.callee)
    assert from_callee == (dialog, dialog.callee, dialog.caller)
    assert dialog.state is DialogState.EARLY
    assert dialog.holds_flow(b"browser")
    assert not dialog.holds_flow(b"other")


def test_another_tag_or_call_id_is_another_dialog():
    table = DialogTable(10, 100)
    begin(table)
    for key in [(b"other", b"a1", b"b1"), (b"call", b"a2", b"b1"), (b"call", b"a1", b"b2"), (b"call", b"a1", b"")]:
        assert table.find(*key) is None


def test_beginning_again_gives_the_dialog_that_is_there():
    """A retransmitted 2xx makes no second entry."""
    table = DialogTable(10, 100)
    assert begin(table) is begin(table, now=5.0)
    assert len(table) == 1


def test_a_full_table_takes_no_new_dialog_and_forgets_no_living_one():
    table = DialogTable(2, 100)
    begin(table)
    begin(table, (b"call", b"a1", b"b2"))
    assert table.full
    assert begin(table, (b"call", b"a1", b"b3")) is None
    assert table.find(*KEY) is not None
    assert len(table) == 2
    assert begin(table) is table.find(*KEY).dialog, "what is there already is no new dialog"
    table.end(KEY)
    assert not table.full
    assert begin(table, (b"call", b"a1", b"b3")) is not None


def test_a_dialog_ends_after_its_lifetime_without_a_message():
    """`dialog_lifetime`; a message of the dialog begins it again."""
    table = DialogTable(10, 100)
    first = begin(table)
    begin(table, (b"call", b"a1", b"b2"), now=10)
    assert table.next_timer() == 100
    table.touch(first, 60)
    assert table.next_timer() == 110
    assert table.handle_timer(109) == 0
    assert table.handle_timer(110) == 1
    assert table.find(*KEY) is not None
    assert table.handle_timer(160) == 1
    assert len(table) == 0
    assert table.next_timer() is None


def test_ending_or_touching_what_is_gone_is_harmless():
    table = DialogTable(10, 100)
    dialog = begin(table)
    table.end(KEY)
    table.end(KEY)
    table.touch(dialog, 5)
    assert len(table) == 0
