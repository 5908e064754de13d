"""The user's terminal: its size, raw mode and echo, always put back as they were."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

_DEFAULT_SIZE = (24, 80)
_LFLAG = 3


def stdin_is_terminal() -> bool:
    return os.isatty(0)


def size() -> tuple[int, int]:
    """Rows and columns of the terminal on any of our standard descriptors; 24 by 80 without one."""
    for fd in (0, 1, 2):
        try:
            found = os.get_terminal_size(fd)
        except OSError:
            continue
        if found.lines > 0 and found.columns > 0:
            return found.lines, found.columns
    return _DEFAULT_SIZE


@contextmanager
def raw(fd: int = 0) -> Iterator[None]:
    """Every key goes to the guest, Ctrl-C too. Nothing is done when the descriptor is no terminal."""
    if not os.isatty(fd):
        yield
        return
    import tty

    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def quiet() -> Iterator[None]:
    """What is typed while a spinner turns is neither shown nor left over for the shell."""
    if not (os.isatty(0) and sys.stderr.isatty()) or os.tcgetpgrp(0) != os.getpgrp():
        yield
        return
    before = termios.tcgetattr(0)
    silent = termios.tcgetattr(0)
    silent[_LFLAG] &= ~(termios.ECHO | termios.ICANON)
    try:
        termios.tcsetattr(0, termios.TCSADRAIN, silent)
        yield
    finally:
        termios.tcflush(0, termios.TCIFLUSH)
        termios.tcsetattr(0, termios.TCSADRAIN, before)
