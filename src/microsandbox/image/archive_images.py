"""The images of an archive, in either of its two forms: ``docker save`` and OCI layout.

An archive that is both (docker since 25) is taken as the former: only there are whole names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from msgspec import Struct

from microsandbox.errors import ImageError
from microsandbox.image.archive import NOT_AN_IMAGE, Archive, Part
from microsandbox.image.digests import digest_of, hex_of, is_digest
from microsandbox.image.documents import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    parse_config,
    parse_json,
    parse_manifest,
    select,
)
from microsandbox.image.limits import Limits
from microsandbox.image.reference import Reference, split_reference

_NAME = "org.opencontainers.image.ref.name"
#: Written by containerd and buildx beside the standard one, which then has the tag only.
_FULL_NAME = "io.containerd.image.name"
_UNTAGGED = "<none>:<none>"
#: Indexes within indexes.
_MAX_NESTING = 3
_MAX_IMAGES = 1000
_BLOBS = "blobs/sha256/"


class LayerPart(Struct, frozen=True):
    """A layer in the archive. ``digest`` is what it must hash to, where the archive says."""

    part: Part
    digest: str | None
    media_type: str
    mismatch: str


class ArchiveImage(Struct, frozen=True):
    """One image of an archive. ``manifest`` is None where it has to be written from the layers' digests."""

    names: tuple[str, ...]
    manifest: bytes | None
    media_type: str
    config: ImageConfig
    layers: tuple[LayerPart, ...]
    kind: str

    @property
    def config_digest(self) -> str:
        return digest_of(self.config.document)

    def manifest_for(self, digests: Sequence[str]) -> bytes:
        """The manifest, given the digests of the layers; the same image gives the same one."""
        if self.manifest is not None:
            return self.manifest
        document = self.config.document
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": DOCKER_MANIFEST,
                "config": {
                    "mediaType": DOCKER_CONFIG,
                    "size": len(document),
                    "digest": self.config_digest,
                },
                "layers": [
                    {"mediaType": layer.media_type, "size": layer.part.size, "digest": digest}
                    for layer, digest in zip(self.layers, digests, strict=True)
                ],
            },
            separators=(",", ":"),
        ).encode()


def read_images(archive: Archive, limits: Limits) -> list[ArchiveImage]:
    """The images that this machine can run. Raises ImageError."""
    listing = archive.find("manifest.json")
    if listing is not None:
        images = _docker_images(archive, parse_json(listing.read(), "manifest.json"), limits)
    elif archive.find("oci-layout") is not None:
        images = _layout_images(archive, limits)
    else:
        raise ImageError(NOT_AN_IMAGE)
    return images


def name_images(images: Sequence[ArchiveImage], tags: Sequence[str]) -> list[tuple[Reference, ...]]:
    """Each image's references: its own names, and ``tags`` for the first. Raises ImageError."""
    named = []
    for number, image in enumerate(images):
        texts = dict.fromkeys((*image.names, *(tags if number == 0 else ())))
        if not texts:
            raise ImageError(f"{image.kind} image has no tags; pass --tag to name it")
        named.append(tuple(_reference(text) for text in texts))
    return named


def _reference(text: str) -> Reference:
    try:
        return split_reference(text)
    except ValueError as error:
        raise ImageError(f"invalid image reference {text[:200]}: {error}") from None


# docker save


def _docker_images(archive: Archive, listing: object, limits: Limits) -> list[ArchiveImage]:
    if not isinstance(listing, list):
        raise ImageError("docker archive manifest is not a list of images")
    if not listing:
        raise ImageError("docker archive manifest is empty")
    if len(listing) > _MAX_IMAGES:
        raise ImageError(f"docker archive has {len(listing)} images; max is {_MAX_IMAGES}")
    return [_docker_image(archive, entry, limits) for entry in listing]


def _docker_image(archive: Archive, entry: object, limits: Limits) -> ArchiveImage:
    if not isinstance(entry, dict) or not isinstance(entry.get("Config"), str):
        raise ImageError("docker archive manifest has an image without Config")
    paths, tags = entry.get("Layers") or [], entry.get("RepoTags") or []
    if not _are_texts(paths) or not _are_texts(tags):
        raise ImageError("docker archive manifest: Layers and RepoTags must be lists of texts")
    path = entry["Config"]
    part = archive.find(path)
    if part is None:
        raise ImageError(f"docker archive missing config {path}")
    document = part.read()
    stated = _stated_digest(path)
    if stated is not None and digest_of(document) != stated:
        raise ImageError(f"OCI blob digest mismatch: expected {stated}, got {digest_of(document)}")
    config = parse_config(document, f"config {path}")
    _check_counts(config, len(paths), limits)
    _check_platform(config)
    layers = []
    for path in paths:
        part = archive.find(path)
        if part is None:
            raise ImageError(f"docker archive missing layer {path}")
        _check_layer_size(part, limits)
        layers.append(LayerPart(part, _stated_digest(path), DOCKER_LAYER, "OCI blob digest mismatch"))
    names = tuple(tag for tag in tags if tag != _UNTAGGED)
    return ArchiveImage(names, None, DOCKER_MANIFEST, config, tuple(layers), "docker archive")


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _stated_digest(path: str) -> str | None:
    """What a path below ``blobs/sha256`` promises."""
    normal = path.removeprefix("./")
    if not normal.startswith(_BLOBS):
        return None
    digest = f"sha256:{normal.removeprefix(_BLOBS)}"
    return digest if is_digest(digest) else None


