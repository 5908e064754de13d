"""A command in a running sandbox, through the SDK and by ``msb exec``, against ``podman exec``."""

import argparse
import asyncio
import subprocess
import time

from benchmarks.container import podman, podman_usable
from benchmarks.home import BUSYBOX, load_busybox, temporary_home
from benchmarks.measure import MSB, finish, interleaved, promise, report, wall
from microsandbox import Sandbox


async def command(sandbox):
    """Milliseconds."""
    started = time.perf_counter()
    await sandbox.exec("/bin/true")
    return 1e3 * (time.perf_counter() - started)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exec")
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    if not podman_usable():
        return
    with (
        temporary_home() as home,
        asyncio.Runner() as runner,
        podman(runner.run(load_busybox(home))) as containers,
    ):
        start = containers.run("--detach", "--name", "bench", BUSYBOX, "sleep", "86400")
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL)
        sandbox = runner.run(Sandbox.create("bench", image=BUSYBOX))
        subjects = {
            "podman": lambda: wall(containers.command("exec", "bench", "/bin/true")),
            "sdk": lambda: runner.run(command(sandbox)),
            "msb": lambda: wall([*MSB, "exec", "--quiet", "bench", "--", "/bin/true"]),
        }
        try:
            for first_use in subjects.values():
                first_use()
            medians = interleaved(rounds, **subjects)
        finally:
            runner.run(sandbox.kill())
    report("podman exec /bin/true", f"{medians['podman']:.0f} ms")
    for name, what in (("sdk", "sandbox.exec()"), ("msb", "msb exec")):
        report(f"{what} of /bin/true", f"{medians[name]:.1f} ms")
        promise(f"{what} to podman exec", medians[name] / medians["podman"], 0.5, "x")


if __name__ == "__main__":
    main()
    finish()
