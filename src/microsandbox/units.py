"""Sizes and durations as text: the one parser and the one formatter of each."""

from __future__ import annotations

import math
import re

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(?:i?b)?)?", re.IGNORECASE)
_SIZE_UNITS = {"k": 1 / 1024, "m": 1, "g": 1024, "t": 1024**2}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhd])", re.IGNORECASE)
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size_mib(text: str) -> int:
    """MiB of ``512``, ``512M``, ``1.5G``, ``2GiB``, ``1T``; a bare number is MiB. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'invalid size "{text}" (expected e.g. 512M, 1G)')
    mib = float(match[1]) * _SIZE_UNITS[(match[2] or "m").lower()]
    if mib > 2**32 - 1:
        raise ValueError(f'size too large: "{text}"')
    return int(mib)


def parse_duration(text: str) -> float:
    """Seconds of ``30``, ``500ms``, ``30s``, ``5m``, ``1h30m``, ``1d``; a bare number is seconds.

    Raises ValueError.
    """
    compact = text.strip()
    try:
        seconds = float(compact)
    except ValueError:
        position, seconds = 0, 0.0
        while match := _DURATION.match(compact, position):
            seconds += float(match[1]) * _DURATION_UNITS[match[2].lower()]
            position = match.end()
        if not compact or position != len(compact):
            raise ValueError(f'invalid duration "{text}" (expected e.g. 30s, 5m, 1h30m)') from None
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f'invalid duration "{text}": must be a finite, non-negative time')
    return seconds


def format_bytes(count: int) -> str:
    """``512 B``, ``14.0 MiB``."""
    if count < KIB:
        return f"{count} B"
    value, unit = float(count), "B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):  # noqa: B007 - the last one tried is the answer
        value /= KIB
        if value < KIB:
            break
    return f"{value:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """``59.9s``, ``2m5s``."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    return f"{int(seconds) // 60}m{int(seconds) % 60}s"


def format_duration_precise(seconds: float) -> str:
    """``200ms``, ``1.5s``, ``30s``: how durations appear inside error texts."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale:
            return f"{seconds / scale:.9g}{unit}"
    return f"{seconds * 1e9:.9g}ns"
