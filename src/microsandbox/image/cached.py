"""Images that are there already: found and told of without a word to a registry.

Apart from pull.py, whose HTTP client takes longer to import than a cached image takes to be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from microsandbox.image.blobs import BlobStore
from microsandbox.image.catalog import ImageCatalog, ManifestRow
from microsandbox.image.progress import Reporter
from microsandbox.image.reference import Reference
from microsandbox.store.config import AuthEntry


class PullRequest(Struct, frozen=True):
    """What to pull. ``policy`` is ``if-missing``, ``always`` or ``never``."""

    reference: Reference
    policy: str = "if-missing"
    force: bool = False
    insecure: bool = False
    #: PEM files to trust besides the usual ones: of this registry, and of all of them.
    ca_certs: Path | None = None
    common_ca_certs: Path | None = None
    auth: AuthEntry | None = None


class CachedImages(Struct, frozen=True):
    """What can be said of images without asking their registries."""

    blobs: BlobStore
    catalog: ImageCatalog

    def answer(self, request: PullRequest, reporter: Reporter) -> ManifestRow | None:
        """The image that answers the request as it is, now in use; None when a registry must be asked."""
        found = self.find(request)
        if found is not None:
            reporter.emit("resolving", reference=request.reference.text)
            self.use(request.reference, found, reporter)
        return found

    def find(self, request: PullRequest) -> ManifestRow | None:
        if request.policy == "always" or request.force:
            return None
        row = self.catalog.manifest_of(request.reference)
        return row if self.complete(row) else None

    def use(self, reference: Reference, row: ManifestRow, reporter: Reporter) -> None:
        """Note that it is of use, and tell of it as a pull does."""
        report_resolved(reference, row.digest, [layer.compressed_size for layer in row.layers], reporter)
        self.catalog.use(reference, row.digest)
        reporter.emit("complete", reference=reference.text, layer_count=len(row.layers))

    def complete(self, row: ManifestRow | None) -> bool:
        """Whether the image can be booted."""
        return row is not None and self.blobs.has_rootfs(row.digest, row.rootfs_bytes)


def report_resolved(
    reference: Reference, digest: str, sizes: Sequence[int | None], reporter: Reporter
) -> None:
    reporter.emit(
        "resolved",
        reference=reference.text,
        manifest_digest=digest,
        layer_count=len(sizes),
        total_download_bytes=sum(size or 0 for size in sizes),
    )
