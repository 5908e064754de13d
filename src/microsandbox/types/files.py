"""Entries of a file system in a sandbox or a volume."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FsEntryKind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class FsEntry:
    """An entry of a directory. ``mode`` has the type bits; ``modified`` is milliseconds since the epoch."""

    path: str
    kind: str
    size: int
    mode: int
    modified: float | None


@dataclass(frozen=True, slots=True)
class FsMetadata:
    """What stat(2) says. ``readonly`` means that the owner's write bit is clear; times in milliseconds."""

    kind: str
    size: int
    mode: int
    readonly: bool
    modified: float | None
    created: float | None
