"""Options of ``create`` that belong to later releases.

Each is checked as it will be, so that a mistake is reported as what it is, and then refused if it asks for
anything: an option that is accepted without effect would be a promise broken in silence. What is empty asks
for nothing.
"""

from __future__ import annotations

from typing import Any

from microsandbox.arguments import (
    check_keys,
    dict_like,
    flag,
    optional,
    plain_list,
    required,
    text,
    text_list,
    text_map,
    whole,
)
from microsandbox.errors import NotSupportedYetError, UnsupportedOperationError

#: Keys of each kind of patch: required ones, then optional ones.
_PATCHES = {
    "text": (("path", "content"), ("mode", "replace")),
    "mkdir": (("path",), ("mode",)),
    "append": (("path", "content"), ()),
    "copy_file": (("src", "dst"), ("mode", "replace")),
    "copy_dir": (("src", "dst"), ("replace",)),
    "symlink": (("target", "link"), ("replace",)),
    "remove": (("path",), ()),
}
_PATCH_KEYS = frozenset({"kind", "path", "content", "src", "dst", "target", "link", "mode", "replace"})


def security(value: object) -> str:
    """``default``; the other profile is not there yet."""
    profile = text(value)
    if profile not in ("default", "restricted"):
        raise ValueError(f"invalid security profile: {profile}. Expected: default, restricted")
    if profile == "restricted":
        raise NotSupportedYetError("security='restricted'")
    return profile


def libkrunfw_path(value: object) -> None:
    text(value)
    raise UnsupportedOperationError(
        "libkrunfw_path: sandboxes run under QEMU with a kernel of their own; MSB_KERNEL chooses another"
    )


def init(value: Any) -> None:
    """A program that takes over PID 1."""
    if not isinstance(value, str):
        convert = getattr(value, "_to_dict", None)
        values = convert() if callable(convert) else value
        if not isinstance(values, dict):
            if callable(convert):
                raise TypeError("init._to_dict() must return a dict")
            raise TypeError("init must be str, dict with 'cmd', or InitConfig")
        check_keys(values, ("cmd", "args", "env"), "init key")
        required(values, "cmd", "init dict requires 'cmd'")
        optional(text_list, values.get("args"))
        optional(text_map, values.get("env"))
    raise NotSupportedYetError("init")


def registry_auth(value: object) -> None:
    values = dict_like(value)
    check_keys(values, ("username", "password"), "registry_auth key")
    for key in ("username", "password"):
        required(values, key, f"registry_auth.{key} required")
    raise NotSupportedYetError("registry_auth")


def patches(value: object) -> None:
    """Changes to the root file system; an empty list is none."""
    items = plain_list(value)
    for item in items:
        values = dict_like(item)
        check_keys(values, _PATCH_KEYS, "patch key")
        kind = required(values, "kind", "patch.kind required")
        if kind not in _PATCHES:
            raise ValueError(f"unknown patch kind: {kind}")
        keys, possible = _PATCHES[kind]
        for key in keys:
            required(values, key)
        if "mode" in possible:
            optional(whole, values.get("mode"))
        if "replace" in possible:
            optional(flag, values.get("replace"))
    if items:
        raise NotSupportedYetError("patches")
