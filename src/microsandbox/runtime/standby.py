"""A supervisor in waiting: an interpreter that has imported what a supervisor needs, and wants a sandbox.

``msb run`` forks one when it has imported what both need, which saves the start of an interpreter and those
imports. Nobody else's program is forked: a fork keeps what is in memory, and of several threads only the one
that forks. It must be made before a database is opened, too: SQLite's locks would not know whose they are.
Other programs have one started beside them once they have made two sandboxes: they may well make more.
"""

from __future__ import annotations

import gc
import marshal
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NoReturn

from microsandbox.interpreter import DEFAULT_SIGNALS, module_command, module_environment
from microsandbox.runtime.asyncio_without_tls import import_asyncio
from microsandbox.runtime.descriptors import STANDBY_FD

_MAX_DESCRIPTORS = 32
#: Programs that make one sandbox are many, and need no supervisor for a second one.
_SANDBOXES_BEFORE_SPARE = 2
_waiting: list[Standby] = []
_sandboxes = 0


class Standby:
    """The owner's side. The process ends by itself when its owner does, or goes on to something else."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self._line = line
        self._user = os.geteuid()

    def serve(self, arguments: Sequence[str], placed: Iterable[tuple[int, int]]) -> bool:
        """Make it the supervisor: its arguments, and descriptors with the numbers they are to have.

        False when it has ended, or runs as a user that we no longer are; it is gone then.
        """
        fds, numbers = zip(*placed, strict=True)
        order = marshal.dumps((list(arguments), list(numbers), dict(os.environ)))
        with self._line:
            try:
                if self._user == os.geteuid():
                    socket.send_fds(self._line, [order[:1]], fds)
                    self._line.sendall(order[1:])
                    return True
            except OSError:
                pass
        self.end()
        return False

    def end(self) -> None:
        """Have it end, and wait for that."""
        self._line.close()
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:  # this program leaves its children to the kernel, or reaps all there are
            return

    def forget(self) -> None:
        """For a fork of the owner, which must not keep it waiting."""
        self._line.close()


def fork() -> None:
    """Make one of this process. Only for single-threaded programs of ours."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.setsid()
        _wait(theirs)
    theirs.close()
    _waiting.append(Standby(pid, ours))


def sandbox_made() -> None:
    """Have a supervisor ready for the next sandbox, if one is to be expected and the host has room."""
    global _sandboxes
    _sandboxes += 1
    if _sandboxes >= _SANDBOXES_BEFORE_SPARE and not _waiting:
        with suppress(OSError):
            _waiting.append(_start())


def _start() -> Standby:
    ours, theirs = socket.socketpair()
    with theirs:
        argv = module_command("microsandbox.runtime", "--wait")
        devices = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1)]
        pid = os.posix_spawn(
            argv[0],
            argv,
            module_environment(),
            file_actions=[*devices, (os.POSIX_SPAWN_DUP2, theirs.fileno(), STANDBY_FD)],
            setsid=True,
            setsigmask=(),
            setsigdef=DEFAULT_SIGNALS,
        )
    return Standby(pid, ours)


def take() -> Standby | None:
    """The one that waits, if there is one; it is the caller's then."""
    try:
        return _waiting.pop()
    except IndexError:
        return None


def dismiss() -> None:
    """End what waits."""
    while (waiting := take()) is not None:
        waiting.end()


def wait_at_descriptor() -> NoReturn:
    """The life of one that was started: until its owner has a sandbox for it, and then as its supervisor."""
    with socket.socket(fileno=STANDBY_FD) as line:
        line.set_inheritable(False)
        _wait(line)


def _wait(line: socket.socket) -> NoReturn:
    """What was on the stack belongs to the owner."""
    status = 1
    try:
        import_asyncio()
        import microsandbox.runtime.launch
        import microsandbox.runtime.supervisor  # noqa: F401 - to have been imported
        from microsandbox.runtime.program import run

        gc.freeze()  # what is collected closes its descriptors, and by then the numbers are ours
        order, fds, _, _ = socket.recv_fds(line, 1, _MAX_DESCRIPTORS)
        if not order:
            os._exit(0)  # the owner needs no supervisor
        while piece := line.recv(1 << 16):
            order += piece
        arguments, numbers, environment = marshal.loads(order)  # noqa: S302 - written by our owner
        os.environ.clear()
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for fd, number in zip(fds, numbers, strict=True):
            os.dup2(fd, number)
        status = run(arguments)
    finally:
        os._exit(status)


def _forget_all() -> None:
    while (waiting := take()) is not None:
        waiting.forget()


os.register_at_fork(after_in_child=_forget_all)
