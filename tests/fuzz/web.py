"""HTTP that passes through to the server behind: heads, bodies, answers; and who the client is (PROXY, Forwarded).

The oracles read what goes out with a reader of their own, as blunt as a strict server's: whatever was done to the
input, each side gets one message with one framing, and no line that nobody wrote.
"""

from __future__ import annotations

import re

from tests.fuzz.chance import MARK, cuts, unmarked
from tests.fuzz.target import Target, require
from wsgate.addr import parse_network
from wsgate.errors import ProtocolError
from wsgate.http.body import BodyReader, chunk, last_chunk
from wsgate.http.head import (
    MAX_FIELDS,
    NO_BODY,
    AnswerHead,
    AnswerReader,
    Body,
    BodyKind,
    HeadError,
    RequestHead,
    answer_body,
    request_body,
    request_line,
    upgrades,
)
from wsgate.http.passing import Client, passed_answer, passed_request, passed_trailers, passed_upgrade
from wsgate.net.forwarded import (
    PROXY_V2_HEAD_BYTES,
    PROXY_V2_SIGNATURE,
    Address,
    asked_host,
    client_address,
    proxy_v1,
    proxy_v2,
    proxy_v2_body_bytes,
)
from wsgate.net.request_head import HeadBuffer, HeaderFields

HOST = b"Host: shop.example.org\r\n"
REQUESTS = [
    b"GET /a?b=c HTTP/1.1\r\n" + HOST + b"Accept: */*\r\nCookie: a=b\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
    b"POST /form HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    b"POST /up HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\nTE: trailers\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: v\r\n\r\n",
    b"GET /chat HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, X-Own\r\nUpgrade: websocket\r\nX-Own: 1\r\n\r\n",
    b"POST /two HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /both HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\nForwarded: for=1.2.3.4\r\nVia: 1.1 wsgate\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\nX_Forwarded_Host: evil\r\nX-Real-IP: 9.9.9.9\r\n\r\n",
]
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\nConnection: close, X-Own\r\nX-Own: 1\r\n\r\nhello",
    b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n5\r\nhello\r\n0\r\nT: v\r\n\r\n",
    b"HTTP/1.0 404 Not Found\r\n\r\nto the end",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x00",
]
CHUNKED = [
    b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"a\r\n0123456789\r\n00\r\nX: y\r\nContent-Length: 9\r\nCookie: z\r\n\r\n",
    b"1\r\nx\r\n" * 20 + b"0\r\n\r\n",
    b"FFFFFFFF\r\nxxx",
]
PIECES = [
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding : chunked\r\n"),
    *(b"Content-Length: 0\r\n", b"Content-Length: 5\r\n", b"Content-Length: +5\r\n", b"Content-Length: 5, 5\r\n"),
    *(b"chunked, identity", b"xchunked", b"\x0bchunked", b"0\r\n\r\n", b"0x5", b"Host: a\r\n", b"Host: b\r\n"),
    *(b"Connection: host, content-length\r\n", b"Connection: via, x-forwarded-for\r\n", b"Upgrade: h2c\r\n"),
    *(b" HTTP/1.1\r\n", b"HTTP/0.9", b"HTTP/2.0", b"\r\n\r\nGET /admin HTTP/1.1\r\n", b"http://evil/", b"CONNECT "),
    *(b"Expect: 100-continue\r\n", b"Via: 1.1 wsgate, 1.1 wsgate\r\n", b"Proxy: x\r\n", b"\r\n folded", b"\x85"),
]

_WELL_FORMED_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\t\x20-\x7e\x80-\xff]*")
_ABOUT_CLIENT = re.compile(rb"x-forwarded-.*|forwarded|x-real-ip")


class _Wire:
    """A socket that gives what it was given, then ends."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def recv(self, size: int) -> bytes:
        """The next bytes."""
        data, self._data = self._data[:size], self._data[size:]
        return data


def _read_request(data: bytes) -> tuple[RequestHead, bytes]:
    """As the listener reads it. Raises HeadError."""
    buffer = HeadBuffer(_Wire(data))
    method, target, version = request_line(buffer.readline().decode("latin-1"))
    head = RequestHead(method, target, version, HeaderFields(buffer).fields)
    return head, buffer.take() + buffer._socket.recv(len(data))


def _judge_head(sent: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of a head as a strict server reads it: every line is one, and nothing stands behind."""
    head, blank, rest = sent.partition(b"\r\n\r\n")
    require(blank and not rest, "not one head", sent)
    lines = head.split(b"\r\n")
    for line in lines[1:]:
        require(_WELL_FORMED_LINE.fullmatch(line), "a line that is no field", line, sent)
        require(not line.startswith(MARK), "an injected line", sent)
    require(not re.search(rb"[\r\n\0]", lines[0]), "a broken first line", sent)
    return [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines[1:])]


