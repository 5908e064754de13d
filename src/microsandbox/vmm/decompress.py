"""Decompression of what kernel packages hold: recognised by content, bounded in size.

gzip, xz, zstd, and LZ4 in the kernel's "legacy" frame (``lz4 -l``: a magic number, then blocks of at most
8 MiB, each after its size). A kernel's payload has its unpacked size appended, which all but LZ4 ignore.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

_GZIP, _XZ, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20
#: The kernel compresses itself with ``zstd -22 --ultra``, whose window is 128 MiB.
_ZSTD_WINDOW = 128 << 20


class DecompressError(ValueError):
    """The data is damaged, of an unknown format, or larger than allowed."""


def read_unpacked(path: Path, limit: int) -> bytes:
    """The file's content, unpacked if it is compressed; neither form may be larger than ``limit`` bytes.

    Raises DecompressError and OSError.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DecompressError(f"larger than {limit} bytes")
    return decompress(content, limit) if is_compressed(content) else content


def is_compressed(data: bytes) -> bool:
    """Whether ``data`` starts as one of the known formats does."""
    return _format(data) is not None


def decompress(data: bytes, limit: int) -> bytes:
    """The unpacked content, of at most ``limit`` bytes. What follows the compressed stream is ignored.

    Raises DecompressError.
    """
    unpack = _format(data)
    if unpack is None:
        raise DecompressError(
            f"neither gzip, xz, lz4 nor zstd (it starts with {data[:4].hex(' ') or 'nothing'})"
        )
    content = unpack(data, limit)
    if len(content) > limit:
        raise DecompressError(f"larger than {limit} bytes when unpacked")
    return content


def _format(data: bytes) -> Callable[[bytes, int], bytes] | None:
    for magic, unpack in ((_GZIP, _gzip), (_XZ, _xz), (_ZSTD, _zstd), (_LZ4_LEGACY, _lz4_legacy)):
        if data.startswith(magic):
            return unpack
    return None


# Each returns more than ``limit`` bytes, but not many more, for content that is larger than that.


def _gzip(data: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise DecompressError(f"damaged gzip data: {error}") from error
    return _whole(content, unpacker.eof, limit)


def _xz(data: bytes, limit: int) -> bytes:
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=256 << 20)
    try:
        content = unpacker.decompress(data, limit + 1)
    except lzma.LZMAError as error:
        raise DecompressError(f"damaged xz data: {error}") from error
    return _whole(content, unpacker.eof, limit)


def _zstd(data: bytes, limit: int) -> bytes:
    import zstandard

    pieces, size = [], 0
    try:
        unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
        view = memoryview(data)
        # Small pieces bound what one call can unpack: 4 bytes can be a block, and a block 128 KiB.
        for start in range(0, len(view), 512):
            pieces.append(unpacker.decompress(view[start : start + 512]))
            size += len(pieces[-1])
            if unpacker.eof or size > limit:
                break
    except zstandard.ZstdError as error:
        raise DecompressError(f"damaged zstd data: {error}") from error
    return _whole(b"".join(pieces), unpacker.eof, limit)


def _lz4_legacy(data: bytes, limit: int) -> bytes:
    import lz4.block

    pieces, size, position = [], 0, 4
    while len(data) - position > 4 and size <= limit:
        (length,) = struct.unpack_from("<I", data, position)
        position += 4
        if length == 0 or length > len(data) - position:
            raise DecompressError("damaged lz4 data: it ends in the middle of a block")
        try:
            block = lz4.block.decompress(data[position : position + length], uncompressed_size=_LZ4_BLOCK)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise DecompressError(f"damaged lz4 data: {error}") from error
        pieces.append(block)
        size += len(block)
        position += length
    content = b"".join(pieces)
    # Without an end mark, only the appended size tells a whole payload from a truncated one.
    appended = data[position:]
    if size <= limit and len(appended) == 4 and struct.unpack("<I", appended) != (size,):
        raise DecompressError(
            f"damaged lz4 data: {size} bytes when unpacked instead of {appended.hex()} (hex)"
        )
    return content


def _whole(content: bytes, at_end: bool, limit: int) -> bytes:
    if not at_end and len(content) <= limit:
        raise DecompressError("the compressed data is truncated")
    return content
