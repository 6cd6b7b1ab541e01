"""ws/frames: RFC 6455 §5.7 as vectors, and every part of rule H3 that one header or close body decides."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.ws.frames import (
    CloseCode,
    FrameError,
    Header,
    Opcode,
    apply_mask,
    close_body,
    parse_close,
    parse_header,
    serialize,
)

VECTORS = sorted((Path(__file__).parent / "vectors" / "rfc6455").glob("*.txt"))


def read_vector(path: Path) -> dict[str, str]:
    return dict(line.split(" = ") for line in path.read_text().splitlines())


def test_all_examples_of_the_rfc_are_there() -> None:
    assert len(VECTORS) == 8


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_examples_of_rfc_6455_5_7(path: Path) -> None:
    vector = read_vector(path)
    payload = bytes.fromhex(vector["payload"]) if "payload" in vector else bytes(int(vector["payload_length"]))
    frame = bytes.fromhex(vector["frame"]) + (b"" if "payload" in vector else payload)
    masked, final = vector["masked"] == "1", vector["final"] == "1"
    header = parse_header(frame, 0, masked)
    assert header is not None
    assert (header.opcode, header.final, header.length) == (int(vector["opcode"]), final, len(payload))
    body = frame[header.size :]
    assert (apply_mask(body, header.mask) if masked else body) == payload
    assert serialize(Opcode(header.opcode), payload, header.mask, final) == frame


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536])
@pytest.mark.parametrize("mask", [b"", b"\x01\x02\x03\x04"])
def test_lengths_take_their_shortest_form_and_come_back(length: int, mask: bytes) -> None:
    frame = serialize(Opcode.BINARY, b"x" * length, mask)
    extended = 0 if length < 126 else 2 if length < 65536 else 8
    assert parse_header(frame, 0, bool(mask)) == Header(True, 2, length, mask, 2 + extended + len(mask))
    assert len(frame) == 2 + extended + len(mask) + length


@pytest.mark.parametrize(
    ("data", "masked", "reason"),
    [
        ("c180", True, "reserved"),
        ("a180", True, "reserved"),
        ("9180", True, "reserved"),
        ("91", True, "reserved"),
        ("8380", True, "opcode"),
        ("8b80", True, "opcode"),
        ("83", True, "opcode"),
        ("8105", True, "not masked"),
        ("8185", False, "is masked"),
        ("0980", True, "fragmented"),
        ("0880", True, "fragmented"),
        ("89fe", True, "too long"),
        ("88ff", True, "too long"),
        ("81fe007d", True, "shortest"),
        ("81ff000000000000ffff", True, "shortest"),
        ("81ff8000000000000000", True, "out of range"),
    ],
)
def test_h3_1002_on_the_fewest_bytes_that_decide(data: str, masked: bool, reason: str) -> None:
    with pytest.raises(FrameError, match=reason) as caught:
        parse_header(bytes.fromhex(data), 0, masked)
    assert caught.value.code == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("frame", ["818537fa213d", "81fe010037fa213d", "81ff000000000001000037fa213d"])
def test_a_header_is_waited_for_byte_by_byte(frame: str) -> None:
    whole = bytes.fromhex(frame)
    length_known = len(whole) - 4
    for count in range(length_known):
        assert parse_header(whole[:count], 0, True) is None
    for count in range(length_known, len(whole) + 1):
        header = parse_header(whole[:count], 0, True)
        assert header is not None
        assert header.size == len(whole)


def test_a_length_of_1_gib_is_a_number_and_costs_no_memory() -> None:
    head = bytes.fromhex("82ff0000000040000000")
    tracemalloc.start()
    header = parse_header(head, 0, True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert header is not None
    assert header.length == 1 << 30
    assert peak < 4096


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_mask_is_the_xor_of_rfc_6455_5_3(data: bytes, mask: bytes) -> None:
    expected = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
    assert apply_mask(data, mask) == expected
    assert apply_mask(bytearray(expected), mask) == data


@given(st.binary(max_size=20), st.booleans())
def test_any_bytes_give_a_header_or_a_frame_error(data: bytes, masked: bool) -> None:
    code, header = None, None
    try:
        header = parse_header(data, 0, masked)
    except FrameError as error:
        code = error.code
    assert code in (None, CloseCode.PROTOCOL_ERROR)
    assert header is None or header.size >= 2


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        (b"", 1005, ""),
        (b"\x03\xe8", 1000, ""),
        (b"\x03\xe9bye", 1001, "bye"),
        (b"\x0b\xb8", 3000, ""),
        (b"\x13\x87", 4999, ""),
    ],
)
def test_close_bodies(body: bytes, code: int, reason: str) -> None:
    assert parse_close(body) == (code, reason)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_h3_1002_for_a_bad_close_code(code: int) -> None:
    with pytest.raises(FrameError) as caught:
        parse_close(code.to_bytes(2, "big"))
    assert caught.value.code == CloseCode.PROTOCOL_ERROR


def test_h3_1002_for_a_one_byte_body_and_1007_for_a_reason_that_is_not_utf_8() -> None:
    with pytest.raises(FrameError) as one_byte:
        parse_close(b"\x03")
    with pytest.raises(FrameError) as not_utf_8:
        parse_close(b"\x03\xe8\xff")
    assert (one_byte.value.code, not_utf_8.value.code) == (1002, 1007)


def test_a_close_body_of_ours_fits_a_control_frame_and_stays_utf_8() -> None:
    body = close_body(1008, "ü" * 100)
    assert len(body) <= 125
    assert parse_close(body) == (1008, "ü" * 61)
    assert close_body(CloseCode.NO_STATUS) == b""
