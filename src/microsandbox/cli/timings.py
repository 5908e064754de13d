"""``run --timings``: where the time went, from the start of ``msb`` to the end of its sandbox."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from microsandbox.cli import output
from microsandbox.runtime.trace import Trace
from microsandbox.store.home import Home
from microsandbox.store.processes import ProcessIdentity

if TYPE_CHECKING:
    from microsandbox.cli.acquire import Held


class Timings:
    """Our own marks; those of the sandbox's start join them, while it still has them."""

    def __init__(self) -> None:
        self._ours = Trace()
        self._start = Trace()

    def mark(self, what: str) -> None:
        """Something was reached just now."""
        self._ours.mark(what)

    def take(self, held: Held) -> None:
        """Read what the sandbox's supervisor noted, unless the sandbox ran before we came."""
        if held.started_here:
            self._start = Trace.load(Home.open().sandbox(held.name).logs)

    def show(self) -> None:
        """The table, on standard error."""
        marks = sorted((*self._start.marks, *self._ours.marks, ("msb started", _started())), key=_time)
        origin = self._start.marks[0] if self._start.marks else marks[0]
        since = f"ms since {origin[0]}"
        cells = [(what, f"{(at - origin[1]) / 1e6:{len(since)}.1f}") for what, at in marks]
        output.say(output.table(("what", since), cells, stream=sys.stderr).rstrip())


def _time(mark: tuple[str, int]) -> int:
    return mark[1]


def _started() -> int:
    """When this process started, in nanoseconds of CLOCK_MONOTONIC; the kernel knows it to 10 ms."""
    since_boot = ProcessIdentity.current().started * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return time.monotonic_ns() - (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - since_boot)
