"""Which addresses are read from SDP and from trickled candidates (rule P6), and that nothing in it does harm (N4)."""

from __future__ import annotations

import random
import time

import pytest

from wsgate.addr import ANY_PORT, Address
from wsgate.sip.sdp import ADDRESSES_MAX, BODY_BYTES_MAX, NOTHING, PARTS_MAX, UFRAGS_MAX, read, read_body

HEAD = b"v=0\r\no=- 1 1 IN IP4 10.9.9.9\r\ns=-\r\n"
PHONE = HEAD + b"c=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 49170 RTP/AVP 0\r\na=sendrecv\r\n"
BROWSER = HEAD + (
    b"t=0 0\r\na=group:BUNDLE 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0\r\n"
    b"a=candidate:1 1 udp 2122260223 6f6c2b34-7b5a.local 55555 typ host generation 0 network-id 1\r\n"
    b"a=candidate:2 1 UDP 2122260223 2001:DB8:0::5 50001 typ host generation 0 ufrag abcd\r\n"
    b"a=candidate:3 1 udp 1686052607 198.51.100.9 40002 typ srflx raddr 192.168.1.5 rport 50001\r\n"
    b"a=candidate:4 1 udp 41885439 203.0.113.7 61000 typ relay raddr 198.51.100.9 rport 40002\r\n"
    b"a=candidate:5 1 tcp 1518280447 198.51.100.10 9 typ host tcptype active generation 0\r\n"
    b"a=candidate:6 1 tcp 1518280447 198.51.100.11 8999 typ host tcptype passive\r\n"
    b"a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\na=end-of-candidates\r\n"
)


def addresses(data: bytes) -> set[tuple[str, int]]:
    return set(read(data).addresses)


def test_a_phone() -> None:
    """RFC 8866 §5.7, §5.14: the connection of the session; RTCP stands one above (RFC 3550 §11)."""
    assert addresses(PHONE) == {("192.0.2.1", 49170), ("192.0.2.1", 49171)}


def test_a_browser() -> None:
    """RFC 8839 §5.1: candidates, not their raddr; no name is looked up (N4); any port where a NAT picks it."""
    found = read(BROWSER)
    assert set(found.addresses) == {
        ("2001:db8::5", 50001),
        ("198.51.100.9", ANY_PORT),
        ("203.0.113.7", 61000),
        ("198.51.100.10", ANY_PORT),
        ("198.51.100.11", 8999),
    }
    assert found.ufrags == {b"abcd"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"m=audio 5000 RTP/AVP 0\nc=IN IP4 192.0.2.9/127\n", {("192.0.2.9", 5000), ("192.0.2.9", 5001)}),
        (
            b"c=IN IP4 192.0.2.1\nm=audio 5000 RTP/AVP 0\nc=IN IP4 192.0.2.2\nm=audio 6000 udp x\n",
            {("192.0.2.2", 5000), ("192.0.2.2", 5001), ("192.0.2.1", 6000)},
        ),
        (b"c=IN IP4 192.0.2.1\nm=audio 5000 RTP/AVP 0\na=rtcp:7001\n", {("192.0.2.1", 5000), ("192.0.2.1", 7001)}),
        (
            b"c=IN IP6 2001:DB8::1\nm=audio 5000 RTP/AVP 0\na=rtcp:7001 IN IP4 192.0.2.3\n",
            {("2001:db8::1", 5000), ("192.0.2.3", 7001)},
        ),
        (
            b"c=IN IP4 192.0.2.1\nm=audio 5000/2 RTP/AVP 0\n",
            {("192.0.2.1", port) for port in (5000, 5001, 5002, 5003)},
        ),
        (b"c=IN IP6 ::ffff:192.0.2.1\nm=image 5000 udptl t38\n", {("192.0.2.1", 5000)}),
        (b"c=IN IP4 192.0.2.1\nm=audio 0 RTP/AVP 0\n", set()),
        (b"c=IN IP4 192.0.2.1\nm=audio 65535 RTP/AVP 0\n", {("192.0.2.1", 65535)}),
        (b"c=IN IP4 192.0.2.1\n", set()),
        (b"c=IN IP4 pbx.example.com\nm=audio 5000 RTP/AVP 0\n", set()),
        (b"c=IN IP4 0.0.0.0\nm=audio 5000 RTP/AVP 0\n", set()),
        (b"c=IN IP6 ::\nm=audio 5000 RTP/AVP 0\n", set()),
        (b"c=IN IP4 192.0.2.1]\nm=audio 5000 udp x\nm=audio 5000 udp x\nc=IN IP4 [192.0.2.1\n", set()),
        (b"c=ATM NSAP 47\nm=audio 5000 RTP/AVP 0\n", set()),
        (b"c=IN IP4 192.0.2.01\nm=audio 5000 RTP/AVP 0\n", set()),
        (b"c=IN IP4 192.0.2.1\nm=audio 70000 RTP/AVP 0\nm=audio -5 RTP/AVP 0\nm=\nm=audio\n", set()),
        (b"a=candidate:1 1 udp 1 fe80::1%eth0 5000 typ host\n", set()),
        (b"a=candidate:1 1 udp 1 192.0.2.1 0 typ host\na=candidate:1 1 udp 1 192.0.2.1 5000 host\n", set()),
        (b"x a=candidate:1 1 udp 1 192.0.2.1 5000 typ host\n", set()),
        (b"a=remote-candidates:1 192.0.2.1 5000\ni=c=IN IP4 192.0.2.1\n", set()),
    ],
)
def test_lines(text: bytes, expected: set[tuple[str, int]]) -> None:
    assert addresses(text) == expected


