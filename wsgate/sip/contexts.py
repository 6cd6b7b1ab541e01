"""Requests under way, as data: response contexts, their branches, what the outside is asked for (RFC 3261 §16.7)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from wsgate.addr import Hop
from wsgate.sip.compose import Leg
from wsgate.sip.decisions import Arrival, ToSibling
from wsgate.sip.dialogs import Key
from wsgate.sip.flow import Flow
from wsgate.sip.message import Message
from wsgate.sip.siblings import Siblings
from wsgate.sip.targets import Target
from wsgate.sip.transaction import ClientTransaction, ServerTransaction
from wsgate.sip.transaction import Effect as TransactionEffect


class Resolve(NamedTuple):
    """Find out where a backend is, then call `resolved`."""

    backend: str


class Connect(NamedTuple):
    """Open a connection to a WS backend, then call `connected` or `failed`: its near end stands in our Via (V1)."""

    hop: Hop
    backend: str


class Retain(NamedTuple):
    """The REGISTER of a flow was answered with 2xx: remember what it registered (rule R4)."""

    flow: Flow
    request: Message
    response: Message


class Disconnect(NamedTuple):
    """Close a browser's connection with 1008 and this reason (rule H3)."""

    connection: bytes
    reason: str


class Orphaned(NamedTuple):
    """A 2xx came for an INVITE whose browser is gone (rule D4)."""

    context: Context
    response: Message


Effect = TransactionEffect | Resolve | Connect | Retain | Orphaned


class Outcome(enum.Enum):
    """What became of a branch."""

    PENDING = "pending"
    ANSWERED = "answered"
    UNREACHABLE = "no target reachable"
    TIMEOUT = "no answer"
    UNAVAILABLE = "503 received"
    TOO_LARGE = "too large for any transport"


class Way(NamedTuple):
    """How one flow of a registered instance is reached: a browser's flow, or the place of a phone (rule G5).

    The flow of a `sibling`, another worker, is reached at its place by a Route (T3).

    `uri` is its Contact, `routes` its stored Path (RFC 3327 §5.4).
    """

    flow: Flow | None
    target: Target | None
    uri: bytes
    routes: tuple[bytes, ...]
    sibling: bool = False


class Branch:
    """One way of a forwarded request, with the targets that are left to try.

    A branch goes to a browser's `flow`, or to `targets` of a `backend` (None: wherever its resolution leads, empty
    name: a target of direct_targets). `uri` replaces the Request-URI, `routes` are put on top of what Route remains.
    One that the location service found has `ways` left: the other flows of its instance (RFC 5626 §7). `breadth` is
    its share of Max-Breadth, None where the request was not forked (RFC 5393 §5.3.3). The targets of a branch to a
    `sibling` are the place of another worker (T3).
    """

    __slots__ = (
        "backend",
        "breadth",
        "client",
        "context",
        "departure",
        "drop_routes",
        "fallback",
        "flow",
        "located",
        "outcome",
        "provisional",
        "response",
        "retried",
        "routes",
        "sibling",
        "target",
        "targets",
        "uri",
        "ways",
    )

    def __init__(
        self,
        *,
        backend: str = "",
        flow: Flow | None = None,
        targets: Sequence[Target] | None = None,
        drop_routes: int = 0,
        uri: bytes | None = None,
        routes: tuple[bytes, ...] = (),
        sibling: bool = False,
    ) -> None:
        self.context: Context
        self.sibling = sibling
        self.backend = backend
        self.flow = flow
        self.targets: list[Target] | None = list(targets) if targets is not None else None
        self.drop_routes = drop_routes
        self.uri = uri
        self.routes = routes
        self.client: ClientTransaction | None = None
        self.departure: Hop | None = None
        self.target: Target | None = None
        self.retried = False
        self.fallback: Target | None = None
        self.outcome = Outcome.PENDING
        self.response: Message | None = None
        self.provisional = False
        self.located: Way | None = None
        self.ways: list[Way] = []
        self.breadth: int | None = None

    def take(self, way: Way) -> None:
        """Go this way from now on."""
        self.located = way
        self.flow = way.flow
        self.targets = [way.target] if way.target is not None else []
        self.sibling = way.sibling
        self.uri = way.uri
        self.routes = way.routes


def branch_to(way: ToSibling, siblings: Siblings) -> Branch:
    """The branch to the worker that has the flow, with the flow's token as Route (T3)."""
    return Branch(
        targets=siblings.targets(way.worker),
        drop_routes=way.drop_routes,
        uri=way.uri,
        routes=(siblings.route(way.worker, way.connection, way.outbound),),
        sibling=True,
    )


class Context:
    """A request on its way: the server transaction it came in, and its branches (RFC 3261 §16.7).

    `server` is None for a request of our own, whose answers go nowhere. `dialogs` holds the keys of the dialogs that
    its answers began, True where a 2xx did, `hung_up` the To tags of those that we ended for a caller that is gone,
    `timer_c` the time at which Timer C fires, `began` that of an INVITE's arrival.
    """

    __slots__ = (
        "answered",
        "arrival",
        "began",
        "branches",
        "cancelled",
        "dialogs",
        "hung_up",
        "leg",
        "message",
        "number",
        "server",
        "timer_c",
    )

    def __init__(self, server: ServerTransaction | None, message: Message, arrival: Arrival, leg: Leg) -> None:
        self.server = server
        self.message = message
        self.arrival = arrival
        self.leg = leg
        self.number = 0
        self.branches: list[Branch] = []
        self.dialogs: dict[Key, bool] = {}
        self.hung_up: set[bytes] = set()
        self.answered = False
        self.cancelled = False
        self.timer_c = 0.0
        self.began = 0.0


class Stray(NamedTuple):
    """An ACK of a 2xx on its way: no transaction, no answer, one target (RFC 3261 §16.11, rule I7)."""

    message: Message
    leg: Leg
    branch: Branch
