"""Ending a sandbox whose process this program holds; ``lifecycle`` ends one by its name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from microsandbox.errors import AgentClientError, MicrosandboxError
from microsandbox.runtime.process import ProcessHandle
from microsandbox.sandbox import lifecycle
from microsandbox.sandbox.context import Context
from microsandbox.store.processes import open_children
from microsandbox.store.sandboxes import SandboxRow


async def stop(
    context: Context,
    row: SandboxRow,
    process: ProcessHandle,
    request: Callable[[], Awaitable[None]],
    timeout: float | None,
) -> None:
    """``request`` a power-off, and kill after ``timeout`` seconds (default 10, 0 kills at once)."""
    grace = lifecycle.STOP_TIMEOUT if timeout is None else timeout
    try:
        if grace > 0:
            async with asyncio.timeout(grace):
                with suppress(AgentClientError):
                    await request()  # which may wait behind input that the guest does not take
                await process.wait()
            return
    except TimeoutError:
        pass
    with suppress(ProcessLookupError):  # it has ended by itself
        await _kill(context, row, process, lifecycle.KILL_TIMEOUT)


async def kill(context: Context, row: SandboxRow, process: ProcessHandle, timeout: float | None) -> None:
    """SIGKILL, and wait ``timeout`` seconds (default 5) for the end. Raises MicrosandboxError."""
    try:
        await _kill(context, row, process, lifecycle.KILL_TIMEOUT if timeout is None else timeout)
    except ProcessLookupError as error:
        raise _ended_already() from error


def request_kill(context: Context, row: SandboxRow, process: ProcessHandle) -> None:
    """SIGKILL. Raises MicrosandboxError when it has ended."""
    if process.try_wait() is None:
        lifecycle.note_kill(context, row)
    try:
        process.kill()
    except ProcessLookupError as error:
        raise _ended_already() from error


def request_drain(process: ProcessHandle) -> None:
    """Have it finish what runs and start nothing new. Raises MicrosandboxError when it has ended."""
    try:
        process.drain()
    except ProcessLookupError as error:
        raise _ended_already() from error


async def _kill(context: Context, row: SandboxRow, process: ProcessHandle, limit: float) -> None:
    machine = open_children(process.pid) if process.try_wait() is None else []
    try:
        if process.try_wait() is None:
            lifecycle.note_kill(context, row)
        process.kill()
    except ProcessLookupError:
        await lifecycle.end_machine(machine, limit)
        raise
    if not all(await asyncio.gather(_ended(process, limit), lifecycle.end_machine(machine, limit))):
        raise lifecycle.not_observed(row.name)
    lifecycle.settle_killed(context, row)


async def _ended(process: ProcessHandle, timeout: float) -> bool:
    try:
        async with asyncio.timeout(timeout):
            await process.wait()
    except TimeoutError:
        return False
    return True


def _ended_already() -> MicrosandboxError:
    return MicrosandboxError("nix error: ESRCH: No such process")
