"""What a template is of: the machine that was saved, down to its command line.

A guest can only go on in a machine that equals the one it was saved from. Whatever takes part in that is in
the key: the whole QEMU command line, QEMU itself, the guest's kernel and agent, under KVM the processor.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

from msgspec import Struct
from msgspec.structs import astuple

from microsandbox.vmm.architecture import host_architecture
from microsandbox.vmm.host import Host
from microsandbox.vmm.machine import (
    Accelerator,
    BootKernel,
    Disk,
    DiskSlot,
    Handles,
    Machine,
    RamFile,
    qemu_arguments,
)

_FORMAT = 2
#: The root disks of every sandbox, in the order of their PCI slots.
ROOT_SLOTS = (DiskSlot("rootfs", read_only=True), DiskSlot("upper", read_only=False))
#: What the guest finds in them, as the agent is told.
ROOT = {"lower": "/dev/vda", "lower_fstype": "squashfs", "upper": "/dev/vdb", "upper_fstype": "ext4"}
_NO_FILE = Path("/")


class ImageRoot(Struct, frozen=True):
    """An image as a guest's root: its manifest's digest, the sizes of the writable layer above it and of the
    tmpfs on its /tmp, which are mounted too. A sandbox may change its mind about the latter.
    """

    digest: str
    upper_size_mib: int
    tmp_size_mib: int
    #: Size and time of the image's file: a guest that knows parts of one must not go on with another.
    file: tuple[int, int]

    @classmethod
    def of(cls, digest: str, rootfs: Path, upper_size_mib: int, tmp_size_mib: int) -> ImageRoot:
        """Raises OSError when there is no such file."""
        file = rootfs.stat()
        return cls(digest, upper_size_mib, tmp_size_mib, (file.st_size, file.st_mtime_ns))


class Shape(Struct, frozen=True, dict=True):
    """A kind of machine on this host; with ``root``, one that has an image mounted already."""

    host: Host
    cpus: int
    memory_mib: int
    root: ImageRoot | None = None

    @property
    def bare(self) -> Shape:
        """The same machine without an image."""
        return Shape(self.host, self.cpus, self.memory_mib)

    def machine(
        self,
        disks: tuple[Disk | DiskSlot, ...] = ROOT_SLOTS,
        ram: RamFile | None = None,
        state: int | None = None,
    ) -> Machine:
        """A machine of this shape: one that boots, or with ``state`` one that goes on."""
        kernel = BootKernel(self.host.kernel.vmlinux, self.host.kernel.initramfs) if state is None else None
        return Machine(
            host_architecture(),
            self.host.accelerator.accelerator,
            self.cpus,
            self.memory_mib,
            kernel,
            disks,
            ram,
            state,
        )

    @functools.cached_property
    def key(self) -> str:
        """Equal for shapes whose templates can stand in for each other: 32 hexadecimal digits."""
        host = self.host
        argv = qemu_arguments(self.machine(ram=RamFile(_NO_FILE, shared=True)), host.qemu, Handles(0, 0, 0))
        binary = Path(host.qemu.binary).stat()
        parts = [
            _FORMAT,
            argv,
            [host.qemu.version, binary.st_ino, binary.st_size, binary.st_mtime_ns],
            host.kernel.fingerprint,
            _processor() if host.accelerator.accelerator is Accelerator.KVM else None,
            list(astuple(self.root)) if self.root is not None else None,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """Model and abilities of the first processor: the guest sees them under KVM."""
    wanted = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    return "\n".join(line for line in first.splitlines() if line.startswith(wanted))
