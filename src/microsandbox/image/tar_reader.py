"""Reads tar headers as images have them: ustar, GNU (long names, base-256 numbers, sparse files) and PAX.

Python's tarfile is not used: it reads extended headers of any size into memory, forgives what must be an
error here, and takes five times as long. Data is passed over, not read; who wants it finds it at
``data_offset`` of the stream. Bytes stay bytes: names need not be UTF-8.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from msgspec import Struct, field

from microsandbox.image.limits import MAX_TAR_HEADER_BYTES, quoted
from microsandbox.image.streams import Stream

BLOCK = 512
_ZERO = bytes(BLOCK)

REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0123456"
_REGULAR_TYPES = b"\0" + b"07"
_GNU_LONG_NAME, _GNU_LONG_LINK, _GNU_SPARSE, _GNU_DUMP_DIRECTORY = b"LKSD"
_PAX, _PAX_GLOBAL, _PAX_SOLARIS = b"xgX"
_MULTI_VOLUME = b"M"[0]
#: Segments a sparse file may have.
_MAX_SEGMENTS = 100_000


class TarError(ValueError):
    """A tar stream is damaged, cut off, or asks for something that cannot be."""


class Member(Struct):
    """One entry. ``size`` is the file's; ``stored`` is what the stream has of it, at ``data_offset``."""

    path: bytes
    type: int
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    stored: int
    data_offset: int
    link: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes] | None = None
    #: (offset in the file, length) of each stored segment, ascending.
    sparse: tuple[tuple[int, int], ...] | None = None


class _Extensions(Struct):
    """What came before a header for it."""

    pax: dict[bytes, bytes] = field(default_factory=dict)
    #: ``GNU.sparse.offset`` and ``numbytes`` of PAX sparse format 0.0, in order.
    pairs: list[bytes] = field(default_factory=list)
    long_name: bytes | None = None
    long_link: bytes | None = None


def read_members(stream: Stream) -> Iterator[Member]:
    """The entries up to the end-of-archive mark, or up to the end at an entry's boundary.

    Raises TarError. After the last one the stream stands behind the mark.
    """
    common: dict[bytes, bytes] = {}
    extensions: _Extensions | None = None
    while block := stream.read(BLOCK):
        if len(block) < BLOCK:
            raise TarError("tar is truncated inside a header")
        if block == _ZERO:
            _expect_end(stream)
            break
        _verify_checksum(block)
        kind = block[156]
        if kind in (_PAX, _PAX_GLOBAL, _PAX_SOLARIS, _GNU_LONG_NAME, _GNU_LONG_LINK):
            extensions = extensions or _Extensions()
            content = _extended_header(stream, block)
            if kind == _PAX_GLOBAL:
                common = _merge(common, _pax_records(content, []))
            elif kind == _GNU_LONG_NAME:
                extensions.long_name = content.partition(b"\0")[0]
            elif kind == _GNU_LONG_LINK:
                extensions.long_link = content.partition(b"\0")[0]
            else:
                extensions.pax = _pax_records(content, extensions.pairs)
            continue
        pending, extensions = extensions, None
        member, padded = _member(stream, block, common, pending)
        if member is not None:
            yield member
        if stream.skip(padded) < padded:
            raise TarError(f"tar is truncated inside {quoted(member.path if member else _name(block))}")
    if extensions is not None and extensions != _Extensions():
        raise TarError("tar is truncated after an extended header")


def check_rest(chunk: bytes) -> None:
    """What follows the end-of-archive mark must be padding. Raises TarError."""
    if chunk.count(0) != len(chunk):
        raise TarError("tar is followed by trailing garbage")


def _expect_end(stream: Stream) -> None:
    second = stream.read(BLOCK)
    if second != _ZERO[: len(second)]:
        raise TarError("tar has trailing garbage behind an end-of-archive block")


def _verify_checksum(block: bytes) -> None:
    stated = _number(block[148:156], "checksum")
    plain = sum(block) - sum(block[148:156]) + 8 * 0x20
    if stated == plain:
        return
    signed = plain - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    if stated != signed:  # some old writers summed signed characters
        raise TarError(f"not a tar header (bad checksum) at {quoted(_name(block))}")


