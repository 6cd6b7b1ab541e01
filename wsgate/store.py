"""The embedded registrar's bindings in an SQLite file, so that they survive a restart (`[registrar] store`).

The registrar works in memory; what it changed is written behind it, AOR by AOR, in one transaction for all that came
together, by a thread of its own: the loop never waits for the disk. An AOR's bindings are in the file whole or not.
The file is held by one process at a time. One that is torn or of somebody else is left untouched.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gevent
from gevent.threadpool import ThreadPool

from wsgate.addr import Address, Hop, Transport
from wsgate.bindings import MAX_BINDINGS, Binding
from wsgate.directory import Directory
from wsgate.errors import WsgateError
from wsgate.handover import SQLITE_MAGIC, STORE_ID
from wsgate.log import logger
from wsgate.metrics import Counters
from wsgate.net.clock import now

VERSION = 1
"""Of the table; a file with another one is of another wsgate."""

GATHER_SECONDS = 0.1
"""How long changes are gathered for one transaction."""

RETRY_SECONDS = 5.0
"""After a write that failed."""

AORS_PER_WRITE = 1000
"""The most that one transaction takes."""

BUSY_SECONDS = 5.0
"""How long another process may hold the file at the start: the one before us, that is about to end."""

_TABLE = """
CREATE TABLE binding (
    aor BLOB NOT NULL, contact BLOB NOT NULL, parameters BLOB NOT NULL, display BLOB NOT NULL, q REAL NOT NULL,
    instance BLOB NOT NULL, reg_id INTEGER NOT NULL, path TEXT NOT NULL, flow BLOB NOT NULL, source TEXT NOT NULL,
    call_id BLOB NOT NULL, cseq INTEGER NOT NULL, expires_at REAL NOT NULL, registered_at REAL NOT NULL
)
"""
_COLUMNS = "aor, contact, parameters, display, q, instance, reg_id, path, flow, source, call_id, cseq, expires_at, "
_COLUMNS += "registered_at"
_INSERT = f"INSERT INTO binding ({_COLUMNS}) VALUES ({', '.join('?' * 14)})"

Change = tuple[bytes, tuple[Binding, ...]]
"""An AOR with all bindings that it has now."""


class StoreError(WsgateError):
    """The file cannot be used; the text says why."""


class BindingStore:
    """One SQLite file. Its methods block; `wall_offset` is wall time minus the clock of the bindings."""

    def __init__(self, path: Path, wall_offset: float) -> None:
        """Open or make the file. Raises StoreError."""
        self._wall_offset = wall_offset
        _check_head(path)
        try:
            self._connection = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise StoreError(str(error)) from None
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._connection.close()
            raise StoreError(str(error)) from None
        except StoreError:
            self._connection.close()
            raise

    def load(self, at: float) -> list[Binding]:
        """The bindings that last beyond `at`, the oldest of an AOR first. Raises StoreError."""
        query = f"SELECT {_COLUMNS} FROM binding WHERE expires_at > ? ORDER BY aor, rowid LIMIT {MAX_BINDINGS}"
        try:
            rows = self._connection.execute(query, (at + self._wall_offset,))
            return [_binding(row, self._wall_offset) for row in rows]
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise StoreError(f"it is torn: {error}") from None

    def write(self, changes: Sequence[Change]) -> None:
        """Put the bindings of these AORs in place of what the file says, all or none. Raises StoreError."""
        connection = self._connection
        try:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("DELETE FROM binding WHERE aor = ?", [(aor,) for aor, _ in changes])
                rows = (_row(binding, self._wall_offset) for _, bindings in changes for binding in bindings)
                connection.executemany(_INSERT, rows)
        except sqlite3.Error as error:
            raise StoreError(str(error)) from None

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def _prepare(self) -> None:
        run = self._connection.execute
        # One process alone, and no file besides the journal, which stays: a worker may have no right to the directory.
        run("PRAGMA locking_mode = EXCLUSIVE")
        empty = run("PRAGMA schema_version").fetchone()[0] == 0
        application, version = run("PRAGMA application_id").fetchone()[0], run("PRAGMA user_version").fetchone()[0]
        if not empty and (application, version) != (STORE_ID, VERSION):
            raise StoreError("it is a database of something else, or of another version of wsgate")
        problem = run("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise StoreError(f"it is torn: {problem}")
        run("PRAGMA journal_mode = TRUNCATE")
        run("BEGIN EXCLUSIVE")
        if empty:
            run(f"PRAGMA application_id = {STORE_ID}")
            run(f"PRAGMA user_version = {VERSION}")
            run(_TABLE)
            run("CREATE INDEX binding_aor ON binding (aor)")
        run("COMMIT")


class StoreWriter:
    """Writes behind the directory what changes in it."""

    def __init__(self, store: BindingStore, directory: Directory, counters: Counters) -> None:
        """From now on the directory notes what changes."""
        self._store = store
        self._directory = directory
        self._counters = counters
        self._pool = ThreadPool(1)
        self._greenlet: gevent.Greenlet | None = None
        self._failing = False
        directory.changed_bindings = set()

    def start(self) -> None:
        """Begin to write."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Write what is left and close the file."""
        if self._greenlet is not None:
            self._greenlet.kill()
        while self._directory.changed_bindings and self._write():
            pass
        self._pool.kill()
        self._store.close()

    def _run(self) -> None:
        while True:
            gevent.sleep(GATHER_SECONDS)
            if self._directory.changed_bindings and not self._write():
                gevent.sleep(RETRY_SECONDS)

    def _write(self) -> bool:
        """One transaction; False when it failed, and then its AORs are changed still."""
        changed = self._directory.changed_bindings or set()
        aors = [changed.pop() for _ in range(min(len(changed), AORS_PER_WRITE))]
        changes = [(aor, self._directory.bindings(aor)) for aor in aors]
        try:
            self._pool.apply(self._store.write, (changes,))
        except StoreError as error:
            changed.update(aors)
            self._counters.count("registrar_store_failed")
            if not self._failing:
                logger.error("[registrar] store: cannot write, trying again every %g s: %s", RETRY_SECONDS, error)
            self._failing = True
            return False
        except gevent.GreenletExit:
            changed.update(aors)
            raise
        if self._failing:
            logger.warning("[registrar] store: writing again")
        self._failing = False
        self._counters.count("registrar_store_written", len(aors))
        return True


