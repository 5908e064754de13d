"""Our standard descriptors as byte streams of an event loop.

They are shared with the shell and with other programs, so they are never made non-blocking: a pipe or a
terminal is opened a second time through ``/proc/self/fd``, which gives us flags of our own. What cannot be
opened again (sockets) is written in pieces that fit once the kernel says there is room; files never block.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
from typing import Self

#: What a pipe that is said to be writable takes without blocking (pipe(7), PIPE_BUF).
_SURE_TO_FIT = 4096
READ_SIZE = 64 << 10


def _own_descriptor(fd: int, flags: int) -> int | None:
    """A non-blocking description of the same pipe or terminal, or None."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISFIFO(mode) and not os.isatty(fd):
        return None
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None


class Output:
    """Writes in order, waiting for the reader at the other end. Raises BrokenPipeError when that is gone."""

    def __init__(self, fd: int) -> None:
        self._own = _own_descriptor(fd, os.O_WRONLY)
        self._fd = fd if self._own is None else self._own
        self._piece = _SURE_TO_FIT if self._own is None else READ_SIZE
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    async def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            if not self._poll.poll(0):
                await self._writable()
            try:
                rest = rest[os.write(self._fd, rest[: self._piece]) :]
            except BlockingIOError:
                await self._writable()

    async def _writable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(self._fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            os.close(self._own)


class Input:
    """Reads what is there, as it comes; empty bytes are the end."""

    def __init__(self, fd: int) -> None:
        self._own = _own_descriptor(fd, os.O_RDONLY)
        self._fd = fd if self._own is None else self._own

    async def read(self) -> bytes:
        while True:
            await self._readable()
            try:
                return os.read(self._fd, READ_SIZE)
            except BlockingIOError:
                continue
            except OSError:
                return b""  # a terminal that hung up, a directory, a descriptor opened for writing only

    async def _readable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        try:
            loop.add_reader(self._fd, ready.set)
        except PermissionError:  # files and /dev/null are always readable, and epoll refuses them
            return
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            os.close(self._own)
