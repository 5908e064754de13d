"""Kernel modules: which ones a guest needs, where they are, and in which order they must be loaded.

``modules.dep`` says what a module depends on, but only depmod writes it, when a package is installed; in
an unpacked package it is missing. The same is written in each module (``.modinfo``), so that is read then.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from microsandbox.errors import KernelError
from microsandbox.vmm import elf
from microsandbox.vmm.decompress import DecompressError, read_unpacked

#: What every guest needs, in the order in which it is loaded: first the agent's port, then its disks. A
#: kernel may have any of them built in.
REQUIRED = ("virtio_pci", "virtio_console", "virtio_blk", "squashfs", "ext4", "overlay")
#: Loaded where they exist, before the module they are listed for, which looks for them by an alias.
PREFERRED_BEFORE = {"ext4": ("crc32c_generic", "crc32c_intel")}

MAX_MODULE_BYTES = 32 << 20
_MAX_INDEX_BYTES = 16 << 20
_SIGNATURE_MARK, _SIGNATURE_INFO = b"~Module signature appended~\n", struct.Struct(">8xI")
_UNSIGNED_ACCEPTED = re.compile(rb"^# CONFIG_MODULE_SIG(_FORCE)? is not set$", re.MULTILINE)
_FILE = re.compile(r"(?P<name>[A-Za-z0-9_-]{1,64})\.ko(?:\.(?:gz|xz|zst))?")


class MissingModulesError(KernelError):
    """Modules that are neither files nor built into the kernel. ``names`` are theirs."""

    def __init__(self, names: Iterable[str], kernel: str) -> None:
        self.names = tuple(sorted(names))
        super().__init__(
            f"kernel {kernel} lacks modules that a guest needs: {', '.join(self.names)}; they are neither "
            "in its module directory nor listed in modules.builtin"
        )


class Module(Struct, frozen=True):
    """A module as the kernel loads it: ``content`` is its unpacked ELF file."""

    name: str
    content: bytes


def module_name(file_name: str) -> str | None:
    """The name the kernel gives the module of that file (``crc32c-intel.ko.xz``: crc32c_intel), or None."""
    match = _FILE.fullmatch(file_name)
    return match["name"].replace("-", "_") if match else None


class ModuleTree:
    """The directory ``lib/modules/VERSION`` of a kernel, or the part of it that was unpacked."""

    def __init__(self, version: str, directory: Path) -> None:
        """Reads the indexes. Raises KernelError when the directory cannot be read."""
        self.version = version
        self._directory = directory
        self._paths: dict[str, Path] = {}
        self._dependencies: dict[str, tuple[str, ...]] = {}
        try:
            if not directory.is_dir():
                raise KernelError(f"kernel {version} has no module directory at {directory}")
            self.builtin = frozenset(_names(self._index("modules.builtin").split()))
            self._read_dependencies()
            if not self._paths:
                self._find_files()
        except (OSError, DecompressError) as error:
            raise KernelError(f"the modules of kernel {version} cannot be read: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def load(self, name: str) -> Module:
        """Read one module that exists. Raises KernelError when it is damaged or another kernel's."""
        path = self._paths[name]
        try:
            content = read_unpacked(path, MAX_MODULE_BYTES)
            magic = dict(_information(content)).get("vermagic", "")
        except (OSError, DecompressError, elf.ElfError) as error:
            raise KernelError(f"the kernel module {path} cannot be read: {error}") from error
        if magic.partition(" ")[0] != self.version:
            raise KernelError(f"the kernel module {path} is for kernel {magic!r}, not for {self.version}")
        return Module(name, content)

    def dependencies(self, module: Module) -> tuple[str, ...]:
        """What must be loaded before it; built-in ones may be among them."""
        known = self._dependencies.get(module.name)
        if known is None:
            listed = dict(_information(module.content)).get("depends", "")
            known = tuple(name.replace("-", "_") for name in listed.split(",") if name)
        return known

    def _index(self, name: str) -> str:
        try:
            return read_unpacked(self._directory / name, _MAX_INDEX_BYTES).decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return ""

    def _read_dependencies(self) -> None:
        for line in self._index("modules.dep").splitlines():
            file, _, needed = line.partition(":")
            name = module_name(Path(file).name)
            if name is not None:
                self._paths[name] = self._directory / file
                self._dependencies[name] = tuple(_names(needed.split()))

    def _find_files(self) -> None:
        for path in sorted(self._directory.rglob("*.ko*")):
            name = module_name(path.name)
            if name is not None:
                self._paths.setdefault(name, path)


def select_modules(
    tree: ModuleTree, required: Iterable[str] = REQUIRED, preferred: dict[str, tuple[str, ...]] | None = None
) -> list[Module]:
    """The modules of a guest that are not built in, each after those it depends on.

    Raises MissingModulesError naming all that are missing, KernelError for one that is damaged.
    """
    chosen: dict[str, Module] = {}
    visited: set[str] = set()
    missing: set[str] = set()
    before = PREFERRED_BEFORE if preferred is None else preferred

    def visit(name: str) -> None:
        if name in visited or name in tree.builtin:
            return
        visited.add(name)
        if name not in tree:
            missing.add(name)
            return
        for other in before.get(name, ()):
            if other in tree:
                visit(other)
        module = tree.load(name)
        for other in tree.dependencies(module):
            visit(other)
        chosen[name] = module

    for name in required:
        visit(name)
    if missing:
        raise MissingModulesError(missing, tree.version)
    return list(chosen.values())


def without_signature(module: Module) -> Module:
    """The module without the signature at its end, if it has one (include/linux/module_signature.h)."""
    content = module.content.removesuffix(_SIGNATURE_MARK)
    if len(content) == len(module.content) or len(content) < _SIGNATURE_INFO.size:
        return module
    (size,) = _SIGNATURE_INFO.unpack(content[-_SIGNATURE_INFO.size :])
    end = len(content) - _SIGNATURE_INFO.size - size
    return Module(module.name, content[:end]) if end > 0 else module


def accepts_unsigned(configuration: bytes) -> bool:
    """Whether a kernel built with this ``.config`` is known to load modules that are not signed."""
    return _UNSIGNED_ACCEPTED.search(configuration) is not None


def _names(files: Iterable[str]) -> Iterator[str]:
    for file in files:
        name = module_name(Path(file).name)
        if name is not None:
            yield name


def _information(content: bytes) -> Iterator[tuple[str, str]]:
    """The ``key=value`` pairs of a module's .modinfo section."""
    section = elf.section(content, ".modinfo")
    if section is None:
        raise elf.ElfError("it has no .modinfo section: it is not a kernel module")
    for pair in section.split(b"\0"):
        key, separator, value = pair.partition(b"=")
        if separator:
            yield key.decode("utf-8", "replace"), value.decode("utf-8", "replace")
