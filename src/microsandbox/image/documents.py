"""The JSON documents of an image, read strictly: manifests, indexes and configs.

They come from a registry or an archive, so every field is checked before it is used. Their bytes are kept
as served: the digest is that of the bytes, never of what we would have written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct, field

from microsandbox.errors import ImageError
from microsandbox.image.digests import hex_of, is_digest
from microsandbox.vmm.architecture import host_architecture

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"
_ATTESTATION = "vnd.docker.reference.type"


class Platform(Struct, frozen=True):
    """What an image runs on, in the words of Go: ``linux``, ``amd64`` or ``arm64``."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def host(cls) -> Platform:
        """The platform of this machine's guests."""
        architecture = host_architecture().oci
        return cls("linux", architecture, "v8" if architecture == "arm64" else None)

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}"

    def runs(self, other: Platform) -> bool:
        return (self.os, self.architecture) == (other.os, other.architecture)


class Descriptor(Struct, frozen=True):
    """A pointer to content: its digest and size in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_attestation(self) -> bool:
        return _ATTESTATION in self.annotations or (
            self.platform is not None and self.platform.os == "unknown"
        )


class Manifest(Struct, frozen=True):
    """One image for one platform: its config and its layers, bottom first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


class Index(Struct, frozen=True):
    """Several images, one for each platform."""

    manifests: tuple[Descriptor, ...]


class ImageConfig(Struct, frozen=True):
    """What an image says about running it. Texts that it leaves empty are None.

    ``env`` has ``KEY=VALUE`` texts; ``document`` is the JSON as served.
    """

    document: bytes
    diff_ids: tuple[str, ...]
    architecture: str | None = None
    os: str | None = None
    variant: str | None = None
    env: tuple[str, ...] = ()
    cmd: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    working_dir: str | None = None
    user: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str | None = None
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()


def parse_json(content: bytes, what: str) -> Any:
    """The JSON value. Raises ImageError naming ``what``."""
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not valid JSON: {error}") from None


def parse_manifest(content: bytes, media_type: str | None, what: str) -> Manifest | Index:
    """A manifest or an index, told apart by content. Raises ImageError naming ``what``."""
    document = _Object(parse_json(content, what), what)
    stated = document.text("mediaType") or media_type or ""
    if stated.startswith(_SCHEMA_1) or document.values.get("schemaVersion") == 1:
        raise ImageError(
            f"{what} is a Docker image manifest schema 1, which is not supported; "
            "push the image again with a current tool"
        )
    has_index, has_image = "manifests" in document.values, "layers" in document.values
    if has_index == has_image:
        raise ImageError(f"{what} is neither an image manifest nor an index")
    if has_index:
        return Index(tuple(_descriptor(item, what) for item in document.items("manifests")))
    layers = tuple(_descriptor(item, what) for item in document.items("layers"))
    return Manifest(stated or OCI_MANIFEST, _descriptor(document.values.get("config"), what), layers)


def _descriptor(value: object, what: str) -> Descriptor:
    item = _Object(value, f"a descriptor of {what}")
    digest, size = item.text("digest") or "", item.values.get("size")
    hex_of(digest)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ImageError(f"{item.what}: size must be a number of bytes, got {_shown(size)}")
    stated = item.values.get("platform")
    found = None
    if stated is not None:
        fields = _Object(stated, f"a platform of {what}")
        found = Platform(
            fields.text("os") or "", fields.text("architecture") or "", fields.text("variant") or None
        )
    return Descriptor(item.text("mediaType") or "", digest, size, found, item.texts("annotations") or {})


def select(descriptors: Iterable[Descriptor], wanted: Platform) -> Descriptor | None:
    """The entry for the platform: an exact variant beats none stated, which beats any other."""
    best: tuple[int, Descriptor] | None = None
    for entry in descriptors:
        if entry.platform is None or entry.is_attestation or not entry.platform.runs(wanted):
            continue
        preferred = (wanted.variant, None)
        variant = entry.platform.variant
        rank = preferred.index(variant) if variant in preferred else len(preferred)
        if best is None or rank < best[0]:
            best = rank, entry
    return best[1] if best else None


def parse_config(content: bytes, what: str) -> ImageConfig:
    """An image config. Raises ImageError naming ``what``."""
    document = _Object(parse_json(content, what), what)
    rootfs = _Object(document.values.get("rootfs") or {}, f"rootfs of {what}")
    diff_ids = []
    for number, diff_id in enumerate(rootfs.items("diff_ids")):
        if not is_digest(diff_id):
            raise ImageError(f"invalid diff_id at layer {number}: {_shown(diff_id)}")
        diff_ids.append(diff_id)
    run = _Object(document.values.get("config") or {}, f"config of {what}")
    return ImageConfig(
        document=content,
        diff_ids=tuple(diff_ids),
        architecture=document.text("architecture") or None,
        os=document.text("os") or None,
        variant=document.text("variant") or None,
        env=run.words("Env") or (),
        cmd=run.words("Cmd"),
        entrypoint=run.words("Entrypoint"),
        working_dir=run.text("WorkingDir") or None,
        user=run.text("User") or None,
        labels=run.texts("Labels") or {},
        stop_signal=run.text("StopSignal") or None,
        exposed_ports=run.keys("ExposedPorts"),
        volumes=run.keys("Volumes"),
    )


class _Object:
    """A JSON object with typed access; null counts as absent."""

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, dict):
            raise ImageError(f"{what} must be a JSON object, got {_shown(value)}")
        self.values: dict[str, Any] = value
        self.what = what

    def _take(self, key: str, kind: type, expected: str) -> Any:
        value = self.values.get(key)
        if value is not None and not isinstance(value, kind):
            raise ImageError(f"{self.what}: {key} must be {expected}, got {_shown(value)}")
        return value

    def text(self, key: str) -> str | None:
        text: str | None = self._take(key, str, "a text")
        self._check_texts(key, () if text is None else (text,))
        return text

    def _check_texts(self, key: str, texts: Iterable[str]) -> None:
        """Texts become arguments, variables and database values: no NUL, nothing that is not Unicode."""
        for text in texts:
            if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
                raise ImageError(f"{self.what}: {key} has characters that no text may have: {_shown(text)}")

    def items(self, key: str) -> list[Any]:
        return self._take(key, list, "a list") or []

    def words(self, key: str) -> tuple[str, ...] | None:
        """A list of texts; an empty one counts as absent."""
        found = self.items(key)
        if not all(isinstance(item, str) for item in found):
            raise ImageError(f"{self.what}: {key} must be a list of texts, got {_shown(found)}")
        self._check_texts(key, found)
        return tuple(found) or None

    def texts(self, key: str) -> dict[str, str] | None:
        found = self._take(key, dict, "an object")
        if found and not all(isinstance(item, str) for item in found.values()):
            raise ImageError(f"{self.what}: {key} must have texts as values, got {_shown(found)}")
        self._check_texts(key, (*found, *found.values()) if found else ())
        return found or None

    def keys(self, key: str) -> tuple[str, ...]:
        return tuple(self._take(key, dict, "an object") or ())


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
