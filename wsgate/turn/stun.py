"""STUN messages as bytes: header, attributes, integrity and fingerprint (RFC 8489 §5, §14; RFC 8656 §18).

`parse` judges the frame (rules S1, S2) and leaves the values packed; `Message.get` unpacks what a method asks for.
Each attribute is one row: number, name, and of which kind its value is (`values`).
"""

from __future__ import annotations

import dataclasses
import enum
import hmac
import struct
import zlib
from collections.abc import Callable, Collection, Iterable
from typing import Any, Generic, TypeVar

from wsgate.addr import Address
from wsgate.errors import ProtocolError
from wsgate.turn import values
from wsgate.turn.values import MAGIC_COOKIE

HEADER_BYTES = 20
TRANSACTION_ID_BYTES = 12
DATAGRAM_BYTES_MAX = 1500
"""No STUN message over this is parsed from UDP (rule S1)."""

INDICATED_BYTES_MAX = 0xFFFC - 28
"""The longest datagram that a Data indication takes from a peer of either family (RFC 8656 §11.3, RFC 8489 §5)."""

UNKNOWN_LISTED_MAX = 16
"""How many unknown attributes a 420 names, so that it stays short (rules S3, S4)."""

_HEADER = struct.Struct("!HHI12s")
_TLV = struct.Struct("!HH")
_FINGERPRINT_XOR = 0x5354554E
_COMPREHENSION_OPTIONAL = 0x8000

T = TypeVar("T")


class Method(enum.IntEnum):
    """RFC 8489 §18.2, RFC 8656 §17, RFC 6062 §6.1."""

    BINDING = 0x001
    ALLOCATE = 0x003
    REFRESH = 0x004
    SEND = 0x006
    DATA = 0x007
    CREATE_PERMISSION = 0x008
    CHANNEL_BIND = 0x009
    CONNECT = 0x00A
    CONNECTION_BIND = 0x00B
    CONNECTION_ATTEMPT = 0x00C


class MessageClass(enum.IntEnum):
    """The two class bits of the message type (RFC 8489 §5)."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


class Integrity(enum.Enum):
    """The two integrity attributes; the value is hashlib's name of the hash (RFC 8489 §14.5, §14.6)."""

    SHA1 = "sha1"
    SHA256 = "sha256"

    @property
    def attribute(self) -> int:
        """The number of its attribute."""
        return 0x0008 if self is Integrity.SHA1 else 0x001C

    @property
    def size_bytes(self) -> int:
        """The length of its value; TURN allows no truncation (RFC 8489 §14.6)."""
        return 20 if self is Integrity.SHA1 else 32


@dataclasses.dataclass(frozen=True)
class Attribute(Generic[T]):
    """One row of the table: how an attribute is written and read. `unpack` raises ValueError or struct.error."""

    number: int
    name: str
    pack: Callable[[T, bytes], bytes]
    unpack: Callable[[bytes, bytes], T]

    def __call__(self, value: T) -> tuple[Attribute[Any], T]:
        """The attribute with a value, as `encode` takes it."""
        return self, value


