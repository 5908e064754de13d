"""``microsandbox.Image`` and what its methods return."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from microsandbox.image.catalog import ImageRecord
from microsandbox.image.progress import Progress
from microsandbox.image.store import ImageInspection, ImageStore
from microsandbox.store.database import Database
from microsandbox.store.home import Home, base_directory

if TYPE_CHECKING:
    from microsandbox.types import ImageSource


def image_store() -> ImageStore:
    """The image store of ``MSB_HOME``. Raises InvalidConfigError for a bad config.json."""
    return _open(base_directory())


@functools.lru_cache(maxsize=16)
def _open(base: Path) -> ImageStore:
    home = Home.open()
    return ImageStore(home, Database(home.database, home.config.database))


class Image:
    """Images: where a sandbox's root comes from, and what is stored of them."""

    def __init__(self) -> None:
        raise TypeError("No constructor defined for Image")

    # sources, for Sandbox.create(image=)

    @staticmethod
    def oci(reference: str, *, upper_size_mib: int | None = None) -> ImageSource:
        """An OCI image. ``upper_size_mib`` is the size of the sandbox's writable layer in MiB."""
        from microsandbox.types import Image as Sources

        return Sources.oci(reference, upper_size_mib=upper_size_mib)

    @staticmethod
    def bind(path: str | os.PathLike[str]) -> ImageSource:
        """A directory of the host as root, with changes going to the host."""
        from microsandbox.types import Image as Sources

        return Sources.bind(path)

    @staticmethod
    def disk(path: str | os.PathLike[str], *, fstype: str | None = None) -> ImageSource:
        """A disk image (qcow2, raw or vmdk) whose file system is the root."""
        from microsandbox.types import Image as Sources

        return Sources.disk(path, fstype=fstype)

    # getting images

    @staticmethod
    async def pull(
        reference: str,
        *,
        policy: str = "if-missing",
        force: bool = False,
        insecure: bool = False,
        ca_certs: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> ImageHandle:
        """Bring an image into the store; ``progress`` is called with each ``PullEvent``.

        ``policy`` is a ``PullPolicy``, ``force`` downloads again, ``insecure`` is plain HTTP, ``ca_certs`` a
        PEM file to trust as well. Raises ImageError, ImagePullFailedError.
        """
        store = image_store()
        certificates = Path(ca_certs) if ca_certs is not None else None
        await store.pull(
            reference,
            policy=policy,
            force=force,
            insecure=insecure,
            ca_certs=certificates,
            progress=progress,
        )
        return ImageHandle(store, store.get(reference))

    @staticmethod
    async def load(
        path: str | os.PathLike[str] | BinaryIO,
        *,
        tags: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> list[str]:
        """Load the images of an archive: a file, an OCI layout directory or a binary stream.

        ``tags`` are further names of the first image. Returns the references. Raises ImageError, IoError.
        """
        source = Path(path) if isinstance(path, (str, os.PathLike)) else path
        return await image_store().load(source, tags=tags or (), progress=progress)

    # what is stored

    @staticmethod
    async def get(reference: str) -> ImageHandle:
        """The stored image of a reference. Raises ImageNotFoundError."""
        store = image_store()
        return ImageHandle(store, store.get(reference))

    @staticmethod
    async def list() -> list[ImageHandle]:
        """All stored images, newest first."""
        store = image_store()
        return [ImageHandle(store, record) for record in store.list()]

    @staticmethod
    async def inspect(reference: str) -> ImageDetail:
        """Configuration and layers of a stored image. Raises ImageNotFoundError."""
        store = image_store()
        return _detail(store, store.inspect(reference))

    @staticmethod
    async def remove(reference: str, *, force: bool = False) -> None:
        """Remove an image from the store. Raises ImageNotFoundError, ImageInUseError (not with ``force``)."""
        await image_store().remove(reference, force)

    @staticmethod
    async def prune() -> ImagePruneReport:
        """Remove the images that no sandbox uses."""
        report = await image_store().prune()
        return ImagePruneReport(
            image_refs_removed=report.references,
            manifests_removed=report.manifests,
            layers_removed=report.layers,
            fsmeta_removed=report.rootfs,
            vmdk_removed=0,
            bytes_reclaimed=report.bytes_reclaimed,
        )


class ImageHandle:
    """A stored image, as it was when it was looked up. Times are Unix milliseconds."""

    def __init__(self, store: ImageStore, record: ImageRecord) -> None:
        self._store = store
        self._record = record

    @property
    def reference(self) -> str:
        """As it was written when the image came in."""
        return self._record.reference

    @property
    def size_bytes(self) -> int | None:
        """The sum of the layers as they were downloaded."""
        return self._record.size_bytes

    @property
    def manifest_digest(self) -> str:
        return self._record.manifest_digest

    @property
    def architecture(self) -> str | None:
        return self._record.architecture

    @property
    def os(self) -> str | None:
        return self._record.os

    @property
    def layer_count(self) -> int:
        return self._record.layer_count

    @property
    def created_at(self) -> float | None:
        """When the reference came to stand for this image."""
        return _milliseconds(self._record.created_at)

    @property
    def last_used_at(self) -> float | None:
        """When the image was last pulled, loaded or used for a sandbox."""
        return _milliseconds(self._record.last_used_at)

    async def inspect(self) -> ImageDetail:
        """Configuration and layers. Raises ImageNotFoundError when it has been removed."""
        return _detail(self._store, self._store.inspect(self.reference))

    async def remove(self, *, force: bool = False) -> None:
        """Remove it. Raises ImageNotFoundError, ImageInUseError (not with ``force``)."""
        await self._store.remove(self.reference, force)

    def __repr__(self) -> str:
        return f"ImageHandle(reference={self.reference!r}, manifest_digest={self.manifest_digest!r})"


@dataclass(frozen=True)
class ImageConfigDetail:
    """What an image says about running it. ``env`` has ``KEY=VALUE`` texts."""

    digest: str
    env: list[str]
    cmd: list[str] | None
    entrypoint: list[str] | None
    working_dir: str | None
    user: str | None
    labels: dict[str, Any] | None
    stop_signal: str | None


@dataclass(frozen=True)
class ImageLayerDetail:
    """One layer. ``erofs_size_bytes`` is None: layers are not stored one by one."""

    diff_id: str
    blob_digest: str
    media_type: str | None
    compressed_size_bytes: int | None
    erofs_size_bytes: int | None
    position: int


@dataclass(frozen=True)
class ImageDetail:
    """An image with its configuration and its layers, bottom to top."""

    handle: ImageHandle
    config: ImageConfigDetail | None
    layers: list[ImageLayerDetail]


@dataclass(frozen=True)
class ImagePruneReport:
    """What a prune removed. ``fsmeta_removed`` counts block images; ``vmdk_removed`` is always 0 here."""

    image_refs_removed: int
    manifests_removed: int
    layers_removed: int
    fsmeta_removed: int
    vmdk_removed: int
    bytes_reclaimed: int | None


def _detail(store: ImageStore, found: ImageInspection) -> ImageDetail:
    config = found.config
    return ImageDetail(
        handle=ImageHandle(store, found.record),
        config=ImageConfigDetail(
            digest=found.config_digest,
            env=list(config.env),
            cmd=list(config.cmd) if config.cmd else None,
            entrypoint=list(config.entrypoint) if config.entrypoint else None,
            working_dir=config.working_dir,
            user=config.user,
            labels=dict(config.labels) or None,
            stop_signal=config.stop_signal,
        ),
        layers=[
            ImageLayerDetail(
                diff_id=layer.diff_id,
                blob_digest=layer.blob_digest,
                media_type=layer.media_type,
                compressed_size_bytes=layer.compressed_size,
                erofs_size_bytes=None,
                position=position,
            )
            for position, layer in enumerate(found.layers)
        ],
    )


def _milliseconds(seconds: float) -> float:
    return float(int(seconds * 1000))
