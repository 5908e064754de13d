"""Where image files are below the cache, each under the digest of what it holds.

    blobs/sha256/HEX          manifests, configs and layers as served
    rootfs/HEX.squashfs       the block image of a manifest
    downloads/HEX.part        a layer on its way
    locks/KIND-NAME.lock      never deleted

A file under its final name is complete. Nothing here says whether an image is known: the catalogue does.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from msgspec import Struct

from microsandbox.image.digests import hex_of
from microsandbox.store.files import make_private, write_atomically


class BlobStore(Struct, frozen=True):
    """Paths below one cache directory."""

    cache: Path

    @property
    def blobs(self) -> Path:
        return self.cache / "blobs" / "sha256"

    @property
    def rootfs_directory(self) -> Path:
        return self.cache / "rootfs"

    @property
    def downloads(self) -> Path:
        return self.cache / "downloads"

    @property
    def staging(self) -> Path:
        """Files in the making; all names in it are temporary."""
        return self.cache / "staging"

    def prepare(self) -> None:
        """Make the directories."""
        for directory in (self.blobs, self.rootfs_directory, self.downloads, self.staging):
            make_private(directory)

    def blob(self, digest: str) -> Path:
        return self.blobs / hex_of(digest)

    def rootfs(self, manifest_digest: str) -> Path:
        return self.rootfs_directory / f"{hex_of(manifest_digest)}.squashfs"

    def has_rootfs(self, manifest_digest: str, size: int) -> bool:
        """Whether the block image is there, whole."""
        try:
            return self.rootfs(manifest_digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def part(self, digest: str) -> Path:
        return self.downloads / f"{hex_of(digest)}.part"

    def lock(self, kind: str, name: str) -> Path:
        """The lock file of a blob, a manifest or a reference; any text can be a name."""
        return self.cache / "locks" / f"{kind}-{hashlib.sha256(name.encode()).hexdigest()}.lock"

    def keep(self, digest: str, content: bytes) -> None:
        """Store a document whose digest was verified."""
        path = self.blob(digest)
        if not path.exists():
            write_atomically(path, content)

    def touch(self, digest: str) -> bool:
        """Whether the blob is there; it counts as used now, so that no prune takes it for a leftover."""
        try:
            os.utime(self.blob(digest))
        except FileNotFoundError:
            return False
        return True


def allocated(path: Path) -> int:
    """Bytes that the file takes on its disk; 0 when it is not there."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
