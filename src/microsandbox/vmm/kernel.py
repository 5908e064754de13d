"""The guest kernel: prepared once, then found in microseconds.

``kernels/VERSION/{vmlinux,initramfs,manifest}`` is complete or absent, and never changed afterwards: a
machine that is being started keeps what it was told. Another build of the same version, or the same kernel
with another agent, gets a directory of its own beside it; the manifest says what a directory is, not its
name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from microsandbox import environment
from microsandbox.errors import KernelError, MicrosandboxError
from microsandbox.store.files import (
    PARTIAL_PREFIX,
    FileLock,
    make_private,
    making_directory,
    partial_path,
    remove_leftovers,
    remove_tree,
    write_atomically,
)
from microsandbox.store.home import Home
from microsandbox.vmm import elf
from microsandbox.vmm.architecture import Architecture, host_architecture
from microsandbox.vmm.modules import PREFERRED_BEFORE, REQUIRED

if TYPE_CHECKING:
    from microsandbox.vmm.kernel_sources import KernelParts

# What is needed only to prepare a kernel is imported where that happens: a start must stay quick.

Progress = Callable[[str], None]

#: Seconds after which a kernel that nobody asked for may be collected.
UNUSED_FOR = 14 * 86400.0
_TOUCH_INTERVAL = 86400.0
_FORMAT = 2
_FILES = ("vmlinux", "initramfs")
_MANIFEST = "manifest"
_LOCK = ".lock"
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_AGENT_BYTES = 32 << 20
#: Bytes at the beginning of an ELF file that hold its headers.
_ELF_HEADERS = 4096


class GuestKernel(Struct, frozen=True):
    """A prepared kernel. ``fingerprint`` identifies the content of both files."""

    version: str
    vmlinux: Path
    initramfs: Path
    fingerprint: str
    source: str

    def memory_needed(self) -> int:
        """Bytes that kernel and initramfs take when they are loaded; a guest with less cannot start.

        0 for a kernel that is no ELF file. Raises OSError.
        """
        with self.vmlinux.open("rb") as file:
            try:
                kernel = elf.memory_end(file.read(_ELF_HEADERS))
            except elf.ElfError:
                return 0
        return kernel + self.initramfs.stat().st_size


def installed_kernel(home: Home, *, agent: Path | None = None) -> GuestKernel | None:
    """The prepared kernel to use now: of this agent, and of ``MSB_KERNEL`` if that is set.

    Costs reading the agent and a small file. ``agent`` is the agent's program, by default the packaged
    one. Raises KernelError when ``MSB_KERNEL`` is wrong.
    """
    wanted = _Wanted.now(agent)
    kernel, manifest = _newest(home, wanted)
    if kernel is not None and time.time() - manifest.stat().st_mtime > _TOUCH_INTERVAL:
        with contextlib.suppress(OSError):  # it is only the memory of when it was last of use
            os.utime(manifest)
    return kernel


def prepare_kernel(
    home: Home, *, agent: Path | None = None, refresh: bool = False, progress: Progress | None = None
) -> GuestKernel:
    """The prepared kernel, prepared now if there is none; ``refresh`` looks for a newer one.

    Sources in order: ``MSB_KERNEL`` alone if it is set; a kernel prepared for another agent; the
    distribution's package; the host's own kernel. Safe while other processes do the same. ``progress`` is
    called with what is being done. Raises KernelError saying what was tried and what can be done.
    """
    report = progress or _silent
    try:
        make_private(home.root)
        make_private(home.kernels)
        with FileLock(home.kernels / _LOCK):
            wanted = _Wanted.now(agent)
            kernel, _ = _newest(home, wanted)
            if kernel is not None and not refresh:
                return kernel
            remove_leftovers(home.kernels, older_than=float("inf"))
            kernel = None if refresh else _with_new_agent(home, wanted)
            if kernel is None:
                kernel = _from_sources(home, wanted, report)
            _collect(home, kernel, UNUSED_FOR)
            return kernel
    except OSError as error:
        raise KernelError(f"the guest kernel cannot be kept in {home.kernels}: {error}") from error


def verify_kernel(kernel: GuestKernel) -> list[str]:
    """Compare the files with their checksums: what is wrong, in words; empty when all is well."""
    manifest = _read_manifest(kernel.vmlinux.with_name(_MANIFEST))
    if manifest is None:
        return [f"{kernel.vmlinux.with_name(_MANIFEST)} cannot be read"]
    problems = []
    for name in _FILES:
        path = kernel.vmlinux.with_name(name)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror}")
            continue
        if found != manifest["files"][name]["sha256"]:
            problems.append(f"{path} is not what was written: its checksum differs")
    return problems


def collect_kernels(home: Home, *, keep: GuestKernel, unused_for: float = UNUSED_FOR) -> list[str]:
    """Delete kernels that nobody has asked for in ``unused_for`` seconds; the names of their directories."""
    with FileLock(home.kernels / _LOCK):
        return _collect(home, keep, unused_for)


# what is asked for, and what is there


class _Wanted(Struct, frozen=True):
    """What a prepared kernel must have been made of to be used now."""

    architecture: Architecture
    agent: bytes
    agent_digest: str
    configured: Path | None
    stamp: str

    @classmethod
    def now(cls, agent: Path | None) -> _Wanted:
        architecture = host_architecture()
        if agent is None:
            from microsandbox._guest import agent_binary

            agent = agent_binary(architecture.machine)
        try:
            content = agent.read_bytes()
        except OSError as error:
            raise KernelError(f"the guest agent cannot be read: {error}") from error
        if not 0 < len(content) <= _MAX_AGENT_BYTES:
            raise KernelError(f"the guest agent {agent} has {len(content)} bytes: it is no program")
        configured, stamp = None, ""
        if environment.value(environment.KERNEL):
            from microsandbox.vmm.kernel_sources import configured_kernel, file_stamp

            configured = configured_kernel()
            stamp = file_stamp(configured) if configured is not None else ""
        return cls(architecture, content, hashlib.sha256(content).hexdigest(), configured, stamp)

    def accepts(self, manifest: dict[str, Any]) -> bool:
        """Whether it is the kernel that is asked for, perhaps with another agent."""
        wanted = (self.architecture.machine, self.stamp, _recipe())
        return (manifest["machine"], manifest["stamp"], manifest["recipe"]) == wanted


def _recipe() -> list[Any]:
    """Changes when kernels prepared by another release lack something."""
    return [_FORMAT, list(REQUIRED), {name: list(others) for name, others in PREFERRED_BEFORE.items()}]


def _newest(home: Home, wanted: _Wanted) -> tuple[GuestKernel | None, Path]:
    """The newest kernel that can be used as it is, and its manifest's path."""
    best: tuple[float, Path, dict[str, Any]] = (-1.0, Path(), {})
    for path, manifest in _manifests(home, wanted):
        if manifest["agent"] == wanted.agent_digest:
            best = max(best, (manifest["created"], path, manifest), key=lambda entry: entry[0])
    created, path, manifest = best
    return (_kernel(path.parent, manifest) if created >= 0 else None), path


