"""``list``, ``status`` and ``inspect``.

They read the catalogue without an event loop: ``Sandbox.list_with`` would return the same rows, but asyncio
and the agent's client take longer to import than the answer takes to find.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from microsandbox.cli import output
from microsandbox.cli.model import Invocation
from microsandbox.sandbox.context import Context
from microsandbox.store.home import validate_name
from microsandbox.store.sandboxes import SandboxRow, Status
from microsandbox.units import MIB, format_bytes

_IMAGE_WIDTH, _COMMAND_WIDTH, _PORTS_WIDTH = 36, 40, 32
_RUNNING = (Status.RUNNING, Status.DRAINING)
_REDACTED = "[redacted]"


def list_sandboxes(invocation: Invocation) -> int:
    rows = Context.current().sandboxes.list(dict(invocation["label"]))
    if invocation["running"]:
        rows = [row for row in rows if row.status in _RUNNING]
    elif invocation["stopped"]:
        rows = [row for row in rows if row.status.terminal]
    if invocation["format"]:
        output.write_json([_summary(row) for row in rows])
    elif invocation["quiet"]:
        _print_names(rows)
    elif not rows:
        output.say("No sandboxes found.")
    else:
        cells = [
            (
                output.printable(row.name),
                output.printable(_image_of(_config(row)) or "-"),
                output.status(row.status),
                output.local_time(row.created_at),
            )
            for row in rows
        ]
        sys.stdout.write(output.table(("NAME", "IMAGE", "STATUS", "CREATED"), cells))
    return 0


def status(invocation: Invocation) -> int:
    catalog = Context.current().sandboxes
    name: str | None = invocation["name"]
    if name is not None:
        rows = [catalog.get(validate_name(name))]
    else:
        rows = sorted(catalog.list(dict(invocation["label"])), key=lambda row: row.name)
        if not invocation["all"]:
            rows = [row for row in rows if not row.status.terminal]
    if invocation["format"]:
        found = [_activity(row) for row in rows]
        output.write_json(found if name is None else found[0])
    elif invocation["quiet"]:
        _print_names(rows)
    elif not rows:
        output.say("No sandboxes found." if invocation["all"] else "No running sandboxes.")
    else:
        headers = ("NAME", "IMAGE", "COMMAND", "STATUS", "PORTS")
        sys.stdout.write(output.table(headers, [_activity_cells(row) for row in rows]))
    return 0


def inspect(invocation: Invocation) -> int:
    row = Context.current().sandboxes.get(validate_name(invocation["name"]))
    config = redacted(_config(row))
    if invocation["format"]:
        output.write_json(
            {
                "name": row.name,
                "status": row.status.value,
                "config": config,
                "created_at": output.rfc3339(row.created_at),
                "updated_at": output.rfc3339(row.updated_at),
            }
        )
    else:
        sys.stdout.write("\n".join(_detail_lines(row, config)) + "\n")
    return 0


def redacted(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the names of its secrets, but not their values."""
    network = config.get("network")
    secrets = network.get("secrets") if isinstance(network, dict) else None
    for entry in (secrets.get("secrets") if isinstance(secrets, dict) else None) or ():
        if isinstance(entry, dict) and "value" in entry:
            entry["value"] = _REDACTED
    return config


def _config(row: SandboxRow) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(row.config)
    return values


def _print_names(rows: Sequence[SandboxRow]) -> None:
    for row in rows:
        sys.stdout.write(f"{row.name}\n")


def _summary(row: SandboxRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "status": row.status.value,
        "created_at": output.rfc3339(row.created_at),
        "image": _image_of(_config(row)),
    }


def _activity(row: SandboxRow) -> dict[str, Any]:
    config = _config(row)
    return {
        "name": row.name,
        "status": row.status.value,
        "image": _image_of(config),
        "command": _command_of(config),
        "ports": _ports_of(config),
    }


