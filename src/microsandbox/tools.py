"""Programs of the host that do a job for us: found by name, run with bounded output.

Nothing here goes through a shell, and a missing program is one sentence that names its package.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from microsandbox.errors import PrerequisiteError

#: How much of a failing program's standard error an error message may carry, in bytes.
_REASON_LIMIT = 2000


class Tool(Struct, frozen=True):
    """A host program, and the Debian/Ubuntu package that has it."""

    name: str
    package: str
    purpose: str


QEMU_X86_64 = Tool("qemu-system-x86_64", "qemu-system-x86", "runs the virtual machines")
QEMU_AARCH64 = Tool("qemu-system-aarch64", "qemu-system-arm", "runs the virtual machines")
SQFSTAR = Tool("sqfstar", "squashfs-tools", "packs image layers into a block image")
MKE2FS = Tool("mke2fs", "e2fsprogs", "formats writable layers")
LDD = Tool("ldd", "libc-bin", "lists the libraries of a program")
APT_GET = Tool("apt-get", "apt", "downloads the guest kernel package")
DPKG_DEB = Tool("dpkg-deb", "dpkg", "unpacks the guest kernel package")

# Distributions keep some of these out of an ordinary user's PATH.
_EXTRA_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find(tool: Tool) -> Path | None:
    """Where the program is, or None."""
    import shutil

    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_EXTRA_PATH))
    found = shutil.which(tool.name, path=path)
    return Path(found) if found else None


def require(tool: Tool) -> Path:
    """Where the program is. Raises PrerequisiteError naming the package to install."""
    found = find(tool)
    if found is None:
        raise PrerequisiteError(
            f"{tool.name} was not found (it {tool.purpose}); install it with: apt-get install {tool.package}"
        )
    return found


def last_lines(text: bytes, lines: int = 10) -> str:
    """The end of a program's complaint, bounded, as text."""
    tail = text[-_REASON_LIMIT:].decode("utf-8", "replace").strip().splitlines()[-lines:]
    return "\n".join(tail)


def run(
    tool: Tool,
    arguments: Sequence[str | Path],
    *,
    timeout: float = 600,
    cwd: Path | None = None,
    input: bytes = b"",
) -> bytes:
    """Run to the end and return standard output.

    Raises PrerequisiteError when the program is missing, ChildProcessError with its last lines when it
    fails, TimeoutError after ``timeout`` seconds (the whole process group is killed then).
    """
    import subprocess

    argv = [str(require(tool)), *map(str, arguments)]
    process = subprocess.Popen(
        argv,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    with process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"{tool.name} did not finish within {timeout:g} s") from error
            raise
    if process.returncode:
        reason = last_lines(stderr) or last_lines(stdout) or "it printed no reason"
        raise ChildProcessError(f"{tool.name} failed with status {process.returncode}: {reason}")
    return stdout
