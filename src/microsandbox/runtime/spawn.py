"""Starting a supervisor: one process per sandbox, told everything through descriptors.

The steps run in order, and a failure at any of them gives back everything acquired before it.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from enum import Enum
from pathlib import Path

from microsandbox.errors import MicrosandboxError
from microsandbox.interpreter import DEFAULT_SIGNALS, module_command, module_environment
from microsandbox.runtime import standby
from microsandbox.runtime.descriptors import FIRST_DISK_FD, PLAN_FD, WATCHDOG_FD
from microsandbox.runtime.plan import Parcel
from microsandbox.runtime.process import ProcessHandle, Reservation

#: Seconds a supervisor may take to print its startup line.
STARTUP_TIMEOUT = 30.0
_STARTUP_LINE_LIMIT = 4096
#: Descriptors are moved above this first, so that giving one its final number never overwrites another.
_HIGH_FD = 200


class SpawnMode(Enum):
    """Attached: ends with its owner. Detached: lives on once the owner lets go."""

    ATTACHED = "attached"
    DETACHED = "detached"


async def spawn(
    parcel: Parcel,
    disks: Sequence[int],
    mode: SpawnMode,
    *,
    reservation: Reservation | None = None,
    staging: Path | None = None,
) -> ProcessHandle:
    """Start the supervisor of a sandbox and return once it has said that it runs.

    ``disks`` are descriptors in the order of the plan's disks; they stay the caller's to close, and so
    does a lock on them: it lasts as long as any copy is open. Raises MicrosandboxError when the process
    does not start as it should; it is gone then.
    """
    plan = parcel.plan
    plan.logs.mkdir(mode=0o700, exist_ok=True)  # not its parent: a sandbox that is gone stays gone
    with ExitStack() as ours:
        stdout, child_stdout = os.pipe()
        ours.callback(os.close, stdout)
        with ExitStack() as theirs:
            theirs.callback(os.close, child_stdout)
            plan_fd = parcel.to_fd()
            theirs.callback(os.close, plan_fd)
            targets = [(child_stdout, 1), (plan_fd, PLAN_FD), *parcel.descriptors]
            targets += [(fd, FIRST_DISK_FD + index) for index, fd in enumerate(disks)]
            watchdog = None
            if mode is SpawnMode.ATTACHED:
                watched, watchdog = os.pipe()
                theirs.callback(os.close, watched)
                targets.append((watched, WATCHDOG_FD))
            pid = None
            try:
                pid = _start(plan.name, mode, targets)
                handle = ProcessHandle(
                    pid, plan.name, watchdog=watchdog, reservation=reservation, staging=staging
                )
            except BaseException:
                if pid is not None:
                    _end_unheld(pid)
                if watchdog is not None:
                    os.close(watchdog)
                if reservation is not None:
                    reservation.release()
                raise
        try:
            await _check_startup_line(handle, stdout)
        except BaseException:
            await abandon(handle)
            raise
    return handle


async def abandon(handle: ProcessHandle) -> None:
    """Kill a supervisor and see it gone, also when cancelled meanwhile."""
    with suppress(ProcessLookupError):
        handle.kill()
    ending = asyncio.ensure_future(handle.wait())
    try:
        await asyncio.shield(ending)
    finally:
        await asyncio.wait((ending,))
        handle.close()


def _end_unheld(pid: int) -> None:
    """See a child gone that nobody watches, for want of descriptors for instance."""
    with suppress(ProcessLookupError, ChildProcessError):  # this program reaps all children there are
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _start(name: str, mode: SpawnMode, targets: Iterable[tuple[int, int]]) -> int:
    """Start the supervisor with its descriptors at their numbers."""
    arguments = ["--name", name]
    if mode is SpawnMode.ATTACHED:
        arguments += ["--parent-watch-fd", str(WATCHDOG_FD)]
    with ExitStack() as stack:
        placed = []
        for source, number in targets:
            high = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
            stack.callback(os.close, high)
            placed.append((high, number))
        waiting = standby.take()
        if waiting is not None and waiting.serve(arguments, placed):
            return waiting.pid
        return _spawn(arguments, placed, mode)


def _spawn(arguments: Sequence[str], placed: Iterable[tuple[int, int]], mode: SpawnMode) -> int:
    """A new interpreter. The owner's memory is not copied."""
    argv = module_command("microsandbox.runtime", *arguments)
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    ]
    actions += [(os.POSIX_SPAWN_DUP2, source, number) for source, number in placed]
    return os.posix_spawn(
        argv[0],
        argv,
        module_environment(),
        file_actions=actions,
        setsid=mode is SpawnMode.DETACHED,
        setsigmask=(),
        setsigdef=DEFAULT_SIGNALS,
    )


async def _check_startup_line(handle: ProcessHandle, stdout: int) -> None:
    """Read ``{"pid": N}``, the only line a supervisor ever prints. Raises MicrosandboxError."""
    try:
        async with asyncio.timeout(STARTUP_TIMEOUT):
            line = await _read_line(stdout)
    except TimeoutError:
        raise MicrosandboxError(
            f"runtime error: sandbox startup timeout: no JSON received within {STARTUP_TIMEOUT:g} seconds"
        ) from None
    with suppress(ValueError, TypeError, KeyError):
        if json.loads(line)["pid"] == handle.pid:
            return
    with suppress(ProcessLookupError):
        handle.kill()
    status = await handle.wait()
    raise MicrosandboxError(
        f"runtime error: sandbox process exited ({status}) before sending startup info "
        f"(line: {line.decode('utf-8', 'replace')!r}, check stderr above for details)"
    )


async def _read_line(fd: int) -> bytes:
    """Up to the first newline, end of file or the limit."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < _STARTUP_LINE_LIMIT:
            await readable.wait()
            readable.clear()
            with suppress(BlockingIOError):
                piece = os.read(fd, _STARTUP_LINE_LIMIT - len(line))
                if not piece:
                    break
                line += piece
    finally:
        loop.remove_reader(fd)
    return line
