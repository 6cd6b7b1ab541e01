"""The values of STUN attributes as bytes: what each kind of value is, how it is packed and unpacked (RFC 8489 §14,
RFC 8656 §18, RFC 6062 §6.2).

A kind is a pair: the first packs a value, the second unpacks its bytes and raises ValueError, IndexError or
struct.error. Both take the transaction id too, which only XOR_ADDRESS needs.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from wsgate.addr import Address

MAGIC_COOKIE = 0x2112A442

_COOKIE_BYTES = MAGIC_COOKIE.to_bytes(4, "big")
_ALGORITHM_HEAD = struct.Struct("!HH")

T = TypeVar("T")
Kind = tuple[Callable[[T, bytes], bytes], Callable[[bytes, bytes], T]]
"""How a kind of value is packed and unpacked."""


class Family(enum.IntEnum):
    """Address families as they stand in attributes (RFC 8489 §14.1, RFC 8656 §18.6)."""

    IPV4 = 1
    IPV6 = 2


class PasswordAlgorithm(enum.IntEnum):
    """RFC 8489 §18.5.1."""

    MD5 = 1
    SHA256 = 2


class ErrorCode(NamedTuple):
    """ERROR-CODE (RFC 8489 §14.8): `code` 300 to 699."""

    code: int
    reason: str


class Icmp(NamedTuple):
    """ICMP (RFC 8656 §18.13): what a router or a peer's host said; `data` is the MTU where there is one, else 0."""

    type: int
    code: int
    data: int


class EvenPort(NamedTuple):
    """EVEN-PORT (RFC 8656 §18.5); `reserve` is the R bit."""

    reserve: bool


def family_of(host: str) -> Family:
    """The family of a numeric host."""
    return Family.IPV6 if ":" in host else Family.IPV4


def host_bytes(host: str) -> bytes:
    """4 or 16 bytes of a numeric host. Raises ValueError."""
    if ":" in host:
        return ipaddress.IPv6Address(host).packed
    return bytes(map(int, host.split(".")))


