"""Ending and removing sandboxes, by name: what a handle does, and what replacing one needs.

Whoever waits here waits for the supervisor's process to end (a pidfd), not for a row to change: when it
returns, the disks are unlocked and the name is free.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from microsandbox.agent.connection import Connection
from microsandbox.agent.protocol import MessageType, encode
from microsandbox.errors import (
    AgentClientError,
    MicrosandboxError,
    SandboxNotFoundError,
    SandboxStillRunningError,
)
from microsandbox.sandbox.context import Context
from microsandbox.store.database import DatabaseError
from microsandbox.store.files import host_errors, partial_path, remove_leftovers, remove_tree
from microsandbox.store.processes import open_children
from microsandbox.store.sandboxes import Reason, SandboxRow, Status

#: Seconds: for a guest to flush and power off, for a killed process to be gone, for a connection.
STOP_TIMEOUT, KILL_TIMEOUT, CONNECT_TIMEOUT, REPLACE_GRACE = 10.0, 5.0, 10.0, 10.0
_TAKE_OVER_POLL = 0.1


class Observed(Struct, frozen=True):
    """What is known when a sandbox has been seen stopped; ``at`` is in Unix seconds."""

    name: str
    status: Status
    at: float


async def request_stop(context: Context, name: str) -> SandboxRow | None:
    """Ask the guest to power off: through the relay, else by SIGTERM. None when nobody is left to do it."""
    row = _answering(context, name)
    if row is None:
        return None
    try:
        connection = await Connection.open(context.home.sandbox(name).agent_socket, timeout=CONNECT_TIMEOUT)
    except AgentClientError:
        _send(row, signal.SIGTERM)
        return row
    try:
        await connection.send(encode(0, MessageType.SHUTDOWN))
        connection.finish()
        await connection.wait_closed()
    except AgentClientError:
        _send(row, signal.SIGTERM)
    finally:
        connection.close()
    return row


def _answering(context: Context, name: str) -> SandboxRow | None:
    """The row of a sandbox that a supervisor answers for; None when its run has ended.

    A run that has no supervisor yet is given up: the one its owner is about to start will find out, and the
    owner be told. The owner is somebody's program; it is never signalled.
    """
    while True:
        row = context.sandboxes.get(name)
        if row.status.terminal or row.run_id is None:
            return None
        if row.supervised:
            return row
        if context.sandboxes.give_up(row):
            return None


async def stop(context: Context, name: str, timeout: float | None) -> None:
    """Power off, and kill after ``timeout`` seconds (default 10; 0 kills at once)."""
    grace = STOP_TIMEOUT if timeout is None else timeout
    if grace == 0:
        await kill(context, name, None)
        return
    try:
        async with asyncio.timeout(grace):
            row = await request_stop(context, name)
            if row is not None:
                await _gone(row, None)
    except TimeoutError:
        await kill(context, name, None)


def request_kill(context: Context, name: str) -> None:
    """SIGKILL the supervisor; its machine dies with it. Does nothing when it has ended."""
    row = context.sandboxes.get(name)
    if row.status.terminal:
        return
    if row.supervised:
        note_kill(context, row)
    if not _send(row, signal.SIGKILL):
        raise MicrosandboxError(f"runtime error: cannot kill sandbox '{name}': sandbox state is unavailable")


def request_drain(context: Context, name: str) -> None:
    """Ask the supervisor to finish what runs and start nothing new. Does nothing when it has ended."""
    row = context.sandboxes.get(name)
    if not row.status.terminal and not _send(row, signal.SIGUSR1):
        raise MicrosandboxError(f"runtime error: cannot drain sandbox '{name}': sandbox state is unavailable")


async def kill(context: Context, name: str, timeout: float | None) -> None:
    """SIGKILL, and wait ``timeout`` seconds (default 5) for the end; the status is Stopped then."""
    row = _answering(context, name)
    if row is None:
        return
    limit = KILL_TIMEOUT if timeout is None else timeout
    machine = open_children(row.process.pid) if row.process is not None and row.process.alive() else []
    note_kill(context, row)
    _send(row, signal.SIGKILL)
    if not all(await asyncio.gather(_gone(row, limit), end_machine(machine, limit))):
        raise not_observed(name)
    settle_killed(context, row)


def note_kill(context: Context, row: SandboxRow) -> None:
    """Write down what is about to be done to the row's run, for those who find it done."""
    if row.run_id is not None:
        with suppress(DatabaseError):  # a disk that is full must not save it; how it ended is written later
            context.sandboxes.note_kill(row.run_id)


