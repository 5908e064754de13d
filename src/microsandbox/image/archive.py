"""Image archives: where their members are, without unpacking them.

A plain tar is used where it lies; a compressed one, and a stream, is written once to a file without a
name. Members are then parts of one open file: nothing is extracted, so no name in an archive ever becomes
a path on the host. (Only a layout that is a directory has paths, and those are opened without following
links.)
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from msgspec import Struct

from microsandbox.errors import ImageError
from microsandbox.image import tar_reader
from microsandbox.image.compression import CompressionError, decompress, is_compressed
from microsandbox.image.layer import normalize, open_spool
from microsandbox.image.limits import MAX_METADATA_BYTES, Limits, quoted
from microsandbox.image.streams import FileStream, ReadAhead, SpoolStream, Stream, file_chunks
from microsandbox.image.tar_reader import TarError, check_rest, read_members
from microsandbox.image.tasks import StopSignal

NOT_AN_IMAGE = "archive missing manifest.json or oci-layout"


class Part(Struct, frozen=True):
    """A member's content: ``size`` bytes at ``offset`` of an open file."""

    name: str
    fd: int
    offset: int
    size: int

    def read(self) -> bytes:
        """All of it: for metadata. Raises ImageError when it is too large for that."""
        if self.size > MAX_METADATA_BYTES:
            raise ImageError(
                f"archive metadata entry {self.name} is {self.size} bytes; max is {MAX_METADATA_BYTES}"
            )
        content = os.pread(self.fd, self.size, self.offset)
        if len(content) != self.size:
            raise ImageError(f"archive entry {self.name} is truncated")
        return content


class Archive(ABC):
    """The members of an archive, by name."""

    @abstractmethod
    def find(self, name: str) -> Part | None:
        """The regular file of that name. Raises ImageError when it is something else."""


class TarArchive(Archive):
    """An archive whose tar lies in an open file."""

    def __init__(self, fd: int, stream: Stream, limits: Limits) -> None:
        self._fd = fd
        self._parts: dict[bytes, Part] = {}
        self._links: dict[bytes, bytes] = {}
        self._others: set[bytes] = set()
        try:
            self._index(stream, limits)
        except TarError as error:
            detail = f"it is damaged: {error}" if self._parts else f"{NOT_AN_IMAGE}: {error}"
            raise ImageError(detail) from error

    def _index(self, stream: Stream, limits: Limits) -> None:
        count = 0
        for member in read_members(stream):
            count += 1
            if count > limits.archive_entries:
                raise ImageError(f"archive has more than {limits.archive_entries} entries")
            name = normalize(member.path)
            if member.type == tar_reader.DIRECTORY:
                continue
            if name in self._parts or name in self._links or name in self._others:
                raise ImageError(f"archive has two entries named {quoted(name)}")
            if member.type == tar_reader.REGULAR and member.sparse is None:
                self._parts[name] = Part(_text(name), self._fd, member.data_offset, member.size)
            elif member.type == tar_reader.SYMLINK:
                self._links[name] = member.link
            else:
                self._others.add(name)
        while rest := stream.read(1 << 20):
            check_rest(rest)

    def find(self, name: str) -> Part | None:
        raw = normalize(name.encode("utf-8", "surrogateescape"))
        if raw in self._others:
            raise ImageError(f"archive entry {quoted(raw)} is not a regular file")
        if raw in self._links:
            raw = self._resolve(raw)
        return self._parts.get(raw)

    def _resolve(self, name: bytes) -> bytes:
        """Where a link points within the archive: docker save writes equal layers once and links to them.

        Names only, and one step: what leaves the archive, or leads to another link, is refused.
        """
        target = self._links[name]
        parts = name.split(b"/")[:-1]
        for part in target.split(b"/"):
            if part == b"..":
                if not parts:
                    break
                parts.pop()
            elif part not in (b"", b"."):
                parts.append(part)
        else:
            found = b"/".join(parts)
            if not target.startswith(b"/") and found in self._parts:
                return found
        raise ImageError(
            f"archive entry {quoted(name)} is a link to {quoted(target)}, which is not a file of the archive"
        )


class LayoutDirectory(Archive):
    """An OCI layout in a directory."""

    def __init__(self, directory: Path, owner: ExitStack) -> None:
        self._owner = owner
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        owner.callback(os.close, self._root)

    def find(self, name: str) -> Part | None:
        *parents, last = PurePosixPath(_text(normalize(name.encode("utf-8", "surrogateescape")))).parts
        with ExitStack() as opened:
            directory = self._root
            try:
                for part in parents:
                    directory = os.open(
                        part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
                    )
                    opened.callback(os.close, directory)
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                fd = os.open(last, flags, dir_fd=directory)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise ImageError(f"image layout entry {name}: {error.strerror}") from error
        self._owner.callback(os.close, fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"image layout entry {name} is not a regular file")
        return Part(name, fd, 0, status.st_size)


def open_archive(
    source: Path | BinaryIO, spool_directory: Path, owner: ExitStack, limits: Limits, stop: StopSignal
) -> Archive:
    """The members of a file, a directory or a stream; files it opens are closed by ``owner``.

    Raises ImageError for what is not an image archive, OSError for what cannot be read.
    """
    if isinstance(source, Path):
        if source.is_dir():
            return LayoutDirectory(source, owner)
        file = owner.enter_context(source.open("rb", buffering=0))
        fd = file.fileno()
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and not is_compressed(os.pread(fd, 4, 0)):
            return TarArchive(fd, FileStream(fd), limits)
        if stat.S_ISREG(status.st_mode):
            chunks = file_chunks(fd, 0, status.st_size, stop.check)
        else:
            chunks = _stream_chunks(file, stop)
    else:
        chunks = _stream_chunks(source, stop)
    spool = open_spool(spool_directory, owner)
    with ReadAhead(decompress(chunks)) as pieces:
        stream = SpoolStream(iter(pieces), spool, limit=limits.archive_bytes, what="archive is too large")
        try:
            archive = TarArchive(spool, stream, limits)
            stream.finish()
        except CompressionError as error:
            raise ImageError(f"archive cannot be unpacked: {error}") from error
        except ValueError as error:
            raise ImageError(str(error)) from error
    return archive


def _stream_chunks(source: BinaryIO, stop: StopSignal) -> Iterator[bytes]:
    while chunk := source.read(1 << 18):
        stop.check()
        yield chunk


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
