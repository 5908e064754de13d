"""The library that is loaded into QEMU, built from preload/ by hatch_build.py: one for each architecture."""

from __future__ import annotations

import os
from pathlib import Path


def preload_library() -> Path | None:
    """The library for this machine's QEMU; None where there is none, and templates cannot be used."""
    path = Path(__file__).parent / f"read_only_ram-{os.uname().machine}"
    return path if path.is_file() else None
