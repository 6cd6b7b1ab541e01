"""Database files for the worker's user: made, given, and nothing of somebody else's is."""

from __future__ import annotations

import os
import pwd
import sqlite3
import stat
from pathlib import Path

import pytest

from wsgate import databases
from wsgate.daemon import Account
from wsgate.errors import StartError
from wsgate.handover import FileReference
from wsgate.plan import Plan
from wsgate.store import BindingStore

NOBODY = pwd.getpwnam("nobody")


def plan(directory: Path, name: str = "bindings.sqlite") -> Plan:
    reference = FileReference("registrar", "store", name)
    return Plan(
        path=str(directory / "wsgate.ini"),
        user=None,
        group=None,
        pidfile="",
        log_level="info",
        log_target="stderr",
        drain_timeout=0.0,
        endpoints=(),
        places=(),
        files=(),
        states=(),
        databases=(reference,),
        notices=(),
    )


def account() -> Account | None:
    """Whom a daemon started by root would become; files are given away by root alone."""
    return Account("nobody", NOBODY.pw_uid, NOBODY.pw_gid) if os.geteuid() == 0 else None


def owner(path: Path) -> int:
    return path.stat().st_uid


def test_the_file_and_its_journal_are_made_for_the_worker(tmp_path: Path):
    databases.give(plan(tmp_path), account())
    for name in ("bindings.sqlite", "bindings.sqlite-journal"):
        made = (tmp_path / name).stat()
        assert made.st_size == 0
        assert stat.S_IMODE(made.st_mode) == 0o600
        assert made.st_uid == (NOBODY.pw_uid if os.geteuid() == 0 else os.geteuid())
    databases.give(plan(tmp_path), account())


def test_a_store_of_another_user_is_given_to_the_one_of_now(tmp_path: Path):
    path = tmp_path / "bindings.sqlite"
    BindingStore(path, 0.0).close()
    data = path.read_bytes()
    databases.give(plan(tmp_path), account())
    assert owner(path) == (NOBODY.pw_uid if os.geteuid() == 0 else os.geteuid())
    assert path.read_bytes() == data


def test_what_is_of_somebody_else_is_given_to_nobody(tmp_path: Path):
    """A wrong name in the ini file, another program's database, a second name of a file of root's."""
    (tmp_path / "users").write_text("alice:realm:hash\n")
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE t (x)")
    other.close()
    (tmp_path / "secret").write_text("")
    os.link(tmp_path / "secret", tmp_path / "linked")
    for name in ("users", "other", "linked"):
        databases.give(plan(tmp_path, name), account())
        assert owner(tmp_path / name) == os.geteuid()
        assert not (tmp_path / f"{name}-journal").exists()


def test_a_link_and_a_missing_directory_are_errors_that_name_the_option(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("link", "missing/bindings"):
        with pytest.raises(StartError, match=rf"wsgate.ini \[registrar\] store: cannot open .*{name}"):
            databases.give(plan(tmp_path, name), account())
    assert not (tmp_path / "target").exists()
