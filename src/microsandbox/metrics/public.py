"""Measurements of sandboxes, as their callers see them: the latest sample, a stream of them, those of all."""

from __future__ import annotations

import asyncio
from typing import Self

from microsandbox.errors import MetricsDisabledError, MetricsUnavailableError
from microsandbox.metrics.registry import Record, Registry, RegistryError
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.stored_config import load_config
from microsandbox.store.sandboxes import SandboxRow
from microsandbox.types import SandboxMetrics
from microsandbox.unavailable import Unavailable

#: Seconds: how often a first sample is looked for, and for how long at least and at most.
_POLL, _FIRST_LEAST, _FIRST_MOST = 0.01, 0.5, 10.0
#: Seconds between the values of a stream without an interval.
_SHORTEST_INTERVAL = 0.001


async def all_sandbox_metrics() -> dict[str, SandboxMetrics]:
    """The latest sample of every running sandbox that has one, by name."""
    return latest_of_all(Context.current())


def latest_of_all(context: Context) -> dict[str, SandboxMetrics]:
    """As all_sandbox_metrics(), for those without an event loop."""
    rows = [row for row in context.sandboxes.list() if row.supervised and not row.status.terminal]
    if not rows:
        return {}
    try:
        with Registry.open(context.home.metrics_registry) as registry:
            records = {record.entry.run_id: record for record in registry.records() if record.active}
    except (OSError, RegistryError):
        return {}
    found = {row.name: (row, records.get(row.run_id or 0)) for row in rows}
    return {
        name: _public(record)
        for name, (row, record) in found.items()
        if record is not None and _is_of(record, row) and record.sample is not None
    }


async def latest(context: Context, name: str) -> SandboxMetrics:
    """The latest sample of a sandbox's current run; the first one is waited for.

    Raises SandboxNotFoundError, MetricsDisabledError, MetricsUnavailableError.
    """
    return _public(await _latest_record(context, name))


async def _latest_record(context: Context, name: str) -> Record:
    interval = load_config(context.sandboxes.get(name).config).metrics_interval
    if interval is None:
        raise MetricsDisabledError(f"metrics disabled for sandbox: {name}")
    waiting = min(max(3 * interval, _FIRST_LEAST), _FIRST_MOST)
    deadline = asyncio.get_running_loop().time() + waiting
    while not (row := context.sandboxes.get(name)).status.terminal:
        record = _find(context, row)
        if record is not None:
            return record
        if asyncio.get_running_loop().time() >= deadline:
            break
        await asyncio.sleep(_POLL)
    raise MetricsUnavailableError(f"metrics unavailable for sandbox: {name}")


class MetricsStream(Unavailable):
    """Samples of one sandbox at an interval; it never ends by itself.

    When the sandbox has ended the last sample is repeated as long as it is there. Each value may raise
    MetricsUnavailableError; there will be values again when the sandbox is started again. Where metrics are
    disabled, the first value raises MetricsDisabledError and there is no other.
    """

    _context: Context
    _name: str
    _interval: float
    _next: float
    _last: Record | None
    _ended: bool

    @classmethod
    def of(cls, context: Context, name: str, interval: float) -> MetricsStream:
        stream = cls.__new__(cls)
        stream._context, stream._name = context, name
        stream._interval = max(interval, _SHORTEST_INTERVAL)
        stream._next, stream._last, stream._ended = 0.0, None, False
        return stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SandboxMetrics:
        if self._ended:
            raise StopAsyncIteration
        loop = asyncio.get_running_loop()
        if (early := self._next - loop.time()) > 0:
            await asyncio.sleep(early)
        now = loop.time()
        on_time = now - self._next < self._interval
        self._next = (self._next if on_time else now) + self._interval
        try:
            self._last = await _latest_record(self._context, self._name)
        except MetricsDisabledError:
            self._ended = True
            raise
        except MetricsUnavailableError:
            if (left := self._left_behind()) is None:
                raise
            self._last = left
        return _public(self._last)

    def _left_behind(self) -> Record | None:
        """The last sample of a run that has ended, unless its slot is somebody else's by now."""
        if self._last is None:
            return None
        try:
            with Registry.open(self._context.home.metrics_registry) as registry:
                found = registry.read(self._last.slot.index)
        except (OSError, RegistryError):
            return None
        left = found is not None and found.visible and found.slot == self._last.slot
        return found if left else None


def _find(context: Context, row: SandboxRow) -> Record | None:
    """The record of a row's current run, if it has a sample."""
    if not row.supervised:
        return None
    try:
        with Registry.open(context.home.metrics_registry) as registry:
            for record in registry.records():
                if record.active and _is_of(record, row) and record.sample is not None:
                    return record
    except (OSError, RegistryError):
        pass
    return None


def _is_of(record: Record, row: SandboxRow) -> bool:
    return record.entry.run_id == row.run_id and record.entry.process == row.process


def _public(record: Record) -> SandboxMetrics:
    sample, entry = record.sample, record.entry
    assert sample is not None
    return SandboxMetrics(
        cpu_percent=sample.cpu_percent or 0.0,
        vcpu_time_ns=sample.vcpu_time_ns,
        memory_bytes=sample.memory or 0,
        memory_available_bytes=sample.memory_available,
        memory_host_resident_bytes=sample.memory_resident,
        memory_limit_bytes=entry.memory_limit,
        disk_read_bytes=sample.disk_read,
        disk_write_bytes=sample.disk_write,
        net_rx_bytes=sample.net_rx,
        net_tx_bytes=sample.net_tx,
        uptime_ms=max(0, sample.time_ms - entry.started_ms),
        timestamp_ms=float(sample.time_ms),
    )
