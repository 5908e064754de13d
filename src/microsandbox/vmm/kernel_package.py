"""The distribution's kernel package: fetched with apt, unpacked without installing it, as any user.

apt verifies what it downloads against the signed package lists. The package is read as a stream, and only
what a guest needs is written: Debian's has 400 MB in 4 000 files, of which a guest needs 15 files.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from microsandbox import tools
from microsandbox.errors import KernelError, PrerequisiteError
from microsandbox.tools import Tool
from microsandbox.vmm.architecture import Architecture
from microsandbox.vmm.kernel_sources import MSB_KERNEL, KernelParts, file_stamp, guest_modules, read_kernel
from microsandbox.vmm.modules import (
    MAX_MODULE_BYTES,
    PREFERRED_BEFORE,
    REQUIRED,
    MissingModulesError,
    ModuleTree,
    module_name,
)
from microsandbox.vmm.vmlinux import MAX_KERNEL_BYTES

Progress = Callable[[str], None]

_APT_CACHE = Tool("apt-cache", "apt", "finds the guest kernel package")
#: What REQUIRED depends on in today's kernels. Only a hint: what is not in it costs another pass.
_DEPENDENCIES = (
    "virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "jbd2", "mbcache", "crc16",
    "libcrc32c",
)  # fmt: skip
_MAX_PASSES = 8
_MAX_PACKAGES = 8
_IMAGE = re.compile(r"(?:\./)?(?:boot/vmlinu[xz]-[^/]+|(?:usr/)?lib/modules/[^/]+/vmlinuz)")
_CONFIGURATION = re.compile(r"(?:\./)?boot/(?P<file>config-[^/]+)")
_MODULE_FILE = re.compile(r"(?:\./)?(?:usr/)?lib/modules/(?P<version>\d[^/]*)/(?:[^/]+/)*(?P<file>[^/]+)")
_INDEXES = ("modules.builtin", "modules.dep")
#: A meta package leads to the image, and that to its modules where they are packages of their own.
_KERNEL_DEPENDENCY = re.compile(
    r"^\s+Depends: (linux-(?:image|binary|modules)(?:-[a-z]+)?-\d[^\s:]*)$", re.MULTILINE
)
# A stalled mirror is given up after seconds. apt's own user for downloads could not write to our private
# directory, and hooks of the system's updates are none of our business.
_APT_CONFIGURATION = """\
Acquire::http::Timeout "6";
Acquire::https::Timeout "6";
Acquire::Retries "0";
APT::Sandbox::User "root";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""
_APT_OWN_LISTS = """\
APT::Update::Error-Mode "any";
Dir::State::Lists "{directory}/lists";
Dir::Cache "{directory}/cache";
"""


def meta_packages(architecture: Architecture) -> tuple[str, ...]:
    """The packages that depend on the current kernel: Debian's, then Ubuntu's."""
    return (f"linux-image-{architecture.oci}", "linux-image-virtual", "linux-image-generic")


def from_distribution(architecture: Architecture, directory: Path, progress: Progress) -> KernelParts:
    """Download the distribution's kernel into ``directory`` and take it apart. Raises KernelError."""
    try:
        packages = download(meta_packages(architecture), directory, progress)
    except (PrerequisiteError, ChildProcessError, TimeoutError) as error:
        raise KernelError(str(error)) from error
    return from_packages(packages, architecture.machine, directory, progress)


def from_configured_package(package: Path, machine: str, directory: Path, progress: Progress) -> KernelParts:
    """The package that MSB_KERNEL points at, with packages of its modules beside it. Raises KernelError."""
    stamp = file_stamp(package)
    match = re.match(r"linux-image-(?:unsigned-)?(\d[^_]*)_", package.name)
    beside = sorted(package.parent.glob(f"linux-modules-{match[1]}_*.deb")) if match else []
    parts = from_packages([package, *beside], machine, directory, progress)
    source = f"{MSB_KERNEL} ({package})"
    return KernelParts(parts.version, parts.kernel, parts.modules, source, stamp)


def from_packages(packages: Sequence[Path], machine: str, directory: Path, progress: Progress) -> KernelParts:
    """The kernel and modules in these packages, unpacked below ``directory``. Raises KernelError."""
    unpacked = directory / "unpacked"
    unpacked.mkdir()
    preferred = {name for names in PREFERRED_BEFORE.values() for name in names}
    wanted = {*REQUIRED, *preferred, *_DEPENDENCIES}
    source = f"package {packages[0].name.removesuffix('.deb')}"
    fresh = wanted
    for _ in range(_MAX_PASSES):
        progress(f"unpacking {', '.join(package.name for package in packages)}")
        for package in packages:
            _unpack(package, unpacked, fresh)
        image = unpacked / "vmlinuz"
        if not image.exists():
            raise KernelError(f"{packages[0].name} holds no kernel image (boot/vmlinuz-VERSION)")
        version, kernel = read_kernel(image, machine)
        try:
            directory = unpacked / version
            modules = guest_modules(image, ModuleTree(version, directory), directory)
        except MissingModulesError as error:
            fresh = set(error.names) - wanted
            if not fresh:
                raise
            wanted |= fresh
        else:
            return KernelParts(version, kernel, modules, source)
    raise KernelError(f"the modules in {source} depend on more and more others: {', '.join(sorted(fresh))}")