def _xor(data: bytes, transaction_id: bytes) -> bytes:
    mask = (_COOKIE_BYTES + transaction_id)[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")).to_bytes(len(data), "big")


def _pack_xor_address(value: Address, transaction_id: bytes) -> bytes:
    packed = host_bytes(value.host)
    family = Family.IPV4 if len(packed) == 4 else Family.IPV6
    return struct.pack("!BBH", 0, family, value.port ^ (MAGIC_COOKIE >> 16)) + _xor(packed, transaction_id)


def _unpack_xor_address(value: bytes, transaction_id: bytes) -> Address:
    _, family, port = struct.unpack_from("!BBH", value)
    if (family, len(value)) == (Family.IPV4, 8):
        host = "%d.%d.%d.%d" % tuple(_xor(value[4:], transaction_id))  # noqa: UP031 - a tuple of four bytes
    elif (family, len(value)) == (Family.IPV6, 20):
        host = str(ipaddress.IPv6Address(_xor(value[4:], transaction_id)))
    else:
        raise ValueError("neither an IPv4 nor an IPv6 address")
    return Address(host, port ^ (MAGIC_COOKIE >> 16))


def _pack_address(value: Address, _: bytes) -> bytes:
    packed = host_bytes(value.host)
    return struct.pack("!BBH", 0, Family.IPV4 if len(packed) == 4 else Family.IPV6, value.port) + packed


def _unpack_address(value: bytes, _: bytes) -> Address:
    _, family, port = struct.unpack_from("!BBH", value)
    if (family, len(value)) not in ((Family.IPV4, 8), (Family.IPV6, 20)):
        raise ValueError("neither an IPv4 nor an IPv6 address")
    return Address(str(ipaddress.ip_address(value[4:])), port)


def fixed(layout: str) -> Kind[int]:
    """One number, as `struct` lays it out."""
    form = struct.Struct(layout)
    return lambda value, _: form.pack(value), lambda value, _: int(form.unpack(value)[0])


def text(limit_bytes: int) -> Kind[str]:
    """UTF-8 of at most so many bytes."""

    def unpack(value: bytes, _: bytes) -> str:
        if len(value) > limit_bytes:
            raise ValueError("longer than its RFC allows")
        return value.decode("utf-8")

    return lambda value, _: value.encode("utf-8"), unpack


def opaque(size_bytes: int | None = None) -> Kind[bytes]:
    """Bytes as they are, of this length where there is one."""

    def unpack(value: bytes, _: bytes) -> bytes:
        if size_bytes is not None and len(value) != size_bytes:
            raise ValueError("not of its fixed length")
        return value

    return lambda value, _: value, unpack


def _pack_error(value: ErrorCode, _: bytes) -> bytes:
    return struct.pack("!HBB", 0, *divmod(value.code, 100)) + value.reason.encode("utf-8")


def _unpack_error(value: bytes, _: bytes) -> ErrorCode:
    _zero, hundreds, rest = struct.unpack_from("!HBB", value)
    return ErrorCode((hundreds & 7) * 100 + rest, value[4:].decode("utf-8"))


def _pack_algorithms(value: tuple[int, ...], _: bytes) -> bytes:
    return b"".join(_ALGORITHM_HEAD.pack(number, 0) for number in value)


def _unpack_algorithms(value: bytes, _: bytes) -> tuple[int, ...]:
    numbers = []
    position = 0
    while position < len(value):
        number, size = _ALGORITHM_HEAD.unpack_from(value, position)
        numbers.append(number)
        position += 4 + (size + 3 & ~3)
    return tuple(numbers)


def _pack_algorithm(value: int, _: bytes) -> bytes:
    return _ALGORITHM_HEAD.pack(value, 0)


def _unpack_algorithm(value: bytes, transaction_id: bytes) -> int:
    [number] = _unpack_algorithms(value, transaction_id)
    return number


def _pack_family_error(value: tuple[int, ErrorCode], none: bytes) -> bytes:
    return bytes([value[0]]) + _pack_error(value[1], none)[1:]


def _unpack_family_error(value: bytes, none: bytes) -> tuple[int, ErrorCode]:
    return value[0], _unpack_error(value, none)


def _pack_even_port(value: EvenPort, _: bytes) -> bytes:
    return bytes([value.reserve << 7])


def _unpack_even_port(value: bytes, _: bytes) -> EvenPort:
    return EvenPort(bool(value[0] & 0x80))


def _pack_icmp(value: Icmp, _: bytes) -> bytes:
    return struct.pack("!HHI", 0, value.type << 9 | value.code, value.data)


def _unpack_icmp(value: bytes, _: bytes) -> Icmp:
    return Icmp(value[2] >> 1, (value[2] & 1) << 8 | value[3], int.from_bytes(value[4:8], "big"))


def _pack_numbers(value: tuple[int, ...], _: bytes) -> bytes:
    return struct.pack(f"!{len(value)}H", *value)


def _unpack_numbers(value: bytes, _: bytes) -> tuple[int, ...]:
    return struct.unpack(f"!{len(value) // 2}H", value)


ADDRESS: Kind[Address] = _pack_address, _unpack_address
XOR_ADDRESS: Kind[Address] = _pack_xor_address, _unpack_xor_address
NUMBER = fixed("!I")
FIRST_OF_4_BYTES = fixed("!B3x")
FIRST_2_OF_4_BYTES = fixed("!H2x")
ATTRIBUTE_NUMBERS: Kind[tuple[int, ...]] = _pack_numbers, _unpack_numbers
ERROR: Kind[ErrorCode] = _pack_error, _unpack_error
FAMILY_ERROR: Kind[tuple[int, ErrorCode]] = _pack_family_error, _unpack_family_error
ALGORITHM: Kind[int] = _pack_algorithm, _unpack_algorithm
ALGORITHMS: Kind[tuple[int, ...]] = _pack_algorithms, _unpack_algorithms
EVEN_PORT: Kind[EvenPort] = _pack_even_port, _unpack_even_port
ICMP: Kind[Icmp] = _pack_icmp, _unpack_icmp
FLAG: Kind[bool] = (lambda value, _: b"", lambda value, _: True)
"""There or not, without a value."""
