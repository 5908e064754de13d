"""Reading labels beside those who use the catalogue, without a trace."""

import subprocess
import sys
import time

import pytest

from microsandbox.store.database import Database, DatabaseError
from microsandbox.store.labels import read_labels
from microsandbox.store.sandboxes import SandboxCatalog

WRITER = """
import os, sys
from pathlib import Path
from microsandbox.store.database import Database
from microsandbox.store.sandboxes import SandboxCatalog

for number in range(int(sys.argv[2])):
    database = Database(Path(sys.argv[1]))
    SandboxCatalog(database).create(f"more-{number}", "{}", {"number": str(number)}, None)
    if sys.argv[3] == "die":
        os._exit(0)
    if sys.argv[3] == "stay":
        print(flush=True)
        sys.stdin.read()
    database.close()
"""


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "db" / "msb.db")
    yield database
    database.close()


@pytest.fixture
def row(database):
    return SandboxCatalog(database).create("one", "{}", {"team": "core"}, None)


def writer(path, times, end):
    words = [sys.executable, "-c", WRITER, str(path), str(times), end]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def files(path):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.parent.iterdir()}


def test_a_catalogue_that_nobody_has_open_gets_no_files(database, row):
    database.close()
    before = files(database.path)
    assert "msb.db-wal" not in before
    assert read_labels(database.path, [row.id, 99]) == {row.id: {"team": "core"}}
    assert files(database.path) == before


def test_what_is_in_the_log_only_is_read_and_the_log_left_as_it_is(database, row):
    database.close()
    with writer(database.path, 1, "stay") as other:
        other.stdout.readline()
        before = files(database.path)
        assert before["msb.db-wal"][0]
        found = read_labels(database.path, [row.id, row.id + 1])
        assert found == {row.id: {"team": "core"}, row.id + 1: {"number": "0"}}
        assert files(database.path) == before


def test_what_a_killed_writer_left_in_the_log_is_read(database, row):
    database.close()
    assert writer(database.path, 1, "die").wait() == 0
    before = files(database.path)
    assert before["msb.db-wal"][0]
    assert read_labels(database.path, [row.id, row.id + 1]) == {
        row.id: {"team": "core"},
        row.id + 1: {"number": "0"},
    }
    assert files(database.path) == before


def test_an_empty_log_without_an_index_is_none(database, row):
    database.close()
    database.path.with_name("msb.db-wal").touch()
    before = files(database.path)
    assert read_labels(database.path, [row.id]) == {row.id: {"team": "core"}}
    assert files(database.path) == before


def test_writers_may_come_and_go_meanwhile(database, row):
    database.close()
    with writer(database.path, 300, "close") as writing:
        reads = 0
        while writing.poll() is None:
            assert read_labels(database.path, [row.id]) == {row.id: {"team": "core"}}
            reads += 1
            time.sleep(0.0005)
    assert writing.returncode == 0 and reads > 20
    found = read_labels(database.path, range(1000))
    assert len(found) == 301 and found[row.id + 300] == {"number": "299"}


def test_nothing_is_made_where_there_is_no_catalogue(tmp_path):
    with pytest.raises(DatabaseError, match="No such file"):
        read_labels(tmp_path / "msb.db", [1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"x" * 8192])
def test_what_is_no_catalogue_is_an_error(tmp_path, content):
    path = tmp_path / "msb.db"
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match="no such table|not a database"):
        read_labels(path, [1])
    assert files(path).keys() == {"msb.db"}
