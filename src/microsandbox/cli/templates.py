"""``template …``: the memory templates that sandboxes start from."""

from __future__ import annotations

import sys
from typing import Any

from microsandbox.cli import output
from microsandbox.cli.failures import refusing_arguments, report
from microsandbox.cli.images import short_digest
from microsandbox.cli.interrupts import run_cancellable
from microsandbox.cli.model import Invocation, UsageError
from microsandbox.cli.pull_display import PullDisplay
from microsandbox.cli.spinner import progress
from microsandbox.errors import MicrosandboxError
from microsandbox.image.public import Image
from microsandbox.store.home import Home
from microsandbox.template.public import Template, TemplateInfo, checked_shape
from microsandbox.units import MIB, format_bytes

#: Digits of an id in a table; as many as those of a digest.
_SHORT_ID = 12
_HEADERS = ("ID", "IMAGE", "CPUS", "MEMORY", "ACCEL", "SIZE", "LAST USED")


def list_templates(invocation: Invocation) -> int:
    return run_cancellable(lambda: _list(invocation))


async def _list(invocation: Invocation) -> int:
    templates = await Template.list()
    if invocation["format"]:
        output.write_json([_document(template) for template in templates])
    elif invocation["quiet"]:
        for template in templates:
            sys.stdout.write(f"{template.id}\n")
    elif not templates:
        output.say("No memory templates found.")
    else:
        sys.stdout.write(output.table(_HEADERS, [_cells(template) for template in templates]))
    return 0


def build(invocation: Invocation) -> int:
    return run_cancellable(lambda: _build(invocation))


async def _build(invocation: Invocation) -> int:
    image: str | None = invocation["image"]
    quiet: bool = invocation["quiet"]
    with refusing_arguments():
        cpus, memory = checked_shape(Home.open(), invocation["cpus"], invocation["memory"])
    if image is not None:
        with PullDisplay(image, quiet=quiet) as display:
            await Image.pull(image, progress=display.show)
    async with progress("Building", "Built", image or "a template without an image", quiet=quiet):
        built = await Template.build(image, cpus=cpus, memory=memory)
    if invocation["format"]:
        output.write_json(_document(built))
    return 0


def remove(invocation: Invocation) -> int:
    if not invocation["id"] and not invocation["all"]:
        raise UsageError("name a template, or give --all", invocation.path)
    return run_cancellable(lambda: _remove(invocation))


async def _remove(invocation: Invocation) -> int:
    """Try all of them, and say of each what is wrong."""
    if invocation["all"]:
        async with progress("Removing", "Removed", "all templates", quiet=invocation["quiet"]):
            await Template.remove_all()
        return 0
    failed = False
    for id in dict.fromkeys(invocation["id"]):
        try:
            async with progress("Removing", "Removed", id, quiet=invocation["quiet"]):
                await Template.remove(id)
        except (MicrosandboxError, OSError) as error:
            report(error)
            failed = True
    if failed:
        raise MicrosandboxError("some templates failed to remove")
    return 0


def _cells(template: TemplateInfo) -> tuple[str, ...]:
    image = template.image or short_digest(template.manifest_digest)
    return (
        template.id[:_SHORT_ID],
        output.printable(image),
        str(template.cpus),
        format_bytes(template.memory * MIB),
        template.accelerator,
        format_bytes(template.size_bytes),
        output.local_time(template.last_used_at / 1000),
    )


def _document(template: TemplateInfo) -> dict[str, Any]:
    return {
        "id": template.id,
        "image": template.image,
        "digest": template.manifest_digest,
        "upper_size_mib": template.upper_size_mib,
        "cpus": template.cpus,
        "memory_mib": template.memory,
        "accelerator": template.accelerator,
        "kernel": template.kernel,
        "qemu": template.qemu_version,
        "size_bytes": template.size_bytes,
        "created_at": output.rfc3339(template.created_at / 1000),
        "last_used_at": output.rfc3339(template.last_used_at / 1000),
    }
