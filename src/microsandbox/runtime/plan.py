"""What the owner hands to the supervisor: one frozen value, encoded into an anonymous file, together with the
program that the supervisor starts first and what the guest is told first.

It may hold secrets (the environment of the sandbox), so it is passed by descriptor: never in argv, never
in a file with a name. ``marshal`` costs no import, and both ends are the same interpreter.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins

from microsandbox.store.config import DatabaseConfig
from microsandbox.vmm.jail import Jailed
from microsandbox.vmm.jail_kind import JailKind
from microsandbox.vmm.machine import Accelerator, QemuInstallation


class DiskPlan(Struct, frozen=True):
    """A block device: ``fd`` is its number in the supervisor."""

    serial: str
    fd: int
    format: str
    read_only: bool


class TemplatePlan(Struct, frozen=True):
    """The template to go on from. ``rooted``: the image is mounted in it."""

    key: str
    ram: str
    state: str
    rooted: bool


class BuilderPlan(Struct, frozen=True):
    """The template that is missing: how to build it, and the lock that is held while that is done."""

    arguments: tuple[str, ...]
    lock: str


class MetricsPlan(Struct, frozen=True):
    """The slot of the metrics registry that was reserved, and the seconds between samples."""

    registry: str
    slot: int
    generation: int
    interval: float


class LaunchPlan(Struct, frozen=True):
    """Everything the supervisor needs to run one sandbox. Durations in seconds, None is unlimited."""

    name: str
    sandbox_id: int
    run_id: int
    database: str
    directory: str
    agent_socket: str
    qemu: QemuInstallation
    jail: JailKind
    kernel: str
    initramfs: str
    accelerator: Accelerator
    cpus: int
    memory_mib: int
    disks: tuple[DiskPlan, ...]
    boot: Mapping[str, Any]
    max_duration: float | None = None
    idle_timeout: float | None = None
    pause_after: float | None = None
    log_level: str | None = None
    #: Where templates are, which one to go on from, and how one is built when the sandbox runs.
    templates: str = ""
    template: TemplatePlan | None = None
    #: For a guest to go on from its template: as long as a very busy host may need.
    resume_timeout: float = 60.0
    #: Whether the guest is told its configuration before the supervisor is there to do it.
    told: bool = False
    builder: BuilderPlan | None = None
    metrics: MetricsPlan | None = None
    #: Seconds that the catalogue may be locked by others.
    busy_timeout: float = 5.0
    #: What happened before, and when (CLOCK_MONOTONIC, nanoseconds).
    trace: tuple[tuple[str, int], ...] = ()

    @property
    def template_is_rooted(self) -> bool:
        return self.template is not None and self.template.rooted

    @property
    def resumed_boot(self) -> Mapping[str, Any]:
        """The configuration for a guest that goes on from the template."""
        return {**self.boot, "root": None} if self.template_is_rooted else self.boot

    @property
    def logs(self) -> Path:
        return Path(self.directory) / "logs"

    @property
    def boot_error(self) -> Path:
        return self.logs / "boot-error.json"

    @property
    def database_config(self) -> DatabaseConfig:
        """A supervisor has one thread, and so one connection."""
        return DatabaseConfig(max_connections=1, busy_timeout_secs=self.busy_timeout)


class Parcel(Struct, frozen=True):
    """All that a supervisor is handed. ``descriptors`` are ours, and the numbers they will have there.

    ``first_words`` surround the time of day, eight bytes, in what a resumed guest is told at once.
    """

    plan: LaunchPlan
    jailed: Jailed
    first_words: tuple[bytes, bytes] | None
    descriptors: tuple[tuple[int, int], ...]

    def to_fd(self) -> int:
        """A descriptor of an anonymous file that holds it, at its start."""
        values = {
            "plan": to_builtins(self.plan, builtin_types=(bytes,)),
            "jailed": self.jailed.values,
            "first_words": self.first_words,
        }
        fd = os.memfd_create("launch-plan", os.MFD_CLOEXEC)
        try:
            content = memoryview(marshal.dumps(values))
            while content:
                content = content[os.write(fd, content) :]
            os.lseek(fd, 0, os.SEEK_SET)
        except BaseException:
            os.close(fd)
            raise
        return fd
