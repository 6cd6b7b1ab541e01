"""Torture messages and malformed input over real sockets: what comes back, and that everything goes on (H4, table A).

One daemon stands it all: afterwards it still answers on each way in, and its log holds no internal error.
"""

from __future__ import annotations

import itertools
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from tests.interop.daemon import Daemon
from tests.interop.raw import RawWebSocket, UdpPeer, sip
from tests.interop.stream_server import Line
from tests.test_torture import EXPECTED, vector
from wsgate.errors import ProtocolError
from wsgate.sip.edit import Edit
from wsgate.sip.framing import HEAD_END
from wsgate.sip.message import Message

NUMBER = itertools.count(1)
WAITING_SECONDS = 20.0
BORDERLESS = {
    "baddn": "waits",  # no blank line
    "clerr": "waits",  # Content-Length larger than the message
    "dblreq": "ends",  # what stands behind the message is one more, and then no message
    "inv2543": "ends",  # no Content-Length
    "mcl01": "ends",  # two different ones
    "ncl": "ends",  # a negative one
}
"""What becomes of a stream on which these vectors of RFC 4475 come."""
COPIED = (b"via", b"from", b"to", b"call-id", b"cseq")
BRANCH = re.compile(rb"(branch[ \t]*=[ \t\r\n]*)[^\s;,]*", re.IGNORECASE)


class Scene(NamedTuple):
    """A daemon that serves every domain through a scripted server over UDP."""

    daemon: Daemon
    backend: UdpPeer

    @property
    def sip(self) -> tuple[str, int]:
        """Where the backend side sends to."""
        return (self.daemon.sip_host, self.daemon.sip)

    def count(self, name: str) -> int:
        """One counter of /status."""
        return int(self.daemon.status()["counters"].get(name, 0))

    def stream(self) -> Line:
        """A TCP connection of the backend to the daemon."""
        return Line(socket.create_connection(self.sip, timeout=WAITING_SECONDS), self.sip)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with ExitStack() as stack:
        backend = UdpPeer()
        stack.callback(backend.close)
        text = f"""
            [backend *]
            target = sip:127.0.0.1:{backend.port};transport=udp
            [limits]
            messages_per_second = 10000
            """
        daemon = Daemon(tmp_path_factory.mktemp("malformed"), text, sip_options="max_header_bytes = 16384")
        yield Scene(daemon, backend)
        daemon.stop()
        assert not re.search("internal error|CRITICAL", daemon.log)


def options(uri: str = "sip:{}", *extra: str, via: str = "SIP/2.0/WS abc.invalid", line: bytes = b"") -> bytes:
    """An OPTIONS of its own; `line` stands in the place of the header of its name, or as one more."""
    number = next(NUMBER)
    lines = [f"Via: {via};branch=z9hG4bKm{number}", "Max-Forwards: 70", "From: <sip:alice@example.com>;tag=a1"]
    lines += ["To: <sip:bob@example.com>", f"Call-ID: call{number}@abc", "CSeq: 1 OPTIONS", *extra]
    data = sip(f"OPTIONS {uri} SIP/2.0", *lines)
    if line:
        name = line.partition(b":")[0]
        kept = [one for one in data.split(b"\r\n")[:-2] if one.partition(b":")[0] != name]
        data = b"\r\n".join([*kept, line, b"", b""])
    return data


class Way:
    """One way in: what is sent there, and what comes back."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.via = scene, ""

    def alive(self) -> bytes:
        """An OPTIONS that wsgate answers itself (G1)."""
        return options(f"sip:{self.scene.sip[0]}:{self.scene.sip[1]}", via=self.via)

    def send(self, data: bytes) -> None:
        raise NotImplementedError

    def receive(self, seconds: float) -> bytes | None:
        raise NotImplementedError

    def until_alive(self) -> list[bytes]:
        """What came back before the answer to an OPTIONS that is sent now: all that there is to come by itself."""
        ping = self.alive()
        self.send(ping)
        branch = Message.parse(ping).branch
        found: list[bytes] = []
        deadline = time.monotonic() + WAITING_SECONDS
        while (data := self.receive(max(0.01, deadline - time.monotonic()))) is not None:
            if branch in data and data.startswith(b"SIP/2.0 "):
                assert data.startswith(b"SIP/2.0 200 ")
                return found
            found.append(data)
        raise AssertionError(f"the daemon no longer answers; it sent {found}")

    def finals(self, data: bytes) -> list[Message]:
        """The final answers to one message."""
        self.send(data)
        messages = [Message.parse(one) for one in self.until_alive()]
        return [message for message in messages if message.status >= 200]


class Browser(Way):
    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.via = "SIP/2.0/WS abc.invalid"
        self.socket = RawWebSocket(scene.daemon.address)

    def send(self, data: bytes) -> None:
        self.socket.send(data)

    def receive(self, seconds: float) -> bytes | None:
        return self.socket.receive(seconds)

    def close(self) -> None:
        self.socket.close()


class Datagrams(Way):
    """A socket of its own on the address of the backend: nobody acknowledges, so finals to INVITE come again."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.peer = UdpPeer()
        self.via = f"SIP/2.0/UDP 127.0.0.1:{self.peer.port}"

    def send(self, data: bytes) -> None:
        self.peer.send(data, self.scene.sip)

    def receive(self, seconds: float) -> bytes | None:
        got = self.peer.receive(seconds)
        return None if got is None else got[0]

    def close(self) -> None:
        self.peer.close()


