"""From a row in the catalogue to a connected sandbox: disks, launch plan, supervisor, relay.

Creating and starting meet here: both have a Running row whose run is this process's, and a directory with
the writable layer. Whatever fails from here on leaves a stopped sandbox and no process.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import posixpath
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec import structs
from msgspec.structs import replace

from microsandbox.agent.connection import Connection
from microsandbox.errors import (
    BootError,
    DiskError,
    DiskInUseError,
    FilesystemError,
    InvalidConfigError,
    MicrosandboxError,
)
from microsandbox.image.store import StoredImage
from microsandbox.metrics.registry import Entry, RegistryError, Reservation
from microsandbox.runtime import standby
from microsandbox.runtime.boot import BOOT_TIMEOUT
from microsandbox.runtime.boot_failure import OUT_OF_MEMORY, BootFailure
from microsandbox.runtime.descriptors import FIRST_DISK_FD
from microsandbox.runtime.disks import open_locked
from microsandbox.runtime.first_words import first_words
from microsandbox.runtime.launch import parcel
from microsandbox.runtime.plan import DiskPlan, LaunchPlan, MetricsPlan, Parcel
from microsandbox.runtime.process import ProcessHandle
from microsandbox.runtime.spawn import SpawnMode, abandon, spawn
from microsandbox.runtime.trace import Trace
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.handoff import boot_init
from microsandbox.sandbox.options import SandboxConfig
from microsandbox.sandbox.templates import Start
from microsandbox.store.files import write_atomically
from microsandbox.store.home import SandboxPaths
from microsandbox.store.processes import ProcessIdentity
from microsandbox.store.sandboxes import Reason, SandboxRow, Status
from microsandbox.template.shape import ROOT
from microsandbox.units import MIB
from microsandbox.vmm.host import Host, examine_host
from microsandbox.vmm.kernel import GuestKernel, installed_kernel, prepare_kernel

#: How often, and at which interval in seconds, a lock is asked for that another machine still has.
_LOCK_ATTEMPTS, _LOCK_INTERVAL = 20, 0.05
#: Seconds that the processors are left to what a new sandbox is made for.
SPARE_DELAY = 0.25

_MACHINE_ID = re.compile("[0-9a-f]{32}")
#: Why a start failed whose run somebody else has ended.
GIVEN_UP = "it was stopped, replaced or removed by somebody else meanwhile"

log = logging.getLogger(__name__)


async def prepare_host(context: Context) -> Host:
    """What machines are built from here: found out, and the guest kernel prepared, on first use."""
    kernel = installed_kernel(context.home)
    if kernel is None:
        kernel = await asyncio.to_thread(prepare_kernel, context.home)
    return await asyncio.to_thread(examine_host, context.home, kernel)


@contextmanager
def starting(context: Context, row: SandboxRow) -> Iterator[None]:
    """Record the end of a start that fails, and tell apart one that somebody else has ended."""
    try:
        yield
    except BaseException as error:
        given_up = context.sandboxes.was_given_up(row)
        assert row.run_id is not None
        detail = str(error) if isinstance(error, MicrosandboxError) else None
        context.sandboxes.end_run(row.id, row.run_id, Status.STOPPED, Reason.INTERNAL_ERROR, detail=detail)
        if given_up and isinstance(error, Exception):
            raise BootError(row.name, GIVEN_UP) from error
        raise


async def boot(
    context: Context,
    row: SandboxRow,
    config: SandboxConfig,
    image: StoredImage,
    host: Host,
    start: Start,
    mode: SpawnMode,
    trace: Trace,
) -> tuple[ProcessHandle, Connection]:
    """Start the sandbox of a Running row, whose end the caller records. Raises BootError and others."""
    paths = context.home.sandbox(row.name)
    handle: ProcessHandle | None = None
    reservation: Reservation | None = None
    try:
        paths.boot_error.unlink(missing_ok=True)
        _check_memory(row.name, config, host.kernel)
        with ExitStack() as stack:
            disks = []
            for path, writable, stage in ((image.rootfs, False, "image"), (paths.upper, True, "mount")):
                try:
                    disks.append(await _open_disk(path, writable=writable))
                except (DiskError, InvalidConfigError) as error:
                    raise BootFailure.of(error, stage).as_error(row.name) from error
                stack.callback(os.close, disks[-1])
            if not context.sandboxes.is_live(row):  # the disk may be that of who has the name now
                raise BootError(row.name, GIVEN_UP)
            trace.mark("disks open")
            reservation = reserve_metrics(context, row, config)
            plan = _plan(context, row, config, host, start, trace, reservation)
            try:
                handle = await spawn(_parcel(plan, stack), disks, mode, reservation=reservation)
            except MicrosandboxError as error:
                _raise_recorded(paths, error)
                raise
            trace.mark("supervisor runs")
        connection = await _connect(context, row, handle)
        try:
            await _check_workdir(connection, config)
        except BaseException:
            connection.close()
            raise
    except BaseException:
        if handle is not None:
            await abandon(handle)
        elif reservation is not None:
            reservation.release()
        raise
    asyncio.get_running_loop().call_later(SPARE_DELAY, standby.sandbox_made)
    return handle, connection


def _check_memory(name: str, config: SandboxConfig, kernel: GuestKernel) -> None:
    """Without room for itself a kernel hangs or resets, and cannot say why. Raises BootError."""
    needed = kernel.memory_needed()
    if config.memory_mib * MIB < needed:
        has = f"it has {config.memory_mib} MiB, its kernel alone takes {-(-needed // MIB)}"
        raise BootFailure(f"{OUT_OF_MEMORY}: {has}", "build_vm", errno.ENOMEM).as_error(name)


async def _open_disk(path: Path, *, writable: bool) -> int:
    """Open and lock a disk, with patience for a machine that was killed and has not quite ended."""
    for _ in range(_LOCK_ATTEMPTS):
        with suppress(DiskInUseError):
            return open_locked(path, writable=writable)
        await asyncio.sleep(_LOCK_INTERVAL)
    return open_locked(path, writable=writable)


def _parcel(plan: LaunchPlan, stack: ExitStack) -> Parcel:
    """What the supervisor is handed; without the template, if that has been taken away meanwhile."""
    if plan.template is not None:
        words = first_words(plan.resumed_boot)
        with suppress(OSError):
            return parcel(replace(plan, told=words is not None), words, stack)
        plan = replace(plan, template=None)
    return parcel(plan, None, stack)


def reserve_metrics(context: Context, row: SandboxRow, config: SandboxConfig) -> Reservation | None:
    """A slot for the sandbox's samples, if any are to be taken; it runs without when there is none."""
    if config.metrics_interval is None:
        return None
    assert row.run_id is not None
    entry = Entry(row.id, row.run_id, ProcessIdentity.current(), row.name, config.memory_mib * MIB)
    try:
        return Reservation.make(context.home.metrics_registry, context.home.config.metrics_capacity, entry)
    except (RegistryError, OSError) as error:
        log.warning("sandbox '%s' runs without metrics: %s", row.name, error)
        return None


