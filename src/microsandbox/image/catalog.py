"""Rows of images: references, manifests, configs, layers.

The catalogue's write transaction is also the lock between those who add images and those who delete their
files: files appear under their final name, and disappear, inside one. So a row that was committed had its
files, and a file is only deleted when no row needs it.
"""

from __future__ import annotations

import sqlite3
import time

from msgspec import Struct

from microsandbox.errors import ImageInUseError, ImageNotFoundError
from microsandbox.image.documents import ImageConfig, parse_config
from microsandbox.image.reference import Reference
from microsandbox.store.database import Database


class StoredLayer(Struct, frozen=True):
    """A layer of a stored image. ``compressed_size`` is in bytes, as the registry or archive had it."""

    diff_id: str
    blob_digest: str
    media_type: str | None
    compressed_size: int | None


class ImageRecord(Struct, frozen=True):
    """One reference in the catalogue. Times are Unix seconds; ``size_bytes`` sums the compressed layers."""

    reference: str
    manifest_digest: str
    size_bytes: int | None
    architecture: str | None
    os: str | None
    layer_count: int
    created_at: float
    last_used_at: float


class ManifestRow(Struct, frozen=True):
    """A stored manifest with its config and its layers, bottom first."""

    digest: str
    media_type: str
    rootfs_bytes: int
    config_digest: str
    config: ImageConfig
    layers: tuple[StoredLayer, ...]


class NewImage(Struct, frozen=True):
    """What is recorded of an image whose files are in place."""

    row: ManifestRow
    references: tuple[Reference, ...]


class Unused(Struct, frozen=True):
    """What a deletion left without use: digests of manifests and of layer, config and manifest blobs."""

    manifests: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()


_RECORD = """
    SELECT r.display, m.digest, m.total_size_bytes, m.architecture, m.os, m.layer_count,
           r.created_at, r.last_used_at
    FROM image_ref r JOIN manifest m ON m.id = r.manifest_id
"""


class ImageCatalog:
    """The images of one home."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # reading

    def get(self, reference: Reference) -> ImageRecord:
        """Raises ImageNotFoundError."""
        with self._database.read() as connection:
            row = connection.execute(f"{_RECORD} WHERE r.reference = ?", (reference.normalized,)).fetchone()
        if row is None:
            raise ImageNotFoundError(reference.text)
        return _image_record(row)

    def list(self) -> list[ImageRecord]:
        """All references, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(f"{_RECORD} ORDER BY r.created_at DESC, r.id DESC").fetchall()
        return [_image_record(row) for row in rows]

    def manifest_of(self, reference: Reference) -> ManifestRow | None:
        """The manifest that the reference stands for, as far as the catalogue knows."""
        with self._database.read() as connection:
            found = connection.execute(
                "SELECT m.digest FROM image_ref r JOIN manifest m ON m.id = r.manifest_id "
                "WHERE r.reference = ?",
                (reference.normalized,),
            ).fetchone()
        if found is not None:
            return self.manifest(found["digest"])
        return self.manifest(reference.digest) if reference.digest else None

    def manifest(self, digest: str) -> ManifestRow | None:
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT m.id, m.digest, m.media_type, m.rootfs_bytes, c.digest AS config_digest, c.document "
                "FROM manifest m JOIN config c ON c.manifest_id = m.id WHERE m.digest = ?",
                (digest,),
            ).fetchone()
            if row is None:
                return None
            layers = connection.execute(
                "SELECT l.diff_id, l.blob_digest, l.media_type, l.compressed_size "
                "FROM manifest_layer e JOIN layer l ON l.id = e.layer_id "
                "WHERE e.manifest_id = ? ORDER BY e.position",
                (row["id"],),
            ).fetchall()
        return ManifestRow(
            digest=row["digest"],
            media_type=row["media_type"],
            rootfs_bytes=row["rootfs_bytes"],
            config_digest=row["config_digest"],
            config=parse_config(row["document"].encode(), f"config {row['config_digest']}"),
            layers=tuple(StoredLayer(*layer) for layer in layers),
        )

    def layer(self, diff_id: str) -> StoredLayer | None:
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT diff_id, blob_digest, media_type, compressed_size FROM layer WHERE diff_id = ?",
                (diff_id,),
            ).fetchone()
        return StoredLayer(*row) if row else None

    # changing

    def record(self, connection: sqlite3.Connection, image: NewImage) -> None:
        """Insert or refresh an image and point its references at it; inside the caller's transaction."""
        now = time.time()
        manifest_id = _insert_manifest(connection, image.row, now)
        for reference in image.references:
            point_reference(connection, reference, manifest_id, now)

    def use(self, reference: Reference, manifest_digest: str) -> None:
        """Note that an image was asked for; a reference by digest to a manifest that is there is new."""
        now = time.time()
        with self._database.write() as connection:
            row = connection.execute(
                "SELECT id FROM manifest WHERE digest = ?", (manifest_digest,)
            ).fetchone()
            if row is None:
                raise ImageNotFoundError(reference.text)
            point_reference(connection, reference, row["id"], now)
            connection.execute(
                "UPDATE layer SET last_used_at = ? WHERE id IN "
                "(SELECT layer_id FROM manifest_layer WHERE manifest_id = ?)",
                (now, row["id"]),
            )

    def remove_reference(self, connection: sqlite3.Connection, reference: Reference, force: bool) -> Unused:
        """Delete a reference, and its manifest when nothing else needs it; what that leaves unused.

        Raises ImageNotFoundError, ImageInUseError (not with ``force``).
        """
        row = connection.execute(
            "SELECT id, manifest_id FROM image_ref WHERE reference = ?", (reference.normalized,)
        ).fetchone()
        if row is None:
            raise ImageNotFoundError(reference.text)
        users = connection.execute(
            "SELECT s.name FROM sandbox_rootfs e JOIN sandbox s ON s.id = e.sandbox_id "
            "WHERE e.manifest_id = ? ORDER BY s.name",
            (row["manifest_id"],),
        ).fetchall()
        if users and not force:
            raise ImageInUseError([user["name"] for user in users])
        connection.execute("DELETE FROM image_ref WHERE id = ?", (row["id"],))
        return _remove_manifests(connection, "id = ?", (row["manifest_id"],))

    def remove_unused(self, connection: sqlite3.Connection) -> tuple[int, Unused]:
        """Delete all that no sandbox uses; how many references that were, and what is unused now."""
        removed = connection.execute(
            "DELETE FROM image_ref WHERE manifest_id NOT IN (SELECT manifest_id FROM sandbox_rootfs)"
        ).rowcount
        return removed, _remove_manifests(connection, "1", ())

    def needed_blobs(self, connection: sqlite3.Connection) -> set[str]:
        """Digests of every blob that a row stands for."""
        rows = connection.execute(
            "SELECT digest FROM manifest UNION SELECT digest FROM config UNION SELECT blob_digest FROM layer"
        )
        return {row[0] for row in rows}

    def manifests(self, connection: sqlite3.Connection) -> set[str]:
        return {row[0] for row in connection.execute("SELECT digest FROM manifest")}


