"""``volumes=``: what is mounted into the guest. This release mounts tmpfs only."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from microsandbox.arguments import check_keys, dict_like, flag, optional, text, whole
from microsandbox.errors import InvalidConfigError, NotSupportedYetError

#: Upper bound of the tmpfs that a guest gets on /tmp, in MiB; the other bound is a quarter of its memory.
MAX_IMPLICIT_TMP_MIB = 512
#: The agent's bound.
MAX_MOUNTS = 64

_FLAGS = ("readonly", "noexec", "nosuid", "nodev")
_KEYS = frozenset(
    {"bind", "named", "tmpfs", "disk", "named_mode", "named_kind", "size_mib", "quota_mib", "format"}
    | {"fstype", "stat_virtualization", "host_permissions", "kind", *_FLAGS}
)


class TmpfsMount(Struct, frozen=True):
    """A file system in the guest's memory; without ``size_mib`` it may take half of it."""

    guest: str
    size_mib: int | None = None
    readonly: bool = False
    noexec: bool = False
    nosuid: bool = False
    nodev: bool = False

    @property
    def depth(self) -> int:
        """Of the guest path. What is mounted after a deeper place would hide it."""
        return posixpath.normpath(self.guest).count("/")

    @property
    def options(self) -> list[str]:
        """As mount(8) spells them."""
        names = {"readonly": "ro", "noexec": "noexec", "nosuid": "nosuid", "nodev": "nodev"}
        return [name for field, name in names.items() if getattr(self, field)]


def parse_volumes(value: object) -> tuple[TmpfsMount, ...]:
    """Guest path to mount. Raises TypeError, ValueError, NotSupportedYetError."""
    if not isinstance(value, Mapping):
        raise TypeError(f"'{type(value).__name__}' object cannot be converted to 'PyDict'")
    return tuple(_parse_mount(text(guest), dict_like(mount)) for guest, mount in value.items())


def with_implicit_tmp(mounts: tuple[TmpfsMount, ...], memory_mib: int) -> tuple[TmpfsMount, ...]:
    """The mounts, and a tmpfs on /tmp unless one of them is there."""
    if any(mount.guest.rstrip("/") == "/tmp" for mount in mounts):  # noqa: S108 - the guest's
        return mounts
    return (*mounts, TmpfsMount("/tmp", implicit_tmp_mib(memory_mib)))  # noqa: S108


def implicit_tmp_mib(memory_mib: int) -> int:
    """Size of the tmpfs on /tmp of a guest with that much memory."""
    return min(max(memory_mib // 4, 1), MAX_IMPLICIT_TMP_MIB)


def validate_mounts(mounts: tuple[TmpfsMount, ...]) -> None:
    """Raises InvalidConfigError for guest paths that cannot be mounted on."""
    if len(mounts) > MAX_MOUNTS:
        raise InvalidConfigError(f"{len(mounts)} mounts are too many (max {MAX_MOUNTS})")
    seen = set()
    for mount in mounts:
        guest = mount.guest
        if not guest.startswith("/"):
            raise InvalidConfigError(f"guest mount path must be absolute: {guest}")
        place = posixpath.normpath(guest).lstrip("/")
        if not place:
            raise InvalidConfigError("cannot mount a volume at guest root /")
        if ".." in guest.split("/"):
            raise InvalidConfigError(f"guest mount path must not contain '..': {guest}")
        if any(character in guest for character in ":;,"):
            raise InvalidConfigError(f"guest mount path must not contain ':', ';', or ',': {guest}")
        if "\0" in guest:
            raise InvalidConfigError(f"guest mount path must not contain a NUL byte: {guest!r}")
        if place in seen:
            raise InvalidConfigError(f"multiple volumes cannot mount the same guest path: {guest}")
        seen.add(place)


def _parse_mount(guest: str, values: Mapping[Any, Any]) -> TmpfsMount:
    check_keys(values, _KEYS, "mount key")
    flags = {name: flag(values[name]) for name in _FLAGS if values.get(name) is not None}
    source = next((key for key in ("bind", "named", "tmpfs", "disk") if _is_given(values, key)), None)
    if source is None:
        raise ValueError("mount must have one of: bind, named, tmpfs, disk")
    if source == "tmpfs":
        return TmpfsMount(guest, optional(whole, values.get("size_mib")), **flags)
    text(values[source])
    _check_source(source, values)
    feature = {"bind": "bind mounts", "named": "named volumes", "disk": "disk image mounts"}[source]
    raise NotSupportedYetError(feature)


def _is_given(values: Mapping[Any, Any], key: str) -> bool:
    value = values.get(key)
    return value is not None and not (key == "tmpfs" and not flag(value))


def _check_source(source: str, values: Mapping[Any, Any]) -> None:
    """The values of mounts that are not there yet, so that what is wrong with them is said all the same."""
    if source in ("bind", "named"):
        _check_choice(
            values, "stat_virtualization", ("strict", "relaxed", "off"),
            'invalid stat_virtualization "{}" (expected strict|relaxed|off)',
        )  # fmt: skip
        _check_choice(
            values, "host_permissions", ("private", "mirror"),
            'invalid host_permissions "{}" (expected private|mirror)',
        )  # fmt: skip
    if source == "named":
        modes = ("existing", "create", "ensure-exists")
        _check_choice(values, "named_mode", modes, "invalid named volume mode: {}")
        _check_choice(values, "named_kind", ("dir", "directory", "disk"), "invalid named volume kind: {}")
        optional(whole, values.get("size_mib"))
        optional(whole, values.get("quota_mib"))
    if source == "disk":
        _check_choice(values, "format", ("qcow2", "raw", "vmdk"), "unknown disk image format: {}")
        optional(text, values.get("fstype"))


def _check_choice(values: Mapping[Any, Any], key: str, allowed: tuple[str, ...], complaint: str) -> None:
    value = optional(text, values.get(key))
    if value is not None and value not in allowed:
        raise ValueError(complaint.format(value))
