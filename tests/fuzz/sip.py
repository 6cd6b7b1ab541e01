"""SIP as bytes: streams, messages, header values, session descriptions, digest credentials."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.edge_world import TOKENS
from tests.fuzz.chance import MARK, Choices, cuts, unmarked
from tests.fuzz.target import Target, require
from wsgate.addr import canonical_host, is_numeric
from wsgate.credentials import Users, hashes_of
from wsgate.errors import ProtocolError
from wsgate.sip import sdp
from wsgate.sip.digest import MAX_CREDENTIALS, Digest, DigestAlgorithm, parse_credentials, response
from wsgate.sip.edit import Edit
from wsgate.sip.flow import Verdict
from wsgate.sip.framing import HEAD_END, Broken, Framed, StreamFramer
from wsgate.sip.headers import (
    parse_cseq,
    parse_name_addr,
    parse_parameters,
    parse_uri,
    parse_via,
    same_uri,
    split_spans,
    split_values,
    unquote,
    with_parameters,
)
from wsgate.sip.message import Message, response_to
from wsgate.sip.outline import outline

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
MESSAGES = [path.read_bytes() for name in ("rfc4475", "rfc5118") for path in sorted((VECTORS / name).glob("*.dat"))]
TOKEN = TOKENS.make(b"\0\0\0\0\0\0\0\2")
PIECES = [
    *(b"%41", b"\r\n ", b"\r\n\t", b"[::1]", b"sip:", b"sips:", b"tel:1", b"SIP/2.0", b"SIP/2.0/UDP ", b"z9hG4bK"),
    *(b";lr", b";tag=", b";branch=", b";rport", b";maddr=1.2.3.4", b";expires=0", b";reg-id=1", b";ob", b";gr"),
    *(
        b';x="a,b<c>\\""',
        b";transport=ws",
        b"Content-Length: 5\r\n",
        b"l: 5\r\n",
        b"L : 7\r\n",
        b"Content-Length\r\n : 1\r\n",
    ),
    *(b"Via: SIP/2.0/UDP a;branch=x\r\n", b"v:", b"Route: <sip:a>, <sip:b;lr>\r\n", b"t: <sip:a>;tag=1\r\n", b"f:"),
    *(
        TOKEN,
        b"<sip:" + TOKEN + b"@192.0.2.1;lr>",
        b'"',
        b"\\",
        b"<",
        b">",
        b",",
        b"\xc2\x85",
        b"\x0b",
        b"\x0c",
        b"\x1c",
    ),
]
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_LENGTHS = re.compile(rb"\r\n(?:content-length|l)[ \t]*:[ \t]*([0-9]+)[ \t]*(?=\r\n[^ \t]|\r\n\Z)", re.IGNORECASE)
_REQUIRED = {b"via", b"from", b"to", b"call-id", b"cseq"}


def framing(data: bytes) -> None:
    """Any cut of a stream gives the same messages, and each is one by our other reader too (RFC 3261 §18.3)."""
    results = [_framed([data]), _framed(cuts(data, [1])), _framed(cuts(data, [2, 3, 50]))]
    require(results[0] == results[1] == results[2], "another cut, other messages", results)
    for event in results[0]:
        if isinstance(event, Framed):
            try:
                message = Message.parse(event.data)
            except ProtocolError:
                continue
            lengths = {int(value) for value in _LENGTHS.findall(event.data.partition(HEAD_END)[0] + b"\r\n")}
            require(len(lengths) <= 1, "a message that two readers frame in two ways", event.data)
            require("shorter" not in message.flaw, "a message cut short", event.data)
            require(message.flaw or message.data == event.data, "two readers, two messages", event.data)


def _framed(pieces: list[bytes]) -> list[object]:
    framer, events = StreamFramer(2048, 4096), []
    for piece in pieces:
        events += framer.receive(piece)
        require(len(framer._buffer) <= 4096, "more is kept than is allowed")
    return [*events, framer.unfinished]


def message(data: bytes) -> None:
    """The index is true to the bytes; edits change what they say and nothing else; an answer carries no new line."""
    data = unmarked(data)
    try:
        one = Message.parse(data)
    except ProtocolError:
        return
    require(Edit(one).build() == one.data, "an edit of nothing")
    outline(data)
    for header in one.headers:
        line = one.data[header.start : header.end]
        require(line.endswith(b"\r\n") and not _BARE.search(line), "a header that is no line", line)
        require(b"\r\n" not in re.sub(rb"\r\n[ \t]", b"", line[:-2]), "a header of two lines", line)
        require(not line.startswith(MARK), "an injected line", line)
        values = _or_none(one.values, header.name)
        require(
            values is None or not any(_BARE.search(v) or b"\r\n" in v for v in values), "a value of two lines", values
        )
    if {header.name for header in one.headers} >= _REQUIRED:
        _answer(one)
    if one.flaw:
        return
    require(data.startswith(one.data), "other bytes than came")
    again = Message.parse(one.data)
    require(again.headers == one.headers and not again.flaw and again.data == one.data, "read twice, read otherwise")
    _ = (one.via, one.from_, one.to, one.cseq, one.from_tag, one.to_tag, one.branch)
    length = one.header(b"content-length")
    require(length is None or len(one.body) == int(length), "another length (C4)")
    events = _framer().receive(one.data)
    if length is not None and not any(isinstance(event, Broken) for event in events):
        require(events == [Framed(one.data)], "the stream reader sees another message", events)
    _edits(one)


def _framer() -> StreamFramer:
    return StreamFramer(1 << 20, 1 << 21)


def _or_none(read: Callable, *given: object) -> list[bytes] | None:
    try:
        return read(*given)
    except ProtocolError:
        return None


def _answer(one: Message) -> None:
    sent = response_to(one, 400, "Bad", to_tag=b"ours", headers=[(b"Warning", b"x")], body=b"body")
    head, _, body = sent.partition(HEAD_END)
    require(body == b"body" and not _BARE.search(head), "an answer with two ends", sent)
    require(not any(line.startswith(MARK) for line in head.split(b"\r\n")), "an injected line", sent)
    names = {line.partition(b":")[0].strip().lower() for line in head.split(b"\r\n")[1:] if line[:1] not in b" \t"}
    require(
        names <= _REQUIRED | {b"v", b"f", b"t", b"i", b"warning", b"content-length"}, "a header that nobody wrote", sent
    )
    answer = Message.parse(sent)
    require(answer.status == 400 and answer.call_id == one.call_id, "another answer", sent)
    require(one.flaw or not answer.flaw, "an answer that is malformed", answer.flaw, sent)
    require(one.flaw or answer.to_tag, "an answer without tag", sent)


def _edits(one: Message) -> None:
    """Each edit, read back: the header that it names has changed as it says, all others and the body have not."""
    for name in (b"via", b"route", b"contact", b"x-new"):
        had = _or_none(one.values, name)
        if had is None:
            continue
        for kind, wanted in _edited(had).items():
            edit = Edit(one)
            _EDITS[kind](edit, name)
            edited = Message.parse(edit.build())
            require(edited.values(name) == wanted, "another edit", name, kind, edited.values(name), wanted)
            others = [one.data[h.start : h.end] for h in one.headers if h.name != name]
            kept = [edited.data[h.start : h.end] for h in edited.headers if h.name != name]
            require(others == kept and edited.body == one.body, "an edit changed something else", name, kind)


_EDITS: dict[str, Callable[[Edit, bytes], None]] = {
    "insert_first": lambda edit, name: edit.insert_first(name, b"<sip:new>"),
    "remove": lambda edit, name: edit.remove(name),
    "drop_values": lambda edit, name: edit.drop_values(name, 1),
    "drop_three": lambda edit, name: edit.drop_values(name, 3),
    "replace_first_value": lambda edit, name: edit.replace_first_value(name, b"new"),
    "replace_values": lambda edit, name: edit.replace_values(name, [(1, b"new")]),
    "replace": lambda edit, name: edit.replace(name, b"new"),
}


def _edited(had: list[bytes]) -> dict[str, list[bytes]]:
    """What the values of a header are after each edit."""
    return {
        "insert_first": [b"<sip:new>", *had],
        "remove": [],
        "drop_values": had[1:],
        "drop_three": had[3:],
        "replace_first_value": [b"new", *had[1:]] if had else [],
        "replace_values": [had[0], b"new", *had[2:]] if had[1:] else had,
        "replace": [b"new"],
    }


def values(data: bytes) -> None:
    """One header value through every parser: a result or ProtocolError, and results that agree with each other."""
    data = re.sub(rb"[\r\n]+", b" ", data)  # as `Message` unfolds them
    spans = _or_none(split_spans, data)
    parts = _or_none(split_values, data)
    require((spans is None) == (parts is None), "spans and values differ")
    if spans is not None and parts is not None:
        require([data[start:end] for start, end in spans] == parts, "spans and values differ", spans, parts)
        require(split_values(b", ".join(parts)) == parts, "joined they are others", parts)
    parameters = _or_none(parse_parameters, data)
    if parameters is not None and data.strip():
        slow = _or_none(parse_parameters, data.strip() + b' ; zz="q"')
        require(slow is not None and slow.pop(b"zz") == b'"q"' and slow == parameters, "two readers", parameters, slow)
    for word in (data.strip(), *(parts or ())):
        uri = _or_none(parse_uri, word)
        if uri is not None:
            require(same_uri(word, word) and canonical_host(uri.host) == uri.host and uri.host, "another host", uri)
            require(not re.search(rb"[\s<>]", uri.user or b""), "white space in a user", uri)
        _or_none(parse_name_addr, word)
        via = _or_none(parse_via, word)
        if via is not None:
            changed = parse_via(with_parameters(with_parameters(word, b"received", b"192.0.2.9"), b"rport", b"7"))
            wanted = via.parameters | {b"received": b"192.0.2.9", b"rport": b"7"}
            require(
                changed._replace(parameters=wanted) == changed and changed[:3] == via[:3], "another Via", via, changed
            )
        _or_none(parse_cseq, word)
        unquote(word)
    require(TOKENS.read(data).verdict is not Verdict.VALID or data == TOKEN, "a token that we never made", data)


def description(data: bytes) -> None:
    """Whatever a body says: bounded, numeric, canonical; and the same with other line ends (P6)."""
    chance = Choices(data)
    kind = chance.pick(
        (b"application/sdp", b"multipart/mixed;boundary=x", b"application/trickle-ice-sdpfrag", b"text/plain")
    )
    body = chance.rest()
    found = sdp.read_body(kind, body)
    for one in (found.session, found.trickled):
        if one is None:
            continue
        require(len(one.addresses) <= sdp.ADDRESSES_MAX and len(one.ufrags) <= sdp.UFRAGS_MAX, "unbounded")
        for address in one.addresses:
            require(is_numeric(address.host) and canonical_host(address.host) == address.host, "a name", address)
            require(0 <= address.port < 65536 and address.host not in ("::", "0.0.0.0"), "no address", address)
    if b"\r" not in body:
        require(sdp.read(body) == sdp.read(body.replace(b"\n", b"\r\n")), "other line ends, other addresses")


REALM = "example.com"
USERS = Users({("alice", REALM): hashes_of("alice", REALM, "wonder")})
MAX_NONCES = 4


def digest(data: bytes) -> None:
    """Spoiled credentials, many times over: no answer counts twice, no table grows, no error but the documented."""
    machine = Digest(USERS, tuple(DigestAlgorithm), b"k" * 32, bytes, 1.7e9, max_nonces=MAX_NONCES)
    lines = machine.challenge(REALM, False, False, 1000.0)
    nonce = re.search(rb'nonce="([^"]*)"', lines[-1][1])[1]
    value = data.replace(b"NONCE", nonce)
    try:
        credentials = parse_credentials(value)
    except ProtocolError:
        require(machine.verify([value], b"REGISTER", b"sip:example.com", REALM, 1000.0).user is None)
        return
    secret = USERS["alice", REALM].md5.encode()
    right = response(DigestAlgorithm.MD5, secret, credentials, b"REGISTER")
    value = value.replace(credentials.response, right) if credentials.response else value
    results = [
        machine.verify([value], b"REGISTER", b"sip:example.com", REALM, 1000.0 + at) for at in (0, 0, 1, 400, 800)
    ]
    require(sum(result.user is not None for result in results) <= 1, "a replay passes (G3)", value)
    require(all(result.user in (None, "alice") for result in results), "somebody else", results)
    require(len(machine._counts) + len(machine._older_counts) <= MAX_NONCES, "counts grow")
    many = [value] * (MAX_CREDENTIALS + 1)
    require(machine.verify(many, b"INVITE", b"sip:example.com", REALM, 1000.0).user is None, "for another method")


HEADER_VALUES = sorted({line.strip() for one in MESSAGES for line in re.findall(rb"\r\n[^:\r\n]+:([^\r\n]+)", one)})
CREDENTIALS = [
    b'Digest username="alice", realm="example.com", nonce="NONCE", uri="sip:example.com", response="'
    + b"0" * 32
    + b'"',
    b'Digest username="alice",realm="example.com",nonce="NONCE",uri="sip:example.com",qop=auth,nc=00000001,cnonce="c",'
    b'algorithm=MD5,response="' + b"1" * 32 + b'"',
    b'Digest username*=UTF-8\'\'alice, realm="example.com", nonce=NONCE, uri="sip:example.com", response=' + b"2" * 32,
]
DESCRIPTIONS = [
    b"v=0\no=- 1 1 IN IP4 192.0.2.1\ns=-\nc=IN IP4 192.0.2.1\nt=0 0\nm=audio 49170/2 RTP/AVP 0\n"
    b"a=rtcp:53020 IN IP6 2001:db8::1\n"
    b"m=video 9 UDP/TLS/RTP/SAVPF 96\nc=IN IP6 2001:db8::2/127\na=ice-ufrag:abcd\n"
    b"a=candidate:1 1 udp 2130706431 192.0.2.7 5000 typ host\n"
    b"a=candidate:2 1 tcp 1 ::ffff:1.2.3.4 9 typ host tcptype active\n",
    b"--x\r\nContent-Type: application/sdp\r\n\r\nc=IN IP4 192.0.2.1\r\nm=audio 1 RTP/AVP 0\r\n--x\r\nContent-Type: "
    b"multipart/mixed;boundary=y\r\n\r\n--y\r\nContent-Type: application/sdp\r\n\r\nm=x\r\n--y--\r\n--x--\r\n",
    b"a=ice-ufrag:x\na=candidate:3 1 UDP 1 198.51.100.4 5 typ srflx raddr 10.0.0.1 rport 7\nm=audio 0 RTP/AVP 0\n",
]
DESCRIPTION_PIECES = [
    b"IN IP4 ",
    b"m=audio 65535/9 RTP/AVP 0\n",
    b"1" * 50,
    b"%eth0",
    b"0.0.0.0",
    b"::",
    b"\xc2\xb2",
    b"\n--x\n",
]

NEAR_TOKENS = [TOKEN[:-1] + bytes((TOKEN[-1] + step,)) for step in (-1, 1, 2)]
"""Other spellings of the last bits, which base64 leaves unused."""
LISTS = [
    one.replace(b"\r\n", b"\r\nRoute: <sip:a>, <sip:b;lr>\r\nX: y\r\nRoute: <sip:c>\r\nRoute: <sip:d>,<sip:e>\r\n", 1)
    for one in MESSAGES
]
TWO_LENGTHS = [one.replace(b"\r\n", b"\r\nl: 0\r\n", 1) for one in MESSAGES]

TARGETS = [
    Target(
        "sip-framing",
        framing,
        [one + MESSAGES[0] for one in (*MESSAGES, *TWO_LENGTHS)] + [b"\r\n\r\n\r\n"],
        PIECES,
        test_inputs=150,
    ),
    Target("sip-message", message, [*MESSAGES, *LISTS], PIECES, test_inputs=400),
    Target("sip-values", values, [*NEAR_TOKENS, *HEADER_VALUES], PIECES, test_inputs=1500),
    Target("sdp", description, DESCRIPTIONS, DESCRIPTION_PIECES, prefix_bytes=1, test_inputs=300),
    Target("digest", digest, CREDENTIALS, [b"username=", b"alice", b"''", b"nc=00000002", b"qop=auth-int", b"NONCE"]),
]
