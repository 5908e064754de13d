"""Rows of sandboxes and their runs: every status change is one transaction here, and nowhere else.

    (none) ──create──► Running ◄──► Paused
    Running | Paused ──► Draining
    Running | Paused | Draining ──► Stopped | Crashed ──start──► Running
                                                      └──remove──► (none)

A run names the process that answers for it: the owner while it prepares the sandbox, then the
supervisor. A row of a living sandbox whose process is gone is stale and becomes Crashed when somebody looks,
or Stopped if the process was killed on purpose; so does one that a restart of the host has left.

Files of a sandbox are made, taken away, and its socket bound inside the transactions that give or take the
name: who has the row has the name's files, and nobody else's run touches them.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from enum import StrEnum

from msgspec import Struct

from microsandbox.errors import (
    ImageNotFoundError,
    MicrosandboxError,
    SandboxAlreadyExistsError,
    SandboxNotFoundError,
    SandboxStillRunningError,
)
from microsandbox.store.database import Database
from microsandbox.store.processes import ProcessIdentity, boot_id

#: Not from the module: importing that takes longer than reading a row.
_SIGKILL = 9


class Status(StrEnum):
    """As stored and as error texts spell it."""

    RUNNING = "Running"
    DRAINING = "Draining"
    PAUSED = "Paused"
    STOPPED = "Stopped"
    CRASHED = "Crashed"

    @property
    def terminal(self) -> bool:
        return self in (Status.STOPPED, Status.CRASHED)


class Reason(StrEnum):
    """Why a run ended."""

    COMPLETED = "Completed"
    FAILED = "Failed"
    MAX_DURATION = "MaxDurationExceeded"
    IDLE_TIMEOUT = "IdleTimeout"
    AGENT_UNRESPONSIVE = "AgentUnresponsive"
    SHUTDOWN_REQUESTED = "ShutdownRequested"
    DRAIN_REQUESTED = "DrainRequested"
    SIGNAL = "Signal"
    INTERNAL_ERROR = "InternalError"


class SandboxRow(Struct, frozen=True):
    """One sandbox. Times are Unix seconds.

    ``process`` answers for its current run: its owner until ``supervised``, then its supervisor.
    """

    id: int
    name: str
    config: str
    status: Status
    created_at: float
    updated_at: float
    run_id: int | None
    process: ProcessIdentity | None
    supervised: bool
    boot_id: str | None
    killed: bool

    @property
    def stale(self) -> str | None:
        """Why nobody answers for a run that has not ended, if that is so."""
        if self.status.terminal or self.process is None:
            return None
        if self.boot_id is not None and self.boot_id != boot_id():
            return "the host was restarted"
        return None if self.process.alive() else "the process has died"


_SELECT = """
    SELECT s.id, s.name, s.config, s.status, s.created_at, s.updated_at, r.id AS run_id, r.pid, r.pid_started,
        coalesce(r.supervised, 0) AS supervised, r.boot_id,
        r.signals_sent IS NOT NULL AS killed
    FROM sandbox s LEFT JOIN run r ON r.id =
        (SELECT max(id) FROM run WHERE sandbox_id = s.id AND status = 'Running')
