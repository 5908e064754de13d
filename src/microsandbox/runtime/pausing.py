"""Pausing a sandbox's machine: because somebody asks for it, or because it is idle.

    RUNNING ──a request──► PAUSED (by request) ──a request──────────────► RUNNING
       └──idle───────────► PAUSED (idle) ──anything for the guest──────► RUNNING
    whichever ──leave()──► RUNNING for good: the sandbox drains or ends

A machine that was paused because it is idle goes on for whoever needs it; one that somebody paused goes on
when somebody says so. What is meant for the guest meanwhile waits at the relay's gate.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from enum import Enum

from microsandbox.agent.protocol import MessageType, Refusal
from microsandbox.errors import MicrosandboxError, SandboxNotRunningError
from microsandbox.runtime.gate import Passage
from microsandbox.runtime.guest_link import GuestLink
from microsandbox.runtime.idleness import is_idle, until_idle
from microsandbox.runtime.plan import LaunchPlan
from microsandbox.runtime.relay import Relay, Reply
from microsandbox.store.database import DatabaseError
from microsandbox.store.sandboxes import SandboxCatalog
from microsandbox.vmm.monitor import Monitor

log = logging.getLogger(__name__)


class Cause(Enum):
    """Why a machine is paused, and by that what becomes of a frame for its guest."""

    REQUEST = Passage.SHUT
    IDLE = Passage.ON_DEMAND


class Pausing:
    """Decides whether the machine runs. One change at a time; ``close()`` it when the machine has ended."""

    def __init__(
        self, plan: LaunchPlan, monitor: Monitor, catalog: SandboxCatalog, guest: GuestLink, relay: Relay
    ) -> None:
        self._plan, self._monitor, self._catalog = plan, monitor, catalog
        self._guest, self._relay = guest, relay
        self._cause: Cause | None = None
        self._left: str | None = None
        self._waking = False
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Set while the machine runs.
        self.running = asyncio.Event()
        #: Clear while the machine is paused by request: nobody can keep such a sandbox from being idle.
        self.idleness_counts = asyncio.Event()
        self._set(None)
        relay.on_machine_request = self._on_request
        relay.gate.on_demand = self._on_demand

    async def pause(self) -> None:
        """As somebody asks for; fine if it is paused. Raises SandboxNotRunningError, MicrosandboxError."""
        async with self._changing:
            self._check("pause")
            if self._waking:  # for a request that came before this one, and has to come to its guest
                await self._resume()
            if self._cause is None:
                await self._pause(Cause.REQUEST)
            self._set(Cause.REQUEST)

    async def resume(self) -> None:
        """As somebody asks for; fine if it runs. Raises SandboxNotRunningError, MicrosandboxError."""
        async with self._changing:
            self._check("resume")
            await self._resume()

    async def leave(self, why: str) -> None:
        """Let the machine go on for its end, and refuse to pause it from now on."""
        self._left = why
        async with self._changing:
            try:
                await self._go_on()
            except MicrosandboxError:
                log.exception("the paused machine does not go on")

    async def pause_when_idle(self, seconds: float) -> None:
        """Pause the machine whenever it has been idle for so long, until the sandbox is left."""
        while self._left is None:
            await until_idle(self._relay, seconds, self.running)
            async with self._changing:
                if self._left is None and self._cause is None and is_idle(self._relay, seconds):
                    try:
                        await self._pause(Cause.IDLE)
                    except MicrosandboxError:
                        log.exception("the idle machine is not paused, and will not be")
                        return

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    # from the relay

    def _on_request(self, kind: MessageType, reply: Reply) -> None:
        self._start(self._answer(kind, reply))

    async def _answer(self, kind: MessageType, reply: Reply) -> None:
        pausing = kind is MessageType.MACHINE_PAUSE
        try:
            await (self.pause() if pausing else self.resume())
        except SandboxNotRunningError as error:
            reply(MessageType.ERROR, {"kind": Refusal.NOT_RUNNING.value, "message": str(error)})
        except MicrosandboxError as error:
            log.exception("%s failed", kind.value)
            reply(MessageType.ERROR, {"kind": error.code, "message": str(error)})
        else:
            reply(MessageType.MACHINE_STATE, {"paused": pausing})

    def _on_demand(self) -> None:
        if not self._waking:
            self._waking = True
            self._start(self._wake())

    async def _wake(self) -> None:
        async with self._changing:
            if not self._waking:
                return
            try:
                await self._resume()
            except MicrosandboxError:
                self._waking = False
                log.exception("the idle machine does not go on")

    def _start(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # changes; the lock is held

    async def _pause(self, cause: Cause) -> None:
        self._relay.hold(cause.value)
        try:
            await self._monitor.pause()
            try:
                if not self._catalog.set_paused(self._plan.sandbox_id, True):
                    raise SandboxNotRunningError(self._refusal("pause", "it has ended"))
            except BaseException:
                await self._monitor.resume()
                raise
        except BaseException:
            self._set(None)
            raise
        self._set(cause)
        log.info("paused: %s", cause.name.lower())

    async def _resume(self) -> None:
        if self._cause is None:
            return
        await self._go_on()
        try:
            self._catalog.set_paused(self._plan.sandbox_id, False)
        except DatabaseError:
            log.exception("resumed, but the catalogue could not be told")

    async def _go_on(self) -> None:
        if self._cause is None:
            return
        # The first thing that the agent finds: its clock has stood still.
        self._guest.send_message(MessageType.CLOCK_SYNC, {"unix_time_nanos": time.time_ns()})
        await self._monitor.resume()
        self._set(None)
        log.info("resumed")

    def _set(self, cause: Cause | None) -> None:
        self._cause = cause
        if cause is None:
            self._waking = False
            self.running.set()
            self._relay.let_pass()
        else:
            self.running.clear()
            self._relay.hold(cause.value)
        (self.idleness_counts.clear if cause is Cause.REQUEST else self.idleness_counts.set)()

    def _check(self, verb: str) -> None:
        if self._left is not None:
            raise SandboxNotRunningError(self._refusal(verb, self._left))

    def _refusal(self, verb: str, why: str) -> str:
        return f"cannot {verb} sandbox '{self._plan.name}': {why}"
