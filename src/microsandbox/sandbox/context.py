"""What every operation of one home shares: its paths, its catalogue, its images."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from microsandbox.store.database import Database
from microsandbox.store.home import Home, base_directory
from microsandbox.store.sandboxes import SandboxCatalog

if TYPE_CHECKING:
    from microsandbox.image.store import ImageStore


class Context(Struct, frozen=True, dict=True):
    """Made once per process and home; everything in it is safe to share between tasks."""

    home: Home
    database: Database
    sandboxes: SandboxCatalog

    @classmethod
    def current(cls) -> Context:
        """The context of ``MSB_HOME``. Raises InvalidConfigError for a bad config.json."""
        return _open(base_directory())

    @functools.cached_property
    def images(self) -> ImageStore:
        from microsandbox.image.store import ImageStore

        return ImageStore(self.home, self.database)


@functools.lru_cache(maxsize=16)
def _open(base: Path) -> Context:
    home = Home.open()
    database = Database(home.database, home.config.database)

    def forget(name: str) -> None:
        from microsandbox.metrics.registry import free_dead

        home.agent_socket(name).unlink(missing_ok=True)
        free_dead(home.metrics_registry, name)

    return Context(home, database, SandboxCatalog(database, forget))
