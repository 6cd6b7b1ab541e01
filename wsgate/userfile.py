"""The user file on disk, for `wsgate user add|del|list`: read, edit and replace as a whole, mode 0600."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator

from wsgate.credentials import CredentialsError, hashes_of, parse_users, prepared, with_user, without_user


def add_user(path: str, user: str, realm: str, password: str) -> bool:
    """Write both hashes of `user`, prepared; the file is made when missing. True when new, False when replaced.

    Raises CredentialsError (a name or the file is wrong) and OSError.
    """
    user, password = prepared(user, password)
    hashes = hashes_of(user, realm, password)
    known = False

    def edit(text: str) -> str:
        nonlocal known
        known = (user, realm) in parse_users(text)
        return with_user(text, user, realm, hashes)

    _rewrite(path, edit)
    return not known


def delete_user(path: str, user: str, realm: str) -> None:
    """Take `user` out. Raises CredentialsError when there is no such user, and OSError."""

    def edit(text: str) -> str:
        try:
            return without_user(text, prepared(user, "")[0], realm)
        except CredentialsError:
            return without_user(text, user, realm)  # a line that was written by hand may hold the name as given

    _rewrite(path, edit)


def list_users(path: str) -> list[tuple[str, str, bool]]:
    """(user, realm, whether SHA-256 is stored), sorted. Raises CredentialsError and OSError."""
    users = parse_users(_read(path))
    return sorted((user, realm, bool(hashes.sha256)) for (user, realm), hashes in users.items())


def _read(path: str) -> str:
    with open(path, encoding="utf-8", newline="\n") as file:
        try:
            return file.read()
        except UnicodeDecodeError as error:
            raise CredentialsError(f"{path} is not UTF-8: {error.reason}") from None


def _rewrite(path: str, edit: Callable[[str], str]) -> None:
    # A link stays a link: what it points at is replaced.
    path = os.path.realpath(path)
    directory = os.path.dirname(path)
    with _locked(directory):
        try:
            text = _read(path)
            owner = os.stat(path)
        except FileNotFoundError:
            text, owner = "", None
        new = edit(text)
        handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=directory)
        try:
            with open(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(new)
                os.fchmod(file.fileno(), 0o600)
                if owner is not None and os.geteuid() == 0:
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """One writer at a time; the lock is on the directory, because the file itself is replaced."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
