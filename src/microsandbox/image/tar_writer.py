"""Writes tar headers with fixed, minimal fields: the same tree gives the same bytes.

What ustar cannot hold is written as GNU does (long names, base-256 numbers), extended attributes as PAX
``SCHILY.xattr`` records: the forms that squashfs-tools reads.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from microsandbox.image import tar_reader

_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s167x")
_MAGIC = b"ustar\x0000"
_BLANK = b" " * 8
END = bytes(2 * tar_reader.BLOCK)


def header(
    path: bytes,
    kind: int,
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """The header blocks of one entry; its data, padded to whole blocks, is the caller's to write."""
    front = b""
    if xattrs:
        records = b"".join(_pax_record(b"SCHILY.xattr." + key, xattrs[key]) for key in sorted(xattrs))
        front += _block(b"xattrs", b"x"[0], size=len(records)) + padded(records)
    if len(path) > 100:
        front += _block(b"path", b"L"[0], size=len(path) + 1) + padded(path + b"\0")
    if len(link) > 100:
        front += _block(b"link", b"K"[0], size=len(link) + 1) + padded(link + b"\0")
    return front + _block(path, kind, mode, uid, gid, size, mtime, link, device)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tar_reader.BLOCK)


def _block(
    path: bytes,
    kind: int,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    raw = bytearray(
        _HEADER.pack(
            path[:100],
            _number(mode, 8),
            _number(uid, 8),
            _number(gid, 8),
            _number(size, 12),
            _number(mtime, 12),
            _BLANK,
            bytes((kind,)),
            link[:100],
            _MAGIC,
            b"",
            b"",
            _number(device[0], 8),
            _number(device[1], 8),
        )
    )
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def _number(value: int, width: int) -> bytes:
    text = b"%0*o" % (width - 1, value)
    if len(text) < width:
        return text
    return b"\x80" + value.to_bytes(width - 1, "big")


def _pax_record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return str(length).encode() + body
