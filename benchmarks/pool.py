"""What a pool saves: a ready sandbox and its first command, against making one for that command."""

import asyncio
import statistics
import time

from benchmarks.home import BUSYBOX, load_busybox, temporary_home
from benchmarks.measure import finish, promise, report
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
    report("create + exec /bin/true beside a pool", f"{making:.0f} ms")
    report("pool.acquire() + exec /bin/true", f"{taking:.1f} ms")
    promise("the same, of create + exec", taking / making, AT_MOST, "x")


async def _first_command(getting):
    """Milliseconds until the first command of a sandbox has ended."""
    started = time.perf_counter()
    async with await getting as sandbox:
        assert (await sandbox.exec("/bin/true")).success
        return 1e3 * (time.perf_counter() - started)


async def _full(ready):
    while ready.ready < ready.size:
        await asyncio.sleep(0.01)


async def _measure(home):
    await load_busybox(home)
    await pool(BUSYBOX)


if __name__ == "__main__":
    with temporary_home() as home:
        asyncio.run(_measure(home))
    finish()
