"""The guest's time of day follows the host's: now and then, and at once when that is set.

A jump of the host's clock, or the end of a suspend, cancels a timer that was armed for it
(TFD_TIMER_CANCEL_ON_SET of timerfd_create(2)), so nothing has to look. A machine that is paused is told when
it goes on, see pausing.py.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress

from microsandbox.agent.protocol import MessageType
from microsandbox.runtime.guest_link import GuestLink
from microsandbox.vmm import linux

#: Seconds between settings without a reason: guests' clocks drift.
INTERVAL = 60.0


async def keep_clock(guest: GuestLink, running: asyncio.Event) -> None:
    """Send the time until cancelled, while ``running`` is set; the agent ignores small differences."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    fd = linux.clock_changes()

    def on_change() -> None:
        with suppress(OSError):  # ECANCELED is the news
            os.read(fd, 8)
        changed.set()

    loop.add_reader(fd, on_change)
    try:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await changed.wait()
            await running.wait()
            changed.clear()
            guest.send_message(MessageType.CLOCK_SYNC, {"unix_time_nanos": time.time_ns()})
    finally:
        loop.remove_reader(fd)
        os.close(fd)
