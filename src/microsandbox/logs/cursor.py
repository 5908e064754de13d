"""Where a reader is, as a text that its user may keep: a position in each of the files it reads (pure)."""

from __future__ import annotations

import binascii
import struct
from collections.abc import Sequence
from typing import NamedTuple

_POSITION = struct.Struct("<QQ")


class Position(NamedTuple):
    """An offset in the file of that inode, whatever its name is by now; inode 0 is the beginning."""

    inode: int
    offset: int


BEGINNING = Position(0, 0)


def dump_cursor(positions: Sequence[Position]) -> str:
    packed = bytes([len(positions)]) + b"".join(_POSITION.pack(*position) for position in positions)
    return binascii.b2a_base64(packed, newline=False).decode()


def load_cursor(text: str, files: int) -> tuple[Position, ...]:
    """The positions in so many files. Raises ValueError."""
    try:
        packed = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise ValueError("cursor is not valid base64") from None
    if len(packed) != 1 + files * _POSITION.size or packed[0] != files:
        raise ValueError(f"cursor payload has unexpected length ({len(packed)} bytes)")
    return tuple(Position(*found) for found in _POSITION.iter_unpack(packed[1:]))
