"""What a pull looks like: one line for the image and a bar for each layer, only on a terminal.

The bars are drawn by rich, which is imported when the first layer moves: an image that is cached never
needs it.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from microsandbox import terminal
from microsandbox.cli import output
from microsandbox.units import format_bytes, format_duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Layers with a bar of their own; the others are part of the image's line.
_MAX_BARS = 24
_CLEAR_LINE = "\r\x1b[K"
_STATES = {
    "layer_download_progress": "downloading",
    "layer_download_verifying": "verifying",
    "layer_download_complete": "verifying",
    "layer_materialize_started": "materializing",
    "layer_materialize_progress": "materializing",
    "layer_materialize_writing": "writing image",
    "layer_materialize_complete": "✓",
}


class PullDisplay:
    """Follows the events of one pull. ``cached`` is whether nothing had to be fetched or converted.

    ``summary`` ends it with a line in any case, also where there is no terminal: for ``msb pull`` itself.
    """

    def __init__(self, reference: str, *, quiet: bool, summary: bool = False) -> None:
        self._reference = output.printable(reference)
        self._shown = not quiet and sys.stderr.isatty()
        self._summary = summary and not quiet
        self._started = time.monotonic()
        self._bars: dict[int, TaskID] = {}
        self._layers = 0
        self._progress: Progress | None = None
        self._header: TaskID | None = None
        self._stack = ExitStack()
        self._complete = False
        self.cached = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self._complete and (self._summary or (self._shown and not self.cached)):
            took = f"({format_duration(time.monotonic() - self._started)})"
            output.success("Pulled", self._reference, note="(already cached)" if self.cached else took)
        elif not self._complete and self._shown and (self._summary or not self.cached):
            mark = output.styled("✗", output.RED, stream=sys.stderr)
            output.say(f"   {mark} {'Pulling':<12} {self._reference}")

    def show(self, event: Any) -> None:
        """Take one event (attributes as in ``PullSession.progress``)."""
        kind: str = event.event_type
        if kind == "resolving" and self._shown:
            sys.stderr.write(f"   Resolving {self._reference}...")
            sys.stderr.flush()
            self._stack.callback(sys.stderr.write, _CLEAR_LINE)
        elif kind == "resolved":
            self._layers = event.layer_count or 0
        elif kind == "complete":
            self._complete = True
        elif kind in _STATES and event.layer_index is not None:
            self.cached = False
            if self._shown:
                self._show_layer(kind, event)
        elif self._progress is not None and self._header is not None and kind.startswith("stitch_"):
            self._progress.update(self._header, description=f"Merging {self._reference}...")

    def _show_layer(self, kind: str, event: Any) -> None:
        progress = self._open()
        index: int = event.layer_index
        if index not in self._bars:
            if len(self._bars) >= _MAX_BARS:
                return
            label = f"layer {index + 1:>2}/{self._layers}"
            self._bars[index] = progress.add_task(label, total=None, state="", amount="")
        done = event.bytes_read if event.bytes_read is not None else event.downloaded_bytes
        total: int | None = event.total_bytes
        values: dict[str, Any] = {"state": _STATES[kind]}
        if done is not None and total:
            values |= {
                "completed": done,
                "total": total,
                "amount": f"{format_bytes(done)}/{format_bytes(total)}",
            }
        progress.update(self._bars[index], **values)

    def _open(self) -> Progress:
        if self._progress is not None:
            return self._progress
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._stack.enter_context(terminal.quiet())
        sys.stderr.write(_CLEAR_LINE)
        sys.stderr.flush()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            TextColumn("{task.fields[amount]}", markup=False),
            TextColumn("{task.fields[state]}", markup=False),
            console=Console(stderr=True, no_color="NO_COLOR" in os.environ),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._header = self._progress.add_task(
            f"Pulling {self._reference} ({self._layers} layers)", total=None, state="", amount=""
        )
        self._stack.enter_context(self._progress)
        return self._progress
