"""What workers tell each other of their directories, as bounded messages, and what they take from that (T3, D3). Pure.

A message is a JSON array of a word, the number of the sender and what the word needs; bytes stand in it as text of one
character each, times are those of the one monotonic clock of the machine. A worker that begins says `hello`, and each
other one tells it everything, as fast as it reads. A message that is lost costs that it is "not known here", until the
next REGISTER says it again.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from wsgate.addr import Address, Hop, Transport
from wsgate.bindings import Binding
from wsgate.call_peers import CallPeers
from wsgate.directory import Bound, Change, Directory, Gone, Registered
from wsgate.metrics import Counters
from wsgate.registrations import Registration

MAX_MESSAGE_BYTES = 65536
"""A larger one is not sent: what it would say stays unknown to the others."""

MAX_WAITING = 10_000
"""Messages that wait for one worker; beyond it the oldest are dropped."""

Dialogs = Callable[[list[bytes]], list[object]]
"""The dialogs of these flows as JSON values, for the worker to which their client has moved."""


class Sharing:
    """One worker's side. `others` are the numbers of all others.

    `hand_over` gives the dialogs of flows whose client registered at another worker, `take_dialog` takes one from
    there (raises ValueError where it cannot be read). `lost` is told the flows of a worker that began anew.
    """

    def __init__(
        self,
        number: int,
        others: Iterable[int],
        directory: Directory,
        counters: Counters,
        *,
        hand_over: Dialogs,
        take_dialog: Callable[[Any, float], None],
        end_dialog: Callable[[Any], None],
        lost: Callable[[set[bytes], float], None],
        call_peers: CallPeers | None = None,
    ) -> None:
        self._call_peers = call_peers
        if call_peers is not None:
            call_peers.told = {}
        self._number = number
        self._directory = directory
        self._counters = counters
        self._hand_over = hand_over
        self._take_dialog = take_dialog
        self._end_dialog = end_dialog
        self._lost = lost
        self._waiting: dict[int, deque[bytes]] = {other: deque() for other in others}
        self._everything: dict[int, Iterator[Change]] = {}
        directory.told = {}

    def hello(self) -> None:
        """This worker begins: the others are to forget its earlier life and tell what they know."""
        self._say(self._waiting, "hello")

    def tell_changes(self, now: float) -> None:
        """Put what changed in the directory into words for all others."""
        told = self._directory.told
        if told:
            self._directory.told = {}
            for change in told:
                self._say(self._waiting, *self._words(change, now))
        if self._call_peers is not None and self._call_peers.told:
            registrations, self._call_peers.told = self._call_peers.told, {}
            self._tell_peers(self._call_peers, self._waiting, registrations)

    def _tell_peers(self, call_peers: CallPeers, workers: Iterable[int], registrations: Iterable[str]) -> None:
        """What calls here allow TURN clients, who may be at another worker (rule P6)."""
        for registration in registrations:
            peers = [list(address) for address in call_peers.opened_here(registration)]
            self._say(workers, "peers", registration, peers)

    def tell_ended(self, dialogs: Iterable[Any]) -> None:
        """These dialogs, which others hold too, are over."""
        for key in dialogs:
            self._say(self._waiting, "dialog_ended", key)

    def take(self, data: bytes, now: float) -> None:
        """One message of another worker; one that cannot be read is counted."""
        try:
            word, sender, *rest = json.loads(data)
            if sender not in self._waiting:
                raise ValueError("no such worker")
            self._hear(word, sender, rest, now)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
            self._counters.count("directory_messages_malformed")
            return
        self._counters.count("directory_messages_received")

    def next_message(self, worker: int, now: float) -> bytes | None:
        """Take the next message for a worker out; None when there is none. What could not be sent is `put_back`."""
        waiting = self._waiting[worker]
        while not waiting:
            change = next(self._everything.get(worker, iter(())), None)
            if change is None:
                self._everything.pop(worker, None)
                return None
            if not self._is_of_another(change, worker):
                self._say((worker,), *self._words(change, now))
        return waiting.popleft()

    def put_back(self, worker: int, data: bytes) -> None:
        """The worker's inbox is full just now."""
        self._waiting[worker].appendleft(data)

    # Words

    def _say(self, workers: Iterable[int], word: str, *rest: object) -> None:
        data = json.dumps([word, self._number, *rest], separators=(",", ":")).encode("ascii")
        if len(data) > MAX_MESSAGE_BYTES:
            self._counters.count("directory_messages_too_large")
            return
        for worker in workers:
            waiting = self._waiting[worker]
            if len(waiting) >= MAX_WAITING:
                waiting.popleft()
                self._counters.count("directory_messages_dropped")
            waiting.append(data)

    def _words(self, change: Change, now: float) -> tuple[Any, ...]:
        directory = self._directory
        if isinstance(change, Gone):
            return "gone", change.flow.hex(), directory.gone_since(change.flow) or now
        if isinstance(change, Registered):
            registration = directory.registration(change.key)
            if registration is None:
                return "taken_back", _texts(change.key), now
            flows = [flow.hex() for flow in directory.flows_of(change.key)]
            at = directory.registered_at(change.key)
            return "registration", self._open_at(registration.flow), _registration(registration), flows, at
        binding = directory.binding(change.key)
        if binding is None:
            return "unbound", _texts(change.key), now
        return "binding", self._open_at(binding.flow), _binding(binding)

    def _open_at(self, flow: bytes) -> int | float | None:
        """The worker that has the flow open, a float: since when it is gone, None: it is no flow."""
        if not flow:
            return None
        if self._directory.is_here(flow):
            return self._number
        worker = self._directory.worker_of(flow)
        return worker if worker is not None else float(self._directory.gone_since(flow) or 0.0)

    def _is_of_another(self, change: Change, asking: int) -> bool:
        """True where a third worker has the flow of this entry open: it tells that itself."""
        found: Registration | Binding | None = None
        if isinstance(change, Registered):
            found = self._directory.registration(change.key)
        elif isinstance(change, Bound):
            found = self._directory.binding(change.key)
        return found is not None and self._directory.worker_of(found.flow) not in (None, asking)

    # Ears

    def _hear(self, word: str, sender: int, rest: list[Any], now: float) -> None:
        directory = self._directory
        if word == "hello":
            self._lost(directory.learn_restart(sender, now), now)
            self._everything[sender] = iter(list(directory.everything()))
            if self._call_peers is not None:
                self._call_peers.learn_restart(sender)
                self._tell_peers(self._call_peers, (sender,), self._call_peers.everybody())
        elif word == "gone":
            directory.learn_gone(bytes.fromhex(rest[0]), min(now, float(rest[1])))
        elif word == "registration":
            place, value, flows, at = rest
            self._hear_registration(place, value, flows, float(at), now)
        elif word == "taken_back":
            aor, client, reg_id = rest[0]
            directory.learn_taken_back((_bytes(aor), _bytes(client), int(reg_id)), float(rest[1]))
        elif word == "binding":
            binding = _read_binding(rest[1])
            self._learn_place(binding.flow, rest[0])
            if directory.learn_binding(binding, now):
                self._learn_gone(binding.flow, rest[0], now)
        elif word == "unbound":
            aor, instance, reg_id, contact = rest[0]
            key = (_bytes(aor), _bytes(instance), int(reg_id), _bytes(contact))
            directory.learn_unbound(key, float(rest[1]), now)
        elif word == "peers":
            if self._call_peers is not None:
                peers = frozenset(Address(str(host), int(port)) for host, port in rest[1])
                self._call_peers.learn(sender, str(rest[0]), peers)
        elif word == "dialog":
            self._take_dialog(rest[0], now)
        elif word == "dialog_ended":
            self._end_dialog(rest[0])
        else:
            raise ValueError(word)

    def _hear_registration(
        self, place: Any, value: dict[str, Any], flow_texts: list[str], at: float, now: float
    ) -> None:
        directory = self._directory
        registration = _read_registration(value)
        flows = [bytes.fromhex(flow) for flow in flow_texts]
        before = directory.flows_of(registration.key)
        self._learn_place(registration.flow, place)
        if not directory.learn_registration(registration, flows, at, now):
            return
        self._learn_gone(registration.flow, place, now)
        worker = directory.worker_of(registration.flow)
        if worker is not None and before[-1:] != [registration.flow]:
            # Rule D3: the client of these dialogs is there now.
            for dialog in self._hand_over(directory.flows_of(registration.key)[:-1]):
                self._say((worker,), "dialog", dialog)

    def _learn_place(self, flow: bytes, place: Any) -> None:
        if flow and isinstance(place, int) and place != self._number:
            self._directory.learn_flow(flow, place)

    def _learn_gone(self, flow: bytes, place: Any, now: float) -> None:
        if flow and isinstance(place, float) and place:
            self._directory.learn_gone(flow, min(now, place))


