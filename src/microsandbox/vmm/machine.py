"""A virtual machine as a value, and as the QEMU command line that makes it (pure).

Everything a machine may touch arrives as an open descriptor: disks, the agent port, the console, QMP.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from microsandbox.vmm.architecture import Architecture

#: QEMU's own system call filter; the jail holds what it lets through.
_SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
#: PCI slots, the same in every machine: 1 is the agent's, disks follow.
_AGENT_SLOT, _FIRST_DISK_SLOT = 1, 2


@dataclass(frozen=True)
class QemuInstallation:
    """A usable QEMU. ``files`` are all it needs to read besides a machine's own, at their own paths."""

    binary: str
    version: str
    firmware: str
    files: tuple[str, ...]


class Accelerator(StrEnum):
    """What executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class Disk:
    """A block device. ``fd`` is open for writing unless ``read_only``; ``format`` is QEMU's name of it."""

    serial: str
    fd: int
    format: str
    read_only: bool


@dataclass(frozen=True)
class Machine:
    """What a virtual machine is."""

    architecture: Architecture
    accelerator: Accelerator
    cpus: int
    memory_mib: int
    kernel: Path
    initramfs: Path
    disks: tuple[Disk, ...] = ()


@dataclass(frozen=True)
class Handles:
    """By which paths and descriptors QEMU reaches what it is handed at its start."""

    kernel: str
    initramfs: str
    qmp: int
    console: int
    agent: int


def kernel_command_line(machine: Machine) -> str:
    """Quiet, and ended by a panic: the machine then resets, which ends QEMU.

    Without no_timer_check a kernel on a busy host may find that its timer "doesn't work", and panic. The
    self-tests of the kernel's cryptography cost a seventh of a boot under emulation, and so does patching
    its locks for a single CPU, all of which has to be translated again.
    """
    words = ["quiet", "tsc=reliable", "no_timer_check", "cryptomgr.notests", "panic=-1", "rdinit=/init"]
    if machine.accelerator is Accelerator.TCG:
        words.append("noreplace-smp")
    return " ".join((f"console={machine.architecture.console}", *words))


def qemu_arguments(machine: Machine, qemu: QemuInstallation, handles: Handles) -> list[str]:
    """The whole argv, program first."""
    architecture, accelerator = machine.architecture, machine.accelerator
    argv = [qemu.binary, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-sandbox", _SECCOMP, "-L", qemu.firmware]
    argv += ["-machine", f"{architecture.board},{architecture.board_options}"]
    argv += ["-accel", "kvm" if accelerator is Accelerator.KVM else "tcg"]
    argv += ["-cpu", "host" if accelerator is Accelerator.KVM else "max"]
    argv += ["-smp", str(machine.cpus), "-m", f"{machine.memory_mib}M"]
    if architecture.bios is not None:
        argv += ["-bios", architecture.bios]
    argv += ["-kernel", handles.kernel, "-initrd", handles.initramfs]
    argv += ["-append", kernel_command_line(machine)]
    argv += ["-chardev", f"socket,id=qmp,fd={handles.qmp}", "-mon", "chardev=qmp,mode=control"]
    argv += ["-chardev", f"socket,id=console,fd={handles.console}", "-serial", "chardev:console"]
    argv += ["-device", f"virtio-serial-pci,addr={_AGENT_SLOT},max_ports=2"]
    argv += ["-chardev", f"socket,id=agent,fd={handles.agent}"]
    argv += ["-device", "virtserialport,chardev=agent,name=agent,nr=1"]
    for index, disk in enumerate(machine.disks):
        argv += _disk_arguments(index, disk)
    return argv


def _disk_arguments(index: int, disk: Disk) -> list[str]:
    # Locks are taken by the owner before the start. A full host disk must not stop the guest for ever
    # (QEMU's default): the guest sees the error.
    mode = "on" if disk.read_only else "off"
    file = f"driver=file,node-name=file{index},filename=/dev/fdset/{index + 1},locking=off,read-only={mode}"
    node = f"file{index}"
    arguments = ["-add-fd", f"fd={disk.fd},set={index + 1}"]
    arguments += ["-blockdev", file if disk.read_only else file + ",discard=unmap"]
    if disk.format != "raw":
        arguments += ["-blockdev", f"driver={disk.format},node-name=disk{index},file={node},read-only={mode}"]
        node = f"disk{index}"
    device = f"virtio-blk-pci,drive={node},serial={disk.serial},addr={_FIRST_DISK_SLOT + index}"
    return [*arguments, "-device", f"{device},num-queues=1,rerror=report,werror=report"]
