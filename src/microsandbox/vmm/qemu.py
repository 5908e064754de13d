"""A running QEMU: started in its jail, held by its supervisor, gone when that is gone.

Starting needs neither asyncio nor the guest's cooperation, so a supervisor does it first and imports the
rest while the guest's kernel comes up.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

from microsandbox.errors import VmmError
from microsandbox.vmm.jail import Jailed, JailedProcess, JailKind, start
from microsandbox.vmm.machine import Accelerator, Handles, Machine, QemuInstallation, qemu_arguments

_KERNEL, _INITRAMFS = "/guest/kernel", "/guest/initramfs"


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


def launch(machine: Machine, qemu: QemuInstallation, jail: JailKind, *, identity: int) -> VirtualMachine:
    """Start QEMU and return at once. Only for single-threaded processes.

    ``identity`` is a number of this sandbox's own. Raises VmmError when the kernel refuses the jail; what
    QEMU itself has to complain about arrives on ``errors``.
    """
    names = ("agent", "console", "qmp", "errors")
    pairs = {name: socket.socketpair() for name in names}
    files = {path: Path(path) for path in (qemu.binary, *qemu.files)}
    with ExitStack() as theirs:
        for _, their_end in pairs.values():
            theirs.enter_context(their_end)
        agent, console, qmp, errors = (pairs[name][1].fileno() for name in names)
        fds = [agent, console, qmp, *(disk.fd for disk in machine.disks)]
        if jail is JailKind.NAMESPACES:
            files |= {_KERNEL: machine.kernel, _INITRAMFS: machine.initramfs}
            handles = Handles(_KERNEL, _INITRAMFS, qmp, console, agent)
        else:  # the jailed user may not be able to follow the paths, but it can reopen descriptors
            files |= {str(path): path for path in (machine.kernel, machine.initramfs)}
            opened = [
                os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (machine.kernel, machine.initramfs)
            ]
            for fd in opened:
                theirs.callback(os.close, fd)
            fds += opened
            kernel, initramfs = (f"/proc/self/fd/{fd}" for fd in opened)
            handles = Handles(kernel, initramfs, qmp, console, agent)
        jailed = Jailed(
            argv=tuple(qemu_arguments(machine, qemu, handles)),
            files=files,
            fds=tuple(fds),
            errors=errors,
            kind=jail,
            identity=identity,
            devices=("/dev/kvm",) if machine.accelerator is Accelerator.KVM else (),
            environment=loader_environment(qemu),
        )
        try:
            process = start(jailed)
        except OSError as error:
            for our_end, _ in pairs.values():
                our_end.close()
            raise VmmError(f"the jail around QEMU cannot be made ({jail.value}): {error}") from error
    return VirtualMachine(process, **{name: our_end for name, (our_end, _) in pairs.items()})


def loader_environment(qemu: QemuInstallation) -> dict[str, str]:
    """The loader has no cache in the jail: it is told where the libraries are."""
    directories = dict.fromkeys(str(Path(path).parent) for path in qemu.files if ".so" in Path(path).name)
    return {"LD_LIBRARY_PATH": ":".join(directories), "LC_ALL": "C"}
