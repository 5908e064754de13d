"""Where the time of a start goes: marks with milliseconds since ``Sandbox.create()``.

The owner's marks travel with the launch plan; the supervisor adds its own, writes them into the runtime log,
and leaves them as ``timings.json`` for whoever wants to show them. All processes of a host share the clock.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from microsandbox.store.files import write_atomically

_NAME = "timings.json"


class Trace:
    """Marks in the order they were made."""

    def __init__(self, marks: tuple[tuple[str, int], ...] = ()) -> None:
        self._marks = list(marks)

    def mark(self, what: str) -> None:
        """Something was reached just now."""
        self._marks.append((what, time.monotonic_ns()))

    @property
    def marks(self) -> tuple[tuple[str, int], ...]:
        """For the launch plan of another process: names, and nanoseconds of CLOCK_MONOTONIC."""
        return tuple(self._marks)

    @property
    def milliseconds(self) -> list[tuple[str, float]]:
        """Names, and milliseconds since the first mark."""
        return [(what, (at - self._marks[0][1]) / 1e6) for what, at in self._marks]

    def __str__(self) -> str:
        return ", ".join(f"{what} {at:.0f}" for what, at in self.milliseconds)

    def save(self, logs: Path) -> None:
        write_atomically(logs / _NAME, json.dumps(self._marks).encode())

    @classmethod
    def load(cls, logs: Path) -> Trace:
        """What a supervisor left; no marks when there is nothing to read."""
        try:
            marks = json.loads((logs / _NAME).read_bytes())
            return cls(tuple((str(what), int(at)) for what, at in marks))
        except (OSError, ValueError, TypeError):
            return cls()
