"""One blob from a registry to the store: resumed where it broke off, verified, there for all at once.

The unfinished file keeps its name, so that the next try, in this process or another, goes on where this
one stopped. A lock per blob makes others wait for the first rather than download it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from microsandbox.errors import ImagePullFailedError
from microsandbox.image.blobs import BlobStore
from microsandbox.image.documents import Descriptor
from microsandbox.image.materialize import disk_error
from microsandbox.image.progress import Steps
from microsandbox.image.registry import RefusedError, Registry, TransientError
from microsandbox.image.streams import file_chunks, write_at
from microsandbox.image.tasks import StopSignal, in_thread, locked

if TYPE_CHECKING:
    import httpx

#: Bytes that are gathered before a thread hashes and writes them.
_BATCH = 1 << 19
#: Connections for one blob, whatever progress each made.
_MAX_CONNECTIONS = 100
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


async def download_blob(
    registry: Registry,
    repository: str,
    descriptor: Descriptor,
    blobs: BlobStore,
    *,
    force: bool,
    report: Callable[[int], None],
) -> None:
    """Bring the blob into the store; ``report`` is told how many bytes are there.

    Nothing is fetched when it is there already (not with ``force``) or another process brings it.
    Raises ImagePullFailedError, IoError.
    """
    async with locked(blobs.lock("blob", descriptor.digest)):
        if not force and blobs.touch(descriptor.digest):
            return
        path = blobs.part(descriptor.digest)
        if force:
            path.unlink(missing_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                part = _Part(fd, descriptor, report)
                await _fetch(registry, repository, part)
            finally:
                if not os.fstat(fd).st_size and descriptor.size:
                    path.unlink(missing_ok=True)
                os.close(fd)
            path.rename(blobs.blob(descriptor.digest))
        except OSError as error:
            raise disk_error(f"layer {descriptor.digest} cannot be stored in {path.parent}", error) from error


class _Part:
    """The unfinished file, with the hash of what it has."""

    def __init__(self, fd: int, descriptor: Descriptor, report: Callable[[int], None]) -> None:
        self.descriptor = descriptor
        self.fd = fd
        self.size = 0
        self.inherited = False
        self._hash = hashlib.sha256()
        self._report = report
        self._steps = Steps(report)

    async def inherit(self) -> None:
        """Take over what an earlier try left."""
        size = os.fstat(self.fd).st_size
        if size > self.descriptor.size:
            self.restart()
            return

        def read(stop: StopSignal) -> None:
            for chunk in file_chunks(self.fd, 0, size, stop.check):
                self._hash.update(chunk)

        await in_thread(read)
        self.size, self.inherited = size, size > 0
        self._steps.add(size)

    def restart(self) -> None:
        os.ftruncate(self.fd, 0)
        self.size, self.inherited = 0, False
        self._hash = hashlib.sha256()
        self._steps = Steps(self._report)

    async def append(self, data: bytes) -> None:
        def write(_: StopSignal) -> None:
            self._hash.update(data)
            write_at(self.fd, data, self.size)
            self.size += len(data)

        await in_thread(write)
        self._steps.add(len(data))

    @property
    def complete(self) -> bool:
        return self.size == self.descriptor.size

    def verify(self) -> str:
        """The digest of the whole."""
        self._steps.flush()
        return f"sha256:{self._hash.hexdigest()}"


async def _fetch(registry: Registry, repository: str, part: _Part) -> None:
    await part.inherit()
    failures = connections = 0
    while True:
        while not part.complete:
            before = part.size
            connections += 1
            try:
                await _transfer(registry, repository, part)
            except TransientError as error:
                failures = 1 if part.size > before else failures + 1
                if failures >= registry.retry.attempts or connections >= _MAX_CONNECTIONS:
                    raise registry.failure(
                        repository, f"blob {part.descriptor.digest}: {error} ({connections} attempts)"
                    ) from error
                await asyncio.sleep(registry.retry.wait(failures, error.retry_after))
        found = part.verify()
        if found == part.descriptor.digest:
            return
        if not part.inherited:
            part.restart()
            raise ImagePullFailedError(
                f"digest mismatch for layer {part.descriptor.digest}: "
                f"expected {part.descriptor.digest}, got {found}"
            )
        part.restart()  # what an earlier try left may be what is wrong


async def _transfer(registry: Registry, repository: str, part: _Part) -> None:
    """Append what one connection brings. Raises TransientError when it ends early."""
    headers = {"Range": f"bytes={part.size}-"} if part.size else {}
    try:
        async with registry.get(repository, f"blobs/{part.descriptor.digest}", headers) as response:
            if not _starts_at(response, part.size):
                part.restart()
                if response.status_code == 206:
                    raise TransientError("the registry sent another range than was asked for")
            await _receive(registry, repository, part, response)
    except RefusedError as error:
        if part.size and error.status == 416:
            part.restart()
            raise TransientError("the registry does not resume there") from error
        raise
    if not part.complete:
        raise TransientError(f"connection ended after {part.size} of {part.descriptor.size} bytes")


async def _receive(registry: Registry, repository: str, part: _Part, response: httpx.Response) -> None:
    batch, oversized = bytearray(), False
    try:
        async for chunk in response.aiter_raw():
            batch += chunk
            if part.size + len(batch) > part.descriptor.size:
                oversized = True
                part.restart()
                raise registry.failure(
                    repository,
                    f"blob {part.descriptor.digest} is larger than the {part.descriptor.size} bytes "
                    "of its descriptor",
                )
            if len(batch) >= _BATCH:
                data, batch = bytes(batch), bytearray()
                await part.append(data)
    finally:
        # A connection that broke, or a cancelled pull, leaves what had come for the next try.
        if batch and not oversized:
            await part.append(bytes(batch))


def _starts_at(response: httpx.Response, offset: int) -> bool:
    """Whether the body starts at the offset; a server may send the whole instead of a range."""
    if response.status_code != 206:
        return offset == 0
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return match is not None and int(match[1]) == offset
