"""What the registry says of all running sandboxes at one moment."""

from __future__ import annotations

import time
from pathlib import Path

from msgspec import Struct

from microsandbox.exporter.labels import Labels, LabelSet
from microsandbox.metrics.registry import Record, Registry


class Reading(Struct, frozen=True):
    """One sandbox. Sizes in bytes, counters since its start, seconds; None is unknown."""

    name: str
    sandbox_id: int
    run_id: int
    pid: int
    labels: LabelSet
    #: Of one processor: 2 busy ones are 2.0.
    cpu: float | None
    memory: int | None
    memory_limit: int
    disk_read: int
    disk_write: int
    net_rx: int
    net_tx: int
    uptime: float


class Collection(Struct, frozen=True):
    """All readings of one moment, in Unix seconds."""

    time: float
    readings: tuple[Reading, ...]


class Collector:
    """Reads a registry. ``max_age`` is in seconds, 0 for any; ``labels`` is None where none are wanted."""

    def __init__(self, registry: Path, max_age: float, labels: Labels | None) -> None:
        self._registry, self._max_age, self._labels = registry, max_age, labels

    def collect(self) -> Collection:
        """What there is now, by name; nothing where no sandbox ever ran. Raises RegistryError, OSError."""
        now = time.time()
        try:
            with Registry.open(self._registry) as registry:
                records = [record for record in registry.records() if self._counts(record, now)]
        except FileNotFoundError:
            records = []
        labels = self._labels.of([record.entry for record in records]) if self._labels else {}
        readings = (_reading(record, labels.get(record.entry.run_id, ())) for record in records)
        return Collection(now, tuple(sorted(readings, key=lambda reading: reading.name)))

    def _counts(self, record: Record, now: float) -> bool:
        """A killed supervisor leaves its slot as it was, until somebody looks for the sandbox."""
        if not record.active or record.sample is None:
            return False
        if self._max_age and now - record.sample.time_ms / 1000 > self._max_age:
            return False
        return record.entry.process.alive()


def _reading(record: Record, labels: LabelSet) -> Reading:
    sample, entry = record.sample, record.entry
    assert sample is not None
    return Reading(
        entry.name,
        entry.sandbox_id,
        entry.run_id,
        entry.process.pid,
        labels,
        None if sample.cpu_percent is None else sample.cpu_percent / 100,
        sample.memory,
        entry.memory_limit,
        sample.disk_read,
        sample.disk_write,
        sample.net_rx,
        sample.net_tx,
        max(0, sample.time_ms - entry.started_ms) / 1000,
    )
