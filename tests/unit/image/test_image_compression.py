"""Compressed streams are read whole, in bounded pieces, or refused."""

import gzip
import hashlib
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from microsandbox.image.compression import PIECE, CompressionError, decompress


def chunked(data, size=1000):
    return iter([data[start : start + size] for start in range(0, len(data), size)])


def unpacked(data, size=1000):
    return b"".join(decompress(chunked(data, size)))


def zstd(data, **options):
    return zstandard.ZstdCompressor(level=1, **options).compress(data)


COMPRESSORS = {
    "gzip": gzip.compress,
    "zstd": zstd,
    "zstd with checksum": lambda d: zstd(d, write_checksum=True),
}


@given(
    st.sampled_from(list(COMPRESSORS)),
    st.lists(st.binary(max_size=5000), min_size=1, max_size=4),
    st.integers(1, 700),
)
@settings(max_examples=60, deadline=None)
def test_all_members_and_frames_are_read_however_they_arrive(how, parts, size):
    packed = b"".join(COMPRESSORS[how](part) for part in parts)
    assert unpacked(packed, size) == b"".join(parts)


@given(st.binary(max_size=3000).filter(lambda d: not d.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd"))))
def test_what_is_not_compressed_passes(data):
    assert unpacked(data, 7) == data


@pytest.mark.parametrize("how", COMPRESSORS)
def test_data_cut_off_anywhere_is_an_error(how):
    packed = COMPRESSORS[how](b"".join(hashlib.sha256(bytes([n])).digest() for n in range(200)))
    for length in (*range(4, 40), len(packed) // 2, *range(len(packed) - 9, len(packed))):
        with pytest.raises(CompressionError, match="truncated"):
            unpacked(packed[:length])


@pytest.mark.parametrize("how", COMPRESSORS)
@pytest.mark.parametrize("garbage", [b"x", b"\0" * 600, b"\x1f\x8c", b"\x28\xb5\x2f", b"PK\3\4"])
def test_what_follows_the_end_is_an_error(how, garbage):
    with pytest.raises(CompressionError, match="trailing garbage"):
        unpacked(COMPRESSORS[how](b"content") + garbage)


def test_a_changed_byte_is_found_by_the_checksums_of_gzip():
    packed = bytearray(gzip.compress(bytes(range(256)) * 20, 0))
    packed[200] ^= 1
    with pytest.raises(CompressionError, match="damaged"):
        unpacked(bytes(packed))


def test_skippable_frames_are_skipped():
    skippable = b"\x5a\x2a\x4d\x18" + (5000).to_bytes(4, "little") + b"s" * 5000
    assert unpacked(zstd(b"a") + skippable + zstd(b"b")) == b"ab"
    with pytest.raises(CompressionError, match="truncated"):
        unpacked(zstd(b"a") + skippable[:-1])


@pytest.mark.parametrize("pack", [lambda d: zlib.compress(d, 9, wbits=31), zstd])
def test_a_bomb_comes_in_small_pieces(pack):
    packed = pack(bytes(200 << 20))
    assert len(packed) < 300_000
    total = 0
    for piece in decompress(chunked(packed, 1 << 18)):
        assert len(piece) <= PIECE
        total += len(piece)
    assert total == 200 << 20


def test_a_zstd_window_beyond_the_limit_is_refused():
    huge = zstandard.ZstdCompressionParameters(window_log=29, compression_level=1)
    packer = zstandard.ZstdCompressor(compression_params=huge).compressobj()
    with pytest.raises(CompressionError, match="damaged"):
        unpacked(packer.compress(b"x" * 1000) + packer.flush())
