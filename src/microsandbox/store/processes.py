"""Which process a catalogue row means: a pid alone may belong to somebody else by now.

Where it cannot be found out, as without a free descriptor, that is an OSError: who lives is not called dead.
"""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from pathlib import Path

from msgspec import Struct


@functools.cache
def boot_id() -> str:
    """The kernel's name for the time since the host was started; empty where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return ""


class ProcessIdentity(Struct, frozen=True):
    """A pid and when that process started (clock ticks since boot, proc(5) field 22)."""

    pid: int
    started: int

    @classmethod
    def current(cls) -> ProcessIdentity:
        identity = cls.of(os.getpid())
        assert identity is not None
        return identity

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The identity of a live process; None for one that is gone or a zombie. Raises OSError."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat[stat.rindex(b")") + 2 :].split()
        if fields[0] in (b"Z", b"X"):
            return None
        return cls(pid, int(fields[19]))

    def alive(self) -> bool:
        return ProcessIdentity.of(self.pid) == self

    def open_pidfd(self) -> int | None:
        """A descriptor that becomes readable when the process ends; None when it has ended."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        alive = False
        try:
            alive = self.alive()
        finally:
            if not alive:
                os.close(fd)
        return fd if alive else None


def open_children(pid: int) -> list[int]:
    """Descriptors of a process's children, each readable when that child has ended; those that can be had.

    Nobody shall live because there was no descriptor to wait for its end.
    """
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    descriptors = []
    for child in children:
        with suppress(OSError):
            descriptors.append(os.pidfd_open(int(child)))
    return descriptors
