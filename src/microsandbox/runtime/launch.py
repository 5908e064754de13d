"""From a launch plan to a running machine, and from that to the supervisor's event loop."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

from microsandbox.errors import MicrosandboxError, VmmError
from microsandbox.runtime.plan import LaunchPlan, TemplatePlan
from microsandbox.vmm.architecture import host_architecture
from microsandbox.vmm.machine import Accelerator, BootKernel, Disk, Machine, RamFile
from microsandbox.vmm.qemu import VirtualMachine, launch


def launch_machine(plan: LaunchPlan) -> VirtualMachine:
    """Start the plan's machine: from its template if it names one. Raises MicrosandboxError."""
    return _launch(plan, plan.template)


def launch_or_error(plan: LaunchPlan) -> VirtualMachine | MicrosandboxError:
    """The plan's machine, or why there is none: the supervisor tells the owner."""
    try:
        return launch_machine(plan)
    except MicrosandboxError as error:
        return error


def launch_cold(plan: LaunchPlan) -> VirtualMachine:
    """Start the plan's machine with a boot, whatever template there is. Raises MicrosandboxError."""
    return _launch(plan, None)


def _launch(plan: LaunchPlan, template: TemplatePlan | None) -> VirtualMachine:
    kernel, ram, state = BootKernel(Path(plan.kernel), Path(plan.initramfs)), None, None
    try:
        if template is not None:
            ram = RamFile(Path(template.ram), shared=False)
            state = os.open(template.state, os.O_RDONLY | os.O_CLOEXEC)
        machine = Machine(
            architecture=host_architecture(),
            accelerator=Accelerator(plan.accelerator),
            cpus=plan.cpus,
            memory_mib=plan.memory_mib,
            kernel=kernel if state is None else None,
            disks=tuple(Disk(disk.serial, disk.fd, disk.format, disk.read_only) for disk in plan.disks),
            ram=ram,
            state=state,
        )
        return launch(machine, plan.installation, plan.jail_kind, identity=plan.sandbox_id)
    except OSError as error:
        raise VmmError(f"the template {template and template.key} cannot be used: {error}") from error
    finally:
        if state is not None:
            os.close(state)


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
    if isinstance(machine, MicrosandboxError) and plan.template is not None:
        logging.getLogger(__name__).warning("booting instead: %s", machine)
        plan = replace(plan, template=None)
        machine = launch_or_error(plan)
    if isinstance(machine, MicrosandboxError):
        record_launch_failure(plan, machine)
        return 1

    async def supervise() -> int:
        return await Supervisor(plan, machine, listener, watchdog).run()

    return asyncio.run(supervise())
