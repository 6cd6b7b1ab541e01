"""net/forwarded: whom a relay speaks for, read from the right; the PROXY protocol by bytes."""

from __future__ import annotations

import ipaddress
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.addr import Address, parse_network
from wsgate.errors import ProtocolError
from wsgate.net.forwarded import (
    PROXY_V2_SIGNATURE,
    Relayed,
    asked_host,
    client_address,
    proxy_v1,
    proxy_v2,
    proxy_v2_body_bytes,
)
from wsgate.ws.handshake import MAX_HEAD_BYTES

TRUSTED = (parse_network("10.0.0.0/8"), parse_network("fd00::/8"))
RELAY = Address("10.0.0.1", 4711)
STRANGER = Address("192.0.2.66", 4711)


def client(*values: str, field: str = "X-Forwarded-For", peer: Address = RELAY) -> Relayed:
    return client_address(peer, [(field, value) for value in values], TRUSTED)


@pytest.mark.parametrize(
    ("values", "host", "relays"),
    [
        (["198.51.100.7"], "198.51.100.7", 1),
        (["6.6.6.6, 198.51.100.7"], "198.51.100.7", 1),
        (["6.6.6.6", "198.51.100.7"], "198.51.100.7", 1),
        (["6.6.6.6, 198.51.100.7, 10.2.2.2"], "198.51.100.7", 2),
        (["10.3.3.3, 10.2.2.2"], "10.3.3.3", 2),
        (["nonsense, 198.51.100.7"], "198.51.100.7", 1),
        (["198.51.100.7:1234"], "198.51.100.7", 1),
        (["2001:db8::1"], "2001:db8::1", 1),
        (["[2001:db8::1]:443"], "2001:db8::1", 1),
        (["2001:DB8:0::1"], "2001:db8::1", 1),
        (["::ffff:198.51.100.7"], "198.51.100.7", 1),
        (["\t198.51.100.7 "], "198.51.100.7", 1),
    ],
)
def test_x_forwarded_for_is_read_from_the_right(values: list[str], host: str, relays: int) -> None:
    assert client(*values) == Relayed(Address(host, 0), relays)


@pytest.mark.parametrize(
    "value",
    ["", "unknown", "198.51.100.7,", "198.51.100.7, 999.1.1.1", "198.51.100.7 x", "1.2.3.4.5", "[1::2", "_hidden", "1"],
)
def test_an_unreadable_entry_means_the_peer(value: str) -> None:
    assert client(value) == Relayed(RELAY, 1)


def test_nobody_else_is_believed() -> None:
    assert client("198.51.100.7", peer=STRANGER) == Relayed(STRANGER, 0)
    assert client_address(RELAY, [], TRUSTED) == Relayed(RELAY, 1)


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("for=198.51.100.7", "198.51.100.7"),
        ("For=198.51.100.7;proto=https;by=10.0.0.1", "198.51.100.7"),
        ('proto=https;for="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        ("for=6.6.6.6, for=198.51.100.7", "198.51.100.7"),
        ('for=198.51.100.7;ext="a,for=6.6.6.6"', "198.51.100.7"),
        ("for=198.51.100.7, for=10.1.1.1", "198.51.100.7"),
        ('for="6.6.6.6, for=198.51.100.7', "198.51.100.7"),
        ('for="6.6.6.6, for="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        ('for=198.51.100.7;host="a;for=6.6.6.6;b"', "198.51.100.7"),
        ('host="a, for=6.6.6.6;b=\\"c", for=10.1.1.1', RELAY.host),
        ("for=unknown", RELAY.host),
        ("for=_secret", RELAY.host),
        ("proto=https", RELAY.host),
        ("for=198.51.100.7;for=198.51.100.8", RELAY.host),
        ("xfor=198.51.100.7", RELAY.host),
        ('for="198.51.100.7', RELAY.host),
    ],
)
def test_forwarded(value: str, host: str) -> None:
    assert client(value, field="Forwarded").remote.host == host


