"""Making images known: their files get their names and their rows appear, in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from microsandbox.errors import ImageError
from microsandbox.image.blobs import BlobStore
from microsandbox.image.catalog import ImageCatalog, NewImage
from microsandbox.store.database import Database


class Publication(Struct, frozen=True):
    """An image to be made known, and the files that are ready under temporary names.

    ``rootfs`` is None when the block image is in place already; ``blobs`` has what may not be.
    """

    image: NewImage
    rootfs: Path | None
    blobs: Mapping[str, Path]


class FilesGoneError(ImageError):
    """A prune deleted what the image was going to share; do it again."""


def publish(
    blobs: BlobStore, catalog: ImageCatalog, database: Database, publications: Sequence[Publication]
) -> None:
    """Publish all of the images or none. Raises FilesGoneError, DatabaseError, OSError."""
    placed: list[Path] = []
    try:
        with database.write() as connection:
            for publication in publications:
                _place_files(blobs, publication, placed)
                _check_files(blobs, publication)
                catalog.record(connection, publication.image)
    except BaseException:
        with database.write() as connection:
            _take_back(blobs, catalog, connection, placed)
        raise


def _place_files(blobs: BlobStore, publication: Publication, placed: list[Path]) -> None:
    moves = [(path, blobs.blob(digest)) for digest, path in publication.blobs.items()]
    if publication.rootfs is not None:
        moves.append((publication.rootfs, blobs.rootfs(publication.image.row.digest)))
    for temporary, final in moves:
        if not temporary.exists() and final.exists():
            continue  # two images of one archive share it
        if not final.exists():
            placed.append(final)
        temporary.rename(final)


def _check_files(blobs: BlobStore, publication: Publication) -> None:
    row = publication.image.row
    documents = (blobs.blob(row.digest), blobs.blob(row.config_digest), blobs.rootfs(row.digest))
    for path in (*documents, *(blobs.blob(layer.blob_digest) for layer in row.layers)):
        if not path.exists():
            raise FilesGoneError(f"{path} was deleted while the image was made")


def _take_back(
    blobs: BlobStore, catalog: ImageCatalog, connection: sqlite3.Connection, placed: Sequence[Path]
) -> None:
    """Delete what was placed, unless somebody else has come to need it."""
    needed = {blobs.blob(digest) for digest in catalog.needed_blobs(connection)}
    needed |= {blobs.rootfs(digest) for digest in catalog.manifests(connection)}
    for path in placed:
        if path not in needed:
            path.unlink(missing_ok=True)
