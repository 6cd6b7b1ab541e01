"""One line in the log for each call at its end, and for what a caller is not told: who, how it ended, how long. Pure.

A call is told of where its caller is known: not by the worker that only has the callee (T3), nor by one that passes the
request on. Challenges (401, 407) are no end: the call comes again. What peers wrote is escaped and cut.
"""

from __future__ import annotations

import logging

from wsgate.errors import ProtocolError
from wsgate.log import LineRate, escaped, logger
from wsgate.metrics import Counters
from wsgate.sip.contexts import Context
from wsgate.sip.decisions import Answer
from wsgate.sip.dialogs import ENDED_ELSEWHERE, Dialog
from wsgate.sip.headers import parse_name_addr, parse_uri
from wsgate.sip.message import Message
from wsgate.sip.tracking import CHALLENGES

RATE_SECONDS = 60.0
ANSWERED_LINES = 600
"""Lines within RATE_SECONDS about calls that were answered: each has cost two parties something."""
FAILED_LINES = 120
"""About calls that were not: a stranger can make as many as [limits] lets pass. So no disk is filled."""
LOST_ACK_LINES = 5
PARTY_BYTES, CALL_ID_BYTES = 80, 64
"""How much of a peer's words one line shows."""


class CallLines:
    """Writes the lines, so many in a minute; what is left out is counted, and the next line says how many."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._answered = LineRate(ANSWERED_LINES, RATE_SECONDS)
        self._failed = LineRate(FAILED_LINES, RATE_SECONDS)
        self._lost_acks = LineRate(LOST_ACK_LINES, RATE_SECONDS)

    def refused(self, message: Message, answer: Answer, now: float) -> None:
        """wsgate answered an INVITE before it went anywhere."""
        if message.method == b"INVITE" and not message.to_tag and answer.status not in CHALLENGES:
            self._tell_failure(message, "", f"{answer.status} by wsgate{_why(answer)}", now)

    def failed(self, context: Context, status: int, by: str, now: float) -> None:
        """The final answer of an INVITE that went somewhere is none of success; `by` says whose it is."""
        message, arrival = context.message, context.arrival
        if message.method != b"INVITE" or message.to_tag or status in CHALLENGES or context.server is None:
            return
        passes_on = all(branch.sibling for branch in context.branches)
        if arrival.flow is None and (arrival.origin is None or passes_on):
            return  # another worker tells
        how = "cancelled by the caller" if context.cancelled and status == 487 else f"{status} by {by}"
        backends = {branch.backend for branch in context.branches}
        self._tell_failure(message, _via(*backends), f"{how} after {now - context.began:.0f} s", now)

    def ended(self, dialog: Dialog, now: float) -> None:
        """A call that was answered is over."""
        caller, callee = dialog.caller, dialog.callee
        if dialog.ended_by == ENDED_ELSEWHERE or (caller.elsewhere and not caller.flow):
            return
        if not logger.isEnabledFor(logging.INFO) or not self._allows(self._answered, now):
            return
        lasted = (
            f"{now - dialog.answered_at:.0f} s"
            if dialog.answered_at is not None
            else "for longer than this worker knows"
        )
        self._tell(
            self._answered,
            dialog.key[0],
            (caller.name, callee.name),
            _via(caller.backend, callee.backend),
            f"answered, {lasted}, ended by {dialog.ended_by or 'dialog_lifetime'}",
        )

    def lost_ack(self, message: Message, answer: Answer, now: float) -> None:
        """An ACK goes nowhere, which its sender is never told (rules I7, D1)."""
        if not self._allows(self._lost_acks, now):
            return
        call_id = escaped(message.call_id, CALL_ID_BYTES)
        left_out = _left_out(self._lost_acks)
        logger.warning("call %s: an ACK is dropped%s; the call will break%s", call_id, _why(answer), left_out)

    def _tell_failure(self, message: Message, via: str, how: str, now: float) -> None:
        if logger.isEnabledFor(logging.INFO) and self._allows(self._failed, now):
            names = (message.header(b"from") or b"", message.header(b"to") or b"")
            self._tell(self._failed, message.call_id, names, via, how)

    def _tell(self, rate: LineRate, call_id: bytes, names: tuple[bytes, bytes], via: str, how: str) -> None:
        caller, callee = map(_party, names)
        shown = escaped(call_id, CALL_ID_BYTES)
        logger.info("call %s from %s to %s%s: %s%s", shown, caller, callee, via, how, _left_out(rate))

    def _allows(self, rate: LineRate, now: float) -> bool:
        if rate.allows(now):
            return True
        self._counters.count("log_lines_left_out")
        return False


def _party(name: bytes) -> str:
    """`user@host` of a From or To."""
    try:
        return escaped(parse_uri(parse_name_addr(name).uri).address_of_record, PARTY_BYTES)
    except ProtocolError:
        return escaped(name, PARTY_BYTES)


def _via(*backends: str) -> str:
    named = sorted({backend for backend in backends if backend})
    return f" through backend {', '.join(named)}" if named else ""


def _why(answer: Answer) -> str:
    """What its Warning says (wsgate's own text)."""
    for name, value in answer.headers:
        if name == b"Warning":
            text = value.partition(b'"')[2].rstrip(b'"')
            return f" ({escaped(text)})"
    return ""


def _left_out(rate: LineRate) -> str:
    number = rate.take_left_out()
    return f" ({number} lines like this were left out before)" if number else ""