def settle_killed(context: Context, row: SandboxRow) -> None:
    """Record the end of a run whose supervisor was killed and so could not."""
    if row.run_id is not None:
        context.sandboxes.end_run(
            row.id, row.run_id, Status.STOPPED, Reason.SIGNAL, exit_signal=signal.SIGKILL, detail="killed"
        )


async def wait_until_stopped(context: Context, name: str) -> Observed:
    """Return when the sandbox's present run has ended, however long that takes."""
    first = context.sandboxes.get(name)
    current: SandboxRow | None = first
    while current is not None and not current.status.terminal and current.run_id == first.run_id:
        if current.supervised:
            await _gone(current, None)
        else:  # nothing tells when its owner has handed it to a supervisor
            await asyncio.sleep(_TAKE_OVER_POLL)
        current = context.sandboxes.find(name)
    return observe(context, first)


def observe(context: Context, row: SandboxRow) -> Observed:
    """What a run that has ended came to, whatever has become of the sandbox since."""
    return Observed(row.name, context.sandboxes.verdict(row), time.time())


async def remove(context: Context, name: str, *, only: SandboxRow | None = None) -> None:
    """Delete a stopped sandbox and its directory; with ``only``, not another that has its name by now.

    Raises SandboxNotFoundError, SandboxStillRunningError.
    """
    directory = context.home.sandbox(name).directory
    doomed = Doomed(directory)
    with host_errors():
        try:
            context.sandboxes.remove(name, doomed.take_away, only=only)
        except SandboxNotFoundError:
            if only is not None or not directory.is_dir():
                raise
            context.sandboxes.remove_files(name, doomed.take_away)
        deleting = asyncio.ensure_future(asyncio.to_thread(doomed.delete))
        try:
            await asyncio.shield(deleting)
        finally:  # a thread goes on when it is cancelled, and files would be left for a while
            await asyncio.wait((deleting,))


class Doomed:
    """A directory that is to go: taken away in one step, deleted at leisure."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._aside = partial_path(directory)

    def take_away(self) -> None:
        with suppress(FileNotFoundError):
            self._directory.rename(self._aside)

    def delete(self) -> None:
        """Delete it, and what others did not get to delete: nothing that is aside is wanted any more."""
        remove_tree(self._aside)
        with suppress(OSError):
            remove_leftovers(self._directory.parent, older_than=math.inf)


async def make_way(context: Context, name: str, grace: float) -> None:
    """Remove a sandbox of that name, running or not: SIGTERM, ``grace`` seconds, SIGKILL."""
    while True:
        row = context.sandboxes.find(name)
        if row is not None and not row.status.terminal:
            if grace > 0 and _send(row, signal.SIGTERM):
                await _gone(row, grace)
            with suppress(SandboxNotFoundError):
                await kill(context, name, None)
        try:
            await remove(context, name)
        except SandboxNotFoundError:
            return
        except SandboxStillRunningError:  # somebody else has started it, or made it anew, meanwhile
            continue
        return


def not_observed(name: str) -> MicrosandboxError:
    return MicrosandboxError(f"runtime error: timed out observing stopped state for sandbox '{name}'")


def _send(row: SandboxRow, number: int) -> bool:
    """Signal the supervisor that answers for the row; False when there is none."""
    fd = row.process.open_pidfd() if row.process is not None and row.supervised else None
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


async def _gone(row: SandboxRow, timeout: float | None) -> bool:
    """Wait for the process that answers for the row; False after ``timeout`` seconds."""
    fd = None if row.process is None else row.process.open_pidfd()
    return fd is None or await ended([fd], timeout)


async def end_machine(pidfds: list[int], timeout: float) -> bool:
    """See the children of a supervisor gone that is being killed. A hostile one might not die with it."""
    for fd in pidfds:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    return await ended(pidfds, timeout)


async def ended(pidfds: list[int], timeout: float | None) -> bool:
    """Wait for processes and close their descriptors; False when one is left after ``timeout`` seconds."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None if timeout is None else max(timeout, 0)):
            for fd in pidfds:
                gone = asyncio.Event()
                loop.add_reader(fd, gone.set)
                try:
                    await gone.wait()
                finally:
                    loop.remove_reader(fd)
    except TimeoutError:
        return False
    finally:
        for fd in pidfds:
            os.close(fd)
    return True
