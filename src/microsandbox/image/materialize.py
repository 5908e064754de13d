"""From layers to a block image: what a pull and a load have in common.

Layers are read at the same time (as many as there are processors), merged, and packed into a file under a
temporary name; who asked publishes it together with the catalogue's rows.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from microsandbox.errors import ImageError, IoError
from microsandbox.image.layer import LayerContent, open_spool, read_layer, starts_compressed
from microsandbox.image.limits import Budget
from microsandbox.image.progress import Reporter, Steps
from microsandbox.image.squashfs import pack
from microsandbox.image.streams import file_chunks, write_at
from microsandbox.image.tasks import StopSignal, all_or_none, in_thread
from microsandbox.image.tree import Tree

#: Layers that are read at once; more only makes them wait for a processor.
_WORKERS = min(16, os.cpu_count() or 1)


class LayerSource(Struct, frozen=True):
    """Where a layer's blob is, and what must come of it.

    ``name`` is its digest or path, for error texts. ``blob`` checks the blob's own digest while it is
    read (a pull has done that already). ``positions`` are its places in the manifest.
    """

    name: str
    fd: int
    offset: int
    size: int
    diff_id: str
    positions: tuple[int, ...]
    blob: BlobCheck | None = None


class BlobCheck:
    """Hashes a blob while it is read and copies it to ``target``; knows its digest afterwards."""

    def __init__(self, expected: str | None, mismatch: str, target: Path | None) -> None:
        self.expected, self.mismatch, self.target = expected, mismatch, target
        self.digest: str | None = None

    def through(self, chunks: Iterator[bytes]) -> Generator[bytes]:
        hasher = hashlib.sha256()
        offset = 0
        with ExitStack() as opened:
            copy = None
            if self.target is not None:
                copy = os.open(self.target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                opened.callback(os.close, copy)
            for chunk in chunks:
                hasher.update(chunk)
                if copy is not None:
                    write_at(copy, chunk, offset)
                offset += len(chunk)
                yield chunk
        self.digest = f"sha256:{hasher.hexdigest()}"

    def verify(self, source: LayerSource) -> None:
        """Raises ImageError when the blob is not what it should be. Reads the rest of it if need be."""
        if self.digest is None:
            self.target = None
            for _ in self.through(file_chunks(source.fd, source.offset, source.size, lambda: None)):
                pass
        if self.expected is not None and self.digest != self.expected:
            raise ImageError(f"{self.mismatch}: expected {self.expected}, got {self.digest}")


async def read_layers(
    sources: Sequence[LayerSource], budget: Budget, staging: Path, owner: ExitStack, reporter: Reporter
) -> list[LayerContent]:
    """The contents of the layers, in the order of the sources. Raises ImageError, IoError.

    Files opened for them are closed by ``owner``.
    """
    slots = asyncio.Semaphore(_WORKERS)

    async def read(source: LayerSource) -> LayerContent:
        async with slots:
            return await read_one(source, budget, staging, owner, reporter)

    return await all_or_none([read(source) for source in sources])


async def read_one(
    source: LayerSource, budget: Budget, staging: Path, owner: ExitStack, reporter: Reporter
) -> LayerContent:
    """As read_layers(), one layer."""

    def each(event: str, **fields: object) -> None:
        for position in source.positions:
            reporter.emit(event, layer_index=position, **fields)

    def work(stop: StopSignal) -> LayerContent:
        each("layer_materialize_started", diff_id=source.diff_id)
        steps = Steps(
            lambda count: each("layer_materialize_progress", bytes_read=count, total_bytes=source.size)
        )

        def finish() -> None:
            steps.flush()
            each("layer_materialize_writing")

        content = _read(source, budget, staging, owner, stop, steps, finish)
        each("layer_materialize_complete", diff_id=source.diff_id)
        return content

    return await in_thread(work)


def _read(
    source: LayerSource,
    budget: Budget,
    staging: Path,
    owner: ExitStack,
    stop: StopSignal,
    steps: Steps,
    finish: Callable[[], None],
) -> LayerContent:
    chunks = _counted(file_chunks(source.fd, source.offset, source.size, stop.check), steps)
    if source.blob is not None:
        chunks = source.blob.through(chunks)
    try:
        if starts_compressed(source.fd, source.offset, source.size):
            content = read_layer(chunks, True, open_spool(staging, owner), budget, finish)
        else:
            content = read_layer(chunks, False, source.fd, budget, finish)
            for member in content.entries:
                member.data_offset += source.offset
        if source.blob is not None:
            source.blob.verify(source)
    except ValueError as error:
        if source.blob is not None:
            source.blob.verify(source)
        raise ImageError(f"materialization failed for layer {source.name}: {error}") from error
    except OSError as error:
        raise disk_error(f"layer {source.name} cannot be unpacked in {staging}", error) from error
    finally:
        chunks.close()
    if content.diff_id != source.diff_id:
        raise ImageError(
            f"digest mismatch for layer {source.name}: expected {source.diff_id}, got {content.diff_id}"
        )
    return content


def _counted(chunks: Iterator[bytes], steps: Steps) -> Generator[bytes]:
    for chunk in chunks:
        yield chunk
        steps.add(len(chunk))


async def pack_layers(layers: Sequence[tuple[str, LayerContent]], target: Path, reporter: Reporter) -> int:
    """Merge the layers, bottom first and each with its name, into the block image ``target``.

    Returns its size in bytes. Raises ImageError, IoError, PrerequisiteError; ``target`` is not there then.
    """

    def work(stop: StopSignal) -> int:
        reporter.emit("stitch_merging_trees", layer_count=len(layers))
        tree = Tree()
        for name, content in layers:
            try:
                tree.apply(content)
            except ValueError as error:
                raise ImageError(f"materialization failed for layer {name}: {error}") from error
        reporter.emit("stitch_writing_fsmeta")
        return pack(tree, target, stop)

    try:
        return await in_thread(work)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise disk_error(f"the image cannot be packed in {target.parent}", error) from error
        raise


def disk_error(what: str, error: OSError) -> IoError:
    """One sentence for a disk that is full, read-only or broken."""
    return IoError(f"{what}: {error.strerror} (os error {error.errno})")


async def sync(path: Path) -> None:
    """Bring a finished file to the disk: one that a power loss emptied would still have its row."""

    def work(_: StopSignal) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    await in_thread(work)
