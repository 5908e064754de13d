"""Enumerations, apart from the values that take longer to define: what every create needs."""

from __future__ import annotations

from enum import StrEnum


class PullPolicy(StrEnum):
    """When the registry is asked."""

    ALWAYS = "always"
    IF_MISSING = "if-missing"
    NEVER = "never"


class LogLevel(StrEnum):
    """How much a sandbox's runtime writes to its log."""

    TRACE = "trace"
    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class SecurityProfile(StrEnum):
    DEFAULT = "default"
    RESTRICTED = "restricted"


class SandboxStatus(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    CRASHED = "crashed"
    DRAINING = "draining"
    PAUSED = "paused"
