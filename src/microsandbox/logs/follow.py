"""Entries of a log directory one after the other, and those to come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from microsandbox.logs.cursor import Position
from microsandbox.logs.reader import LogReader, entry
from microsandbox.logs.watch import Watch
from microsandbox.types import LogEntry


class LogFollower:
    """Reads a bounded step ahead. Owns descriptors: ``close()`` it.

    Without ``follow`` it ends where the files ended when it was made; with it, when the directory is gone.

    Raises LogCursorError when ``start`` is no longer there.
    """

    def __init__(
        self,
        directory: Path,
        sources: frozenset[str],
        start: Sequence[Position] | None = None,
        *,
        since_ms: float | None = None,
        until_ms: float | None = None,
        follow: bool = False,
    ) -> None:
        self._since_ms, self._until_ms = since_ms, until_ms
        self._watch = Watch(directory) if follow else None  # before the files are looked at
        try:
            self._reader = LogReader(directory, sources, start)
        except BaseException:
            if self._watch is not None:
                self._watch.close()
            raise
        self._following = follow
        self._ended = False
        self._ready: deque[LogEntry] = deque()
        self._positions = self._reader.positions
        if not follow:
            self._reader.finish()

    async def next(self) -> LogEntry | None:
        """The next entry, None at the end. Raises LogRotatedError, and has ended then."""
        while not self._ready and not self._ended:
            try:
                if not self._read():
                    await self._wait()
                else:
                    await asyncio.sleep(0)  # a long history is no reason for others to wait
            except asyncio.CancelledError:
                raise
            except BaseException:
                self.close()
                raise
        return self._ready.popleft() if self._ready else None

    def finish(self) -> None:
        """Follow no more: the end is where the files end now."""
        if self._ended:
            return
        self._reader.finish()
        self._following = False
        if self._watch is not None:
            self._watch.wake()

    def close(self) -> None:
        self._ready.clear()
        self._end()

    def _read(self) -> bool:
        """Read a step; False when there is nothing as yet."""
        found = self._reader.step()
        for item in found or ():
            record = item.record
            if self._until_ms is not None and record.timestamp_ms >= self._until_ms:
                self._end()
                break
            self._positions[item.file] = item.after
            if self._since_ms is None or record.timestamp_ms >= self._since_ms:
                self._ready.append(entry(record, self._positions))
        return found is not None

    async def _wait(self) -> None:
        if self._watch is None or not self._following or self._reader.orphaned:
            self._end()
        else:
            await self._watch.changed()

    def _end(self) -> None:
        self._ended = True
        self._reader.close()
        if self._watch is not None:
            self._watch.close()
