"""The catalogue's connections: so many at once as configured, and so long a wait."""

import multiprocessing
import subprocess
import sys
import threading
import time

import pytest

from microsandbox.store.config import DatabaseConfig
from microsandbox.store.database import Database, DatabaseError
from microsandbox.store.sandboxes import SandboxCatalog


@pytest.fixture
def busy(tmp_path):
    """A database whose only connection another thread has, and how to have it given back."""
    database = Database(tmp_path / "msb.db", DatabaseConfig(max_connections=1, connect_timeout_secs=0.2))
    held, release = threading.Event(), threading.Event()

    def hold():
        with database.read():
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)

    def finish():
        release.set()
        thread.join()

    thread.start()
    assert held.wait(10)
    yield database, finish
    finish()


def test_who_finds_no_connection_waits_and_is_told(busy):
    database, finish = busy
    started = time.monotonic()
    with pytest.raises(DatabaseError) as caught, database.write():
        pass
    assert 0.2 <= time.monotonic() - started < 5
    assert "all connections (database.max_connections: 1) were in use for 0.2 s" in str(caught.value)
    finish()
    with database.write(), database.read():
        pass  # a thread that has a connection needs no other


def _refused(database):
    """In a fork, also by another object for the same file."""
    for one in (database, Database(database.path)):
        with pytest.raises(DatabaseError, match="was in use when this process was forked"), one.read():
            pass


def test_a_fork_while_the_catalogue_is_in_use_is_told_instead_of_going_without_locks(busy):
    database, finish = busy
    process = multiprocessing.get_context("fork").Process(target=_refused, args=(database,))
    process.start()
    process.join(10)
    assert process.exitcode == 0
    finish()
    with database.write() as connection:
        connection.execute("CREATE TABLE mine (x)")


FORK_AND_LEAVE = """
import os, sys
from pathlib import Path
from microsandbox.store.database import Database
from microsandbox.store.sandboxes import SandboxCatalog

catalog = SandboxCatalog(Database(Path(sys.argv[1])))
assert catalog.list() == []
if os.fork():
    sys.exit()
if sys.argv[2] == "at once":
    catalog.list()
sys.stdin.readline()
catalog.create("of the fork", "{}", {}, None)
print("created", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("first_use", ["at once", "when the parent has ended"])
def test_what_a_fork_writes_after_its_parent_has_ended_is_seen_by_others(tmp_path, first_use):
    path = tmp_path / "msb.db"
    parent = subprocess.Popen(
        [sys.executable, "-c", FORK_AND_LEAVE, str(path), first_use],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.wait(20) == 0
    with parent.stdin as to_fork, parent.stdout as from_fork:
        to_fork.write("go on\n")
        to_fork.flush()
        assert from_fork.readline() == "created\n"
        assert [row.name for row in SandboxCatalog(Database(path)).list()] == ["of the fork"]


def test_a_failing_operation_gives_its_connection_back(tmp_path):
    database = Database(tmp_path / "msb.db", DatabaseConfig(max_connections=1, connect_timeout_secs=0.2))
    for _ in range(3):
        with pytest.raises(DatabaseError, match="no such table"), database.write() as connection:
            connection.execute("SELECT * FROM nowhere")
    with database.read() as connection:
        assert connection.execute("SELECT 1").fetchone()[0] == 1


def _write_until(path, ready, release):
    with Database(path).write():
        ready.set()
        release.wait(20)


def test_another_process_that_writes_is_waited_for_as_long_as_configured(tmp_path):
    path = tmp_path / "msb.db"
    database = Database(path, DatabaseConfig(busy_timeout_secs=0.3))
    with database.read():
        pass
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_write_until, args=(path, ready, release))
    process.start()
    try:
        assert ready.wait(20)
        started = time.monotonic()
        with pytest.raises(DatabaseError, match="locked"), database.write():
            pass
        assert 0.2 < time.monotonic() - started < 3
    finally:
        release.set()
        process.join(10)
