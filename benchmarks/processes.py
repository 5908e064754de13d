"""What sandboxes cost: the processes of each, their memory and their CPU time, by proc(5)."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Processes:
    """The processes of one sandbox: its supervisor, and what that has started (QEMU)."""

    supervisor: int
    machine: tuple[int, ...]

    @property
    def all(self):
        return (self.supervisor, *self.machine)


def sandboxes_of_this_process():
    """The processes of every attached sandbox that this process has created."""
    return [
        Processes(child, tuple(descendants(child)))
        for child in _children(os.getpid())
        if b"microsandbox.runtime" in Path(f"/proc/{child}/cmdline").read_bytes() and _children(child)
    ]


def descendants(pid):
    """Its children, their children and so on, if they run."""
    for child in _children(pid):
        yield child
        yield from descendants(child)


def memory(*pids):
    """MiB: what processes add to the machine's memory, pages divided among those who share them (PSS)."""
    total = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(rollup.split("\nPss:")[1].split()[0])
    return total / 1024


def cpu_seconds(*pids):
    """User and system time of processes so far, in steps of a clock tick (10 ms)."""
    ticks = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            ticks += sum(int(field) for field in _stat(pid)[11:13])
    return ticks / _TICKS


def _children(pid):
    """All threads' children; not those that have ended and are only not waited for."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in children.read_text().split():
                if _stat(child)[0] not in "ZX":
                    found.append(int(child))
    return found


def _stat(pid):
    """The fields of /proc/PID/stat from the state on, which is the third."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
