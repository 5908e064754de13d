"""The guest agent's binaries, built by hatch_build.py."""

from __future__ import annotations

import os
from pathlib import Path

from microsandbox.errors import PrerequisiteError


def agent_binary(machine: str | None = None) -> Path:
    """The agent for an architecture (uname's name; default the host's). Raises PrerequisiteError."""
    path = Path(__file__).with_name(f"agentd-{machine or os.uname().machine}")
    if not path.is_file():
        raise PrerequisiteError(f"the guest agent {path} is missing; build it with: python hatch_build.py")
    return path
