"""Gives the root directory of a squashfs the owner and time that it should have.

squashfs-tools 4.5 takes them from the process that packs and the moment it does, whatever its options and
the tar say (measured: ``-root-uid`` and ``-root-time`` have no effect for sqfstar), so an image packed by
an ordinary user would have a root directory that is not root's, and no two packings would be equal.
The inode table is packed uncompressed (``-noI``), so the fields are at known places
(Documentation/filesystems/squashfs.rst); an owner that no file has is added to the id table.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from msgspec import Struct

from microsandbox.errors import ImageError

_SUPERBLOCK = struct.Struct("<5I6H8Q")
_MAGIC = 0x73717368
_METADATA_SIZE = 8192
_UNCOMPRESSED = 0x8000
_ABSENT = 2**64 - 1
_DIRECTORY_TYPES = (1, 8)
_IDS_PER_BLOCK = _METADATA_SIZE // 4


class _Superblock(Struct):
    """The fields used here, and all others as they were."""

    fields: list[int]

    # positions in the structure
    IDS, ROOT, USED, ID_TABLE, XATTR_TABLE, INODE_TABLE = 8, 11, 12, 13, 14, 15

    @classmethod
    def read(cls, fd: int) -> _Superblock:
        fields = list(_SUPERBLOCK.unpack(_read(fd, 0, _SUPERBLOCK.size)))
        if fields[0] != _MAGIC or fields[9:11] != [4, 0]:
            raise ImageError("the packing program did not write a squashfs 4.0 image")
        return cls(fields)

    def write(self, fd: int) -> None:
        _write(fd, 0, _SUPERBLOCK.pack(*self.fields))


def set_root(path: Path, *, uid: int, gid: int, mode: int, mtime: int) -> None:
    """Set the root directory's metadata in an image that was packed with an uncompressed inode table."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        superblock = _Superblock.read(fd)
        ids = _read_ids(fd, superblock)
        missing = [number for number in dict.fromkeys((uid, gid)) if number not in ids]
        if missing:
            ids += missing
            _rewrite_ids(fd, superblock, ids)
        inode = _RootInode(fd, superblock)
        kind = struct.unpack("<H", inode.read(0, 2))[0]
        if kind not in _DIRECTORY_TYPES:
            raise ImageError(f"the packed image has no root directory (inode type {kind})")
        inode.write(2, struct.pack("<HHHI", mode, ids.index(uid), ids.index(gid), mtime))
    finally:
        os.close(fd)


class _RootInode:
    """Bytes of the root inode, which may lie across two metadata blocks."""

    def __init__(self, fd: int, superblock: _Superblock) -> None:
        self._fd = fd
        root = superblock.fields[superblock.ROOT]
        self._block = superblock.fields[superblock.INODE_TABLE] + (root >> 16)
        self._offset = root & 0xFFFF

    def _place(self, position: int) -> int:
        block, offset = self._block, self._offset + position
        while offset >= _METADATA_SIZE:
            block += 2 + _metadata_length(self._fd, block)
            offset -= _METADATA_SIZE
        return block + 2 + offset

    def read(self, position: int, count: int) -> bytes:
        _metadata_length(self._fd, self._block)
        return b"".join(_read(self._fd, self._place(position + step), 1) for step in range(count))

    def write(self, position: int, data: bytes) -> None:
        for step, value in enumerate(data):
            _write(self._fd, self._place(position + step), bytes((value,)))


def _metadata_length(fd: int, block: int) -> int:
    length = int(struct.unpack("<H", _read(fd, block, 2))[0])
    if not length & _UNCOMPRESSED:
        raise ImageError("the packed image has a compressed inode table; squashfs-tools ignored -noI")
    return length & ~_UNCOMPRESSED


def _read_ids(fd: int, superblock: _Superblock) -> list[int]:
    count = superblock.fields[superblock.IDS]
    ids: list[int] = []
    for number in range(-(-count // _IDS_PER_BLOCK)):
        place = superblock.fields[superblock.ID_TABLE] + 8 * number
        block = int(struct.unpack("<Q", _read(fd, place, 8))[0])
        length = _metadata_length(fd, block)
        ids += struct.unpack(f"<{length // 4}I", _read(fd, block + 2, length))
    return ids


def _rewrite_ids(fd: int, superblock: _Superblock, ids: list[int]) -> None:
    """Write a longer id table in place of the old one and move the attributes, which follow it.

    The order must stay: the kernel takes the id table to end where the attributes begin.
    """
    fields = superblock.fields
    if len(ids) > 0xFFFF:
        raise ImageError(f"the image has more than {0xFFFF} different owners")
    index = fields[superblock.ID_TABLE]
    start = int(struct.unpack("<Q", _read(fd, index, 8))[0])
    old_end = index + 8 * -(-fields[superblock.IDS] // _IDS_PER_BLOCK)
    tail = _read(fd, old_end, fields[superblock.USED] - old_end)
    table, pointers = b"", []
    for first in range(0, len(ids), _IDS_PER_BLOCK):
        part = ids[first : first + _IDS_PER_BLOCK]
        pointers.append(start + len(table))
        table += struct.pack(f"<H{len(part)}I", _UNCOMPRESSED | 4 * len(part), *part)
    new_index = start + len(table)
    table += struct.pack(f"<{len(pointers)}Q", *pointers)
    shift = start + len(table) - old_end
    if fields[superblock.XATTR_TABLE] != _ABSENT:
        tail = _shift_xattrs(tail, old_end, fields[superblock.XATTR_TABLE], shift)
        fields[superblock.XATTR_TABLE] += shift
    fields[superblock.ID_TABLE], fields[superblock.IDS] = new_index, len(ids)
    fields[superblock.USED] += shift
    _write(fd, start, table + tail)
    os.ftruncate(fd, -(-fields[superblock.USED] // 4096) * 4096)
    superblock.write(fd)


def _shift_xattrs(tail: bytes, tail_start: int, table: int, shift: int) -> bytes:
    """The attribute section with its absolute addresses moved: where the pairs begin, and the id blocks."""
    place = table - tail_start
    pairs, count, unused = struct.unpack_from("<QII", tail, place)
    blocks = -(-count * 16 // _METADATA_SIZE)
    pointers = struct.unpack_from(f"<{blocks}Q", tail, place + 16)
    moved = struct.pack(
        f"<QII{blocks}Q", pairs + shift, count, unused, *(pointer + shift for pointer in pointers)
    )
    return tail[:place] + moved + tail[place + len(moved) :]


def _read(fd: int, offset: int, count: int) -> bytes:
    data = os.pread(fd, count, offset)
    if len(data) != count:
        raise ImageError("the packed image is truncated")
    return data


def _write(fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
