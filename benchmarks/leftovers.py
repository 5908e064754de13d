"""What there is before and after: this process's children and descriptors, the home's files and rows."""

import asyncio
import ctypes
import gc
import os
from collections import Counter
from pathlib import Path

from benchmarks.measure import expect
from benchmarks.processes import descendants
from microsandbox import Sandbox
from microsandbox.runtime import standby
from microsandbox.sandbox.boot import SPARE_DELAY

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans():
    """Be the parent of processes whose own has died, so that they are found among ours."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


async def belongings(home):
    """How many there are of each; numbers that differ from one to the next are left out of the names."""
    gc.collect()
    return (
        Counter(f"row of {sandbox.name}" for sandbox in await Sandbox.list())
        + Counter(
            f"process {Path(f'/proc/{pid}/comm').read_text().strip()}" for pid in descendants(os.getpid())
        )
        + Counter(f"descriptor of {target.partition(':[')[0]}" for target in _descriptors())
        + Counter(f"file {path}" for path in _paths(home))
    )


def _paths(home):
    for parent, directories, files in os.walk(home):
        yield from (os.path.join(parent, name) for name in (*directories, *files))


def _descriptors():
    for entry in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:  # the one that has listed them
            continue


async def expect_nothing_beyond(before, home):
    """Report what there is now that was not there ``before``, beside what waits for a next sandbox."""
    await asyncio.sleep(SPARE_DELAY)
    standby.dismiss()
    left = await belongings(home) - before
    found = ", ".join(f"{count} {what}" for what, count in left.items())
    expect("left behind: processes, descriptors, files, rows", found or "nothing", "nothing")
