"""Decompression that trusts nothing: the content decides what it is, output comes in bounded pieces, and
an end that is missing or not the end is an error.

Media types are only a hint in practice (registries serve gzip under plain names and the other way
round), so the first bytes decide: gzip, zstd, else plain.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

#: Bytes of one piece of output.
PIECE = 1 << 20
#: What is fed to zlib at once; more makes it copy unconsumed input again and again.
_FEED = 1 << 16
#: Memory a zstd stream may ask for: what ``zstd --long`` may use without being asked.
_MAX_WINDOW = 1 << 27

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_LONGEST_MAGIC = 4


class CompressionError(ValueError):
    """Compressed data is damaged, cut off, or followed by something else."""


def decompress(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The content of a gzip, zstd or plain stream, in pieces of at most 1 MiB where it was compressed.

    All members and frames are read. Raises CompressionError.
    """
    source = _Source(chunks)
    magic = source.peek(_LONGEST_MAGIC)
    if magic.startswith(_GZIP):
        yield from _gunzip(source)
    elif magic == _ZSTD:
        yield from _unzstd(source)
    else:
        yield from source.rest()


def is_compressed(start: bytes) -> bool:
    """Whether a stream that begins so would be decompressed."""
    return start.startswith((_GZIP, _ZSTD))


class _Source:
    """Chunks, read by count."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = b""

    def peek(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer only at the end; they stay unread."""
        while len(self._buffer) < count:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._buffer += chunk
        return self._buffer[:count]

    def take(self, limit: int) -> bytes:
        """The next bytes, at most ``limit``; nothing at the end."""
        if not self._buffer:
            self._buffer = next(self._chunks, b"")
        taken, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return taken

    def exactly(self, count: int) -> bytes:
        if len(self.peek(count)) < count:
            raise CompressionError("zstd data is truncated")
        return self.take(count)

    def give_back(self, data: bytes) -> None:
        self._buffer = data + self._buffer

    def rest(self) -> Iterator[bytes]:
        while piece := self.take(PIECE):
            yield piece


def _gunzip(source: _Source) -> Iterator[bytes]:
    while start := source.peek(len(_GZIP)):
        if start != _GZIP:
            raise CompressionError("gzip data is followed by trailing garbage")
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            data = member.unconsumed_tail or source.take(_FEED)
            if not data:
                raise CompressionError("gzip data is truncated")
            try:
                piece = member.decompress(data, PIECE)
            except zlib.error as error:
                raise CompressionError(f"gzip data is damaged: {error}") from error
            if piece:
                yield piece
        source.give_back(member.unused_data)


def _unzstd(source: _Source) -> Iterator[bytes]:
    """Walk the frames (RFC 8878) and hand libzstd one block at a time: a block is at most 128 KiB unpacked,
    so a bomb is never inflated in one call, and the walk knows where a frame must end.
    """
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    while magic := source.peek(_LONGEST_MAGIC):
        if len(magic) == 4 and magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50:
            _skip_frame(source)
            continue
        if magic != _ZSTD:
            raise CompressionError("zstd data is followed by trailing garbage")
        frame = decompressor.decompressobj()
        for part in _frame_parts(source):
            try:
                piece = frame.decompress(part)
            except zstandard.ZstdError as error:
                raise CompressionError(f"zstd data is damaged: {error}") from error
            if piece:
                yield piece


def _skip_frame(source: _Source) -> None:
    source.exactly(4)
    left = int.from_bytes(source.exactly(4), "little")
    while left:
        skipped = source.take(min(left, PIECE))
        if not skipped:
            raise CompressionError("zstd data is truncated")
        left -= len(skipped)


def _frame_parts(source: _Source) -> Iterator[bytes]:
    """The pieces of one frame: header, blocks, checksum."""
    descriptor = source.peek(5)[4:]
    if not descriptor:
        raise CompressionError("zstd data is truncated")
    flags = descriptor[0]
    single_segment = bool(flags & 0x20)
    content_size = (1 if single_segment else 0, 2, 4, 8)[flags >> 6]
    dictionary = (0, 1, 2, 4)[flags & 3]
    yield source.exactly(5 + (not single_segment) + dictionary + content_size)
    last = False
    while not last:
        header = int.from_bytes(source.peek(3).ljust(3, b"\0"), "little")
        last = bool(header & 1)
        kind, size = (header >> 1) & 3, header >> 3
        if kind == 3:
            raise CompressionError("zstd data is damaged: reserved block type")
        yield source.exactly(3 + (1 if kind == 1 else size))
    if flags & 4:
        yield source.exactly(4)
