"""What a sandbox's commands printed, and what was said about it: read once, or followed as it is written."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Self

from microsandbox.arguments import flag, optional, parameter, real, text, text_list, whole
from microsandbox.errors import SandboxNotFoundError
from microsandbox.logs.cursor import load_cursor
from microsandbox.logs.follow import LogFollower
from microsandbox.logs.snapshot import snapshot
from microsandbox.logs.sources import files_of, select
from microsandbox.sandbox.context import Context
from microsandbox.types import LogEntry
from microsandbox.unavailable import Unavailable

#: Milliseconds from the epoch within which a time means something.
_MAX_TIME = 8.64e15


async def read_logs(
    context: Context, name: str, *, tail: Any, since_ms: Any, until_ms: Any, sources: Any
) -> list[LogEntry]:
    """All that is there now, in the order of time. Raises SandboxNotFoundError, ValueError."""
    count = optional(lambda value: whole(value, 64), tail)
    since, until = (
        time if time is not None and _is_possible(time) else None
        for time in (_time("since_ms", since_ms), _time("until_ms", until_ms))
    )
    chosen = _sources(sources)
    found = await asyncio.to_thread(
        snapshot, _directory(context, name), chosen, tail=count, since_ms=since, until_ms=until
    )
    return found.entries


def open_log_stream(
    context: Context, name: str, *, sources: Any, since_ms: Any, from_cursor: Any, until_ms: Any, follow: Any
) -> LogStream:
    """Entries file by file, from the beginning unless told otherwise.

    Raises ValueError, LogCursorError, SandboxNotFoundError.
    """
    chosen = _sources(sources)
    since, until = _time("since_ms", since_ms), _time("until_ms", until_ms)
    cursor = optional(lambda value: parameter("from_cursor", text, value), from_cursor)
    following = parameter("follow", flag, follow)
    if since is not None and cursor is not None:
        raise ValueError("since_ms and from_cursor are mutually exclusive")
    for what, time in (("since_ms", since), ("until_ms", until)):
        if time is not None and not _is_possible(time):
            raise ValueError(f"invalid {what} value {time}")
    try:
        start = None if cursor is None else load_cursor(cursor, len(files_of(chosen)))
    except ValueError as error:
        raise ValueError(f"invalid from_cursor: {error}") from None
    return LogStream._of(
        LogFollower(
            _directory(context, name), chosen, start, since_ms=since, until_ms=until, follow=following
        )
    )


class LogStream(Unavailable):
    """Entries of a sandbox's logs, for ``async for``. ``log_stream()`` returns one.

    It holds files open until it ends, is closed, or is dropped.
    """

    _follower: LogFollower

    @classmethod
    def _of(cls, follower: LogFollower) -> Self:
        stream = cls.__new__(cls)
        stream._follower = follower
        return stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LogEntry:
        """Raises LogRotatedError, and has ended then, when files were deleted that it had yet to read."""
        entry = await self._follower.next()
        if entry is None:
            raise StopAsyncIteration
        return entry

    async def aclose(self) -> None:
        """End the stream now."""
        self._follower.close()


def _sources(sources: Any) -> frozenset[str]:
    return select(optional(lambda value: parameter("sources", text_list, value), sources))


def _time(what: str, value: Any) -> float | None:
    return optional(lambda time: parameter(what, real, time), value)


def _is_possible(milliseconds: float) -> bool:
    return abs(milliseconds) <= _MAX_TIME  # and so it is a number


def _directory(context: Context, name: str) -> Path:
    logs = context.home.sandbox(name).logs
    if not logs.is_dir():
        raise SandboxNotFoundError(name)
    return logs
