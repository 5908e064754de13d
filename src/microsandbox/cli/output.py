"""What the user sees: data on standard output, everything else on standard error.

Texts may come from a guest, an image or a registry, so control characters are taken out of everything that
is shown: nobody but us colours the terminal or moves its cursor.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from microsandbox.units import format_duration

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "�")
_GAP = 4
_DETAIL_WIDTH, _INDENTED_WIDTH = 16, 14
#: Seconds from which a success line says how long it took.
_NOTABLE = 0.5

BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "31", "32", "33", "36"


def printable(text: str) -> str:
    """The text on one line and without control characters."""
    return text.translate(_CONTROL)


def styled(text: str, *codes: str, stream: TextIO) -> str:
    """The text in a style, if the stream shows styles."""
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if shows_styles(stream) else text


def shows_styles(stream: TextIO) -> bool:
    return "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb" and stream.isatty()


def shows_motion(stream: TextIO) -> bool:
    """Whether what was written there can be drawn over."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


# messages on standard error


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def error(text: str, details: Iterable[str] = ()) -> None:
    """``error: TEXT`` and its lines of detail."""
    first, *more = text.splitlines() or [""]
    say(f"{styled('error:', BOLD, RED, stream=sys.stderr)} {printable(first)}")
    for line in (*more, *details):
        say(f"  {styled('→', DIM, stream=sys.stderr)} {printable(line)}")


def warn(text: str) -> None:
    say(f"{styled('warn:', BOLD, YELLOW, stream=sys.stderr)} {printable(text)}")


def success(verb: str, target: str, seconds: float = 0.0, note: str = "") -> None:
    """``   ✓ VERB         TARGET``; how long it took when that is worth knowing."""
    suffix = f" {note}" if note else ""
    if not note and seconds > _NOTABLE:
        suffix = " " + styled(f"({format_duration(seconds)})", DIM, stream=sys.stderr)
    mark = styled("✓", GREEN, stream=sys.stderr)
    say(f"   {mark} {verb:<12} {printable(target)}{suffix}")


# data on standard output


def write_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, stream: TextIO | None = None) -> str:
    """Columns as wide as their widest cell; nothing without rows. For ``stream``, else standard output."""
    if not rows:
        return ""
    widths = [
        max(_width(header), *(_width(row[column]) for row in rows)) + _GAP
        for column, header in enumerate(headers)
    ]
    stream = sys.stdout if stream is None else stream
    header = _line([styled(name.upper(), BOLD, CYAN, stream=stream) for name in headers], widths)
    return "".join(f"{line}\n" for line in (header, *(_line(row, widths) for row in rows)))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell + " " * (width - _width(cell)) for cell, width in zip(cells[:-1], widths, strict=False)]
    return "".join((*padded, cells[-1]))


def _width(cell: str) -> int:
    return len(_ANSI.sub("", cell))


def detail(key: str, value: str) -> str:
    """One line of a detail view."""
    return f"{styled(f'{key}:'.ljust(_DETAIL_WIDTH), CYAN, stream=sys.stdout)}{printable(value)}"


def section(title: str) -> str:
    return f"\n{styled(f'{title}:', BOLD, stream=sys.stdout)}"


def indented(key: str, value: str) -> str:
    """One line below a section's header."""
    return f"  {styled(f'{key}:'.ljust(_INDENTED_WIDTH), DIM, stream=sys.stdout)}{printable(value)}"


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def local_time(seconds: float | None) -> str:
    """``2026-01-31 23:59:59``, in the caller's time zone."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def rfc3339(seconds: float | None) -> str | None:
    """``2026-01-31T23:59:59.123Z``."""
    if seconds is None:
        return None
    milliseconds = round(seconds * 1000)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{whole}.{milliseconds % 1000:03d}Z"


_STATUS_STYLES = {"running": (GREEN, BOLD), "stopped": (DIM,), "crashed": (RED, BOLD)}


def status(text: str) -> str:
    """A sandbox's status in its colour."""
    lower = text.lower()
    return styled(lower, *_STATUS_STYLES.get(lower, (YELLOW, BOLD)), stream=sys.stdout)
