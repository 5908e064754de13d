"""Starting modules of this package as processes of their own, quickly and with our import path."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

#: What a process that is started must not inherit from a program of somebody else's: signals that it ignores.
DEFAULT_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE)


def module_command(module: str, *arguments: str) -> list[str]:
    """The argv that runs a module. ``site`` is skipped: it is a third of a bare interpreter's start."""
    return [sys.executable, "-S", "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """Our environment, and where to import from: without ``site`` the child has to be told."""
    package_root = str(Path(__file__).resolve().parents[1])
    search = [package_root, *(str(Path(entry).absolute()) for entry in sys.path if entry)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(search))}