def _activity_cells(row: SandboxRow) -> tuple[str, ...]:
    values = _activity(row)
    command = f'"{values["command"]}"' if values["command"] else "-"
    return (
        output.printable(row.name),
        output.shorten(output.printable(values["image"] or "-"), _IMAGE_WIDTH),
        output.shorten(output.printable(command), _COMMAND_WIDTH),
        output.status(row.status),
        output.shorten(", ".join(values["ports"]) or "-", _PORTS_WIDTH),
    )


def _image_of(config: Mapping[str, Any]) -> str | None:
    """The reference or path of the root file system."""
    image = config.get("image")
    if not isinstance(image, dict) or not image:
        return image if isinstance(image, str) else None
    source = next(iter(image.values()))
    if isinstance(source, dict):
        source = source.get("reference") or source.get("path")
    return source if isinstance(source, str) else None


def _command_of(config: Mapping[str, Any]) -> str | None:
    words = [*(config.get("entrypoint") or ()), *(config.get("cmd") or ())]
    return " ".join(words) or None


def _ports_of(config: Mapping[str, Any]) -> list[str]:
    network = config.get("network")
    ports = network.get("ports") if isinstance(network, dict) else None
    return [
        f"{port['host_bind']}:{port['host_port']}->{port['guest_port']}/{port['protocol']}"
        for port in ports or ()
    ]


def _detail_lines(row: SandboxRow, config: Mapping[str, Any]) -> list[str]:
    lines = [
        output.detail("Name", row.name),
        output.detail("Status", "") + output.status(row.status),
        output.detail("Created", output.local_time(row.created_at)),
        output.detail("Updated", output.local_time(row.updated_at)),
        output.detail("Image", _image_of(config) or "-"),
    ]
    image = config.get("image")
    upper = image["Oci"].get("upper_size_mib") if isinstance(image, dict) and "Oci" in image else None
    if upper:
        lines.append(output.detail("OCI Upper", format_bytes(upper * MIB)))
    lines += [
        output.section("Resources"),
        output.indented("CPUs", str(config.get("cpus", "-"))),
        output.indented("Memory", format_bytes(config.get("memory_mib", 0) * MIB)),
        "",
        output.detail("Security", config.get("security_profile") or "default"),
        output.detail("Workdir", config.get("workdir") or "-"),
        output.detail("Shell", config.get("shell") or "-"),
    ]
    lines += _section("Environment", [(key, value) for key, value in config.get("env") or ()])
    lines += _section("Labels", sorted((config.get("labels") or {}).items()))
    if mounts := config.get("mounts"):
        lines += [output.section("Mounts"), *(f"  {output.printable(mount_line(mount))}" for mount in mounts)]
    return lines


def _section(title: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [output.section(title), *(output.indented(*pair) for pair in pairs)] if pairs else []


def mount_line(mount: Mapping[str, Any]) -> str:
    """``GUEST → SOURCE (rw,noexec) [stat-virt=off]``."""
    options = mount.get("options") or {}
    words = ["ro" if options.get("readonly") else "rw"]
    words += [word for word in ("noexec", "nosuid", "nodev") if options.get(word)]
    policies = [
        f"{name}={value}"
        for name, value, usual in (
            ("stat-virt", mount.get("stat_virtualization"), "strict"),
            ("host-perms", mount.get("host_permissions"), "private"),
        )
        if value and value != usual
    ]
    suffix = f" [{','.join(policies)}]" if policies else ""
    return f"{mount.get('guest')} → {_mount_source(mount)} ({','.join(words)}){suffix}"


def _mount_source(mount: Mapping[str, Any]) -> str:
    match mount.get("type"):
        case "Named":
            return f"volume:{mount.get('name')}"
        case "Tmpfs":
            size = mount.get("size_mib")
            return f"tmpfs ({size} MiB)" if size else "tmpfs"
        case "DiskImage":
            return f"disk:{mount.get('host')} ({mount.get('format')}) [{mount.get('fstype') or 'auto'}]"
    return str(mount.get("host"))
