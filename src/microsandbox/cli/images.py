"""``pull``, ``load`` and ``image …``: the images that sandboxes are made from."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microsandbox.cli import output
from microsandbox.cli.failures import report
from microsandbox.cli.interrupts import run_cancellable
from microsandbox.cli.model import Invocation
from microsandbox.cli.pull_display import PullDisplay
from microsandbox.cli.spinner import progress, spinner
from microsandbox.errors import MicrosandboxError
from microsandbox.image.public import Image
from microsandbox.store.files import make_private, partial_path
from microsandbox.store.home import Home
from microsandbox.streams import Input
from microsandbox.units import format_bytes

if TYPE_CHECKING:
    from microsandbox.image.public import ImageDetail, ImageHandle

#: Characters of a digest in a table, after "sha256:".
_SHORT_DIGEST = 12
#: Bytes an archive on standard input may have; it is kept on disk while it is read.
_MAX_ARCHIVE = 64 << 30


def pull(invocation: Invocation) -> int:
    ca_certs: str | None = invocation["ca_certs"]
    if ca_certs is not None:
        try:
            Path(ca_certs).read_bytes()
        except OSError as error:
            raise MicrosandboxError(f"failed to read CA certs from `{ca_certs}`: {error.strerror}") from error
    return run_cancellable(lambda: _pull(invocation))


async def _pull(invocation: Invocation) -> int:
    with PullDisplay(invocation["reference"], quiet=invocation["quiet"], summary=True) as display:
        await Image.pull(
            invocation["reference"],
            force=invocation["force"],
            insecure=invocation["insecure"],
            ca_certs=invocation["ca_certs"],
            progress=display.show,
        )
    return 0


def load(invocation: Invocation) -> int:
    return run_cancellable(lambda: _load(invocation))


async def _load(invocation: Invocation) -> int:
    source: str | None = invocation["input"]
    quiet: bool = invocation["quiet"]
    if source is None and os.isatty(0):
        raise MicrosandboxError("standard input is a terminal: pipe an archive in, or name one with --input")
    started = time.monotonic()
    with _archive(source) as path:
        async with spinner("Loading", source or "standard input", quiet=quiet):
            if source is None:
                await _spool(path)
            references = await Image.load(path, tags=invocation["tag"])
    if invocation["format"]:
        output.write_json(references)
    elif not quiet:
        for reference in references:
            output.success("Loaded", reference, time.monotonic() - started)
    return 0


@contextmanager
def _archive(source: str | None) -> Iterator[Path]:
    """The archive's path: a temporary file when it comes through standard input."""
    if source is not None:
        yield Path(source)
        return
    path = partial_path(make_private(Home.open().cache) / "archive")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


async def _spool(path: Path) -> None:
    size = 0
    with Input(0) as stdin, path.open("xb") as file:
        while data := await stdin.read():
            size += len(data)
            if size > _MAX_ARCHIVE:
                raise MicrosandboxError(f"the archive is larger than {format_bytes(_MAX_ARCHIVE)}")
            await asyncio.to_thread(file.write, data)


def list_images(invocation: Invocation) -> int:
    return run_cancellable(lambda: _list(invocation))


async def _list(invocation: Invocation) -> int:
    images = await Image.list()
    if invocation["format"]:
        output.write_json([_summary(image) for image in images])
    elif invocation["quiet"]:
        for image in images:
            sys.stdout.write(f"{output.printable(image.reference)}\n")
    elif not images:
        output.say("No images found.")
    else:
        cells = [
            (
                output.printable(image.reference),
                short_digest(image.manifest_digest),
                "-" if image.size_bytes is None else format_bytes(image.size_bytes),
                output.local_time(_seconds(image.created_at)),
            )
            for image in images
        ]
        sys.stdout.write(output.table(("REFERENCE", "DIGEST", "SIZE", "CREATED"), cells))
    return 0


def inspect(invocation: Invocation) -> int:
    return run_cancellable(lambda: _inspect(invocation))


async def _inspect(invocation: Invocation) -> int:
    detail = await Image.inspect(invocation["reference"])
    if invocation["format"]:
        output.write_json(_document(detail))
    else:
        sys.stdout.write("\n".join(_detail_lines(detail)) + "\n")
    return 0


def remove(invocation: Invocation) -> int:
    return run_cancellable(lambda: _remove(invocation))


