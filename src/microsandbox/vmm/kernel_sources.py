"""Where a guest kernel can come from without a download: ``MSB_KERNEL``, and the host's own.

All sources end in the same value, KernelParts: what QEMU boots, and the modules in their order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from microsandbox import environment
from microsandbox.errors import KernelError
from microsandbox.vmm.decompress import DecompressError, read_unpacked
from microsandbox.vmm.modules import (
    Module,
    ModuleTree,
    accepts_unsigned,
    select_modules,
    without_signature,
)
from microsandbox.vmm.vmlinux import MAX_KERNEL_BYTES, extract_kernel, kernel_version

MSB_KERNEL = environment.KERNEL
_MAX_CONFIGURATION_BYTES = 4 << 20
_IMAGE_NAMES = ("vmlinuz*", "vmlinux*", "bzImage", "Image", "Image.gz")
_IMAGE_DIRECTORIES = ("", "boot", "arch/x86/boot", "arch/arm64/boot", "lib/modules/*", "usr/lib/modules/*")


class KernelParts(Struct, frozen=True):
    """A kernel taken apart. ``source`` says in words where it is from.

    ``stamp`` changes when the file that MSB_KERNEL names does; it is empty for other sources.
    """

    version: str
    kernel: bytes
    modules: tuple[Module, ...]
    source: str
    stamp: str = ""


def read_kernel(image: Path, machine: str) -> tuple[str, bytes]:
    """Version and unpacked content of a kernel image. Raises KernelError."""
    try:
        kernel = extract_kernel(read_unpacked(image, MAX_KERNEL_BYTES), machine)
        return kernel_version(kernel), kernel
    except PermissionError as error:
        raise KernelError(
            f"{image} may only be read by root; allow it with: sudo chmod a+r {image}"
        ) from error
    except (OSError, DecompressError) as error:
        raise KernelError(f"{image} cannot be read: {error}") from error
    except KernelError as error:
        raise KernelError(f"{image}: {error}") from error


def guest_modules(image: Path, tree: ModuleTree, directory: Path) -> tuple[Module, ...]:
    """What a guest loads of the kernel's modules, without signatures where it does not insist on them.

    Checking them takes about 100 of the 400 ms in which a guest loads its 15 modules under emulation, and
    proves nothing: whoever could change the modules could change the kernel. The guest's kernel calls
    itself tainted ("E") for it. Raises KernelError.
    """
    modules = select_modules(tree)
    for place in (image.with_name(f"config-{tree.version}"), directory / "config", directory / ".config"):
        try:
            configuration = read_unpacked(place, _MAX_CONFIGURATION_BYTES)
        except (OSError, DecompressError):
            continue
        if accepts_unsigned(configuration):
            return tuple(without_signature(module) for module in modules)
    return tuple(modules)


def configured_kernel() -> Path | None:
    """The kernel file that ``MSB_KERNEL`` names or that is in the directory it names; None when unset.

    It may be a kernel image or a Debian package. Raises KernelError.
    """
    configured = environment.value(MSB_KERNEL)
    if not configured:
        return None
    path = Path(configured).expanduser().absolute()
    if path.is_file():
        return path
    if not path.is_dir():
        raise KernelError(
            f"{MSB_KERNEL} is {configured}, which {'is no file' if path.exists() else 'does not exist'}; it "
            "must be a kernel image (vmlinuz, vmlinux), a Debian kernel package or a directory with either"
        )
    found = [*_images_in(path), *path.glob("linux-image-*.deb")]
    if not found:
        raise KernelError(
            f"{MSB_KERNEL} is {configured}, a directory without a kernel: neither {', '.join(_IMAGE_NAMES)} "
            "in it, its boot or its lib/modules/VERSION directory, nor linux-image-*.deb"
        )
    return max(found, key=lambda file: _version_order(file.name))


def file_stamp(path: Path) -> str:
    """What identifies this state of a file. Raises KernelError."""
    try:
        stat = path.stat()
    except OSError as error:
        raise KernelError(f"{MSB_KERNEL}: {path} cannot be read: {error.strerror}") from error
    return f"{path}:{stat.st_size}:{stat.st_mtime_ns}"


def from_image(image: Path, machine: str) -> KernelParts:
    """The kernel that MSB_KERNEL points at. Raises KernelError."""
    stamp = file_stamp(image)
    version, kernel = read_kernel(image, machine)
    places = [
        *(
            image.parent / up / lib / version
            for up in ("", "..")
            for lib in ("lib/modules", "usr/lib/modules")
        ),
        image.parent,
        Path("/lib/modules") / version,
    ]
    if image.parent.match("arch/*/boot"):
        places.append(image.parents[3])  # the top of a build directory
    directory = _module_directory(places, version)
    modules = guest_modules(image, ModuleTree(version, directory), directory)
    return KernelParts(version, kernel, modules, f"{MSB_KERNEL} ({image})", stamp)


def from_host(machine: str, root: Path = Path("/")) -> KernelParts:
    """A kernel that is installed on the host, the running one if possible.

    Raises KernelError with the reason for each one that will not do.
    """
    running = os.uname().release
    images = {
        image.resolve()
        for pattern in ("boot/vmlinuz-*", "lib/modules/*/vmlinuz")
        for image in root.glob(pattern)
        if not image.name.endswith((".old", ".bak")) and "rescue" not in image.name
    }
    if not images:
        raise KernelError(f"no vmlinuz in {root / 'boot'}: no kernel is installed on this host")
    complaints = []
    for image in sorted(images, key=lambda path: _host_order(path, running), reverse=True)[:4]:
        try:
            version, kernel = read_kernel(image, machine)
            directory = _module_directory([root / "lib/modules" / version], version)
            modules = guest_modules(image, ModuleTree(version, directory), directory)
        except KernelError as error:
            complaints.append(str(error))
        else:
            return KernelParts(version, kernel, modules, str(image))
    raise KernelError("; ".join(complaints))


def _images_in(directory: Path) -> Iterable[Path]:
    for part in _IMAGE_DIRECTORIES:
        for name in _IMAGE_NAMES:
            for path in directory.glob(f"{part}/{name}" if part else name):
                if path.is_file():
                    yield path


def _module_directory(places: list[Path], version: str) -> Path:
    for place in places:
        if any((place / index).is_file() for index in ("modules.dep", "modules.builtin")):
            return place
    looked = ", ".join(dict.fromkeys(os.path.normpath(place) for place in places))
    raise KernelError(
        f"the modules of kernel {version} were not found in {looked}; put its lib/modules/{version} there, "
        "or its modules.builtin if everything is built into it"
    )


def _version_order(text: str) -> list[tuple[int, str]]:
    """A key that sorts 6.10 after 6.9."""
    return [(int(digits or 0), word) for digits, word in re.findall(r"(\d+)|(\D+)", text)]


def _host_order(image: Path, running: str) -> tuple[bool, list[tuple[int, str]]]:
    name = str(image)
    return (name.endswith(f"vmlinuz-{running}") or f"/{running}/" in name, _version_order(name))