"""


class SandboxCatalog:
    """The sandboxes of one home. ``on_end`` is called with the name of one that has ended.

    It is called inside the transaction that says so: nobody can start one of that name meanwhile.
    """

    def __init__(self, database: Database, on_end: Callable[[str], None] = lambda _: None) -> None:
        self._database = database
        self._on_end = on_end

    # reading

    def get(self, name: str) -> SandboxRow:
        """The row, reconciled. Raises SandboxNotFoundError."""
        row = self.find(name)
        if row is None:
            raise SandboxNotFoundError(name)
        return row

    def find(self, name: str) -> SandboxRow | None:
        while True:
            with self._database.read() as connection:
                found = connection.execute(f"{_SELECT} WHERE s.name = ?", (name,)).fetchone()
            if found is None:
                return None
            row = self._reconcile(_row(found))
            if row is not None:  # else it was removed while it was looked at, and the name may be another's
                return row

    def list(self, labels: Mapping[str, str] | None = None) -> list[SandboxRow]:
        """All sandboxes that carry every given label, newest first, reconciled."""
        where = " AND ".join(
            "EXISTS (SELECT 1 FROM sandbox_label WHERE sandbox_id = s.id AND key = ? AND value = ?)"
            for _ in labels or ()
        )
        query = f"{_SELECT} {f'WHERE {where}' if where else ''} ORDER BY s.created_at DESC, s.id DESC"
        with self._database.read() as connection:
            found = connection.execute(query, [part for pair in (labels or {}).items() for part in pair])
            rows = [_row(row) for row in found.fetchall()]
        return [row for row in map(self._reconcile, rows) if row is not None]

    # transitions

    def create(
        self,
        name: str,
        config: str,
        labels: Mapping[str, str],
        manifest_digest: str | None,
        make_place: Callable[[], object] = lambda: None,
    ) -> SandboxRow:
        """Insert a Running row whose run is this process's; from then on its image is in use.

        ``make_place`` makes the sandbox's directory, inside the transaction.
        Raises SandboxAlreadyExistsError, also when the directory is there, ImageNotFoundError.
        """
        now = time.time()
        with self._database.write() as connection:
            try:
                cursor = connection.execute(
                    "INSERT INTO sandbox (name, config, status, created_at, updated_at) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (name, config, Status.RUNNING, now, now),
                )
            except sqlite3.IntegrityError:
                raise SandboxAlreadyExistsError(name) from None
            sandbox_id = cursor.lastrowid
            assert sandbox_id is not None
            connection.executemany(
                "INSERT INTO sandbox_label VALUES (?, ?, ?)",
                [(sandbox_id, key, value) for key, value in labels.items()],
            )
            if manifest_digest is not None:
                cursor = connection.execute(
                    "INSERT INTO sandbox_rootfs SELECT ?, id FROM manifest WHERE digest = ?",
                    (sandbox_id, manifest_digest),
                )
                if cursor.rowcount != 1:  # pruned since it was looked up
                    raise ImageNotFoundError(manifest_digest)
            _insert_run(connection, sandbox_id)
            try:
                make_place()
            except FileExistsError:
                raise SandboxAlreadyExistsError(name) from None
            return _row(connection.execute(f"{_SELECT} WHERE s.id = ?", (sandbox_id,)).fetchone())

    def begin_start(self, name: str) -> SandboxRow:
        """Claim a stopped or crashed sandbox for a new run. Exactly one of several callers succeeds.

        Raises SandboxNotFoundError, SandboxStillRunningError.
        """
        self.get(name)
        with self._database.write() as connection:
            row = _find(connection, name)
            if row.status in (Status.RUNNING, Status.DRAINING):
                raise SandboxStillRunningError(f"cannot start sandbox '{name}': already running")
            if not row.status.terminal:
                raise MicrosandboxError(
                    f"cannot start sandbox '{name}': status is {row.status.value} "
                    "(expected Stopped or Crashed)"
                )
            _set_status(connection, row.id, Status.RUNNING)
            _insert_run(connection, row.id)
            return _find(connection, name)

    def take_over(self, run_id: int, bind: Callable[[], object] = lambda: None) -> bool:
        """The supervisor answers for the run from now on; False when the run has been given up.

        ``bind`` binds its socket, inside the transaction: that of a run that took the name later stays.
        """
        process = ProcessIdentity.current()
        with self._database.write() as connection:
            cursor = connection.execute(
                "UPDATE run SET pid = ?, pid_started = ?, supervised = 1 WHERE id = ? AND status = 'Running'",
                (process.pid, process.started, run_id),
            )
            if cursor.rowcount == 1:
                bind()
            return cursor.rowcount == 1

    def is_live(self, row: SandboxRow) -> bool:
        """Whether the row's run goes on: what its name leads to is its own, then."""
        with self._database.read() as connection:
            running = "SELECT 1 FROM run WHERE id = ? AND status = 'Running'"
            return connection.execute(running, (row.run_id,)).fetchone() is not None

    def was_given_up(self, row: SandboxRow) -> bool:
        """Whether somebody ends the row's run on purpose, has done so, or has removed its sandbox."""
        with self._database.read() as connection:
            query = "SELECT signals_sent, termination_reason FROM run WHERE id = ?"
            found = connection.execute(query, (row.run_id,)).fetchone()
        return found is None or bool(found["signals_sent"]) or found["termination_reason"] == Reason.SIGNAL

    def note_kill(self, run_id: int) -> None:
        """Say that a run's supervisor is about to be killed on purpose."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE run SET signals_sent = 'SIGKILL' WHERE id = ? AND status = 'Running'", (run_id,)
            )

    def verdict(self, row: SandboxRow) -> Status:
        """What the row's run came to, also if the sandbox has been started again or removed since."""
        with self._database.read() as connection:
            found = connection.execute(f"{_SELECT} WHERE s.id = ?", (row.id,)).fetchone()
        current = self._reconcile(_row(found)) if found else None
        if current is not None and (current.status.terminal or current.run_id == row.run_id):
            return current.status
        failed = self._reason(row) in (Reason.FAILED, Reason.INTERNAL_ERROR)
        return Status.CRASHED if failed else Status.STOPPED

    def _reason(self, row: SandboxRow) -> str | None:
        with self._database.read() as connection:
            query = "SELECT termination_reason FROM run WHERE id = ?"
            found = connection.execute(query, (row.run_id,)).fetchone()
        return None if found is None else str(found["termination_reason"])

    def give_up(self, row: SandboxRow) -> bool:
        """End a run that no supervisor has taken over; False when one has meanwhile, or it has ended."""
        assert row.run_id is not None
        with self._database.write() as connection:
            query = "SELECT 1 FROM run WHERE id = ? AND status = 'Running' AND supervised = 0"
            if connection.execute(query, (row.run_id,)).fetchone() is None:
                return False
            _end_run(connection, row.run_id, Reason.SIGNAL, None, _SIGKILL, "killed")
            _set_status(connection, row.id, Status.STOPPED)
            self._on_end(row.name)
            return True

    def set_draining(self, sandbox_id: int) -> None:
        """Say that a running sandbox drains; one whose run has ended stays what it is."""
        with self._database.write() as connection:
            if _has_run(connection, sandbox_id):
                _set_status(connection, sandbox_id, Status.DRAINING)

    def set_paused(self, sandbox_id: int, paused: bool) -> bool:
        """Say that a running sandbox is paused, or goes on; False for one that drains or has ended."""
        with self._database.write() as connection:
            found = connection.execute("SELECT status FROM sandbox WHERE id = ?", (sandbox_id,)).fetchone()
            alive = found is not None and found["status"] in (Status.RUNNING, Status.PAUSED)
            if not alive or not _has_run(connection, sandbox_id):
                return False
            _set_status(connection, sandbox_id, Status.PAUSED if paused else Status.RUNNING)
            return True

    def end_run(
        self,
        sandbox_id: int,
        run_id: int,
        status: Status,
        reason: Reason,
        *,
        exit_code: int | None = None,
        exit_signal: int | None = None,
        detail: str | None = None,
    ) -> None:
        """Record the end of a run; the first record of it stays, the sandbox gets the last verdict."""
        with self._database.write() as connection:
            _end_run(connection, run_id, reason, exit_code, exit_signal, detail)
            current = (
                "SELECT name FROM sandbox WHERE id = ? AND NOT EXISTS "
                "(SELECT 1 FROM run WHERE sandbox_id = sandbox.id AND id > ?)"
            )
            if (found := connection.execute(current, (sandbox_id, run_id)).fetchone()) is not None:
                _set_status(connection, sandbox_id, status)
                self._on_end(found["name"])

    def remove(
        self, name: str, take_away: Callable[[], object], *, only: SandboxRow | None = None
    ) -> SandboxRow:
        """Delete the row of a sandbox that is not running; with ``only``, unless another has its name by now.

        ``take_away`` moves its files out of the way, inside the transaction: the name is free with the row.
        Raises SandboxNotFoundError, SandboxStillRunningError.
        """
        self.get(name)
        with self._database.write() as connection:
            row = _find(connection, name)
            if only is not None and only.id != row.id:
                raise SandboxNotFoundError(name)
            if not row.status.terminal:
                raise SandboxStillRunningError(f"cannot remove sandbox '{name}': still running")
            connection.execute("DELETE FROM sandbox WHERE id = ?", (row.id,))
            self._on_end(name)
            take_away()
        return row

    def remove_files(self, name: str, take_away: Callable[[], object]) -> None:
        """Take away what a sandbox without a row left behind; nothing if the name is somebody's by now."""
        with self._database.write() as connection:
            if connection.execute("SELECT 1 FROM sandbox WHERE name = ?", (name,)).fetchone() is None:
                take_away()

    def discard(self, row: SandboxRow, take_away: Callable[[], object]) -> bool:
        """Take back a row that create() made; False when it is gone, and its name perhaps somebody else's."""
        with self._database.write() as connection:
            found = connection.execute("DELETE FROM sandbox WHERE id = ?", (row.id,)).rowcount == 1
            if found:
                take_away()
            return found

    def _reconcile(self, row: SandboxRow) -> SandboxRow | None:
        """What the row should say, given the process that answers for it; None when it is gone."""
        if row.stale is None:
            return row
        with self._database.write() as connection:
            found = connection.execute(f"{_SELECT} WHERE s.id = ?", (row.id,)).fetchone()
            if found is None:
                return None
            current = _row(found)
            if current.run_id != row.run_id or current.process != row.process or current.status.terminal:
                return current
            assert row.run_id is not None
            if current.killed:
                status = Status.STOPPED
                _end_run(connection, row.run_id, Reason.SIGNAL, None, _SIGKILL, "killed")
            else:
                status = Status.CRASHED
                _end_run(connection, row.run_id, Reason.INTERNAL_ERROR, None, None, row.stale)
            _set_status(connection, row.id, status)
            self._on_end(row.name)
            return _row(connection.execute(f"{_SELECT} WHERE s.id = ?", (row.id,)).fetchone())