def _plan(
    context: Context,
    row: SandboxRow,
    config: SandboxConfig,
    host: Host,
    start: Start,
    trace: Trace,
    reservation: Reservation | None,
) -> LaunchPlan:
    paths = context.home.sandbox(row.name)
    assert row.run_id is not None
    return LaunchPlan(
        name=row.name,
        sandbox_id=row.id,
        run_id=row.run_id,
        database=str(context.home.database.absolute()),
        directory=str(paths.directory.absolute()),
        agent_socket=str(paths.agent_socket.absolute()),
        qemu=host.qemu,
        jail=host.jail.kind,
        kernel=str(host.kernel.vmlinux),
        initramfs=str(host.kernel.initramfs),
        accelerator=host.accelerator.accelerator,
        cpus=config.cpus,
        memory_mib=config.memory_mib,
        disks=(
            DiskPlan("rootfs", FIRST_DISK_FD, "raw", read_only=True),
            DiskPlan("upper", FIRST_DISK_FD + 1, "raw", read_only=False),
        ),
        boot=_boot_config(config, _machine_id(paths.machine_id, config)),
        max_duration=config.max_duration_secs,
        idle_timeout=config.idle_timeout_secs,
        pause_after=config.pause_after_secs,
        log_level="debug" if config.log_level == "trace" else config.log_level,  # logging has no "trace"
        templates=str(context.home.templates.absolute()),
        template=start.plan,
        builder=start.builder,
        metrics=None
        if reservation is None
        else MetricsPlan(
            str(reservation.path),
            reservation.slot.index,
            reservation.slot.generation,
            config.metrics_interval or 0,
        ),
        busy_timeout=context.home.config.database.busy_timeout_secs,
        trace=trace.marks,
    )


