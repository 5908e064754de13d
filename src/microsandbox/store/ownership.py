"""Who else could have written a file that decides what we run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from microsandbox.errors import InvalidConfigError


def check_directory(path: Path, what: str) -> None:
    """Refuse a directory of ours that others can write to; one that does not exist is made later.

    Raises InvalidConfigError, which says with ``what`` where the path comes from.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidConfigError(f"{what} is {path}, which cannot be looked at: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise InvalidConfigError(f"{what} is {path}, which is not a directory")
    check_ownership(path, status)


def check_ownership(path: Path, status: os.stat_result) -> None:
    """Refuse what another user may have written, or may yet write.

    Raises InvalidConfigError with the command that mends it.
    """
    ours = os.geteuid()
    if status.st_uid not in (ours, 0):
        raise InvalidConfigError(
            f"{path} belongs to user {status.st_uid}, neither to you (user {ours}) nor to root; "
            f"be that user, use another MSB_HOME, or run: chown {ours} {shell_word(path)}"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidConfigError(f"{path} can be written by other users; run: chmod go-w {shell_word(path)}")


def shell_word(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
