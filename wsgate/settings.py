"""What an ini option is: a dataclass field with a parser, the words for what is allowed, and a default.

Each machine declares its frozen settings dataclass with `option(...)`; ini.py reads the sections into them.
A parser takes the text of the option and raises ValueError with a reason an administrator understands.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, TypeVar

from wsgate.addr import Address, Network, is_host, parse_network, split_host_port

T = TypeVar("T")
Parser = tuple[Callable[[str], T], str]


def option(default: T, parser: Parser[T], *, later: str = "") -> T:
    """One field of a settings dataclass. `later` says in words which feature is not there yet (empty: it is)."""
    parse, allowed = parser
    field: Any = dataclasses.field(default=default, metadata={"parse": parse, "allowed": allowed, "later": later})
    return field  # type: ignore[no-any-return]


def _boolean(text: str) -> bool:
    try:
        return {
            "on": True,
            "yes": True,
            "true": True,
            "1": True,
            "off": False,
            "no": False,
            "false": False,
            "0": False,
        }[text.lower()]
    except KeyError:
        raise ValueError(f"{text!r} is neither on nor off") from None


BOOLEAN: Parser[bool] = (_boolean, "on, off")
TEXT: Parser[str] = (lambda text: text, "any text")


def _number(kind: Callable[[str], T], text: str) -> T:
    try:
        return kind(text)
    except ValueError:
        raise ValueError("it is not a number") from None


def integer(low: int, high: int) -> Parser[int]:
    """A whole number from `low` to `high`. The parser raises ValueError."""

    def parse(text: str) -> int:
        value = _number(int, text)
        if not low <= value <= high:
            raise ValueError(f"{value} is out of range")
        return value

    return parse, f"a whole number from {low} to {high}"


def seconds(low: float, high: float) -> Parser[float]:
    """A time in seconds from `low` to `high`. The parser raises ValueError."""

    def parse(text: str) -> float:
        value = _number(float, text)
        if not low <= value <= high:
            raise ValueError(f"{text} is out of range")
        return value

    return parse, f"seconds from {low:g} to {high:g}"


def choice(kind: type[T]) -> Parser[T]:
    """A member of an enum, written as its value. The parser raises ValueError."""
    members = {str(member.value).lower(): member for member in kind}  # type: ignore[attr-defined]

    def parse(text: str) -> T:
        try:
            return members[text.lower()]  # type: ignore[no-any-return]
        except KeyError:
            raise ValueError(f"{text!r} is not known") from None

    return parse, ", ".join(members)


def items(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated list, without empty ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def listed(one: Parser[T]) -> Parser[tuple[T, ...]]:
    """A comma-separated list of what `one` parses."""
    parse, allowed = one
    return lambda text: tuple(parse(part) for part in items(text)), f"a list, separated by commas, of: {allowed}"


def auto(one: Parser[T]) -> Parser[T | None]:
    """What `one` parses, or `auto`, which becomes None and is found out at start."""
    parse, allowed = one
    return lambda text: None if text.lower() == "auto" else parse(text), f"auto, or {allowed}"


def optional(one: Parser[T]) -> Parser[T | None]:
    """What `one` parses, or nothing, which becomes None."""
    parse, allowed = one
    return lambda text: parse(text) if text else None, f"empty, or {allowed}"


def _percent(text: str) -> float:
    value = _number(float, text.removesuffix("%"))
    if not text.endswith("%") or not 0 < value <= 100:
        raise ValueError(f"{text!r} is not a percentage")
    return value / 100


def _port_range(text: str) -> tuple[int, int]:
    low, dash, high = (part.strip() for part in text.partition("-"))
    numbers = dash and all(part.isascii() and part.isdigit() for part in (low, high))
    if not numbers or not 1024 <= int(low) <= int(high) <= 65535:
        raise ValueError(f"{text!r} is not a range of ports")
    return int(low), int(high)


def _host(text: str) -> str:
    address = split_host_port(text, 0)
    if address.port or not is_host(address.host):
        raise ValueError(f"{text!r} is no IP address or host name without a port")
    return address.host


def _name(text: str) -> str:
    if not is_host(split_host_port(text, 0).host):
        raise ValueError(f"{text!r} is no host or host:port")
    return text


STRINGS: Parser[tuple[str, ...]] = (items, "a list of texts, separated by commas")
HOST: Parser[str] = (_host, "an IP address or host name, without port")
NAMES: Parser[tuple[str, ...]] = listed((_name, "host or host:port"))
ADDRESS: Parser[Address] = (split_host_port, "host:port")
ADDRESSES: Parser[tuple[Address, ...]] = listed(ADDRESS)
NETWORK: Parser[Network] = (parse_network, "address or CIDR")
NETWORKS: Parser[tuple[Network, ...]] = listed(NETWORK)
PERCENT: Parser[float] = (_percent, "a percentage, e.g. 80%")
PORT_RANGE: Parser[tuple[int, int]] = (_port_range, "LOW-HIGH, ports from 1024 to 65535")


class Switch(enum.Enum):
    """on, off, or decided from what arrives."""

    ON = "on"
    OFF = "off"
    AUTO = "auto"
