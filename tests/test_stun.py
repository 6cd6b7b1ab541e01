"""The STUN codec: published vectors, the frame rules S1 to S3, and every attribute there and back."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.addr import Address
from wsgate.errors import ProtocolError
from wsgate.turn import stun
from wsgate.turn.auth import long_term_key, user_hash
from wsgate.turn.stun import Integrity, MessageClass, Method
from wsgate.turn.values import MAGIC_COOKIE, ErrorCode, EvenPort, Family, PasswordAlgorithm

VECTORS = Path(__file__).parent / "vectors" / "rfc5769"
TRANSACTION = bytes(range(12))
BY_NAME = {row.name: row for row in stun.ATTRIBUTES.values()}


def vector(name: str) -> tuple[bytes, dict[str, Any]]:
    expected = json.loads((VECTORS / f"{name}.json").read_text())
    return bytes.fromhex((VECTORS / f"{name}.hex").read_text()), expected


def binding(*fields: Any, **options: Any) -> bytes:
    return stun.encode(Method.BINDING, MessageClass.REQUEST, TRANSACTION, fields, **options)


def tlv(number: int, value: bytes) -> bytes:
    return struct.pack("!HH", number, len(value)) + value + bytes(-len(value) % 4)


def with_attributes(*parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack("!HHI", 1, len(body), MAGIC_COOKIE) + TRANSACTION + body


@pytest.mark.parametrize("name", sorted(path.stem for path in VECTORS.glob("*.hex")))
def test_vectors(name: str) -> None:
    data, expected = vector(name)
    message = stun.parse(data)
    assert message.method == expected["method"]
    assert message.message_class.name == expected["class"]
    assert message.fingerprint is expected["fingerprint"]
    assert message.unknown == expected["unknown"]
    assert message.integrity is Integrity(expected["integrity"])
    if "key" in expected:
        key = bytes.fromhex(expected["key"])
    else:
        *words, algorithm = expected["long_term"]
        key = long_term_key(*words, PasswordAlgorithm[algorithm])
    assert message.verify(key)
    assert not message.verify(key[:-1])
    for attribute, value in expected["values"].items():
        got = message.get(BY_NAME[attribute])
        assert (list(got) if isinstance(got, tuple) else got) == value


def test_user_hash_of_the_vector() -> None:
    message = stun.parse(vector("rfc8489-B.1-request")[0])
    assert message.get(stun.USERHASH) == user_hash("マトリックス", "example.org")


def test_the_vector_of_an_answer_is_written_but_for_its_padding() -> None:
    data, expected = vector("2.3-ipv6-response")
    host, port = expected["values"]["XOR-MAPPED-ADDRESS"]
    written = stun.encode(
        Method.BINDING,
        MessageClass.SUCCESS,
        data[8:20],
        [stun.XOR_MAPPED_ADDRESS(Address(host, port))],
        integrity=(Integrity.SHA1, bytes.fromhex(expected["key"])),
        fingerprint=True,
    )
    assert data[36:60] == written[20:44]
    assert stun.parse(written).verify(bytes.fromhex(expected["key"]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        binding()[:19],
        b"\x40" + binding()[1:],  # the two top bits (S1)
        b"\x80" + binding()[1:],
        binding()[:4] + b"\0\0\0\0" + binding()[8:],  # RFC 3489: no magic cookie (S1, S4)
        binding() + b"\0\0\0\0",  # length says less than there is (S1)
        binding(stun.LIFETIME(1))[:-4],  # length says more (S1)
        struct.pack("!HHI", 1, 3, MAGIC_COOKIE) + TRANSACTION + b"abc",  # not a multiple of 4 (S1)
        with_attributes(struct.pack("!HH", 0x0006, 9) + b"abcd"),  # an attribute past the end (S1)
        with_attributes(struct.pack("!HH", 0x0006, 0xFFFF)),
        binding(fingerprint=True)[:-1] + b"\0",  # FINGERPRINT wrong (S2)
        with_attributes(binding(fingerprint=True)[20:], tlv(0x8022, b"late")),  # FINGERPRINT not last (S2)
        with_attributes(tlv(0x8028, b"")),
    ],
)
def test_dropped(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        stun.parse(data)


def test_the_first_of_a_duplicate_counts() -> None:
    message = stun.parse(binding(stun.LIFETIME(1), stun.LIFETIME(2)))
    assert message.get(stun.LIFETIME) == 1
    assert message.all(stun.LIFETIME) == [1, 2]


def test_what_follows_integrity_is_ignored_but_the_stronger_one_and_fingerprint() -> None:
    """Rule S2."""
    key = b"key"
    signed = binding(stun.LIFETIME(1), integrity=(Integrity.SHA1, key))
    late = with_attributes(signed[20:], tlv(0x7777, b""), tlv(stun.NONCE.number, b"late"))
    message = stun.parse(late)
    assert message.get(stun.NONCE) is None
    assert message.unknown == []
    assert message.integrity is Integrity.SHA1

    inner = stun.parse(signed)
    assert inner.verify(key)
    both = with_attributes(signed[20:], tlv(stun.MESSAGE_INTEGRITY_SHA256.number, bytes(32)), tlv(0x000D, bytes(4)))
    assert stun.parse(both).integrity is Integrity.SHA256
    assert stun.parse(both).get(stun.LIFETIME) == 1

    strong = binding(integrity=(Integrity.SHA256, key))
    twice = with_attributes(strong[20:], tlv(stun.MESSAGE_INTEGRITY_SHA256.number, bytes(32)))
    assert stun.parse(twice).verify(key)


@pytest.mark.parametrize("kind", list(Integrity))
@pytest.mark.parametrize("fingerprint", [False, True])
def test_integrity_and_fingerprint_there_and_back(kind: Integrity, fingerprint: bool) -> None:
    data = binding(stun.USERNAME("bob"), integrity=(kind, b"key"), fingerprint=fingerprint)
    message = stun.parse(data)
    assert message.verify(b"key")
    assert message.integrity is kind
    assert message.fingerprint is fingerprint
    assert not stun.parse(binding(stun.USERNAME("bob"), integrity=(kind, b"yek"))).verify(b"key")


def test_a_truncated_integrity_is_wrong() -> None:
    """TURN does not allow truncation (RFC 8489 §14.6)."""
    data = binding(integrity=(Integrity.SHA256, b"key"))
    short = with_attributes(tlv(stun.MESSAGE_INTEGRITY_SHA256.number, data[24:40]))
    assert not stun.parse(short).verify(b"key")
    assert not stun.parse(binding()).verify(b"key")


def test_unknown_required_attributes_are_reported_and_bounded() -> None:
    """Rule S3; optional ones (0x8000 and above) are passed over."""
    many = [tlv(number, b"x") for number in range(0x7000, 0x7100)]
    message = stun.parse(with_attributes(tlv(0xC001, b""), *many, many[0]))
    assert message.unknown == list(range(0x7000, 0x7000 + stun.UNKNOWN_LISTED_MAX))


EXAMPLES: list[tuple[stun.Attribute[Any], Any]] = [
    (stun.XOR_MAPPED_ADDRESS, Address("192.0.2.7", 1)),
    (stun.XOR_PEER_ADDRESS, Address("2001:db8::7", 65535)),
    (stun.XOR_RELAYED_ADDRESS, Address("0.0.0.0", 0)),
    (stun.USERNAME, "マトリックス"),
    (stun.USERHASH, bytes(32)),
    (stun.REALM, "wsgate"),
    (stun.NONCE, b"n"),
    (stun.ERROR_CODE, ErrorCode(438, "Stale Nonce")),
    (stun.UNKNOWN_ATTRIBUTES, (1, 2, 3)),
    (stun.PASSWORD_ALGORITHMS, (2, 1)),
    (stun.PASSWORD_ALGORITHM, 2),
    (stun.SOFTWARE, "wsgate"),
    (stun.LIFETIME, 600),
    (stun.DATA, b"payload"),
    (stun.REQUESTED_TRANSPORT, 17),
    (stun.REQUESTED_ADDRESS_FAMILY, Family.IPV6),
    (stun.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6),
    (stun.ADDRESS_ERROR_CODE, (Family.IPV6, ErrorCode(440, "no"))),
    (stun.CHANNEL_NUMBER, 0x4000),
    (stun.EVEN_PORT, EvenPort(True)),
    (stun.RESERVATION_TOKEN, b"12345678"),
    (stun.DONT_FRAGMENT, True),
]


@pytest.mark.parametrize(("attribute", "value"), EXAMPLES, ids=lambda one: getattr(one, "name", ""))
def test_every_attribute_there_and_back(attribute: stun.Attribute[Any], value: Any) -> None:
    message = stun.parse(binding(attribute(value)))
    assert message.get(attribute) == value


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        (stun.LIFETIME, b"abc"),
        (stun.LIFETIME, b""),
        (stun.CHANNEL_NUMBER, b"\x40\0"),
        (stun.XOR_PEER_ADDRESS, b"\0\1\0\0"),
        (stun.XOR_PEER_ADDRESS, b"\0\3" + bytes(6)),
        (stun.XOR_PEER_ADDRESS, b"\0\2" + bytes(6)),
        (stun.XOR_PEER_ADDRESS, b""),
        (stun.USERNAME, b"\xff\xfe"),
        (stun.USERNAME, b"x" * 509),
        (stun.USERHASH, b"short"),
        (stun.EVEN_PORT, b""),
        (stun.RESERVATION_TOKEN, b"short"),
        (stun.PASSWORD_ALGORITHMS, b"\0"),
        (stun.PASSWORD_ALGORITHM, b"\0\1\0\0\0\2\0\0"),
        (stun.UNKNOWN_ATTRIBUTES, b"\0"),
        (stun.ERROR_CODE, b"\0"),
    ],
)
def test_values_that_cannot_be_read(attribute: stun.Attribute[Any], value: bytes) -> None:
    message = stun.parse(with_attributes(tlv(attribute.number, value)))
    with pytest.raises(ProtocolError, match=attribute.name):
        message.get(attribute)


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("message_class", list(MessageClass))
def test_methods_and_classes_there_and_back(method: Method, message_class: MessageClass) -> None:
    message = stun.parse(stun.encode(method, message_class, TRANSACTION, ()))
    assert (message.method, message.message_class, message.transaction_id) == (method, message_class, TRANSACTION)


def test_padding_is_zero() -> None:
    assert binding(stun.NONCE(b"12345"))[-3:] == b"\0\0\0"


@pytest.mark.parametrize("peer", [Address("192.0.2.9", 4000), Address("2001:db8::9", 4000)])
@pytest.mark.parametrize("size", [0, 1, 4, 171])
def test_the_head_of_a_data_indication(peer: Address, size: int) -> None:
    payload = b"p" * size
    head = stun.data_indication_head(peer, size, TRANSACTION)
    message = stun.parse(head + payload + bytes(-size % 4))
    assert (message.method, message.message_class) == (Method.DATA, MessageClass.INDICATION)
    assert message.get(stun.XOR_PEER_ADDRESS) == peer
    assert message.get(stun.DATA) == payload


@given(st.binary(max_size=200))
def test_garbage_is_parsed_or_refused_but_nothing_else(body: bytes) -> None:
    for data in (body, with_attributes(body[: len(body) // 4 * 4])):
        try:
            message = stun.parse(data)
        except ProtocolError:
            continue
        for attribute in stun.ATTRIBUTES.values():
            with contextlib.suppress(ProtocolError):
                assert isinstance(message.all(attribute), list)
