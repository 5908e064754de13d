"""From a launch plan to a running machine, and from that to the supervisor's event loop."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from microsandbox.errors import MicrosandboxError
from microsandbox.runtime.plan import LaunchPlan
from microsandbox.vmm.architecture import host_architecture
from microsandbox.vmm.machine import Accelerator, Disk, Machine
from microsandbox.vmm.qemu import VirtualMachine, launch


def launch_machine(plan: LaunchPlan) -> VirtualMachine:
    """Start the plan's machine. Raises MicrosandboxError."""
    machine = Machine(
        architecture=host_architecture(),
        accelerator=Accelerator(plan.accelerator),
        cpus=plan.cpus,
        memory_mib=plan.memory_mib,
        kernel=Path(plan.kernel),
        initramfs=Path(plan.initramfs),
        disks=tuple(Disk(disk.serial, disk.fd, disk.format, disk.read_only) for disk in plan.disks),
    )
    return launch(machine, plan.installation, plan.jail_kind, identity=plan.sandbox_id)


def run_supervisor(
    plan: LaunchPlan,
    machine: VirtualMachine | MicrosandboxError,
    listener: socket.socket,
    watchdog: int | None,
) -> int:
    """Supervise until the sandbox has ended, and return this process's exit status."""
    import asyncio
    import logging

    from microsandbox.runtime.log_files import RotatingFile, RuntimeLog
    from microsandbox.runtime.supervisor import Supervisor, record_launch_failure

    file = RotatingFile(plan.logs / "runtime.log")
    os.dup2(file.fd, 2)
    logging.basicConfig(
        level=(plan.log_level or "info").upper(), format="%(message)s", handlers=[RuntimeLog(file)]
    )
    if isinstance(machine, MicrosandboxError):
        record_launch_failure(plan, machine)
        return 1

    async def supervise() -> int:
        return await Supervisor(plan, machine, listener, watchdog).run()

    return asyncio.run(supervise())
