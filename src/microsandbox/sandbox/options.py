"""``Sandbox.create``'s keywords: what they may be, and the values they become.

They are converted in the documented order and the first error wins. None is always the default.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from microsandbox.arguments import flag, nearest, parameter, seconds, text, text_list, text_map, whole
from microsandbox.sandbox import unsupported
from microsandbox.sandbox.mounts import TmpfsMount, parse_volumes, with_implicit_tmp
from microsandbox.sandbox.rootfs import OciImage, root_image
from microsandbox.store.home import Home
from microsandbox.types import LogLevel, PullPolicy

if TYPE_CHECKING:
    from typing import TypedDict as Keywords

    from microsandbox.types import (
        ImageSource,
        InitConfig,
        MountConfig,
        Network,
        PatchConfig,
        PortBinding,
        RegistryAuth,
        SecretEntry,
        SecurityProfile,
        ViolationAction,
        ViolationPolicy,
    )
else:
    from microsandbox.arguments import Keywords

#: Seconds that a sandbox which is being replaced has to end by itself.
REPLACE_TIMEOUT = 10.0
#: What Linux takes as a host name, in bytes (sethostname(2)).
MAX_HOSTNAME_BYTES = 64


class CreateKeywords(Keywords, total=False):
    """The keywords of ``Sandbox.create``. Memory is in MiB, durations are in seconds."""

    image: str | os.PathLike[str] | ImageSource | None
    snapshot: str | os.PathLike[str] | None
    memory: int | None
    cpus: int | None
    workdir: str | None
    shell: str | None
    security: str | SecurityProfile | None
    hostname: str | None
    libkrunfw_path: str | None
    user: str | None
    entrypoint: Sequence[str] | None
    init: str | Mapping[str, Any] | InitConfig | None
    replace: bool | None
    replace_with_timeout: float | None
    max_duration: float | None
    idle_timeout: float | None
    pause_after: float | None
    env: Mapping[str, str] | None
    labels: Mapping[str, str] | None
    scripts: Mapping[str, str] | None
    pull_policy: str | PullPolicy | None
    log_level: str | LogLevel | None
    registry_auth: Mapping[str, str] | RegistryAuth | None
    volumes: Mapping[str, Mapping[str, Any] | MountConfig] | None
    patches: Sequence[Mapping[str, Any] | PatchConfig] | None
    ports: Mapping[int, int] | Sequence[Mapping[str, Any] | PortBinding] | None
    network: Mapping[str, Any] | Network | None
    secrets: Sequence[Mapping[str, Any] | SecretEntry] | None
    on_secret_violation: str | Mapping[str, Any] | ViolationAction | ViolationPolicy | None
    detached: bool | None


def forbidden_in_hostname(letter: str) -> bool:
    """What neither the guest's kernel nor /etc/hosts could hold in a name."""
    return letter <= " " or letter in "/\x7f"


class SandboxConfig(Struct, frozen=True):
    """What a sandbox is: everything that is stored with it and holds for each of its starts."""

    name: str
    image: OciImage
    cpus: int = 1
    memory_mib: int = 512
    log_level: str | None = None
    workdir: str | None = None
    shell: str | None = None
    hostname: str | None = None
    user: str | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[tuple[str, str], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)
    tmpfs_mounts: tuple[TmpfsMount, ...] = ()
    pull_policy: PullPolicy = PullPolicy.IF_MISSING
    max_duration_secs: int | None = None
    idle_timeout_secs: int | None = None
    pause_after_secs: int | None = None
    metrics_sample_interval_ms: int = 1000
    disable_metrics_sample: bool = False
    manifest_digest: str | None = None

    @property
    def metrics_interval(self) -> float | None:
        """Seconds between samples; None when none are taken."""
        if self.disable_metrics_sample or self.metrics_sample_interval_ms <= 0:
            return None
        return self.metrics_sample_interval_ms / 1000

    @property
    def guest_hostname(self) -> str:
        """The host name, else the sandbox's name as far as it can be one."""
        if self.hostname:
            return self.hostname
        plain = "".join("-" if forbidden_in_hostname(letter) else letter for letter in self.name)
        return plain.encode()[:MAX_HOSTNAME_BYTES].decode("utf-8", "ignore")


class CreateOptions(Struct, frozen=True):
    """One call of ``create``: the sandbox, and what holds for this call only."""

    config: SandboxConfig
    replace: bool = False
    replace_timeout: float = REPLACE_TIMEOUT
    detached: bool = False