def _number(raw: bytes, what: str) -> int:
    """An octal field, or GNU's base-256 form for what octal cannot hold."""
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big")
        bits = 8 * len(raw)
        return value - (1 << bits) if raw[0] == 0xFF else value & ((1 << (bits - 1)) - 1)
    text = raw.partition(b"\0")[0].strip(b" ")
    if not text:
        return 0
    try:
        if text.isdigit():
            return int(text, 8)
    except ValueError:
        pass
    raise TarError(f"tar header has a bad {what}: {quoted(text)}")


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        return block[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _extended_header(stream: Stream, block: bytes) -> bytes:
    size = _number(block[124:136], "size")
    if not 0 <= size <= MAX_TAR_HEADER_BYTES:
        raise TarError(f"extended tar header of {size} bytes; max is {MAX_TAR_HEADER_BYTES}")
    content = stream.read(_padded(size))
    if len(content) < size:
        raise TarError("tar is truncated inside an extended header")
    return content[:size]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _pax_records(content: bytes, pairs: list[bytes]) -> dict[bytes, bytes]:
    """``LENGTH KEY=VALUE\\n``, repeated."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(content):
        space = content.find(b" ", position, position + 12)
        length = content[position:space] if space > 0 else b""
        end = position + int(length) if length.isdigit() else 0
        if not position < space < end <= len(content) or content[end - 1] != 0x0A:
            if not content[position:].strip(b"\0"):
                break  # padding that some writers count as content
            raise TarError(f"bad extended tar header: {quoted(content[position : position + 40])}")
        key, equals, value = content[space + 1 : end - 1].partition(b"=")
        if not key or not equals:
            raise TarError(f"bad extended tar header: {quoted(content[position:end])}")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pairs.append(value)
        records[key] = value
        position = end
    return records


def _merge(common: dict[bytes, bytes], records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Records over those of global headers; an empty value takes one away, as POSIX has it.

    (An empty extended attribute is a value, though.)
    """
    merged = {**common, **records}
    size = sum(len(key) + len(value) for key, value in merged.items())
    if size > 2 * MAX_TAR_HEADER_BYTES:
        raise TarError(f"global tar headers of {size} bytes; max is {2 * MAX_TAR_HEADER_BYTES}")
    return {key: value for key, value in merged.items() if value or b".xattr." in key}


def _member(
    stream: Stream, block: bytes, common: dict[bytes, bytes], extensions: _Extensions | None
) -> tuple[Member | None, int]:
    """The entry of this header, None for metadata of no interest, and the bytes of data that follow it."""
    kind = block[156]
    size = _number(block[124:136], "size")
    path, link = _name(block), block[157:257].partition(b"\0")[0]
    uid, gid = _number(block[108:116], "uid"), _number(block[116:124], "gid")
    mtime = _number(block[136:148], "mtime")
    pax = common
    if extensions is not None:
        path = extensions.long_name if extensions.long_name is not None else path
        link = extensions.long_link if extensions.long_link is not None else link
        pax = _merge(common, extensions.pax) if extensions.pax else common
    if pax:
        path, link = pax.get(b"path", path), pax.get(b"linkpath", link)
        uid, gid = _pax_number(pax, b"uid", uid), _pax_number(pax, b"gid", gid)
        size, mtime = _pax_number(pax, b"size", size), _pax_number(pax, b"mtime", mtime)
    if size < 0:
        raise TarError(f"tar entry {quoted(path)} has a negative size")
    if kind in _REGULAR_TYPES:
        kind = DIRECTORY if kind == 0 and path.endswith(b"/") else REGULAR
    elif kind == _GNU_DUMP_DIRECTORY:
        kind = DIRECTORY
    elif kind == _GNU_SPARSE or HARD_LINK <= kind <= FIFO:
        size = size if kind == _GNU_SPARSE else 0
    elif 0x41 <= kind <= 0x5A and kind != _MULTI_VOLUME:
        return None, _padded(size)  # a vendor's metadata, like GNU's volume label
    else:
        raise TarError(f"tar entry {quoted(path)} has the unknown type {quoted(bytes((kind,)))}")
    if b"\0" in path or b"\0" in link:
        raise TarError(f"tar entry {quoted(path)} has a NUL in its name or link target")
    device = kind in (CHARACTER, BLOCK_DEVICE)
    member = Member(
        path=path,
        type=kind,
        mode=_number(block[100:108], "mode"),
        uid=uid,
        gid=gid,
        mtime=mtime,
        size=size if kind in (REGULAR, _GNU_SPARSE) else 0,
        stored=size if kind in (REGULAR, _GNU_SPARSE) else 0,
        data_offset=stream.position,
        link=link,
        major=_number(block[329:337], "device number") if device else 0,
        minor=_number(block[337:345], "device number") if device else 0,
        xattrs=_xattrs(pax) if pax else None,
    )
    data = _padded(size)
    if kind == _GNU_SPARSE:
        member.type = REGULAR
        _read_gnu_sparse(stream, block, member)
    elif kind == REGULAR and pax and any(key.startswith(b"GNU.sparse.") for key in pax):
        data -= _read_pax_sparse(stream, pax, extensions.pairs if extensions else [], member)
    return member, data


def _pax_number(pax: dict[bytes, bytes], key: bytes, default: int) -> int:
    text = pax.get(key)
    if text is None:
        return default
    whole, _, fraction = text.partition(b".")
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 30 or (fraction and not fraction.isdigit()):
        raise TarError(f"extended tar header has a bad {key.decode()}: {quoted(text)}")
    value = int(whole)
    return value - 1 if whole.startswith(b"-") and fraction.strip(b"0") else value


def _xattrs(pax: dict[bytes, bytes]) -> dict[bytes, bytes] | None:
    found: dict[bytes, bytes] = {}
    for key, value in pax.items():
        if key.startswith(b"LIBARCHIVE.xattr."):
            name = unquote_to_bytes(key[17:])
            try:
                decoded = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
            except binascii.Error as error:
                raise TarError(f"extended attribute {quoted(name)} is not base64") from error
            found.setdefault(name, decoded)
        elif key.startswith(b"SCHILY.xattr."):
            found[key[13:]] = value
    return found or None


# Sparse files


def _read_gnu_sparse(stream: Stream, block: bytes, member: Member) -> None:
    """The map of GNU's own format: four segments in the header, 21 in each block that continues it."""
    segments = _segments(block[386:482], 4)
    more = block[482]
    while more:
        extension = stream.read(BLOCK)
        if len(extension) < BLOCK:
            raise TarError(f"tar is truncated inside the sparse map of {quoted(member.path)}")
        segments += _segments(extension, 21)
        more = extension[504]
        if len(segments) > _MAX_SEGMENTS:
            raise TarError(f"sparse file {quoted(member.path)} has more than {_MAX_SEGMENTS} segments")
    member.data_offset = stream.position
    _set_sparse(member, segments, _number(block[483:495], "size"))


def _segments(raw: bytes, count: int) -> list[tuple[int, int]]:
    found = []
    for start in range(0, 24 * count, 24):
        if not raw[start]:
            break
        found.append(
            (_number(raw[start : start + 12], "offset"), _number(raw[start + 12 : start + 24], "size"))
        )
    return found


def _read_pax_sparse(stream: Stream, pax: dict[bytes, bytes], pairs: list[bytes], member: Member) -> int:
    """The map of PAX formats 0.0, 0.1 and 1.0; how many bytes of the data it took (format 1.0)."""
    member.path = pax.get(b"GNU.sparse.name", member.path)
    size = _pax_number(pax, b"GNU.sparse.realsize", _pax_number(pax, b"GNU.sparse.size", member.size))
    start = stream.position
    if pax.get(b"GNU.sparse.major") == b"1":
        numbers = _sparse_map(stream, member)
    else:
        listed = pax[b"GNU.sparse.map"].split(b",") if b"GNU.sparse.map" in pax else pairs
        numbers = [_sparse_number(text, member) for text in listed]
    if len(numbers) > 2 * _MAX_SEGMENTS or len(numbers) % 2:
        raise TarError(f"sparse map of {quoted(member.path)} has {len(numbers)} numbers")
    taken = stream.position - start
    member.data_offset, member.stored = stream.position, member.stored - taken
    _set_sparse(member, list(zip(numbers[::2], numbers[1::2], strict=True)), size)
    return taken


def _sparse_map(stream: Stream, member: Member) -> list[int]:
    """Format 1.0: the data begins with decimal numbers, one a line, padded to whole blocks."""
    lines: list[bytes] = []
    rest, wanted, left = b"", 1, member.stored
    while len(lines) < wanted:
        block = stream.read(BLOCK)
        left -= BLOCK
        if len(block) < BLOCK or left < 0:
            raise TarError(f"tar is truncated inside the sparse map of {quoted(member.path)}")
        *complete, rest = (rest + block).split(b"\n")
        if len(rest) > BLOCK:
            raise TarError(f"sparse map of {quoted(member.path)} is damaged")
        lines += complete
        if lines and wanted == 1:
            wanted = 1 + 2 * _sparse_number(lines[0], member)
            if wanted > 2 * _MAX_SEGMENTS:
                raise TarError(f"sparse file {quoted(member.path)} has more than {_MAX_SEGMENTS} segments")
    return [_sparse_number(line, member) for line in lines[1:wanted]]


def _sparse_number(text: bytes, member: Member) -> int:
    if not text.isdigit() or len(text) > 20:
        raise TarError(f"sparse map of {quoted(member.path)} has a bad number: {quoted(text)}")
    return int(text)


def _set_sparse(member: Member, segments: list[tuple[int, int]], size: int) -> None:
    end = 0
    for offset, length in segments:
        if offset < end or length < 0:
            raise TarError(f"sparse map of {quoted(member.path)} is out of order")
        end = offset + length
    if end > size or sum(length for _, length in segments) != member.stored:
        raise TarError(f"sparse map of {quoted(member.path)} does not match its size")
    member.size = size
    member.sparse = tuple(segment for segment in segments if segment[1])
