"""The little of ELF files that a kernel and its modules must be asked: sections by name, notes.

Only 64-bit little-endian files. Offsets are checked by slicing: what points outside reads as too short.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

MAGIC = b"\x7fELF\x02\x01"
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_NOTE = struct.Struct("<III")
_PT_LOAD, _PT_NOTE = 1, 4
_MACHINES = {62: "x86_64", 183: "aarch64"}


class ElfError(ValueError):
    """The file is not the ELF file that was expected, or is damaged."""


def machine(data: bytes) -> str:
    """The processor, as uname(2) names it. Raises ElfError."""
    number: int = _header(data)[2]
    return _MACHINES.get(number, f"processor type {number}")


def section(data: bytes, name: str) -> bytes | None:
    """The content of the first section of that name. Raises ElfError."""
    header = _header(data)
    offset, entry_size, count, names_index = header[6], header[11], header[12], header[13]
    entries = [_unpack(_SECTION, data, offset + index * entry_size) for index in range(count)]
    if names_index >= len(entries):
        return None
    names = data[entries[names_index][4] :][: entries[names_index][5]]
    wanted = name.encode() + b"\0"
    for entry in entries:
        if names.startswith(wanted, entry[0]):
            content = data[entry[4] : entry[4] + entry[5]]
            if len(content) != entry[5]:
                raise ElfError(f"section {name} lies outside the file")
            return content
    return None


def notes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Owner and type of every note. Raises ElfError."""
    header = _header(data)
    for index in range(header[10]):
        program = _unpack(_PROGRAM, data, header[5] + index * header[9])
        if program[0] != _PT_NOTE:
            continue
        content = data[program[2] : program[2] + program[5]]
        if len(content) != program[5]:
            raise ElfError("a segment lies outside the file")
        position = 0
        while position + _NOTE.size <= len(content):
            owner_size, size, kind = _NOTE.unpack_from(content, position)
            position += _NOTE.size
            yield content[position : position + owner_size].rstrip(b"\0"), kind
            position += _aligned(owner_size) + _aligned(size)


def loaded_part(data: bytes) -> bytes:
    """The file without what no loader needs: sections, zeros at the ends of segments, bytes after the last.

    A segment in memory keeps its size, and loaders fill the rest with zeros. Raises ElfError.
    """
    header = _header(data)
    result = bytearray(data)
    end = header[5] + header[9] * header[10]
    for index in range(header[10]):
        position = header[5] + index * header[9]
        program = list(_unpack(_PROGRAM, data, position))
        offset, size = program[2], program[5]
        if offset + size > len(data):
            raise ElfError("a segment lies outside the file")
        if program[0] == _PT_LOAD:
            size = program[5] = len(data[offset : offset + size].rstrip(b"\0"))
            _PROGRAM.pack_into(result, position, *program)
        end = max(end, offset + size)
    without_sections = (*header[1:6], 0, *header[7:11], 0, 0, 0)
    _HEADER.pack_into(result, 0, data[:16], *without_sections)
    return bytes(result[:end])


def memory_end(data: bytes) -> int:
    """The first physical address after everything that is loaded; the headers are enough. Raises ElfError."""
    header = _header(data)
    programs = (_unpack(_PROGRAM, data, header[5] + index * header[9]) for index in range(header[10]))
    return max((program[4] + program[6] for program in programs if program[0] == _PT_LOAD), default=0)


def _aligned(size: int) -> int:
    return (size + 3) & ~3


def _header(data: bytes) -> tuple[int, ...]:
    if not data.startswith(MAGIC):
        raise ElfError("not a 64-bit little-endian ELF file")
    return _unpack(_HEADER, data, 0)


def _unpack(layout: struct.Struct, data: bytes, offset: int) -> tuple[int, ...]:
    if offset + layout.size > len(data):
        raise ElfError("a header lies outside the file")
    return layout.unpack_from(data, offset)
