"""Many sandboxes alive at once: whether all answer, what they cost together, and how many fit."""

import argparse
import asyncio
import itertools
import resource
import time
from pathlib import Path

from benchmarks.home import BUSYBOX, load_busybox, temporary_home
from benchmarks.leftovers import adopt_orphans, belongings, expect_nothing_beyond
from benchmarks.measure import expect, finish, report
from benchmarks.processes import cpu_seconds, memory, sandboxes_of_this_process
from microsandbox import Sandbox

AT_ONCE = 2
#: MiB that are left to the machine.
RESERVE = 1536
#: Seconds an answer may take before a sandbox counts as lost.
PATIENCE = 120


class Crowd:
    """Sandboxes that live at once, and why there are no more of them."""

    def __init__(self, mebibytes):
        self.sandboxes = {}
        self.stopped_by = None
        self._mebibytes = mebibytes

    async def grow(self, numbers):
        """Create one for each number, a few at a time, until something stops that."""
        numbers = iter(numbers)
        await asyncio.gather(*(self._create(numbers) for _ in range(AT_ONCE)))

    async def _create(self, numbers):
        for number in numbers:
            if available_memory() < RESERVE:
                self.stopped_by = f"less than {RESERVE} MiB of memory available"
            if self.stopped_by:
                return
            try:
                sandbox = await Sandbox.create(f"many-{number}", image=BUSYBOX, memory=self._mebibytes)
            except Exception as error:  # whatever it is, it is what was asked for
                self.stopped_by = f"{type(error).__name__}: {' '.join(str(error).split())}"
                return
            self.sandboxes[f"many-{number}"] = sandbox

    async def answers(self):
        """How many say their name when all are asked at once."""

        async def answer(name, sandbox):
            said = await sandbox.exec("/bin/echo", [name], timeout=PATIENCE)
            return said.stdout_text == f"{name}\n"

        asked = (answer(name, sandbox) for name, sandbox in self.sandboxes.items())
        return (await asyncio.gather(*asked, return_exceptions=True)).count(True)

    async def end(self):
        """Kill and remove all, and those whose creation failed."""
        killed = (sandbox.kill() for sandbox in self.sandboxes.values())
        await asyncio.gather(*killed, return_exceptions=True)
        self.sandboxes.clear()
        await asyncio.gather(*(sandbox.remove() for sandbox in await Sandbox.list()))


def available_memory():
    """MiB."""
    return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) / 1024


async def cost(count, seconds):
    """Report what all use together."""
    sandboxes = sandboxes_of_this_process()
    supervisors = [sandbox.supervisor for sandbox in sandboxes]
    machines = [pid for sandbox in sandboxes for pid in sandbox.machine]
    ours, theirs = memory(*supervisors), memory(*machines)
    report(
        f"{count} at once: proportional set",
        f"{(ours + theirs) / 1024:.2f} GiB",
        f"{(ours + theirs) / count:.1f} MiB each: supervisor {ours / count:.1f}, QEMU {theirs / count:.1f}",
    )
    before = cpu_seconds(*supervisors), cpu_seconds(*machines)
    await asyncio.sleep(seconds)
    ours = 100 * (cpu_seconds(*supervisors) - before[0]) / seconds
    theirs = 100 * (cpu_seconds(*machines) - before[1]) / seconds
    report(
        f"{count} at once: CPU over {seconds:g} s",
        f"{ours + theirs:.1f} % of a core",
        f"{(ours + theirs) / count:.2f} % each: supervisor {ours / count:.2f}, QEMU {theirs / count:.2f}",
    )


async def many(home, options):
    await load_busybox(home, options.memory)
    before = await belongings(home)
    crowd = Crowd(options.memory)
    try:
        started = time.monotonic()
        await crowd.grow(range(options.count))
        elapsed = time.monotonic() - started
        report(
            f"{len(crowd.sandboxes)} at once, of {options.memory} MiB: time to create",
            f"{elapsed:.1f} s",
            crowd.stopped_by or f"{AT_ONCE} at a time, {elapsed / options.count:.2f} s each",
        )
        expect("answer exec", await crowd.answers(), options.count)
        if crowd.sandboxes:
            await asyncio.sleep(options.settle)
            await cost(len(crowd.sandboxes), options.seconds)
        expect("answer exec after that", await crowd.answers(), options.count)
        if options.until_full:
            await crowd.grow(itertools.count(options.count))
            report("as many as fit", str(len(crowd.sandboxes)), f"stopped by: {crowd.stopped_by}")
            expect("of these answer exec", await crowd.answers(), len(crowd.sandboxes))
    finally:
        ending = time.monotonic()
        await crowd.end()
        report("to kill and remove all", f"{time.monotonic() - ending:.1f} s")
    await expect_nothing_beyond(before, home)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--memory", type=int, default=256, metavar="MIB")
    parser.add_argument("--settle", type=float, default=10, metavar="SECONDS")
    parser.add_argument("--seconds", type=float, default=30, help="how long CPU time is looked at")
    parser.add_argument("--until-full", action="store_true", help="go on until something stops it")
    # An owner holds a few descriptors of each sandbox; that shall not be what stops it.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    adopt_orphans()
    options = parser.parse_args()
    with temporary_home() as home:
        asyncio.run(many(home, options))


if __name__ == "__main__":
    main()
    finish()
