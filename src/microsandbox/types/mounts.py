"""What is mounted into a guest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class MountKind(StrEnum):
    BIND = "bind"
    NAMED = "named"
    TMPFS = "tmpfs"
    DISK = "disk"


class StatVirtualization(StrEnum):
    """Whether the guest's view of owners and modes is kept beside the host's files."""

    STRICT = "strict"
    RELAXED = "relaxed"
    OFF = "off"


class HostPermissions(StrEnum):
    PRIVATE = "private"
    MIRROR = "mirror"


class DiskImageFormat(StrEnum):
    QCOW2 = "qcow2"
    RAW = "raw"
    VMDK = "vmdk"


@dataclass(frozen=True, slots=True)
class MountConfig:
    """One mount. Fields that do not belong to ``kind`` are ignored; sizes are in MiB.

    What is missing or contradictory is said by a ValueError when the mount is passed to ``create``.
    """

    kind: MountKind
    bind: str | None = None
    named: str | None = None
    named_mode: str | None = None
    named_kind: str | None = None
    quota_mib: int | None = None
    size_mib: int | None = None
    readonly: bool = False
    noexec: bool = False
    nosuid: bool = False
    nodev: bool = False
    disk: str | None = None
    format: str | None = None
    fstype: str | None = None
    stat_virtualization: StatVirtualization | None = None
    host_permissions: HostPermissions | None = None

    def _to_dict(self) -> dict[str, Any]:
        flags = {name: getattr(self, name) for name in ("readonly", "noexec", "nosuid", "nodev")}
        values = {**flags, **self._source(), **self._policies()}
        return {key: value for key, value in values.items() if value is not None}

    def _source(self) -> dict[str, Any]:
        match self.kind:
            case MountKind.BIND:
                return {"bind": self._required("BIND", "bind", self.bind)}
            case MountKind.NAMED:
                return {
                    "named": self._required("NAMED", "named", self.named),
                    "named_mode": self.named_mode,
                    "named_kind": self.named_kind,
                    "size_mib": self.size_mib,
                    "quota_mib": self.quota_mib,
                }
            case MountKind.TMPFS:
                return {"tmpfs": True, "size_mib": self.size_mib}
            case MountKind.DISK:
                disk = self._required("DISK", "disk", self.disk)
                format = None if self.format is None else str(self.format)
                return {"disk": disk, "format": format, "fstype": self.fstype}
        raise ValueError(f"unknown MountKind: {self.kind!r}")

    @staticmethod
    def _required(kind: str, field: str, value: str | None) -> str:
        if value is None:
            raise ValueError(f"MountConfig kind={kind} requires {field}=...")
        return value

    def _policies(self) -> dict[str, str]:
        policies = {
            "stat_virtualization": self.stat_virtualization,
            "host_permissions": self.host_permissions,
        }
        given = {key: str(value) for key, value in policies.items() if value is not None}
        if given and self.kind not in (MountKind.BIND, MountKind.NAMED):
            raise ValueError(
                "stat_virtualization/host_permissions are only valid for BIND/NAMED mounts "
                f"(got kind={self.kind})"
            )
        return given