def open_store(
    path: Path, name: str, directory: Directory, wall_offset: float, counters: Counters
) -> StoreWriter | None:
    """Take up the bindings in the file `name` at `path`. Where it cannot be used: one line in the log, and None."""
    try:
        store = BindingStore(path, wall_offset)
        try:
            bindings = store.load(now())
        except StoreError:
            store.close()
            raise
    except StoreError as error:
        logger.error("[registrar] store: %s is not used, bindings are kept in memory: %s", name, error)
        return None
    directory.restore_bindings(bindings, now())
    logger.info("[registrar] store: %d bindings taken up from %s", len(bindings), name)
    return StoreWriter(store, directory, counters)


def _check_head(path: Path) -> None:
    """SQLite takes a file of a few bytes for an empty one and would write over it. Raises StoreError."""
    try:
        if not path.exists():
            return
        if not path.is_file():
            raise StoreError("it is no file")
        with path.open("rb") as file:
            head = file.read(len(SQLITE_MAGIC))
    except OSError as error:
        raise StoreError(error.strerror or str(error)) from None
    if head and head != SQLITE_MAGIC:
        raise StoreError("it is no database")


def _row(binding: Binding, wall_offset: float) -> tuple[object, ...]:
    source = binding.source
    place = [] if source is None else [source.transport.value, *source.address]
    return (
        binding.aor,
        binding.contact,
        binding.parameters,
        binding.display,
        binding.q,
        binding.instance,
        binding.reg_id,
        json.dumps([value.decode("latin-1") for value in binding.path]),
        binding.flow,
        json.dumps(place),
        binding.call_id,
        binding.cseq,
        binding.expires_at + wall_offset,
        binding.registered_at + wall_offset,
    )


def _binding(row: tuple[Any, ...], wall_offset: float) -> Binding:
    """Raises ValueError or TypeError where the row is not what `_row` writes."""
    aor, contact, parameters, display, q, instance, reg_id, path, flow, source, call_id, cseq, expires, registered = row
    _check(bytes, aor, contact, parameters, display, instance, flow, call_id)
    _check(int, reg_id, cseq)
    _check(float, q, expires, registered)
    values, place = json.loads(path), json.loads(source)
    _check(str, *values)
    hop = None
    if place:
        transport, host, port = place
        hop = Hop(Transport(transport), Address(str(host), int(port)))
    return Binding(
        aor=aor,
        contact=contact,
        parameters=parameters,
        instance=instance,
        reg_id=reg_id,
        path=tuple(value.encode("latin-1") for value in values),
        flow=flow,
        source=hop,
        call_id=call_id,
        cseq=cseq,
        expires_at=expires - wall_offset,
        registered_at=registered - wall_offset,
        display=display,
        q=q,
    )


def _check(kind: type, *values: object) -> None:
    if not all(isinstance(value, kind) for value in values):
        raise ValueError(f"a column holds no {kind.__name__}")
