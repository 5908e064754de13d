"""One log file with the older ones it was rotated into, read as the single stream of lines that it is.

A file is known by its inode: rotation renames it while it is read, and it stays open until it is read to its
end. A line is read again from its beginning until its end is there; so nothing is kept between two reads, and
a writer may take back half a line that the disk was too full for.
"""

from __future__ import annotations

import io
import os
from collections import deque
from contextlib import suppress

from microsandbox.errors import LogCursorError, LogRotatedError
from microsandbox.logs.cursor import BEGINNING, Position

#: Bytes of one read. A longer line is given out in pieces; ours are shorter.
STEP = 512 << 10
_GENERATIONS = 5

Lines = list[tuple[bytes, Position]]


class _Generation(io.FileIO):
    """One file, open for reading."""

    def __init__(self, directory: int, name: str) -> None:
        super().__init__(name, opener=lambda path, flags: os.open(path, flags, dir_fd=directory))
        self.inode = os.fstat(self.fileno()).st_ino

    @property
    def size(self) -> int:
        return os.fstat(self.fileno()).st_size


class LogChain:
    """Whole lines from a position on, oldest first. Raises LogCursorError when the position is gone.

    ``directory`` is a descriptor, as another sandbox of the same name may take the place of the path.
    ``partial``: an unfinished last line counts when nothing more will be read, as it does in plain text.
    """

    def __init__(
        self, directory: int, name: str, start: Position = BEGINNING, *, partial: bool = False
    ) -> None:
        self._directory, self._name = directory, name
        self._partial = partial
        self._files = deque(self._open_generations(start.inode))
        self._offset = start.offset if start.inode else 0
        self._limit: int | None = None
        self._rotated_away = False
        if start.inode and not self._is_at(start):
            self.close()
            raise LogCursorError(f"{name} generation {start.inode} is not in the current rotation chain")

    def _is_at(self, start: Position) -> bool:
        return (
            bool(self._files) and self._files[0].inode == start.inode and start.offset <= self._files[0].size
        )

    @property
    def position(self) -> Position:
        """After the last line that was read."""
        return Position(self._files[0].inode, self._offset) if self._files else BEGINNING

    @property
    def modified_ms(self) -> float:
        """When the file was last written that the last lines are from."""
        return os.fstat(self._files[0].fileno()).st_mtime_ns / 1e6 if self._files else 0.0

    def finish(self) -> None:
        """Let the stream end where the file ends now, however it grows."""
        if self._limit is None:
            if not self._files:
                self._files.extend(self._open_generations())
            elif len(self._files) == 1:
                self._is_complete()
            self._limit = self._files[-1].size if self._files else 0

    def read(self) -> Lines:
        """The next lines, each with the position after it; none when there are no more as yet.

        All are from one file. Raises LogRotatedError when the file that followed was rotated away.
        """
        if not self._files and self._limit is None:
            self._files.extend(self._open_generations())
        while self._files:
            if lines := self._read_lines():
                return lines
            if not self._is_complete():
                return self._last_line() if self._limit is not None and self._partial else []
            # Once more: the last lines may have been written after we read, and before the file was renamed.
            if lines := self._read_lines() or self._last_line():
                return lines
            if len(self._files) == 1:
                raise LogRotatedError(self._offset)
            self._files.popleft().close()
            self._offset = 0
        return []

    def _is_complete(self) -> bool:
        """Whether the file that is read has been rotated, so that it does not grow any more."""
        if len(self._files) > 1 or self._rotated_away:
            return True
        if self._limit is not None:
            return False
        current = self._files[0]
        with suppress(FileNotFoundError):  # in the middle of a rotation, or gone with everything
            if os.stat(self._name, dir_fd=self._directory).st_ino == current.inode:
                return False
            generations = self._open_generations(current.inode)
            if generations and generations[0].inode == current.inode:
                generations.pop(0).close()
                self._files.extend(generations)
            elif generations:
                self._rotated_away = True
                for file in generations:
                    file.close()
        return len(self._files) > 1 or self._rotated_away

    def _read_lines(self) -> Lines:
        data = self._read_ahead()
        end = data.rfind(b"\n") + 1
        return self._cut(data if not end and len(data) == STEP else data[:end])

    def _last_line(self) -> Lines:
        return self._cut(self._read_ahead())

    def _read_ahead(self) -> bytes:
        size = STEP
        if self._limit is not None and len(self._files) == 1:
            size = min(size, max(self._limit - self._offset, 0))
        return os.pread(self._files[0].fileno(), size, self._offset)

    def _cut(self, data: bytes) -> Lines:
        inode, lines = self._files[0].inode, []
        for line in io.BytesIO(data):  # at newlines only, where bytes.splitlines() cuts elsewhere, too
            self._offset += len(line)
            lines.append((line, Position(inode, self._offset)))
        return lines

    def close(self) -> None:
        while self._files:
            self._files.popleft().close()

    def _open_generations(self, first: int = 0) -> list[_Generation]:
        """The file and its older generations, oldest first, beginning with inode ``first`` if it is there.

        They are opened newest first: a rotation meanwhile shows one twice, but hides none.
        """
        files: dict[int, _Generation] = {}
        for number in range(_GENERATIONS):
            with suppress(FileNotFoundError):
                file = _Generation(self._directory, f"{self._name}.{number}" if number else self._name)
                if file.inode in files:
                    file.close()
                    continue
                files[file.inode] = file
                if file.inode == first:
                    break
        return list(files.values())[::-1]