def multipart(*parts: tuple[str, bytes], boundary: str = "b1") -> bytes:
    text = b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary.encode(), head.encode(), body) for head, body in parts)
    return b"preamble\r\n" + text + b"--" + boundary.encode() + b"--\r\nepilogue"


def test_the_content_type_decides() -> None:
    assert read_body(b"Application/SDP; charset=x", PHONE).session == read(PHONE)
    fragment = read_body(b"application/trickle-ice-sdpfrag", BROWSER)
    assert (fragment.session, fragment.trickled) == (None, read(BROWSER))
    for other in (b"", b"text/plain", b"application/sdpx", b"message/sipfrag"):
        assert read_body(other, PHONE) == NOTHING


def test_the_parts_of_a_multipart_body() -> None:
    """RFC 5621 §3: SDP beside anything else; a nested multipart; an encoded part is not read."""
    inner = multipart(("Content-Type: application/sdp", PHONE), boundary="inner")
    body = multipart(
        ("Content-Type: application/pidf+xml", b"c=IN IP4 192.0.2.66"),
        ("Content-Disposition: session\r\nContent-Type: multipart/alternative;\r\n boundary=inner", inner),
        ("Content-Transfer-Encoding: base64\r\nContent-Type: application/sdp", BROWSER),
    )
    assert read_body(b'multipart/mixed; boundary="b1"', body).session == read(PHONE)
    assert read_body(b"multipart/mixed", body) == NOTHING
    assert read_body(b"multipart/mixed;boundary=other", body) == NOTHING
    many = multipart(*[("Content-Type: text/plain", b"x")] * PARTS_MAX, ("Content-Type: application/sdp", PHONE))
    assert read_body(b"multipart/mixed;boundary=b1", many) == NOTHING


def test_limits() -> None:
    lines = [b"a=candidate:1 1 udp 1 198.51.%d.%d 5000 typ host\r\n" % (n >> 8, n & 255) for n in range(2000)]
    assert len(read(b"".join(lines)).addresses) == ADDRESSES_MAX
    assert read_body(b"application/sdp", PHONE + b"a" * BODY_BYTES_MAX) == NOTHING
    fragments = read(b"".join(b"a=ice-ufrag:%d%b\n" % (number, b"x" * 1000) for number in range(100))).ufrags
    assert len(fragments) == UFRAGS_MAX
    assert max(map(len, fragments)) == 256
    ports = addresses(b"c=IN IP4 192.0.2.1\nm=audio 5000/60000 RTP/AVP 0\n")
    assert len(ports) == 16


def test_garbage_opens_what_it_says_or_nothing_and_takes_no_time() -> None:
    source = random.Random(11)
    whole = multipart(("Content-Type: application/sdp", BROWSER + PHONE))
    pieces = [b"a=candidate:", b"c=", b"m=", b"a=rtcp:", b"IN IP4 ", b"\r\n", b"\n", b" ", b"--b1", b"/", b"%", b"\0"]
    started = time.monotonic()
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(source.randrange(1, 12)):
            place = source.randrange(len(data))
            piece = source.choice(pieces) if source.random() < 0.5 else source.randbytes(source.randrange(4))
            data[place : place + source.randrange(8)] = piece
        for content_type in (b"application/sdp", b"multipart/mixed;boundary=b1", b"application/trickle-ice-sdpfrag"):
            for found in read_body(content_type, bytes(data)):
                for address in found.addresses if found is not None else ():
                    assert isinstance(address, Address)
                    assert 0 <= address.port < 65536
    for hard in (b"a=candidate:" + b" " * 60000, b"--b1\r\n" * 10000, b"c=IN IP4 " + b"1." * 30000, b"\n" * 60000):
        read_body(b"multipart/mixed;boundary=b1", hard)
        read_body(b"application/sdp", hard)
    assert time.monotonic() - started < 15