class Stream(Way):
    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.line = scene.stream()
        self.via = f"SIP/2.0/TCP 127.0.0.1:{self.line.socket.getsockname()[1]}"

    def send(self, data: bytes) -> None:
        self.line.send(data)

    def receive(self, seconds: float) -> bytes | None:
        return self.line.receive(seconds)

    def assert_closed(self) -> None:
        """The daemon closes it, sooner or later."""
        self.line.socket.settimeout(WAITING_SECONDS)
        try:
            while self.line.socket.recv(65536):
                continue
        except ConnectionError:
            return

    def close(self) -> None:
        self.line.close()


@pytest.fixture(params=[Browser, Datagrams, Stream], ids=["WS", "UDP", "TCP"])
def way(scene: Scene, request: pytest.FixtureRequest) -> Iterator[Way]:
    one: Way = request.param(scene)
    yield one
    one.close()


def torture(rfc: str, name: str) -> bytes:
    """A vector with a branch of its own, for several have the same one; badbranch is about its branch and keeps it."""
    data = vector(rfc, name)
    if name == "badbranch":
        return data
    head, blank, body = data.partition(b"\r\n\r\n")
    branch = b"z9hG4bKt%d" % next(NUMBER)
    return BRANCH.sub(lambda found: found[1] + branch, head, count=1) + blank + body


def with_rport(data: bytes) -> bytes:
    """The message with rport in its topmost Via, where one can be read."""
    try:
        message = Message.parse(data)
        edit = Edit(message)
        edit.replace_first_value(b"via", message.via and message.via_bytes + b";rport")
    except ProtocolError:
        return data
    # Without the blank line that was not there, with the bytes behind the body that were.
    return edit.build()[: -2 if HEAD_END not in data else None] + data[len(message.data) :]


def serve(scene: Scene) -> list[bytes]:
    """Answer 486 to the requests that wait at the scripted server; what they were."""
    seen = []
    while (got := scene.backend.receive(0.0)) is not None:
        data, source = got
        message = Message.parse(data)
        if message.is_request and message.method != b"ACK":
            lines = [data[one.start : one.end] for one in message.headers if one.name in COPIED]
            scene.backend.send(b"SIP/2.0 486 Busy Here\r\n" + b"".join(lines) + b"Content-Length: 0\r\n\r\n", source)
            seen.append(data)
    return seen


def test_every_torture_message_over_one_websocket(scene: Scene) -> None:
    """RFC 4475 and RFC 5118 from a browser, all on one connection, which stays (H4)."""
    browser = Browser(scene)
    for (rfc, name), (expected, _) in EXPECTED.items():
        browser.send(torture(rfc, name))
        seen: list[bytes] = []
        if expected == "forward":
            deadline = time.monotonic() + WAITING_SECONDS
            back: list[int] = []
            while not back and time.monotonic() < deadline:
                seen += serve(scene)
                got = browser.receive(0.05)
                back = [int(got[8:11])] if got is not None and got[8:9] != b"1" else []
            assert seen, (rfc, name)
            assert back == [486], (rfc, name)
        else:
            back = [int(one[8:11]) for one in browser.until_alive()]
            assert back == ([] if expected == "drop" else [int(expected)]), (rfc, name)
            assert serve(scene) == [], (rfc, name)
    assert browser.until_alive() == []
    assert browser.socket.close_code is None
    browser.close()


def test_every_torture_message_in_datagrams_of_the_backend(scene: Scene) -> None:
    """The same from the backend side over UDP; by rport the answers come to this socket (V2)."""
    for (rfc, name), (_, expected) in EXPECTED.items():
        datagrams = Datagrams(scene)
        datagrams.send(with_rport(torture(rfc, name)))
        back = [int(one[8:11]) for one in datagrams.until_alive()]
        datagrams.close()
        assert back == ([] if expected == "drop" else [int(expected)]), (rfc, name)


def test_every_torture_message_over_tcp_of_the_backend(scene: Scene) -> None:
    """What has a border is answered as in a datagram, all on one connection, which stays (RFC 3261 §18.3)."""
    stream = Stream(scene)
    for (rfc, name), (_, expected) in EXPECTED.items():
        if name not in BORDERLESS:
            stream.send(torture(rfc, name))
            back = [int(one[8:11]) for one in stream.until_alive()]
            assert back == ([] if expected == "drop" else [int(expected)]), (rfc, name)
    stream.close()


