"""Byte streams that a tar reader can walk: a file that is there, or chunks that arrive.

Chunks come from a thread of their own (``ReadAhead``), so that decompressing, hashing and parsing a layer
overlap: zlib, hashlib and file writes all release the interpreter lock.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

#: Chunks that may wait between the two threads.
_DEPTH = 4


class Stream(ABC):
    """Bytes in order, with a position."""

    position: int = 0

    @abstractmethod
    def read(self, count: int) -> bytes:
        """The next ``count`` bytes; fewer only at the end."""

    @abstractmethod
    def skip(self, count: int) -> int:
        """Pass over ``count`` bytes; how many there were (fewer only at the end)."""


class FileStream(Stream):
    """A part of an open file; reads by position, so several may share the descriptor."""

    def __init__(self, fd: int, offset: int = 0, size: int | None = None) -> None:
        self._fd = fd
        self._offset = offset
        self._size = os.fstat(fd).st_size - offset if size is None else size

    def read(self, count: int) -> bytes:
        data = os.pread(
            self._fd, max(min(count, self._size - self.position), 0), self._offset + self.position
        )
        self.position += len(data)
        return data

    def skip(self, count: int) -> int:
        skipped = max(min(count, self._size - self.position), 0)
        self.position += skipped
        return skipped


class SpoolStream(Stream):
    """Chunks that are hashed and written to a file while they are read.

    With ``spool`` the bytes stay readable there at their stream positions; zeros become holes, so a stream
    of nothing takes no room.
    """

    def __init__(self, chunks: Iterator[bytes], spool: int | None, *, limit: int, what: str) -> None:
        self._chunks = chunks
        self._spool = spool
        self._limit, self._what = limit, what
        self._hash = hashlib.sha256()
        self._chunk = memoryview(b"")
        self._start = 0
        self.size = 0

    def read(self, count: int) -> bytes:
        taken = self._take(count)
        if len(taken) == count:
            return bytes(taken)
        parts, missing = [bytes(taken)], count - len(taken)
        while missing and self._advance():
            parts.append(bytes(self._take(missing)))
            missing -= len(parts[-1])
        return b"".join(parts)

    def skip(self, count: int) -> int:
        skipped = len(self._take(count))
        while skipped < count and self._advance():
            skipped += len(self._take(count - skipped))
        return skipped

    def finish(self) -> str:
        """Read to the very end; the digest of everything."""
        while self._advance():
            pass
        self.position = self.size
        if self._spool is not None:
            os.ftruncate(self._spool, self.size)
        return f"sha256:{self._hash.hexdigest()}"

    def _take(self, count: int) -> memoryview:
        offset = self.position - self._start
        taken = self._chunk[offset : offset + count]
        self.position += len(taken)
        return taken

    def _advance(self) -> bool:
        """Go to the next chunk; False at the end. Raises ValueError beyond the limit."""
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._hash.update(chunk)
        if self.size + len(chunk) > self._limit:
            raise ValueError(f"{self._what}: more than {self._limit} bytes")
        if self._spool is not None and not _is_zero(chunk):
            write_at(self._spool, chunk, self.size)
        self._chunk, self._start = memoryview(chunk), self.size
        self.size += len(chunk)
        return True


def _is_zero(chunk: bytes) -> bool:
    return not (chunk[:1].strip(b"\0") or chunk[-1:].strip(b"\0")) and chunk == bytes(len(chunk))


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of the bytes there."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def file_chunks(
    fd: int, offset: int, size: int, check: Callable[[], None], *, chunk: int = 1 << 18
) -> Iterator[bytes]:
    """A part of a file in chunks; ``check`` is called before each. A file that ends early ends the chunks."""
    end = offset + size
    while offset < end:
        check()
        data = os.pread(fd, min(chunk, end - offset), offset)
        if not data:
            return
        offset += len(data)
        yield data


class _End:
    def __init__(self) -> None:
        self.error: BaseException | None = None


class ReadAhead:
    """Runs an iterator of chunks in another thread; a context manager that always ends that thread."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._source = chunks
        self._queue: queue.Queue[bytes | _End] = queue.Queue(_DEPTH)
        self._closed = self._ended = False
        self._thread = threading.Thread(target=self._run, name="image read-ahead")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        while not self._ended:  # a producer that waits for room gets it, and then sees the flag
            self._ended = isinstance(self._queue.get(), _End)
        self._thread.join()

    def __iter__(self) -> Iterator[bytes]:
        while not self._ended:
            item = self._queue.get()
            if not isinstance(item, _End):
                yield item
                continue
            self._ended = True
            if item.error is not None:
                raise item.error

    def _run(self) -> None:
        end = _End()
        try:
            for chunk in self._source:
                if self._closed:
                    break
                self._queue.put(chunk)
        except BaseException as error:
            end.error = error  # raised where the chunks are read
        finally:
            self._queue.put(end)
