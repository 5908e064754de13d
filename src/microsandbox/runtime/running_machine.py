"""A machine that runs, and everything it says: agent port, console, QEMU's errors, QMP."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

from microsandbox.runtime.boot_failure import BootFailure, LinkLost, explain_exit
from microsandbox.runtime.guest_link import GuestLink
from microsandbox.runtime.log_files import LogStream, RotatingFile
from microsandbox.tools import last_lines
from microsandbox.vmm.monitor import Monitor
from microsandbox.vmm.qemu import VirtualMachine

#: Seconds for a machine's last words to arrive after its end, and for its end after that of its agent's port.
_LAST_WORDS, PORT_TO_EXIT = 2.0, 2.0


class RunningMachine:
    """Owns the machine: ``end()`` kills what is left of it and waits for its end."""

    def __init__(self, vm: VirtualMachine) -> None:
        self.vm = vm
        self.monitor: Monitor
        self.guest: GuestLink
        self.console: LogStream
        self.errors: LogStream
        self.exited: asyncio.Future[int] = asyncio.ensure_future(vm.wait())

    @classmethod
    async def attach(cls, vm: VirtualMachine, logs: Path) -> RunningMachine:
        """Connect to the machine's sockets. ``logs`` is where its console and QEMU's errors are kept.

        Raises OSError when they cannot be kept; the machine has ended then.
        """
        running = cls(vm)
        try:
            running.console = await _keep(vm.console, logs / "kernel.log")
            running.errors = await _keep(vm.errors, logs / "qemu.log")
            running.guest = await GuestLink.open(vm.agent)
            running.monitor = await Monitor.open(vm.qmp)
            running.monitor.on_port_closed = running.guest.close  # QEMU keeps its end open
        except BaseException:
            vm.kill()
            await running.exited
            raise
        return running

    async def end(self) -> None:
        """Kill the machine unless it has ended, and see it gone."""
        self.vm.kill()
        await self.exited
        await self.monitor.wait_closed()  # its end is the end of its QMP connection too
        self.guest.close()

    async def why(self, failure: LinkLost) -> BootFailure:
        """The reason behind the end of the agent's port: usually that of the machine."""
        await asyncio.wait((self.exited,), timeout=PORT_TO_EXIT)
        if not self.exited.done():
            return failure
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await self.console.ended.wait()
                await self.errors.ended.wait()
        return explain_exit(self.exited.result(), self.console.tail, last_lines(self.errors.tail))


async def _keep(sock: socket.socket, path: Path) -> LogStream:
    stream = LogStream(RotatingFile(path))
    await asyncio.get_running_loop().create_connection(lambda: stream, sock=sock)
    return stream
