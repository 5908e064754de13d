"""From a line of a log file to a record (pure). What is no line of a log is no record, and no error."""

from __future__ import annotations

import binascii
import re
from datetime import datetime

import msgspec
from msgspec import Struct

from microsandbox.logs.sources import ALL, SYSTEM

#: Escape sequences of terminals: CSI, OSC and other strings, and the short ones (ECMA-48, 5.3 to 5.6).
_ANSI = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]"
    rb"|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"
    rb"|[ -/]*[0-~])"
)
#: The shortest RFC 3339 time: 2026-01-31T23:59:59Z.
_TIME_LENGTH = 20


class Record(Struct, frozen=True, gc=False):
    """What a line says. ``timestamp_ms`` is in milliseconds since the epoch."""

    timestamp_ms: float
    source: str
    session_id: int | None
    data: bytes


class _ExecLine(Struct, frozen=True, gc=False):
    t: datetime
    s: str
    d: str
    id: int | None = None
    e: str | None = None


_decode = msgspec.json.Decoder(_ExecLine).decode


def parse_exec(line: bytes) -> Record | None:
    """A line of exec.log; None for one that is damaged, cut short or of an unknown source."""
    try:
        found = _decode(line)
        data = found.d.encode() if found.e is None else _decoded(found.d, found.e)
        stamp = _milliseconds(found.t)
    except (msgspec.DecodeError, UnicodeError, ValueError, OverflowError):
        return None
    if found.s not in ALL:
        return None
    return Record(stamp, found.s, found.id, data)


def _decoded(text: str, encoding: str) -> bytes:
    if encoding != "b64":
        raise ValueError(encoding)
    return binascii.a2b_base64(text, strict_mode=True)


def parse_text(line: bytes, modified_ms: float) -> Record:
    """A line of another log. Without a time of its own, ``modified_ms`` is when it was written."""
    text = without_ansi(line.rstrip(b"\r\n"))
    first, _, rest = text.partition(b" ")
    if len(first) >= _TIME_LENGTH and first.endswith(b"Z"):
        try:
            stamp = _milliseconds(datetime.fromisoformat(first.decode("ascii")))
        except (ValueError, OverflowError):
            pass
        else:
            return Record(stamp, SYSTEM, None, rest + b"\n")
    return Record(modified_ms, SYSTEM, None, text + b"\n")


def _milliseconds(time: datetime) -> float:
    """Raises ValueError for a time without a zone."""
    if time.tzinfo is None:
        raise ValueError(time)
    return round(time.timestamp() * 1000, 3)  # else 0.123 s were 122.99999 ms


def without_ansi(data: bytes) -> bytes:
    return _ANSI.sub(b"", data) if b"\x1b" in data else data
