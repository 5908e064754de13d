"""One layer: its tar checked, hashed and spread out for reading at random, its entries listed.

Layers are merged before anything is written, so file data must be reachable after the whole layer has
been read: a plain tar is read where it is, a compressed one is spooled to a file without a name, which
disappears with the process whatever happens.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct, field

from microsandbox.image import tar_reader
from microsandbox.image.compression import decompress, is_compressed
from microsandbox.image.limits import MAX_PATH_BYTES, MAX_PATH_DEPTH, Budget, quoted
from microsandbox.image.streams import ReadAhead, SpoolStream
from microsandbox.image.tar_reader import Member, TarError, check_rest, read_members

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
#: Attributes with which overlayfs steers itself: an image could forge whiteouts or redirects with them.
_OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")
#: What squashfs can store. (An access control list of ``system.`` cannot be kept.)
_STORABLE_XATTRS = (b"user.", b"trusted.", b"security.")
_MAX_XATTR_NAME, _MAX_XATTR_VALUE = 255, 1 << 16
_MAX_ID = 2**32 - 2
_MAX_TIME = 2**32 - 1
#: What Linux can number (kdev_t.h).
_MAX_MAJOR, _MAX_MINOR = 2**12 - 1, 2**20 - 1
#: Memory that an entry takes besides its texts, in bytes: what the budget counts for it.
_ENTRY_COST = 100


class LayerContent(Struct):
    """What a layer does to the tree below it, in the order of its tar. ``fd`` has the file data."""

    fd: int
    diff_id: str
    entries: list[Member] = field(default_factory=list)
    #: Paths of lower layers that disappear.
    whiteouts: list[bytes] = field(default_factory=list)
    #: Directories whose lower content disappears.
    opaques: list[bytes] = field(default_factory=list)


def open_spool(directory: Path, owner: ExitStack) -> int:
    """A file without a name in ``directory``; closed by ``owner``."""
    return owner.enter_context(tempfile.TemporaryFile(dir=directory, buffering=0)).fileno()


def read_layer(
    chunks: Iterator[bytes],
    compressed: bool,
    fd: int,
    budget: Budget,
    finish: Callable[[], None],
) -> LayerContent:
    """Read a layer to its very end.

    ``fd`` is where its plain tar is to be written when ``compressed``, and where it is already otherwise.
    ``finish`` is called when all chunks were read. Raises ValueError (TarError, CompressionError,
    LimitExceededError) for whatever is wrong with it.
    """
    limits = budget.limits
    # Every entry may have a header and some padding around its data.
    limit = limits.total_bytes + limits.metadata_bytes + 1024 * limits.entries
    with ReadAhead(decompress(chunks) if compressed else chunks) as pieces:
        stream = SpoolStream(
            iter(pieces), fd if compressed else None, limit=limit, what="total extracted size exceeded"
        )
        content = LayerContent(fd, "")
        for member in read_members(stream):
            _add(content, member, budget)
        while rest := stream.read(1 << 20):
            check_rest(rest)
        finish()
        content.diff_id = stream.finish()
    return content


def _add(content: LayerContent, member: Member, budget: Budget) -> None:
    raw = member.path
    path = member.path = normalize(raw)
    name = path.rpartition(b"/")[2]
    cost = _ENTRY_COST + len(path) + len(member.link)
    if member.sparse:
        cost += 100 * len(member.sparse)
    if member.xattrs:
        member.xattrs = _storable(member.xattrs, raw)
        cost += sum(len(key) + len(value) + 100 for key, value in (member.xattrs or {}).items())
    budget.charge(raw, member.size, cost)
    if name.startswith(_WHITEOUT):
        _add_whiteout(content, path, name, raw)
        return
    _check(member, raw)
    content.entries.append(member)


def _add_whiteout(content: LayerContent, path: bytes, name: bytes, raw: bytes) -> None:
    parent = path[: -len(name)]
    if name == _OPAQUE:
        content.opaques.append(parent.rstrip(b"/"))
    elif name.startswith(_AUFS):
        return  # bookkeeping of aufs that leaked into the layer
    elif name[len(_WHITEOUT) :] in (b"", b".", b".."):
        raise TarError(f"path traversal in tar: {quoted(raw)}")
    else:
        content.whiteouts.append(parent + name[len(_WHITEOUT) :])


def normalize(path: bytes) -> bytes:
    """The path below the root, without ``.`` components; empty for the root itself. Raises TarError."""
    if len(path) > MAX_PATH_BYTES:
        raise TarError(f"path too long: {quoted(path)}")
    parts = [part for part in path.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise TarError(f"path traversal in tar: {quoted(path)}")
    if len(parts) > MAX_PATH_DEPTH:
        raise TarError(f"path too deep: {quoted(path)}")
    if any(len(part) > 255 for part in parts):
        raise TarError(f"path too long: {quoted(path)} has a component of more than 255 bytes")
    return b"/".join(parts)


def _check(member: Member, raw: bytes) -> None:
    """Refuse what no file system can hold, clamp what only loses precision."""
    if not 0 <= member.uid <= _MAX_ID or not 0 <= member.gid <= _MAX_ID:
        raise TarError(f"tar entry {quoted(raw)} has an impossible owner: {member.uid}:{member.gid}")
    if not 0 <= member.major <= _MAX_MAJOR or not 0 <= member.minor <= _MAX_MINOR:
        raise TarError(
            f"tar entry {quoted(raw)} has an impossible device number: {member.major}:{member.minor}"
        )
    member.mode &= 0o7777
    member.mtime = min(max(member.mtime, 0), _MAX_TIME)
    if member.type == tar_reader.SYMLINK:
        if len(member.link) > MAX_PATH_BYTES:
            raise TarError(f"path too long: the target of symlink {quoted(raw)}")
        if not member.link:
            raise TarError(f"symlink without a target in tar: {quoted(raw)}")
    if not member.path and member.type != tar_reader.DIRECTORY:
        raise TarError(f"tar entry {quoted(raw)} replaces the root directory")


def _storable(xattrs: dict[bytes, bytes], raw: bytes) -> dict[bytes, bytes] | None:
    kept: dict[bytes, bytes] = {}
    for name, value in xattrs.items():
        if name.startswith(_OVERLAY_XATTRS) or not name.startswith(_STORABLE_XATTRS):
            continue
        if len(name) > _MAX_XATTR_NAME or len(value) > _MAX_XATTR_VALUE or b"\0" in name:
            raise TarError(f"tar entry {quoted(raw)} has an extended attribute that is too large")
        kept[name] = value
    return kept or None


def starts_compressed(fd: int, offset: int, size: int) -> bool:
    """Whether the blob there has to be unpacked."""
    return is_compressed(os.pread(fd, min(4, size), offset))
