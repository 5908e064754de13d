"""The catalogue: one SQLite file that all processes of a home share.

Write-ahead logging lets readers and one writer work at once. A connection is one thread's while it is in
use; a write is one ``BEGIN IMMEDIATE`` transaction, so two processes never both read, decide and then write.

A fork has none of its parent's file locks, and yet SQLite, which counts them in memory, believes it has, also
for a connection that is opened later: what it writes is lost when the parent's last connection takes the log
away. Only closing before the fork helps. So idle connections are closed then, and where a thread was just
using one, the fork is refused the catalogue.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from microsandbox.errors import MicrosandboxError
from microsandbox.store.config import DatabaseConfig
from microsandbox.store.files import FileLock, host_errors, make_private
from microsandbox.store.schema import MIGRATIONS


class DatabaseError(MicrosandboxError):
    """The catalogue cannot be read or written."""

    code = "database-error"

    def __init__(self, detail: object) -> None:
        super().__init__(f"database error: {detail}")


class Database:
    """Connections to one catalogue file, made on first use; so many are in use at once as ``config`` says."""

    def __init__(self, path: Path, config: DatabaseConfig | None = None) -> None:
        self.path = path
        self._config = config or DatabaseConfig()
        self._idle: list[sqlite3.Connection] = []
        self._in_use: list[sqlite3.Connection] = []
        self._begin()
        with _forking:
            _databases.add(self)

    def _begin(self) -> None:
        self._local = threading.local()
        self._turns = threading.BoundedSemaphore(self._config.max_connections)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for queries. Raises DatabaseError."""
        try:
            with self._turn() as connection:
                yield connection
        except sqlite3.Error as error:
            raise DatabaseError(f"{self.path}: {error}") from error

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: committed when the block ends, rolled back when it raises. Raises DatabaseError."""
        try:
            with self._turn() as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise DatabaseError(f"{self.path}: {error}") from error

    @contextmanager
    def _turn(self) -> Iterator[sqlite3.Connection]:
        """One of the connections that may be in use at once; a thread that has one needs no other."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            yield connection
            return
        turns = self._turns
        if not turns.acquire(timeout=self._config.connect_timeout_secs):
            raise DatabaseError(
                f"{self.path}: all connections (database.max_connections: {self._config.max_connections}) "
                f"were in use for {self._config.connect_timeout_secs:g} s (database.connect_timeout_secs)"
            )
        try:
            connection = self._local.connection = self._take()
            try:
                yield connection
            finally:
                self._local.connection = None
                self._give_back(connection)
        finally:
            turns.release()

    def _take(self) -> sqlite3.Connection:
        with _forking:
            connection = self._idle.pop() if self._idle else self._open()
            self._in_use.append(connection)
            return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with _forking:
            if connection in self._in_use:  # else this is a fork, in which it must not be used
                self._in_use.remove(connection)
                self._idle.append(connection)

    def close(self) -> None:
        """Close the connections that are not in use."""
        with _forking:
            self.before_fork()

    def before_fork(self) -> None:
        """Called with ``_forking`` held."""
        while self._idle:
            self._idle.pop().close()

    def after_fork_in_child(self) -> None:
        """Without the threads that used it."""
        _inherited.extend((self.path, connection) for connection in self._in_use)
        self._in_use.clear()
        self._begin()

    def _open(self) -> sqlite3.Connection:
        if any(path == self.path for path, _ in _inherited):
            raise DatabaseError(
                f"{self.path} was in use when this process was forked, which leaves it without locks; fork "
                'while no thread is using sandboxes or images, or start processes with the method "spawn"'
            )
        with host_errors():
            make_private(self.path.parent)
        connection = sqlite3.connect(
            self.path,
            timeout=self._config.busy_timeout_secs,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = NORMAL")
            if _version(connection) != len(MIGRATIONS):
                self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        with FileLock(self.path.with_name(self.path.name + ".migration.lock")):
            connection.execute("PRAGMA journal_mode = WAL")
            version = _version(connection)
            if version > len(MIGRATIONS):
                raise DatabaseError(
                    f"{self.path} was written by a newer release (schema {version}, this one knows "
                    f"{len(MIGRATIONS)}); upgrade microsandbox or use another MSB_HOME"
                )
            for number, script in enumerate(MIGRATIONS[version:], version + 1):
                connection.executescript(
                    f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;"
                )


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
#: What the parent was using at the fork: closing it here would undo what the parent is writing.
_inherited: list[tuple[Path, sqlite3.Connection]] = []
#: Held while a connection is taken or given back, and during a fork.
_forking = threading.Lock()


def _before_fork() -> None:
    _forking.acquire()
    for database in _databases:
        database.before_fork()


def _after_fork_in_child() -> None:
    for database in _databases:
        database.after_fork_in_child()
    _forking.release()


os.register_at_fork(
    before=_before_fork, after_in_parent=_forking.release, after_in_child=_after_fork_in_child
)
