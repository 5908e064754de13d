"""Whether the guest's agent still answers: asked when somebody waits for it and it says nothing.

    nobody waits ──request──► silent? ──5 s──► core.ping ──any frame──► silent?
                                                   └──5 s in which the machine could run──► it hangs

Nothing is sent, and nobody woken, while nobody waits: an agent that hangs then is found out by the next
request. Who leaves before the agent has said anything counts as waiting until it does: else short-lived
clients of an agent that hangs would never find that out. What does not count: time in which the machine is
paused or its threads wait for the host (a busy host under software emulation makes guests slow, not dead),
and in which this process itself did not run (it was stopped, or the host was suspended). A guest can have
its threads wait, for its disk above all, so that has a bound; it cannot have them stopped, which has none.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from microsandbox.agent.protocol import MessageType
from microsandbox.runtime.guest_link import GuestLink
from microsandbox.runtime.relay import Relay
from microsandbox.vmm.threads import Threads

#: Seconds of silence before the agent is asked, and that it has for its answer.
SILENCE, PATIENCE = 5.0, 5.0
#: Seconds after which it hangs although others held its machine up.
MOST_PATIENCE = 60.0
#: Seconds between looks at what the machine's threads get, while an answer is due.
_STEP = 1.0
UNRESPONSIVE = "the guest's agent does not answer: the sandbox is ended"


class Health:
    """Watches one agent; ``running`` is set while its machine is not paused."""

    def __init__(self, relay: Relay, guest: GuestLink, running: asyncio.Event, threads: Threads) -> None:
        self._relay, self._guest, self._running, self._threads = relay, guest, running, threads
        self._heard = asyncio.Event()
        relay.on_heard = self._heard.set

    async def until_hung(self) -> None:
        """Return when the agent hangs."""
        while True:
            await self._relay.awaited.wait()
            await self._running.wait()
            silent_since = max(self._relay.last_heard, self._relay.awaited_since)
            left = silent_since + SILENCE - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
            elif not await self._answers():
                return

    async def _answers(self) -> bool:
        """Ask, and wait for anything that the agent says as long as its machine had the time for it."""
        self._heard.clear()
        self._guest.send_message(MessageType.PING)
        had, passed, self_seen = 0.0, 0.0, time.monotonic()
        self._threads.held_up(0)
        while had < PATIENCE and passed < MOST_PATIENCE:
            with suppress(TimeoutError):
                async with asyncio.timeout(_STEP):
                    await self._heard.wait()
            if self._heard.is_set() or not self._running.is_set() or not self._relay.awaited.is_set():
                return True
            now = time.monotonic()
            elapsed, self_seen = now - self_seen, now
            held_up = self._threads.held_up(elapsed)
            counts = min(elapsed, _STEP)
            had += max(0.0, counts - held_up)
            if not self._threads.stopped:
                passed += counts
        return False
