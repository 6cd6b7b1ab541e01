"""Every refusal that wsgate makes itself tells an administrator which rule or option spoke: all in one place."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.edge_world import BOB, CONTACT, PBX, TOKENS, Call, World, backend_request, register, request, response
from tests.test_edge_embedded import Office, invite
from wsgate.addr import Address, Hop, Transport
from wsgate.identity import AddressPattern, Admitted, Identity
from wsgate.sip.flow import Flow
from wsgate.sip.message import Message
from wsgate.sip.targets import BackendSettings, Target
from wsgate.sip.transaction_messages import overloaded

SIP = Path(__file__).parent.parent / "wsgate" / "sip"
STRANGER = Address("203.0.113.200", 5060)
Scene = Callable[[], Message]
SCENES: dict[str, tuple[int, str, Scene]] = {}


def refusal(status: int, text: str) -> Callable[[Scene], Scene]:
    """A scene that ends in this answer, whose Warning holds this text."""

    def add(scene: Scene) -> Scene:
        SCENES[scene.__name__.removeprefix("_")] = (status, text, scene)
        return scene

    return add


def last(world: World, to: Flow | Address) -> Message:
    """The final answer that was sent there."""
    return [message for message in world.take(to) if message.status >= 200][-1]


def sent(data: bytes, world: World | None = None) -> Message:
    """The answer to what a browser sends."""
    world = world or World()
    flow = world.browser()
    world.from_browser(flow, data)
    return last(world, flow)


def token_route(flow: Flow, *parameters: str) -> str:
    return f"Route: <sip:{flow.token.decode()}@192.0.2.1;{';'.join(('lr', *parameters))}>"


# The checks before routing


@refusal(400, "malformed CSeq")
def _malformed() -> Message:
    return sent(request("MESSAGE", "sip:bob@example.com", cseq="x"))


@refusal(400, "headers in the Request-URI")
def _headers_in_uri() -> Message:
    return sent(request("MESSAGE", "sip:bob@example.com?a=b"))


@refusal(400, "Max-Forwards")
def _odd_max_forwards() -> Message:
    return sent(request("MESSAGE", "sip:bob@example.com", max_forwards="300"))


@refusal(400, "URI")
def _route_that_cannot_be_read() -> Message:
    return sent(request("MESSAGE", "sip:bob@example.com", "Route: <sip:>"))


@refusal(505, "SIP/2.0")
def _version() -> Message:
    return sent(request("MESSAGE", "sip:bob@example.com").replace(b" SIP/2.0\r\n", b" SIP/3.0\r\n", 1))


@refusal(416, "sip: and sips:")
def _scheme() -> Message:
    return sent(request("MESSAGE", "tel:+4930"))


@refusal(483, "Max-Forwards")
def _hops() -> Message:
    return sent(request("MESSAGE", "sip:bob@example.com", max_forwards="0"))


@refusal(482, "unchanged")
def _loop() -> Message:
    world = World(trusted_sources=())
    flow = world.browser()
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com"))
    passed = world.one(PBX)
    again = passed.data.replace(b"\r\n", b"\r\nVia: SIP/2.0/UDP 198.51.100.7;branch=z9hG4bKx\r\n", 1)
    world.from_backend(again)
    return last(world, PBX)


@refusal(420, "Proxy-Require")
def _extension() -> Message:
    return sent(request("MESSAGE", "sip:bob@example.com", "Proxy-Require: magic"))


@refusal(481, "CANCEL")
def _cancel_of_nothing() -> Message:
    return sent(request("CANCEL", "sip:bob@example.com"))


# Where it may go


@refusal(403, "signature")
def _forged_token() -> Message:
    forged = TOKENS.make(b"12345678")[:-2] + b"AA"
    return sent(request("MESSAGE", "sip:bob@example.com", f"Route: <sip:{forged.decode()}@192.0.2.1;lr>"))


@refusal(430, "flow")
def _flow_gone_with_outbound() -> Message:
    return _flow_gone("ob")


@refusal(480, "flow")
def _flow_gone_without() -> Message:
    return _flow_gone()


def _flow_gone(*parameters: str) -> Message:
    world = World()
    flow = world.browser()
    world.edge.flow_closed(flow.id, world.now)
    world.from_backend(backend_request("MESSAGE", "sip:alice@abc.invalid", token_route(flow, *parameters)))
    return last(world, PBX)


@refusal(404, "example.org is not served here: no [backend]")
def _domain() -> Message:
    return sent(request("MESSAGE", "sip:bob@example.org"))


@refusal(404, "flow token")
def _backend_without_token() -> Message:
    world = World()
    world.from_backend(backend_request("MESSAGE", "sip:alice@example.com"))
    return last(world, PBX)


@refusal(403, "192.0.2.77 is no address of a configured backend and not in direct_targets")
def _foreign_route() -> Message:
    return sent(request("MESSAGE", "sip:bob@example.com", "Route: <sip:192.0.2.77;lr>"))


@refusal(481, "no dialog")
def _unknown_dialog() -> Message:
    return sent(request("BYE", "sip:bob@192.0.2.77", to="<sip:bob@example.com>;tag=x"))


@refusal(403, "another flow's token")
def _anothers_token() -> Message:
    world = World()
    return sent(request("MESSAGE", "sip:bob@example.com", token_route(world.browser())), world)


@refusal(403, "no party of the dialog")
def _anothers_dialog() -> Message:
    world = World()
    call = Call(world, world.browser())
    return sent(call.request("BYE"), world)


@refusal(416, "sips:")
def _sips_to_a_browser() -> Message:
    world = World()
    world.from_backend(backend_request("MESSAGE", "sips:alice@abc.invalid", token_route(world.browser())))
    return last(world, PBX)


@refusal(403, "trusted_sources")
def _stranger() -> Message:
    world = World()
    world.from_backend(backend_request("MESSAGE", "sip:alice@example.com"), STRANGER)
    # The answer goes where the packet came from, by the port of its Via (RFC 3581).
    return last(world, Address(STRANGER.host, 5060))


@refusal(403, "identity (cookie, token)")
def _identity() -> Message:
    world = World()
    alice = AddressPattern(b"alice", "example.com")
    admitted = Admitted(Identity((alice,), None, world.now + 9.0))
    flow = world.edge.flow_opened(Address("203.0.113.5", 1), True, Address("gate.example.org", 443), admitted)
    world.from_browser(flow, request("MESSAGE", "sip:bob@example.com", **{"from": "<sip:bob@example.com>;tag=1"}))
    return last(world, flow)


# Limits


@refusal(503, "[limits] messages_per_second")
def _rate() -> Message:
    world = World()
    flow = world.browser()
    world.apply(world.edge.refused(flow.id, request("MESSAGE", "sip:bob@example.com")))
    return last(world, flow)


@refusal(503, "drain_timeout")
def _draining() -> Message:
    world = World()
    world.edge.draining = True
    return sent(request("INVITE", "sip:bob@example.com", CONTACT), world)


@refusal(503, "[limits] dialogs")
def _dialogs_full_to_a_browser() -> Message:
    return sent(request("INVITE", "sip:bob@example.com", CONTACT), World(dialogs=0))


@refusal(480, "[limits] dialogs")
def _dialogs_full_to_a_backend() -> Message:
    world = World(dialogs=0)
    world.from_backend(backend_request("INVITE", "sip:alice@abc.invalid", token_route(world.browser()), BOB))
    return last(world, PBX)


@refusal(503, "[limits] transactions")
def _transactions_full() -> Message:
    return Message.parse(overloaded(Message.parse(request("MESSAGE", "sip:bob@example.com")), "transactions"))


# What the next hop did


def _calling(**settings: object) -> tuple[World, Flow, Message]:
    world = World(**settings)  # type: ignore[arg-type]
    flow = world.browser()
    world.from_browser(flow, request("INVITE", "sip:bob@example.com", CONTACT))
    return world, flow, world.one(PBX)


@refusal(500, "503")
def _unavailable() -> Message:
    world, flow, arrived = _calling()
    world.from_backend(response(arrived, 503, "Service Unavailable", to_tag="b1"))
    return last(world, flow)


@refusal(408, "did not answer")
def _silence() -> Message:
    world, flow, _ = _calling()
    world.move(64.0)
    return last(world, flow)


@refusal(503, "no target of the backend is reachable")
def _unreachable() -> Message:
    world, flow, _ = _calling()
    world.apply(world.edge.failed(Hop(Transport.UDP, PBX), "refused", world.now))
    return last(world, flow)


@refusal(487, "cancelled")
def _cancelled() -> Message:
    world = World({"example.com": None})
    flow = world.browser()
    data = request("INVITE", "sip:bob@example.com", CONTACT)
    world.from_browser(flow, data)
    via = Message.parse(data).via_bytes.decode()
    world.from_browser(flow, request("CANCEL", "sip:bob@example.com", via=via))
    return next(message for message in world.take(flow) if message.cseq[1] == b"INVITE" and message.status >= 200)


@refusal(480, "cannot be reached")
def _browser_lost() -> Message:
    world = World()
    flow = world.browser()
    world.from_backend(backend_request("INVITE", "sip:alice@abc.invalid", token_route(flow), BOB))
    world.take()
    world.apply(world.edge.flow_closed(flow.id, world.now))
    return last(world, PBX)


@refusal(513, "size")
def _too_large() -> Message:
    target = [Target(Transport.UDP, PBX, "pbx.example.com")]
    backends = {"example.com": BackendSettings(target="sip:pbx.example.com", transports=(Transport.UDP,))}
    return sent(request("MESSAGE", "sip:bob@example.com", body=b"x" * 70000), World({"example.com": target}, backends))


# The embedded registrar


def registering(*headers: str, user: str = "alice", **fields: str) -> Message:
    """The answer to a REGISTER with good credentials and these headers."""
    office = Office()
    flow = office.browser()
    data = office.registering(user, "<sip:a@abc.invalid>", *headers, via="SIP/2.0/WSS abc.invalid;branch=z9hG4bKr")
    for name, value in fields.items():
        data = data.replace(f"\r\n{name}: ".encode(), f"\r\n{name}: {value}\r\nX-Was: ".encode(), 1)
    office.from_browser(flow, data)
    return last(office, flow)


@refusal(401, "[registrar] users")
def _challenge() -> Message:
    return sent(request("REGISTER", "sip:example.com", CONTACT, to="<sip:alice@example.com>"), Office())


@refusal(407, "[registrar] users")
def _proxy_challenge() -> Message:
    return sent(invite("sip:bob@example.com"), Office())


@refusal(403, "may not register")
def _anothers_aor() -> Message:
    return registering(To="<sip:bob@example.com>")


@refusal(404, "domain of To")
def _anothers_domain() -> Message:
    return registering(To="<sip:alice@pbx.example.com>")


@refusal(423, "[registrar] min_expires")
def _too_brief() -> Message:
    return registering("Expires: 3")


@refusal(420, "Require")
def _registrar_extension() -> Message:
    return registering("Require: magic")


@refusal(421, "RFC 3327")
def _path_without_support() -> Message:
    return registering("Path: <sip:proxy.example.net;lr>", Supported="nothing")


@refusal(400, "Expires 0")
def _odd_star() -> Message:
    return registering(Contact="*")


@refusal(404, "no such user")
def _no_user() -> Message:
    return from_alice("sip:nobody@example.com")


@refusal(480, "no open flow")
def _user_away() -> Message:
    return from_alice("sip:bob@example.com")


def from_alice(uri: str, **fields: str) -> Message:
    office = Office()
    flow = office.browser()
    office.register_browser(flow, "alice")
    office.from_browser(flow, invite(uri, **fields))
    return last(office, flow)


# All of them


@pytest.mark.parametrize("name", list(SCENES))
def test_every_refusal_names_the_rule_or_option(name: str) -> None:
    status, text, scene = SCENES[name]
    answer = scene()
    assert answer.status == status, answer.data
    (warning,) = answer.lines(b"warning")
    assert warning.startswith(b'399 wsgate "')
    assert warning.endswith(b'"')
    assert text in warning.decode("ascii"), warning


def test_a_good_register_is_not_warned_about() -> None:
    world = World()
    assert register(world, world.browser()).header(b"warning") is None


def answers() -> list[tuple[str, int, str]]:
    """Every place in sip/ that makes a refusal: file, line, and its source."""
    found = []
    for path in sorted(SIP.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            place = {"Answer": 0, "_Refused": 0, "RegistrarAnswer": 0, "Judgement": 1, "response_to": 1, "_refuse": 1}
            number = node.args[place[name]] if name in place and len(node.args) > place[name] else None
            if isinstance(number, ast.Constant) and isinstance(number.value, int) and number.value >= 300:
                text = ast.get_source_segment(source, node) or ""
                if "headers" in text:
                    # Put together in front of it.
                    text = "\n".join(source.splitlines()[max(0, node.lineno - 6) : node.end_lineno])
                found.append((path.name, node.lineno, f"{name}: {text}"))
    return found


def test_no_refusal_in_the_source_is_without_words() -> None:
    found = answers()
    assert len(found) > 40
    # Of `_Refused` and `_refuse` the words are a parameter that has no default.
    wordless = [
        (file, line, text)
        for file, line, text in found
        if not text.startswith(("_Refused", "_refuse")) and "warning(" not in text and "_retry(" not in text
    ]
    assert wordless == []
