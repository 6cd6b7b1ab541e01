"""Globally routable user agent URIs: what the embedded registrar hands out, and reads back (RFC 5627 §3, §5). Pure.

A public GRUU is the AOR with the instance beside it. A temporary one hides both: its user part is a nonce, the AOR and
a fingerprint of instance and Call-ID under a key stream, and a MAC. So nothing is stored for either, each answer can
give a new one, and what a restart finds in the store makes the old ones work again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import quote

from wsgate.addr import uri_host
from wsgate.keys import Key

GRUU_VERSION = 3
"""The first byte of a temporary GRUU; flow tokens and handles have other ones."""

_NONCE_BYTES = 8
_FINGERPRINT_BYTES = 8
_MAC_BYTES = 16
_HEAD_BYTES = 2 + _NONCE_BYTES

_USER_SAFE = "-_.!~*'()&=+$,;?/"
"""What a user part holds unescaped (RFC 3261 §25.1)."""
_PARAMETER_SAFE = "-_.!~*'()[]/:&+$"
"""What a URI parameter holds unescaped."""


class TemporaryGruu(NamedTuple):
    """A temporary GRUU that was read: whose it is, and the fingerprint that a binding must have to be meant."""

    aor: bytes
    fingerprint: bytes


def public_gruu(aor: bytes, instance: bytes) -> bytes:
    """`sip:user@domain;gr=INSTANCE`; `instance` as in +sip.instance, its angle brackets left out (RFC 5627 §3.1)."""
    user, _, host = aor.rpartition(b"@")
    return b"sip:%b@%b;gr=%b" % (
        quote(user, _USER_SAFE).encode(),
        uri_host(host.decode()).encode(),
        quote(bare(instance), _PARAMETER_SAFE).encode(),
    )


def bare(instance: bytes) -> bytes:
    """An instance without angle brackets, as it stands in `gr`."""
    return instance[1:-1] if instance[:1] == b"<" and instance[-1:] == b">" else instance


def is_named(instance: bytes, gr: bytes) -> bool:
    """True when `gr`, its escapes resolved, names this instance: like all of a URI in any case (RFC 3261 §19.1.4)."""
    return bool(gr) and bare(instance).lower() == gr.lower()


def fingerprint(instance: bytes, call_id: bytes) -> bytes:
    """What a temporary GRUU remembers of a registration: another Call-ID makes the old ones void (RFC 5627 §5.1)."""
    return hashlib.blake2b(b"%d:%b%b" % (len(instance), instance, call_id), digest_size=_FINGERPRINT_BYTES).digest()


class TemporaryGruus:
    """Makes and reads temporary GRUUs with the live keys, the current one first."""

    def __init__(self, keys: Sequence[Key], random_bytes: Callable[[int], bytes]) -> None:
        self._keys = {key.id: hmac.digest(key.secret, b"temporary gruu", "sha256") for key in keys}
        self._current = keys[0].id
        self._random_bytes = random_bytes

    def make(self, aor: bytes, instance: bytes, call_id: bytes) -> bytes:
        """A new `sip:OPAQUE@domain;gr` for a registration (RFC 5627 §3.1.2)."""
        secret = self._keys[self._current]
        head = bytes((GRUU_VERSION, self._current)) + self._random_bytes(_NONCE_BYTES)
        signed = head + _masked(secret, head, fingerprint(instance, call_id) + aor)
        user = base64.urlsafe_b64encode(signed + _mac(secret, signed)).rstrip(b"=")
        return b"sip:%b@%b;gr" % (user, uri_host(aor.rpartition(b"@")[2].decode()).encode())

    def read(self, user: bytes) -> TemporaryGruu | None:
        """What the user part of a URI with `gr` says; None when no key of ours made it."""
        try:
            raw = base64.b64decode(user + b"=" * (-len(user) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        if len(raw) < _HEAD_BYTES + _FINGERPRINT_BYTES + _MAC_BYTES or raw[0] != GRUU_VERSION:
            return None
        secret = self._keys.get(raw[1])
        signed, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if secret is None or not hmac.compare_digest(_mac(secret, signed), mac):
            return None
        if base64.urlsafe_b64encode(raw).rstrip(b"=") != user:
            return None
        plain = _masked(secret, signed[:_HEAD_BYTES], signed[_HEAD_BYTES:])
        return TemporaryGruu(plain[_FINGERPRINT_BYTES:], plain[:_FINGERPRINT_BYTES])


def _masked(secret: bytes, head: bytes, data: bytes) -> bytes:
    """`data` under the key stream of this head; the same again takes it off."""
    stream = hashlib.shake_256(secret + head).digest(len(data))
    return (int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(data), "big")


def _mac(secret: bytes, signed: bytes) -> bytes:
    return hmac.digest(secret, signed, "sha256")[:_MAC_BYTES]
