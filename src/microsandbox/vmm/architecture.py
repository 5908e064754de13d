"""What differs between processor architectures: one value each."""

from __future__ import annotations

import os

from msgspec import Struct

from microsandbox import tools
from microsandbox.errors import PrerequisiteError
from microsandbox.tools import Tool


class Architecture(Struct, frozen=True):
    """A processor architecture that guests can have, always the host's.

    ``machine`` as uname(2) says it, ``oci`` as image manifests say it. ``board`` and ``firmware`` are QEMU
    arguments and files; ``console`` is the kernel's name of the serial port and ``emulated_cpu``
    QEMU's of the processor where there is no other to take.
    """

    machine: str
    oci: str
    qemu: Tool
    board: str
    board_options: str
    firmware: tuple[str, ...]
    bios: str | None
    console: str
    emulated_cpu: str = "max"


X86_64 = Architecture(
    machine="x86_64",
    oci="amd64",
    qemu=tools.QEMU_X86_64,
    board="q35",
    board_options="usb=off,smbus=off,sata=off,vmport=off",
    # qboot starts an uncompressed kernel by its PVH entry point, which pvh.bin knows how to reach.
    firmware=("qboot.rom", "pvh.bin", "kvmvapic.bin"),
    bios="qboot.rom",
    console="ttyS0",
    # Told that it is fast, kernel and libc copy memory by "rep movsb". Emulation makes a loop of each byte.
    emulated_cpu="max,-erms,-fsrm",
)
AARCH64 = Architecture(
    machine="aarch64",
    oci="arm64",
    qemu=tools.QEMU_AARCH64,
    board="virt",
    board_options="gic-version=max",
    firmware=(),
    bios=None,
    console="ttyAMA0",
)


def host_architecture() -> Architecture:
    """The architecture of this machine. Raises PrerequisiteError for one that is not supported."""
    machine = os.uname().machine
    for architecture in (X86_64, AARCH64):
        if architecture.machine == machine:
            return architecture
    raise PrerequisiteError(f"the processor architecture {machine} is not supported (x86_64 and aarch64 are)")
