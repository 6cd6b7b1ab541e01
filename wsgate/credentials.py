"""User file lines `user:realm:HA1-MD5[:HA1-SHA256]`: reading, making, editing. Pure, on text (RFC 7616 §3.4.2)."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from wsgate.errors import WsgateError

MAX_NAME_CHARACTERS = 256
"""Length of a user name or a realm."""

_MD5 = re.compile(r"[0-9A-Fa-f]{32}\Z")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}\Z")


class CredentialsError(WsgateError):
    """A line or a name that a user file cannot hold. Never shows a hash or a password."""


class Hashes(NamedTuple):
    """H(user:realm:password) as lower-case hex: MD5, and SHA-256 or empty where the file does not store it."""

    md5: str
    sha256: str = ""


class Users(Mapping[tuple[str, str], Hashes]):
    """(user, realm) to hashes; never changes. A reload makes a new one."""

    __slots__ = ("_hashes", "_sha256_realms")

    def __init__(self, hashes: Mapping[tuple[str, str], Hashes] | None = None) -> None:
        self._hashes = dict(hashes or {})
        self._sha256_realms = frozenset(realm for (_, realm), found in self._hashes.items() if found.sha256)

    def __getitem__(self, key: tuple[str, str]) -> Hashes:
        return self._hashes[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._hashes)

    def __len__(self) -> int:
        return len(self._hashes)

    def stores_sha256(self, realm: str) -> bool:
        """True when at least one user of `realm` can be asked for SHA-256 (G3)."""
        return realm in self._sha256_realms


def parse_users(text: str) -> Users:
    """All users of a file. Raises CredentialsError, which names the line."""
    hashes: dict[tuple[str, str], Hashes] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if is_comment(line):
            continue
        try:
            key, found = parse_line(line)
        except CredentialsError as error:
            raise CredentialsError(f"line {number}: {error}") from None
        if key in hashes:
            raise CredentialsError(f"line {number}: {key[0]} of {key[1]} stands here twice")
        hashes[key] = found
    return Users(hashes)


def is_comment(line: str) -> bool:
    """True for a line that holds nobody: empty, or beginning with # or ;."""
    return not line.strip() or line.lstrip()[0] in "#;"


def parse_line(line: str) -> tuple[tuple[str, str], Hashes]:
    """One user: ((user, realm), hashes). Raises CredentialsError."""
    fields = line.strip().split(":")
    if len(fields) not in (3, 4):
        raise CredentialsError("not user:realm:HA1-MD5[:HA1-SHA256]")
    user, realm, md5, sha256 = (*fields, "")[:4]
    check_name("user name", user)
    check_name("realm", realm)
    if not _MD5.match(md5):
        raise CredentialsError("the third field is not an MD5 hash (32 hexadecimal digits)")
    if sha256 and not _SHA256.match(sha256):
        raise CredentialsError("the fourth field is not a SHA-256 hash (64 hexadecimal digits)")
    return (user, realm), Hashes(md5.lower(), sha256.lower())


def check_name(what: str, name: str) -> None:
    """Raises CredentialsError where `name` cannot stand in a user file as `what` (`user name` or `realm`)."""
    if not name:
        raise CredentialsError(f"the {what} is empty")
    if ":" in name:
        raise CredentialsError(f"the {what} holds a colon")
    if len(name) > MAX_NAME_CHARACTERS:
        raise CredentialsError(f"the {what} is longer than {MAX_NAME_CHARACTERS} characters")
    if name != name.strip() or not name.isprintable():
        raise CredentialsError(f"the {what} begins or ends with a space or holds a control character")
    if what == "user name" and name[0] in "#;":
        raise CredentialsError("the user name begins like a comment")


def hashes_of(user: str, realm: str, password: str) -> Hashes:
    """Both hashes of a password, over UTF-8 (RFC 7616 §3.4.2). Raises CredentialsError."""
    check_name("user name", user)
    check_name("realm", realm)
    if not password:
        raise CredentialsError("the password is empty")
    secret = f"{user}:{realm}:{password}".encode()
    return Hashes(hashlib.md5(secret, usedforsecurity=False).hexdigest(), hashlib.sha256(secret).hexdigest())


def prepared(user: str, password: str) -> tuple[str, str]:
    """A new user's name and password as clients hash them: in NFC (RFC 7616 §4, RFC 8265 §4.2).

    What clients would not agree on is refused: RFC 8265 turns a space that is not ASCII into one that is, RFC 7616 does
    not, and it forbids control characters. Raises CredentialsError.
    """
    for character in password:
        category = unicodedata.category(character)
        if category in ("Cc", "Cs", "Zl", "Zp") or (category == "Zs" and character != " "):
            kind = "a space that is not the ASCII one" if category == "Zs" else "a control character or line end"
            raise CredentialsError(f"the password holds {kind}, which clients do not write alike")
    return unicodedata.normalize("NFC", user), unicodedata.normalize("NFC", password)


def format_line(user: str, realm: str, hashes: Hashes) -> str:
    """The line of one user, without line end."""
    return ":".join((user, realm, *(found for found in hashes if found)))


def with_user(text: str, user: str, realm: str, hashes: Hashes) -> str:
    """The file with this user's line replaced, or added at the end; every other line as it was."""
    new = format_line(user, realm, hashes)
    lines = _lines(text)
    for number, line in enumerate(lines):
        if _holds(line, user, realm):
            lines[number] = new
            break
    else:
        lines.append(new)
    return "\n".join(lines) + "\n"


def without_user(text: str, user: str, realm: str) -> str:
    """The file without this user's line. Raises CredentialsError when there is none."""
    lines = _lines(text)
    kept = [line for line in lines if not _holds(line, user, realm)]
    if len(kept) == len(lines):
        raise CredentialsError(f"no user {user} of realm {realm}")
    return "".join(line + "\n" for line in kept)


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


def _holds(line: str, user: str, realm: str) -> bool:
    return not is_comment(line) and line.strip().split(":")[:2] == [user, realm]
