"""What the log shows of a SIP message at the level debug."""

from __future__ import annotations

import pytest

from tests.edge_world import CONTACT, World, request
from wsgate.log import PEER_BYTES_SHOWN
from wsgate.sip.outline import MAX_HEAD_BYTES, outline


def test_an_administrator_sees_what_was_asked_what_was_answered_and_why():
    world = World()
    flow = world.browser()
    asked = request("INVITE", "sip:bob@elsewhere.test", CONTACT)
    assert outline(asked) == "INVITE sip:bob@elsewhere.test SIP/2.0 [1 INVITE, call-1@test]"
    world.from_browser(flow, asked)
    assert outline(world.sent[-1][1]) == (
        "SIP/2.0 404 Not Found [1 INVITE, call-1@test] "
        '399 wsgate "the domain elsewhere.test is not served here: no [backend]"'
    )


def test_compact_forms_are_read():
    assert outline(b"BYE sip:a@b SIP/2.0\r\ni : c1\r\nCSEQ:\t2 BYE\r\n\r\nCall-ID: body") == (
        "BYE sip:a@b SIP/2.0 [2 BYE, c1]"
    )


def test_credentials_are_never_shown():
    lines = "Authorization: Digest response=secret1", "Cookie: secret2", "X-Turn-Credentials: secret3"
    assert "secret" not in outline(request("REGISTER", "sip:example.com", *lines, body=b"secret4"))


@pytest.mark.parametrize(
    "data", [b"", b"\r\n\r\n", b"\x00\xff\n\r", b"x" * 1_000_000, b"A\r\nCall-ID: " + b"y" * 100_000]
)
def test_anything_gives_one_short_printable_line(data: bytes):
    line = outline(data)
    assert line.isprintable()
    assert len(line) < 4 * PEER_BYTES_SHOWN + 200


def test_what_stands_far_behind_is_not_searched():
    assert outline(b"A\r\n" + b"x" * MAX_HEAD_BYTES + b"\r\nCall-ID: far\r\n\r\n").endswith("[?, ?]")
