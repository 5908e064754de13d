"""``msb exec``: a command in a sandbox that exists."""

from __future__ import annotations

from microsandbox.cli.acquire import take
from microsandbox.cli.interrupts import Signals, run_interruptible
from microsandbox.cli.model import Invocation
from microsandbox.cli.run import run_in


def run(invocation: Invocation) -> int:
    return run_interruptible(lambda signals: _exec(invocation, signals))


async def _exec(invocation: Invocation, signals: Signals) -> int:
    held = await signals.guard(take(invocation["name"], quiet=invocation["quiet"]))
    try:
        return await run_in(held, invocation, signals)
    finally:
        await held.release(signals)
