"""Content digests: ``sha256:HEX``, the name under which everything foreign is stored."""

from __future__ import annotations

import hashlib
import re

from microsandbox.errors import ImageError

_HEX = re.compile(r"[0-9a-f]{64}")
_PREFIX = "sha256:"


def digest_of(content: bytes) -> str:
    """The digest of these bytes."""
    return _PREFIX + hashlib.sha256(content).hexdigest()


def is_digest(text: object) -> bool:
    return isinstance(text, str) and text.startswith(_PREFIX) and bool(_HEX.fullmatch(text, len(_PREFIX)))


def hex_of(digest: str) -> str:
    """The 64 hexadecimal digits; safe as a file name. Raises ImageError for anything else."""
    if is_digest(digest):
        return digest[len(_PREFIX) :]
    algorithm, colon, _ = digest[:200].partition(":")
    if colon and algorithm != "sha256":
        raise ImageError(f"unsupported OCI digest algorithm: {algorithm}")
    raise ImageError(f"invalid digest: {digest[:100]!r}")