# OCI layout


def _layout_images(archive: Archive, limits: Limits) -> list[ArchiveImage]:
    part = archive.find("index.json")
    if part is None:
        raise ImageError("OCI layout missing index.json")
    index = parse_manifest(part.read(), None, "index.json")
    if not isinstance(index, Index):
        raise ImageError("OCI layout: index.json is not an index")
    if len(index.manifests) > _MAX_IMAGES:
        raise ImageError(f"OCI layout has {len(index.manifests)} images; max is {_MAX_IMAGES}")
    host = Platform.host()
    found: dict[str, ArchiveImage] = {}
    others: list[str] = []
    for entry in index.manifests:
        if entry.is_attestation:
            continue
        image = _layout_image(archive, entry, host, others, limits, _MAX_NESTING)
        if image is None:
            continue
        known = found.get(entry.digest)
        names = (*(known.names if known else ()), *_names(entry))
        found[entry.digest] = ArchiveImage(
            names, image.manifest, image.media_type, image.config, image.layers, image.kind
        )
    if not found:
        present = ", ".join(dict.fromkeys(others)) or "none"
        raise ImageError(f"archive has no image for platform {host}; platforms present: {present}")
    return list(found.values())


def _names(entry: Descriptor) -> tuple[str, ...]:
    name = entry.annotations.get(_FULL_NAME) or entry.annotations.get(_NAME)
    return (name,) if name else ()


def _layout_image(
    archive: Archive, entry: Descriptor, host: Platform, others: list[str], limits: Limits, nesting: int
) -> ArchiveImage | None:
    """The image that an entry of an index leads to; None when it is for other platforms."""
    if entry.platform is not None and not entry.platform.runs(host):
        others.append(str(entry.platform))
        return None
    if not nesting:
        raise ImageError(f"OCI layout has indexes nested more than {_MAX_NESTING} deep")
    content = _blob(archive, entry, "manifest")
    document = parse_manifest(content, entry.media_type, f"manifest {entry.digest}")
    if isinstance(document, Index):
        candidates = [item for item in document.manifests if not item.is_attestation]
        unstated = [item for item in candidates if item.platform is None]
        chosen = select(candidates, host)
        for item in [chosen] if chosen else unstated:
            image = _layout_image(archive, item, host, others, limits, nesting - 1)
            if image is not None:
                return image
        others += [str(item.platform) for item in candidates if item.platform is not None]
        return None
    config = parse_config(_blob(archive, document.config, "config"), f"config {document.config.digest}")
    if entry.platform is None and not _runs(config, host):
        others.append(f"{config.os}/{config.architecture}")
        return None
    return _manifest_image(archive, content, document, config, limits)


def _manifest_image(
    archive: Archive, content: bytes, manifest: Manifest, config: ImageConfig, limits: Limits
) -> ArchiveImage:
    _check_counts(config, len(manifest.layers), limits)
    layers = []
    for layer in manifest.layers:
        part = _find_blob(archive, layer, "layer")
        _check_layer_size(part, limits)
        layers.append(LayerPart(part, layer.digest, layer.media_type, "OCI layer digest mismatch"))
    return ArchiveImage((), content, manifest.media_type, config, tuple(layers), "OCI layout")


def _find_blob(archive: Archive, descriptor: Descriptor, what: str) -> Part:
    path = _BLOBS + hex_of(descriptor.digest)
    part = archive.find(path)
    if part is None:
        raise ImageError(f"OCI layout missing {what} blob {path}")
    if part.size != descriptor.size:
        raise ImageError(
            f"OCI blob {descriptor.digest} size mismatch: expected {descriptor.size} bytes, "
            f"archive has {part.size}"
        )
    return part


def _blob(archive: Archive, descriptor: Descriptor, what: str) -> bytes:
    content = _find_blob(archive, descriptor, what).read()
    if digest_of(content) != descriptor.digest:
        raise ImageError(f"OCI blob digest mismatch: expected {descriptor.digest}, got {digest_of(content)}")
    return content


# both


def _check_counts(config: ImageConfig, layers: int, limits: Limits) -> None:
    if len(config.diff_ids) != layers:
        raise ImageError(
            f"layer count mismatch: config has {len(config.diff_ids)} diff_ids but archive manifest has "
            f"{layers} layers"
        )
    if layers > limits.layers:
        raise ImageError(f"image has {layers} layers; max is {limits.layers}")


def _check_layer_size(part: Part, limits: Limits) -> None:
    if part.size > limits.blob_bytes:
        raise ImageError(f"archive layer {part.name} is {part.size} bytes; max is {limits.blob_bytes}")


def _runs(config: ImageConfig, host: Platform) -> bool:
    """An image that does not say where it runs is taken to run here."""
    return config.os in (None, host.os) and config.architecture in (None, host.architecture)


def _check_platform(config: ImageConfig) -> None:
    host = Platform.host()
    if not _runs(config, host):
        raise ImageError(
            f"archive has no image for platform {host}; platforms present: {config.os}/{config.architecture}"
        )