async def _remove(invocation: Invocation) -> int:
    """Try all of them, and say of each what is wrong."""
    failed = False
    for reference in dict.fromkeys(invocation["reference"]):
        try:
            async with progress("Removing", "Removed", reference, quiet=invocation["quiet"]):
                await Image.remove(reference, force=invocation["force"])
        except (MicrosandboxError, OSError) as error:
            report(error)
            failed = True
    if failed:
        raise MicrosandboxError("some images failed to remove")
    return 0


def prune(invocation: Invocation) -> int:
    if not invocation["yes"] and not _confirmed():
        output.say("Aborted.")
        return 0
    return run_cancellable(lambda: _prune(invocation))


def _confirmed() -> bool:
    if not os.isatty(0):
        raise MicrosandboxError("non-interactive terminal; use --yes to prune cached images")
    sys.stderr.write("Remove all cached images not used by sandboxes? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


async def _prune(invocation: Invocation) -> int:
    started = time.monotonic()
    async with spinner("Pruning", "image cache", quiet=invocation["quiet"]):
        found = await Image.prune()
    counts = {
        "image_refs_removed": found.image_refs_removed,
        "manifests_removed": found.manifests_removed,
        "layers_removed": found.layers_removed,
        "fsmeta_removed": found.fsmeta_removed,
        "vmdk_removed": found.vmdk_removed,
        "bytes_reclaimed": found.bytes_reclaimed,
    }
    if invocation["format"]:
        output.write_json(counts)
    elif not any(counts.values()):
        if not invocation["quiet"]:
            output.say("Nothing to prune.")
    elif not invocation["quiet"]:
        output.success("Pruned", "image cache", time.monotonic() - started)
        output.say(
            f"     {found.image_refs_removed} references, {found.manifests_removed} manifests, "
            f"{found.layers_removed} layers, {format_bytes(found.bytes_reclaimed or 0)} reclaimed"
        )
    return 0


def _summary(image: ImageHandle) -> dict[str, Any]:
    return {
        "reference": image.reference,
        "digest": image.manifest_digest,
        "size_bytes": image.size_bytes,
        "architecture": image.architecture,
        "os": image.os,
        "layer_count": image.layer_count,
        "created_at": output.rfc3339(_seconds(image.created_at)),
    }


def _document(detail: ImageDetail) -> dict[str, Any]:
    config = detail.config
    names = ("digest", "env", "cmd", "entrypoint", "working_dir", "user", "labels", "stop_signal")
    fields = (
        "diff_id",
        "blob_digest",
        "media_type",
        "compressed_size_bytes",
        "erofs_size_bytes",
        "position",
    )
    return {
        **_summary(detail.handle),
        "config": None if config is None else {name: getattr(config, name) for name in names},
        "layers": [{name: getattr(layer, name) for name in fields} for layer in detail.layers],
    }


def _detail_lines(detail: ImageDetail) -> list[str]:
    image, config = detail.handle, detail.config
    size = "-" if image.size_bytes is None else format_bytes(image.size_bytes)
    lines = [
        output.detail("Reference", image.reference),
        output.detail("Digest", image.manifest_digest or "-"),
        output.detail("Size", size),
        output.detail("Architecture", image.architecture or "-"),
        output.detail("OS", image.os or "-"),
        output.detail("Created", output.local_time(_seconds(image.created_at))),
    ]
    if config is not None:
        lines += [
            output.section("Config"),
            output.indented("Entrypoint", " ".join(config.entrypoint or ()) or "-"),
            output.indented("Cmd", " ".join(config.cmd or ()) or "-"),
            output.indented("Workdir", config.working_dir or "-"),
            output.indented("User", config.user or "-"),
        ]
        if config.env:
            lines.append(output.section("Environment"))
            lines += [output.indented(*_pair(entry)) for entry in config.env]
        if config.labels:
            lines.append(output.section("Labels"))
            lines += [output.indented(key, value) for key, value in sorted(config.labels.items())]
    lines.append(output.section("Layers"))
    for layer in detail.layers:
        amount = "-" if layer.compressed_size_bytes is None else format_bytes(layer.compressed_size_bytes)
        lines.append(output.indented(str(layer.position + 1), f"{short_digest(layer.diff_id)}  {amount}"))
    return lines


def _pair(entry: str) -> tuple[str, str]:
    key, _, value = entry.partition("=")
    return key, value


def short_digest(digest: str | None) -> str:
    """As in tables: ``sha256:`` and the first digits, or ``-``."""
    if digest is None:
        return "-"
    algorithm, _, value = digest.partition(":")
    return output.printable(f"{algorithm}:{value[:_SHORT_DIGEST]}")


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
