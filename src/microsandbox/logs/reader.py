"""Entries of a log directory, in the order they are read, a bounded step at a time."""

from __future__ import annotations

import heapq
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from microsandbox.logs.chain import LogChain
from microsandbox.logs.cursor import BEGINNING, Position, dump_cursor
from microsandbox.logs.lines import Record, parse_exec, parse_text
from microsandbox.logs.sources import EXEC, files_of
from microsandbox.types import LogEntry


class Found(Struct, frozen=True, gc=False):
    """A record, which of the files it is from, and the position after it."""

    record: Record
    file: int
    after: Position


class LogReader:
    """Reads the files that the sources are in. Owns their descriptors: ``close()`` it.

    Raises LogCursorError when ``start`` is no longer there.
    """

    def __init__(
        self, directory: Path, sources: frozenset[str], start: Sequence[Position] | None = None
    ) -> None:
        self._sources = sources
        self._chains: list[LogChain] = []
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._close_directory = weakref.finalize(self, os.close, self._directory)  # as files do themselves
        names = files_of(sources)
        try:
            for name, position in zip(names, start or [BEGINNING] * len(names), strict=True):
                self._chains.append(LogChain(self._directory, name, position, partial=name != EXEC))
        except BaseException:
            self.close()
            raise

    @property
    def positions(self) -> list[Position]:
        """After everything that was read, by file."""
        return [chain.position for chain in self._chains]

    @property
    def orphaned(self) -> bool:
        """Whether the directory was deleted, so that nothing will be added."""
        return os.fstat(self._directory).st_nlink == 0

    def finish(self) -> None:
        """Come to an end where the files end now."""
        for chain in self._chains:
            chain.finish()

    def step(self) -> list[Found] | None:
        """The next records, each file's in its order; None when nothing more is there as yet.

        Raises LogRotatedError.
        """
        batches = [self._read(index, chain) for index, chain in enumerate(self._chains)]
        if all(batch is None for batch in batches):
            return None
        return list(heapq.merge(*(batch or () for batch in batches), key=_time))

    def _read(self, index: int, chain: LogChain) -> list[Found] | None:
        lines = chain.read()
        if not lines:
            return None
        if index:
            modified = chain.modified_ms
            return [Found(parse_text(line, modified), index, after) for line, after in lines]
        parsed = ((parse_exec(line), after) for line, after in lines)
        return [
            Found(record, index, after)
            for record, after in parsed
            if record is not None and record.source in self._sources
        ]

    def close(self) -> None:
        for chain in self._chains:
            chain.close()
        self._close_directory()


def entry(record: Record, positions: Sequence[Position]) -> LogEntry:
    return LogEntry(
        record.timestamp_ms, record.source, record.session_id, dump_cursor(positions), record.data
    )


def _time(found: Found) -> float:
    return found.record.timestamp_ms
