"""The catalogue of sandboxes: one winner, honest statuses, rows of dead processes found out."""

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from microsandbox.errors import (
    MicrosandboxError,
    SandboxAlreadyExistsError,
    SandboxNotFoundError,
    SandboxStillRunningError,
)
from microsandbox.store.database import Database, DatabaseError
from microsandbox.store.processes import ProcessIdentity
from microsandbox.store.sandboxes import Reason, SandboxCatalog, Status
from microsandbox.store.schema import MIGRATIONS


@pytest.fixture
def path(tmp_path):
    return tmp_path / "db" / "msb.db"


@pytest.fixture
def catalog(path):
    return SandboxCatalog(Database(path))


def create(catalog, name="one", **labels):
    return catalog.create(name, "{}", labels, None)


def end(catalog, row, status=Status.STOPPED):
    catalog.end_run(row.id, row.run_id, status, Reason.COMPLETED)


def test_a_new_sandbox_is_running_and_this_process_answers_for_it(catalog):
    row = create(catalog)
    assert (row.status, row.process) == (Status.RUNNING, ProcessIdentity.current())
    assert catalog.get("one") == row


def test_a_name_is_taken_once(catalog):
    create(catalog)
    with pytest.raises(SandboxAlreadyExistsError, match="sandbox 'one' already exists; remove it"):
        create(catalog)


def test_of_many_creators_of_one_name_exactly_one_wins(path):
    Database(path).close()

    def attempt(_):
        try:
            create(SandboxCatalog(Database(path)))
        except SandboxAlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 1


def test_of_many_starters_exactly_one_wins(path):
    catalog = SandboxCatalog(Database(path))
    end(catalog, create(catalog))

    def attempt(_):
        try:
            SandboxCatalog(Database(path)).begin_start("one")
        except SandboxStillRunningError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 1


def test_a_running_sandbox_is_not_removed(catalog):
    create(catalog)
    with pytest.raises(SandboxStillRunningError, match="cannot remove sandbox 'one': still running"):
        catalog.remove("one", lambda: None)


