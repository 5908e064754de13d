"""Archives in cpio's "newc" format, which the kernel unpacks as its first root file system.

Described in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Times and inode
numbers are fixed, so equal content makes equal archives.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import IO

from msgspec import Struct

_MAGIC = b"070701"
_HEADER_SIZE = 110
_TRAILER = "TRAILER!!!"
_MAX_NAME = 4096


class CpioError(ValueError):
    """The archive is damaged or holds more than it may."""


class Entry(Struct, frozen=True):
    """One file of an archive. ``name`` has no leading slash; ``mode`` is st_mode, type included."""

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)

    @classmethod
    def directory(cls, name: str, permissions: int = 0o755) -> Entry:
        return cls(name, stat.S_IFDIR | permissions)

    @classmethod
    def file(cls, name: str, content: bytes, permissions: int = 0o644) -> Entry:
        return cls(name, stat.S_IFREG | permissions, content)

    @classmethod
    def character_device(cls, name: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
        return cls(name, stat.S_IFCHR | permissions, device=(major, minor))


class CpioWriter:
    """Writes entries to ``file``, directories before what is in them; ``finish()`` completes the archive."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._inode = 0

    def add(self, entry: Entry) -> None:
        self._inode += 1
        self._write(self._inode, entry)

    def finish(self) -> None:
        self._write(0, Entry(_TRAILER, 0))

    def _write(self, inode: int, entry: Entry) -> None:
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (inode, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
        header = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
        self._file.write(_padded(header))
        self._file.write(_padded(entry.content))


def read_entries(data: bytes) -> Iterator[Entry]:
    """The entries of an archive, its trailer excluded. Raises CpioError."""
    position = 0
    while True:
        header = data[position : position + _HEADER_SIZE]
        if len(header) != _HEADER_SIZE or not header.startswith(_MAGIC):
            raise CpioError(f"no entry at byte {position}: the archive is damaged or cut short")
        try:
            fields = [int(header[start : start + 8], 16) for start in range(6, _HEADER_SIZE, 8)]
        except ValueError as error:
            raise CpioError(f"damaged entry at byte {position}") from error
        mode, size, device, name_size = fields[1], fields[6], (fields[9], fields[10]), fields[11]
        if not 1 < name_size <= _MAX_NAME:
            raise CpioError(f"damaged entry at byte {position}: a name of {name_size} bytes")
        position += _HEADER_SIZE
        name = data[position : position + name_size - 1].decode("utf-8", "surrogateescape")
        if name == _TRAILER:
            return
        position += name_size + -(_HEADER_SIZE + name_size) % 4
        content = data[position : position + size]
        if len(content) != size:
            raise CpioError(f"{name} is cut short: {len(content)} of {size} bytes")
        yield Entry(name, mode, content, device)
        position += size + -size % 4


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
