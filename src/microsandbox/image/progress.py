"""What happens during a pull, as events, and their way from worker threads to the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from msgspec import Struct


class PullEvent(Struct, frozen=True):
    """One step of a pull. Attributes that do not belong to the ``event_type`` are None; sizes in bytes.

    In order: ``resolving``, ``resolved``, per layer ``layer_download_progress`` (repeated),
    ``layer_download_complete``, ``layer_materialize_started``, ``layer_materialize_progress`` (repeated),
    ``layer_materialize_writing``, ``layer_materialize_complete``, then ``stitch_merging_trees``,
    ``stitch_writing_fsmeta``, ``stitch_writing_vmdk``, ``stitch_complete`` and ``complete``. The ``stitch``
    steps are the merge of the layers, the packing and the publication of the block image.
    """

    event_type: str
    reference: str | None = None
    manifest_digest: str | None = None
    layer_count: int | None = None
    total_download_bytes: int | None = None
    layer_index: int | None = None
    digest: str | None = None
    diff_id: str | None = None
    downloaded_bytes: int | None = None
    total_bytes: int | None = None
    bytes_read: int | None = None


Progress = Callable[[PullEvent], None]

#: Bytes between two progress events of one layer.
PROGRESS_STEP = 256 * 1024


class Reporter:
    """Hands events to a caller's function, always in the event loop's thread and in order.

    Make it in the loop; ``emit`` may be called from any thread.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def emit(self, event_type: str, **fields: Any) -> None:
        if self._progress is None:
            return
        event = PullEvent(event_type, **fields)
        if threading.get_ident() == self._thread:
            self._progress(event)
        else:
            self._loop.call_soon_threadsafe(self._progress, event)


class Steps:
    """Thins out a byte count to one report every PROGRESS_STEP."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._count = self._reported = 0

    def add(self, count: int) -> None:
        self._count += count
        if self._count - self._reported >= PROGRESS_STEP:
            self.flush()

    def flush(self) -> None:
        """Report the count unless it has been."""
        if self._count != self._reported:
            self._reported = self._count
            self._report(self._count)
