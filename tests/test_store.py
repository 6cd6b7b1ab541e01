"""The SQLite store: what is written comes back, what is torn or foreign is refused and left alone, failures heal."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from wsgate import store as store_module
from wsgate.addr import Address, Hop, Transport
from wsgate.bindings import Binding
from wsgate.directory import Directory
from wsgate.metrics import Counters
from wsgate.net.clock import now
from wsgate.store import BindingStore, StoreError, StoreWriter, open_store

ALICE, BOB = b"alice@example.com", b"b\xc3\xb6b@example.com"
OFFSET = 1.7e9
PHONE = Hop(Transport.UDP, Address("2001:db8::7", 5062))


def binding(aor: bytes = ALICE, **fields: object) -> Binding:
    values: dict[str, object] = {
        "contact": b"sip:k3@d4.invalid;transport=ws",
        "parameters": b';+sip.instance="<urn:uuid:1>";reg-id=1',
        "instance": b"<urn:uuid:1>",
        "reg_id": 1,
        "path": (b"<sip:a,b@x;lr>", b"<sip:\xff@y;lr>"),
        "flow": b"\0\xfflow1234",
        "source": None,
        "call_id": b"call'\"; DROP TABLE binding",
        "cseq": 2**31 - 1,
        "expires_at": 700.0,
        "registered_at": 100.0,
        "display": b'"Al \\" ice"',
        "q": 0.5,
    }
    return Binding(aor, **(values | fields))  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bindings.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[BindingStore]:
    one = BindingStore(path, OFFSET)
    yield one
    one.close()


def reopened(path: Path, at: float = 100.0, offset: float = OFFSET) -> list[Binding]:
    one = BindingStore(path, offset)
    try:
        return one.load(at)
    finally:
        one.close()


def test_what_was_written_comes_back_to_the_byte(path: Path, store: BindingStore):
    phone = binding(BOB, flow=b"", source=PHONE, instance=b"", reg_id=0, path=())
    second = binding(contact=b"sip:second@x", reg_id=2)
    store.write([(ALICE, (binding(), second)), (BOB, (phone,))])
    store.close()
    assert reopened(path) == [binding(), second, phone]


def test_times_follow_the_wall_clock(path: Path, store: BindingStore):
    """The clock of the next process begins elsewhere."""
    store.write([(ALICE, (binding(),))])
    store.close()
    [found] = reopened(path, at=5.0, offset=OFFSET + 500.0)
    assert (found.expires_at, found.registered_at) == (200.0, -400.0)


def test_what_is_over_is_not_taken_up(path: Path, store: BindingStore):
    store.write([(ALICE, (binding(), binding(contact=b"sip:other@x", expires_at=800.0)))])
    store.close()
    assert [one.contact for one in reopened(path, at=700.0)] == [b"sip:other@x"]


def test_an_aor_is_replaced_whole_and_others_stay(path: Path, store: BindingStore):
    store.write([(ALICE, (binding(),)), (BOB, (binding(BOB),))])
    store.write([(ALICE, (binding(contact=b"sip:new@x"),)), (b"unknown@x", ())])
    store.close()
    assert [(one.aor, one.contact[:7]) for one in reopened(path)] == [(ALICE, b"sip:new"), (BOB, b"sip:k3@")]
    one = BindingStore(path, OFFSET)
    one.write([(ALICE, ()), (BOB, ())])
    one.close()
    assert reopened(path) == []


def test_a_write_that_fails_changes_nothing(path: Path, store: BindingStore):
    store.write([(ALICE, (binding(),))])
    with pytest.raises(StoreError):
        store.write([(ALICE, ()), (BOB, (binding(BOB, call_id=None),))])
    store.close()
    assert reopened(path) == [binding()]


def database(path: Path, *commands: str) -> None:
    connection = sqlite3.connect(path)
    for command in commands:
        connection.execute(command)
    connection.commit()
    connection.close()


FOREIGN = {
    "a text": lambda path: path.write_text("# users\nalice:example.com:0123456789abcdef\n" * 100),
    "a short text": lambda path: path.write_text("x"),
    "another database": lambda path: database(path, "CREATE TABLE people (name TEXT)"),
    "another version": lambda path: (
        BindingStore(path, OFFSET).close(),
        database(path, "PRAGMA user_version = 2"),
    ),
    "a directory": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("make", list(FOREIGN.values()), ids=list(FOREIGN))
def test_a_foreign_file_is_refused_with_one_line_and_left_alone(
    make, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    make(path)
    before = path.read_bytes() if path.is_file() else None
    directory = Directory()
    caplog.set_level("INFO", "wsgate")
    monkeypatch.setattr(store_module.logger, "propagate", True)
    assert open_store(path, "bindings.sqlite", directory, OFFSET, Counters()) is None
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("[registrar] store: bindings.sqlite is not used, bindings are kept in memory: ")
    assert "\n" not in line
    assert (path.read_bytes() if path.is_file() else None) == before
    assert directory.changed_bindings is None


def test_a_torn_file_is_refused(path: Path, store: BindingStore):
    many = tuple(binding(contact=b"sip:%d@x" % number) for number in range(500))
    store.write([(ALICE, many)])
    store.close()
    data = bytearray(path.read_bytes())
    for place in range(4096, len(data), 4096):
        data[place : place + 64] = b"\xa5" * 64
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"torn|malformed"):
        reopened(path)


def test_a_row_that_wsgate_never_wrote_is_refused(path: Path, store: BindingStore):
    store.write([(ALICE, (binding(),))])
    store.close()
    database(path, "UPDATE binding SET source = '[\"UDP\"]'")
    with pytest.raises(StoreError, match="torn"):
        reopened(path)


def test_one_process_holds_the_file(path: Path, store: BindingStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    with pytest.raises(StoreError, match="locked"):
        BindingStore(path, OFFSET)


# The writer


def test_the_writer_stores_what_changed_and_flushes_at_the_end(path: Path, store: BindingStore):
    directory, counters, at = Directory(), Counters(), now()
    writer = StoreWriter(store, directory, counters)
    writer.start()
    for number in range(2500):
        aor = b"user%d@example.com" % number
        directory.replace_bindings(aor, [binding(aor, expires_at=at + 600)], at)
    directory.replace_bindings(b"user7@example.com", [], at)
    writer.stop()
    assert len(reopened(path, at)) == 2499
    assert counters.values["registrar_store_written"] == 2500
    assert directory.changed_bindings == set()


def test_the_writer_writes_while_it_runs(path: Path, store: BindingStore):
    directory, counters, at = Directory(), Counters(), now()
    writer = StoreWriter(store, directory, counters)
    writer.start()
    directory.replace_bindings(ALICE, [binding(expires_at=at + 600)], at)
    with gevent.Timeout(5):
        while not counters.values["registrar_store_written"]:
            gevent.sleep(0.01)
    assert [one.aor for one in store.load(at)] == [ALICE]
    writer.stop()


def test_what_could_not_be_written_is_written_later(path: Path, store: BindingStore, monkeypatch: pytest.MonkeyPatch):
    """A full disk: counted, one line, nothing is lost while the process lives."""
    directory, counters, at = Directory(), Counters(), now()
    monkeypatch.setattr(store_module, "RETRY_SECONDS", 0.01)
    writer = StoreWriter(store, directory, counters)
    database_full = store._connection.execute("PRAGMA max_page_count = 1").fetchone()[0]
    big = tuple(binding(contact=b"sip:%d@x" % number, expires_at=at + 600) for number in range(200))
    writer.start()
    directory.replace_bindings(ALICE, big, at)
    with gevent.Timeout(5):
        while not counters.values["registrar_store_failed"]:
            gevent.sleep(0.01)
    assert directory.changed_bindings == {ALICE}
    store._connection.execute(f"PRAGMA max_page_count = {database_full + 1000}")
    with gevent.Timeout(5):
        while not counters.values["registrar_store_written"]:
            gevent.sleep(0.01)
    writer.stop()
    assert len(reopened(path, at)) == 200


def test_a_store_that_is_taken_up_fills_the_directory(path: Path, store: BindingStore):
    """Browsers are known and not reachable until they are back, phones are reachable at once."""
    at = now()
    mine = binding(expires_at=at + 600)
    phone = binding(BOB, flow=b"", source=PHONE, expires_at=at + 600)
    store.write([(ALICE, (mine,)), (BOB, (phone,))])
    store.close()
    directory = Directory(60.0)
    writer = open_store(path, "x", directory, OFFSET, Counters())
    assert writer is not None
    assert directory.gone_since(mine.flow) is not None
    assert directory.has_source(PHONE)
    assert [one.flow for one in directory.bindings(ALICE)] == [mine.flow]
    directory.flow_opened(b"new")
    assert directory.heir(mine.flow) is None
    directory.handle_timer(now() + 61)
    assert directory.bindings(ALICE) == ()
    assert len(directory.bindings(BOB)) == 1
    writer.stop()
    assert [one.aor for one in reopened(path, at)] == [BOB]
