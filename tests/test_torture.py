"""The torture messages of RFC 4475 and RFC 5118, from a browser and from a backend: what becomes of each.

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

VECTORS = Path(__file__).parent / "vectors"

# Name: (from a browser, from the backend side), with the section of RFC 4475.
RFC_4475 = {
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


# The same for RFC 5118. A BYE is of no dialog here (D1); all but ipv6-bad must be understood.
RFC_5118 = {
    "ipv6-good": ("forward", "404"),  # 4.1 valid, with IPv6 references
    "ipv6-bad": ("400", "400"),  # 4.2 IPv6 in the Request-URI without brackets: "should respond with a 400"
    "port-ambiguous": ("forward", "404"),  # 4.3 well formed; what looks like a port belongs to the address
    "port-unambiguous": ("forward", "404"),  # 4.4 a port behind the brackets
    "via-received-param-with-delim": ("481", "404"),  # 4.5 brackets in received: to be parsed all the same
    "via-received-param-no-delim": ("forward", "404"),  # 4.5 received as the grammar has it
    "ipv6-in-sdp": ("forward", "404"),  # 4.6 IPv6 addresses in SDP
    "mult-ip-in-header": ("481", "404"),  # 4.7 IPv4 and IPv6 in Vias
    "mult-ip-in-sdp": ("forward", "404"),  # 4.8 IPv4 and IPv6 in SDP
    "ipv4-mapped-ipv6": ("forward", "404"),  # 4.9 IPv4-mapped addresses
    "ipv6-bug-abnf-3-colons": ("forward", "404"),  # 4.10 three colons in front of the IPv4 part: to be tolerated
    "ipv6-correct-abnf-2-colons": ("forward", "404"),  # 4.10 two, as RFC 4291 has it
}

EXPECTED = {("rfc4475", name): results for name, results in RFC_4475.items()} | {
    ("rfc5118", name): results for name, results in RFC_5118.items()
}
"""By the directory and the name of a vector."""


def vector(rfc: str, name: str) -> bytes:
    """The bytes of one message."""
    return (VECTORS / rfc / f"{name}.dat").read_bytes()


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
    assert {(path.parent.name, path.stem) for path in VECTORS.glob("*/*.dat")} == set(EXPECTED)
    assert (len(RFC_4475), len(RFC_5118)) == (49, 12)


@pytest.mark.parametrize(("rfc", "name"), list(EXPECTED))
def test_each_leg_gives_the_expected_result(rfc: str, name: str) -> None:
    data = vector(rfc, name)
    world = edge()
    world.from_browser(world.browser(), data)
    assert outcome(world) == EXPECTED[rfc, name][0]
    world = edge()
    world.from_backend(data)
    assert outcome(world) == EXPECTED[rfc, name][1]


@pytest.mark.parametrize(("rfc", "name"), [key for key, (browser, _) in EXPECTED.items() if browser == "forward"])
def test_what_is_forwarded_keeps_its_bytes_but_for_what_a_proxy_writes(rfc: str, name: str) -> None:
    data = vector(rfc, name)
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


@pytest.mark.parametrize(
    ("name", "ours", "printed", "result"),
    [
        ("ipv6-in-sdp", 251, 268, "400"),
        ("mult-ip-in-sdp", 189, 181, "forward"),
        ("ipv4-mapped-ipv6", 245, 236, "forward"),
    ],
)
def test_the_lengths_that_rfc_5118_prints(name: str, ours: int, printed: int, result: str) -> None:
    """H4: a body shorter than Content-Length is 400, bytes behind it are cut off and counted (see the README)."""
    data = vector("rfc5118", name)
    world = edge()
    world.from_browser(world.browser(), data.replace(b"Content-Length: %d" % ours, b"Content-Length: %d" % printed))
    assert outcome(world) == result
    assert world.counters.values["sip_bytes_behind_body"] == (1 if printed < ours else 0)


@pytest.mark.parametrize(
    ("name", "domain", "result"),
    [
        ("port-ambiguous", "2001:db8::10", "403"),
        ("port-ambiguous", "2001:db8::10:5070", "forward"),
        ("port-unambiguous", "2001:db8::10", "forward"),
        ("ipv6-bug-abnf-3-colons", "2001:db8::c000:201", "forward"),
        ("ipv6-correct-abnf-2-colons", "2001:db8::c000:201", "forward"),
        ("ipv6-correct-abnf-2-colons", "2001:db8::10", "403"),
    ],
)
def test_which_domain_an_ipv6_reference_names(name: str, domain: str, result: str) -> None:
    """RFC 5118 §4.3, §4.4, §4.10 with one domain configured: what stands in the brackets is the address, whole (D1)."""
    world = World({domain: [udp()]}, {domain: BackendSettings(target="sip:pbx.example.com")})
    world.from_browser(world.browser(), vector("rfc5118", name))
    assert outcome(world) == result


@pytest.mark.parametrize("name", ["via-received-param-with-delim", "via-received-param-no-delim"])
def test_a_received_of_the_sender_is_overwritten_by_where_it_came_from(name: str) -> None:
    """RFC 5118 §4.5, rule V2: parsed with brackets or without, and not believed."""
    world = edge()
    world.from_backend(vector("rfc5118", name))
    ((hop, data),) = world.sent
    assert Message.parse(data).via.parameters[b"received"] == PBX.host.encode()
    assert hop.address == PBX
