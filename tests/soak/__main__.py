"""``python -m tests.soak``: rounds until the time is over or something is left behind."""

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from microsandbox import Image
from microsandbox.store.home import Home
from tests import audit
from tests.images import busybox_archive
from tests.small_disk import small_disk
from tests.soak.rounds import Leak, Tally, fault_of, play
from tests.templates import Templates


def arguments():
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="when to stop (default 10)")
    parser.add_argument("--rounds", type=int, help="stop after that many")
    parser.add_argument(
        "--seconds", type=float, default=8, help="how long owners work in a round (default 8)"
    )
    parser.add_argument("--seed", type=int, help="repeats a plan; printed when it is chosen here")
    parser.add_argument("--round", type=int, default=0, help="the first round to play (default 0)")
    return parser.parse_args()


@contextlib.contextmanager
def home_of_its_own():
    """A home on a file system of its own, which can be full without harm to anybody else."""
    kernels = Home.open().kernels.absolute()
    directory = Path(tempfile.mkdtemp(prefix="msb-soak-"))
    try:
        with small_disk(directory, "3g"):
            os.environ["MSB_HOME"] = str(directory)
            (directory / "kernels").symlink_to(kernels)
            (directory / "sandboxes").mkdir(mode=0o700)
            try:
                yield directory
            finally:
                _end_everything(directory)
                Home.open().metrics_registry.unlink(missing_ok=True)
    finally:
        directory.rmdir()


def _end_everything(home):
    """What still runs after a failure would keep the home's file system busy."""
    for pid in {*audit.supervisors(home), *audit.builders(home), *audit.machines(home)}:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 10)
            os.close(pidfd)


async def soak(options, seed, home, image):
    """Play rounds; the exit status."""
    tally, begun, number = Tally(), time.monotonic(), options.round
    last = None if options.rounds is None else options.round + options.rounds
    while number != last and time.monotonic() - begun < options.minutes * 60:
        fault = fault_of(seed, number)
        started = time.monotonic()
        try:
            await play(seed, number, home, image, options.seconds, tally)
        except Exception as error:
            told = error if isinstance(error, Leak) else traceback.format_exc()
            print(f"round {number}, {fault.name}: FAILED: {told}")
            print(f"again: python -m tests.soak --seed {seed} --round {number} --rounds 1")
            kept = shutil.copytree(home / "sandboxes", tempfile.mkdtemp() + "/sandboxes", ignore=_disks)
            print(f"what was left of its sandboxes: {kept}")
            return 1
        print(f"round {number}, {fault.name}: clean after {time.monotonic() - started:.1f} s", flush=True)
        number += 1
    minutes = (time.monotonic() - begun) / 60
    print(f"{sum(tally.rounds.values())} rounds in {minutes:.1f} minutes, seed {seed}: nothing left behind")
    print("rounds:", ", ".join(f"{name} {count}" for name, count in sorted(tally.rounds.items())))
    print("operations:", ", ".join(f"{name} {count}" for name, count in tally.done.most_common()))
    print(
        "errors told:", ", ".join(f"{name} {count}" for name, count in tally.errors.most_common()) or "none"
    )
    return 0


def _disks(_, names):
    return [name for name in names if name.endswith(".ext4")]


def soak_at(home, options, seed):
    """Everything that is open goes with this process, so that the home can be unmounted."""
    archive = busybox_archive(home / "busybox.tar")
    [image] = asyncio.run(Image.load(archive))
    Templates.of(image).build()
    sys.exit(asyncio.run(soak(options, seed, home, image)))


def main():
    options = arguments()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with home_of_its_own() as home:
        soaking = multiprocessing.get_context("fork").Process(target=soak_at, args=(home, options, seed))
        soaking.start()
        soaking.join()
        return soaking.exitcode


if __name__ == "__main__":
    sys.exit(main())