def _framing(fields: list[tuple[bytes, bytes]]) -> tuple[list[bytes], list[bytes]]:
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    require(len(lengths) + len(codings) <= 1, "two framings", fields)
    require(all(length.isdigit() for length in lengths) and codings in ([], [b"chunked"]), "no framing", fields)
    return lengths, codings


def request(data: bytes) -> None:
    """What passes has one framing, the one we judged; no line of a stranger's; who the client is, is ours to say."""
    data = unmarked(data)
    try:
        head, rest = _read_request(data)
        body = request_body(head)
    except HeadError:
        return
    require(len(head.fields) <= MAX_FIELDS)
    framings = [name.lower() for name, _ in head.fields if name.lower() in ("content-length", "transfer-encoding")]
    require(len(framings) <= 1, "a request that two readers frame in two ways", head.fields)
    for trusted in (False, True):
        try:
            sent = passed_request(head, body, Client("203.0.113.5", "203.0.113.5", trusted, True), "default.example")
        except HeadError:
            continue
        fields = _judge_head(sent)
        require(sent.startswith(f"{head.method} {head.target} HTTP/1.1\r\n".encode("latin-1")), "another target", sent)
        lengths, codings = _framing(fields)
        require((body.kind is BodyKind.CHUNKED) == bool(codings), "another framing", sent)
        require(body.kind is not BodyKind.LENGTH or lengths == [b"%d" % body.length], "another length", sent)
        names = [name for name, _ in fields]
        for name in (b"host", b"x-forwarded-for", b"x-forwarded-proto", b"x-real-ip", b"via", b"connection"):
            require(names.count(name) == 1, "not once", name, sent)
        about = [(name, value) for name, value in fields if _ABOUT_CLIENT.fullmatch(name.replace(b"_", b"-"))]
        said = [value for name, value in about if name in (b"x-forwarded-for", b"x-real-ip")]
        require(trusted or said == [b"203.0.113.5"] * 2, "a stranger says who it is", sent)
        require(trusted or len(about) == 4, "a stranger says who it is", sent)
        require(all(b"_" not in name for name, _ in about), "what CGI takes for a field of ours", sent)
        again, _ = _read_request(sent)
        require(request_body(again)._replace(length=0) == body._replace(length=0), "we read it otherwise", sent)
        require(not upgrades(head) or body == NO_BODY, "an upgrade with a body")
    _same_body(body, rest)


def _same_body(body: Body, rest: bytes) -> None:
    """The body in any cut is the same; chunked anew it is read as the same."""
    whole = _body(body, [rest])
    require(whole == _body(body, cuts(rest, [1])) == _body(body, cuts(rest, [3, 17])), "another cut, another body")
    payload, behind, complete, trailers, fault = whole
    if fault or not complete:
        return
    if body.kind is BodyKind.CHUNKED:
        sent = (chunk(payload) if payload else b"") + last_chunk(passed_trailers(trailers))
        again = _body(body, [sent + b"NEXT"])
        require(again[:3] == (payload, b"NEXT", True), "chunked anew it is another body", sent, again)
    elif body.kind is BodyKind.LENGTH:
        require(payload + behind == rest and len(payload) == body.length, "another length")


def _body(body: Body, pieces: list[bytes]) -> tuple[bytes, bytes, bool, tuple[tuple[str, str], ...], bool]:
    reader, payload = BodyReader(body), b""
    try:
        for piece in pieces:
            payload += reader.receive(piece)
            require(len(reader._buffer) <= 8192 + 2, "more is kept than is allowed")
    except ProtocolError:
        # How much of the payload passed before the fault depends on the cut; that there is one does not.
        return b"", b"", False, (), True
    return payload, reader.rest, reader.complete, reader.trailers, False


def chunked(data: bytes) -> None:
    """Bodies alone."""
    _same_body(Body(BodyKind.CHUNKED), data)


def answer(data: bytes) -> None:
    """The server's answers in any cut, and what the client gets of them."""
    data = unmarked(data)
    whole = _answers([data])
    require(whole == _answers(cuts(data, [1])) == _answers(cuts(data, [11, 100])), "another cut, another answer")
    head = RequestHead("GET", "/", "HTTP/1.1", (("Host", "x"), ("Connection", "Upgrade"), ("Upgrade", "websocket")))
    for one in whole[0]:
        for method in ("GET", "HEAD"):
            _passes(head._replace(method=method), one)
    if whole[0] and whole[0][-1].status >= 200:
        try:
            _same_body(answer_body("GET", whole[0][-1]), whole[1])
        except ProtocolError:
            return


