"""The host's QEMU: where it is, which version, and every file it opens, so that a jail can hold just those.

Asking costs two runs of programs, so the answer is kept until one of the files changes.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from msgspec.structs import asdict

from microsandbox import tools
from microsandbox.errors import PrerequisiteError, VmmError
from microsandbox.store.files import make_private, write_atomically
from microsandbox.store.home import Home
from microsandbox.vmm.architecture import Architecture, host_architecture
from microsandbox.vmm.machine import QemuInstallation

OLDEST_VERSION = (7, 0)
_FIRMWARE_DIRECTORIES = (
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/share/qemu-firmware",
    "/usr/local/share/qemu",
)
_LIBRARY = re.compile(rb"(?:=> )?(/\S+) \(0x")
_VERSION = re.compile(rb"version (\d+)\.(\d+)(?:\.(\d+))?")


def find_installation(home: Home) -> QemuInstallation:
    """The host's QEMU. Raises PrerequisiteError saying what to install, VmmError when it cannot be run."""
    architecture = host_architecture()
    binary = tools.require(architecture.qemu)
    cache = home.cache / "qemu.json"
    known = _load(cache, binary)
    if known is None:
        known = _examine(architecture, binary)
        make_private(cache.parent)
        document = {"fingerprint": _fingerprint(known), "installation": asdict(known)}
        write_atomically(cache, json.dumps(document, indent=1).encode())
    return known


def _load(cache: Path, binary: Path) -> QemuInstallation | None:
    try:
        document = json.loads(cache.read_bytes())
        values = document["installation"]
        known = QemuInstallation(
            values["binary"], values["version"], values["firmware"], tuple(values["files"])
        )
        same = known.binary == str(binary) and document["fingerprint"] == _fingerprint(known)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if same else None


def _fingerprint(installation: QemuInstallation) -> list[list[int]]:
    """What changes when any of the files is replaced."""
    stats = [Path(path).stat() for path in (installation.binary, *installation.files)]
    return [[stat.st_ino, stat.st_size, stat.st_mtime_ns] for stat in stats]


def _examine(architecture: Architecture, binary: Path) -> QemuInstallation:
    try:
        said = tools.run(architecture.qemu, ["--version"], timeout=20)
    except (ChildProcessError, TimeoutError) as error:
        raise VmmError(f"{binary} cannot be run: {error}") from error
    match = _VERSION.search(said)
    if match is None:
        raise VmmError(f"{binary} does not say its version: {said[:80]!r}")
    numbers = tuple(int(number or 0) for number in match.groups())
    version = ".".join(map(str, numbers))
    if numbers < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise PrerequisiteError(f"{binary} is version {version}; at least {oldest} is needed: upgrade QEMU")
    firmware = _firmware_directory(architecture, binary)
    files = [str(Path(firmware) / name) for name in architecture.firmware]
    modules = _modules(architecture, binary)
    libraries = sorted({library for path in (binary, *modules) for library in _libraries(path)})
    return QemuInstallation(str(binary), version, firmware, (*libraries, *map(str, modules), *files))


def _firmware_directory(architecture: Architecture, binary: Path) -> str:
    candidates = [str(binary.resolve().parent.parent / "share/qemu"), *_FIRMWARE_DIRECTORIES]
    for directory in candidates:
        if all((Path(directory) / name).is_file() for name in architecture.firmware):
            return directory
    wanted = " and ".join(architecture.firmware)
    raise PrerequisiteError(
        f"QEMU's firmware ({wanted}) was not found in {', '.join(candidates)}; "
        f"install it with: apt-get install {architecture.qemu.package}"
    )


def _modules(architecture: Architecture, binary: Path) -> list[Path]:
    """QEMU's accelerators may be shared objects that it loads at run time."""
    name = f"accel-tcg-{architecture.machine}.so"
    library_directories = {Path(path).parent for path in _libraries(binary)}
    for directory in sorted(library_directories | {Path("/usr/lib/qemu"), Path("/usr/lib64/qemu")}):
        for relative in ("qemu", "."):
            module = directory / relative / name
            if module.is_file():
                return [module.resolve()]  # QEMU knows its directory without symbolic links
    return []


def _libraries(binary: Path) -> list[str]:
    try:
        listing = tools.run(tools.LDD, [binary], timeout=20)
    except ChildProcessError:
        return []  # statically linked
    return [os.fsdecode(path) for path in _LIBRARY.findall(listing)]
