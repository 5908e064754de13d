"""What a machine uses, as its host sees it: QEMU's CPU time, its memory, and its disks' counters.

The guest is not asked: it would have to be woken for each sample. A process's CPU clock costs one system call
and is exact to the nanosecond, where /proc has hundredths of a second.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from microsandbox.errors import VmmError
from microsandbox.metrics.registry import Sample
from microsandbox.vmm.monitor import Monitor

#: CPUCLOCK_SCHED of include/linux/posix-timers.h: what the scheduler gave to all threads of a process.
_CPUCLOCK_SCHED = 2
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MAX = (1 << 64) - 1
#: Seconds that QEMU has to say what its disks did; whoever is slower is not asked again until it has.
_ANSWER_TIME = 0.5
#: Nanoseconds of CPU time without which QEMU is not asked again: an idle guest uses that much in 3 seconds,
#: and the question is four fifths of a sample's cost.
_WORTH_ASKING = 10_000_000


class Meter:
    """Measures one QEMU process, which must be a child of ours: its pid is nobody else's then."""

    def __init__(self, pid: int, monitor: Monitor) -> None:
        self._clock = (~pid << 3) | _CPUCLOCK_SCHED
        self._statm = f"/proc/{pid}/statm"
        self._monitor = monitor
        self._before: tuple[int, int] | None = None
        self._asked: asyncio.Task[Any] | None = None
        self._disks = (0, 0)
        self._used_when_asked = 0

    def restart(self) -> None:
        """Let the next rate be over the time from now on."""
        self._before = (time.monotonic_ns(), time.clock_gettime_ns(self._clock))

    def close(self) -> None:
        if self._asked is not None:
            self._asked.cancel()

    async def measure(self, *, paused: bool = False) -> Sample:
        """A sample; its CPU rate is over the time since the one before. Raises OSError without a process."""
        if paused or time.clock_gettime_ns(self._clock) - self._used_when_asked >= _WORTH_ASKING:
            await self._ask_for_disks()
        now, used = time.monotonic_ns(), time.clock_gettime_ns(self._clock)
        rate = None
        if paused:
            rate = 0.0
        elif self._before is not None and now > self._before[0]:
            rate = 100 * (used - self._before[1]) / (now - self._before[0])
        self._before = (now, used)
        resident = self._resident()
        return Sample(
            time_ms=int(time.time() * 1000),
            vcpu_time_ns=used,
            cpu_percent=rate,
            memory=resident,
            memory_available=None,
            memory_resident=resident,
            disk_read=self._disks[0],
            disk_write=self._disks[1],
        )

    def _resident(self) -> int:
        with open(self._statm, "rb", buffering=0) as file:
            return int(file.read(256).split()[1]) * _PAGE

    async def _ask_for_disks(self) -> None:
        if self._asked is None:
            self._asked = asyncio.ensure_future(self._monitor.execute("query-blockstats"))
        await asyncio.wait((self._asked,), timeout=_ANSWER_TIME)
        if not self._asked.done():
            return
        asked, self._asked = self._asked, None
        self._used_when_asked = time.clock_gettime_ns(self._clock)
        try:
            self._disks = disk_totals(asked.result())
        except VmmError:  # the last figures stay
            return


def disk_totals(answer: Any) -> tuple[int, int]:
    """Bytes read and written in an answer of query-blockstats. Raises VmmError when it makes no sense."""
    try:
        stats = [device["stats"] for device in answer]
        read, written = (sum(_counter(entry[key]) for entry in stats) for key in ("rd_bytes", "wr_bytes"))
    except (TypeError, KeyError, ValueError) as error:
        raise VmmError(f"QEMU's figures of its disks make no sense: {error!r}") from error
    return min(read, _MAX), min(written, _MAX)


def _counter(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no counter")
    return value
