"""The catalogue: one SQLite file that all processes of a home share.

Write-ahead logging lets readers and one writer work at once. A connection belongs to one thread and is
opened on first use there; a write is one ``BEGIN IMMEDIATE`` transaction, so two processes never both
read, decide and then write.
"""

from __future__ import annotations

import os
import sqlite3
import threading
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
        self._local = threading.local()
        self._turns = threading.BoundedSemaphore(self._config.max_connections)
        self._process = os.getpid()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for queries. Raises DatabaseError."""
        try:
            with self._turn():
                yield self._connection()
        except sqlite3.Error as error:
            raise DatabaseError(f"{self.path}: {error}") from error

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: committed when the block ends, rolled back when it raises. Raises DatabaseError."""
        try:
            with self._turn():
                connection = self._connection()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise DatabaseError(f"{self.path}: {error}") from error

    def close(self) -> None:
        """Close this thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            del self._local.connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One of the connections that may be in use at once; a thread that has one needs no other."""
        if getattr(self._local, "has_turn", False):
            yield
            return
        if self._process != os.getpid():  # forked, without the threads that had the others
            self._turns = threading.BoundedSemaphore(self._config.max_connections)
            self._process = os.getpid()
        turns = self._turns
        if not turns.acquire(timeout=self._config.connect_timeout_secs):
            raise DatabaseError(
                f"{self.path}: all connections (database.max_connections: {self._config.max_connections}) "
                f"were in use for {self._config.connect_timeout_secs:g} s (database.connect_timeout_secs)"
            )
        self._local.has_turn = True
        try:
            yield
        finally:
            self._local.has_turn = False
            turns.release()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._open()
        return connection

    def _open(self) -> sqlite3.Connection:
        with host_errors():
            make_private(self.path.parent)
        connection = sqlite3.connect(self.path, timeout=self._config.busy_timeout_secs, isolation_level=None)
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
