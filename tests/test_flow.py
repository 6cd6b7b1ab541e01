"""Flow tokens and the table of browser connections (rules T1, T2)."""

from __future__ import annotations

import string
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.addr import Address, Transport
from wsgate.keys import Key
from wsgate.sip.flow import TOKEN_LENGTH, Flow, FlowTable, FlowTokens, Verdict

NEW, OLD, STRANGE = Key(7, b"n" * 32), Key(6, b"o" * 32), Key(7, b"s" * 32)
CONNECTION = bytes(range(8))
HOST = Address("gate.example.org", 443)


def test_a_token_is_38_characters_that_need_no_escaping():
    """T1: base64url without padding of 1 + 1 + 2 + 8 + 16 bytes."""
    token = FlowTokens([NEW], worker=3).make(CONNECTION)
    assert len(token) == TOKEN_LENGTH == 38
    assert all(chr(byte).isalnum() or chr(byte) in "-_" for byte in token)


def test_a_token_names_its_connection_and_worker():
    tokens = FlowTokens([NEW, OLD], worker=513)
    assert tokens.read(tokens.make(CONNECTION)) == (Verdict.VALID, CONNECTION, 513)


def test_there_is_no_address_in_a_token():
    """T1: the same connection id makes the same token, wherever the browser sits."""
    table = FlowTable(FlowTokens([NEW]), bytes)
    first = table.open(Address("203.0.113.5", 1), True, HOST)
    second = table.open(Address("2001:db8::9", 2), False, HOST)
    assert first.token == second.token


def test_a_token_made_with_the_older_of_two_live_keys_is_still_valid():
    """T1: two live keys, so that one can be changed under living calls."""
    older = FlowTokens([OLD]).make(CONNECTION)
    assert FlowTokens([NEW, OLD]).read(older).verdict is Verdict.VALID
    assert FlowTokens([NEW, OLD]).make(CONNECTION) == FlowTokens([NEW]).make(CONNECTION)


def test_a_token_survives_a_restart_with_the_same_keys():
    """T2: MAC right, connection unknown."""
    token = FlowTokens([NEW]).make(CONNECTION)
    table = FlowTable(FlowTokens([NEW]), bytes)
    assert table.tokens.read(token).verdict is Verdict.VALID
    assert table.get(table.tokens.read(token).connection) is None


@pytest.mark.parametrize("keys", [[STRANGE], [OLD]], ids=["another secret", "another key id"])
def test_a_token_of_a_key_that_is_not_ours_is_forged(keys):
    assert FlowTokens([NEW]).read(FlowTokens(keys).make(CONNECTION)).verdict is Verdict.FORGED


def test_every_changed_character_makes_a_token_no_longer_valid():
    """T1: the MAC covers version, key id, worker and connection id; also the unused bits at the end are fixed."""
    tokens = FlowTokens([NEW])
    token = tokens.make(CONNECTION)
    for place in range(len(token)):
        for other in b"A_-z9":
            if other != token[place]:
                changed = token[:place] + bytes((other,)) + token[place + 1 :]
                assert tokens.read(changed).verdict is not Verdict.VALID, (place, other)


def test_only_the_canonical_spelling_is_a_token():
    tokens = FlowTokens([NEW])
    head = tokens.make(CONNECTION)[:-1]
    spellings = [head + last.encode() for last in string.ascii_letters + string.digits + "-_+/="]
    assert sum(tokens.read(spelling).verdict is Verdict.VALID for spelling in spellings) == 1
    # A connection id whose token has a dash or underscore is not known by plus and slash.
    fancy = next(t for t in map(tokens.make, (n.to_bytes(8, "big") for n in count())) if b"-" in t or b"_" in t)
    assert tokens.read(fancy.replace(b"-", b"+").replace(b"_", b"/")).verdict is not Verdict.VALID


@pytest.mark.parametrize(
    "text", [None, b"", b"alice", b"A" * 37, b"A" * 39, b"=" * 38, b"\xff" * 38, b"%41" * 12 + b"AA"]
)
def test_an_ordinary_user_part_is_no_token(text):
    assert FlowTokens([NEW]).read(text).verdict is Verdict.FOREIGN


@given(st.one_of(st.binary(max_size=60), st.binary(min_size=38, max_size=38)))
def test_reading_never_fails_and_never_trusts_chance(text):
    assert FlowTokens([NEW]).read(text).verdict is not Verdict.VALID


def test_connection_ids_come_from_the_random_source_and_are_forgotten_on_close():
    numbers = count(1)
    table = FlowTable(FlowTokens([NEW]), lambda size: next(numbers).to_bytes(size, "big"))
    first = table.open(Address("203.0.113.5", 1), True, HOST)
    assert table.close(first.id) is first
    second = table.open(Address("203.0.113.5", 1), False, HOST)
    assert (first.id, second.id) == (bytes(7) + b"\x01", bytes(7) + b"\x02")
    assert table.get(first.id) is None
    assert table.close(first.id) is None
    assert list(table) == [second]
    assert len(table) == 1
    assert (first.hop.transport, second.hop.transport) == (Transport.WSS, Transport.WS)


def test_a_flow_gives_the_handle_of_its_tokens_whatever_it_gave_before() -> None:
    """Rule R5: the one that is kept is that of the same AOR and Contact alone."""
    counted: list[tuple[bytes, bytes]] = []

    class Counted(FlowTokens):
        def handle(self, aor: bytes, contact: bytes) -> bytes:
            counted.append((aor, contact))
            return super().handle(aor, contact)

    tokens = Counted([Key(1, b"k" * 32)])
    flow = Flow(b"c" * 8, b"t", Address("203.0.113.5", 4000), True, Address("gate.example.org", 443))
    asked = [
        (b"a@h", b"sip:a@x"),
        (b"a@h", b"sip:a@x"),
        (b"a@h", b"sip:a@y"),
        (b"b@h", b"sip:a@y"),
        (b"a@h", b"sip:a@x"),
    ]
    given = [flow.handle(tokens, *one) for one in asked]
    assert given == [FlowTokens.handle(tokens, *one) for one in asked]
    assert counted == [asked[0], asked[2], asked[3], asked[4]]


def test_a_token_says_the_same_before_while_and_after_its_connection_is_open() -> None:
    """Rule T2: a token outlives its connection; T1: and only the one spelling counts, open or not."""
    tokens = FlowTokens([NEW], worker=3)
    table = FlowTable(tokens, lambda size: CONNECTION)
    text = tokens.make(CONNECTION)
    other_spelling = text[:-1] + bytes((text[-1] + 1,))
    seen = [(tokens.read(text), tokens.read(other_spelling).verdict)]
    flow = table.open(Address("203.0.113.5", 4000), False, HOST)
    assert flow.token == text
    seen.append((tokens.read(text), tokens.read(other_spelling).verdict))
    table.close(CONNECTION)
    seen.append((tokens.read(text), tokens.read(other_spelling).verdict))
    assert seen == [((Verdict.VALID, CONNECTION, 3), Verdict.FORGED)] * 3
