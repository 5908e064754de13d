"""Log files that a guest can write to without end and still not fill the host's disk."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from microsandbox.store.files import make_private

#: Bytes a log file may have before it is renamed, and how many renamed ones are kept.
MAX_BYTES, KEPT = 10 << 20, 4


class RotatingFile:
    """Appends to ``path``; at MAX_BYTES the file becomes ``.1``, ``.1`` becomes ``.2``, up to ``.4``.

    What is written consists of whole lines, or of a stream that need not be cut at lines.
    """

    def __init__(self, path: Path) -> None:
        make_private(path.parent)
        self._path = path
        self.fd, self._size = _open(path)
        if self._size and os.pread(self.fd, 1, self._size - 1) != b"\n":  # the last writer was killed
            self.write(b"\n")

    def write(self, data: bytes) -> bool:
        """Append, or drop the lines that a full disk does not take: False then."""
        if self._size and self._size + len(data) > MAX_BYTES and not self._rotate():
            return False
        done = 0
        try:
            while done < len(data):
                done += os.write(self.fd, data[done:])
        except OSError:
            with suppress(OSError):  # no half line before the next one
                os.ftruncate(self.fd, self._size + data.rfind(b"\n", 0, done) + 1)
            self._size = os.fstat(self.fd).st_size
            return False
        self._size += done
        return True

    def _rotate(self) -> bool:
        """The new file is opened first: when it cannot be made, everything stays as it was."""
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n + 1}") for n in range(KEPT))]
        fresh = self._path.with_name(f"{self._path.name}.new")
        try:
            fd, size = _open(fresh)
        except OSError:
            return False
        try:
            for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
                with suppress(FileNotFoundError):
                    newer.rename(older)
            fresh.rename(self._path)
            os.dup2(fd, self.fd, inheritable=False)
        except OSError:
            return False
        finally:
            os.close(fd)
        self._size = size
        return True

    def close(self) -> None:
        os.close(self.fd)


def _open(path: Path) -> tuple[int, int]:
    """The descriptor, and the file's size."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return fd, os.fstat(fd).st_size


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
