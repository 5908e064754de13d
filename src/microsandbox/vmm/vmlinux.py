"""The kernel as QEMU starts it fastest, out of the file that distributions install.

x86: a bzImage is a small program that unpacks the real kernel, an ELF file. Unpacking it here, once, takes
that off every start; QEMU enters the ELF file by its PVH entry point. arm64: QEMU starts the plain
``Image``, which comes as it is, gzipped, or inside an EFI program ("zboot"). Formats: the kernel's
Documentation/x86/boot.rst, Documentation/arm64/booting.rst, drivers/firmware/efi/libstub/zboot-header.S.
"""

from __future__ import annotations

import re
import struct

from microsandbox.errors import KernelError
from microsandbox.vmm import elf
from microsandbox.vmm.decompress import DecompressError, decompress, is_compressed

#: Bytes of an unpacked kernel; Debian's has 66 MB, one with everything built in about 120.
MAX_KERNEL_BYTES = 256 << 20
_BZIMAGE_MAGIC, _OLDEST_PROTOCOL = b"HdrS", 0x208
_ARM64_MAGIC = b"ARM\x64"
_PVH_ENTRY_NOTE = (b"Xen", 18)
_VERSION = re.compile(rb"Linux version ([0-9][!-~]{0,127}) \(")


def extract_kernel(image: bytes, machine: str) -> bytes:
    """What QEMU boots on ``machine`` (x86_64: an ELF file, aarch64: an Image), out of any form of it.

    Raises KernelError saying what is wrong with the image.
    """
    try:
        kernel = _unpacked(image)
        _check(kernel, machine)
        if machine == "x86_64":
            # 66 MB of Debian's 6.1 become 41; the time of a start stays the same within the noise.
            kernel = elf.loaded_part(kernel)
    except (DecompressError, elf.ElfError) as error:
        raise KernelError(f"the kernel image cannot be unpacked: {error}") from error
    return kernel


def kernel_version(kernel: bytes) -> str:
    """The release as ``uname -r`` says it, out of an unpacked kernel. Raises KernelError."""
    match = _VERSION.search(kernel)
    if match is None:
        raise KernelError("the kernel image does not say its version: is it a Linux kernel?")
    return match[1].decode()


def _unpacked(image: bytes) -> bytes:
    if image[0x202:0x206] == _BZIMAGE_MAGIC:
        return decompress(_bzimage_payload(image), MAX_KERNEL_BYTES)
    if image.startswith(b"MZ") and image[4:8] == b"zimg" and len(image) >= 16:
        offset, size = struct.unpack_from("<II", image, 8)
        image = image[offset : offset + size]
    return decompress(image, MAX_KERNEL_BYTES) if is_compressed(image) else image


def _bzimage_payload(image: bytes) -> bytes:
    if len(image) < 0x250:
        raise KernelError(f"the kernel image is cut short: it has only {len(image)} bytes")
    (protocol,) = struct.unpack_from("<H", image, 0x206)
    if protocol < _OLDEST_PROTOCOL:
        raise KernelError(f"the kernel image is too old (boot protocol {protocol:#x})")
    setup_sectors = image[0x1F1] or 4
    offset, size = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + size]
    if len(payload) != size:
        raise KernelError(f"the kernel image is cut short: {len(payload)} of {size} bytes of its payload")
    return payload


def _check(kernel: bytes, machine: str) -> None:
    if machine == "aarch64":
        if kernel[0x38:0x3C] != _ARM64_MAGIC:
            raise KernelError("the kernel image is not one for aarch64")
        return
    found = elf.machine(kernel)
    if found != machine:
        raise KernelError(f"the kernel image is for {found}, not for {machine}")
    if _PVH_ENTRY_NOTE not in elf.notes(kernel):
        raise KernelError("the kernel has no PVH entry point: it must be built with CONFIG_PVH=y")
