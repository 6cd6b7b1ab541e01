"""Frames of a TURN stream in any cut (rules S1, P3, E3)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.errors import ProtocolError
from wsgate.turn import stun
from wsgate.turn.framing import FRAME_BYTES_MAX, Frames
from wsgate.turn.stun import MessageClass, Method

BINDING = stun.encode(Method.BINDING, MessageClass.REQUEST, b"t" * 12, [])
SEND = stun.encode(Method.SEND, MessageClass.INDICATION, b"u" * 12, [stun.DATA(b"abc")])
CHANNEL = b"\x40\x01\x00\x03abc"
STREAM = BINDING + CHANNEL + b"\0" + SEND + b"\x40\x02\x00\x00" + BINDING
FRAMES = [BINDING, CHANNEL, SEND, b"\x40\x02\x00\x00", BINDING]


@pytest.mark.parametrize("cut", range(1, len(STREAM)))
def test_cut_at_every_byte(cut: int) -> None:
    """Rule E3."""
    frames = Frames()
    assert frames.receive(STREAM[:cut], 1.0) + frames.receive(STREAM[cut:], 2.0) == FRAMES
    assert frames.partial_since is None


def test_byte_by_byte_and_all_at_once() -> None:
    """Rule E3."""
    frames = Frames()
    assert [frame for byte in STREAM for frame in frames.receive(bytes([byte]), 1.0)] == FRAMES
    assert Frames().receive(STREAM, 1.0) == FRAMES


@given(st.lists(st.integers(1, len(STREAM) - 1)))
def test_any_cuts(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    frames = Frames()
    parts = [STREAM[start:end] for start, end in itertools.pairwise(places)]
    assert [frame for part in parts for frame in frames.receive(part, 1.0)] == FRAMES


def test_channel_data_is_padded_to_four_on_a_stream() -> None:
    """Rule P3: the padding is waited for and is no part of the frame."""
    frames = Frames()
    assert frames.receive(CHANNEL, 1.0) == []
    assert frames.receive(b"\0" + CHANNEL, 1.0) == [CHANNEL]


def test_since_when_half_a_frame_waits() -> None:
    """Rule E3: the time of the frame, not of its last byte."""
    frames = Frames()
    frames.receive(BINDING + BINDING[:2], 10.0)
    assert frames.partial_since == 10.0
    frames.receive(BINDING[2:5], 20.0)
    assert frames.partial_since == 10.0
    frames.receive(BINDING[5:] + CHANNEL, 30.0)
    assert frames.partial_since == 30.0
    frames.receive(b"\0", 31.0)
    assert frames.partial_since is None


@pytest.mark.parametrize(
    "data",
    [
        bytes([0x04]) + BINDING[1:],
        b"\x16\x03\x01\x00",
        b"\x80RTP",
        b"\x00\x01\x00\x02" + BINDING[4:],
        BINDING[:4] + b"\x21\x12\xa4\x43" + BINDING[8:],
    ],
    ids=["method", "TLS", "RTP", "length", "cookie"],
)
def test_what_closes_the_stream(data: bytes) -> None:
    """Rule S1: a length is not believed before the cookie was seen."""
    with pytest.raises(ProtocolError):
        Frames().receive(data, 1.0)


def test_a_frame_over_the_limit_closes_before_it_is_kept() -> None:
    """Rule Q2: what is not authenticated keeps little memory."""
    with pytest.raises(ProtocolError, match="longer"):
        Frames(1500).receive(b"\x40\x01\x05\xd9", 1.0)
    frames = Frames(1500)
    assert frames.receive(b"\x40\x01\x05\xd8", 1.0) == []
    assert Frames().receive(b"\x40\x01\xff\xff", 1.0) == []
    assert FRAME_BYTES_MAX < 65600
