"""The host process of one sandbox: it owns the virtual machine and decides when it ends.

    STARTING ──ready──► RUNNING ──end()──► STOPPING ──machine gone──► (exit)
        └────── boot failure, end() ──────────────────────────────────►┘

Whatever happens, the machine, the relay socket and the catalogue row are settled before it exits; if it
is killed, the kernel kills QEMU with it (parent-death signal) and the stale row is found by its pid.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import cbor2  # noqa: F401 - the guest's first words must not wait for it
from msgspec import Struct

from microsandbox.agent.protocol import Frame, MessageType, ProtocolError, Refusal
from microsandbox.errors import MicrosandboxError
from microsandbox.runtime.boot import BOOT_TIMEOUT, bring_up
from microsandbox.runtime.boot_failure import BootFailure, LinkLost, init_is_done, panic_reason
from microsandbox.runtime.builder_process import build_in_background
from microsandbox.runtime.clock import keep_clock
from microsandbox.runtime.exec_log import STARTED, STOPPED, ExecLog
from microsandbox.runtime.guest_link import GuestLink
from microsandbox.runtime.health import UNRESPONSIVE, Health
from microsandbox.runtime.idleness import until_idle
from microsandbox.runtime.launch import launch_cold
from microsandbox.runtime.pausing import Pausing
from microsandbox.runtime.plan import LaunchPlan
from microsandbox.runtime.relay import Relay
from microsandbox.runtime.running_machine import PORT_TO_EXIT, RunningMachine
from microsandbox.runtime.trace import Trace
from microsandbox.store.database import DatabaseError
from microsandbox.store.files import FileLock
from microsandbox.store.processes import ProcessIdentity
from microsandbox.store.sandboxes import Reason, SandboxCatalog, Status
from microsandbox.template.store import discard_template
from microsandbox.tools import last_lines
from microsandbox.units import MIB
from microsandbox.vmm.qemu import VirtualMachine
from microsandbox.vmm.threads import Threads

#: Seconds the guest has to flush its disks and power off.
FLUSH_WINDOW = 8.0
#: The same when the owner is gone: nobody waits for the sandbox any more. With an init it is as long as ever:
#: the guest gives that up to 6.5 s before it flushes and powers off itself.
ORPHAN_FLUSH_WINDOW = 4.0
#: Seconds that other work waits for the owner to come first.
_FIRST_VISIT = 1.0
_DETACH = b"\x01"

log = logging.getLogger(__name__)


class Ending(Struct, frozen=True):
    """Why the sandbox ends, and how long its guest has for it; ``window`` 0 kills at once."""

    reason: Reason
    window: float
    detail: str | None = None


class Supervisor:
    """Runs one sandbox from the start of its machine to its last row."""

    def __init__(
        self,
        plan: LaunchPlan,
        machine: VirtualMachine,
        catalog: SandboxCatalog,
        listener: socket.socket,
        watchdog: int | None,
    ) -> None:
        self._plan = plan
        self._vm = machine
        self._trace = Trace(plan.trace)
        self._started_ms = time.time_ns() // 1_000_000
        self._listener = listener
        self._watchdog = watchdog
        self._catalog = catalog
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._hurry = asyncio.Event()
        self._tasks: set[asyncio.Future[None]] = set()
        self._serving: tuple[Relay, Pausing] | None = None

    def end(self, ending: Ending) -> None:
        """Ask for the end. The first reason counts; asking again, or with no window, hurries."""
        if not self._ending.done():
            log.info("ending: %s%s", ending.reason, f" ({ending.detail})" if ending.detail else "")
            self._ending.set_result(ending)
        if ending.window == 0:
            self._hurry.set()

    async def run(self) -> int:
        """Returns the exit status of this process."""
        plan = self._plan
        self._trace.mark("supervisor imported")
        try:
            self._machine = await self._attach(self._vm)
        except OSError as error:
            self._record_failure(BootFailure.of(error))
            return 1
        log.info(
            "QEMU %s runs as process %d: %s, %d CPUs, %d MiB, jail of %s%s",
            plan.qemu.version,
            self._vm.pid,
            plan.accelerator,
            plan.cpus,
            plan.memory_mib,
            plan.jail,
            f", from template {plan.template.key}" if plan.template is not None else "",
        )
        self._watch_signals()
        self._watch_owner()
        if plan.max_duration is not None:  # it counts from here, whatever becomes of the boot
            self._start(self._limit_duration(plan.max_duration))
        try:
            return await self._supervise()
        except BootFailure as failure:
            self._record_failure(failure)
            return 1
        except (MicrosandboxError, OSError, ProtocolError) as error:
            if self._serving is not None:
                raise
            self._record_failure(BootFailure.of(error))
            return 1
        finally:
            for task in self._tasks:
                task.cancel()
            await self._machine.end()

    async def _attach(self, vm: VirtualMachine) -> RunningMachine:
        return await RunningMachine.attach(vm, self._plan.logs)

    async def _supervise(self) -> int:
        ready = await self._boot()
        machine = self._machine
        if ready is None:
            await self._stop(machine, None)
            reason = self._ending.result().reason
            if reason is not Reason.SIGNAL:  # else whoever sent it knows
                why = f"it was ended before its guest was ready: {reason}"
                BootFailure(why, "other").save(self._plan.boot_error)
            return self._record_end(await machine.exited)
        exec_log = ExecLog.open(self._plan.logs)
        exec_log.mark(STARTED)
        relay = Relay(
            machine.guest, lambda: self.end(Ending(Reason.SHUTDOWN_REQUESTED, FLUSH_WINDOW)), exec_log
        )
        pausing = Pausing(self._plan, machine.monitor, self._catalog, machine.guest, relay)
        try:
            await relay.serve(self._listener, ready)
            self._serving = relay, pausing
            self._trace.mark("relay serves")
            self._start_timers(machine.guest, relay, pausing)
            self._start(self._settle_in(relay, pausing))
            await asyncio.wait(
                (machine.exited, self._ending, machine.guest.lost), return_when=asyncio.FIRST_COMPLETED
            )
            await self._stop(machine, pausing)
        finally:
            pausing.close()
            relay.close()
            exec_log.mark(STOPPED)
            exec_log.close()
        return self._record_end(await machine.exited)

    # the boot

    async def _boot(self) -> Frame | None:
        """The ``core.ready`` frame; None when the end was asked for first. Raises BootFailure.

        A guest that does not go on from its template is given up, and so is the template: this sandbox
        boots, and a later one has the template built again.
        """
        template = self._plan.template
        if template is not None:
            try:
                return await self._bring_up(self._plan.resumed_boot, resumed=True)
            except BootFailure as failure:
                if failure.stage == "config":
                    raise
                log.warning("template %s does not work, booting instead: %s", template.key, failure.message)
            discard_template(Path(self._plan.templates), template.key)
            await self._machine.end()
            self._machine.vm.close()
            self._machine = await self._attach(self._launch_cold())
            self._trace.mark("started again without the template")
        return await self._bring_up(self._plan.boot, resumed=False)

    def _launch_cold(self) -> VirtualMachine:
        try:
            return launch_cold(self._plan)
        except MicrosandboxError as error:
            raise BootFailure(str(error), "build_vm") from error

    async def _bring_up(self, config: Mapping[str, Any], *, resumed: bool) -> Frame | None:
        machine = self._machine
        timeout = self._plan.resume_timeout if resumed else BOOT_TIMEOUT
        boot = asyncio.ensure_future(
            bring_up(
                machine.guest,
                None if resumed and self._plan.told else config,
                self._trace.mark,
                resumed=resumed,
                timeout=timeout,
            )
        )
        try:
            await asyncio.wait((boot, machine.exited, self._ending), return_when=asyncio.FIRST_COMPLETED)
            if self._ending.done() and not boot.done():
                self._hurry.set()
                return None
            # With a machine that ended its link ends too, after the last that the agent had to say.
            await asyncio.wait((boot,), timeout=PORT_TO_EXIT)
            if not boot.done():
                raise BootFailure("the machine hangs")
            try:
                return boot.result()
            except LinkLost as lost:
                raise await machine.why(lost) from lost
        finally:
            boot.cancel()

    async def _tell_disk_sizes(self) -> None:
        """Where the template had slots, the guest believes in disks of any size: read-only ones stay so."""
        for index, disk in enumerate(self._plan.disks):
            if not disk.read_only:
                await self._machine.monitor.resize_disk(index, os.fstat(disk.fd).st_size)

    async def _settle_in(self, relay: Relay, pausing: Pausing) -> None:
        """What can wait until the owner has its guest: metrics, timings, building the missing template."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_VISIT):
                await relay.visited.wait()
        self._start_sampling(pausing)
        self._trace.save(self._plan.logs)
        log.info("milliseconds since create: %s", self._trace)
        if self._plan.template is not None and not self._plan.template.rooted:
            await self._tell_disk_sizes()
        builder = self._plan.builder
        if builder is None or not FileLock(Path(builder.lock)).is_free():
            return
        built = await build_in_background(builder.arguments)
        log.info("the template for later sandboxes was %s", "built" if built else "not built")

    def _start_sampling(self, pausing: Pausing) -> None:
        plan = self._plan
        if plan.metrics is None:
            return
        # Imported now: the guest was not to wait for it.
        from microsandbox.metrics.registry import Entry, Slot
        from microsandbox.metrics.sample import Meter
        from microsandbox.metrics.sampler import Sampler

        entry = Entry(
            plan.sandbox_id,
            plan.run_id,
            ProcessIdentity.current(),
            plan.name,
            plan.memory_mib * MIB,
            started_ms=self._started_ms,
        )
        slot = Slot(plan.metrics.slot, plan.metrics.generation)
        meter = Meter(self._machine.vm.pid, self._machine.monitor)
        sampler = Sampler(Path(plan.metrics.registry), slot, entry, meter, plan.metrics.interval)
        self._start(sampler.run(pausing.running))

    async def _stop(self, machine: RunningMachine, pausing: Pausing | None) -> None:
        """From the wish to the end of the machine."""
        guest, exited = machine.guest, machine.exited
        if exited.done():
            return
        if not self._ending.done():
            if self._serving is not None:
                self._serving[0].give_up(Refusal.LOST, guest.lost.result())
            # A machine that powers off closes the agent's port a moment before it is gone; an init may end
            # the agent before it is done.
            patience = FLUSH_WINDOW if self._plan.has_init else PORT_TO_EXIT
            await asyncio.wait(
                (exited, self._ending),
                timeout=0 if guest.broken else patience,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if exited.done():
                return
            if not self._ending.done():
                self.end(Ending(Reason.INTERNAL_ERROR, 0, guest.lost.result()))
        ending = self._ending.result()
        if not self._hurry.is_set():
            window = ending.window
            if guest.lost.done():  # nobody is there to be told: it is about to power off by itself, or never
                window = min(window, PORT_TO_EXIT)
            self._start(self._shut_down(guest, pausing))
            hurry = asyncio.ensure_future(self._hurry.wait())
            await asyncio.wait((exited, hurry), timeout=window, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
        if not exited.done():
            log.info("killing the machine")
            machine.vm.kill()

    async def _shut_down(self, guest: GuestLink, pausing: Pausing | None) -> None:
        if pausing is not None:
            await pausing.leave("it is being stopped")
        guest.send_message(MessageType.SHUTDOWN)

    # what may end it

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        loop.add_signal_handler(signal.SIGUSR1, self._on_drain)

    def _on_sigterm(self) -> None:
        if self._ending.done():
            self._hurry.set()
        self.end(Ending(Reason.SIGNAL, FLUSH_WINDOW, "SIGTERM"))

    def _on_drain(self) -> None:
        """SIGUSR1: running commands finish, new ones are refused, then the guest is shut down."""
        if self._serving is None:
            self.end(Ending(Reason.DRAIN_REQUESTED, 0))
        else:
            self._start(self._drain(*self._serving))

    def _watch_owner(self) -> None:
        if self._watchdog is not None:
            os.set_blocking(self._watchdog, False)
            asyncio.get_running_loop().add_reader(self._watchdog, self._on_watchdog)

    def _on_watchdog(self) -> None:
        assert self._watchdog is not None
        ending = None
        try:
            data = os.read(self._watchdog, 64)
            if data and _DETACH not in data:
                return
            if not data:
                window = FLUSH_WINDOW if self._plan.has_init else ORPHAN_FLUSH_WINDOW
                ending = Ending(Reason.SIGNAL, window, "the owner is gone")
        except OSError as error:
            ending = Ending(Reason.SIGNAL, 0, f"the owner cannot be watched: {error}")
        asyncio.get_running_loop().remove_reader(self._watchdog)
        os.close(self._watchdog)
        if ending is not None:
            self.end(ending)

    def _start_timers(self, guest: GuestLink, relay: Relay, pausing: Pausing) -> None:
        self._start(keep_clock(guest, pausing.running))
        self._start(self._watch_health(guest, relay, pausing))
        if self._plan.idle_timeout is not None:
            self._start(self._limit_idleness(self._plan.idle_timeout, relay, pausing))
        if self._plan.pause_after is not None:
            self._start(pausing.pause_when_idle(self._plan.pause_after))

    def _start(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the supervisor failed", exc_info=error)

    async def _drain(self, relay: Relay, pausing: Pausing) -> None:
        await pausing.leave("it is draining")
        try:
            self._catalog.set_draining(self._plan.sandbox_id)
        except DatabaseError:
            log.exception("draining, but the catalogue could not be told")
        await relay.drain()
        self.end(Ending(Reason.DRAIN_REQUESTED, FLUSH_WINDOW))

    async def _limit_duration(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.end(Ending(Reason.MAX_DURATION, 0))

    async def _limit_idleness(self, seconds: float, relay: Relay, pausing: Pausing) -> None:
        await until_idle(relay, seconds, pausing.idleness_counts)
        self.end(Ending(Reason.IDLE_TIMEOUT, FLUSH_WINDOW))

    async def _watch_health(self, guest: GuestLink, relay: Relay, pausing: Pausing) -> None:
        await Health(relay, guest, pausing.running, Threads(self._machine.vm.pid)).until_hung()
        if not self._ending.done():
            relay.give_up(Refusal.UNRESPONSIVE, UNRESPONSIVE)
            self.end(Ending(Reason.AGENT_UNRESPONSIVE, 0, UNRESPONSIVE))

    # what is left behind

    def _record_failure(self, failure: BootFailure) -> None:
        log.error("boot failed: %s", failure.message)
        failure.save(self._plan.boot_error)
        self._settle(Reason.INTERNAL_ERROR, exit_code=1, detail=failure.message)

    def _record_end(self, status: int) -> int:
        machine = self._machine
        panic = panic_reason(machine.console.tail)
        if self._ending.done():
            ending = self._ending.result()
            reason, detail = ending.reason, ending.detail
        elif status == 0 and (panic is None or (self._plan.has_init and init_is_done(machine.console.tail))):
            reason, detail = Reason.COMPLETED, machine.monitor.shutdown_cause
        else:
            reason, detail = Reason.FAILED, panic or last_lines(machine.errors.tail) or None
        log.info("machine ended with status %d: %s", status, reason)
        self._settle(
            reason,
            status=Status.CRASHED if reason is Reason.FAILED else Status.STOPPED,
            exit_code=status if status >= 0 else None,
            exit_signal=-status if status < 0 else None,
            detail=detail,
        )
        return 0

    def _settle(
        self,
        reason: Reason,
        *,
        status: Status = Status.STOPPED,
        exit_code: int | None,
        exit_signal: int | None = None,
        detail: str | None,
    ) -> None:
        plan = self._plan
        try:
            self._catalog.end_run(
                plan.sandbox_id,
                plan.run_id,
                status,
                reason,
                exit_code=exit_code,
                exit_signal=exit_signal,
                detail=detail,
            )
        except DatabaseError:
            log.exception("the end of the run could not be recorded; its row will be found stale")


def record_launch_failure(plan: LaunchPlan, catalog: SandboxCatalog, error: Exception) -> None:
    """Tell the owner, and the catalogue, why there is no machine, or why it is not kept."""
    log.error("boot failed: %s", error)
    BootFailure.of(error, "build_vm").save(plan.boot_error)
    catalog.end_run(
        plan.sandbox_id, plan.run_id, Status.STOPPED, Reason.INTERNAL_ERROR, exit_code=1, detail=str(error)
    )
