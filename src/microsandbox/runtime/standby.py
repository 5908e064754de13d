"""A supervisor in waiting: a fork of a program of ours, made before the program gets to work.

``msb run`` makes one when it has imported what both need, which saves the start of an interpreter and those
imports. Nobody else's program is forked: a fork keeps what is in memory, and of
several threads only the one that forks. It must be made before a database is opened, too: SQLite's locks
would not know whose they are.
"""

from __future__ import annotations

import gc
import marshal
import os
import socket
from collections.abc import Iterable, Sequence

_MAX_MESSAGE, _MAX_DESCRIPTORS = 4096, 32
_waiting: Standby | None = None


class Standby:
    """The owner's side. It ends by itself when its owner does, or goes on to something else."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self._line = line

    def send(self, arguments: Sequence[str], placed: Iterable[tuple[int, int]]) -> None:
        """Make it the supervisor: its arguments, and descriptors with the numbers they are to have."""
        fds, numbers = zip(*placed, strict=True)
        with self._line:
            socket.send_fds(self._line, [marshal.dumps((list(arguments), list(numbers)))], fds)


def prepare() -> None:
    """Fork a supervisor in waiting. Only for single-threaded programs of ours."""
    global _waiting
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _wait(theirs)
    theirs.close()
    _waiting = Standby(pid, ours)


def take() -> Standby | None:
    """The one that waits, if there is one; it is the caller's then."""
    global _waiting
    waiting, _waiting = _waiting, None
    return waiting


def _wait(line: socket.socket) -> None:
    """Never returns: what was on the stack belongs to the owner."""
    status = 1
    try:
        gc.freeze()  # what is collected closes its descriptors, and by then the numbers are ours
        import microsandbox.runtime.launch
        import microsandbox.runtime.supervisor  # noqa: F401 - to have been imported
        from microsandbox.runtime.program import run

        message, fds, _, _ = socket.recv_fds(line, _MAX_MESSAGE, _MAX_DESCRIPTORS)
        if not message:
            os._exit(0)  # the owner needs no supervisor
        arguments, numbers = marshal.loads(message)  # noqa: S302 - written by our parent
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for fd, number in zip(fds, numbers, strict=True):
            os.dup2(fd, number)
        status = run(arguments)
    finally:
        os._exit(status)
