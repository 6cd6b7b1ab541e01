"""Header lines told apart by splitting and by scanning: both find the same (RFC 3261 §7.3.1)."""

from __future__ import annotations

import pytest

from wsgate.sip.header_lines import MAX_HEADERS, Line, length_of, name_of, plain_lines, scan_lines

PLAIN = (
    b"Via: SIP/2.0/WS a.invalid;branch=z9hG4bK1\r\nv:SIP/2.0/UDP b\r\nTo : <sip:b@example.com>\r\nX-Odd_~Name\t:\r\n",
    b'Subject:   a: b, "c"  \r\nl: 0\r\n',
)
ODD = (
    b"Subject: a\r\n b\r\nTo: <sip:b@example.com>\r\n",
    b"Subject: a\r\n\tb: c\r\n",
    b"no colon\r\nTo: <sip:b@example.com>\r\n",
    b": no name\r\n",
    b"two words: a\r\n",
    b"To\x0b: a\r\n",
)
CONTROLS = (b"A: b\rc\r\n", b"A: b\nc: d\r\n", b"A: b\0c\r\n", b"A\0: b\r\n")


def scanned(head: bytes) -> list[Line]:
    return scan_lines(head, 0, len(head))


@pytest.mark.parametrize("head", PLAIN)
def test_plain_lines_are_what_a_scan_finds(head: bytes) -> None:
    lines = plain_lines(head[:-2])
    assert lines == scanned(head)
    assert all(map(name_of, lines))
    assert sum(map(length_of, lines)) == len(head)


@pytest.mark.parametrize("head", ODD)
def test_odd_lines_have_no_name_until_they_are_scanned(head: bytes) -> None:
    lines = plain_lines(head[:-2])
    assert lines is not None
    assert not all(map(name_of, lines))
    found = scanned(head)
    assert sum(map(length_of, found)) == len(head)
    assert all(map(name_of, found)) == head.startswith(b"Subject")


@pytest.mark.parametrize("head", CONTROLS)
def test_bare_line_ends_and_nul_need_a_scan(head: bytes) -> None:
    assert plain_lines(head[:-2]) is None


def test_there_is_no_work_for_more_lines_than_a_message_may_have() -> None:
    head = b"X: 1\r\n" * (MAX_HEADERS + 10)
    assert plain_lines(head[:-2]) is None
    assert len(scanned(head)) == MAX_HEADERS + 1
    assert len(plain_lines(head[: 6 * MAX_HEADERS - 2]) or ()) == MAX_HEADERS
