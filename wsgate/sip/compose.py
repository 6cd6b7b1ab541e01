"""How a request looks when it leaves: the header edits of a proxy (RFC 3261 §16.6), as splices. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from wsgate.addr import Address, Hop
from wsgate.errors import ProtocolError
from wsgate.sip.edit import Edit
from wsgate.sip.flow import Flow, RandomBytes
from wsgate.sip.headers import Uri, in_request_line, parse_name_addr, parse_uri, with_parameters
from wsgate.sip.message import Message
from wsgate.sip.names import Names, side_uri, via_value
from wsgate.sip.rewriting import Changes
from wsgate.sip.siblings import PROOF_PARAMETER

DEFAULT_MAX_FORWARDS = 70

MAX_DIGITS = 10
"""Of a number, leading zeros included (RFC 4475 §3.1.1.1 has some)."""
BRANCH_PREFIX = b"z9hG4bKwsg"

RECORD_ROUTED = frozenset((b"INVITE", b"SUBSCRIBE", b"REFER", b"NOTIFY"))
"""Methods that make or refresh dialogs and so carry our Record-Route (RFC 3261 §12, RFC 6665 §4).

No list says which methods pass: all do, inside a dialog and outside (rule D2).
"""


class Leg(NamedTuple):
    """One side of wsgate in a forwarded request: the flow on it (None: a backend), the hop, what we call ourselves."""

    flow: Flow | None
    hop: Hop
    sent_by: Address


class LoopDetection:
    """Puts into each branch a hash of the request it was made for, and knows it again (RFC 3261 §16.6 step 8, B3).

    The key is this worker's own: a request that another gateway passes on unchanged is no loop.
    """

    def __init__(self, random_bytes: RandomBytes) -> None:
        self._random_bytes = random_bytes
        self._key = random_bytes(16)

    def new_branch(self, message: Message) -> bytes:
        """A branch that no other request has, with the hash of `message` as it came in."""
        return self._mark(message) + self._random_bytes(8).hex().encode()

    def is_looped(self, message: Message) -> bool:
        """True when a Via is ours and was written for the very same request (482, RFC 3261 §16.3 step 4)."""
        if BRANCH_PREFIX not in message.data:
            return False
        vias = [value for value in message.lines(b"via") if BRANCH_PREFIX in value]
        if not vias:
            return False
        mark = self._mark(message)
        return any(mark in value for value in vias)

    def _mark(self, message: Message) -> bytes:
        number = b"%d" % message.cseq[0]
        routes = message.lines(b"route")
        parts = (message.uri, message.call_id, message.from_tag, message.to_tag, number, *routes)
        digest = hashlib.blake2b(b"\n".join(parts), digest_size=6, key=self._key)
        return BRANCH_PREFIX + digest.hexdigest().encode()


def record_routes(arrival: Leg, departure: Leg) -> list[bytes]:
    """The Record-Route values of a forwarded request, topmost first (rules I2, W1; RFC 5658).

    Towards a backend its side stands on top, towards a browser the WebSocket side does. Between two browsers each has
    its own token, the callee's above the caller's.
    """

    def side(token: bytes, leg: Leg) -> bytes:
        return side_uri(token, leg.hop.transport, leg.sent_by, b"r2=on", b"lr")

    callee = departure.flow or arrival.flow
    caller = arrival.flow or departure.flow
    if callee is None or caller is None:
        return []
    return [side(callee.token, departure), side(caller.token, arrival)]


def strict_route(message: Message, drop_routes: int, routes: tuple[bytes, ...]) -> bytes:
    """The URI of the first Route left when its server routes strictly, as those of RFC 2543 do: it has no `lr`.

    Empty for all others, and for what cannot be read. `routes` stand above what is left of `message` below
    `drop_routes`.
    """
    if not routes and not message.has(b"route"):
        return b""
    try:
        left = routes[:1] or message.values(b"route")[drop_routes : drop_routes + 1]
        if not left or b";lr" in left[0]:
            return b""
        uri = parse_name_addr(left[0]).uri
        return b"" if b"lr" in parse_uri(uri).parameters else uri
    except ProtocolError:
        return b""


def for_loose_routing(message: Message, is_own_route: Callable[[Uri], bool]) -> Message:
    """What a strict router in front of us meant (RFC 3261 §16.4): our Record-Route or Path stands in its Request-URI.

    The last Route is the true Request-URI. All others are returned as they are. Raises ProtocolError.
    """
    if b";lr" not in message.uri or not message.has(b"route"):
        return message
    uri = message.request_uri
    if b"lr" not in uri.parameters or not is_own_route(uri):
        return message
    values = message.values(b"route")
    if not values:
        return message
    edit = Edit(message)
    edit.request_uri(in_request_line(parse_name_addr(values[-1]).uri))
    edit.remove(b"route")
    # As if it were our Route: from there on it is one, with its token.
    edit.insert_first(b"Route", b"<%b>" % message.uri, *values[:-1])
    return Message.parse(edit.build())


def shows_outbound(message: Message) -> bool:
    """True when a REGISTER has a Contact with instance and reg-id (RFC 5626 §4.2.1, rule C5)."""
    for line in message.found(b"contact"):
        value = line[2].lower()
        if b"reg-id" in value and b"+sip.instance" in value:
            return True
    return False


def max_forwards(message: Message) -> int | None:
    """The value of Max-Forwards; None when absent. Raises ValueError when it is no number up to 255."""
    text = message.header(b"max-forwards")
    if text is None:
        return None
    if not text.isdigit() or len(text) > MAX_DIGITS or int(text) > 255:
        raise ValueError("malformed Max-Forwards")
    return int(text)


def _count_down(edit: Edit, message: Message) -> None:
    """Max-Forwards of one hop less (RFC 3261 §16.6 step 3)."""
    remaining = max_forwards(message)
    if remaining is None:
        edit.append(b"Max-Forwards", b"%d" % DEFAULT_MAX_FORWARDS)
    else:
        edit.replace(b"max-forwards", b"%d" % (remaining - 1))


def _set_max_breadth(edit: Edit, message: Message, breadth: int) -> None:
    """What this branch may be forked into further on (RFC 5393 §5.3.3)."""
    if message.header(b"max-breadth") is None:
        edit.append(b"Max-Breadth", b"%d" % breadth)
    else:
        edit.replace(b"max-breadth", b"%d" % breadth)


class Composer:
    """Writes forwarded requests: our Via, Max-Forwards, Path, Record-Route, Content-Length, Routes taken off."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def request(
        self,
        message: Message,
        branch: bytes,
        arrival: Leg,
        departure: Leg,
        *,
        drop_routes: int,
        uri: bytes | None = None,
        routes: tuple[bytes, ...] = (),
        breadth: int | None = None,
        contacts: Changes | None = None,
        with_path: bool = True,
        forwarded: tuple[tuple[bytes, bytes], ...] = (),
        proof: bytes = b"",
    ) -> bytes:
        """The bytes for one target. `uri` replaces the Request-URI, `routes` are put on top of what Route remains.

        `contacts` are the Contact values of a REGISTER to be replaced (rule R5); without `with_path` it gets no Path.
        `forwarded` are header lines of the caller's upgrade, `proof` shows another worker that we wrote this (T3).
        """
        uri = None if uri is None else in_request_line(uri)
        edit = Edit(message)
        strict = b"" if departure.flow is not None else strict_route(message, drop_routes, routes)
        if strict:
            # RFC 3261 §16.6 step 6: the next hop wants itself in the Request-URI, and what stood there last in Route.
            edit.append(b"Route", b"<%b>" % (message.uri if uri is None else uri))
            uri = in_request_line(strict)
            drop_routes, routes = (drop_routes, routes[1:]) if routes else (drop_routes + 1, ())
        if uri is not None and uri != message.uri:
            edit.request_uri(uri)
        via = via_value(departure.hop, departure.sent_by, branch)
        edit.insert_first(b"Via", with_parameters(via, PROOF_PARAMETER, proof) if proof else via)
        if drop_routes:
            edit.drop_values(b"route", drop_routes)
        if routes:
            edit.insert_first(b"Route", *routes)
        _count_down(edit, message)
        if breadth is not None:
            _set_max_breadth(edit, message, breadth)
        self._record(edit, message, arrival, departure, contacts, with_path)
        if not message.has(b"content-length"):
            edit.append(b"Content-Length", b"%d" % message.body_bytes)
        for name, value in forwarded:
            edit.append(name, value)
        return edit.build()

    def _record(
        self, edit: Edit, message: Message, arrival: Leg, departure: Leg, contacts: Changes | None, with_path: bool
    ) -> None:
        """Leave our name where later requests shall come by: Path of a REGISTER, else Record-Route."""
        if message.method != b"REGISTER":
            if message.method in RECORD_ROUTED:
                edit.insert_first(b"Record-Route", *record_routes(arrival, departure))
            return
        # Rule R3: no Record-Route, and a Contact that is changed by R5 alone.
        if with_path:
            self._path(edit, message, arrival, departure)
        if contacts:
            edit.replace_values(b"contact", contacts)

    def _path(self, edit: Edit, message: Message, arrival: Leg, departure: Leg) -> None:
        # Rules R2, C5: one Path on top, `ob` only for a client that showed outbound.
        if arrival.flow is None or departure.flow is not None:
            return
        parameters = (b"lr", b"ob") if arrival.flow.outbound else (b"lr",)
        edit.insert_first(
            b"Path", side_uri(arrival.flow.token, departure.hop.transport, departure.sent_by, *parameters)
        )
        if not message.has_token(b"supported", b"path"):
            edit.append(b"Supported", b"path")
