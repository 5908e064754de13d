"""A virtual machine as a value, and as the QEMU command line that makes it (pure).

Everything a machine may touch arrives as an open descriptor: disks, the agent port, the console, QMP.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from microsandbox.vmm.architecture import Architecture

#: QEMU's own system call filter; the jail holds what it lets through.
_SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
#: What the monitor calls the agent's port.
AGENT_PORT = "agent-port"
#: PCI slots, the same in every machine: 1 is the agent's, disks follow.
_AGENT_SLOT, _FIRST_DISK_SLOT = 1, 2
#: Bytes that a disk seems to have before it is there.
SLOT_SIZE = 1 << 44


class QemuInstallation(Struct, frozen=True):
    """A usable QEMU. ``files`` are all it needs to read besides a machine's own, at their own paths."""

    binary: str
    version: str
    firmware: str
    files: tuple[str, ...]


class Accelerator(StrEnum):
    """What executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


class Disk(Struct, frozen=True):
    """A block device. ``fd`` is open for writing unless ``read_only``; ``format`` is QEMU's name of it."""

    serial: str
    fd: int
    format: str
    read_only: bool


class DiskSlot(Struct, frozen=True):
    """The place of a block device that a template's guest knows already, and nothing is behind yet."""

    serial: str
    read_only: bool


class BootKernel(Struct, frozen=True):
    """A machine that starts as machines do."""

    kernel: Path
    initramfs: Path


class RamFile(Struct, frozen=True):
    """The guest's RAM in a file: ``shared`` while a template is made of it, else private, copied on write."""

    path: Path
    shared: bool


class Machine(Struct, frozen=True):
    """What a virtual machine is.

    It boots ``kernel``, or it goes on from ``state``, an open file with the state of a machine's devices as
    it was saved; then ``ram`` is what that machine left, and everything else must be as it was there.
    """

    architecture: Architecture
    accelerator: Accelerator
    cpus: int
    memory_mib: int
    kernel: BootKernel | None = None
    disks: tuple[Disk | DiskSlot, ...] = ()
    ram: RamFile | None = None
    state: int | None = None


class Handles(Struct, frozen=True):
    """By which paths and descriptors QEMU reaches what it is handed at its start."""

    qmp: int
    console: int
    agent: int
    kernel: str = ""
    initramfs: str = ""
    ram: str = ""


def kernel_command_line(machine: Machine) -> str:
    """Quiet, and ended by a panic: the machine then resets, which ends QEMU.

    Without no_timer_check a kernel on a busy host may find that its timer "doesn't work", and panic. The
    self-tests of the kernel's cryptography cost a seventh of a boot under emulation, and so does patching
    its locks for a single CPU, all of which has to be translated again.

    Where systemd is the init it would offer a login on the console, which nobody can use, and wait 90 s for
    the console to be announced where the image has no udev.
    """
    words = ["quiet", "tsc=reliable", "no_timer_check", "cryptomgr.notests", "panic=-1", "rdinit=/init"]
    words.append("systemd.getty_auto=0")
    if machine.accelerator is Accelerator.TCG:
        words.append("noreplace-smp")
    return " ".join((f"console={machine.architecture.console}", *words))


def qemu_arguments(machine: Machine, qemu: QemuInstallation, handles: Handles) -> list[str]:
    """The whole argv, program first."""
    architecture, accelerator = machine.architecture, machine.accelerator
    argv = [qemu.binary, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-sandbox", _SECCOMP, "-L", qemu.firmware]
    board = f"{architecture.board},{architecture.board_options},suppress-vmdesc=on"
    if machine.ram is not None:
        board += ",memory-backend=ram"
        share = "on" if machine.ram.shared else "off"
        backend = f"memory-backend-file,id=ram,size={machine.memory_mib}M,mem-path={handles.ram}"
        argv += ["-object", f"{backend},share={share},prealloc=off"]
    argv += ["-machine", board]
    argv += ["-accel", "kvm" if accelerator is Accelerator.KVM else "tcg"]
    argv += ["-cpu", "host" if accelerator is Accelerator.KVM else architecture.emulated_cpu]
    argv += ["-smp", str(machine.cpus), "-m", f"{machine.memory_mib}M"]
    if architecture.bios is not None:
        argv += ["-bios", architecture.bios]
    if machine.kernel is not None:
        argv += ["-kernel", handles.kernel, "-initrd", handles.initramfs]
        argv += ["-append", kernel_command_line(machine)]
    if machine.state is not None:
        argv += ["-incoming", f"fd:{machine.state}", "-global", "migration.send-configuration=off"]
    argv += ["-chardev", f"socket,id=qmp,fd={handles.qmp}", "-mon", "chardev=qmp,mode=control"]
    argv += ["-chardev", f"socket,id=console,fd={handles.console}", "-serial", "chardev:console"]
    argv += ["-device", f"virtio-serial-pci,addr={_AGENT_SLOT},max_ports=2"]
    argv += ["-chardev", f"socket,id=agent,fd={handles.agent}"]
    argv += ["-device", f"virtserialport,id={AGENT_PORT},chardev=agent,name=agent,nr=1"]
    for index, disk in enumerate(machine.disks):
        argv += _disk_arguments(index, disk)
    return argv


def disk_node(index: int) -> str:
    """QEMU's name for what is behind the disk in that slot."""
    return f"file{index}"


def _disk_arguments(index: int, disk: Disk | DiskSlot) -> list[str]:
    if isinstance(disk, DiskSlot):
        arguments, node = _slot_node(index, disk)
    else:
        arguments, node = _disk_node(index, disk)
    device = f"virtio-blk-pci,drive={node},serial={disk.serial},addr={_FIRST_DISK_SLOT + index}"
    return [*arguments, "-device", f"{device},num-queues=1,rerror=report,werror=report"]


def _slot_node(index: int, slot: DiskSlot) -> tuple[list[str], str]:
    """As large as any disk that may come: a guest can be told of a new size, but need not wait for it."""
    node, mode = disk_node(index), "on" if slot.read_only else "off"
    null = f"driver=null-co,node-name={node},size={SLOT_SIZE},read-zeroes=on,read-only={mode}"
    return ["-blockdev", null], node


def _disk_node(index: int, disk: Disk) -> tuple[list[str], str]:
    # Locks are taken by the owner before the start. A full host disk must not stop the guest for ever
    # (QEMU's default): the guest sees the error.
    mode = "on" if disk.read_only else "off"
    node = disk_node(index)
    file = f"driver=file,node-name={node},filename=/dev/fdset/{index + 1},locking=off,read-only={mode}"
    arguments = ["-add-fd", f"fd={disk.fd},set={index + 1}"]
    arguments += ["-blockdev", file if disk.read_only else file + ",discard=unmap"]
    if disk.format != "raw":
        arguments += ["-blockdev", f"driver={disk.format},node-name=disk{index},file={node},read-only={mode}"]
        node = f"disk{index}"
    return arguments, node
