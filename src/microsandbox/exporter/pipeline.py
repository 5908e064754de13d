"""From collections to an exporter: buffered while it fails, sent on in order, the oldest given up first."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import deque

from msgspec import Struct
from msgspec.structs import replace

from microsandbox.errors import MicrosandboxError
from microsandbox.exporter.collection import Collection

log = logging.getLogger(__name__)

#: The longest pause after failures is the flush interval times two to this power.
_MOST_DOUBLINGS = 5


class ExportError(MicrosandboxError):
    """An export failed; the collection can be tried again."""

    code = "metrics-export"


class Health(Struct, frozen=True):
    """How exporting has gone since the program's start. ``last_success`` is in Unix seconds."""

    succeeded: int = 0
    failed: int = 0
    dropped: int = 0
    last_success: float | None = None


class Exporter(ABC):
    """Where collections go. Called in a thread, by one at a time."""

    @abstractmethod
    def export(self, collection: Collection, health: Health) -> None:
        """Send it on, within the export timeout. Raises ExportError, BrokenPipeError when none can follow."""

    @abstractmethod
    def close(self) -> None:
        """Send on what is still on its way. Raises ExportError, BrokenPipeError."""


class Pipeline:
    """At most ``limit`` collections on their way to an exporter. Times in seconds."""

    def __init__(self, exporter: Exporter, limit: int, flush_interval: float) -> None:
        self._exporter, self._limit, self._flush_interval = exporter, limit, flush_interval
        self._buffer: deque[Collection] = deque()
        self._failures = 0
        self.health = Health()

    def __len__(self) -> int:
        return len(self._buffer)

    def add(self, collection: Collection) -> None:
        self._buffer.append(collection)
        self._give_up_the_oldest()

    async def flush(self, stop: asyncio.Event) -> float:
        """Send on what there is, cut short by ``stop``; returns the time to the next flush.

        It is an interval from the start of this one, a longer pause after it when it failed. Raises
        BrokenPipeError.
        """
        started = time.monotonic()
        try:
            for _ in range(len(self._buffer)):
                if stop.is_set():
                    break
                await self._export_first()
        except ExportError as error:
            pause = self._flush_interval * 2.0 ** min(self._failures - 1, _MOST_DOUBLINGS)
            log.warning("%s; %d collections wait for the next try in %.1fs", error, len(self), pause)
            return pause
        return max(0.0, started + self._flush_interval - time.monotonic())

    async def finish(self) -> None:
        """Send on all that is left, and close the exporter. Raises ExportError, BrokenPipeError."""
        try:
            while self._buffer:
                await self._export_first()
        finally:
            await asyncio.to_thread(self._exporter.close)

    async def _export_first(self) -> None:
        collection = self._buffer.popleft()
        try:
            await asyncio.to_thread(self._exporter.export, collection, self.health)
        except ExportError:
            self._failures += 1
            self.health = replace(self.health, failed=self.health.failed + 1)
            self._buffer.appendleft(collection)
            self._give_up_the_oldest()
            raise
        self._failures = 0
        self.health = replace(self.health, succeeded=self.health.succeeded + 1, last_success=time.time())

    def _give_up_the_oldest(self) -> None:
        while len(self._buffer) > self._limit:
            self._buffer.popleft()
            self.health = replace(self.health, dropped=self.health.dropped + 1)
