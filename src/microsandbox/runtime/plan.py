"""What the owner hands to the supervisor: one frozen value, encoded into an anonymous file.

It may hold secrets (the environment of the sandbox), so it is passed by descriptor: never in argv, never
in a file with a name. ``marshal`` costs no import, and both ends are the same interpreter.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from microsandbox.vmm.jail import JailKind
from microsandbox.vmm.machine import QemuInstallation

#: Where the supervisor finds its descriptors, by number (runtime arguments name them too).
WATCHDOG_FD, PLAN_FD, FIRST_DISK_FD = 97, 98, 100


@dataclass(frozen=True)
class DiskPlan:
    """A block device: ``fd`` is its number in the supervisor."""

    serial: str
    fd: int
    format: str
    read_only: bool


@dataclass(frozen=True)
class LaunchPlan:
    """Everything the supervisor needs to run one sandbox. Durations in seconds, None is unlimited."""

    name: str
    sandbox_id: int
    run_id: int
    database: str
    directory: str
    agent_socket: str
    qemu: Mapping[str, Any]
    jail: str
    kernel: str
    initramfs: str
    accelerator: str
    cpus: int
    memory_mib: int
    disks: tuple[DiskPlan, ...]
    boot: Mapping[str, Any]
    max_duration: float | None = None
    idle_timeout: float | None = None
    pause_after: float | None = None
    log_level: str | None = None

    def to_fd(self) -> int:
        """A descriptor of an anonymous file that holds the plan, at its start."""
        fd = os.memfd_create("launch-plan", os.MFD_CLOEXEC)
        try:
            content = memoryview(marshal.dumps(asdict(self)))
            while content:
                content = content[os.write(fd, content) :]
            os.lseek(fd, 0, os.SEEK_SET)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @classmethod
    def from_fd(cls, fd: int) -> LaunchPlan:
        with open(fd, "rb") as file:
            values = marshal.load(file)  # noqa: S302 - written by our parent, the same interpreter
        values["disks"] = tuple(DiskPlan(**disk) for disk in values["disks"])
        return cls(**values)

    @property
    def installation(self) -> QemuInstallation:
        return QemuInstallation(**{**self.qemu, "files": tuple(self.qemu["files"])})

    @property
    def jail_kind(self) -> JailKind:
        return JailKind(self.jail)

    @property
    def logs(self) -> Path:
        return Path(self.directory) / "logs"