def _image_record(row: sqlite3.Row) -> ImageRecord:
    return ImageRecord(
        reference=row["display"],
        manifest_digest=row["digest"],
        size_bytes=row["total_size_bytes"],
        architecture=row["architecture"],
        os=row["os"],
        layer_count=row["layer_count"],
        created_at=row["created_at"],
        last_used_at=row["last_used_at"],
    )


def _insert_manifest(connection: sqlite3.Connection, row: ManifestRow, now: float) -> int:
    sizes = [layer.compressed_size or 0 for layer in row.layers]
    connection.execute(
        "INSERT INTO manifest (digest, media_type, architecture, os, variant, layer_count, "
        "total_size_bytes, rootfs_bytes, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (digest) DO UPDATE SET rootfs_bytes = excluded.rootfs_bytes",
        (
            row.digest, row.media_type, row.config.architecture, row.config.os, row.config.variant,
            len(row.layers), sum(sizes), row.rootfs_bytes, now,
        ),
    )  # fmt: skip
    manifest_id: int = connection.execute(
        "SELECT id FROM manifest WHERE digest = ?", (row.digest,)
    ).fetchone()[0]
    connection.execute(
        "INSERT INTO config VALUES (?, ?, ?) ON CONFLICT (manifest_id) DO NOTHING",
        (manifest_id, row.config_digest, row.config.document.decode()),
    )
    for position, layer in enumerate(row.layers):
        connection.execute(
            "INSERT INTO layer (diff_id, blob_digest, media_type, compressed_size, last_used_at) "
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT (diff_id) DO UPDATE SET blob_digest = excluded.blob_digest, "
            "media_type = excluded.media_type, compressed_size = excluded.compressed_size, "
            "last_used_at = excluded.last_used_at",
            (layer.diff_id, layer.blob_digest, layer.media_type, layer.compressed_size, now),
        )
        connection.execute(
            "INSERT INTO manifest_layer SELECT ?, ?, id FROM layer WHERE diff_id = ? "
            "ON CONFLICT (manifest_id, position) DO NOTHING",
            (manifest_id, position, layer.diff_id),
        )
    return manifest_id


def point_reference(
    connection: sqlite3.Connection, reference: Reference, manifest_id: int, now: float
) -> None:
    """Make the reference stand for the manifest; the text that was written first stays."""
    connection.execute(
        "INSERT INTO image_ref (reference, display, manifest_id, created_at, last_used_at) "
        "VALUES (?, ?, ?, ?, ?) ON CONFLICT (reference) DO UPDATE SET last_used_at = excluded.last_used_at, "
        "created_at = iif(manifest_id = excluded.manifest_id, created_at, excluded.created_at), "
        "manifest_id = excluded.manifest_id",
        (reference.normalized, reference.text, manifest_id, now, now),
    )


def _remove_manifests(connection: sqlite3.Connection, where: str, parameters: tuple[object, ...]) -> Unused:
    """Delete the manifests of the condition that neither a reference nor a sandbox needs."""
    rows = connection.execute(
        "SELECT id, digest FROM manifest WHERE id NOT IN (SELECT manifest_id FROM sandbox_rootfs) "  # noqa: S608
        f"AND id NOT IN (SELECT manifest_id FROM image_ref) AND {where}",
        parameters,
    ).fetchall()
    configs = []
    for row in rows:
        config = connection.execute("SELECT digest FROM config WHERE manifest_id = ?", (row["id"],))
        configs += [found[0] for found in config]
        connection.execute("DELETE FROM manifest WHERE id = ?", (row["id"],))
    layers = connection.execute(
        "SELECT id, blob_digest FROM layer WHERE id NOT IN (SELECT layer_id FROM manifest_layer)"
    ).fetchall()
    for layer in layers:
        connection.execute("DELETE FROM layer WHERE id = ?", (layer["id"],))
    manifests = tuple(row["digest"] for row in rows)
    return Unused(manifests, tuple(layer["blob_digest"] for layer in layers), (*manifests, *configs))