MAPPED_ADDRESS = Attribute(0x0001, "MAPPED-ADDRESS", *values.ADDRESS)
XOR_MAPPED_ADDRESS = Attribute(0x0020, "XOR-MAPPED-ADDRESS", *values.XOR_ADDRESS)
XOR_PEER_ADDRESS = Attribute(0x0012, "XOR-PEER-ADDRESS", *values.XOR_ADDRESS)
XOR_RELAYED_ADDRESS = Attribute(0x0016, "XOR-RELAYED-ADDRESS", *values.XOR_ADDRESS)
USERNAME = Attribute(0x0006, "USERNAME", *values.text(508))
USERHASH = Attribute(0x001E, "USERHASH", *values.opaque(32))
REALM = Attribute(0x0014, "REALM", *values.text(763))
NONCE = Attribute(0x0015, "NONCE", *values.opaque())
MESSAGE_INTEGRITY = Attribute(0x0008, "MESSAGE-INTEGRITY", *values.opaque(20))
MESSAGE_INTEGRITY_SHA256 = Attribute(0x001C, "MESSAGE-INTEGRITY-SHA256", *values.opaque(32))
FINGERPRINT = Attribute(0x8028, "FINGERPRINT", *values.NUMBER)
ERROR_CODE = Attribute(0x0009, "ERROR-CODE", *values.ERROR)
UNKNOWN_ATTRIBUTES = Attribute(0x000A, "UNKNOWN-ATTRIBUTES", *values.ATTRIBUTE_NUMBERS)
PASSWORD_ALGORITHMS = Attribute(0x8002, "PASSWORD-ALGORITHMS", *values.ALGORITHMS)
PASSWORD_ALGORITHM = Attribute(0x001D, "PASSWORD-ALGORITHM", *values.ALGORITHM)
SOFTWARE = Attribute(0x8022, "SOFTWARE", *values.text(763))
LIFETIME = Attribute(0x000D, "LIFETIME", *values.NUMBER)
DATA = Attribute(0x0013, "DATA", *values.opaque())
REQUESTED_TRANSPORT = Attribute(0x0019, "REQUESTED-TRANSPORT", *values.FIRST_OF_4_BYTES)
REQUESTED_ADDRESS_FAMILY = Attribute(0x0017, "REQUESTED-ADDRESS-FAMILY", *values.FIRST_OF_4_BYTES)
ADDITIONAL_ADDRESS_FAMILY = Attribute(0x8000, "ADDITIONAL-ADDRESS-FAMILY", *values.FIRST_OF_4_BYTES)
ADDRESS_ERROR_CODE = Attribute(0x8001, "ADDRESS-ERROR-CODE", *values.FAMILY_ERROR)
CHANNEL_NUMBER = Attribute(0x000C, "CHANNEL-NUMBER", *values.FIRST_2_OF_4_BYTES)
EVEN_PORT = Attribute(0x0018, "EVEN-PORT", *values.EVEN_PORT)
RESERVATION_TOKEN = Attribute(0x0022, "RESERVATION-TOKEN", *values.opaque(8))
CONNECTION_ID = Attribute(0x002A, "CONNECTION-ID", *values.NUMBER)
ICMP = Attribute(0x8004, "ICMP", *values.ICMP)
DONT_FRAGMENT = Attribute(0x001A, "DONT-FRAGMENT", *values.FLAG)
THIRD_PARTY_AUTHORIZATION = Attribute(0x802E, "THIRD-PARTY-AUTHORIZATION", *values.text(763))
ACCESS_TOKEN = Attribute(0x001B, "ACCESS-TOKEN", *values.opaque())
MOBILITY_TICKET = Attribute(0x8030, "MOBILITY-TICKET", *values.opaque())
CHANGE_REQUEST = Attribute(0x0003, "CHANGE-REQUEST", *values.NUMBER)
PADDING = Attribute(0x0026, "PADDING", *values.opaque())
RESPONSE_PORT = Attribute(0x0027, "RESPONSE-PORT", *values.FIRST_2_OF_4_BYTES)
RESPONSE_ORIGIN = Attribute(0x802B, "RESPONSE-ORIGIN", *values.ADDRESS)
OTHER_ADDRESS = Attribute(0x802C, "OTHER-ADDRESS", *values.ADDRESS)

DISCOVERY_ATTRIBUTES = frozenset((CHANGE_REQUEST.number, PADDING.number, RESPONSE_PORT.number))
"""What only a server with a second address understands (RFC 5780 §7; rule S4)."""

ATTRIBUTES: dict[int, Attribute[Any]] = {row.number: row for row in vars().copy().values() if type(row) is Attribute}
"""Every attribute that is understood, by number; a comprehension-required one outside is unknown (rule S3)."""


