"""The image store of a home: what the rest of the program knows of images.

Importing this is cheap; what talks to registries, parses archives and packs images is imported when it is
needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from msgspec import Struct

from microsandbox.errors import ImageNotFoundError
from microsandbox.image.blobs import BlobStore
from microsandbox.image.cached import CachedImages, PullRequest
from microsandbox.image.catalog import ImageCatalog, ImageRecord, ManifestRow, StoredLayer
from microsandbox.image.documents import ImageConfig
from microsandbox.image.limits import Limits
from microsandbox.image.progress import Progress, Reporter
from microsandbox.image.reference import Reference, parse_reference
from microsandbox.store.database import Database
from microsandbox.store.home import Home

if TYPE_CHECKING:
    from microsandbox.image.prune import Pruner, PruneReport
    from microsandbox.image.pull import Puller
    from microsandbox.image.registry import RetryPolicy

__all__ = ["ImageConfig", "ImageInspection", "ImageRecord", "ImageStore", "StoredImage", "StoredLayer"]

_POLICIES = ("if-missing", "always", "never")


class StoredImage(Struct, frozen=True):
    """An image that can be booted. ``rootfs`` is a squashfs with the merged layers, read-only."""

    manifest_digest: str
    reference: str
    rootfs: Path
    config: ImageConfig
    layers: tuple[StoredLayer, ...]


class ImageInspection(Struct, frozen=True):
    """All that the catalogue has about an image; layers bottom first."""

    record: ImageRecord
    config_digest: str
    config: ImageConfig
    layers: tuple[StoredLayer, ...]


class ImageStore:
    """The images of one home. Every method may be called from several processes at once."""

    def __init__(
        self,
        home: Home,
        database: Database,
        *,
        limits: Limits | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._home = home
        self._database = database
        self._limits = limits or Limits()
        self._retry = retry
        self._blobs = BlobStore(home.cache)
        self._catalog = ImageCatalog(database)

    # getting images

    async def pull(
        self,
        reference: str,
        *,
        policy: str = "if-missing",
        progress: Progress | None = None,
        force: bool = False,
        insecure: bool = False,
        ca_certs: Path | None = None,
    ) -> StoredImage:
        """The image of a reference, from the cache or its registry.

        ``policy`` is ``if-missing``, ``always`` (ask the registry what the reference stands for now) or
        ``never``; ``force`` downloads and converts again. ``insecure`` is plain HTTP, ``ca_certs`` a PEM
        file to trust besides the usual ones; both default to the registry's entry in config.json. Raises
        ImageError, ImagePullFailedError, IoError, PrerequisiteError, ValueError for an unknown policy.
        """
        if str(policy) not in _POLICIES:
            raise ValueError(f"invalid pull policy {str(policy)!r} (expected {', '.join(_POLICIES)})")
        parsed = parse_reference(reference)
        registries = self._home.config.registries
        configured = registries.host(parsed.registry)
        request = PullRequest(
            parsed,
            policy=str(policy),
            force=force,
            insecure=insecure or configured.insecure or registries.insecure,
            ca_certs=ca_certs or configured.ca_certs,
            common_ca_certs=registries.ca_certs,
            auth=configured.auth,
        )
        reporter = Reporter(progress)
        row = CachedImages(self._blobs, self._catalog).answer(request, reporter)
        if row is None:
            row = await self._puller.pull(request, reporter)
        return self._stored(row, reference)

    async def load(
        self, source: Path | BinaryIO, *, tags: Sequence[str] = (), progress: Progress | None = None
    ) -> list[str]:
        """Load every image of an archive, and return the references they have now.

        ``source`` is a file of ``docker save`` or an OCI layout (tar, also gzip or zstd compressed), a
        directory with an OCI layout, or a binary stream (whose reads, when they block, hold up a
        cancellation). ``tags`` are further names of the first image.
        Raises ImageError, IoError, PrerequisiteError; a failing load changes nothing.
        """
        from microsandbox.image.load import Loader

        loader = Loader(self._blobs, self._catalog, self._database, self._limits)
        return [reference.text for reference in await loader.load(source, tags, Reporter(progress))]

    # looking

    def by_digest(self, manifest_digest: str) -> StoredImage:
        """The stored image of a manifest. Raises ImageNotFoundError."""
        row = self._catalog.manifest(manifest_digest)
        if row is None or not self._blobs.has_rootfs(row.digest, row.rootfs_bytes):
            raise ImageNotFoundError(manifest_digest)
        return self._stored(row, manifest_digest)

    def get(self, reference: str) -> ImageRecord:
        """The catalogue's entry of a reference, however it is written. Raises ImageNotFoundError."""
        return self._catalog.get(_known(reference))

    def list(self) -> list[ImageRecord]:
        """All references, newest first."""
        return self._catalog.list()

    def inspect(self, reference: str) -> ImageInspection:
        """Config and layers of an image. Raises ImageNotFoundError."""
        record = self.get(reference)
        row = self._catalog.manifest(record.manifest_digest)
        if row is None:
            raise ImageNotFoundError(reference)
        return ImageInspection(record, row.config_digest, row.config, row.layers)

    # deleting

    async def remove(self, reference: str, force: bool = False) -> None:
        """Remove a reference, and the image when nothing else needs it.

        Raises ImageNotFoundError; ImageInUseError while a sandbox uses the image. With ``force`` the
        reference goes all the same and the sandboxes keep their disk.
        """
        await asyncio.to_thread(self._pruner.remove, _known(reference), force=force)

    async def prune(self) -> PruneReport:
        """Remove every image that no sandbox uses, and what crashed pulls and loads left behind."""
        return await asyncio.to_thread(self._pruner.prune)

    @property
    def _pruner(self) -> Pruner:
        from microsandbox.image.prune import Pruner
        from microsandbox.template.store import TemplateStore

        return Pruner(self._blobs, self._catalog, self._database, TemplateStore(self._home))

    @cached_property
    def _puller(self) -> Puller:
        from microsandbox.image.pull import Puller
        from microsandbox.image.registry import RetryPolicy

        retry = self._retry or RetryPolicy()
        return Puller(self._blobs, self._catalog, self._database, self._limits, retry)

    def _stored(self, row: ManifestRow, reference: str) -> StoredImage:
        return StoredImage(row.digest, reference, self._blobs.rootfs(row.digest), row.config, row.layers)


def _known(reference: str) -> Reference:
    """The reference to look up; one that cannot be parsed is certainly not there."""
    from microsandbox.errors import ImageError

    try:
        return parse_reference(reference)
    except ImageError:
        raise ImageNotFoundError(reference) from None
