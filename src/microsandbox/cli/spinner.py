"""A turning mark beside what is being done, only where somebody looks at it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from microsandbox import terminal
from microsandbox.cli import output

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_INTERVAL = 0.08


@asynccontextmanager
async def spinner(label: str, target: str, *, quiet: bool) -> AsyncIterator[None]:
    """``   ⠋ LABEL        TARGET`` on a terminal while the block runs; the line is gone afterwards."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    with terminal.quiet():
        turning = asyncio.ensure_future(_turn(f"{label:<12} {output.printable(target)}"))
        try:
            yield
        finally:
            turning.cancel()
            await asyncio.wait((turning,))
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@asynccontextmanager
async def progress(label: str, done: str, target: str, *, quiet: bool) -> AsyncIterator[None]:
    """A spinner, and the success line when the block ends without an error."""
    started = time.monotonic()
    async with spinner(label, target, quiet=quiet):
        yield
    if not quiet:
        output.success(done, target, time.monotonic() - started)


async def _turn(text: str) -> None:
    columns = terminal.size()[1]
    text = output.shorten(text, max(columns - 6, 8))
    while True:
        for frame in _FRAMES:
            mark = output.styled(frame, output.CYAN, stream=sys.stderr)
            sys.stderr.write(f"\r   {mark} {text}\x1b[K")
            sys.stderr.flush()
            await asyncio.sleep(_INTERVAL)
