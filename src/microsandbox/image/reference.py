"""Image references: ``[HOST[:PORT]/]PATH[:TAG][@DIGEST]``, written in many ways, compared in one.

``alpine``, ``alpine:latest`` and ``docker.io/library/alpine`` are one image: lookups compare
``normalized``, people see ``text``.
"""

from __future__ import annotations

import re

from msgspec import Struct

from microsandbox.errors import ImageError

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
#: Bytes of registry and path together, as everywhere else.
_MAX_NAME = 255

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
#: Other names of Docker Hub.
_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


class Reference(Struct, frozen=True):
    """A parsed reference. With both tag and digest the digest decides, and ``tag`` is None."""

    text: str
    registry: str
    repository: str
    tag: str | None
    digest: str | None

    @property
    def normalized(self) -> str:
        """The spelling that lookups compare."""
        name = f"{self.registry}/{self.repository}"
        return f"{name}@{self.digest}" if self.digest else f"{name}:{self.tag}"

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def __str__(self) -> str:
        return self.text


def parse_reference(text: str) -> Reference:
    """Parse a reference as a user writes it. Raises ImageError ``invalid image reference: …``."""
    try:
        return split_reference(text)
    except ValueError as error:
        raise ImageError(f"invalid image reference: {error}") from None


def split_reference(text: str) -> Reference:
    """As parse_reference(), but raises ValueError with the bare reason."""
    if not text:
        raise ValueError("it is empty")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError(f"{_shown(text)}: the digest must be sha256: and 64 lower-case hexadecimal digits")
    registry, path = _split_registry(rest)
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise ValueError(
            f"{_shown(text)}: the tag must be 1 to 128 letters, digits, '_', '.' or '-', "
            "not starting with '.' or '-'"
        )
    if not _HOST.fullmatch(registry):
        raise ValueError(f"{_shown(text)}: {_shown(registry)} is not a registry host")
    if registry in _HUB:
        registry = DEFAULT_REGISTRY
        if path and "/" not in path:
            path = f"library/{path}"
    for component in path.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise ValueError(
                f"{_shown(text)}: {_shown(component)} is not a repository name (lower-case letters and "
                "digits, separated by '.', '_', '__', '-' or '/')"
            )
    if len(registry) + 1 + len(path) > _MAX_NAME:
        raise ValueError(f"{_shown(text)}: the name has more than {_MAX_NAME} characters")
    if digest:
        return Reference(text, registry, path, None, digest)
    return Reference(text, registry, path, tag or DEFAULT_TAG, None)


def registry_host(name: str) -> str | None:
    """The name of a registry as references have it: in lower case, one for Docker Hub. None for no host."""
    if len(name) > _MAX_NAME or not _HOST.fullmatch(name):
        return None
    return DEFAULT_REGISTRY if name.lower() in _HUB else name.lower()


def _split_registry(name: str) -> tuple[str, str]:
    """The first component is a host when it has a dot or a colon or is ``localhost``."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first.lower(), rest
    return DEFAULT_REGISTRY, name


def _shown(text: str) -> str:
    shown = text[:100].encode("unicode_escape").decode()
    return f"'{shown}{'…' if len(text) > 100 else ''}'"