class Message:
    """One parsed message; values are unpacked when asked for. Made by `parse`."""

    __slots__ = ("_data", "_integrity", "fingerprint", "message_class", "method", "transaction_id", "unknown", "values")

    def __init__(self, data: bytes, method: int, message_class: MessageClass, transaction_id: bytes) -> None:
        self.method = method
        self.message_class = message_class
        self.transaction_id = transaction_id
        self.values: list[tuple[int, bytes]] = []
        self.unknown: list[int] = []
        self.fingerprint = False
        self._data = data
        self._integrity: dict[Integrity, int] = {}

    def get(self, attribute: Attribute[T]) -> T | None:
        """The first value of `attribute`, None where it is missing (rule S2). Raises ProtocolError."""
        for number, value in self.values:
            if number == attribute.number:
                return self._unpacked(attribute, value)
        return None

    def all(self, attribute: Attribute[T]) -> list[T]:
        """Every value of `attribute`, in order. Raises ProtocolError."""
        return [self._unpacked(attribute, value) for number, value in self.values if number == attribute.number]

    def note_unknown(self, number: int) -> None:
        """Remember an attribute that is required and unknown; so many that a 420 stays short (rules S3, S4)."""
        if number not in self.unknown and len(self.unknown) < UNKNOWN_LISTED_MAX:
            self.unknown.append(number)

    def disown(self, numbers: Collection[int]) -> None:
        """Count attributes that are understood elsewhere as unknown here."""
        for number, _ in self.values:
            if number in numbers:
                self.note_unknown(number)

    def _unpacked(self, attribute: Attribute[T], value: bytes) -> T:
        try:
            return attribute.unpack(value, self.transaction_id)
        except (ValueError, IndexError, struct.error) as problem:
            raise ProtocolError(f"{attribute.name} cannot be read") from problem

    def forget_values(self) -> None:
        """Keep no more than an answer needs, for an answer that has to wait."""
        self._data = b""
        self.values.clear()

    @property
    def data(self) -> bytes:
        """The whole message as it came."""
        return self._data

    @property
    def size_bytes(self) -> int:
        """The length of the whole message."""
        return len(self._data)

    @property
    def integrity(self) -> Integrity | None:
        """The strongest integrity attribute that is there (RFC 8489 §9.2.4)."""
        if Integrity.SHA256 in self._integrity:
            return Integrity.SHA256
        return Integrity.SHA1 if self._integrity else None

    def verify(self, key: bytes) -> bool:
        """True when the `integrity` attribute was made with `key`; in constant time (rule A1)."""
        kind = self.integrity
        if kind is None:
            return False
        start = self._integrity[kind]
        sent = self._data[start + 4 : start + 4 + _TLV.unpack_from(self._data, start)[1]]
        return hmac.compare_digest(_integrity_value(self._data[:start], key, kind), sent)


def _with_length(data: bytes, following: int) -> bytes:
    return data[:2] + (len(data) - HEADER_BYTES + following).to_bytes(2, "big") + data[4:]


def _integrity_value(data: bytes, key: bytes, kind: Integrity) -> bytes:
    return hmac.digest(key, _with_length(data, 4 + kind.size_bytes), kind.value)


def _fingerprint_value(data: bytes) -> int:
    return zlib.crc32(_with_length(data, 8)) ^ _FINGERPRINT_XOR


def is_request(data: bytes) -> bool:
    """True where the class bits of a message say that it wants an answer (RFC 8489 §5)."""
    return len(data) >= HEADER_BYTES and not data[0] & 1 and not data[1] & 0x10


