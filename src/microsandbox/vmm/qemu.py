"""A running QEMU: started in its jail, held by its supervisor, gone when that is gone.

Starting needs neither asyncio nor the guest's cooperation, so a supervisor does it first and imports the
rest while the guest's kernel comes up.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from microsandbox._host import preload_library
from microsandbox.errors import VmmError
from microsandbox.vmm.jail import Jailed, JailedProcess, start
from microsandbox.vmm.jail_kind import JailKind
from microsandbox.vmm.machine import Accelerator, Disk, Handles, Machine, QemuInstallation, qemu_arguments


class VirtualMachine:
    """One QEMU process, a child of ours, and our ends of its sockets.

    ``agent``, ``console``, ``qmp`` and ``errors`` (QEMU's standard error) belong to whoever connects a
    transport to them; ``close()`` closes the rest.
    """

    def __init__(
        self,
        process: JailedProcess,
        *,
        agent: socket.socket,
        console: socket.socket,
        qmp: socket.socket,
        errors: socket.socket,
    ) -> None:
        self.pid = process.pid
        self.agent, self.console, self.qmp, self.errors = agent, console, qmp, errors
        self._lifeline = process.lifeline
        self._pidfd = os.pidfd_open(process.pid)
        self._status: int | None = None

    def kill(self) -> None:
        """SIGKILL; does nothing once it has ended."""
        if self._status is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait(self) -> int:
        """The exit status, negative for a signal. Can be cancelled and repeated."""
        if self._status is None:
            import asyncio

            loop = asyncio.get_running_loop()
            with os.fdopen(os.dup(self._pidfd), "rb", buffering=0) as readable:
                ended = asyncio.Event()
                loop.add_reader(readable, ended.set)
                try:
                    await ended.wait()
                finally:
                    loop.remove_reader(readable)
        return self.reap()

    def reap(self) -> int:
        """The exit status, waiting in this thread for the process to end."""
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def close(self) -> None:
        """Close our descriptors; the process must have ended."""
        for sock in (self.agent, self.console, self.qmp, self.errors):
            sock.close()
        os.close(self._lifeline)
        os.close(self._pidfd)


class Ends(Struct, frozen=True):
    """QEMU's ends of its sockets, by number."""

    agent: int
    console: int
    qmp: int
    errors: int


def launch(machine: Machine, qemu: QemuInstallation, jail: JailKind, *, identity: int) -> VirtualMachine:
    """Start QEMU and return at once. Only for single-threaded processes.

    ``identity`` is a number of this sandbox's own. Raises VmmError when the kernel refuses the jail; what
    QEMU itself has to complain about arrives on ``errors``.
    """
    pairs = {name: socket.socketpair() for name in Ends.__struct_fields__}
    with ExitStack() as theirs:
        for _, their_end in pairs.values():
            theirs.enter_context(their_end)
        ends = Ends(**{name: their_end.fileno() for name, (_, their_end) in pairs.items()})

        def hold(path: Path) -> int:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            theirs.callback(os.close, fd)
            return fd

        try:
            process = start(jailed_qemu(machine, qemu, jail, ends, hold, identity=identity))
        except OSError as error:
            for our_end, _ in pairs.values():
                our_end.close()
            raise VmmError(f"the jail around QEMU cannot be made ({jail.value}): {error}") from error
    return VirtualMachine(process, **{name: our_end for name, (our_end, _) in pairs.items()})


def jailed_qemu(
    machine: Machine,
    qemu: QemuInstallation,
    jail: JailKind,
    ends: Ends,
    hold: Callable[[Path], int],
    *,
    identity: int,
) -> Jailed:
    """QEMU and its jail, ready to be started. ``hold`` opens a file and returns the number it will have."""
    shown = {name: _show(name, path, jail, hold) for name, path in _own_files(machine).items()}
    told = {name: file.path for name, file in shown.items()}
    preload = told.pop("preload", None)
    writable = {"ram"} if machine.ram is not None and machine.ram.shared else set()
    fds = [ends.agent, ends.console, ends.qmp, *(file.fd for file in shown.values() if file.fd is not None)]
    fds += [disk.fd for disk in machine.disks if isinstance(disk, Disk)]
    fds += [] if machine.state is None else [machine.state]
    return Jailed(
        argv=tuple(qemu_arguments(machine, qemu, Handles(ends.qmp, ends.console, ends.agent, **told))),
        files={path: path for path in (qemu.binary, *qemu.files)}
        | {file.place: file.host for name, file in shown.items() if name not in writable},
        writable={shown[name].place: shown[name].host for name in writable},
        fds=tuple(fds),
        errors=ends.errors,
        kind=jail.value,
        identity=identity,
        devices=("/dev/kvm",) if machine.accelerator is Accelerator.KVM else (),
        environment=loader_environment(qemu, preload),
        # For translated code, which is never dense, they cost memory and save no time.
        huge_pages=machine.accelerator is Accelerator.KVM,
    )


def _own_files(machine: Machine) -> dict[str, Path]:
    """What only this machine reads, by what it is to QEMU."""
    files: dict[str, Path] = {}
    if machine.kernel is not None:
        files |= {"kernel": machine.kernel.kernel, "initramfs": machine.kernel.initramfs}
    if machine.ram is not None:
        files["ram"] = machine.ram.path
        if not machine.ram.shared and (library := preload_library()) is not None:
            files["preload"] = library
    return files


class _ShownFile(Struct, frozen=True):
    """QEMU knows it as ``path``; in the jail it is at ``place``, and open as ``fd`` if need be."""

    path: str
    place: str
    host: str
    fd: int | None = None


def _show(name: str, host: Path, jail: JailKind, hold: Callable[[Path], int]) -> _ShownFile:
    if jail is JailKind.NAMESPACES:
        place = f"/guest/{name}"
        return _ShownFile(place, place, str(host))
    # The jailed user may not be able to follow the path, but it can open a descriptor again.
    fd = hold(host)
    return _ShownFile(f"/proc/self/fd/{fd}", str(host), str(host), fd)


def loader_environment(qemu: QemuInstallation, preload: str | None = None) -> dict[str, str]:
    """The loader has no cache in the jail: it is told where the libraries are."""
    directories = dict.fromkeys(str(Path(path).parent) for path in qemu.files if ".so" in Path(path).name)
    environment = {"LD_LIBRARY_PATH": ":".join(directories), "LC_ALL": "C"}
    return environment if preload is None else {**environment, "LD_PRELOAD": preload}
