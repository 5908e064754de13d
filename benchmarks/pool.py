"""What a pool saves: a ready sandbox and its first command, against making one for that command."""

import asyncio
import statistics
import time

from benchmarks.measure import broken, report
from microsandbox import Sandbox, SandboxPool

ROUNDS = 10
#: Of the time of create() and the same command.
AT_MOST = 0.25


async def pool(image):
    """Both in turn, so that they share the machine's mood; neither while the pool is being filled."""
    made, pooled = [], []
    async with SandboxPool(1, image=image, name_prefix="bench-pool") as ready:
        for _ in range(ROUNDS):
            await _full(ready)
            made.append(await _first_command(Sandbox.create("bench-made", image=image, replace=True)))
            pooled.append(await _first_command(ready.acquire()))
    making, taking = statistics.median(made), statistics.median(pooled)
    what = "pool.acquire() and exec of /bin/true"
    ratio = taking / making
    report(what, f"{taking:.1f} ms", f"{ratio:.2f} x create() and exec ({making:.0f} ms), at most {AT_MOST}")
    if ratio > AT_MOST:
        broken.append(what)


async def _first_command(getting):
    """Milliseconds until the first command of a sandbox has ended."""
    started = time.perf_counter()
    async with await getting as sandbox:
        assert (await sandbox.exec("/bin/true")).success
        return 1e3 * (time.perf_counter() - started)


async def _full(ready):
    while ready.ready < ready.size:
        await asyncio.sleep(0.01)
