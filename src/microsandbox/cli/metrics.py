"""``msb metrics``: one sample of one or all running sandboxes, or a view that goes on.

The view is drawn by rich (cli/metrics_view.py); without a terminal it is one line of JSON for each sample.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from microsandbox.cli import output
from microsandbox.cli.interrupts import run_cancellable
from microsandbox.cli.model import Invocation, UsageError
from microsandbox.errors import MetricsUnavailableError
from microsandbox.metrics.public import latest, latest_of_all
from microsandbox.sandbox.context import Context
from microsandbox.store.home import validate_name
from microsandbox.types import SandboxMetrics
from microsandbox.units import format_bytes, format_duration

_HEADERS = (
    "NAME", "CPU", "MEMORY", "DISK READ", "DISK WRITE", "NET RX", "NET TX", "UPTIME", "TIMESTAMP",
)  # fmt: skip
_INTERVAL = 1.0

Samples = dict[str, SandboxMetrics]


def metrics(invocation: Invocation) -> int:
    name: str | None = invocation["name"]
    if name is not None:
        validate_name(name)
    context = Context.current()
    if invocation["watch"] or invocation["interval"]:
        interval: float = invocation["interval"] or _INTERVAL
        if invocation["format"]:
            return run_cancellable(lambda: _print_on(context, name, interval))
        if not output.shows_motion(sys.stdout):
            raise UsageError("--watch needs a terminal, or --format json", invocation.path)
        return run_cancellable(lambda: _view(context, name, interval))
    if name is None:
        samples = dict(sorted(latest_of_all(context).items()))
    else:
        samples = {name: asyncio.run(latest(context, name))}
    if invocation["format"]:
        found = [as_json(*item) for item in samples.items()]
        output.write_json(found if name is None else found[0])
    elif not samples:
        output.say("No running sandboxes.")
    else:
        sys.stdout.write(output.table(_HEADERS, [_cells(*item) for item in samples.items()]))
    return 0


async def _print_on(context: Context, name: str | None, interval: float) -> int:
    """A line for each sample of each sandbox; a sandbox without a new one has no new line."""
    printed: dict[str, float] = {}
    samples = await _first(context, name)
    while True:
        for item, sample in samples.items():
            if printed.get(item) != sample.timestamp_ms:
                sys.stdout.write(json.dumps(as_json(item, sample), ensure_ascii=False) + "\n")
        printed = {item: sample.timestamp_ms for item, sample in samples.items()}
        sys.stdout.flush()
        await asyncio.sleep(interval)
        samples = await _next(context, name)


async def _view(context: Context, name: str | None, interval: float) -> int:
    samples = await _first(context, name)
    from microsandbox.cli.metrics_view import MetricsView

    with MetricsView() as view:
        while True:
            view.show(samples)
            await asyncio.sleep(interval)
            samples = await _next(context, name)


async def _first(context: Context, name: str | None) -> Samples:
    """As _next(); a sandbox that was named has to have metrics."""
    return await _next(context, None) if name is None else {name: await latest(context, name)}


async def _next(context: Context, name: str | None) -> Samples:
    if name is None:
        return dict(sorted(latest_of_all(context).items()))
    try:
        return {name: await latest(context, name)}
    except MetricsUnavailableError:  # it has been stopped, and may be started again
        return {}


def _cells(name: str, sample: SandboxMetrics) -> tuple[str, ...]:
    return (
        output.printable(name),
        f"{sample.cpu_percent:.1f}%",
        f"{format_bytes(sample.memory_bytes)} / {format_bytes(sample.memory_limit_bytes)}",
        format_bytes(sample.disk_read_bytes),
        format_bytes(sample.disk_write_bytes),
        format_bytes(sample.net_rx_bytes),
        format_bytes(sample.net_tx_bytes),
        format_duration(sample.uptime_ms / 1000),
        output.local_time(sample.timestamp_ms / 1000),
    )


def as_json(name: str, sample: SandboxMetrics) -> dict[str, Any]:
    return {
        "name": name,
        "timestamp": output.rfc3339(sample.timestamp_ms / 1000),
        "cpu_percent": sample.cpu_percent,
        "vcpu_time_ns": sample.vcpu_time_ns,
        "memory_bytes": sample.memory_bytes,
        "memory_available_bytes": sample.memory_available_bytes,
        "memory_host_resident_bytes": sample.memory_host_resident_bytes,
        "memory_limit_bytes": sample.memory_limit_bytes,
        "disk_read_bytes": sample.disk_read_bytes,
        "disk_write_bytes": sample.disk_write_bytes,
        "net_rx_bytes": sample.net_rx_bytes,
        "net_tx_bytes": sample.net_tx_bytes,
        "uptime_secs": sample.uptime_ms / 1000,
    }
