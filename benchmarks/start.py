"""What a memory template saves: ``Sandbox.create()`` and a first command, warm against cold."""

import argparse
import asyncio
import os
import time

from benchmarks.bare import BareResume
from benchmarks.home import BUSYBOX, load_busybox, temporary_home
from benchmarks.measure import finish, interleaved, promise, report
from microsandbox import Sandbox


async def first_command():
    """Milliseconds from create() to the end of a command."""
    started = time.perf_counter()
    async with await Sandbox.create("bench", image=BUSYBOX) as sandbox:
        await sandbox.exec("/bin/true")
        return 1e3 * (time.perf_counter() - started)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start")
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    os.environ.pop("MSB_TEMPLATES", None)
    with temporary_home() as home, asyncio.Runner() as runner:
        runner.run(load_busybox(home))

        def cold():
            os.environ["MSB_TEMPLATES"] = "off"
            try:
                return runner.run(first_command())
            finally:
                del os.environ["MSB_TEMPLATES"]

        medians = interleaved(rounds, warm=lambda: runner.run(first_command()), cold=cold, bare=BareResume())
    report("create + exec /bin/true, cold", f"{medians['cold']:.0f} ms")
    report("create + exec /bin/true, warm", f"{medians['warm']:.0f} ms")
    report("QEMU alone, resumed to the agent's first reply", f"{medians['bare']:.0f} ms")
    promise("create + exec, warm to cold", medians["warm"] / medians["cold"], 0.3, "x")
    promise("create + exec, warm to QEMU alone", medians["warm"] / medians["bare"], 2, "x")


if __name__ == "__main__":
    main()
    finish()
