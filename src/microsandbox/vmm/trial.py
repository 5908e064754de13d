"""``python -m microsandbox.vmm.trial``: does it really work here? Exit status 0, or the reason on stdout.

A process of its own, because jailed programs may only be started by single-threaded ones, and because
whatever hangs can be killed as a whole.

    jail KIND QEMU-JSON                            QEMU starts inside such a jail
    kvm KIND QEMU-JSON KERNEL INITRAMFS SECONDS    a guest under KVM reaches its agent within that time
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from pathlib import Path

from microsandbox.errors import MicrosandboxError
from microsandbox.vmm.architecture import host_architecture
from microsandbox.vmm.jail import Jailed, start
from microsandbox.vmm.jail_kind import JailKind
from microsandbox.vmm.machine import Accelerator, BootKernel, Machine, QemuInstallation
from microsandbox.vmm.qemu import launch, loader_environment


def _try_jail(kind: JailKind, qemu: QemuInstallation) -> str | None:
    """What QEMU, asked for its version in that jail, has to complain about."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            files = {path: path for path in (qemu.binary, *qemu.files)}
            argv = (qemu.binary, "--version")
            environment = loader_environment(qemu)
            jailed = Jailed(argv, files, (), theirs.fileno(), kind, environment=environment)
            try:
                process = start(jailed)
            except OSError as error:
                return str(error)
        said = b""
        while piece := ours.recv(4096):
            said += piece
    _, status = os.waitpid(process.pid, 0)
    return said.decode("utf-8", "replace").strip() or f"status {status}" if status else None


def _try_kvm(
    kind: JailKind, qemu: QemuInstallation, kernel: Path, initramfs: Path, seconds: float
) -> str | None:
    """Why the agent said nothing in time, if it did not."""
    machine = Machine(host_architecture(), Accelerator.KVM, 1, 256, BootKernel(kernel, initramfs))
    started = time.monotonic()
    vm = launch(machine, qemu, kind, identity=0)
    try:
        readable, _, _ = select.select([vm.agent], [], [], seconds)
        if readable and vm.agent.recv(1):
            return None
        if not readable:
            return f"a guest did not reach its agent within {seconds:g} s"
        status = vm.reap()
        said = vm.errors.recv(4096).decode("utf-8", "replace").strip()
        return f"a guest died after {time.monotonic() - started:.1f} s (status {status}): {said}"
    finally:
        vm.kill()
        vm.reap()
        vm.close()


def main(arguments: list[str]) -> int:
    what, kind, values, *rest = arguments
    fields = json.loads(values)
    qemu = QemuInstallation(**{**fields, "files": tuple(fields["files"])})
    try:
        if what == "jail":
            reason = _try_jail(JailKind(kind), qemu)
        else:
            kernel, initramfs, seconds = rest
            reason = _try_kvm(JailKind(kind), qemu, Path(kernel), Path(initramfs), float(seconds))
    except MicrosandboxError as error:
        reason = str(error)
    print(reason or "")
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
