"""What every client was shown of the other party's media in its calls, told to TURN (rule P6). Pure.

A client is shown SDP by the messages that wsgate delivers to it, so its own never counts for it. An offer counts from
the moment it is delivered, before there is a dialog: the client asks its TURN server for permissions at once. It counts
until that branch of the INVITE fails; what is shown in a dialog counts until another description takes its place or
the dialog ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from wsgate.addr import Address
from wsgate.call_peers import CallPeers
from wsgate.directory import Directory
from wsgate.errors import ProtocolError
from wsgate.registrations import Registration
from wsgate.sip.contexts import Branch, Stray
from wsgate.sip.dialogs import DialogTable, Key
from wsgate.sip.flow import Flow
from wsgate.sip.headers import NameAddr, parse_name_addr, parse_uri
from wsgate.sip.message import Message
from wsgate.sip.sdp import ADDRESSES_MAX, NOTHING, Content, Description, read_body

OFFERERS = frozenset((b"INVITE", b"UPDATE", b"PRACK"))
"""Methods whose request and response may hold a session description (RFC 3264, RFC 3311 §5, RFC 3262 §5)."""

CLIENTS_PER_SIDE_MAX = 8
"""Registrations that one side of a call is taken for, where its messages do not tell which of a connection it is."""
GENERATIONS_MAX = 4
"""Generations of ICE (RFC 8445 §9) whose trickled candidates are kept."""

Clients = frozenset[str]
"""Registration ids."""

_NO_ADDRESSES: frozenset[Address] = frozenset()


class _Offer(NamedTuple):
    """A description in a request that has no final answer yet, and where it is noted: a dialog, or the branch."""

    place: Key | Branch
    clients: Clients
    session: Description


class _Shown:
    """What one client was shown in one dialog: the description that holds, one that is offered, trickled ones.

    `open` is what TURN allows for it.
    """

    __slots__ = ("accepted", "offered", "open", "trickled")

    def __init__(self) -> None:
        self.accepted: Description | None = None
        self.offered: Description | None = None
        self.trickled: dict[frozenset[bytes], frozenset[Address]] = {}
        self.open = _NO_ADDRESSES

    def accept(self, session: Description) -> None:
        """This one holds from now on; candidates trickled for another generation of ICE are over."""
        self.accepted, self.offered = session, None
        self.trickled = {ufrags: found for ufrags, found in self.trickled.items() if ufrags & session.ufrags}

    def trickle(self, fragment: Description) -> None:
        """Further candidates; each fragment repeats those before it, or should (RFC 8840 §4.4)."""
        together = fragment.addresses | self.trickled.pop(fragment.ufrags, _NO_ADDRESSES)
        if len(self.trickled) >= GENERATIONS_MAX:
            del self.trickled[next(iter(self.trickled))]
        self.trickled[fragment.ufrags] = together if len(together) <= ADDRESSES_MAX else fragment.addresses

    def addresses(self) -> frozenset[Address]:
        """All of it."""
        sessions = (session.addresses for session in (self.accepted, self.offered) if session is not None)
        return _NO_ADDRESSES.union(*sessions, *self.trickled.values())


class Calls:
    """Follows the session descriptions of all calls. With `peers` None nothing is followed: nobody asks."""

    def __init__(self, peers: CallPeers | None, dialogs: DialogTable, directory: Directory) -> None:
        self._peers = peers
        self._dialogs = dialogs
        self._directory = directory
        self._shown: dict[Key | Branch, dict[str, _Shown]] = {}
        self._offers: dict[Branch, _Offer] = {}
        if peers is not None:
            dialogs.ended = self._forget

    def __len__(self) -> int:
        return len(self._shown)

    def request_shown(self, branch: Branch, flow: Flow) -> None:
        """The request of `branch` goes to a browser."""
        message = branch.context.message
        if self._peers is None or (message.method not in OFFERERS and message.method != b"INFO"):
            return
        content, key = _content(message), self._key(message)
        if content is NOTHING or (key is None and message.to_tag):
            return
        senders = self._senders(branch.context.arrival.flow, message)
        clients = self._receivers(flow, branch, message) - senders
        place = branch if key is None else key
        if message.method == b"INFO" and content.trickled is not None and key is not None:
            for shown in self._of(key, clients):
                shown.trickle(content.trickled)
        elif message.method in OFFERERS and content.session is not None:
            self._offers[branch] = _Offer(place, clients, content.session)
            for shown in self._of(place, clients):
                shown.offered = content.session
        self._settle(place)

    def acknowledged(self, stray: Stray, flow: Flow) -> None:
        """An ACK goes to a browser: an answer in it is the last word (RFC 3264 §4)."""
        if self._peers is None or not stray.message.body:
            return
        session, key = _content(stray.message).session, self._key(stray.message)
        if session is None or key is None:
            return
        senders = self._senders(stray.leg.flow, stray.message)
        for shown in self._of(key, self._receivers(flow, stray.branch, stray.message) - senders):
            shown.accept(session)
        self._settle(key)

    def response_shown(self, branch: Branch, response: Message, began: Key | None) -> None:
        """A response goes back: what it shows to a browser, and what it makes of the offer in its request.

        `began` is the key of the dialog that its To tag stands for, where the request had none.
        """
        request, arrival = branch.context.message, branch.context.arrival
        if self._peers is None or request.method not in OFFERERS:
            return
        key = began or self._key(request)
        if key is None:
            return
        if 200 <= response.status < 300:
            self._accepted(branch, key)
        session = _content(response).session if response.status < 300 else None
        clients = self._senders(arrival.flow, request)
        if branch.flow is not None:
            clients -= self._receivers(branch.flow, branch, request)
        for shown in self._of(key, clients, makes=session is not None):
            # The answer may have come in a reliable 1xx, the 2xx is then without (RFC 3262 §5).
            newest = session or shown.offered
            if response.status < 200:
                shown.offered = newest
            elif response.status < 300 and newest is not None:
                shown.accept(newest)
            else:
                shown.offered = None
        self._settle(key)

    def branch_ended(self, branch: Branch) -> None:
        """This branch ended; what it offered without success is over."""
        offer = self._offers.pop(branch, None)
        if offer is None:
            return
        for client in offer.clients:
            shown = self._shown.get(offer.place, {}).get(client)
            if shown is not None and shown.offered is offer.session:
                shown.offered = None
        self._settle(offer.place)
        if offer.place is branch:
            self._forget(branch)

    def _accepted(self, branch: Branch, key: Key) -> None:
        """A 2xx of this branch: what its request offered holds in that dialog."""
        offer = self._offers.get(branch)
        if offer is None:
            self._accepted_again(branch, key)
            return
        for shown in self._of(key, offer.clients):
            # What an UPDATE brought before the 2xx is newer than the INVITE (RFC 3311 §5.1).
            if offer.place is not branch or shown.accepted is None:
                shown.accept(offer.session)
        self._settle(key)

    def _accepted_again(self, branch: Branch, key: Key) -> None:
        """A further 2xx of a branch that is over: another fork behind its flow took the offer (RFC 3261 §13.2.2.4).

        A 2xx that comes again finds its dialog known, and changes nothing.
        """
        request = branch.context.message
        if branch.flow is None or request.to_tag or request.method != b"INVITE":
            return
        clients = self._receivers(branch.flow, branch, request) - self._senders(branch.context.arrival.flow, request)
        known = self._shown.get(key, {})
        if clients <= known.keys():
            return
        session = _content(request).session
        if session is not None:
            for shown in self._of(key, clients - known.keys()):
                shown.accept(session)

    def _forget(self, place: Key | Branch) -> None:
        """The call is over, and so is all that it allowed."""
        for client, shown in self._shown.pop(place, {}).items():
            if self._peers is not None:
                self._peers.close(client, shown.open)

    def _settle(self, place: Key | Branch) -> None:
        """Tell TURN what changed."""
        if self._peers is None:
            return
        for client, shown in self._shown.get(place, {}).items():
            wanted = shown.addresses()
            if wanted != shown.open:
                opened = self._peers.open(client, wanted - shown.open)
                self._peers.close(client, shown.open - wanted)
                shown.open = (shown.open & wanted) | opened

    def _of(self, place: Key | Branch, clients: Clients, *, makes: bool = True) -> Iterator[_Shown]:
        """What these clients were shown there; `makes` says whether to begin where it is nothing yet."""
        if not clients:
            return
        found = self._shown.get(place)
        if found is None:
            if not makes:
                return
            found = self._shown[place] = {}
        for client in clients:
            if client in found:
                yield found[client]
            elif makes:
                shown = found[client] = _Shown()
                yield shown

    # Who is who

    def _key(self, message: Message) -> Key | None:
        """The key of the call that a request belongs to."""
        if not message.to_tag:
            return None
        found = self._dialogs.find(message.call_id, message.from_tag, message.to_tag)
        return found.dialog.key if found is not None and found.dialog.method == b"INVITE" else None

    def _senders(self, flow: Flow | None, request: Message) -> Clients:
        if flow is None:
            return frozenset()
        return self._clients(flow, _contact_account(request), request.from_)

    def _receivers(self, flow: Flow, branch: Branch, request: Message) -> Clients:
        return self._clients(flow, _account(branch.uri or request.uri), request.to)

    def _clients(self, flow: Flow, account: bytes, name: NameAddr) -> Clients:
        """The registrations of a flow that this party is: those with its Contact, else with its AOR, else all.

        Many parties share a flow where another edge stands in front (rule W2).
        """
        registered = self._directory.registrations_of(flow.id)
        if len(registered) > 1:
            aor = _account(name.uri)
            registered = (
                [one for one in registered if _account(one.contact) == account]
                or [one for one in registered if one.aor == aor]
                or registered
            )
        return _ids(registered)


def _ids(registrations: Iterable[Registration]) -> Clients:
    return frozenset(sorted(registration.id for registration in registrations)[:CLIENTS_PER_SIDE_MAX])


def _account(uri: bytes) -> bytes:
    """User and host of a URI, empty where it cannot be read: what a Contact keeps while its parameters change."""
    try:
        return parse_uri(uri).address_of_record
    except ProtocolError:
        return b""


def _contact_account(request: Message) -> bytes:
    try:
        contacts = request.values(b"contact")
        return _account(parse_name_addr(contacts[0]).uri) if contacts else b""
    except ProtocolError:
        return b""


def _content(message: Message) -> Content:
    """The descriptions in a message; an encoded body is not read."""
    if not message.body or message.header(b"content-encoding") is not None:
        return NOTHING
    return read_body(message.header(b"content-type") or b"", message.body)
