"""Which entries are wanted, and the files they are in."""

from __future__ import annotations

from collections.abc import Iterable

OUTPUT = ("stdout", "stderr", "output")
SYSTEM = "system"
ALL = (*OUTPUT, SYSTEM)
#: Files of the log directory in the order of a cursor; the last two have nothing but system entries.
FILES = (EXEC, *_) = ("exec.log", "runtime.log", "kernel.log")


def select(sources: Iterable[str] | None) -> frozenset[str]:
    """The sources that are meant: without any, what commands print. Raises ValueError for an unknown one."""
    chosen: set[str] = set()
    for source in sources or ():
        if source == "all":
            chosen.update(ALL)
        elif source in ALL:
            chosen.add(source)
        else:
            raise ValueError(f'unknown log source "{source}"')
    return frozenset(chosen or OUTPUT)


def files_of(sources: frozenset[str]) -> tuple[str, ...]:
    return FILES if SYSTEM in sources else (EXEC,)
