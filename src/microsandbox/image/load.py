"""Loading archives: everything is checked and made under temporary names, then published at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from microsandbox.errors import ImageError
from microsandbox.image.archive import open_archive
from microsandbox.image.archive_images import ArchiveImage, LayerPart, name_images, read_images
from microsandbox.image.blobs import BlobStore
from microsandbox.image.catalog import ImageCatalog, ManifestRow, NewImage, StoredLayer
from microsandbox.image.digests import digest_of
from microsandbox.image.limits import Budget, Limits
from microsandbox.image.materialize import (
    BlobCheck,
    LayerSource,
    disk_error,
    pack_layers,
    read_layers,
    sync,
)
from microsandbox.image.progress import Reporter
from microsandbox.image.publish import Publication, publish
from microsandbox.image.reference import Reference
from microsandbox.image.tasks import StopSignal, in_thread
from microsandbox.store.database import Database
from microsandbox.store.files import make_private, partial_path, remove_tree, write_atomically


class Loader(Struct, frozen=True):
    """Loads archives into one store."""

    blobs: BlobStore
    catalog: ImageCatalog
    database: Database
    limits: Limits

    async def load(self, source: Path | BinaryIO, tags: Sequence[str], reporter: Reporter) -> list[Reference]:
        """Load every image of the archive. Raises ImageError, IoError; nothing is left behind then."""
        publications: list[Publication] = []
        try:
            self.blobs.prepare()
            with ExitStack() as owner:
                images = await in_thread(lambda stop: self._open(source, owner, stop))
                named = name_images(images, tags)
                staging = partial_path(self.blobs.staging / "load")
                owner.callback(remove_tree, staging)
                for number, (image, references) in enumerate(zip(images, named, strict=True)):
                    place = staging / str(number)
                    make_private(place)
                    publications.append(await self._prepare(image, references, place, reporter))
                publish(self.blobs, self.catalog, self.database, publications)
        except OSError as error:
            raise disk_error(f"the image cannot be stored in {self.blobs.cache}", error) from error
        loaded: dict[Reference, None] = {}
        for found in publications:
            for reference in found.image.references:
                loaded[reference] = None
                reporter.emit("complete", reference=reference.text, layer_count=len(found.image.row.layers))
        return list(loaded)

    def _open(self, source: Path | BinaryIO, owner: ExitStack, stop: StopSignal) -> list[ArchiveImage]:
        try:
            return read_images(
                open_archive(source, self.blobs.staging, owner, self.limits, stop), self.limits
            )
        except ValueError as error:
            raise ImageError(str(error)) from error
        except OSError as error:
            name = source if isinstance(source, Path) else "standard input"
            raise disk_error(f"archive {name} cannot be read", error) from error

    async def _prepare(
        self, image: ArchiveImage, references: tuple[Reference, ...], place: Path, reporter: Reporter
    ) -> Publication:
        """Check one image and make its files below ``place``."""
        reporter.emit("resolved", reference=references[0].text, layer_count=len(image.layers))
        with ExitStack() as owner:
            sources = _sources(image, place)
            contents = await read_layers(
                list(sources.values()), Budget(self.limits), self.blobs.staging, owner, reporter
            )
            by_part = dict(zip(sources, contents, strict=True))
            digests = [_blob_of(sources[layer.part.name]) for layer in image.layers]
            manifest = image.manifest_for(digests)
            known = self.catalog.manifest(digest_of(manifest))
            rootfs, size = None, 0
            if known is not None and self.blobs.has_rootfs(known.digest, known.rootfs_bytes):
                size = known.rootfs_bytes
            else:
                rootfs = place / "rootfs"
                layers = [(layer.part.name, by_part[layer.part.name]) for layer in image.layers]
                size = await pack_layers(layers, rootfs, reporter)
                reporter.emit("stitch_writing_vmdk")
                await sync(rootfs)
                reporter.emit("stitch_complete")
        row = _row(image, manifest, digests, size)
        files = {
            _blob_of(source): source.blob.target
            for source in sources.values()
            if source.blob is not None and source.blob.target is not None
        }
        for digest, content in ((row.digest, manifest), (row.config_digest, image.config.document)):
            files[digest] = place / digest.replace(":", "-")
            write_atomically(files[digest], content)
        return Publication(NewImage(row, references), rootfs, files)


def _sources(image: ArchiveImage, place: Path) -> dict[str, LayerSource]:
    """What to read, by name: a layer that the image has twice is read once."""
    positions: dict[str, list[int]] = {}
    layers: dict[str, LayerPart] = {}
    for position, layer in enumerate(image.layers):
        positions.setdefault(layer.part.name, []).append(position)
        layers.setdefault(layer.part.name, layer)
    found = {}
    for number, (name, layer) in enumerate(layers.items()):
        diff_ids = {image.config.diff_ids[position] for position in positions[name]}
        if len(diff_ids) > 1:
            raise ImageError(
                f"config gives layer {name} two different diff_ids: {', '.join(sorted(diff_ids))}"
            )
        found[name] = LayerSource(
            name=layer.digest or name,
            fd=layer.part.fd,
            offset=layer.part.offset,
            size=layer.part.size,
            diff_id=diff_ids.pop(),
            positions=tuple(positions[name]),
            blob=BlobCheck(layer.digest, layer.mismatch, place / f"layer-{number}"),
        )
    return found


def _blob_of(source: LayerSource) -> str:
    assert source.blob is not None
    assert source.blob.digest is not None
    return source.blob.digest


def _row(image: ArchiveImage, manifest: bytes, digests: Sequence[str], size: int) -> ManifestRow:
    layers = tuple(
        StoredLayer(diff_id, digest, layer.media_type or None, layer.part.size)
        for diff_id, digest, layer in zip(image.config.diff_ids, digests, image.layers, strict=True)
    )
    return ManifestRow(
        digest=digest_of(manifest),
        media_type=image.media_type,
        rootfs_bytes=size,
        config_digest=image.config_digest,
        config=image.config,
        layers=layers,
    )
