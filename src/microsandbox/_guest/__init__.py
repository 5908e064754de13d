"""The guest agent's binaries, built from guest/ by hatch_build.py: one for each architecture of a guest."""

from __future__ import annotations

import platform
from pathlib import Path

from microsandbox.errors import PrerequisiteError

_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def agent_binary(machine: str | None = None) -> Path:
    """The agent for a guest of that machine (as ``uname -m`` says it); the host's when none is named.

    Raises PrerequisiteError when there is none.
    """
    name = (machine or platform.machine()).lower()
    architecture = _MACHINES.get(name)
    if architecture is None:
        raise PrerequisiteError(
            f"there is no guest agent for machine {name!r}, only for x86_64 and aarch64 guests"
        )
    binary = Path(__file__).parent / f"agentd-{architecture}"
    if not binary.is_file():
        raise PrerequisiteError(
            f"the guest agent {binary.name} is missing from this installation: reinstall the package, or in "
            "a source checkout run: python hatch_build.py"
        )
    return binary
