"""What can be seen of a sandbox from outside: log entries and measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LogSource = Literal["stdout", "stderr", "output", "system"]
LogReadSource = Literal["stdout", "stderr", "output", "system", "all"]


@dataclass(frozen=True, slots=True, repr=False)
class LogEntry:
    """One piece of a log. ``cursor`` is where to go on; ``session_id`` is None for system entries."""

    timestamp_ms: float
    source: str
    session_id: int | None
    cursor: str
    data: bytes

    def text(self) -> str:
        """The data as UTF-8; what is not becomes U+FFFD."""
        return self.data.decode("utf-8", "replace")

    def __repr__(self) -> str:
        session = "None" if self.session_id is None else f"Some({self.session_id})"
        return (
            f'LogEntry(source="{self.source}", session_id={session}, '
            f"timestamp_ms={self.timestamp_ms}, len={len(self.data)})"
        )


@dataclass(frozen=True, slots=True)
class SandboxMetrics:
    """One sample. ``cpu_percent`` sums over the virtual CPUs, so it may exceed 100."""

    cpu_percent: float
    vcpu_time_ns: int
    memory_bytes: int
    memory_available_bytes: int | None
    memory_host_resident_bytes: int | None
    memory_limit_bytes: int
    disk_read_bytes: int
    disk_write_bytes: int
    net_rx_bytes: int
    net_tx_bytes: int
    uptime_ms: int
    timestamp_ms: float
