"""What a process's threads get of the host's processors: to tell one that is starved from one that hangs."""

from __future__ import annotations

from pathlib import Path

#: Of /proc/PID/stat: stopped, traced; and waiting for a device, when no thread can do anything either.
_STOPPED = frozenset("Tt")
_HELD = _STOPPED | {"D"}


class Threads:
    """The threads of one process. ``held_up()`` says how long they could not run, although they wanted to."""

    def __init__(self, pid: int, proc: Path = Path("/proc")) -> None:
        self._tasks = proc / str(pid) / "task"
        self._waited = self._read()

    def held_up(self, seconds: float) -> float:
        """Of the ``seconds`` since the last call, those in which some thread stood still against its will.

        Others use the processor (the scheduler's account of it, /proc/PID/task/TID/schedstat), a signal has
        stopped it, a disk does not answer. 0 where the kernel does not tell.
        """
        before, self._waited = self._waited, self._read()
        if any(state in _HELD for _, state in self._waited.values()):
            return seconds
        waits = (waited - before[task][0] for task, (waited, _) in self._waited.items() if task in before)
        return min(seconds, max(waits, default=0) / 1e9)

    @property
    def stopped(self) -> bool:
        """Whether somebody on the host had stopped them at the last call: no guest can have that done."""
        return any(state in _STOPPED for _, state in self._waited.values())

    def _read(self) -> dict[str, tuple[int, str]]:
        """Nanoseconds spent waiting for a processor, and the state, of each thread."""
        found = {}
        try:
            tasks = list(self._tasks.iterdir())
        except OSError:  # it has ended
            return {}
        for task in tasks:
            try:
                waited = int((task / "schedstat").read_text().split()[1])
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            except (OSError, ValueError, IndexError):  # a thread that has ended, a kernel without schedstat
                continue
            found[task.name] = waited, state
        return found
