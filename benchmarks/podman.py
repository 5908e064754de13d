"""A command in a new sandbox against one in a new container of the same image, as whole processes."""

import argparse
import asyncio

from benchmarks.container import podman, podman_usable
from benchmarks.home import BUSYBOX, load_busybox, temporary_home
from benchmarks.measure import MSB, finish, interleaved, promise, report, wall


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.podman")
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    if not podman_usable():
        return
    with temporary_home() as home, podman(asyncio.run(load_busybox(home))) as containers:
        ours = [*MSB, "run", "--quiet", BUSYBOX, "--", "/bin/true"]
        theirs = containers.run("--rm", BUSYBOX, "/bin/true")
        for first_use in (ours, theirs):
            wall(first_use)
        medians = interleaved(rounds, ours=lambda: wall(ours), theirs=lambda: wall(theirs))
    report("podman run --rm IMAGE /bin/true", f"{medians['theirs']:.0f} ms")
    report("msb run IMAGE -- /bin/true", f"{medians['ours']:.0f} ms")
    promise("msb run to podman run (aim: 0.7)", medians["ours"] / medians["theirs"], 1.0, "x")


if __name__ == "__main__":
    main()
    finish()
