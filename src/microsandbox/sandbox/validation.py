"""Whether a sandbox can be what its options say: the checks that need no image and no guest, in order."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping

from microsandbox.errors import InvalidConfigError
from microsandbox.sandbox.handoff import boot_init, validate_init
from microsandbox.sandbox.mounts import validate_mounts
from microsandbox.sandbox.options import MAX_HOSTNAME_BYTES, SandboxConfig, forbidden_in_hostname
from microsandbox.store.home import validate_name

RESERVED_LABEL_PREFIXES = ("sandbox.", "microsandbox.", "service.")
#: Bytes of all scripts of a sandbox together: they travel in one message of at most 4 MiB.
MAX_SCRIPT_BYTES = 3 << 20
#: The same of all that a guest is told when it boots; what is left of the message is for what is around them.
MAX_BOOT_BYTES = (4 << 20) - (128 << 10)
#: Environment variables that the agent takes, for a command as for an init.
MAX_VARIABLES = 4096
#: CPUs that every host grants; more only where it has half as many. Guests with hundreds do not come up.
MAX_CPUS = 8
#: The agent's bounds, said before anything is made.
MAX_SCRIPTS, MAX_SCRIPT_NAME_BYTES = 512, 255


def validate(config: SandboxConfig) -> None:
    """Raises InvalidConfigError for the first thing that is wrong."""
    _validate_env(config.env)
    validate_mounts(config.tmpfs_mounts)
    validate_name(config.name)
    if config.cpus == 0:
        raise InvalidConfigError("cpus must be greater than 0")
    most = max(MAX_CPUS, 2 * (os.cpu_count() or 1))
    if config.cpus > most:
        raise InvalidConfigError(f"cpus must be at most {most} on this host, got {config.cpus}")
    if config.memory_mib == 0:
        raise InvalidConfigError("memory must be greater than 0")
    if not config.image.reference:
        raise InvalidConfigError("image source is required")
    if config.image.upper_size_mib == 0:
        raise InvalidConfigError("oci upper_size must be greater than 0")
    for key in config.labels:
        if problem := label_problem(key):
            raise InvalidConfigError(problem)
    _validate_scripts(config.scripts)
    _validate_texts(config)
    validate_init(config.init)
    _validate_pause(config.pause_after_secs, config.idle_timeout_secs)


def validate_merged(config: SandboxConfig) -> None:
    """Raises InvalidConfigError for what is too much with what the image brings, or only together."""
    init = boot_init(config.init, config.env)
    variables = len(dict(config.env)) if init is None else len(init["env"])
    if variables > MAX_VARIABLES:
        raise InvalidConfigError(
            f"{variables} environment variables are too many (max {MAX_VARIABLES}), the image's included"
        )
    words = [] if init is None else [init["cmd"], *init["args"], *init["env"]]
    words += [text for script in config.scripts.items() for text in script]
    words += [mount.guest for mount in config.tmpfs_mounts]
    words.append(config.user or "")
    size = sum(len(word.encode("utf-8", "surrogatepass")) for word in words)
    if size > MAX_BOOT_BYTES:
        raise InvalidConfigError(
            "scripts, mounts, the init and its environment are too large together: "
            f"{size} bytes (max {MAX_BOOT_BYTES})"
        )


def _validate_pause(pause_after: int | None, idle_timeout: int | None) -> None:
    if pause_after is None:
        return
    if pause_after == 0:
        raise InvalidConfigError("pause_after must be greater than 0")
    if idle_timeout is not None and pause_after >= idle_timeout:
        raise InvalidConfigError(
            f"pause_after must be shorter than idle_timeout, got {pause_after} s and {idle_timeout} s"
        )


def label_problem(key: str) -> str | None:
    """What is wrong with a label's key."""
    if not key:
        return "label key must not be empty"
    for prefix in RESERVED_LABEL_PREFIXES:
        if key.startswith(prefix):
            return f"label key '{key}' uses reserved prefix '{prefix}'"
    return None


def _validate_env(env: Iterable[tuple[str, str]]) -> None:
    for key, value in env:
        if key.startswith("MSB_"):
            raise InvalidConfigError(f'environment variable "{key}" uses the reserved MSB_ prefix')
        if not key or "=" in key or "\0" in key + value:
            raise InvalidConfigError(
                f'environment variable "{key}" cannot be set: names are not empty and have no "=", '
                "neither names nor values have NUL bytes"
            )


def _validate_scripts(scripts: Mapping[str, str]) -> None:
    """Only the last component of a name counts: it is the file below /.msb/scripts."""
    if len(scripts) > MAX_SCRIPTS:
        raise InvalidConfigError(f"{len(scripts)} scripts are too many (max {MAX_SCRIPTS})")
    seen: dict[str, str] = {}
    for name in scripts:
        base = posixpath.basename(name)
        if base in ("", ".", "..") or "\0" in base or len(base.encode()) > MAX_SCRIPT_NAME_BYTES:
            raise InvalidConfigError(f'script name "{name}" does not end in a file name')
        if base in seen:
            raise InvalidConfigError(f'scripts "{seen[base]}" and "{name}" would be the same file "{base}"')
        seen[base] = name
    if sum(len(name.encode()) + len(body.encode()) for name, body in scripts.items()) > MAX_SCRIPT_BYTES:
        raise InvalidConfigError(f"scripts are larger than {MAX_SCRIPT_BYTES >> 20} MiB together")


def _validate_texts(config: SandboxConfig) -> None:
    for field in ("workdir", "shell", "hostname", "user"):
        value = getattr(config, field)
        if value is not None and "\0" in value:
            raise InvalidConfigError(f"{field} must not contain a NUL byte: {value!r}")
    hostname = config.hostname
    if hostname is not None and len(hostname.encode()) > MAX_HOSTNAME_BYTES:
        raise InvalidConfigError(
            f"hostname is too long: {len(hostname.encode())} bytes (max {MAX_HOSTNAME_BYTES})"
        )
    if hostname is not None and (not hostname or any(map(forbidden_in_hostname, hostname))):
        raise InvalidConfigError(
            f"hostname must not be empty or contain spaces, control characters or '/': {hostname!r}"
        )
