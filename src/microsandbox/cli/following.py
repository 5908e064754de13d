"""The event loop of ``msb logs --follow``: until the sandbox stops, or a signal comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from microsandbox.cli.interrupts import run_cancellable
from microsandbox.errors import SandboxNotFoundError
from microsandbox.logs.follow import LogFollower
from microsandbox.sandbox import lifecycle
from microsandbox.sandbox.context import Context
from microsandbox.streams import Output
from microsandbox.types import LogEntry


def follow(name: str, open_follower: Callable[[], LogFollower], render: Callable[[LogEntry], bytes]) -> int:
    """Print entries as they come, and no faster than they are read. Raises LogRotatedError."""
    return run_cancellable(lambda: _follow(name, open_follower, render))


async def _follow(
    name: str, open_follower: Callable[[], LogFollower], render: Callable[[LogEntry], bytes]
) -> int:
    follower = open_follower()
    ending = asyncio.ensure_future(_finish_with_sandbox(name, follower))
    try:
        with Output(1) as out:
            while (entry := await follower.next()) is not None:
                await out.write(render(entry))
    finally:
        ending.cancel()
        follower.close()
        with suppress(asyncio.CancelledError):
            await ending
    return 0


async def _finish_with_sandbox(name: str, follower: LogFollower) -> None:
    try:
        with suppress(SandboxNotFoundError):
            await lifecycle.wait_until_stopped(Context.current(), name)
    finally:
        follower.finish()
