"""How many sandboxes a second can be created, used and removed, and whether they leave anything behind."""

import argparse
import asyncio
import time

from benchmarks.home import BUSYBOX, load_busybox, temporary_home
from benchmarks.leftovers import adopt_orphans, belongings, expect_nothing_beyond
from benchmarks.measure import finish, report
from microsandbox import Sandbox


async def one_after_another(name, until):
    """How many lives of a sandbox begin before ``until``."""
    lives = 0
    while time.monotonic() < until:
        sandbox = await Sandbox.create(name, image=BUSYBOX)
        await sandbox.exec("/bin/true")
        await sandbox.stop()
        await Sandbox.remove(name)
        lives += 1
    return lives


async def rate(home, seconds, at_once):
    await load_busybox(home)
    before = await belongings(home)
    started = time.monotonic()
    lives = sum(
        await asyncio.gather(
            *(one_after_another(f"rate-{number}", started + seconds) for number in range(at_once))
        )
    )
    elapsed = time.monotonic() - started
    report(
        f"create + exec + stop + remove, {at_once} at a time",
        f"{lives / elapsed:.2f} a second",
        f"{lives} in {elapsed:.0f} s",
    )
    await expect_nothing_beyond(before, home)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--at-once", type=int, default=4)
    options = parser.parse_args()
    adopt_orphans()
    with temporary_home() as home:
        asyncio.run(rate(home, options.seconds, options.at_once))


if __name__ == "__main__":
    main()
    finish()
