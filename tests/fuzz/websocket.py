"""WebSocket: frames and the connection in both roles (rules H3 to H6), and both sides of the handshake (H1, H2)."""

from __future__ import annotations

from tests.fuzz.chance import Choices, cuts
from tests.fuzz.target import Target, require
from wsgate.errors import ProtocolError
from wsgate.ws.connection import Closed, Connection, Message, Role, State, WebSocketSettings
from wsgate.ws.frames import FrameError, Opcode, close_body, parse_header, serialize
from wsgate.ws.handshake import ClientHandshake, Refusal, UpgradeRequest, accept_key, refusal

SETTINGS = WebSocketSettings(max_message_bytes=1024, max_fragments=4)
MASK = b"\1\2\3\4"


_LONG_FORMS = [
    *((126, (5).to_bytes(2, "big")), (127, (5).to_bytes(8, "big"))),
    *((127, (1 << 16).to_bytes(8, "big")), (127, b"\xff" * 8)),
]
"""Lengths that are not in their shortest form, and such as nobody may announce."""


def _frames(mask: bytes) -> list[bytes]:
    def frame(opcode: Opcode, payload: bytes, final: bool = True) -> bytes:
        return serialize(opcode, payload, mask, final)

    fragments = [frame(Opcode.TEXT, b"caf\xc3", False), frame(Opcode.PING, b"p"), frame(Opcode.CONTINUATION, b"\xa9")]
    return [
        frame(Opcode.TEXT, b"OPTIONS sip:x SIP/2.0\r\n\r\n") + frame(Opcode.BINARY, b"\xff" * 200),
        b"".join(fragments) + frame(Opcode.TEXT, b"\r\n\r\n") + frame(Opcode.PONG, b""),
        frame(Opcode.TEXT, b"", False) + frame(Opcode.CONTINUATION, b"x" * 126, False) * 3,
        frame(Opcode.CLOSE, close_body(1000, "bye")) + frame(Opcode.TEXT, b"late"),
        frame(Opcode.CLOSE, b"") + b"\0",
        frame(Opcode.BINARY, b"y" * 1024) + frame(Opcode.BINARY, b"y" * 1025),
        frame(Opcode.TEXT, b"z" * 600, False) + frame(Opcode.CONTINUATION, b"z" * 600),
        *(bytes((0x82, bool(mask) << 7 | size)) + length + mask + b"12345" for size, length in _LONG_FORMS),
    ]


def connection(data: bytes) -> None:
    """In any cut of bytes the same events and the same answers; what is sent is well-formed for the other role."""
    for role in Role:
        _in_role(role, Choices(data))


def _in_role(role: Role, chance: Choices) -> None:
    sizes = [1 + chance.number(40), 1, 1 + chance.number(200)]
    closes = chance.percent(20)
    stream = chance.rest()

    def run(pieces: list[bytes]) -> tuple[list[object], bytes]:
        one = Connection(role, SETTINGS, lambda size: MASK[:size], 0.0)
        if closes:
            one.close(1001, "going", 0.0)
        events: list[object] = []
        sent = b""
        for piece in pieces:
            events += one.receive(piece, 1.0)
            sent += one.data_to_send()
            held = len(one._buffer) + (len(one._fragments.data) if one._fragments else 0)
            require(held <= 2 * SETTINGS.max_message_bytes + 14 + len(piece), "more is kept than is allowed", held)
        return events, sent

    whole, pieces = run([stream]), run(cuts(stream, sizes))
    require(whole == run(cuts(stream, [1])) == pieces, "another cut, another result", whole, pieces)
    events, sent = whole
    for number, event in enumerate(events):
        require(not isinstance(event, Closed) or number == len(events) - 1, "something behind Closed", events)
        if isinstance(event, Message):
            require(len(event.data) <= SETTINGS.max_message_bytes, "too big (H3)")
            if event.is_text:
                event.data.decode()
    _is_answered_well(role, sent)


def _is_answered_well(role: Role, sent: bytes) -> None:
    """Our own parser in the other role takes every byte that goes out."""
    other = Connection(Role.CLIENT if role is Role.SERVER else Role.SERVER, SETTINGS, lambda size: MASK[:size], 0.0)
    got = other.receive(sent, 0.0)
    if sent:
        require(other.state is State.OPEN or isinstance(got[-1], Closed), "an answer that is none", sent)
        ends = [event.code for event in got if isinstance(event, Closed)]
        require(not ends or ends[0] not in (1006,) or b"\x88" in sent, "an answer that breaks RFC 6455", sent, got)
    require(not other._buffer, "half a frame was sent", sent)


def header(data: bytes) -> None:
    """What parse_header takes is what serialize writes: one spelling for each header (H3)."""
    for masked in (True, False):
        try:
            found = parse_header(data, 0, masked)
        except FrameError:
            continue
        if found is None or len(data) < found.size or found.length > 70000:
            continue
        again = serialize(Opcode(found.opcode), bytes(found.length), found.mask, found.final)
        require(again[: found.size] == data[: found.size], "a second spelling of a header", data, again)


UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: gate.example.org\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sip\r\n"
    b"Origin: https://gate.example.org\r\n\r\n"
)
KEY_BYTES = b"the sample nonce"
ACCEPT = accept_key("dGhlIHNhbXBsZSBub25jZQ==").encode()
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
    + ACCEPT
    + b"\r\nSec-WebSocket-Protocol: sip\r\n\r\n\x81\x02hi"
)


def upgrade(data: bytes) -> None:
    """Both sides of the opening handshake: the one judges, the other takes the answer in any cut alike."""
    head, _, _ = data.partition(b"\r\n\r\n")
    line, *rest = head.decode("latin-1").split("\r\n")
    method, _, version = [*line.split(" ", 2), "", ""][:3]
    fields = tuple((name, value.strip(" \t")) for name, _, value in (text.partition(":") for text in rest))
    for origins in (("same",), ("*",), ("https://a.example",)):
        found = refusal(UpgradeRequest(method, version, fields), "gate.example.org", origins)
        require(found is None or isinstance(found, Refusal))
        if found is None:
            require(method == "GET", "H1: not a GET")
            require("sip" in head.decode("latin-1"), "H2: no subprotocol")
        else:
            text = found.status + "".join(name + value for name, value in found.fields)
            require(text.isascii() and text.isprintable(), "a refusal that is no line", found)
    results = [_client(pieces) for pieces in ([data], cuts(data, [1]), cuts(data, [7, 90]))]
    require(all(result == results[0] for result in results), "another cut, another result", results)


def _client(pieces: list[bytes]) -> str | bytes | None:
    client = ClientHandshake("pbx.example.com", "/ws", lambda size: KEY_BYTES[:size])
    for number, piece in enumerate(pieces):
        try:
            rest = client.receive(piece)
        except ProtocolError as error:
            return error.reason
        if rest is not None:
            return rest + b"".join(pieces[number + 1 :])
    return None


TARGETS = [
    Target("ws-connection", connection, [*_frames(MASK), *_frames(b"")], prefix_bytes=3),
    Target("ws-header", header, _frames(MASK), test_inputs=1000),
    Target("ws-upgrade", upgrade, [UPGRADE, SWITCHING], [b"sip", b"websocket", b"13", b"Origin: ", b"chat, sip"]),
]
