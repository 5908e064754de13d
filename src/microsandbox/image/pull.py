"""Pulling: what is there is used, what is missing is fetched, and the result is published at once."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack

from msgspec import Struct

from microsandbox.errors import ImageError, ImagePullFailedError
from microsandbox.image.blobs import BlobStore
from microsandbox.image.cached import CachedImages, PullRequest, report_resolved
from microsandbox.image.catalog import ImageCatalog, ManifestRow, NewImage, StoredLayer
from microsandbox.image.credentials import credentials_of
from microsandbox.image.digests import digest_of
from microsandbox.image.documents import (
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    parse_config,
    parse_manifest,
    select,
)
from microsandbox.image.download import download_blob
from microsandbox.image.layer import LayerContent
from microsandbox.image.limits import MAX_METADATA_BYTES, Budget, Limits
from microsandbox.image.materialize import LayerSource, disk_error, pack_layers, read_one, sync
from microsandbox.image.progress import Reporter
from microsandbox.image.publish import FilesGoneError, Publication, publish
from microsandbox.image.reference import Reference
from microsandbox.image.registry import Registry, RetryPolicy
from microsandbox.image.tasks import all_or_none, locked
from microsandbox.store.database import Database
from microsandbox.store.files import partial_path

_PROCESSORS = os.cpu_count() or 1
#: Layers that are downloaded, and unpacked, at once.
_DOWNLOADS, _UNPACKS = min(16, 4 * _PROCESSORS), min(16, _PROCESSORS)
#: Indexes within indexes.
_MAX_NESTING = 3
#: How often an image is made again because a prune took its files.
_TRIES = 3


class _Resolved(Struct, frozen=True):
    """The image that a reference stands for in its registry, for this machine."""

    content: bytes
    media_type: str
    manifest: Manifest

    @property
    def digest(self) -> str:
        return digest_of(self.content)


class Puller(Struct, frozen=True):
    """Pulls into one store."""

    blobs: BlobStore
    catalog: ImageCatalog
    database: Database
    limits: Limits
    retry: RetryPolicy

    async def pull(self, request: PullRequest, reporter: Reporter) -> ManifestRow:
        """An image that is not there, stored. Raises ImageError, ImagePullFailedError, IoError."""
        reference = request.reference
        if request.policy == "never":
            raise ImageError(f"image not cached: {reference.text}")
        reporter.emit("resolving", reference=reference.text)
        try:
            self.blobs.prepare()
            async with locked(self.blobs.lock("ref", reference.normalized)):
                found = self.cached.find(request)
                if found is None:
                    return await self._pull(request, reporter)
        except OSError as error:
            raise disk_error(f"the image cannot be stored in {self.blobs.cache}", error) from error
        self.cached.use(reference, found, reporter)  # somebody else was faster
        return found

    @property
    def cached(self) -> CachedImages:
        return CachedImages(self.blobs, self.catalog)

    async def _pull(self, request: PullRequest, reporter: Reporter) -> ManifestRow:
        reference = request.reference
        async with Registry(
            reference.registry,
            insecure=request.insecure,
            ca_certs=request.ca_certs,
            common_ca_certs=request.common_ca_certs,
            credentials=credentials_of(reference.registry, request.auth),
            retry=self.retry,
        ) as registry:
            resolved = await _resolve(registry, reference)
            sizes = [layer.size for layer in resolved.manifest.layers]
            report_resolved(reference, resolved.digest, sizes, reporter)
            async with locked(self.blobs.lock("manifest", resolved.digest)):
                row = self.catalog.manifest(resolved.digest)
                if row is not None and self.cached.complete(row) and not request.force:
                    for position, layer in enumerate(row.layers):
                        reporter.emit(
                            "layer_materialize_complete", layer_index=position, diff_id=layer.diff_id
                        )
                    self.catalog.use(reference, row.digest)
                else:
                    row = await self._make(registry, request, resolved, reporter)
        reporter.emit("complete", reference=reference.text, layer_count=len(row.layers))
        return row

    async def _make(
        self, registry: Registry, request: PullRequest, resolved: _Resolved, reporter: Reporter
    ) -> ManifestRow:
        config = await self._config(registry, request.reference, resolved)
        for attempt in range(1, _TRIES + 1):
            image = _Image(self, registry, request, resolved.manifest, config, reporter)
            try:
                return await image.make(resolved)
            except FilesGoneError:
                if attempt == _TRIES:
                    raise
        raise AssertionError("unreachable")

    async def _config(self, registry: Registry, reference: Reference, resolved: _Resolved) -> ImageConfig:
        manifest = resolved.manifest
        descriptor = manifest.config
        if descriptor.size > MAX_METADATA_BYTES:
            raise ImageError(f"image config is {descriptor.size} bytes; max is {MAX_METADATA_BYTES}")
        content = await registry.small_blob(reference.repository, descriptor.digest, descriptor.size)
        _verify(content, descriptor.digest, "config")
        config = parse_config(content, f"config {descriptor.digest}")
        if len(config.diff_ids) != len(manifest.layers):
            raise ImageError(
                f"layer count mismatch: config has {len(config.diff_ids)} diff_ids but manifest has "
                f"{len(manifest.layers)} layers"
            )
        if len(manifest.layers) > self.limits.layers:
            raise ImageError(f"image has {len(manifest.layers)} layers; max is {self.limits.layers}")
        for layer in manifest.layers:
            if layer.size > self.limits.blob_bytes:
                raise ImageError(
                    f"layer {layer.digest} is {layer.size} bytes; max is {self.limits.blob_bytes}"
                )
        host = Platform.host()
        stated = Platform(config.os or host.os, config.architecture or host.architecture)
        if not host.runs(stated):
            raise ImagePullFailedError(f"no manifest for platform {host} in {reference} (it is for {stated})")
        return config


class _Image:
    """One image in the making."""

    def __init__(
        self,
        puller: Puller,
        registry: Registry,
        request: PullRequest,
        manifest: Manifest,
        config: ImageConfig,
        reporter: Reporter,
    ) -> None:
        self._puller = puller
        self._blobs = puller.blobs
        self._registry = registry
        self._request = request
        self._manifest = manifest
        self._config = config
        self._reporter = reporter
        self._budget = Budget(puller.limits)
        self._downloads, self._unpacks = asyncio.Semaphore(_DOWNLOADS), asyncio.Semaphore(_UNPACKS)

    async def make(self, resolved: _Resolved) -> ManifestRow:
        """Fetch, merge, pack, publish."""
        puller, digest = self._puller, resolved.digest
        positions: dict[tuple[str, str], list[int]] = {}
        for position, layer in enumerate(self._manifest.layers):
            positions.setdefault((layer.digest, self._config.diff_ids[position]), []).append(position)
        rootfs = partial_path(self._blobs.rootfs(digest))
        with ExitStack() as owner:
            owner.callback(rootfs.unlink, missing_ok=True)
            results = await all_or_none([self._layer(tuple(places), owner) for places in positions.values()])
            by_position = {
                place: result
                for result, places in zip(results, positions.values(), strict=True)
                for place in places
            }
            ordered = [by_position[place] for place in range(len(self._manifest.layers))]
            size = await pack_layers(
                [(layer.blob_digest, content) for layer, content in ordered], rootfs, self._reporter
            )
            self._reporter.emit("stitch_writing_vmdk")
            await sync(rootfs)
            self._blobs.keep(digest, resolved.content)
            self._blobs.keep(self._manifest.config.digest, self._config.document)
            row = ManifestRow(
                digest=digest,
                media_type=resolved.media_type,
                rootfs_bytes=size,
                config_digest=self._manifest.config.digest,
                config=self._config,
                layers=tuple(layer for layer, _ in ordered),
            )
            new = NewImage(row, (self._request.reference,))
            publish(self._blobs, puller.catalog, puller.database, [Publication(new, rootfs, {})])
        self._reporter.emit("stitch_complete")
        return row

    async def _layer(self, positions: tuple[int, ...], owner: ExitStack) -> tuple[StoredLayer, LayerContent]:
        """One layer's blob and content; one that an earlier pull left damaged is fetched again."""
        descriptor = self._manifest.layers[positions[0]]
        diff_id = self._config.diff_ids[positions[0]]
        stored = StoredLayer(diff_id, descriptor.digest, descriptor.media_type or None, descriptor.size)
        present = None if self._request.force else self._present(stored)
        if present is not None:
            try:
                return present, await self._read(present, positions, owner)
            except ImageError:
                self._budget = Budget(self._puller.limits)
        await self._download(descriptor, positions, force=present is not None or self._request.force)
        return stored, await self._read(stored, positions, owner)

    def _present(self, wanted: StoredLayer) -> StoredLayer | None:
        """The layer when its blob is here, perhaps compressed in another way."""
        if self._blobs.touch(wanted.blob_digest):
            return wanted
        known = self._puller.catalog.layer(wanted.diff_id)
        return known if known is not None and self._blobs.touch(known.blob_digest) else None

    async def _download(self, descriptor: Descriptor, positions: tuple[int, ...], *, force: bool) -> None:
        def report(count: int) -> None:
            for position in positions:
                self._reporter.emit(
                    "layer_download_progress",
                    layer_index=position,
                    digest=descriptor.digest,
                    downloaded_bytes=count,
                    total_bytes=descriptor.size,
                )

        async with self._downloads:
            await download_blob(
                self._registry,
                self._request.reference.repository,
                descriptor,
                self._blobs,
                force=force,
                report=report,
            )
        for position in positions:
            self._reporter.emit(
                "layer_download_complete",
                layer_index=position,
                digest=descriptor.digest,
                downloaded_bytes=descriptor.size,
            )

    async def _read(self, layer: StoredLayer, positions: tuple[int, ...], owner: ExitStack) -> LayerContent:
        async with self._unpacks:
            try:
                fd = os.open(self._blobs.blob(layer.blob_digest), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise FilesGoneError(f"layer {layer.blob_digest} was deleted meanwhile") from error
            owner.callback(os.close, fd)
            size = os.fstat(fd).st_size
            source = LayerSource(layer.blob_digest, fd, 0, size, layer.diff_id, positions)
            return await read_one(source, self._budget, self._blobs.staging, owner, self._reporter)


async def _resolve(registry: Registry, reference: Reference) -> _Resolved:
    """The manifest for this machine, through indexes where there are some."""
    target, expected, kind = reference.target, reference.digest, "manifest"
    host = Platform.host()
    for _ in range(_MAX_NESTING + 1):
        served = await registry.manifest(reference.repository, target)
        expected = expected or _stated(served.digest_header)
        if expected is not None:
            _verify(served.content, expected, kind)
        document = parse_manifest(served.content, served.media_type, f"manifest of {reference}")
        if isinstance(document, Manifest):
            return _Resolved(served.content, document.media_type, document)
        chosen = select(document.manifests, host)
        if chosen is None:
            raise ImagePullFailedError(
                f"no manifest for platform {host} in {reference}{_present_in(document)}"
            )
        target = expected = chosen.digest
    raise ImagePullFailedError(f"{reference} has indexes nested more than {_MAX_NESTING} deep")


def _present_in(index: Index) -> str:
    found = dict.fromkeys(
        str(item.platform) for item in index.manifests if item.platform and not item.is_attestation
    )
    return f" (it has {', '.join(list(found)[:20])})" if found else ""


def _stated(header: str | None) -> str | None:
    """The digest that a registry says its manifest has, when we can check it."""
    return header if header is not None and header.startswith("sha256:") else None


def _verify(content: bytes, expected: str, kind: str) -> None:
    found = digest_of(content)
    if found != expected:
        raise ImagePullFailedError(f"digest mismatch for {kind} {expected}: expected {expected}, got {found}")
