"""The key file: the secrets behind flow tokens, nonces and cookies, as lines `id:hex`, the current one first.

Two keys are live at a time (rule T1), so that a new one can come in front while what the old one signed is honoured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

KEY_BYTES = 32
"""Length of a new key; a shorter one is refused."""

LIVE_KEYS = 2
"""How many keys a new file holds."""

MAX_KEYS = 16
"""More lines than this are refused."""


class Key(NamedTuple):
    """One secret and the number (0 to 255) by which a token names it."""

    id: int
    secret: bytes

    def __repr__(self) -> str:
        return f"Key(id={self.id})"


def make(random_bytes: Callable[[int], bytes]) -> str:
    """The text of a new key file."""
    lines = [f"{number}:{random_bytes(KEY_BYTES).hex()}" for number in range(1, LIVE_KEYS + 1)]
    return "# wsgate keys, the current one first; keep this file secret\n" + "\n".join(lines) + "\n"


def parse(text: str) -> tuple[Key, ...]:
    """The keys in the text of a key file, the current one first. Raises ValueError without quoting a secret."""
    keys: list[Key] = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        identifier, _, secret_text = line.partition(":")
        try:
            key = Key(int(identifier), bytes.fromhex(secret_text))
        except ValueError:
            raise ValueError(f"line {number} is not id:hex") from None
        if not 0 <= key.id <= 255 or len(key.secret) < KEY_BYTES:
            raise ValueError(f"line {number} needs an id from 0 to 255 and a key of {KEY_BYTES} bytes or more")
        if any(key.id == other.id for other in keys):
            raise ValueError(f"line {number} uses the id {key.id} again")
        keys.append(key)
    if not 1 <= len(keys) <= MAX_KEYS:
        raise ValueError(f"it holds {len(keys)} keys; allowed are 1 to {MAX_KEYS}")
    return tuple(keys)
