"""``Snapshot``: named here, made by a later release."""

from __future__ import annotations

import builtins
import os
from collections.abc import Mapping
from typing import Any

from microsandbox.errors import NotSupportedYetError
from microsandbox.unavailable import Unavailable

_PathLike = str | os.PathLike[str]


def _later() -> NotSupportedYetError:
    return NotSupportedYetError("snapshots")


class Snapshot(Unavailable):
    """The writable layer of a stopped sandbox, kept."""

    path: str
    digest: str
    size_bytes: int
    image_ref: str
    image_manifest_digest: str
    format: str
    fstype: str
    parent: str | None
    created_at: str
    labels: dict[str, str]
    source_sandbox: str | None

    @staticmethod
    async def create(
        source_sandbox: str,
        *,
        name: str | None = None,
        path: _PathLike | None = None,
        labels: Mapping[str, str] | None = None,
        force: bool = False,
        record_integrity: bool = False,
    ) -> Snapshot:
        """Raises ValueError unless exactly one of name and path is given, else NotSupportedYetError."""
        if name is not None and path is not None:
            raise ValueError("Snapshot.create: pass either name= or path=, not both")
        if name is None and path is None:
            raise ValueError("Snapshot.create: name= or path= is required")
        raise _later()

    @staticmethod
    async def open(path_or_name: _PathLike) -> Snapshot:
        raise _later()

    @staticmethod
    async def get(name_or_digest: str) -> SnapshotHandle:
        raise _later()

    @staticmethod
    async def list() -> list[SnapshotHandle]:
        raise _later()

    @staticmethod
    async def list_dir(dir: _PathLike) -> builtins.list[Snapshot]:
        raise _later()

    @staticmethod
    async def remove(path_or_name: _PathLike, *, force: bool = False) -> None:
        raise _later()

    @staticmethod
    async def reindex(dir: _PathLike | None = None) -> int:
        raise _later()

    @staticmethod
    async def export(
        name_or_path: _PathLike,
        out: _PathLike,
        *,
        with_parents: bool = False,
        with_image: bool = False,
        plain_tar: bool = False,
    ) -> None:
        raise _later()

    @staticmethod
    async def import_(archive: _PathLike, *, dest: _PathLike | None = None) -> SnapshotHandle:
        raise _later()

    async def verify(self) -> dict[str, Any]:
        raise _later()


class SnapshotHandle(Unavailable):
    """A snapshot of the index."""

    digest: str
    name: str | None
    parent_digest: str | None
    image_ref: str
    format: str
    size_bytes: int | None
    created_at: float
    path: str

    async def open(self) -> Snapshot:
        raise _later()

    async def remove(self, *, force: bool = False) -> None:
        raise _later()
