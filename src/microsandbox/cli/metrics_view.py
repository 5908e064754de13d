"""The view of ``msb metrics --watch``: a table that is drawn again with each sample, with plots over time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from microsandbox.cli import output
from microsandbox.types import SandboxMetrics
from microsandbox.units import format_bytes, format_duration

#: Samples that a plot goes back.
PLOT_WIDTH = 20
_BARS = " ▁▂▃▄▅▆▇█"


def plot(values: Sequence[float], top: float) -> str:
    """The latest values as bars, the newest at the right; ``top`` fills a whole line."""
    levels = len(_BARS) - 1
    shown = [max(0.0, min(1.0, value / top)) if top > 0 else 0.0 for value in values[-PLOT_WIDTH:]]
    # What is little is still told from nothing.
    bars = [_BARS[max(round(part * levels), 1 if part else 0)] for part in shown]
    return "".join(bars).rjust(PLOT_WIDTH)


class _History:
    """What one sandbox did lately."""

    def __init__(self) -> None:
        self.samples: deque[SandboxMetrics] = deque(maxlen=PLOT_WIDTH)

    def add(self, sample: SandboxMetrics) -> None:
        if self.samples and sample.uptime_ms < self.samples[-1].uptime_ms:
            self.samples.clear()  # it has been started again, its counters with it
        if not self.samples or sample.timestamp_ms != self.samples[-1].timestamp_ms:
            self.samples.append(sample)

    def rate(self, counter: str) -> float:
        """A counter's growth per second, over the last two samples."""
        if len(self.samples) < 2:
            return 0.0
        before, after = self.samples[-2], self.samples[-1]
        seconds = (after.timestamp_ms - before.timestamp_ms) / 1000
        grown: int = getattr(after, counter) - getattr(before, counter)
        return max(0.0, grown / seconds) if seconds > 0 else 0.0


class MetricsView:
    """A context manager: the terminal's screen is its own meanwhile, and given back as it was."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(no_color="NO_COLOR" in os.environ)
        self._histories: dict[str, _History] = {}
        self._live = Live(
            console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, samples: Mapping[str, SandboxMetrics]) -> None:
        """Draw these sandboxes; one that is not among them is forgotten."""
        self._histories = {name: self._histories.get(name) or _History() for name in samples}
        for name, sample in samples.items():
            self._histories[name].add(sample)
        self._live.update(self.table() if samples else Text("No running sandboxes."), refresh=True)

    def table(self) -> Table:
        table = Table(box=None, header_style="bold cyan", pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("NAME", overflow="ellipsis", no_wrap=True)
        for header in ("CPU", "", "MEMORY", "", "DISK R/s", "DISK W/s", "NET RX/s", "NET TX/s", "UPTIME"):
            table.add_column(header, justify="left" if header == "" else "right", no_wrap=True)
        for name, history in self._histories.items():
            table.add_row(*_row(name, history))
        return table


def _row(name: str, history: _History) -> tuple[Text, ...]:
    last = history.samples[-1]
    cpu = [sample.cpu_percent for sample in history.samples]
    memory = [float(sample.memory_bytes) for sample in history.samples]
    rates = [
        Text(format_bytes(int(history.rate(counter))))
        for counter in ("disk_read_bytes", "disk_write_bytes", "net_rx_bytes", "net_tx_bytes")
    ]
    return (
        Text(output.printable(name)),
        Text(f"{last.cpu_percent:.1f}%"),
        Text(plot(cpu, max(100.0, *cpu)), style="green"),
        Text(f"{format_bytes(last.memory_bytes)} / {format_bytes(last.memory_limit_bytes)}"),
        Text(plot(memory, float(last.memory_limit_bytes)), style="blue"),
        *rates,
        Text(format_duration(last.uptime_ms / 1000)),
    )
