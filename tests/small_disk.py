"""A file system that is soon full."""

import contextlib
import os
import subprocess

import pytest


@contextlib.contextmanager
def small_disk(path, size):
    """A tmpfs of that size on ``path`` for the block, which is a directory then."""
    path.mkdir(parents=True, exist_ok=True)
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", path]).returncode
    ):
        pytest.skip("cannot mount a small file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)
