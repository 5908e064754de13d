"""When a sandbox counts as idle: no command runs, and nobody has said anything for a while."""

from __future__ import annotations

import asyncio
import time

from microsandbox.runtime.relay import Relay


def is_idle(relay: Relay, seconds: float) -> bool:
    return not relay.exec_sessions and time.monotonic() - relay.last_activity >= seconds


async def until_idle(relay: Relay, seconds: float, counting: asyncio.Event) -> None:
    """Return when it has been idle for ``seconds``; the time does not count while ``counting`` is clear."""
    while True:
        await counting.wait()
        if is_idle(relay, seconds):
            return
        elapsed = 0 if relay.exec_sessions else time.monotonic() - relay.last_activity
        await asyncio.sleep(seconds - elapsed)
