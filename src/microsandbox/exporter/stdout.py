"""A line for each sandbox and collection on standard output.

A reader that stalls must not hold the program: what is written is waited for, page by page. A collection is
taken whole or not at all, so that a retry repeats no line; its rest goes first the next time.
"""

from __future__ import annotations

import os
import select
import time

from microsandbox.cli.output import printable, rfc3339
from microsandbox.exporter.collection import Collection, Reading
from microsandbox.exporter.pipeline import Exporter, ExportError, Health
from microsandbox.units import format_bytes, format_duration

#: Bytes that a pipe takes without blocking when it says that it can be written to (pipe(7)).
_PAGE = select.PIPE_BUF


class StdoutExporter(Exporter):
    """Writes to a descriptor; ``timeout`` in seconds."""

    def __init__(self, timeout: float, fd: int = 1) -> None:
        self._timeout, self._fd = timeout, fd
        self._rest = memoryview(b"")
        self._dropped = 0

    def export(self, collection: Collection, health: Health) -> None:
        deadline = time.monotonic() + self._timeout
        self._write(deadline)
        text = render(collection, health.dropped - self._dropped)
        whole = self._rest = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            self._write(deadline)
        except ExportError:
            if len(self._rest) == len(whole):
                self._rest = memoryview(b"")
                raise
        self._dropped = health.dropped

    def close(self) -> None:
        self._write(time.monotonic() + self._timeout)

    def _write(self, deadline: float) -> None:
        while self._rest:
            if not self._writable(deadline):
                raise ExportError(f"standard output took nothing for {self._timeout:g} s")
            self._write_some()

    def _writable(self, deadline: float) -> bool:
        waiting = select.poll()
        waiting.register(self._fd, select.POLLOUT)
        return bool(waiting.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def _write_some(self) -> None:
        try:
            self._rest = self._rest[os.write(self._fd, self._rest[:_PAGE]) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ExportError(f"standard output: {error.strerror}") from error


def render(collection: Collection, dropped: int) -> str:
    """The lines of a collection, and of collections that were given up before it."""
    at = rfc3339(collection.time)
    lines = [f"{at} {_line(reading)}" for reading in collection.readings] or [f"{at} (no active sandboxes)"]
    if dropped:
        lines.append(f"  (dropped {dropped} stale collections from buffer)")
    return "".join(f"{line}\n" for line in lines)


def _line(of: Reading) -> str:
    labels = ",".join(f"{printable(key)}={printable(value)}" for key, value in of.labels)
    return (
        f"sandbox={printable(of.name)} id={of.sandbox_id} cpu={of.cpu or 0.0:.6f} "
        f"mem={format_bytes(of.memory or 0)} / {format_bytes(of.memory_limit)} "
        f"disk_r={format_bytes(of.disk_read)} disk_w={format_bytes(of.disk_write)} "
        f"net_rx={format_bytes(of.net_rx)} net_tx={format_bytes(of.net_tx)} "
        f"uptime={format_duration(of.uptime)}{f' labels={{{labels}}}' if labels else ''}"
    )
