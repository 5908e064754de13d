"""The console entry point under the name that microsandbox 0.5.6 has it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from microsandbox import environment


def main() -> int:
    """Run ``msb`` with this process's arguments: the program in ``MSB_PATH``, else this package's."""
    path = environment.value(environment.MSB_PATH)
    if path is None:
        from microsandbox.cli import main as run

        return run()
    if Path(path).is_file():
        os.execv(path, ["msb", *sys.argv[1:]])  # noqa: S606 - the program the user named
    sys.stderr.write(
        f"microsandbox: msb binary not found at {path}. Set MSB_PATH or reinstall the package.\n"
    )
    return 127
