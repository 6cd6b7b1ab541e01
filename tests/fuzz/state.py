"""What comes from a disk, another worker, or a site's own login: journals, directory messages, tokens and cookies."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import zlib
from typing import Any

import jwt
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.edge_world import KEYS, PBX, Call, World, backend_request, begin_branches, register
from tests.fuzz.chance import MARK, Choices, unmarked
from tests.fuzz.target import Target, require
from tests.test_sharing import CONTACT, ONE, TWO, Worker, binding
from wsgate.bearer import TokenError, VerificationKey, verify
from wsgate.identity import MAX_FORWARDED_BYTES, Admission, Admitted, ForwardedHeader, IdentitySettings
from wsgate.sip.gruu import TemporaryGruus
from wsgate.sip.journal import HEAD, JournalError
from wsgate.sip.message import Message
from wsgate.turn.tokens import TokenKey, TokenKeys
from wsgate.ws.handshake import Refusal

WALL = 1_700_000_000.0
LIFETIME = 3600.0


def _journal() -> bytes:
    """That of a worker with a registration, a call, and one that was forgotten."""
    begin_branches()
    world = World(dialog_lifetime=LIFETIME)
    world.edge.continuity.load_state(b"", world.now, WALL)
    alice, bob = world.browser(), world.browser(port=40001)
    register(world, alice, 'Contact: <sip:alice@abc.invalid;transport=ws>;+sip.instance="<urn:1>";reg-id=1')
    register(world, bob, user="bob")
    call = Call(world, alice)
    data = HEAD + world.edge.continuity.state_changes(world.now)[0]
    world.from_backend(call.backend_request("BYE"))
    register(world, bob, user="bob", expires=0, cseq="2")
    return data + world.edge.continuity.state_changes(world.now)[0]


def _with_checksums(data: bytes) -> bytes:
    """Each line with the CRC that it should have: what is spoiled is what stands in it."""
    lines = [line.partition(b" ")[2] for line in data[len(HEAD) :].split(b"\n") if line]
    return HEAD + b"".join(b"%08x %b\n" % (zlib.crc32(line), line) for line in lines)


def journal(data: bytes) -> None:
    """It is taken whole or not at all; what was taken is written the same, and does no harm afterwards."""
    for one in (data, _with_checksums(data)):
        world = World(dialogs=8, dialog_lifetime=LIFETIME, first_number=5000)
        empty = world.edge.counts()
        try:
            world.edge.continuity.load_state(one, world.now, WALL)
        except JournalError:
            require(world.edge.counts() == empty, "something of a torn file was taken", one)
            continue
        again = World(dialogs=8, dialog_lifetime=LIFETIME, first_number=5000)
        again.edge.continuity.load_state(world.edge.continuity.state(world.now), again.now, WALL)
        require(again.edge.counts() == world.edge.counts(), "written it is another", one)
        require(
            again.edge.continuity.state(again.now) == world.edge.continuity.state(world.now),
            "written it is another",
            one,
        )
        require(world.edge.counts()["dialogs"] <= 8, "too many dialogs")
        _goes_on(world)
        _goes_on(again, is_back=False)


def _goes_on(world: World, *, is_back: bool = True) -> None:
    """A browser of the file comes back, or does not: nobody is told anything but what is well-formed."""
    if is_back:
        alice = world.browser()
        register(world, alice, 'Contact: <sip:alice@abc.invalid;transport=ws>;+sip.instance="<urn:1>";reg-id=1')
        world.from_backend(backend_request("BYE", "sip:alice@abc.invalid", to="<sip:alice@example.com>;tag=a1"))
    world.move(2 * LIFETIME)
    for hop, sent in world.sent:
        require(hop.connection or hop.address.host in (PBX.host, "192.0.2.1"), "to an address of the file", hop)
        head = sent.partition(b"\r\n\r\n")[0]
        require(b"\n" + MARK not in head and not Message.parse(sent).flaw, "no message, or one with a new line", sent)


def _messages() -> list[bytes]:
    """What workers say to each other."""
    worker, found = Worker(1), []
    worker.directory.flow_opened(ONE)
    worker.directory.flow_opened(TWO)
    worker.sharing.hello()
    worker.register(ONE, 0.0)
    worker.bind(0.0, binding(ONE), binding(TWO, CONTACT + b"2", reg_id=1))
    worker.sharing.tell_changes(0.0)
    worker.register(TWO, 1.0)
    worker.bind(1.0)
    worker.directory.flow_closed(ONE, 2.0)
    worker.peers.told = {"r1": None}
    worker.sharing.tell_changes(2.0)
    worker.sharing.tell_ended([["a", "b", "c"]])
    while (data := worker.sharing.next_message(0, 2.0)) is not None:
        found.append(data)
    return [
        *found,
        json.dumps(["dialog", 1, [["a"], {}]]).encode(),
        json.dumps(["peers", 1, "r", [["1.2.3.4", 5]]]).encode(),
    ]


MESSAGES = _messages()


def sharing(data: bytes) -> None:
    """A message of another worker is taken or counted, and afterwards everything goes on."""
    worker = Worker(0)
    worker.directory.flow_opened(b"flow-own")
    for one in (*MESSAGES, data, *MESSAGES):
        worker.sharing.take(one, 10.0)
    worker.register(b"flow-own", 11.0)
    worker.sharing.tell_changes(11.0)
    for _ in range(100):
        if worker.sharing.next_message(1, 12.0) is None:
            break
    timer = worker.directory.next_timer()
    for now in (20.0, 1000.0, 1e7):
        worker.directory.handle_timer(now)
    require(timer is None or timer >= 0.0, "a timer that is no time", timer)
    require(all(isinstance(size, int) for size in worker.directory.counts().values()))


SECRET = b"0123456789abcdef0123456789abcdef"
VERIFICATION = (VerificationKey("", frozenset({"HS256"}), SECRET),)
CLAIMS: dict[str, Any] = {"sub": "alice@example.com", "exp": int(WALL) + 600, "aud": "gate"}
TOKENS = [
    jwt.encode(CLAIMS, SECRET, "HS256").encode(),
    jwt.encode(CLAIMS | {"sip": ["a@b", "c@d"], "nbf": int(WALL)}, SECRET, "HS256", {"kid": "k"}).encode(),
    jwt.encode(CLAIMS, None, "none").encode(),
]


def token(data: bytes) -> None:
    """Signed with our secret or not believed; spoiled claims are signed too, and then only judged (H1)."""
    text = data.decode("latin-1")
    try:
        verify(text, VERIFICATION, ("gate",), WALL)
        require(text.rstrip("=") in [good.decode() for good in TOKENS[:2]], "believed, and we never signed it", text)
    except TokenError as error:
        require(error.reason.isprintable(), "a reason that is no line", error.reason)
    head, _, rest = text.partition(".")
    payload = rest.partition(".")[0]
    signed = f"{head}.{payload}".encode("latin-1")
    mac = base64.urlsafe_b64encode(hmac.digest(SECRET, signed, "sha256")).rstrip(b"=").decode()
    for one in (f"{head}.{payload}.{mac}", _signed(data)):
        try:
            claims = verify(one, VERIFICATION, ("gate",), WALL)
        except TokenError:
            continue
        require(claims.expires_at > WALL and claims.addresses, "good without date or address", claims)


def _signed(payload: bytes) -> str:
    """Any bytes as the claims of a token that is signed well."""
    parts = [base64.urlsafe_b64encode(part).rstrip(b"=") for part in (b'{"alg":"HS256"}', payload)]
    mac = base64.urlsafe_b64encode(hmac.digest(SECRET, b".".join(parts), "sha256")).rstrip(b"=")
    return b".".join((*parts, mac)).decode()


SETTINGS = IdentitySettings(
    forward_headers=(ForwardedHeader("cookie", b"X-Cookie"), ForwardedHeader("x-user", b"X-User")),
    cookie_secret=SECRET.decode(),
    jwt_keys="file",
    jwt_audience=("gate",),
)
INFO = f"1:{int(WALL)}:{int(WALL) + 600}:alice%40example.com:*%40example.com"
MAC = hmac.new(SECRET, f"1:{int(WALL)}:{int(WALL) + 600}:alice@example.com:*@example.com:".encode(), hashlib.sha1)
UPGRADES = [
    f'Cookie: WSSessionInfo="{INFO}"; WSSessionMAC={MAC.hexdigest()}; WSSessionExtra=\r\nX-User: me'.encode(),
    b"Authorization: Bearer " + TOKENS[0],
    b"Cookie: access_token=" + TOKENS[1] + b"\r\n?access_token=" + TOKENS[0] + b"&a=b",
    b"X-User: caf\xc3\xa9\r\nCookie: a=b; c\r\nAuthorization: Basic eA==",
]


def upgrade(data: bytes) -> None:
    """An upgrade is admitted or refused, and nothing that is forwarded begins a line of its own."""
    data = unmarked(data)
    lines = data.decode("latin-1").split("\r\n")
    fields = [(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines)]
    query = next((line[1:] for line in lines if line.startswith("?")), "")
    found = Admission(SETTINGS, VERIFICATION, lambda: WALL).judge(fields, query, 5000.0)
    require(isinstance(found, Admitted | Refusal))
    if isinstance(found, Refusal):
        require((found.status + found.reason).isprintable(), "a refusal that is no line", found)
        return
    require(found.identity is not None and 5000.0 < found.identity.expires_at <= 5000.0 + 600, "for ever", found)
    for _, value in found.forwarded:
        require(not set(value) & set(b"\r\n\0"), "a forwarded header of two lines", value)
    require(sum(len(name) + len(value) for name, value in found.forwarded) <= MAX_FORWARDED_BYTES, "too much")
    require(found.identity.addresses[0].user in (b"alice", b"a"), "somebody else", found.identity)


GRUUS = TemporaryGruus(KEYS, bytes)
GRUU = GRUUS.make(b"alice1@example.com", b"<urn:1>", b"call").partition(b":")[2].partition(b"@")[0]
NEAR_GRUUS = [GRUU[:-1] + bytes((GRUU[-1] + step,)) for step in (-3, -2, -1, 1, 2, 3)]
"""Other spellings of the last bits, which base64 leaves unused."""
NONCE = bytes(12)
BLOCK = b"\0\x14" + bytes(20) + (int(WALL) << 16).to_bytes(8, "big") + (600).to_bytes(4, "big")
ACCESS = b"\0\x0c" + NONCE + AESGCM(bytes(16)).encrypt(NONCE, BLOCK, b"turn.example.com")
ACCESS_KEYS = TokenKeys({"kid": TokenKey(bytes(16), None)}, "turn.example.com")


def sealed(data: bytes) -> None:
    """Temporary GRUUs and TURN access tokens: as we made them or nothing; spoiled blocks are sealed well too."""
    require(GRUUS.read(data) is None or data == GRUU, "a GRUU that we never made", data)
    require(ACCESS_KEYS.open("kid", data, WALL) is None or data == ACCESS, "a token that nobody made", data)
    chance = Choices(data)
    nonce = bytes(8 + chance.number(20))
    block = BLOCK[: chance.number(len(BLOCK) + 1)] + chance.take(40)
    token = len(nonce).to_bytes(2, "big") + nonce + AESGCM(bytes(16)).encrypt(nonce, block, b"turn.example.com")
    opened = ACCESS_KEYS.open("kid", token, WALL)
    require(opened is None or (20 <= len(opened.mac_key) <= 64 and opened.seconds >= 1), "no key", opened)


JSON_PIECES = [
    b"null",
    b"[]",
    b"{}",
    b"NaN",
    b"Infinity",
    b"-1",
    b"1e999",
    b'""',
    b"true",
    b"1" * 400,
    b"\\ud800",
    b"[" * 50,
]

TARGETS = [
    Target("journal", journal, [_journal()], [*JSON_PIECES, b"\n", b"\\r\\nInjected: 1", HEAD], test_inputs=40),
    Target("sharing", sharing, MESSAGES, JSON_PIECES, test_inputs=400),
    Target(
        "bearer", token, [*TOKENS, json.dumps(CLAIMS).encode()], [*JSON_PIECES, b".", b"=", b"eyJ"], test_inputs=400
    ),
    Target(
        "identity",
        upgrade,
        UPGRADES,
        [b"%0d%0a", b"%00", b"+", b"Bearer ", b"access_token=", b"; ", b'"'],
        test_inputs=600,
    ),
    Target("sealed", sealed, [GRUU, ACCESS, *NEAR_GRUUS], test_inputs=1000),
]
