"""A supervisor's first milliseconds: QEMU is started, and then everything else imported.

QEMU needs longer to come up than Python to import asyncio, cbor2 and sqlite3; so they do it side by side.
Until QEMU runs nothing is imported that takes milliseconds: it is described in full by the owner, who has all
those modules already. The same goes for the first words to a guest that goes on from a template.
"""

from __future__ import annotations

import _socket
import marshal
import os
import stat
import sys
import time

from microsandbox.runtime import descriptors
from microsandbox.runtime.asyncio_without_tls import import_asyncio
from microsandbox.vmm import linux
from microsandbox.vmm.jail import Jailed, JailedProcess, start

_ALL_DESCRIPTORS = 1 << 20
_MINE = (descriptors.ERRORS_FD, descriptors.QMP_FD, descriptors.CONSOLE_FD, descriptors.AGENT_FD)


class Started:
    """A QEMU that was started, or why not; and our ends of its sockets: errors, QMP, console, agent."""

    def __init__(self, process: JailedProcess | None, sockets: tuple[int, ...], problem: str = "") -> None:
        self.process, self.sockets, self.problem = process, sockets, problem


def run(arguments: list[str]) -> int:
    """The whole life of a supervisor. Returns its exit status."""
    # A terminal's Ctrl-C and hang-up go to the owner's whole process group; the owner decides.
    linux.set_signal(linux.SIGINT, linux.SIG_IGN)
    linux.set_signal(linux.SIGHUP, linux.SIG_IGN)
    watchdog = _watchdog(arguments)
    marks = [("supervisor starts", time.monotonic_ns())]
    with open(descriptors.PLAN_FD, "rb") as file:
        parcel = marshal.load(file)  # noqa: S302 - written by our parent, the same interpreter
    disks = {disk["fd"] for disk in parcel["plan"]["disks"]}
    shown = range(descriptors.FIRST_SHOWN_FD, descriptors.LAST_SHOWN_FD + 1)
    _close_all_but({0, 1, 2, watchdog or 0, descriptors.STATE_FD, *shown, *disks})
    for fd in disks:
        os.set_inheritable(fd, False)  # a lock lasts as long as a copy is open: only QEMU gets one
    os.chdir("/")
    started = _start(Jailed(*parcel["jailed"]))
    os.closerange(descriptors.FIRST_SHOWN_FD, descriptors.LAST_SHOWN_FD + 1)
    os.closerange(descriptors.STATE_FD, descriptors.STATE_FD + 1)
    marks.append(("QEMU starts", time.monotonic_ns()))
    if parcel["first_words"] is not None and started.process is not None:
        head, tail = parcel["first_words"]
        os.write(started.sockets[-1], head + time.time_ns().to_bytes(8) + tail)

    import_asyncio()
    from microsandbox.runtime.launch import supervise

    return supervise(parcel["plan"], started, watchdog, marks)


def _start(jailed: Jailed) -> Started:
    ours = []
    for number in _MINE:
        our_end, their_end = _socket.socketpair()
        os.dup2(their_end.fileno(), number, inheritable=False)
        their_end.close()
        ours.append(our_end.detach())
    try:
        return Started(start(jailed), tuple(ours))
    except OSError as error:
        return Started(None, tuple(ours), f"the jail around QEMU cannot be made ({jailed.kind}): {error}")
    finally:
        for number in _MINE:
            os.close(number)


def _watchdog(arguments: list[str]) -> int | None:
    """The descriptor to watch, if any. Exits with status 2 when it is not what it should be."""
    if "--parent-watch-fd" not in arguments:
        return None
    given = arguments[arguments.index("--parent-watch-fd") + 1 :][:1]
    if given != [str(descriptors.WATCHDOG_FD)] or not _is_pipe(descriptors.WATCHDOG_FD):
        print(f"msb sandbox: --parent-watch-fd must be {descriptors.WATCHDOG_FD} and a pipe", file=sys.stderr)
        sys.exit(2)
    return descriptors.WATCHDOG_FD


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False


def _close_all_but(kept: set[int]) -> None:
    """What the owner's program left inheritable (its sockets, perhaps) must not live as long as we do."""
    ordered = sorted(kept)
    for fd, following in zip(ordered, [*ordered[1:], _ALL_DESCRIPTORS], strict=True):
        os.closerange(fd + 1, following)
