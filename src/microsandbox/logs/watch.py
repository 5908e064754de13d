"""Waiting for a directory's files to change: inotify(7) by ctypes, which Python does not have."""

from __future__ import annotations

import asyncio
import ctypes
import io
import os
from contextlib import suppress
from pathlib import Path

_MODIFY, _MOVED_TO, _CREATE, _DELETE, _DELETE_SELF = 0x2, 0x80, 0x100, 0x200, 0x400
_EVENTS = _MODIFY | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF
_BUFFER = 64 << 10
#: Seconds between looks where the kernel has no watch left for us (fs.inotify.max_user_instances).
_POLL = 2.0

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Notices every change from its making on: look at the files, then wait for ``changed()``."""

    def __init__(self, directory: Path) -> None:
        self._file = _watch(directory)
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Let the waiter look, whether there is something to see or not."""
        self._woken.set()

    async def changed(self) -> None:
        """Return when something may have changed since the last call."""
        loop = asyncio.get_running_loop()
        if self._file is not None:
            loop.add_reader(self._file.fileno(), self._woken.set)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL if self._file is None else None):
                    await self._woken.wait()
        finally:
            if self._file is not None:
                loop.remove_reader(self._file.fileno())
        self._woken.clear()
        if self._file is not None:
            self._file.read(_BUFFER)  # what they say does not matter

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _watch(directory: Path) -> io.FileIO | None:
    fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        return None
    file = io.FileIO(fd)
    if _libc.inotify_add_watch(fd, os.fsencode(directory), _EVENTS) < 0:
        file.close()
        return None
    return file
