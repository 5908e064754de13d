"""Builds the guest agent: as hatchling's build hook, or by itself with ``python hatch_build.py``.

The agent is C for Linux guests of both architectures, whatever the host is, so it is cross-compiled with the
Zig compiler of the PyPI package ``ziglang`` and the wheel that carries it is good for every platform.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent
SOURCE = ROOT / "guest"
OUTPUT = ROOT / "src" / "microsandbox" / "_guest"
VERSION_FILE = ROOT / "src" / "microsandbox" / "version.py"
ARCHITECTURES = ("x86_64", "aarch64")
FLAGS = (
    "-std=c11",
    "-D_GNU_SOURCE",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Os",
    "-g0",
    "-static",
    "-fstack-protector-strong",
    "-ffunction-sections",
    "-fdata-sections",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
    "-s",
)


def sources() -> list[Path]:
    """The agent's own files, in an order that does not depend on the file system."""
    return sorted(SOURCE.glob("*.c"))


def api_version() -> str:
    """The version the agent reports. Raises SystemExit."""
    match = re.search(r'^VERSION = "([^"]+)"', VERSION_FILE.read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit(f"{VERSION_FILE} has no VERSION")
    return match[1]


def is_current(binary: Path) -> bool:
    """Whether the binary is newer than everything it is made of."""
    if not binary.exists():
        return False
    inputs = [*SOURCE.glob("*.[ch]"), VERSION_FILE, Path(__file__)]
    return binary.stat().st_mtime_ns > max(path.stat().st_mtime_ns for path in inputs)


def compile_agent(architecture: str, binary: Path) -> None:
    """Compile for one architecture; the binary appears when it is complete. Raises SystemExit."""
    partial = binary.with_name(f".{binary.name}.{os.getpid()}")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-musl", *FLAGS]
    command += [f'-DAGENT_VERSION="{api_version()}"', "-o", str(partial)]
    command += [path.name for path in sources()]
    try:
        done = subprocess.run(command, cwd=SOURCE, check=False, capture_output=True, text=True)
        if "No module named ziglang" in done.stderr:
            raise SystemExit(
                "the compiler of the guest agent is missing; install it with: pip install ziglang"
            )
        if done.returncode:
            raise SystemExit(f"the guest agent for {architecture} cannot be built:\n{done.stderr[-4000:]}")
        partial.chmod(0o755)
        partial.replace(binary)
    finally:
        partial.unlink(missing_ok=True)


def build() -> list[Path]:
    """Bring the binaries of all architectures up to date and return them."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    binaries = []
    for architecture in ARCHITECTURES:
        binary = OUTPUT / f"agentd-{architecture}"
        if not is_current(binary):
            compile_agent(architecture, binary)
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