def _manifests(home: Home, wanted: _Wanted) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in home.kernels.glob(f"*/{_MANIFEST}"):
        manifest = _read_manifest(path)
        if manifest is not None and not _is_partial(path.parent) and wanted.accepts(manifest):
            yield path, manifest


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """A manifest whose files are there in their sizes, else None."""
    try:
        with path.open("rb") as file:
            manifest: dict[str, Any] = json.loads(file.read(_MAX_MANIFEST_BYTES))
        for name in _FILES:
            if path.with_name(name).stat().st_size != manifest["files"][name]["size"]:
                return None
            str(manifest["files"][name]["sha256"])
        for key in ("version", "machine", "source", "stamp", "recipe", "agent", "fingerprint"):
            manifest[key]
        manifest["created"] = float(manifest["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest


def _kernel(directory: Path, manifest: dict[str, Any]) -> GuestKernel:
    directory = directory.absolute()  # for processes that work elsewhere
    return GuestKernel(
        version=str(manifest["version"]),
        vmlinux=directory / "vmlinux",
        initramfs=directory / "initramfs",
        fingerprint=str(manifest["fingerprint"]),
        source=str(manifest["source"]),
    )


def _is_partial(directory: Path) -> bool:
    return directory.name.startswith(PARTIAL_PREFIX)


def _remove(directory: Path) -> None:
    """Take it away in one step, then delete it."""
    doomed = partial_path(directory)
    directory.rename(doomed)
    remove_tree(doomed)


# preparation; the lock is held


def _with_new_agent(home: Home, wanted: _Wanted) -> GuestKernel | None:
    """A kernel prepared for another agent, with its modules packed again: no source is needed."""
    from microsandbox.vmm.cpio import CpioError
    from microsandbox.vmm.initramfs import read_modules
    from microsandbox.vmm.kernel_sources import KernelParts

    found = sorted(_manifests(home, wanted), key=lambda entry: -entry[1]["created"])
    for path, manifest in found:
        old = _kernel(path.parent, manifest)
        if verify_kernel(old):
            continue
        try:
            modules = tuple(read_modules(old.initramfs.read_bytes()))
        except CpioError:
            continue
        parts = KernelParts(old.version, old.vmlinux.read_bytes(), modules, old.source, wanted.stamp)
        return _store(home, parts, wanted, old.vmlinux)
    return None


def _from_sources(home: Home, wanted: _Wanted, report: Progress) -> GuestKernel:
    from microsandbox.vmm.kernel_package import from_configured_package, from_distribution
    from microsandbox.vmm.kernel_sources import from_host, from_image

    machine = wanted.architecture.machine
    with tempfile.TemporaryDirectory(dir=home.kernels, prefix=PARTIAL_PREFIX) as temporary:
        directory = Path(temporary)
        if wanted.configured is not None:
            report(f"reading {wanted.configured}")
            if wanted.configured.suffix == ".deb":
                parts = from_configured_package(wanted.configured, machine, directory, report)
            else:
                parts = from_image(wanted.configured, machine)
            return _store(home, parts, wanted)
        sources: dict[str, Callable[[], KernelParts]] = {
            "the distribution's package": lambda: from_distribution(wanted.architecture, directory, report),
            "the host's own kernel": lambda: from_host(machine),
        }
        tried = []
        for name, source in sources.items():
            try:
                parts = source()
            except MicrosandboxError as error:
                tried.append(f"  {name}: {error}")
            else:
                return _store(home, parts, wanted)
    raise KernelError(
        "no guest kernel could be prepared. Tried:\n"
        + "\n".join(tried)
        + "\nWhat helps: a connection to the distribution's mirror; or a kernel installed here (apt-get "
        f"install linux-image-{wanted.architecture.oci}); or MSB_KERNEL set to a kernel image or package"
    )


def _store(home: Home, parts: KernelParts, wanted: _Wanted, same_kernel: Path | None = None) -> GuestKernel:
    """Write a prepared kernel; ``same_kernel`` is a file with the kernel's content, to be linked to."""
    from microsandbox.vmm.initramfs import write_initramfs

    archive = io.BytesIO()
    write_initramfs(archive, wanted.agent, parts.modules)
    contents = {"vmlinux": parts.kernel, "initramfs": archive.getvalue()}
    files = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    manifest = {
        "version": parts.version,
        "machine": wanted.architecture.machine,
        "source": parts.source,
        "stamp": parts.stamp,
        "created": time.time(),
        "agent": wanted.agent_digest,
        "modules": [module.name for module in parts.modules],
        "recipe": _recipe(),
        "files": files,
        "fingerprint": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32],
    }
    encoded = json.dumps(manifest, indent=1).encode() + b"\n"
    target = _target(home, parts.version, str(manifest["fingerprint"]))
    if target.exists():  # the same content, looked for again
        write_atomically(target / _MANIFEST, encoded, durable=True)
        return _kernel(target, manifest)
    with making_directory(target) as directory:
        for name, content in contents.items():
            if name != "vmlinux" or not _link(same_kernel, directory / name):
                # Readable by all who may enter the home: the jailed QEMU has a user of its own.
                write_atomically(directory / name, content, mode=0o644, durable=True)
        write_atomically(directory / _MANIFEST, encoded, durable=True)
    return _kernel(target, manifest)


def _target(home: Home, version: str, fingerprint: str) -> Path:
    """Where a kernel belongs: free, or holding just that content. What is damaged there is removed."""
    for name in (version, f"{version}-{fingerprint[:12]}"):
        target = home.kernels / name
        manifest = _read_manifest(target / _MANIFEST)
        if manifest is None or (
            manifest["fingerprint"] == fingerprint and verify_kernel(_kernel(target, manifest))
        ):
            if target.exists():
                _remove(target)
            return target
        if manifest["fingerprint"] == fingerprint:
            return target
    raise KernelError(f"{home.kernels / name} belongs to another kernel of that name; remove it")


def _link(source: Path | None, target: Path) -> bool:
    """Give a file a second name; False where that is not possible."""
    if source is None:
        return False
    try:
        target.hardlink_to(source)
    except OSError:
        return False
    return True


def _collect(home: Home, keep: GuestKernel, unused_for: float) -> list[str]:
    removed = []
    for manifest in sorted(home.kernels.glob(f"*/{_MANIFEST}")):
        directory = manifest.parent
        idle = time.time() - manifest.stat().st_mtime
        if directory.absolute() != keep.vmlinux.parent and not _is_partial(directory) and idle > unused_for:
            _remove(directory)
            removed.append(directory.name)
    return removed


def _silent(_: str) -> None:
    """Progress that nobody watches."""