def _machine_id(path: Path, config: SandboxConfig) -> str:
    """A new one at each start; with an init the same for the sandbox's life: journals are filed under it."""
    if config.init is None:
        return secrets.token_hex(16)
    with suppress(OSError):
        if _MACHINE_ID.fullmatch(found := path.read_text("ascii", "replace")):
            return found
    made = secrets.token_hex(16)
    write_atomically(path, made.encode())
    return made


def _boot_config(config: SandboxConfig, machine_id: str) -> dict[str, Any]:
    """The body of ``core.boot.config``: what makes a booted guest this sandbox."""
    scripts = [
        {"name": posixpath.basename(name), "content": body.encode()} for name, body in config.scripts.items()
    ]
    tmpfs = [
        {"path": mount.guest, "size_mib": mount.size_mib, "options": mount.options}
        for mount in sorted(config.tmpfs_mounts, key=lambda mount: mount.depth)
    ]
    return {
        "hostname": config.guest_hostname,
        "machine_id": machine_id,
        "root": ROOT,
        "tmpfs": tmpfs,
        "env": [],
        "user": config.user,
        "scripts": scripts,
        "rlimits": [structs.asdict(limit) for limit in config.rlimits],
        "security_profile": config.security_profile,
        "init": boot_init(config.init, config.env),
    }


async def _connect(context: Context, row: SandboxRow, handle: ProcessHandle) -> Connection:
    """The relay's handshake, or the reason why there will be none. Raises BootError."""
    path = context.home.sandbox(row.name).agent_socket
    opening = asyncio.ensure_future(Connection.open(path, timeout=BOOT_TIMEOUT + 10))
    exited = asyncio.ensure_future(handle.wait())
    try:
        await asyncio.wait((opening, exited), return_when=asyncio.FIRST_COMPLETED)
        if opening.done() and opening.exception() is None:
            return opening.result()
        if not exited.done():
            await asyncio.wait((exited,), timeout=5)
        _raise_recorded(context.home.sandbox(row.name), None)
        if not exited.done():
            return opening.result()
        raise BootError(
            row.name, f"sandbox process exited ({exited.result()}) before agent relay became available"
        )
    except asyncio.CancelledError:
        if opening.done() and not opening.cancelled() and opening.exception() is None:
            opening.result().close()
        raise
    finally:
        for task in (opening, exited):  # not waited for: a cancellation would be lost in that
            task.cancel()


def _raise_recorded(paths: SandboxPaths, cause: Exception | None) -> None:
    """Raise the BootError that the supervisor has left a record of, if it has."""
    failure = BootFailure.load(paths.boot_error)
    if failure is not None:
        raise failure.as_error(paths.directory.name) from cause


async def _check_workdir(connection: Connection, config: SandboxConfig) -> None:
    if config.workdir is None:
        return
    from microsandbox.sandbox.fs import SandboxFsOps
    from microsandbox.types import FsEntryKind

    try:
        found = await SandboxFsOps(connection).stat(config.workdir)
    except FilesystemError as error:
        raise InvalidConfigError(
            f"workdir does not exist in guest: {config.workdir}: {error.detail}"
        ) from error
    if found.kind != FsEntryKind.DIRECTORY:
        raise InvalidConfigError(f"workdir is not a directory in guest: {config.workdir}")
