"""How much an image may ask of the host: one value, handed to everything that reads foreign bytes."""

from __future__ import annotations

import threading

from msgspec import Struct

from microsandbox.units import GIB, MIB

#: A manifest or index, in bytes (what registries themselves accept).
MAX_MANIFEST_BYTES = 4 * MIB
#: An image config, or any other metadata entry of an archive, in bytes.
MAX_METADATA_BYTES = 16 * MIB
#: An extended tar header, in bytes (libarchive and Go stop there too).
MAX_TAR_HEADER_BYTES = MIB
MAX_PATH_BYTES = 4096
MAX_PATH_DEPTH = 128


class Limits(Struct, frozen=True):
    """Bounds of one image, over all of its layers; sizes in bytes."""

    entries: int = 1_000_000
    file_bytes: int = 5 * GIB
    total_bytes: int = 10 * GIB
    blob_bytes: int = 10 * GIB
    #: Paths, link targets, attributes and sparse maps that are held in memory.
    metadata_bytes: int = 256 * MIB
    layers: int = 512
    archive_entries: int = 1_000_000
    #: A compressed archive, unpacked.
    archive_bytes: int = 40 * GIB


class LimitExceededError(ValueError):
    """An image asks for more than it may have."""


class Budget:
    """What the layers of one image have used so far; shared by the threads that read them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._entries = self._bytes = self._metadata = 0

    def charge(self, name: bytes, size: int, metadata: int) -> None:
        """Account for one entry. Raises LimitExceededError."""
        if size > self.limits.file_bytes:
            raise LimitExceededError(f"file too large: {quoted(name)} has {size} bytes")
        with self._lock:
            self._entries += 1
            self._bytes += size
            self._metadata += metadata
        if self._entries > self.limits.entries:
            raise LimitExceededError(f"entry count exceeded: more than {self.limits.entries}")
        if self._bytes > self.limits.total_bytes:
            raise LimitExceededError(
                f"total extracted size exceeded: more than {self.limits.total_bytes} bytes"
            )
        if self._metadata > self.limits.metadata_bytes:
            raise LimitExceededError(f"entry metadata exceeds {self.limits.metadata_bytes} bytes")


def quoted(name: bytes) -> str:
    """A foreign name as error texts show it: bounded, printable, in double quotes."""
    text = name[:200].decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f'"{shown}{"…" if len(name) > 200 else ""}"'
