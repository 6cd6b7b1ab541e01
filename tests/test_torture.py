"""The torture messages of RFC 4475, byte for byte, from a browser and from a backend: what becomes of each.

The domains of the messages are configured as served (`[backend *]`). `forward` means that the request leaves for the
backend; a number is the answer of wsgate; `drop` means silence, because nothing there can be answered or matched. From
the backend side none of them carries a flow token, so what is well formed is 404 there (rule G1).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.edge_world import PBX, World, udp
from wsgate.sip.message import Message
from wsgate.sip.targets import BackendSettings

VECTORS = Path(__file__).parent / "vectors" / "rfc4475"

# Name: (from a browser, from the backend side), with the section of RFC 4475.
EXPECTED = {
    "wsinv": ("481", "404"),  # 3.1.1.1 short tortuous INVITE; its To tag is of no dialog here (D1)
    "intmeth": ("forward", "404"),  # 3.1.1.2 wide range of characters
    "esc01": ("forward", "404"),  # 3.1.1.3 valid use of %
    "escnull": ("forward", "404"),  # 3.1.1.4 escaped nulls
    "esc02": ("forward", "404"),  # 3.1.1.5 % that is no escape: a method of its own
    "lwsdisp": ("forward", "404"),  # 3.1.1.6 no white space between display name and <
    "longreq": ("forward", "404"),  # 3.1.1.7 long values
    "dblreq": ("forward", "404"),  # 3.1.1.8 extra octets: cut off behind Content-Length
    "semiuri": ("forward", "404"),  # 3.1.1.9 semicolon-separated user part
    "transports": ("forward", "404"),  # 3.1.1.10 varied transports in Via
    "mpart01": ("403", "404"),  # 3.1.1.11 multipart; its Route names a host that is no backend (rule D1)
    "unreason": ("drop", "drop"),  # 3.1.1.12 a response that nobody waits for
    "noreason": ("drop", "drop"),  # 3.1.1.13 likewise, empty reason
    "badinv01": ("400", "400"),  # 3.1.2.1 extraneous separators in header values
    "clerr": ("400", "400"),  # 3.1.2.2 Content-Length larger than the message
    "ncl": ("400", "400"),  # 3.1.2.3 negative Content-Length
    "scalar02": ("400", "400"),  # 3.1.2.4 scalars out of range in a request
    "scalarlg": ("drop", "drop"),  # 3.1.2.5 in a response
    "quotbal": ("400", "400"),  # 3.1.2.6 unterminated quoted string
    "ltgtruri": ("400", "400"),  # 3.1.2.7 <> around the Request-URI
    "lwsruri": ("400", "400"),  # 3.1.2.8 white space within the Request-URI
    "lwsstart": ("400", "400"),  # 3.1.2.9 several spaces in the request line
    "trws": ("400", "400"),  # 3.1.2.10 trailing white space in the request line
    "escruri": ("400", "400"),  # 3.1.2.11 escaped headers in the Request-URI
    "baddate": ("forward", "404"),  # 3.1.2.12 invalid time zone: a proxy does not look
    "regbadct": ("forward", "404"),  # 3.1.2.13 URI without brackets in Contact: the registrar's to refuse
    "badaspec": ("forward", "404"),  # 3.1.2.14 spaces within addr-spec: leniently passed on
    "baddn": ("400", "400"),  # 3.1.2.15 non-token display name; the file ends without a blank line
    "badvers": ("505", "505"),  # 3.1.2.16 unknown protocol version
    "mismatch01": ("400", "400"),  # 3.1.2.17 method and CSeq differ
    "mismatch02": ("400", "400"),  # 3.1.2.18 likewise, unknown method
    "bigcode": ("drop", "drop"),  # 3.1.2.19 overlarge response code
    "badbranch": ("forward", "404"),  # 3.2.1 branch without a transaction identifier
    "insuf": ("drop", "drop"),  # 3.3.1 From, To and Call-ID missing: there is nothing to answer with
    "unkscm": ("416", "416"),  # 3.3.2 unknown URI scheme
    "novelsc": ("416", "416"),  # 3.3.3 atypical scheme
    "unksm2": ("forward", "404"),  # 3.3.4 unknown schemes in To and From
    "bext01": ("420", "420"),  # 3.3.5 Proxy-Require and Require
    "invut": ("forward", "404"),  # 3.3.6 unknown content type
    "regaut01": ("forward", "404"),  # 3.3.7 unknown authorization scheme
    "multi01": ("400", "400"),  # 3.3.8 multiple values of single headers
    "mcl01": ("400", "400"),  # 3.3.9 several Content-Length
    "bcast": ("drop", "drop"),  # 3.3.10 200 to an unknown Via
    "zeromf": ("483", "483"),  # 3.3.11 Max-Forwards 0
    "cparam01": ("forward", "404"),  # 3.3.12 unknown parameter in Contact
    "cparam02": ("forward", "404"),  # 3.3.13 likewise
    "regescrt": ("forward", "404"),  # 3.3.14 escaped header in Contact's URI
    "sdp01": ("forward", "404"),  # 3.3.15 Accept without SDP
    "inv2543": ("forward", "404"),  # 3.4.1 an INVITE of RFC 2543
}


def outcome(world: World) -> str:
    """What the edge did with the one message that it got."""
    sent = [(hop, Message.parse(data)) for hop, data in world.sent]
    forwarded = [message for hop, message in sent if message.is_request and hop.address == PBX]
    final = [message.status for _, message in sent if message.status >= 200]
    assert len(forwarded) + len(final) <= 1
    return "forward" if forwarded else str(final[0]) if final else "drop"


def edge() -> World:
    return World({"*": [udp()]}, {"*": BackendSettings(target="sip:pbx.example.com")})


def test_every_vector_has_its_expected_result() -> None:
    assert {path.stem for path in VECTORS.glob("*.dat")} == set(EXPECTED)
    assert len(EXPECTED) == 49


@pytest.mark.parametrize("name", list(EXPECTED))
def test_rfc_4475(name: str) -> None:
    data = (VECTORS / f"{name}.dat").read_bytes()
    world = edge()
    world.from_browser(world.browser(), data)
    assert outcome(world) == EXPECTED[name][0]
    world = edge()
    world.from_backend(data)
    assert outcome(world) == EXPECTED[name][1]


@pytest.mark.parametrize("name", [name for name, (browser, _) in EXPECTED.items() if browser == "forward"])
def test_what_is_forwarded_keeps_its_bytes_but_for_what_a_proxy_writes(name: str) -> None:
    data = (VECTORS / f"{name}.dat").read_bytes()
    world = edge()
    world.from_browser(world.browser(), data)
    forwarded = next(Message.parse(sent) for _, sent in world.sent if not sent.startswith(b"SIP/"))
    original = Message.parse(data)
    assert forwarded.uri == original.uri
    assert forwarded.method == original.method
    assert forwarded.body == original.body
    touched = {b"via", b"route", b"record-route", b"path", b"max-forwards", b"supported", b"content-length", b"contact"}
    for header in original.headers:
        line = original.data[header.start : header.end]
        assert header.name in touched or line in forwarded.data, line
