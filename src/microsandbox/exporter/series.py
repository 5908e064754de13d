"""The series that every monitoring system gets: their names, units and meanings."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from microsandbox.exporter.collection import Reading

Number = int | float


class Series(Struct, frozen=True):
    """One series. ``unit`` is UCUM; ``value`` takes it from a reading, None where it is unknown."""

    name: str
    unit: str
    description: str
    value: Callable[[Reading], Number | None]


SANDBOX_SERIES = (
    Series("microsandbox.cpu.utilization", "1", "CPU time used, in processors.", lambda of: of.cpu),
    Series("microsandbox.memory.usage", "By", "Memory in use.", lambda of: of.memory),
    Series("microsandbox.memory.limit", "By", "Memory the guest has.", lambda of: of.memory_limit),
    Series(
        "microsandbox.disk.bytes_read",
        "By",
        "Bytes read from disks since the start.",
        lambda of: of.disk_read,
    ),
    Series(
        "microsandbox.disk.bytes_written",
        "By",
        "Bytes written to disks since the start.",
        lambda of: of.disk_write,
    ),
    Series(
        "microsandbox.network.bytes_received",
        "By",
        "Bytes the guest received since the start.",
        lambda of: of.net_rx,
    ),
    Series(
        "microsandbox.network.bytes_sent", "By", "Bytes the guest sent since the start.", lambda of: of.net_tx
    ),
    Series("microsandbox.uptime", "s", "Time since the start.", lambda of: of.uptime),
)