def _passes(head: RequestHead, one: AnswerHead) -> None:
    try:
        if one.status == 101:
            fields = _judge_head(passed_upgrade(head, one))
            chosen = b", ".join(value for name, value in fields if name == b"upgrade")
            require(set(chosen.lower().split(b", ")) == {b"websocket"}, "another protocol", chosen)
            return
        body = NO_BODY if one.status < 200 else answer_body(head.method, one)
    except ProtocolError:
        return
    modern = body.kind in (BodyKind.CHUNKED, BodyKind.UNTIL_END)
    sent = passed_answer(one, body, chunked=modern, close=False)
    lengths, codings = _framing(_judge_head(sent))
    require(one.status >= 200 or not lengths + codings, "a length in an interim answer", sent)
    again = AnswerReader().receive(sent)
    require(again is not None and again.status == one.status, "we read it otherwise", sent)
    require(
        again is not None
        and (
            one.status < 200 or answer_body(head.method, again).kind is not BodyKind.UNTIL_END or head.method == "HEAD"
        ),
        "an answer without an end",
        sent,
    )


def _answers(pieces: list[bytes]) -> tuple[list[AnswerHead], bytes, str]:
    reader, found = AnswerReader(), []
    for number, piece in enumerate(pieces):
        data = piece
        while True:
            try:
                one = reader.receive(data)
            except ProtocolError as error:
                return found, b"", error.reason
            if one is None:
                break
            found.append(one)
            if one.status >= 200 or one.status == 101:
                return found, reader.rest + b"".join(pieces[number + 1 :]), ""
            data = b""
    return found, b"", ""


def relay(data: bytes) -> None:
    """PROXY headers and forwarding fields: an IP address or nothing; a stranger's word never counts."""
    address = _proxy(data)
    require(address is None or re.fullmatch(r"[0-9a-f.:]+", address.host), "no IP address", address)
    text = data.decode("latin-1")
    trusted = (parse_network("10.0.0.0/8"),)
    for name in ("X-Forwarded-For", "Forwarded"):
        # The rightmost entry is of the relay that we trust: what a stranger wrote left of it changes nothing.
        ours = "203.0.113.9" if name == "X-Forwarded-For" else "for=203.0.113.9"
        for fields in ([(name, text), (name, ours)], [(name, f"{text}, {ours}")]):
            found = client_address(Address("10.0.0.1", 1), fields, trusted)
            require(found.remote.host == "203.0.113.9", "a stranger says who it is", fields, found)
        require(client_address(Address("9.9.9.9", 1), [(name, text)], trusted).remote.host == "9.9.9.9")
        client_address(Address("10.0.0.1", 1), [(name, text)], trusted)
    require(asked_host([("Host", "a"), ("X-Forwarded-Host", text)], 0) == "a")
    asked_host([("X-Forwarded-Host", text)], 1)


def _proxy(data: bytes) -> Address | None:
    try:
        if data.startswith(b"PROXY"):
            return proxy_v1(data.partition(b"\n")[0] + b"\n")
        head, body = data[:PROXY_V2_HEAD_BYTES], data[PROXY_V2_HEAD_BYTES:]
        return proxy_v2(head, body[: proxy_v2_body_bytes(head)])
    except ProtocolError:
        return None


RELAYS = [
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n",
    b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 1 65535\r\n",
    b"PROXY UNKNOWN\r\n",
    PROXY_V2_SIGNATURE + b"\x21\x11\0\x0c" + bytes((192, 0, 2, 1, 192, 0, 2, 2, 4, 210, 1, 187)),
    PROXY_V2_SIGNATURE + b"\x21\x21\0\x24" + bytes(32) + b"\1\2\3\4",
    PROXY_V2_SIGNATURE + b"\x20\0\0\0",
    b'for="[2001:db8::1]:80";proto=https, for=192.0.2.1;by="a,b\\"c"',
    b"192.0.2.1, 2001:db8::1, [2001:db8::2]:443, 10.0.0.3",
]
RELAY_PIECES = [
    b"for=10.0.0.2",
    b'"',
    b'\\"',
    b",",
    b";",
    b"10.0.0.2",
    b"0x1",
    b"unknown",
    b"_hidden",
    b"::1",
    b"%eth0",
]

TARGETS = [
    Target("http-request", request, REQUESTS, PIECES, test_inputs=500),
    Target("http-chunked", chunked, CHUNKED, PIECES, test_inputs=500),
    Target("http-answer", answer, ANSWERS, [*PIECES, *ANSWERS], test_inputs=300),
    Target("relays", relay, RELAYS, RELAY_PIECES, test_inputs=500),
]