def _row(found: sqlite3.Row) -> SandboxRow:
    process = None if found["pid"] is None else ProcessIdentity(found["pid"], found["pid_started"])
    return SandboxRow(
        found["id"],
        found["name"],
        found["config"],
        Status(found["status"]),
        found["created_at"],
        found["updated_at"],
        found["run_id"],
        process,
        bool(found["supervised"]),
        found["boot_id"],
        bool(found["killed"]),
    )


def _find(connection: sqlite3.Connection, name: str) -> SandboxRow:
    found = connection.execute(f"{_SELECT} WHERE s.name = ?", (name,)).fetchone()
    if found is None:
        raise SandboxNotFoundError(name)
    return _row(found)


def _set_status(connection: sqlite3.Connection, sandbox_id: int, status: Status) -> None:
    connection.execute(
        "UPDATE sandbox SET status = ?, updated_at = ? WHERE id = ?", (status, time.time(), sandbox_id)
    )


def _has_run(connection: sqlite3.Connection, sandbox_id: int) -> bool:
    running = "SELECT 1 FROM run WHERE sandbox_id = ? AND status = 'Running'"
    return connection.execute(running, (sandbox_id,)).fetchone() is not None


def _insert_run(connection: sqlite3.Connection, sandbox_id: int) -> None:
    process = ProcessIdentity.current()
    connection.execute(
        "INSERT INTO run (sandbox_id, pid, pid_started, boot_id, status, started_at) "
        "VALUES (?, ?, ?, ?, 'Running', ?)",
        (sandbox_id, process.pid, process.started, boot_id(), time.time()),
    )


def _end_run(
    connection: sqlite3.Connection,
    run_id: int,
    reason: Reason,
    exit_code: int | None,
    exit_signal: int | None,
    detail: str | None,
) -> None:
    connection.execute(
        "UPDATE run SET status = 'Terminated', exit_code = ?, exit_signal = ?, termination_reason = ?, "
        "termination_detail = ?, terminated_at = ? WHERE id = ? AND status = 'Running'",
        (exit_code, exit_signal, reason, detail, time.time(), run_id),
    )
