"""What a command in a sandbox is given, and what comes back."""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class ExitStatus:
    code: int
    success: bool


class RlimitResource(StrEnum):
    """Resources of setrlimit(2)."""

    CPU = "cpu"
    FSIZE = "fsize"
    DATA = "data"
    STACK = "stack"
    CORE = "core"
    RSS = "rss"
    NPROC = "nproc"
    NOFILE = "nofile"
    MEMLOCK = "memlock"
    AS = "as"
    LOCKS = "locks"
    SIGPENDING = "sigpending"
    MSGQUEUE = "msgqueue"
    NICE = "nice"
    RTPRIO = "rtprio"
    RTTIME = "rttime"


@dataclass(frozen=True, slots=True)
class Rlimit:
    """One resource limit, in the units of setrlimit(2)."""

    resource: RlimitResource
    soft: int
    hard: int

    @classmethod
    def nofile(cls, limit: int) -> Rlimit:
        return cls(RlimitResource.NOFILE, limit, limit)

    @classmethod
    def cpu(cls, secs: int) -> Rlimit:
        return cls(RlimitResource.CPU, secs, secs)

    @classmethod
    def nproc(cls, limit: int) -> Rlimit:
        return cls(RlimitResource.NPROC, limit, limit)

    @classmethod
    def fsize(cls, limit: int) -> Rlimit:
        return cls(RlimitResource.FSIZE, limit, limit)

    @classmethod
    def memlock(cls, limit: int) -> Rlimit:
        return cls(RlimitResource.MEMLOCK, limit, limit)

    @classmethod
    def stack(cls, limit: int) -> Rlimit:
        return cls(RlimitResource.STACK, limit, limit)

    @classmethod
    def as_(cls, *, soft: int, hard: int) -> Rlimit:
        """Address space, in bytes."""
        return cls(RlimitResource.AS, soft, hard)

    def _to_dict(self) -> dict[str, Any]:
        return {"resource": str(self.resource), "soft": self.soft, "hard": self.hard}


@dataclass(frozen=True, slots=True)
class Stdin:
    """A command's standard input: ``Stdin.null()``, ``Stdin.pipe()`` or ``Stdin.bytes(data)``."""

    _mode: str
    _data: builtins.bytes | None = None

    @staticmethod
    def null() -> Stdin:
        """At its end from the beginning."""
        return Stdin("null")

    @staticmethod
    def pipe() -> Stdin:
        """Written while the command runs, through ``ExecHandle.take_stdin()``."""
        return Stdin("pipe")

    @staticmethod
    def bytes(data: builtins.bytes) -> Stdin:
        """This and then the end."""
        return Stdin("bytes", data)


@dataclass(frozen=True, slots=True)
class ExecOutput:
    """A finished command. ``exit_code`` is -1 when a signal ended it."""

    exit_code: int
    stdout_bytes: bytes
    stderr_bytes: bytes

    @property
    def success(self) -> bool:
        return self.exit_code == 0

    @property
    def stdout_text(self) -> str:
        """Raises UnicodeDecodeError when it is not UTF-8."""
        return self.stdout_bytes.decode()

    @property
    def stderr_text(self) -> str:
        """Raises UnicodeDecodeError when it is not UTF-8."""
        return self.stderr_bytes.decode()


@dataclass(frozen=True, slots=True)
class ExecStreamEvent:
    """Something that happened to a running command.

    ``event_type`` is ``started`` (``pid``), ``stdout`` or ``stderr`` (``data``), ``exited`` (``code``),
    ``failed`` or ``stdin_error`` (``data`` is the message, ``code`` the errno if there is one).
    """

    event_type: str
    pid: int | None = None
    data: bytes | None = None
    code: int | None = None
