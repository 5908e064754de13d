"""``image=`` and ``snapshot=``: where a new sandbox's root file system comes from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from microsandbox.arguments import optional, text, whole
from microsandbox.errors import NotSupportedYetError
from microsandbox.store.home import Home

_DISK_SUFFIXES = (".qcow2", ".raw", ".vmdk")


class OciImage(Struct, frozen=True):
    """An image of a registry, as the caller wrote it, and the size of the writable layer above it."""

    reference: str
    upper_size_mib: int


def root_image(given: Mapping[str, Any], home: Home) -> OciImage:
    """The image of ``create``'s options. Raises TypeError, ValueError, FileNotFoundError."""
    image, snapshot = given.get("image"), given.get("snapshot")
    if image is None and snapshot is None:
        raise ValueError("image= or snapshot= is required")
    if image is None:
        raise _snapshot_error(snapshot, home)
    if snapshot is not None:
        raise ValueError("pass either image= or snapshot=, not both")
    return _image(image, home.config.sandbox_defaults.upper_size_mib)


def _image(source: Any, standard_upper: int) -> OciImage:
    reference = _image_text(source)
    kind = getattr(source, "_type", None)
    fstype = optional(text, getattr(source, "_fstype", None))
    upper = optional(whole, getattr(source, "_upper_size_mib", None))
    if upper is not None and kind != "oci":
        raise ValueError("upper_size_mib is only valid for Image.oci(...)")
    if upper is not None and fstype is not None:
        raise ValueError("fstype and upper_size_mib cannot be set on the same ImageSource")
    if kind == "disk" or fstype is not None:
        raise NotSupportedYetError("disk image root file systems")
    if kind == "bind" or isinstance(source, os.PathLike) or (upper is None and _is_local(reference)):
        is_disk = Path(reference).suffix in _DISK_SUFFIXES
        raise NotSupportedYetError(f"{'disk image' if is_disk else 'bind'} root file systems")
    return OciImage(reference, standard_upper if upper is None else upper)


def _image_text(source: Any) -> str:
    if isinstance(source, str):
        return text(source)
    if callable(convert := getattr(source, "_to_image_str", None)):
        return text(convert())
    if isinstance(source, os.PathLike):
        return os.fsdecode(source)
    raise TypeError("image must be str, os.PathLike, or ImageSource")


def _is_local(reference: str) -> bool:
    return reference in (".", "..") or reference.startswith(("/", "./", "../"))


def _snapshot_error(snapshot: Any, home: Home) -> Exception:
    """What is wrong with the snapshot asked for: at least that there are none yet."""
    if not isinstance(snapshot, (str, os.PathLike)):
        return TypeError("snapshot must be str or os.PathLike")
    name = os.fsdecode(snapshot)
    is_path = "/" in name or name.startswith((".", "~"))
    directory = Path(name) if is_path else home.root / "snapshots" / name
    if not directory.is_dir():
        return FileNotFoundError(f"snapshot artifact not found: {directory}")
    return NotSupportedYetError("snapshots")
