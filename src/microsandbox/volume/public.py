"""``Volume``: its mount factories. Making and keeping volumes comes with a later release."""

from __future__ import annotations

import re
from collections.abc import Mapping

from microsandbox.errors import InvalidConfigError, NotSupportedYetError
from microsandbox.types import FsEntry, MountConfig, MountKind
from microsandbox.unavailable import Unavailable

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _later() -> NotSupportedYetError:
    return NotSupportedYetError("named volumes")


def validate_volume_name(name: str) -> str:
    """The name, if it is one. Raises InvalidConfigError."""
    if not name:
        raise InvalidConfigError("volume name must not be empty")
    if not _NAME.fullmatch(name):
        raise InvalidConfigError(
            "volume name must start with an alphanumeric character and contain only alphanumeric characters, "
            f"dots, hyphens, and underscores: {name}"
        )
    return name


class Volume(Unavailable):
    """A named volume, and the factories of mounts for ``volumes=``. Sizes are in MiB."""

    @staticmethod
    async def create(
        name: str,
        *,
        kind: str = "dir",
        size_mib: int | None = None,
        quota_mib: int | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Volume:
        """Raises InvalidConfigError for a contradiction, else NotSupportedYetError."""
        if kind not in ("dir", "directory", "disk"):
            raise InvalidConfigError(f"unknown volume kind: {kind}")
        if kind == "disk" and size_mib is None:
            raise InvalidConfigError("size_mib is required with kind='disk'")
        if kind == "disk" and quota_mib is not None:
            raise InvalidConfigError("disk named volumes do not support .quota(...)")
        if kind != "disk" and size_mib is not None:
            raise InvalidConfigError(
                "size_mib is only supported with kind='disk' until directory quotas are enforced"
            )
        validate_volume_name(name)
        raise _later()

    @staticmethod
    async def get(name: str) -> VolumeHandle:
        raise _later()

    @staticmethod
    async def list() -> list[VolumeHandle]:
        raise _later()

    @staticmethod
    async def remove(name: str) -> None:
        raise _later()

    @staticmethod
    def bind(
        path: str,
        *,
        readonly: bool = False,
        noexec: bool = False,
        nosuid: bool = False,
        nodev: bool = False,
    ) -> MountConfig:
        """A file or directory of the host."""
        return MountConfig(
            MountKind.BIND, bind=path, readonly=readonly, noexec=noexec, nosuid=nosuid, nodev=nodev
        )

    @staticmethod
    def named(
        name: str,
        *,
        mode: str | None = None,
        kind: str | None = None,
        size_mib: int | None = None,
        quota_mib: int | None = None,
        readonly: bool = False,
        noexec: bool = False,
        nosuid: bool = False,
        nodev: bool = False,
    ) -> MountConfig:
        """A volume. ``mode`` is existing, create or ensure-exists; ``kind`` is dir or disk."""
        return MountConfig(
            MountKind.NAMED,
            named=name,
            named_mode=mode,
            named_kind=kind,
            size_mib=size_mib,
            quota_mib=quota_mib,
            readonly=readonly,
            noexec=noexec,
            nosuid=nosuid,
            nodev=nodev,
        )

    @staticmethod
    def tmpfs(
        *,
        size_mib: int | None = None,
        readonly: bool = False,
        noexec: bool = False,
        nosuid: bool = False,
        nodev: bool = False,
    ) -> MountConfig:
        """A file system in the guest's memory."""
        return MountConfig(
            MountKind.TMPFS,
            size_mib=size_mib,
            readonly=readonly,
            noexec=noexec,
            nosuid=nosuid,
            nodev=nodev,
        )

    @staticmethod
    def disk(
        path: str,
        *,
        format: str | None = None,
        fstype: str | None = None,
        readonly: bool = False,
        noexec: bool = False,
        nosuid: bool = False,
        nodev: bool = False,
    ) -> MountConfig:
        """A disk image of the host; ``format`` is qcow2, raw or vmdk."""
        return MountConfig(
            MountKind.DISK,
            disk=path,
            format=format,
            fstype=fstype,
            readonly=readonly,
            noexec=noexec,
            nosuid=nosuid,
            nodev=nodev,
        )


class VolumeHandle(Unavailable):
    """A volume by name."""

    name: str
    kind: str
    quota_mib: int | None
    used_bytes: int
    capacity_bytes: int | None
    disk_format: str | None
    disk_fstype: str | None
    labels: dict[str, str]
    created_at: float | None
    fs: VolumeFs

    async def remove(self) -> None:
        raise _later()


class VolumeFs(Unavailable):
    """The files of a volume, without a sandbox."""

    async def read(self, path: str) -> bytes:
        raise _later()

    async def read_text(self, path: str) -> str:
        raise _later()

    async def write(self, path: str, data: bytes) -> None:
        raise _later()

    async def list(self, path: str) -> list[FsEntry]:
        raise _later()

    async def mkdir(self, path: str) -> None:
        raise _later()

    async def remove_file(self, path: str) -> None:
        raise _later()

    async def exists(self, path: str) -> bool:
        raise _later()
