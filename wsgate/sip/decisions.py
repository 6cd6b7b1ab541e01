"""Where a request came from and where it can go: the values between the proxy (RFC 3261 §16) and those who forward."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from wsgate.addr import Hop
from wsgate.sip.flow import Flow
from wsgate.sip.message import Message, warning
from wsgate.sip.targets import Target


class Service(enum.Enum):
    """What wsgate does itself instead of forwarding."""

    OPTIONS = "options"
    REGISTER = "register"
    LOCATION = "location"


class Answer(NamedTuple):
    """Refuse the request with this final response."""

    status: int
    reason: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


class ToBackend(NamedTuple):
    """Forward to a backend: to `targets`, or to wherever the backend's own resolution leads when None."""

    backend: str
    targets: tuple[Target, ...] | None
    drop_routes: int


class ToFlow(NamedTuple):
    """Forward down a browser's connection."""

    flow: Flow
    drop_routes: int
    uri: bytes | None = None
    """The Request-URI that the browser knows, where it was rewritten (rule R5)."""


class ToSibling(NamedTuple):
    """Forward to the worker that has this flow (rule T3); `outbound` as the Route that named it said."""

    worker: int
    connection: bytes
    outbound: bool
    drop_routes: int
    uri: bytes | None = None
    """As of ToFlow."""


class ToDirect(NamedTuple):
    """Forward to a numeric target that `direct_targets` allows (rule D1 b)."""

    target: Target
    drop_routes: int


class ToService(NamedTuple):
    """Answer here: OPTIONS for us, or the embedded registrar and location service for `domain`."""

    service: Service
    domain: str
    drop_routes: int


Decision = Answer | ToBackend | ToFlow | ToSibling | ToDirect | ToService


class Arrival(NamedTuple):
    """Where a request came from: a browser's flow, or the backend side (flow is None), trusted or not (rule N6).

    `origin` is the hop of the backend side; where another worker passed the request on, the one that it had it from,
    None for a browser's (T3).
    """

    hop: Hop
    flow: Flow | None
    trusted: bool
    origin: Hop | None = None


class Backends(Protocol):
    """What is known of the configured backends at this moment; nothing here looks anything up."""

    def targets(self, backend: str, now: float) -> Sequence[Target] | None:
        """Where the backend is, best first, weights drawn anew (RFC 2782); None while it is not known."""

    def named(self, backend: str) -> Mapping[str, Sequence[Target]]:
        """The names met in the backend's resolution, in lower case, each with the targets behind it."""

    def backend_of(self, host: str) -> str | None:
        """The backend that resolved to this IP address, if any."""


FORGED = Answer(403, "Forged Flow Token", (warning("flow token with a wrong signature"),))
SECURE_ONLY = Answer(416, "Unsupported URI Scheme", (warning("sips: towards a browser"),))
"""Rule C2: JsSIP would answer so; a browser cannot show that its leg is TLS to the end."""
NO_DIALOG = Answer(481, "Call/Transaction Does Not Exist", (warning("no dialog with this Call-ID and these tags"),))


def malformed(reason: str) -> Answer:
    """400 with what is wrong, in the Reason phrase and for an administrator (table A)."""
    return Answer(400, f"Bad Request: {reason}", (warning(reason),))


def is_secure_only(message: Message) -> bool:
    """True when Request-URI or To is sips: (rule C2)."""
    return message.uri[:5].lower() == b"sips:" or message.to_uri[:5].lower() == b"sips:"
