"""Builds what is written in C: as hatchling's build hook, or by itself with ``python hatch_build.py``.

The guest agent and the little library that is loaded into QEMU are compiled for both architectures, whatever
this machine is, with the Zig compiler of the PyPI package ``ziglang``: the wheel that carries them is good
for every platform.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "src" / "microsandbox"
VERSION_FILE = PACKAGE / "version.py"
ARCHITECTURES = ("x86_64", "aarch64")
FLAGS = (
    "-std=c11",
    "-D_GNU_SOURCE",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Os",
    "-g0",
    "-s",
    "-Wl,--build-id=none",
)


class Program(NamedTuple):
    """A binary for each architecture, of a directory's C files. ``target`` is Zig's name of the C library."""

    what: str
    source: Path
    binary: Path
    target: str
    flags: tuple[str, ...]

    @property
    def inputs(self) -> list[Path]:
        return [*self.source.glob("*.[ch]"), VERSION_FILE, Path(__file__)]


AGENT = Program(
    "guest agent",
    ROOT / "guest",
    PACKAGE / "_guest" / "agentd",
    "linux-musl",
    ("-static", "-fstack-protector-strong", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"),
)
# Any C library since 2012 will do: it uses syscall(2)'s wrapper and errno.
PRELOAD = Program(
    "library for QEMU",
    ROOT / "preload",
    PACKAGE / "_host" / "read_only_ram",
    "linux-gnu.2.17",
    ("-shared", "-fPIC"),
)


def api_version() -> str:
    """The version the agent reports. Raises SystemExit."""
    match = re.search(r'^VERSION = "([^"]+)"', VERSION_FILE.read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit(f"{VERSION_FILE} has no VERSION")
    return match[1]


def compile_program(program: Program, architecture: str, binary: Path) -> None:
    """Compile for one architecture; the binary appears when it is complete. Raises SystemExit."""
    partial = binary.with_name(f".{binary.name}.{os.getpid()}")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-{program.target}", *FLAGS]
    command += [*program.flags, f'-DAGENT_VERSION="{api_version()}"', "-o", str(partial)]
    command += sorted(path.name for path in program.source.glob("*.c"))
    try:
        done = subprocess.run(command, cwd=program.source, check=False, capture_output=True, text=True)
        if "No module named ziglang" in done.stderr:
            raise SystemExit(
                f"the compiler of the {program.what} is missing; install it with: pip install ziglang"
            )
        if done.returncode:
            raise SystemExit(f"the {program.what} for {architecture} cannot be built:\n{done.stderr[-4000:]}")
        partial.chmod(0o755)
        partial.replace(binary)
    finally:
        partial.unlink(missing_ok=True)


def is_current(program: Program, binary: Path) -> bool:
    """Whether the binary is newer than everything it is made of."""
    if not binary.exists():
        return False
    return binary.stat().st_mtime_ns > max(path.stat().st_mtime_ns for path in program.inputs)


def build() -> list[Path]:
    """Bring the binaries of all architectures up to date and return them."""
    binaries = []
    for program in (AGENT, PRELOAD):
        program.binary.parent.mkdir(parents=True, exist_ok=True)
        for architecture in ARCHITECTURES:
            binary = program.binary.with_name(f"{program.binary.name}-{architecture}")
            if not is_current(program, binary):
                compile_program(program, architecture, binary)
            binaries.append(binary)
    return binaries


if TYPE_CHECKING or importlib.util.find_spec("hatchling"):
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class CustomBuildHook(BuildHookInterface[Any]):
        """Puts the binaries into wheels; for an editable install they stay in the source tree."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            for binary in build():
                build_data["artifacts"].append(binary.relative_to(ROOT).as_posix())


if __name__ == "__main__":
    for built in build():
        print(f"{built.relative_to(ROOT)}  {built.stat().st_size} bytes")