@pytest.mark.parametrize("name", BORDERLESS)
def test_a_stream_without_borders_ends_alone(scene: Scene, name: str) -> None:
    """What lost its border is closed and counted, what waits for more bytes waits; a second stream never notices."""
    stream, other = Stream(scene), Stream(scene)
    before = scene.count("sip_malformed_streams")
    stream.send(torture("rfc4475", name))
    if BORDERLESS[name] == "waits":
        other.until_alive()
        stream.line.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            stream.line.socket.recv(1)
    else:
        stream.assert_closed()
        assert scene.count("sip_malformed_streams") == before + 1
    assert other.until_alive() == []
    stream.close()
    other.close()


LINES = [
    b"Via: %s;branch=z9hG4bKbare%d\nX-Evil: 1",
    b"From: <sip:a@b>;tag=a1\nX-Evil: 1",
    b"To: <sip:b@b>\rX-Evil: 1",
    b"Call-ID: 1@abc\nX-Evil: 1",
    b"CSeq: 1 OPTIONS\nX-Evil: 1",
    b"Subject: a\nVia: SIP/2.0/UDP evil.example;branch=z9hG4bKevil",
    b"Subject: a\0b",
    b"Sub\nject: a",
    b"no header line",
]
TOO_SHORT = b"Content-Length: 1"
UNFRAMED = [
    b"Content-Length: -1",
    b"Content-Length: x",
    b"Content-Length: 0\r\nl: 1",
    b"Content-Length: 99999999999",
    b"Subject: " + b"x" * 16384,
    b"X:\r\n" * 10000 + b"X:",
]
"""Those that leave a stream without a border; for the body that is too short it waits."""


@pytest.mark.parametrize("line", [*LINES, TOO_SHORT, *UNFRAMED], ids=lambda line: repr(line[:30]))
def test_a_malformed_header_is_answered_400_and_the_way_stays(way: Way, line: bytes) -> None:
    """Table A, H4: the connection stays, the answer carries nothing injected. A stream that lost its border ends."""
    if line.startswith(b"Via"):
        line = line % (way.via.encode(), next(NUMBER))
    data = options("sip:bob@example.com", via=way.via, line=line)
    counted = way.scene.count("sip_malformed_requests")
    if isinstance(way, Stream) and line == TOO_SHORT:
        way.send(data)
        (answer,) = way.finals(b"x")
        assert (answer.status, answer.body) == (404, b""), "its last byte has come: G1"
        return
    if isinstance(way, Stream) and line in UNFRAMED:
        before = way.scene.count("sip_malformed_streams")
        way.send(data)
        way.assert_closed()
        assert way.scene.count("sip_malformed_streams") == before + 1
        return
    (answer,) = way.finals(data)
    assert (answer.status, answer.flaw) == (400, "")
    assert answer.reason.startswith(b"Bad Request: ")
    assert b"evil" not in answer.data.lower()
    assert way.scene.count("sip_malformed_requests") == counted + 1
    assert way.until_alive() == []


def test_what_cannot_be_answered_is_dropped_and_the_way_stays(way: Way) -> None:
    """Table A."""
    before = way.scene.count("sip_malformed_dropped")
    for line in (b"CSeq: 1\nX-Evil: 1", b"To: \nX-Evil: 1", b"Call-ID: "):
        spoilt = options("sip:bob@example.com", via=way.via, line=line)
        assert way.finals(spoilt.replace(b"OPTIONS sip", b"ACK sip", 1) if line.endswith(b" ") else spoilt) == []
    assert way.finals(b"SIP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n") == []
    assert way.scene.count("sip_malformed_dropped") == before + 4


def test_two_messages_in_one_frame_are_one(scene: Scene) -> None:
    """H4: bytes behind Content-Length are discarded and counted; the second message is never looked at."""
    browser = Browser(scene)
    before = scene.count("sip_bytes_behind_body")
    first, second = browser.alive(), browser.alive()
    browser.send(first + second)
    back = browser.receive(WAITING_SECONDS)
    assert back is not None
    assert Message.parse(back).branch == Message.parse(first).branch
    assert browser.until_alive() == []
    assert scene.count("sip_bytes_behind_body") == before + 1
    assert browser.socket.close_code is None
    browser.close()


def test_two_messages_in_one_segment_are_two(scene: Scene) -> None:
    """RFC 3261 §18.3: on a stream what stands behind Content-Length is the next message."""
    stream = Stream(scene)
    first, second = stream.alive(), stream.alive()
    stream.send(first + b"\r\n" + second)
    back = [stream.receive(WAITING_SECONDS) for _ in range(2)]
    assert [Message.parse(one or b"").branch for one in back] == [Message.parse(one).branch for one in (first, second)]
    stream.close()


def test_folded_headers_and_a_request_uri_with_headers(way: Way) -> None:
    """A fold is no fault (RFC 3261 §7.3.1); headers in the Request-URI are (table A)."""
    folded = options(f"sip:{way.scene.sip[0]}:{way.scene.sip[1]}", "Subject: a\r\n\tb\r\n c", via=way.via)
    assert [one.status for one in way.finals(folded)] == [200]
    (refused,) = way.finals(options("sip:bob@example.com?Subject=x", via=way.via))
    assert (refused.status, refused.reason) == (400, b"Bad Request: headers in the Request-URI")