# apt


def download(names: Iterable[str], directory: Path, progress: Progress) -> list[Path]:
    """The packages of the kernel that the first known one of ``names`` leads to."""
    tools.require(tools.APT_GET)
    configuration = directory / "apt.conf"
    configuration.write_text(_APT_CONFIGURATION)
    packages = _resolve(names, configuration)
    if packages:
        try:
            return _fetch(packages, configuration, directory, progress)
        except ChildProcessError as error:
            if "404" not in str(error):
                raise
    # No package lists, as in container images, or lists so old that the mirror has newer packages: fetch
    # lists of our own, which takes no root.
    progress("refreshing the package lists")
    for part in ("lists/partial", "cache/archives/partial"):
        (directory / part).mkdir(parents=True)
    configuration.write_text(_APT_CONFIGURATION + _APT_OWN_LISTS.format(directory=directory))
    complaint = ""
    try:
        tools.run(tools.APT_GET, ["-c", configuration, "update"], timeout=120)
    except ChildProcessError as error:  # one broken repository of many is no reason to give up
        complaint = f" ({error})"
    packages = _resolve(names, configuration)
    if not packages:
        raise KernelError(f"apt knows none of {', '.join(names)}{complaint}")
    return _fetch(packages, configuration, directory, progress)


def _resolve(names: Iterable[str], configuration: Path) -> list[str]:
    """Names of the packages that hold the kernel, the image first; empty when apt knows none."""
    for name in names:
        found: list[str] = []
        pending = [name]
        while pending and len(found) < _MAX_PACKAGES:
            asked = pending.pop(0)
            try:
                listing = tools.run(_APT_CACHE, ["-c", configuration, "depends", asked], timeout=60).decode()
            except ChildProcessError:
                continue
            for package in _KERNEL_DEPENDENCY.findall(listing):
                if package not in found:
                    found.append(package)
                    pending.append(package)
        if found:
            return found
    return []


def _fetch(packages: list[str], configuration: Path, directory: Path, progress: Progress) -> list[Path]:
    progress(f"downloading {', '.join(packages)}")
    target = directory / "packages"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    tools.run(tools.APT_GET, ["-c", configuration, "-q", "download", *packages], cwd=target, timeout=900)
    files = {file.name.partition("_")[0]: file for file in target.glob("*.deb")}
    return [files[package] for package in packages if package in files]


# .deb files


def _unpack(package: Path, target: Path, wanted: set[str]) -> None:
    """Write vmlinuz and config-VERSION to ``target``, indexes and wanted modules to ``target``/VERSION."""
    with _members(package) as archive:
        for member in archive:
            if not member.isfile():
                continue
            if _IMAGE.fullmatch(member.name):
                _extract(archive, member, target / "vmlinuz", MAX_KERNEL_BYTES)
            elif match := _CONFIGURATION.fullmatch(member.name):
                _extract(archive, member, target / match["file"], MAX_MODULE_BYTES)
            elif match := _MODULE_FILE.fullmatch(member.name):
                directory, name = target / match["version"], match["file"]
                if name in _INDEXES or module_name(name) in wanted:
                    _extract(archive, member, directory / name, MAX_MODULE_BYTES)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path, limit: int) -> None:
    if member.size > limit:
        raise KernelError(f"{member.name} has {member.size} bytes, more than the {limit} it may have")
    content = archive.extractfile(member)
    if content is None:  # a hard link: kernel packages have none
        raise KernelError(f"{member.name} is not a plain file")
    target.parent.mkdir(exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)


@contextmanager
def _members(package: Path) -> Iterator[tarfile.TarFile]:
    """The files of a package, to be read in their order. Raises KernelError for a damaged package."""
    argv = [str(tools.require(tools.DPKG_DEB)), "--fsys-tarfile", str(package)]
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={**os.environ, "LC_ALL": "C"},
        ) as process,
    ):
        assert process.stdout is not None
        problem: Exception | None = None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|", bufsize=1 << 20) as archive:
                yield archive
            while process.stdout.read(1 << 20):  # padding after the archive's end
                pass
        except (tarfile.TarError, EOFError) as error:
            problem = error
        except BaseException:
            process.kill()
            raise
        process.stdout.close()
        if process.wait() == 0 and problem is None:
            return
        complaints.seek(0)
        reason = tools.last_lines(complaints.read()) or str(problem)
        raise KernelError(f"{package} cannot be unpacked, it is damaged or no Debian package: {reason}")
