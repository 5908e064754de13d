"""Log files that a guest can write to without end and still not fill the host's disk."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from microsandbox.store.files import make_private

#: Bytes a log file may have before it is renamed, and how many renamed ones are kept.
MAX_BYTES, KEPT = 10 << 20, 4


class RotatingFile:
    """Appends to ``path``; at MAX_BYTES the file becomes ``.1``, ``.1`` becomes ``.2``, up to ``.4``."""

    def __init__(self, path: Path) -> None:
        make_private(path.parent)
        self._path = path
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self.fd = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self.fd).st_size

    def write(self, data: bytes) -> None:
        """Append; a full disk loses the data, not the sandbox."""
        if self._size and self._size + len(data) > MAX_BYTES:
            self._rotate()
        try:
            self._size += os.write(self.fd, data)
        except OSError:
            self._size = os.fstat(self.fd).st_size

    def _rotate(self) -> None:
        old = self.fd
        try:
            for number in range(KEPT, 0, -1):
                older = self._path.with_name(f"{self._path.name}.{number}")
                newer = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
                if newer.exists():
                    newer.rename(older)
            self._open()
        except OSError:  # a full disk loses the rotation, not the log
            return
        os.close(old)

    def close(self) -> None:
        os.close(self.fd)


class RuntimeLog(logging.Handler):
    """The supervisor's own log: one line an event, RFC 3339 time first."""

    def __init__(self, file: RotatingFile) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = f"{seconds}.{int(record.msecs):03d}Z {record.levelname} {self.format(record)}\n"
        self._file.write(text.encode("utf-8", "backslashreplace"))


class LogStream(asyncio.Protocol):
    """What arrives on a socket: kept in a log file, its end in memory for error messages."""

    _TAIL = 64 << 10

    def __init__(self, file: RotatingFile) -> None:
        self._file = file
        self._tail = bytearray()
        self.ended = asyncio.Event()

    @property
    def tail(self) -> bytes:
        return bytes(self._tail)

    def data_received(self, data: bytes) -> None:
        self._file.write(data)
        self._tail += data
        del self._tail[: -self._TAIL]

    def connection_lost(self, error: Exception | None) -> None:
        self._file.close()
        self.ended.set()
