"""STUN keep-alives on the SIP port (RFC 5626 §8): Binding requests are answered with the source, nothing else is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsgate.addr import Address
from wsgate.net.keep_alive import binding_answer, is_stun
from wsgate.turn import stun
from wsgate.turn.stun import MessageClass, Method

SOURCE = Address("2001:db8::9", 5062)
ID = bytes(range(12))


def binding(kind: MessageClass = MessageClass.REQUEST, method: int = Method.BINDING, **options: bool) -> bytes:
    return stun.encode(method, kind, ID, (), **options)


def test_a_binding_request_is_answered_with_its_source():
    for fingerprint in (False, True):
        data = binding_answer(binding(fingerprint=fingerprint), SOURCE)
        assert data is not None
        answer = stun.parse(data)
        assert answer.message_class is MessageClass.SUCCESS
        assert answer.transaction_id == ID
        assert answer.get(stun.XOR_MAPPED_ADDRESS) == SOURCE
        assert answer.fingerprint is fingerprint


def test_an_unknown_required_attribute_is_420():
    data = binding()[:3] + b"\x04" + binding()[4:] + b"\x00\x7f\x00\x00"
    answer = stun.parse(binding_answer(data, SOURCE) or b"")
    assert answer.message_class is MessageClass.ERROR
    assert (answer.get(stun.ERROR_CODE) or (0,))[0] == 420
    assert answer.get(stun.UNKNOWN_ATTRIBUTES) == (0x7F,)


def test_nothing_else_is_answered():
    """No TURN, no answer to an answer: two gateways never play ball."""
    assert binding_answer(binding(MessageClass.SUCCESS), SOURCE) is None
    assert binding_answer(binding(MessageClass.INDICATION), SOURCE) is None
    assert binding_answer(binding(method=Method.ALLOCATE), SOURCE) is None
    assert binding_answer(binding()[:19], SOURCE) is None


@given(st.binary(max_size=60))
def test_any_bytes_are_told_from_sip(data: bytes):
    assert is_stun(data) == (data[:1] in (b"\0", b"\1", b"\2", b"\3"))
    binding_answer(data, SOURCE)


def test_sip_is_no_stun():
    assert not is_stun(b"REGISTER sip:x SIP/2.0\r\n")
    assert not is_stun(b"")
