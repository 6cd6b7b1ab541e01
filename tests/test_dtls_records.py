"""DTLS records in datagrams (RFC 6347 §4.1; rule E2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.net.dtls_records import DATAGRAM_BYTES, begins_with_hello, datagrams, is_whole, records


def record(body: bytes, *, kind: int = 22, epoch: int = 0) -> bytes:
    return bytes([kind, 0xFE, 0xFD]) + epoch.to_bytes(2, "big") + bytes(6) + len(body).to_bytes(2, "big") + body


@given(st.lists(st.binary(min_size=1, max_size=2000), min_size=1, max_size=8))
def test_records_are_found_again_and_leave_in_datagrams_that_fit(bodies: list[bytes]) -> None:
    made = [record(body) for body in bodies]
    whole = b"".join(made)
    assert is_whole(whole)
    assert list(records(whole)) == made
    sent = list(datagrams(whole))
    assert b"".join(sent) == whole
    for datagram in sent:
        assert is_whole(datagram)
        assert len(datagram) <= DATAGRAM_BYTES or datagram in made


@pytest.mark.parametrize(
    "data",
    [
        b"",
        record(b""),
        record(b"x")[:-1],
        record(b"x") + b"y",
        record(b"x") + record(b"yy")[:-1],
        b"\x16\x03\x01" + record(b"x")[3:],
    ],
    ids=["nothing", "no body", "cut", "more behind", "second cut", "TLS"],
)
def test_what_is_no_whole_datagram_of_records(data: bytes) -> None:
    """E2: a memory BIO would keep the rest for the next client."""
    assert not is_whole(data)


def test_a_hello_is_a_handshake_in_clear_that_begins_with_one() -> None:
    assert begins_with_hello(record(b"\x01..."))
    assert not begins_with_hello(record(b"\x02..."))
    assert not begins_with_hello(record(b"\x01...", kind=23))
    assert not begins_with_hello(record(b"\x01...", epoch=1))