def _texts(key: tuple[Any, ...]) -> list[Any]:
    return [_text(part) if isinstance(part, bytes) else part for part in key]


def _text(data: bytes) -> str:
    return data.decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


def _registration(registration: Registration) -> dict[str, Any]:
    return {
        "aor": _text(registration.aor),
        "instance": _text(registration.instance),
        "reg_id": registration.reg_id,
        "contact": _text(registration.contact),
        "flow": registration.flow.hex(),
        "expires_at": registration.expires_at,
        "handle": _text(registration.handle),
    }


def _read_registration(value: dict[str, Any]) -> Registration:
    return Registration(
        _bytes(value["aor"]),
        _bytes(value["instance"]),
        int(value["reg_id"]),
        _bytes(value["contact"]),
        bytes.fromhex(value["flow"]),
        float(value["expires_at"]),
        _bytes(value["handle"]),
    )


def _binding(binding: Binding) -> dict[str, Any]:
    source = binding.source
    return {
        "aor": _text(binding.aor),
        "contact": _text(binding.contact),
        "parameters": _text(binding.parameters),
        "instance": _text(binding.instance),
        "reg_id": binding.reg_id,
        "path": [_text(value) for value in binding.path],
        "flow": binding.flow.hex(),
        "source": None if source is None else [source.transport.value, *source.address],
        "call_id": _text(binding.call_id),
        "cseq": binding.cseq,
        "expires_at": binding.expires_at,
        "registered_at": binding.registered_at,
        "display": _text(binding.display),
        "q": binding.q,
    }


def _read_binding(value: dict[str, Any]) -> Binding:
    source = None
    if value["source"] is not None:
        transport, host, port = value["source"]
        source = Hop(Transport(transport), Address(str(host), int(port)))
    return Binding(
        aor=_bytes(value["aor"]),
        contact=_bytes(value["contact"]),
        parameters=_bytes(value["parameters"]),
        instance=_bytes(value["instance"]),
        reg_id=int(value["reg_id"]),
        path=tuple(_bytes(part) for part in value["path"]),
        flow=bytes.fromhex(value["flow"]),
        source=source,
        call_id=_bytes(value["call_id"]),
        cseq=int(value["cseq"]),
        expires_at=float(value["expires_at"]),
        registered_at=float(value["registered_at"]),
        display=_bytes(value["display"]),
        q=float(value["q"]),
    )
