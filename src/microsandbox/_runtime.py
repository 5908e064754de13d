"""What sandboxes need on this host besides the package: the ``msb`` program, and a guest kernel for QEMU."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from microsandbox import environment
from microsandbox.errors import InvalidConfigError, KernelError, MicrosandboxError, PrerequisiteError

_registered: str | None = None


def msb_path() -> Path:
    """Where installing this package puts ``msb``: in the environment's directory of scripts."""
    return Path(sysconfig.get_path("scripts")) / "msb"


def set_runtime_msb_path(path: str) -> None:
    """Register another ``msb``. The first call counts, later ones are ignored."""
    global _registered
    if _registered is None:
        _registered = os.fspath(path)


def resolved_msb_path() -> str:
    """The ``msb`` to run: ``MSB_PATH``, the registered one, ``paths.msb`` of config.json, the installed one,
    ``<home>/bin/msb``, ``PATH``.

    The first two are returned without a look at them. Raises MicrosandboxError when there is none,
    InvalidConfigError when ``paths.msb`` is no file.
    """
    import shutil

    from microsandbox.store.home import Home

    if path := environment.value(environment.MSB_PATH) or _registered:
        return path
    home = Home.open()
    if configured := home.config.paths.msb:
        if not configured.is_file():
            raise InvalidConfigError(f"paths.msb in config.json is {configured}, which is not a file")
        return str(configured)
    candidates = (msb_path(), Path(sys.executable).parent / "msb", home.root / "bin" / "msb")
    for candidate in candidates:
        if candidate.is_file():
            return str(candidate)
    if found := shutil.which("msb"):
        return found
    looked = ", ".join(str(candidate.parent) for candidate in dict.fromkeys(candidates))
    raise MicrosandboxError(f"msb not found in {looked} or PATH; set MSB_PATH or reinstall the package")


async def install() -> None:
    """Prepare what the first sandbox would otherwise wait for: guest kernel, checks of this host.

    Does nothing when it was done before. Raises PrerequisiteError, KernelError.
    """
    import asyncio

    await asyncio.to_thread(_prepare)


def _prepare() -> None:
    from microsandbox.store.home import Home
    from microsandbox.vmm.host import examine_host
    from microsandbox.vmm.kernel import installed_kernel, prepare_kernel

    home = Home.open()
    examine_host(home, installed_kernel(home) or prepare_kernel(home))


def is_installed() -> bool:
    """Whether QEMU is there and the guest kernel is prepared, so that sandboxes can start at once."""
    from microsandbox import tools
    from microsandbox.store.home import Home
    from microsandbox.vmm.architecture import host_architecture
    from microsandbox.vmm.kernel import installed_kernel

    try:
        qemu = tools.find(host_architecture().qemu)
        return qemu is not None and installed_kernel(Home.open()) is not None
    except (PrerequisiteError, KernelError):
        return False
