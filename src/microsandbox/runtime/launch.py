"""From a launch plan to a machine: described by the owner, started and then watched by the supervisor."""

from __future__ import annotations

import gc
import os
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import convert

from microsandbox.errors import VmmError
from microsandbox.runtime import descriptors
from microsandbox.runtime.boot_failure import BootFailure
from microsandbox.runtime.plan import LaunchPlan, Parcel
from microsandbox.runtime.program import Started
from microsandbox.store.files import make_private
from microsandbox.vmm.architecture import host_architecture
from microsandbox.vmm.machine import BootKernel, Disk, Machine, RamFile
from microsandbox.vmm.qemu import Ends, VirtualMachine, jailed_qemu, launch

if TYPE_CHECKING:
    from microsandbox.store.sandboxes import SandboxCatalog

_ENDS = Ends(descriptors.AGENT_FD, descriptors.CONSOLE_FD, descriptors.QMP_FD, descriptors.ERRORS_FD)


def parcel(plan: LaunchPlan, first_words: tuple[bytes, bytes] | None, stack: ExitStack) -> Parcel:
    """What the plan's supervisor is to be handed. The descriptors in it are closed with the stack.

    Raises OSError when the template is gone.
    """
    handed: list[tuple[int, int]] = []

    def hold(path: Path, number: int) -> int:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        handed.append((fd, number))
        return number

    def show(path: Path) -> int:
        return hold(path, descriptors.FIRST_SHOWN_FD + len(handed))

    jailed = jailed_qemu(
        _machine(plan, resumed=plan.template is not None),
        plan.qemu,
        plan.jail,
        _ENDS,
        show,
        identity=plan.sandbox_id,
    )
    if plan.template is not None:
        hold(Path(plan.template.state), descriptors.STATE_FD)
    return Parcel(plan, jailed, first_words, tuple(handed))


def launch_cold(plan: LaunchPlan) -> VirtualMachine:
    """Start the plan's machine with a boot, whatever template there is. Raises MicrosandboxError."""
    return launch(_machine(plan, resumed=False), plan.qemu, plan.jail, identity=plan.sandbox_id)


def _machine(plan: LaunchPlan, *, resumed: bool) -> Machine:
    template = plan.template if resumed else None
    return Machine(
        architecture=host_architecture(),
        accelerator=plan.accelerator,
        cpus=plan.cpus,
        memory_mib=plan.memory_mib,
        kernel=BootKernel(Path(plan.kernel), Path(plan.initramfs)) if template is None else None,
        disks=tuple(Disk(disk.serial, disk.fd, disk.format, disk.read_only) for disk in plan.disks),
        ram=None if template is None else RamFile(Path(template.ram), shared=False),
        state=None if template is None else descriptors.STATE_FD,
    )


def supervise(
    values: dict[str, Any], started: Started, watchdog: int | None, marks: list[tuple[str, int]]
) -> int:
    """Supervise until the sandbox has ended, and return the exit status of this process."""
    from microsandbox.store.database import Database
    from microsandbox.store.sandboxes import Reason, SandboxCatalog, Status

    plan = convert({**values, "trace": (*values["trace"], *marks)}, LaunchPlan, builtin_types=(bytes,))
    catalog = SandboxCatalog(Database(Path(plan.database), plan.database_config))
    path = Path(plan.agent_socket)
    listeners: list[socket.socket] = []
    try:
        # Nothing of the name's is touched before: it may be another sandbox's by now.
        if not catalog.take_over(plan.run_id, lambda: listeners.append(_listen(path))):
            _release_metrics(plan)
            return 1
    except OSError as error:
        # Nobody knows of this process yet: its owner finds the record when there is no startup line.
        with suppress(OSError):  # not its parent: a sandbox that is gone stays gone
            plan.logs.mkdir(mode=0o700, exist_ok=True)
        BootFailure(f"bind {path}: {error.strerror} (os error {error.errno})").save(plan.boot_error)
        return 1
    bound = path.stat()
    try:
        _announce()
        return _supervise(plan, started, catalog, listeners[0], watchdog)
    except BrokenPipeError:  # the owner has died already, and nobody reads the line
        catalog.end_run(
            plan.sandbox_id, plan.run_id, Status.STOPPED, Reason.SIGNAL, detail="the owner is gone"
        )
        return 1
    finally:
        with suppress(FileNotFoundError):
            if os.path.samestat(bound, path.stat()):  # not that of a sandbox that replaced this one
                path.unlink()
        _release_metrics(plan)


def _release_metrics(plan: LaunchPlan) -> None:
    """Give back the slot of a sandbox that ended before its first sample: its owner may be dead."""
    if plan.metrics is not None:
        from microsandbox.metrics.registry import Reservation, Slot

        slot = Slot(plan.metrics.slot, plan.metrics.generation)
        Reservation(Path(plan.metrics.registry), slot).release()


def _listen(path: Path) -> socket.socket:
    """Bind the relay socket. Early clients wait in its backlog until the guest is ready."""
    make_private(path.parent)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(socket.SOMAXCONN)
    return listener


def _announce() -> None:
    """The one line on standard output; it is closed to everything else from then on."""
    os.write(1, b'{"pid":%d}\n' % os.getpid())
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _supervise(
    plan: LaunchPlan,
    started: Started,
    catalog: SandboxCatalog,
    listener: socket.socket,
    watchdog: int | None,
) -> int:
    import asyncio
    import logging
    import signal

    from microsandbox.runtime.log_files import RotatingFile, RuntimeLog
    from microsandbox.runtime.supervisor import Supervisor, record_launch_failure

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is ignored already, but asyncio asks the interpreter
    try:
        file = RotatingFile(plan.logs / "runtime.log")
    except OSError as error:
        record_launch_failure(plan, catalog, error)
        return 1  # the machine ends with this process
    os.dup2(file.fd, 2)
    logging.basicConfig(
        level=(plan.log_level or "info").upper(),
        format="%(message)s",
        handlers=[RuntimeLog(file)],
        force=True,
    )
    if started.process is None:
        record_launch_failure(plan, catalog, VmmError(started.problem))
        return 1
    errors, qmp, console, agent = (socket.socket(fileno=fd) for fd in started.sockets)
    machine = VirtualMachine(started.process, agent=agent, console=console, qmp=qmp, errors=errors)

    gc.freeze()  # all that was imported stays
    gc.enable()

    async def run() -> int:
        return await Supervisor(plan, machine, catalog, listener, watchdog).run()

    return asyncio.run(run())
