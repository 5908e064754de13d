"""What ``config.json`` says, as values: every field is applied somewhere. The reader is config_file.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field

__all__ = [
    "AuthEntry", "Config", "DatabaseConfig", "PathsConfig", "RegistriesConfig", "RegistryHost",
    "SandboxDefaults",
]  # fmt: skip


class PathsConfig(Struct, frozen=True):
    """``paths.*``: parts of the home that live elsewhere, and the ``msb`` program."""

    msb: Path | None = None
    cache: Path | None = None
    sandboxes: Path | None = None


class SandboxDefaults(Struct, frozen=True):
    """``sandbox_defaults.*``: what a sandbox gets when its creator says nothing. Sizes in MiB."""

    cpus: int = 1
    memory_mib: int = 512
    upper_size_mib: int = 4096
    shell: str | None = None
    workdir: str | None = None
    metrics_sample_interval_ms: int = 1000
    disable_metrics_sample: bool = False


class DatabaseConfig(Struct, frozen=True):
    """``database.*``: how a process uses the catalogue. Times in seconds."""

    max_connections: int = 5
    connect_timeout_secs: float = 30.0
    busy_timeout_secs: float = 5.0


class AuthEntry(Struct, frozen=True):
    """Who pulls from a registry. ``key`` is where the file says so; one of the others has the password."""

    key: str
    username: str
    store: str | None = None
    password_env: str | None = None
    secret_name: str | None = None


class RegistryHost(Struct, frozen=True):
    """How one registry is asked. ``ca_certs`` are PEM files to trust besides the usual ones."""

    insecure: bool = False
    ca_certs: Path | None = None
    auth: AuthEntry | None = None


class RegistriesConfig(Struct, frozen=True):
    """``registries.*``: what holds for all of them, and for those with an entry of their own."""

    insecure: bool = False
    ca_certs: Path | None = None
    hosts: Mapping[str, RegistryHost] = field(default_factory=dict)

    def host(self, name: str) -> RegistryHost:
        """The entry of a registry, by the name that references have for it; defaults without one."""
        return self.hosts.get(name) or RegistryHost()


class Config(Struct, frozen=True):
    """The whole file."""

    home: Path | None = None
    log_level: str | None = None
    paths: PathsConfig = field(default_factory=PathsConfig)
    sandbox_defaults: SandboxDefaults = field(default_factory=SandboxDefaults)
    registries: RegistriesConfig = field(default_factory=RegistriesConfig)
    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    metrics_capacity: int = 1024
