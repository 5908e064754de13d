"""Options of ``create`` that belong to later releases.

Each is checked as it will be, so that a mistake is reported as what it is, and then refused if it asks for
anything: an option that is accepted without effect would be a promise broken in silence. What is empty asks
for nothing.
"""

from __future__ import annotations

from microsandbox.arguments import (
    check_keys,
    dict_like,
    flag,
    optional,
    plain_list,
    required,
    text,
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


def libkrunfw_path(value: object) -> None:
    text(value)
    raise UnsupportedOperationError(
        "libkrunfw_path: sandboxes run under QEMU with a kernel of their own; MSB_KERNEL chooses another"
    )


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