def test_a_stopped_sandbox_is_removed_with_everything_about_it(catalog, path):
    end(catalog, create(catalog, a="1"))
    catalog.remove("one", lambda: None)
    with pytest.raises(SandboxNotFoundError, match="sandbox not found: one"):
        catalog.get("one")
    with Database(path).read() as connection:
        for table in ("sandbox_label", "run"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == 0


def test_lists_are_newest_first_and_filtered_by_all_labels(catalog):
    create(catalog, "a", x="1", y="1")
    create(catalog, "b", x="1")
    create(catalog, "c")
    assert [row.name for row in catalog.list()] == ["c", "b", "a"]
    assert [row.name for row in catalog.list({"x": "1"})] == ["b", "a"]
    assert [row.name for row in catalog.list({"x": "1", "y": "1"})] == ["a"]
    assert catalog.list({"x": "2"}) == []


def test_a_row_whose_process_has_died_is_found_crashed(path, catalog):
    script = (
        "import sys, pathlib\n"
        "from microsandbox.store.database import Database\n"
        "from microsandbox.store.sandboxes import SandboxCatalog\n"
        "SandboxCatalog(Database(pathlib.Path(sys.argv[1]))).create('orphan', '{}', {}, None)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    assert catalog.get("orphan").status is Status.CRASHED
    assert [row.status for row in catalog.list()] == [Status.CRASHED]


def test_a_reused_pid_is_not_taken_for_the_process(catalog, path):
    row = create(catalog)
    with Database(path).write() as connection:
        connection.execute("UPDATE run SET pid_started = pid_started - 1")
    assert catalog.get("one").status is Status.CRASHED
    assert row.status is Status.RUNNING


def test_a_stale_row_that_is_removed_while_it_is_looked_at_is_gone(path):
    class Interrupted(Database):
        """Somebody else comes between reading and writing."""

        def write(self):
            with sqlite3.connect(path) as other:
                other.execute("PRAGMA foreign_keys = ON")
                other.execute("DELETE FROM sandbox")
            other.close()
            return super().write()

    catalog = SandboxCatalog(Interrupted(path))
    for look, nothing in ((lambda: catalog.find("one"), None), (catalog.list, [])):
        create(SandboxCatalog(Database(path)))
        with Database(path).write() as connection:
            connection.execute("UPDATE run SET pid_started = pid_started - 1")
        assert look() == nothing


def test_a_run_is_given_up_only_while_nobody_has_taken_it_over(catalog):
    seen = create(catalog)
    assert catalog.take_over(seen.run_id)
    assert not catalog.give_up(seen), "its supervisor would go on, and nobody know of it"
    assert catalog.get("one").status is Status.RUNNING
    end(catalog, seen)
    early = catalog.begin_start("one")
    assert catalog.give_up(early)
    assert not catalog.take_over(early.run_id)
    assert catalog.get("one").status is Status.STOPPED
    assert catalog.was_given_up(early)


def test_without_descriptors_nobody_is_called_dead(path, catalog):
    create(catalog)
    script = (
        "import pathlib, resource, sys\n"
        "from microsandbox.store.database import Database\n"
        "from microsandbox.store.sandboxes import SandboxCatalog\n"
        "catalog = SandboxCatalog(Database(pathlib.Path(sys.argv[1])))\n"
        "before = catalog.list()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "try: catalog.list()\n"
        "except OSError as error: print(error.strerror)\n"
    )
    found = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("Too many open files\n", "")
    assert catalog.get("one").status is Status.RUNNING


def test_a_zombie_is_dead(catalog):
    child = subprocess.Popen(["sleep", "60"])
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    assert identity.alive()
    child.kill()
    fd = None
    while fd is None and identity.alive():
        fd = identity.open_pidfd()
    assert ProcessIdentity.of(child.pid) is None or not identity.alive() or child.wait() is not None
    child.wait()
    assert not identity.alive()


def test_the_end_of_an_old_run_does_not_touch_a_newer_one(catalog):
    old = create(catalog)
    end(catalog, old)
    new = catalog.begin_start("one")
    end(catalog, old, Status.CRASHED)
    assert catalog.get("one").status is Status.RUNNING
    end(catalog, new)
    assert catalog.get("one").status is Status.STOPPED


def test_a_run_given_up_cannot_be_taken_over(catalog):
    row = create(catalog)
    assert catalog.take_over(row.run_id)
    end(catalog, row)
    assert not catalog.take_over(row.run_id)


def test_a_catalogue_of_a_newer_release_is_refused_by_name(path, monkeypatch):
    create(SandboxCatalog(Database(path)))
    monkeypatch.setattr("microsandbox.store.database.MIGRATIONS", MIGRATIONS[:1])  # as the first release
    with pytest.raises(DatabaseError, match=r"newer release .*; upgrade microsandbox"), Database(path).read():
        pass


def test_a_file_that_is_no_database_is_one_clear_error(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(DatabaseError, match="not a database"), Database(path).read():
        pass


def test_files_are_taken_away_with_the_row_and_only_then(catalog):
    taken = []
    row = create(catalog)
    with pytest.raises(SandboxStillRunningError):
        catalog.remove("one", lambda: taken.append("running"))
    end(catalog, row)
    catalog.remove("one", lambda: taken.append("stopped"))
    catalog.remove_files("one", lambda: taken.append("orphan"))
    newer = create(catalog)
    catalog.remove_files("one", lambda: taken.append("somebody's"))
    catalog.discard(row, lambda: taken.append("an older row's"))
    catalog.discard(newer, lambda: taken.append("its own"))
    assert taken == ["stopped", "orphan", "its own"]


def test_a_pause_is_seen_and_ends(catalog):
    row = create(catalog)
    for paused, status in ((True, Status.PAUSED), (True, Status.PAUSED), (False, Status.RUNNING)):
        assert catalog.set_paused(row.id, paused)
        assert catalog.get("one").status is status
    catalog.set_paused(row.id, True)
    with pytest.raises(MicrosandboxError, match="status is Paused"):
        catalog.begin_start("one")
    with pytest.raises(SandboxStillRunningError, match="still running"):
        catalog.remove("one", lambda: None)
    catalog.set_draining(row.id)
    assert catalog.get("one").status is Status.DRAINING


def test_what_drains_or_has_ended_is_not_paused(catalog):
    row = create(catalog)
    catalog.set_draining(row.id)
    assert not catalog.set_paused(row.id, True)
    assert catalog.get("one").status is Status.DRAINING
    end(catalog, row)
    assert not catalog.set_paused(row.id, True)
    assert not catalog.set_paused(row.id, False)
    assert catalog.get("one").status is Status.STOPPED


def test_a_paused_row_whose_process_has_died_is_found_crashed(catalog, path):
    row = create(catalog)
    catalog.set_paused(row.id, True)
    with Database(path).write() as connection:
        connection.execute("UPDATE run SET pid_started = pid_started - 1")
    assert catalog.get("one").status is Status.CRASHED


def test_a_drain_after_the_end_changes_nothing(catalog):
    row = create(catalog)
    end(catalog, row)
    catalog.set_draining(row.id)
    assert catalog.get("one").status is Status.STOPPED


def run_of(path):
    with Database(path).read() as connection:
        query = "SELECT status, termination_reason, termination_detail, exit_signal FROM run ORDER BY id DESC"
        return tuple(connection.execute(query).fetchone())


def test_a_run_of_before_a_restart_of_the_host_is_not_taken_for_a_process_of_now(catalog, path):
    """The process that has its pid, and started at the same time after the boot, is this one."""
    create(catalog)
    with Database(path).write() as connection:
        connection.execute("UPDATE run SET boot_id = 'earlier'")
    assert catalog.get("one").status is Status.CRASHED
    assert run_of(path) == ("Terminated", "InternalError", "the host was restarted", None)
    row = catalog.begin_start("one")
    assert catalog.get("one") == row, "and it can be started"


def test_a_crash_is_told_from_a_restart_of_the_host(catalog, path):
    create(catalog)
    with Database(path).write() as connection:
        connection.execute("UPDATE run SET pid_started = pid_started - 1")
    catalog.get("one")
    assert run_of(path) == ("Terminated", "InternalError", "the process has died", None)


def test_what_was_killed_on_purpose_is_stopped_although_its_killer_did_not_say_so(catalog, path):
    row = create(catalog)
    assert not catalog.was_given_up(row)
    catalog.note_kill(row.run_id)
    assert catalog.get("one").status is Status.RUNNING, "it is not dead yet"
    assert catalog.was_given_up(row)
    with Database(path).write() as connection:
        connection.execute("UPDATE run SET pid_started = pid_started - 1")
    assert catalog.get("one").status is Status.STOPPED
    assert run_of(path) == ("Terminated", "Signal", "killed", 9)


def test_the_verdict_is_of_the_run_whatever_became_of_the_sandbox(catalog, path):
    first = create(catalog)
    assert catalog.verdict(first) is Status.RUNNING
    catalog.end_run(first.id, first.run_id, Status.CRASHED, Reason.FAILED)
    assert catalog.verdict(first) is Status.CRASHED
    second = catalog.begin_start("one")
    assert (catalog.verdict(first), catalog.verdict(second)) == (Status.CRASHED, Status.RUNNING)
    end(catalog, second)
    third = catalog.begin_start("one")
    assert catalog.verdict(second) is Status.STOPPED
    end(catalog, third)
    catalog.remove("one", lambda: None)
    assert catalog.verdict(third) is Status.STOPPED


def test_a_name_is_not_removed_for_who_had_it_before(catalog):
    old = create(catalog)
    end(catalog, old)
    catalog.remove("one", lambda: None, only=old)
    end(catalog, create(catalog))
    with pytest.raises(SandboxNotFoundError):
        catalog.remove("one", lambda: None, only=old)
    assert catalog.get("one").status is Status.STOPPED


def test_a_place_that_is_taken_is_a_name_that_is(catalog, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(SandboxAlreadyExistsError):
        catalog.create("one", "{}", {}, None, place.mkdir)
    assert catalog.find("one") is None
    place.rmdir()
    catalog.create("one", "{}", {}, None, place.mkdir)
    assert place.is_dir()


def test_only_who_takes_over_binds(catalog):
    bound = []
    row = create(catalog)
    end(catalog, row)
    assert not catalog.take_over(row.run_id, lambda: bound.append("late"))
    row = catalog.begin_start("one")
    assert catalog.take_over(row.run_id, lambda: bound.append("in time"))
    assert bound == ["in time"]


@pytest.fixture
def first_release(path):
    """A catalogue with the schema of the first release, and a sandbox that this process runs."""
    path.parent.mkdir()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(f"BEGIN; {MIGRATIONS[0]} PRAGMA user_version = 1; COMMIT;")
    connection.execute("INSERT INTO sandbox VALUES (7, 'old', '{}', 'Running', 1, 1)")
    connection.execute("INSERT INTO sandbox_label VALUES (7, 'team', 'a')")
    process = ProcessIdentity.current()
    connection.execute(
        "INSERT INTO run (sandbox_id, pid, pid_started, supervised, status, started_at) "
        "VALUES (7, ?, ?, 1, 'Running', 1)",
        (process.pid, process.started),
    )
    yield connection
    connection.close()


def test_a_catalogue_of_the_first_release_is_brought_up_to_date_and_keeps_what_it_knows(first_release, path):
    catalog = SandboxCatalog(Database(path))
    [row] = catalog.list({"team": "a"})
    assert (row.name, row.status, row.process) == ("old", Status.RUNNING, ProcessIdentity.current())
    assert first_release.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    end(catalog, row)
    assert catalog.begin_start("old").boot_id is not None


def test_a_program_of_the_first_release_that_goes_on_can_still_write(first_release, path):
    first_release.execute("SELECT * FROM sandbox").fetchall()
    catalog = SandboxCatalog(Database(path))
    catalog.get("old")
    first_release.execute("UPDATE run SET status = 'Terminated'")
    first_release.execute(
        "INSERT INTO run (sandbox_id, pid, pid_started, status, started_at) VALUES (7, 1, 1, 'Running', 2)"
    )
    assert catalog.get("old").status is Status.CRASHED, "its process is known by pid and start"


def test_of_several_processes_one_migrates_and_all_go_on(first_release, path):
    script = (
        "import sys, pathlib\n"
        "from microsandbox.store.database import Database\n"
        "from microsandbox.store.sandboxes import SandboxCatalog\n"
        "sys.stdin.read()\n"
        "assert SandboxCatalog(Database(pathlib.Path(sys.argv[1]))).get('old').id == 7\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE) for _ in range(6)
    ]
    for process in processes:
        process.stdin.close()
    assert [process.wait(timeout=60) for process in processes] == [0] * 6


def test_a_migration_that_fails_changes_nothing(first_release, path, monkeypatch):
    broken = (*MIGRATIONS[:1], "ALTER TABLE run ADD COLUMN boot_id TEXT; ALTER TABLE missing ADD COLUMN x;")
    monkeypatch.setattr("microsandbox.store.database.MIGRATIONS", broken)
    with pytest.raises(DatabaseError, match="no such table: missing"), Database(path).read():
        pass
    monkeypatch.undo()
    assert first_release.execute("PRAGMA user_version").fetchone() == (1,)
    assert SandboxCatalog(Database(path)).get("old").status is Status.RUNNING
