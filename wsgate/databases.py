"""Database files that a worker writes: made by the supervisor and given to the worker's user.

SQLite opens its file by name and keeps a journal beside it, so an open descriptor would not do; the worker needs no
right to the directory but to go through it. A file that is not of wsgate is given to nobody.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from wsgate.daemon import Account
from wsgate.errors import StartError
from wsgate.handover import SQLITE_MAGIC, STORE_ID
from wsgate.plan import Plan

JOURNAL = "-journal"
"""What SQLite calls the journal beside a database."""

_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_ID_PLACE = slice(68, 72)
"""Where the application id stands in the header (SQLite file format §1.3)."""


def give(plan: Plan, account: Account | None) -> None:
    """Make each database of the plan and its journal where they are missing, for `account`. Raises StartError."""
    for reference in plan.databases:
        path = plan.directory / reference.name
        try:
            if _give(path, account, _is_store):
                _give(path.with_name(path.name + JOURNAL), account, _is_journal)
        except OSError as error:
            place = f"{plan.path} [{reference.section}] {reference.option}"
            raise StartError(f"{place}: cannot open {path}: {error.strerror}") from None


def _give(path: Path, account: Account | None, is_ours: Callable[[bytes], bool]) -> bool:
    """True when the file is there for the worker to use. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        found = os.fstat(descriptor)
        # A link would let who may write here have any file of root's.
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return False
        if found.st_size and not is_ours(os.pread(descriptor, 100, 0)):
            return False
        if account is not None and (found.st_uid, found.st_gid) != (account.uid, account.gid):
            os.fchown(descriptor, account.uid, account.gid)
        return True
    finally:
        os.close(descriptor)


def _is_store(head: bytes) -> bool:
    return head.startswith(SQLITE_MAGIC) and head[_ID_PLACE] == STORE_ID.to_bytes(4, "big")


def _is_journal(head: bytes) -> bool:
    return head.startswith(_JOURNAL_MAGIC)
