"""STUN keep-alives on the SIP port over UDP (RFC 5626 §4.4.2, §8).

A phone that was granted outbound asks whether its flow still is the same. Only Binding requests are answered: TURN
has ports of its own.
"""

from __future__ import annotations

from typing import Any

from wsgate.addr import Address
from wsgate.errors import ProtocolError
from wsgate.turn import stun
from wsgate.turn.stun import Attribute, MessageClass, Method
from wsgate.turn.values import ErrorCode


def is_stun(data: bytes) -> bool:
    """True for what cannot be SIP: its first byte is none of text (RFC 7983 §7)."""
    return bool(data) and data[0] < 4


def binding_answer(data: bytes, source: Address) -> bytes | None:
    """The answer to a Binding request from `source`: where it comes from (RFC 8489 §6.3.1). None to anything else."""
    try:
        message = stun.parse(data)
    except ProtocolError:
        return None
    if message.method != Method.BINDING or message.message_class is not MessageClass.REQUEST:
        return None
    kind = MessageClass.SUCCESS
    fields: list[tuple[Attribute[Any], Any]] = [stun.XOR_MAPPED_ADDRESS(source)]
    if message.unknown:
        kind = MessageClass.ERROR
        error = stun.ERROR_CODE(ErrorCode(420, "Unknown Attribute"))
        fields = [error, stun.UNKNOWN_ATTRIBUTES(tuple(message.unknown))]
    return stun.encode(Method.BINDING, kind, message.transaction_id, fields, fingerprint=message.fingerprint)
