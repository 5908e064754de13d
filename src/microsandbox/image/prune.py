"""Deleting images and what nothing needs any more.

Rows and files go in one write transaction of the catalogue, which is also where images are published: a
pull that meanwhile counted on a file finds it gone before it is recorded, and makes it again. With an image
go the memory templates that have it mounted: the file that takes its place one day is another one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from microsandbox.image.blobs import BlobStore, allocated
from microsandbox.image.catalog import ImageCatalog, Unused
from microsandbox.image.digests import is_digest
from microsandbox.image.reference import Reference
from microsandbox.store.database import Database
from microsandbox.store.files import FileLock, remove_tree
from microsandbox.template.store import TemplateStore

#: Files that no row knows are leftovers of a crash, or about to be published; after this many seconds the
#: former.
_LEFTOVER_AGE = 3600.0


class PruneReport(Struct, frozen=True):
    """What was removed. ``rootfs`` counts block images, ``bytes_reclaimed`` what they all took on disk."""

    references: int = 0
    manifests: int = 0
    layers: int = 0
    rootfs: int = 0
    bytes_reclaimed: int = 0


class Pruner(Struct, frozen=True):
    """Deletes from one store."""

    blobs: BlobStore
    catalog: ImageCatalog
    database: Database
    templates: TemplateStore

    def remove(self, reference: Reference, *, force: bool) -> None:
        """Remove a reference and what only it needed. Raises ImageNotFoundError, ImageInUseError."""
        with self.database.write() as connection:
            unused = self.catalog.remove_reference(connection, reference, force)
            self._delete(unused, self.catalog.needed_blobs(connection))

    def prune(self) -> PruneReport:
        """Remove every image that no sandbox uses, and leftovers."""
        with self.database.write() as connection:
            references, unused = self.catalog.remove_unused(connection)
            needed = self.catalog.needed_blobs(connection)
            layers, rootfs, freed = self._delete(unused, needed)
            manifests = self.catalog.manifests(connection)
            freed += self._delete_leftovers(needed, manifests)
        return PruneReport(references, len(unused.manifests), layers, rootfs, freed)

    def _delete(self, unused: Unused, needed: set[str]) -> tuple[int, int, int]:
        """Delete files that lost their rows: how many layers and block images that were, and bytes."""
        freed = layers = rootfs = 0
        for digest in unused.manifests:
            path = self.blobs.rootfs(digest)
            rootfs += path.exists()
            freed += _unlink(path)
            freed += self.templates.discard_image(digest)
        for digest in unused.documents:
            if digest not in needed:
                freed += _unlink(self.blobs.blob(digest))
        for digest in unused.layers:
            layers += 1
            if digest not in needed:
                freed += _unlink(self.blobs.blob(digest))
        return layers, rootfs, freed

    def _delete_leftovers(self, needed: set[str], manifests: set[str]) -> int:
        """Delete what crashed or cancelled pulls and loads left behind; how many bytes that freed."""
        old = time.time() - _LEFTOVER_AGE
        keep = {self.blobs.blob(digest) for digest in needed if is_digest(digest)}
        keep |= {self.blobs.rootfs(digest) for digest in manifests}
        freed = 0
        for path in _older(self.blobs.blobs, old):
            freed += 0 if path in keep else _remove(path)
        for path in _older(self.blobs.rootfs_directory, old):
            freed += 0 if path in keep else _remove(path)
        for path in _older(self.blobs.staging, old):
            freed += _remove(path)
        for path in _older(self.blobs.downloads, old):
            lock = FileLock(self.blobs.lock("blob", f"sha256:{path.stem}"))
            if lock.acquire(blocking=False):
                try:
                    freed += _remove(path)
                finally:
                    lock.release()
        return freed


def _older(directory: Path, when: float) -> Iterable[Path]:
    """What is in the directory and was last changed before that."""
    if not directory.is_dir():
        return
    for path in list(directory.iterdir()):
        try:
            changed = path.lstat().st_mtime
        except FileNotFoundError:
            continue
        if changed < when:
            yield path


def _unlink(path: Path) -> int:
    freed = allocated(path)
    path.unlink(missing_ok=True)
    return freed


def _remove(path: Path) -> int:
    """Delete a file or a directory of files; the bytes they took."""
    freed = sum(allocated(item) for item in (path, *path.rglob("*")) if item.is_file())
    remove_tree(path)
    return freed
