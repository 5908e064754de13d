"""``config.json`` below the home: read once, every key known, every value checked.

A wrong key or value is one error that names the file and the key: settings that are silently ignored
are worse than a refusal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from microsandbox.errors import InvalidConfigError

_LOG_LEVELS = ("error", "warn", "info", "debug", "trace")
_MAX_BYTES = 1 << 20


class PathsConfig(Struct, frozen=True):
    """``paths.*``: parts of the home that live elsewhere."""

    cache: Path | None = None
    sandboxes: Path | None = None


class SandboxDefaults(Struct, frozen=True):
    """``sandbox_defaults.*``: what a sandbox gets when its creator says nothing. Sizes in MiB."""

    cpus: int = 1
    memory_mib: int = 512
    upper_size_mib: int = 4096
    shell: str = "/bin/sh"
    workdir: str | None = None
    metrics_sample_interval_ms: int = 1000
    disable_metrics_sample: bool = False


class RegistryHost(Struct, frozen=True):
    """``registries.hosts.HOST`` as far as pulls without credentials need it."""

    insecure: bool = False
    ca_certs: Path | None = None
    #: Whether credentials are configured, which this release does not use.
    credentials: bool = False


class Config(Struct, frozen=True):
    """The whole file."""

    home: Path | None = None
    log_level: str | None = None
    paths: PathsConfig = field(default_factory=PathsConfig)
    sandbox_defaults: SandboxDefaults = field(default_factory=SandboxDefaults)
    registries: Mapping[str, RegistryHost] = field(default_factory=dict)
    busy_timeout_secs: float = 5.0
    metrics_capacity: int = 1024


#: Keys of microsandbox 0.5.6 whose feature this release does not have yet: accepted, without effect.
_NOT_YET = frozenset(
    {
        "paths.msb", "paths.libkrunfw", "paths.volumes", "paths.snapshots", "paths.logs", "paths.secrets",
        "database.url", "database.max_connections", "database.connect_timeout_secs",
        "registries.ca_certs", "registries.insecure", "registries.auth",
    }
)  # fmt: skip


class _Reader:
    """One JSON object of the file: typed access, then a check that every key was asked for."""

    def __init__(self, source: Path, prefix: str, values: object) -> None:
        self._source, self._prefix = source, prefix
        if not isinstance(values, dict):
            raise self._wrong("", "an object", values)
        self._values: dict[str, Any] = values

    def _wrong(self, key: str, expected: str, found: object) -> InvalidConfigError:
        name = (self._prefix + key).rstrip(".") or "the file"
        return InvalidConfigError(f"{self._source}: {name} must be {expected}, got {json.dumps(found)[:80]}")

    def take(
        self, key: str, kind: type | tuple[type, ...], expected: str, check: Callable[[Any], bool] = bool
    ) -> Any:
        value = self._values.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or not check(value):
            raise self._wrong(key, expected, value)
        return value

    def text(self, key: str) -> str | None:
        value: str | None = self.take(key, str, "a non-empty text")
        return value

    def path(self, key: str) -> Path | None:
        text = self.text(key)
        return Path(text).expanduser() if text else None

    def count(self, key: str) -> int | None:
        value: int | None = self.take(key, int, "a positive whole number", lambda n: n > 0)
        return value

    def object(self, key: str) -> _Reader:
        value = self._values.pop(key, None)
        return _Reader(self._source, f"{self._prefix}{key}.", {} if value is None else value)

    def keys(self) -> list[str]:
        return list(self._values)

    def finish(self) -> None:
        for key in self._values:
            if self._prefix + key not in _NOT_YET:
                raise InvalidConfigError(f"{self._source}: unknown key {self._prefix + key}")


def load_config(path: Path) -> Config:
    """Read the file; one that does not exist means defaults. Raises InvalidConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise InvalidConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise InvalidConfigError(f"{path} is larger than {_MAX_BYTES} bytes")
    try:
        return _parse(path, json.loads(content))
    except ValueError as error:
        raise InvalidConfigError(f"{path} is not valid JSON: {error}") from error


def _parse(source: Path, values: object) -> Config:
    root = _Reader(source, "", values)
    home = root.path("home")
    level = root.take("log_level", str, f"one of {', '.join(_LOG_LEVELS)}", _LOG_LEVELS.__contains__)
    paths = root.object("paths")
    paths_config = PathsConfig(cache=paths.path("cache"), sandboxes=paths.path("sandboxes"))
    paths.finish()
    defaults = _sandbox_defaults(root.object("sandbox_defaults"))
    registries = _registries(root.object("registries"))
    database = root.object("database")
    busy = database.take("busy_timeout_secs", (int, float), "a positive number", lambda n: n > 0)
    database.finish()
    metrics = root.object("metrics")
    capacity = metrics.take("capacity", int, "a number from 0 to 65536", range(65537).__contains__)
    metrics.finish()
    root.finish()
    return Config(
        home,
        level,
        paths_config,
        defaults,
        registries,
        float(busy or 5.0),
        capacity or Config().metrics_capacity,
    )


def _sandbox_defaults(reader: _Reader) -> SandboxDefaults:
    oci = reader.object("oci")
    standard = SandboxDefaults()
    interval = reader.take(
        "metrics_sample_interval_ms", int, "milliseconds, or 0 for none", range(1 << 31).__contains__
    )
    defaults = SandboxDefaults(
        cpus=reader.count("cpus") or standard.cpus,
        memory_mib=reader.count("memory_mib") or standard.memory_mib,
        upper_size_mib=oci.count("upper_size_mib") or standard.upper_size_mib,
        shell=reader.text("shell") or standard.shell,
        workdir=reader.text("workdir"),
        metrics_sample_interval_ms=standard.metrics_sample_interval_ms if interval is None else interval,
        disable_metrics_sample=bool(
            reader.take("disable_metrics_sample", bool, "true or false", lambda _: True)
        ),
    )
    oci.finish()
    reader.finish()
    return defaults


def _registries(reader: _Reader) -> dict[str, RegistryHost]:
    hosts = reader.object("hosts")
    result = {}
    for name in hosts.keys():  # noqa: SIM118 - not a mapping
        host = hosts.object(name)
        auth = host.take("auth", dict, "an object", lambda _: True)
        insecure = host.take("insecure", bool, "true or false", lambda _: True)
        result[name] = RegistryHost(bool(insecure), host.path("ca_certs"), credentials=bool(auth))
        host.finish()
    reader.finish()
    return result
