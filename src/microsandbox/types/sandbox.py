"""What a sandbox is made with and how it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Bytes. ``memory=`` is in MiB: write ``memory=512``, not ``memory=512 * MiB``.
MiB = 1024**2
GiB = 1024**3


@dataclass(frozen=True, slots=True)
class Size:
    """A number of bytes. For ``memory=`` use ``mib_count``."""

    bytes: int

    @classmethod
    def mib(cls, n: int) -> Size:
        return cls(n * MiB)

    @classmethod
    def gib(cls, n: int) -> Size:
        return cls(n * GiB)

    @property
    def mib_count(self) -> int:
        """Whole MiB, rounded down."""
        return self.bytes // MiB


@dataclass(frozen=True, slots=True)
class InitConfig:
    """The program that becomes PID 1 of the guest once the agent has set it up."""

    cmd: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def _to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {"cmd": self.cmd}
        if self.args:
            values["args"] = list(self.args)
        if self.env:
            values["env"] = dict(self.env)
        return values


@dataclass(frozen=True, slots=True)
class SandboxStopResult:
    """How a sandbox was seen to end.

    ``exit_code`` and ``signal`` are those of its host process and known to its owner only; ``observed_at``
    is in milliseconds since the epoch.
    """

    name: str
    status: str
    exit_code: int | None
    signal: int | None
    observed_at: float
    source: str | None