@pytest.mark.parametrize("piece", ['\\"', '"\\', ',a="', 'a="b",', "a=b;", 'for="', ",", " ", ";for=1,"])
@pytest.mark.parametrize("start", ["", '"', 'for="'])
def test_a_head_full_of_forwarded_is_read_in_no_time(start: str, piece: str) -> None:
    """No stranger gets the square of what he wrote in CPU time."""
    value = start + piece * (MAX_HEAD_BYTES // len(piece))
    began = time.process_time()
    client(value, field="Forwarded")
    assert time.process_time() - began < 0.3


def test_where_both_stand_only_x_forwarded_for_counts() -> None:
    both = [("Forwarded", "for=6.6.6.6"), ("X-Forwarded-For", "198.51.100.7")]
    assert client_address(RELAY, both, TRUSTED).remote.host == "198.51.100.7"
    unreadable = [("Forwarded", "for=6.6.6.6"), ("X-Forwarded-For", "unknown")]
    assert client_address(RELAY, unreadable, TRUSTED).remote == RELAY


@pytest.mark.parametrize(
    ("forwarded", "relays", "host"),
    [
        ("phone.example.com", 1, "phone.example.com"),
        ("evil.example, Phone.example.com", 1, "phone.example.com"),
        ("phone.example.com, inner", 2, "phone.example.com"),
        ("phone.example.com", 2, "phone.example.com"),
        ("evil.example", 0, "inner:8088"),
        ("", 1, "inner:8088"),
    ],
)
def test_the_host_asked_for(forwarded: str, relays: int, host: str) -> None:
    assert asked_host([("Host", "Inner:8088"), ("X-Forwarded-Host", forwarded)], relays) == host


@given(st.lists(st.text(max_size=40), max_size=4), st.sampled_from(["X-Forwarded-For", "Forwarded"]))
def test_any_text_gives_an_address(values: list[str], field: str) -> None:
    assert ipaddress.ip_address(client(*values, field=field).remote.host)


def test_proxy_v1() -> None:
    assert proxy_v1(b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n") == Address("192.0.2.1", 56324)
    assert proxy_v1(b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n") == Address("2001:db8::1", 56324)
    assert proxy_v1(b"PROXY UNKNOWN\r\n") is None
    assert proxy_v1(b"PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n") is None


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 01 443\r\n",
        b"PROXY TCP5 192.0.2.1 192.0.2.2 1 443\r\n",
        b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 443\r\n",
        b"PROXY TCP4 192.0.2 192.0.2.2 1 443\r\n",
        b"PROXX TCP4 192.0.2.1 192.0.2.2 1 443\r\n",
        b"PROXY\r\n",
    ],
)
def test_proxy_v1_malformed(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        proxy_v1(line)


def v2(body: bytes, command: int = 0x21, family: int = 0x11, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return PROXY_V2_SIGNATURE + bytes((command, family)) + size.to_bytes(2, "big")


V4 = bytes([192, 0, 2, 1, 192, 0, 2, 2]) + (56324).to_bytes(2, "big") + (443).to_bytes(2, "big")
V6 = ipaddress.ip_address("2001:db8::1").packed * 2 + V4[8:]


def test_proxy_v2() -> None:
    assert proxy_v2_body_bytes(v2(V4)) == 12
    assert proxy_v2(v2(V4), V4) == Address("192.0.2.1", 56324)
    assert proxy_v2(v2(V4), V4 + b"\x03\x00\x04abcd") == Address("192.0.2.1", 56324)
    assert proxy_v2(v2(V6, family=0x21), V6) == Address("2001:db8::1", 56324)
    assert proxy_v2(v2(b"", command=0x20, family=0), b"") is None
    assert proxy_v2(v2(b"", family=0x31), bytes(216)) is None


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (v2(V4, command=0x11), V4),
        (v2(V4, length=2049), V4),
        (b"\r\n\r\n\0\r\nQUIX\n" + v2(V4)[12:], V4),
        (v2(V4)[:15], V4),
        (v2(V4, command=0x22), V4),
        (v2(V4), V4[:11]),
        (v2(V4, family=0x21), V4),
    ],
)
def test_proxy_v2_malformed(head: bytes, body: bytes) -> None:
    def read() -> None:
        proxy_v2_body_bytes(head)
        proxy_v2(head, body)

    with pytest.raises(ProtocolError):
        read()
