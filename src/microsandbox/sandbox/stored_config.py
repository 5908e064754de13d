"""A sandbox's configuration as it is kept in the catalogue: the JSON document of microsandbox 0.5.6.

It is written once, when the sandbox is created, with the image's defaults merged in; every later start
reads it back. Parts of the document that stand for features of later releases are written as what they are
without them, and a document that asks for one is refused rather than started with less than it says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from microsandbox.errors import InvalidConfigError, NotSupportedYetError
from microsandbox.sandbox.handoff import Init
from microsandbox.sandbox.mounts import TmpfsMount
from microsandbox.sandbox.options import ResourceLimit, SandboxConfig
from microsandbox.sandbox.rootfs import OciImage
from microsandbox.sandbox.validation import label_problem
from microsandbox.types import PullPolicy, SecurityProfile

if TYPE_CHECKING:
    from microsandbox.image.store import StoredImage

_PULL_POLICIES = {
    PullPolicy.IF_MISSING: "IfMissing",
    PullPolicy.ALWAYS: "Always",
    PullPolicy.NEVER: "Never",
}
_MOUNT_FLAGS = ("readonly", "noexec", "nosuid", "nodev")
_NO_NETWORK = {
    "enabled": False,
    "interface": {
        "mac": None,
        "mtu": None,
        "ipv4_address": None,
        "ipv4_pool": None,
        "ipv6_address": None,
        "ipv6_pool": None,
    },
    "ports": [],
    "policy": {"default_egress": "deny", "default_ingress": "deny", "rules": []},
    "dns": {"rebind_protection": True, "nameservers": [], "query_timeout_ms": 5000},
    "tls": {
        "enabled": False,
        "intercepted_ports": [443],
        "bypass": [],
        "verify_upstream": True,
        "block_quic_on_intercept": True,
        "upstream_ca_cert": [],
        "intercept_ca": {"cert_path": None, "key_path": None},
        "cache": {"capacity": 1000, "validity_hours": 24},
    },
    "secrets": {"secrets": [], "on_violation": "block-and-log"},
    "max_connections": None,
    "trust_host_cas": False,
}


def merge_image(config: SandboxConfig, image: StoredImage) -> SandboxConfig:
    """The configuration with the image's defaults below the caller's choices, pinned to its manifest."""
    defaults = image.config
    own = dict(config.env)
    inherited = [
        (key, value) for entry in defaults.env if (pair := _env_pair(entry)) for key, value in [pair]
    ]
    labels = {key: value for key, value in (defaults.labels or {}).items() if label_problem(key) is None}
    return replace(
        config,
        env=(*((key, value) for key, value in inherited if key not in own), *config.env),
        labels={**labels, **config.labels},
        cmd=config.cmd or _words(defaults.cmd),
        entrypoint=_words(defaults.entrypoint) if config.entrypoint is None else config.entrypoint,
        workdir=(defaults.working_dir or None) if config.workdir is None else config.workdir,
        user=(defaults.user or None) if config.user is None else config.user,
        manifest_digest=image.manifest_digest,
    )


def _env_pair(entry: str) -> tuple[str, str] | None:
    """``K=V`` of an image; what could not be an environment variable is left out."""
    key, separator, value = entry.partition("=")
    return (key, value) if key and separator and "\0" not in entry else None


def _words(words: Sequence[str] | None) -> tuple[str, ...] | None:
    return tuple(words) if words else None


def dump_config(config: SandboxConfig) -> str:
    """The document, compact."""
    image = {"reference": config.image.reference, "upper_size_mib": config.image.upper_size_mib}
    document = {
        "name": config.name,
        "image": {"Oci": image},
        "cpus": config.cpus,
        "memory_mib": config.memory_mib,
        "log_level": config.log_level,
        "metrics_sample_interval_ms": config.metrics_sample_interval_ms,
        "disable_metrics_sample": config.disable_metrics_sample,
        "workdir": config.workdir,
        "shell": config.shell,
        "scripts": dict(config.scripts),
        "env": [list(pair) for pair in config.env],
        "rlimits": [_dump_rlimit(limit) for limit in config.rlimits],
        "mounts": [_dump_mount(mount) for mount in config.tmpfs_mounts],
        "security_profile": config.security_profile,
        "patches": [],
        "network": _NO_NETWORK,
        "init": _dump_init(config.init),
        "hostname": config.hostname,
        "user": config.user,
        "labels": dict(config.labels),
        "entrypoint": None if config.entrypoint is None else list(config.entrypoint),
        "cmd": None if config.cmd is None else list(config.cmd),
        "pull_policy": _PULL_POLICIES[config.pull_policy],
        "policy": {
            "max_duration_secs": config.max_duration_secs,
            "idle_timeout_secs": config.idle_timeout_secs,
            # Ours: a document without it stays that of microsandbox.
            **({} if config.pause_after_secs is None else {"pause_after_secs": config.pause_after_secs}),
        },
        "manifest_digest": config.manifest_digest,
    }
    return json.dumps(document, separators=(",", ":"))


def _dump_mount(mount: TmpfsMount) -> dict[str, Any]:
    options = {name: getattr(mount, name) for name in _MOUNT_FLAGS}
    return {"type": "Tmpfs", "guest": mount.guest, "size_mib": mount.size_mib, "options": options}


def load_config(document: str) -> SandboxConfig:
    """The configuration in a document of ``dump_config``.

    Raises InvalidConfigError when it is damaged, NotSupportedYetError when it asks for what only a later
    release has.
    """
    try:
        values = json.loads(document)
        _refuse_later_features(values)
        return _load(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidConfigError(
            f"the stored configuration of the sandbox is damaged ({type(error).__name__}: {error}); "
            "remove the sandbox and create it again"
        ) from error


def _refuse_later_features(values: Mapping[str, Any]) -> None:
    asked = {
        "bind and disk image root file systems": "Oci" not in values["image"],
        "mounts other than tmpfs": any(mount["type"] != "Tmpfs" for mount in values["mounts"]),
        "network": bool(values["network"]["enabled"]),
    }
    for feature, wanted in asked.items():
        if wanted:
            raise NotSupportedYetError(feature)


def _load(values: Mapping[str, Any]) -> SandboxConfig:
    image, policy = values["image"]["Oci"], {"pause_after_secs": None, **values["policy"]}
    policies = {stored: policy for policy, stored in _PULL_POLICIES.items()}
    return SandboxConfig(
        name=_typed(values, "name", str),
        image=OciImage(_typed(image, "reference", str), _typed(image, "upper_size_mib", int)),
        cpus=_typed(values, "cpus", int),
        memory_mib=_typed(values, "memory_mib", int),
        log_level=_typed(values, "log_level", str, None),
        workdir=_typed(values, "workdir", str, None),
        shell=_typed(values, "shell", str, None),
        hostname=_typed(values, "hostname", str, None),
        user=_typed(values, "user", str, None),
        entrypoint=_texts(values["entrypoint"]),
        cmd=_texts(values["cmd"]),
        env=tuple((str(key), str(value)) for key, value in values["env"]),
        labels={key: str(value) for key, value in values["labels"].items()},
        scripts={key: str(value) for key, value in values["scripts"].items()},
        tmpfs_mounts=tuple(_load_mount(mount) for mount in values["mounts"]),
        security_profile=SecurityProfile(values["security_profile"]).value,
        init=_load_init(values["init"]),
        rlimits=tuple(_load_rlimit(limit) for limit in values["rlimits"]),
        pull_policy=policies[values["pull_policy"]],
        max_duration_secs=_typed(policy, "max_duration_secs", int, None),
        idle_timeout_secs=_typed(policy, "idle_timeout_secs", int, None),
        pause_after_secs=_typed(policy, "pause_after_secs", int, None),
        metrics_sample_interval_ms=_typed(values, "metrics_sample_interval_ms", int, None) or 0,
        disable_metrics_sample=_typed(values, "disable_metrics_sample", bool),
        manifest_digest=_typed(values, "manifest_digest", str, None),
    )


def _load_mount(values: Mapping[str, Any]) -> TmpfsMount:
    flags = {name: bool(values["options"][name]) for name in _MOUNT_FLAGS}
    return TmpfsMount(_typed(values, "guest", str), _typed(values, "size_mib", int, None), **flags)


def _dump_init(init: Init | None) -> dict[str, Any] | None:
    if init is None:
        return None
    return {"cmd": init.cmd, "args": list(init.args), "env": [list(pair) for pair in init.env]}


def _load_init(values: Any) -> Init | None:
    if values is None:
        return None
    env = tuple((str(key), str(value)) for key, value in values["env"])
    return Init(_typed(values, "cmd", str), _texts(values["args"]) or (), env)


def _dump_rlimit(limit: ResourceLimit) -> dict[str, Any]:
    return {"resource": limit.resource.capitalize(), "soft": limit.soft, "hard": limit.hard}


def _load_rlimit(values: Mapping[str, Any]) -> ResourceLimit:
    from microsandbox.types import RlimitResource

    resource = RlimitResource(_typed(values, "resource", str).lower()).value
    return ResourceLimit(resource, _typed(values, "soft", int), _typed(values, "hard", int))


def _typed(values: Mapping[str, Any], key: str, *kinds: type | None) -> Any:
    value = values[key]
    if not any(value is None if kind is None else type(value) is kind for kind in kinds):
        raise TypeError(f"{key} is {type(value).__name__}")
    return value


def _texts(words: Any) -> tuple[str, ...] | None:
    return None if words is None else tuple(str(word) for word in words)
