"""The supervisor's side: takes a sample at each interval and publishes it, for as long as the machine runs.

A paused machine costs nothing: one sample says that it stands still, and the next is taken when it goes on.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from microsandbox.metrics.registry import Entry, Registry, RegistryError, Slot
from microsandbox.metrics.sample import Meter

log = logging.getLogger(__name__)


class Sampler:
    """Owns the slot that the sandbox's owner has reserved, from its activation to the end of ``run()``.

    ``interval`` is in seconds.
    """

    def __init__(self, registry: Path, reserved: Slot, entry: Entry, meter: Meter, interval: float) -> None:
        self._path, self._reserved, self._entry = registry, reserved, entry
        self._meter, self._interval = meter, interval

    async def run(self, running: asyncio.Event) -> None:
        """Sample until cancelled, or until the slot is somebody else's. ``running`` is clear while paused."""
        registry = None
        try:
            registry, slot = self._enlist(self._reserved)
            while True:
                sample = await self._meter.measure(paused=not running.is_set())
                if not registry.is_current():
                    registry.close()
                    registry = None
                    registry, slot = self._enlist(None)
                registry.write(slot, self._entry, sample)
                if not running.is_set():
                    await running.wait()
                    self._meter.restart()
                await asyncio.sleep(self._interval)
        except (RegistryError, OSError) as error:
            log.warning("no more metrics: %s", error)
        finally:
            self._meter.close()
            if registry is not None:
                with suppress(RegistryError, OSError):
                    registry.retire(slot)
                registry.close()

    def _enlist(self, reserved: Slot | None) -> tuple[Registry, Slot]:
        """The slot that is ours; a new one if the registry was replaced since it was reserved."""
        registry = Registry.open_or_make(self._path)
        try:
            if reserved is not None:
                with suppress(RegistryError):
                    registry.activate(reserved, self._entry)
                    return registry, reserved
            slot = registry.reserve(self._entry)
            registry.activate(slot, self._entry)
        except BaseException:
            registry.close()
            raise
        return registry, slot