def parse(data: bytes) -> Message:
    """The message in one datagram or one frame of a stream. Raises ProtocolError where it must be dropped (S1, S2)."""
    if len(data) < HEADER_BYTES or data[0] & 0xC0:
        raise ProtocolError("not STUN")
    message_type, length, cookie, transaction_id = _HEADER.unpack_from(data)
    if cookie != MAGIC_COOKIE:
        raise ProtocolError("not the magic cookie")
    if length % 4 or length != len(data) - HEADER_BYTES:
        raise ProtocolError("a length that is not so")
    method = message_type & 0x000F | message_type >> 1 & 0x0070 | message_type >> 2 & 0x0F80
    message_class = MessageClass(message_type >> 4 & 1 | message_type >> 7 & 2)
    message = Message(data, method, message_class, transaction_id)
    _read_attributes(message, data)
    return message


def _read_attributes(message: Message, data: bytes) -> None:
    """Collect the attributes that count: after an integrity attribute only a stronger one and FINGERPRINT (S2)."""
    position, end = HEADER_BYTES, len(data)
    integrity = message._integrity
    while position < end:
        start = position
        number, size = _TLV.unpack_from(data, start)
        position += 4 + (size + 3 & ~3)
        if position > end:
            raise ProtocolError("an attribute longer than its message")
        if number == FINGERPRINT.number:
            _read_fingerprint(data, start, position)
            message.fingerprint = True
        elif Integrity.SHA256 in integrity:
            continue
        elif number == MESSAGE_INTEGRITY_SHA256.number:
            integrity[Integrity.SHA256] = start
        elif integrity:
            continue
        elif number == MESSAGE_INTEGRITY.number:
            integrity[Integrity.SHA1] = start
        elif number in ATTRIBUTES:
            message.values.append((number, data[start + 4 : start + 4 + size]))
        elif number < _COMPREHENSION_OPTIONAL:
            message.note_unknown(number)


def _read_fingerprint(data: bytes, start: int, end: int) -> None:
    if end != len(data) or end - start != 8:
        raise ProtocolError("FINGERPRINT is not last")
    if int.from_bytes(data[start + 4 : end], "big") != _fingerprint_value(data[:start]):
        raise ProtocolError("FINGERPRINT is wrong")


def encode(
    method: int,
    message_class: MessageClass,
    transaction_id: bytes,
    attributes: Iterable[tuple[Attribute[Any], Any]],
    *,
    integrity: tuple[Integrity, bytes] | None = None,
    fingerprint: bool = False,
) -> bytes:
    """A whole message. `integrity` is the kind and the key; padding is zero (RFC 8489 §5, §14)."""
    message_type = method & 0x000F | (method & 0x0070) << 1 | (method & 0x0F80) << 2
    message_type |= (message_class & 1) << 4 | (message_class & 2) << 7
    parts = [b""]
    for attribute, value in attributes:
        packed = attribute.pack(value, transaction_id)
        parts.append(_TLV.pack(attribute.number, len(packed)) + packed + bytes(-len(packed) % 4))
    body = b"".join(parts)
    data = _HEADER.pack(message_type, len(body), MAGIC_COOKIE, transaction_id) + body
    if integrity is not None:
        kind, key = integrity
        data = _with_length(data, 4 + kind.size_bytes)
        data += _TLV.pack(kind.attribute, kind.size_bytes) + _integrity_value(data, key, kind)
    if fingerprint:
        data = _with_length(data, 8)
        data += struct.pack("!HHI", FINGERPRINT.number, 4, _fingerprint_value(data))
    return data


def data_indication_head(peer: Address, size: int, transaction_id: bytes) -> bytes:
    """What stands before the `size` bytes of a peer's datagram in a Data indication (RFC 8656 §11.3).

    36 bytes for an IPv4 peer, 48 for IPv6; the caller pads the payload to 4 with zeros. `size` is at most
    INDICATED_BYTES_MAX.
    """
    address = XOR_PEER_ADDRESS.pack(peer, transaction_id)
    length = 4 + len(address) + 4 + (size + 3 & ~3)
    head = _HEADER.pack(0x0017, length, MAGIC_COOKIE, transaction_id)
    return head + _TLV.pack(XOR_PEER_ADDRESS.number, len(address)) + address + _TLV.pack(DATA.number, size)
