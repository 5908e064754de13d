"""What a sandbox costs that does nothing: memory and CPU of QEMU and of its supervisor."""

import argparse
import asyncio

from benchmarks.home import BUSYBOX, load_busybox, temporary_home
from benchmarks.measure import finish, promise, report
from benchmarks.processes import cpu_seconds, memory, sandboxes_of_this_process
from microsandbox import Sandbox


async def idle(home, settle, seconds):
    await load_busybox(home)
    async with await Sandbox.create("idle", image=BUSYBOX):
        await asyncio.sleep(settle)
        [sandbox] = sandboxes_of_this_process()
        parts = {"the supervisor": (sandbox.supervisor,), "QEMU": sandbox.machine}
        for what, pids in parts.items():
            report(f"idle: proportional set of {what}", f"{memory(*pids):.1f} MiB")
        promise("idle: both (aim: 45)", memory(*sandbox.all), 60, "MiB")
        before = {what: cpu_seconds(*pids) for what, pids in parts.items()}
        await asyncio.sleep(seconds)
        used = {what: 100 * (cpu_seconds(*pids) - before[what]) / seconds for what, pids in parts.items()}
    for what, percent in used.items():
        report(f"idle: CPU of {what} over {seconds:g} s", f"{percent:.2f} % of a core")
    promise("idle: CPU of both", sum(used.values()), 0.5, "%")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle")
    parser.add_argument("--settle", type=float, default=10, metavar="SECONDS")
    parser.add_argument("--seconds", type=float, default=30, help="how long CPU time is looked at")
    options = parser.parse_args()
    with temporary_home() as home:
        asyncio.run(idle(home, options.settle, options.seconds))


if __name__ == "__main__":
    main()
    finish()
