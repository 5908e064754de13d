"""The guest's first root file system: the agent as ``/init``, and the kernel modules it loads.

It is not compressed: under emulation the guest's kernel unpacks slowly. Milliseconds of processor time that
a start took to the loaded modules, median of 9, 4 MB: plain 1955, zstd 2012, lz4 2086, gzip 2131.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from microsandbox.vmm.cpio import CpioWriter, Entry, read_entries
from microsandbox.vmm.modules import Module

_MODULES = "modules"
#: Mount points, so that the agent need not make them.
_DIRECTORIES = ("dev", "proc", "sys", "run", "newroot", "lower", "upper", _MODULES)


def write_initramfs(file: IO[bytes], agent: bytes, modules: Iterable[Module]) -> None:
    """Write the archive; ``modules`` in the order in which they must be loaded."""
    archive = CpioWriter(file)
    for name in _DIRECTORIES:
        archive.add(Entry.directory(name))
    # The kernel opens it for PID 1 before anything is mounted on /dev.
    archive.add(Entry.character_device("dev/console", 5, 1))
    for number, module in enumerate(modules):
        archive.add(Entry.file(f"{_MODULES}/{number:03}-{module.name}.ko", module.content))
    archive.add(Entry.file("init", agent, 0o755))
    archive.finish()


def read_modules(archive: bytes) -> list[Module]:
    """The modules of an archive written by write_initramfs(), in their order. Raises CpioError."""
    modules = []
    for entry in read_entries(archive):
        directory, _, name = entry.name.partition("/")
        if directory == _MODULES and name:
            modules.append(Module(name[4:].removesuffix(".ko"), entry.content))
    return modules
