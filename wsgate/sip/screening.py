"""What comes in, before any transaction: reading it, where its answers go (V2), and who may send at all (N6). Pure."""

from __future__ import annotations

from collections import OrderedDict

from wsgate.addr import Address, Hop, Transport, in_networks
from wsgate.errors import ProtocolError
from wsgate.log import escaped, logger
from wsgate.metrics import Counters
from wsgate.sip.decisions import Backends
from wsgate.sip.dialogs import DialogTable
from wsgate.sip.edit import Edit
from wsgate.sip.flow import FlowTokens, Verdict
from wsgate.sip.header_lines import MAX_HEADERS
from wsgate.sip.headers import Uri, parse_name_addr, with_parameters
from wsgate.sip.message import Message
from wsgate.sip.settings import SipSettings
from wsgate.sip.siblings import Siblings

STRANGER_INTERVAL_SECONDS = 10.0
"""One 403 per this time to an address that may not send to us (rule N6)."""
STRANGERS_REMEMBERED = 1024
ASSERTED_HEADERS = frozenset((b"p-asserted-identity", b"remote-party-id"))
"""Who sends, as those say who have authenticated it: of a browser they are no more than a claim (RFC 3325 §5, §6)."""
ADDED_LINES = 32
"""Room for the header lines that wsgate adds, so that what it sends can still be read by itself."""


class Screening:
    """Reads messages and knows who is no stranger."""

    def __init__(
        self,
        settings: SipSettings,
        tokens: FlowTokens,
        dialogs: DialogTable,
        backends: Backends,
        counters: Counters,
        siblings: Siblings,
        protected_headers: frozenset[bytes] = frozenset(),
    ) -> None:
        """`protected_headers`, in lower case, are those that nobody but wsgate writes ([identity] forward_headers)."""
        self._protected_headers = protected_headers
        self._not_of_browsers = protected_headers | ASSERTED_HEADERS
        self._siblings = siblings
        self._settings = settings
        self._tokens = tokens
        self._dialogs = dialogs
        self._backends = backends
        self._counters = counters
        self._strangers: OrderedDict[str, float] = OrderedDict()

    def parse(self, data: bytes, hop: Hop, *, is_browser: bool = False) -> Message | None:
        """The message, with its flaw if any; None for what cannot be read at all, dropped and counted (table A).

        Headers that its sender has no right to are gone; `is_browser` says that it came from a browser.
        """
        try:
            message = Message.parse(data)
        except ProtocolError as error:
            self._counters.count("sip_malformed_dropped")
            logger.debug("dropped from %s: %s: %s", hop.address, error.reason, escaped(data))
            return None
        if len(message.data) < len(data) and not message.flaw:
            self._counters.count("sip_bytes_behind_body")
        if message.header_count > MAX_HEADERS - ADDED_LINES and not message.flaw:
            message.flaw = "too many header lines"
        if message.body_start > self._settings.max_header_bytes and not message.flaw:
            message.flaw = "headers too large"
        reserved = self._not_of_browsers if is_browser else self._protected_headers
        return self._unforged(message, reserved) if reserved else message

    def _unforged(self, message: Message, reserved: frozenset[bytes]) -> Message:
        """Without `reserved`: no client may claim what stands for its upgrade, no answer give it away."""
        names = [name for name in reserved if message.has(name)]
        if not names:
            return message
        self._counters.count("sip_protected_headers_removed")
        edit = Edit(message)
        for name in names:
            edit.remove(name)
        edited = Message.parse(edit.build())
        edited.flaw = message.flaw or edited.flaw
        return edited

    def is_backend(self, host: str) -> bool:
        """True for an address of a configured backend."""
        return self._backends.backend_of(host) is not None

    def is_trusted(self, host: str) -> bool:
        """True for an address of a configured backend and of trusted_sources (rule N6)."""
        return self._backends.backend_of(host) is not None or in_networks(host, self._settings.trusted_sources)

    def may_send(self, message: Message, hop: Hop) -> bool:
        """True for what these send, for another worker, and for a request of a dialog that we know (rules N6, T3).

        Raises ProtocolError.
        """
        known = self.is_trusted(hop.address.host) or self._siblings.is_from(message, hop)
        return known or self.is_in_known_dialog(message)

    def is_in_known_dialog(self, message: Message) -> bool:
        """Rule N6: a valid token in a Route, and a dialog of the table that holds its flow. Raises ProtocolError."""
        if message.flaw or not message.to_tag:
            return False
        found = self._dialogs.find(message.call_id, message.from_tag, message.to_tag)
        if found is None:
            return False
        for value in message.values(b"route"):
            token = self._tokens.read(parse_name_addr(value).parsed_uri().user)
            if token.verdict is Verdict.VALID and found.dialog.holds_flow(token.connection):
                return True
        return False

    def is_own_route(self, uri: Uri) -> bool:
        """True for what only we can have written into a Record-Route or Path: it has a token of ours."""
        return self._tokens.read(uri.user).verdict is Verdict.VALID

    def may_answer_stranger(self, host: str, now: float) -> bool:
        """Rule N6: one 403 within the rate limit, then nothing."""
        last = self._strangers.get(host)
        if last is not None and now - last < STRANGER_INTERVAL_SECONDS:
            return False
        if last is None and len(self._strangers) >= STRANGERS_REMEMBERED:
            oldest, when = next(iter(self._strangers.items()))
            if now - when < STRANGER_INTERVAL_SECONDS:
                return False
            del self._strangers[oldest]
        self._strangers[host] = now
        self._strangers.move_to_end(host)
        return True


def reply_place(message: Message, hop: Hop) -> tuple[Message, Hop]:
    """Rule V2: `received` where sent-by differs, `rport` filled in; and where answers go (RFC 3581 §4).

    Raises ProtocolError.
    """
    try:
        via = message.via
    except ProtocolError:
        if message.flaw:
            # It is answered with 400 to where it came from: nothing in it is to be trusted.
            return message, hop
        raise
    asked = b"rport" in via.parameters
    if via.host != hop.address.host or asked:
        parameters = [(b"received", hop.address.host.encode())]
        if asked:
            parameters.append((b"rport", b"%d" % hop.address.port))
        message = with_via_parameters(message, *parameters)
    port = hop.address.port if asked or hop.transport is not Transport.UDP else via.port or 5060
    return message, hop._replace(address=Address(hop.address.host, port))


def with_via_parameters(message: Message, *parameters: tuple[bytes, bytes]) -> Message:
    """The message with these parameters in its topmost Via. A flaw stays. Raises ProtocolError."""
    top = edited = message.via_bytes
    for name, value in parameters:
        edited = with_parameters(edited, name, value)
    if edited == top:
        return message
    edit = Edit(message)
    edit.replace_first_value(b"via", edited)
    flaw = message.flaw
    message = Message.parse(edit.build())
    message.flaw = message.flaw or flaw
    return message