def parse_create(name: str, options: Mapping[str, Any], home: Home) -> CreateOptions:
    """The keywords as values. What needs the image or the guest is checked later, by ``validate``.

    Raises TypeError, ValueError, OverflowError, FileNotFoundError, NotSupportedYetError.
    """
    name = parameter("name", text, name)
    for keyword in options:
        if keyword not in CreateKeywords.__annotations__:
            hint = nearest(keyword, CreateKeywords.__annotations__)
            raise TypeError(f"create() got an unexpected keyword argument '{keyword}'{hint}")
    given = {keyword: value for keyword, value in options.items() if value is not None}
    image = root_image(given, home)
    values = {
        keyword: convert(given[keyword]) for keyword, convert in _CONVERTERS.items() if keyword in given
    }
    return CreateOptions(
        config=_config(name, image, values, home),
        replace=values.get("replace", False) or "replace_with_timeout" in values,
        replace_timeout=values.get("replace_with_timeout", REPLACE_TIMEOUT),
        detached=values.get("detached", False),
    )


def _config(name: str, image: OciImage, values: Mapping[str, Any], home: Home) -> SandboxConfig:
    defaults = home.config.sandbox_defaults
    memory = values.get("memory", defaults.memory_mib)
    return SandboxConfig(
        name=name,
        image=image,
        cpus=values.get("cpus", defaults.cpus),
        memory_mib=memory,
        log_level=values.get("log_level", home.config.log_level),
        workdir=values.get("workdir", defaults.workdir),
        shell=values.get("shell", defaults.shell),
        hostname=values.get("hostname"),
        user=values.get("user"),
        entrypoint=values.get("entrypoint"),
        env=tuple(values.get("env", {}).items()),
        labels=values.get("labels", {}),
        scripts=values.get("scripts", {}),
        tmpfs_mounts=with_implicit_tmp(values.get("volumes", ()), memory),
        pull_policy=values.get("pull_policy", PullPolicy.IF_MISSING),
        max_duration_secs=values.get("max_duration"),
        idle_timeout_secs=values.get("idle_timeout"),
        pause_after_secs=values.get("pause_after"),
        metrics_sample_interval_ms=defaults.metrics_sample_interval_ms,
        disable_metrics_sample=defaults.disable_metrics_sample,
    )


def _pull_policy(value: object) -> PullPolicy:
    name = text(value)
    known = {"if_missing": "if-missing", "IF_MISSING": "if-missing"}
    try:
        return PullPolicy(known.get(name, name))
    except ValueError:
        raise ValueError(f"invalid pull_policy: {name}. Expected: always, if-missing, never") from None


def _log_level(value: object) -> str:
    name = text(value)
    if name.lower() not in tuple(LogLevel) or name not in (name.lower(), name.upper()):
        raise ValueError(f"invalid log_level: {name}")
    return name.lower()


def _by_network(option: str) -> Callable[[Any], None]:
    """The check of an option about the network; its modules are loaded for those who use one."""

    def check(value: Any) -> None:
        from microsandbox.network import options

        getattr(options, option)(value)

    return check


#: What makes a value of each keyword, in the documented order; image= and snapshot= come before them.
_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "memory": whole,
    "cpus": lambda value: whole(value, 8),
    "workdir": text,
    "shell": text,
    "security": unsupported.security,
    "hostname": text,
    "libkrunfw_path": unsupported.libkrunfw_path,
    "user": text,
    "entrypoint": text_list,
    "init": unsupported.init,
    "replace": flag,
    "replace_with_timeout": lambda value: seconds(value, "replace_with_timeout"),
    "max_duration": lambda value: math.ceil(seconds(value, "max_duration")),
    "idle_timeout": lambda value: math.ceil(seconds(value, "idle_timeout")),
    "pause_after": lambda value: math.ceil(seconds(value, "pause_after")),
    "env": text_map,
    "labels": text_map,
    "scripts": text_map,
    "pull_policy": _pull_policy,
    "log_level": _log_level,
    "registry_auth": unsupported.registry_auth,
    "volumes": parse_volumes,
    "patches": unsupported.patches,
    "ports": _by_network("ports"),
    "network": _by_network("network"),
    "secrets": _by_network("secrets"),
    "on_secret_violation": _by_network("on_secret_violation"),
    "detached": flag,
}
