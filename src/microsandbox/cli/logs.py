"""``msb logs``: what a sandbox's commands printed, and with ``--follow`` what they print.

The history is read without an event loop, which takes longer to import than most logs to print.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from microsandbox.cli import output
from microsandbox.cli.failures import FAILURE, report
from microsandbox.cli.model import Invocation
from microsandbox.errors import LogRotatedError
from microsandbox.logs.cursor import Position
from microsandbox.logs.lines import without_ansi
from microsandbox.logs.snapshot import snapshot
from microsandbox.logs.sources import select
from microsandbox.store.home import Home, SandboxPaths, validate_name
from microsandbox.types import LogEntry

_PALETTE = ("36", "35", "32", "34", "96", "95", "92", "94")


class Style(Struct, frozen=True):
    """How an entry is shown. ``ansi``: whether colours are, the guest's and ours."""

    json: bool
    timestamps: bool
    ids: bool
    color_sessions: bool
    ansi: bool

    @classmethod
    def of(cls, invocation: Invocation) -> Style:
        color = "never" if invocation["no_color"] else invocation["color"] or "auto"
        sessions = invocation["color_sessions"]
        return cls(
            json=invocation["json"],
            timestamps=invocation["timestamps"],
            ids=invocation["show_id"] or sessions,
            color_sessions=sessions,
            ansi=color == "always" or (color == "auto" and output.shows_styles(sys.stdout)),
        )

    def render(self, entry: LogEntry) -> bytes:
        if self.json:
            return _json_line(_document(entry))
        data = entry.data if self.ansi else without_ansi(entry.data)
        if not self.timestamps and not self.ids:
            return data
        first = indent = b""
        if self.timestamps:
            stamp = output.rfc3339(entry.timestamp_ms / 1000) or ""
            first, indent = f"{stamp}\t".encode(), b" " * len(stamp) + b"\t"
        if self.ids:
            tag = self._tag(entry.session_id)
            first, indent = first + self._colored(tag, entry.session_id), indent + b" " * len(tag)
        return first + (b"\n" + indent).join(data.removesuffix(b"\n").split(b"\n")) + b"\n"

    def _tag(self, session: int | None) -> str:
        return "[id:sys] " if session is None else f"[id:{session:>3}] "

    def _colored(self, tag: str, session: int | None) -> bytes:
        if session is None or not (self.color_sessions and self.ansi):
            return tag.encode()
        return f"\x1b[{_PALETTE[session % len(_PALETTE)]}m{tag}\x1b[0m".encode()


def logs(invocation: Invocation) -> int:
    name = validate_name(invocation["name"])
    paths = Home.open().sandbox(name)
    if not paths.logs.is_dir():
        output.error(f'no logs directory for sandbox "{output.printable(name)}" (sandbox not found?)')
        return FAILURE
    style = Style.of(invocation)
    _show_boot_error(name, paths, style)
    try:
        history = snapshot(
            paths.logs,
            invocation["source"] or select(None),
            tail=invocation["tail"],
            since_ms=invocation["since"],
            until_ms=invocation["until"],
            matches=_matcher(invocation["grep"]),
        )
        for entry in history.entries:
            sys.stdout.buffer.write(style.render(entry))
        sys.stdout.flush()
        if invocation["follow"] and (invocation["until"] is None or invocation["until"] > time.time() * 1000):
            return _follow(name, paths.logs, history.end, style, invocation)
    except LogRotatedError as error:
        output.error(
            f"log follower fell behind: missed rotation at offset {error.offset}. "
            "restart `msb logs -f` to resume."
        )
        return FAILURE
    return 0


def _follow(
    name: str, directory: Path, start: Sequence[Position], style: Style, invocation: Invocation
) -> int:
    from microsandbox.cli.following import follow
    from microsandbox.logs.follow import LogFollower

    matches = _matcher(invocation["grep"])

    def render(entry: LogEntry) -> bytes:
        return style.render(entry) if matches is None or matches(entry.data) else b""

    def open_follower() -> LogFollower:
        sources = invocation["source"] or select(None)
        return LogFollower(directory, sources, start, until_ms=invocation["until"], follow=True)

    return follow(name, open_follower, render)


def _matcher(pattern: re.Pattern[str] | None) -> Any:
    if pattern is None:
        return None
    return lambda data: pattern.search(data.decode("utf-8", "replace"))


def _document(entry: LogEntry) -> dict[str, Any]:
    """The entry as a line of exec.log."""
    document: dict[str, Any] = {"t": output.rfc3339(entry.timestamp_ms / 1000), "s": entry.source}
    try:
        document["d"] = entry.data.decode()
    except UnicodeDecodeError:
        from base64 import b64encode

        document |= {"d": b64encode(entry.data).decode(), "e": "b64"}
    if entry.session_id is not None:
        document["id"] = entry.session_id
    return document


def _json_line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"


def _show_boot_error(name: str, paths: SandboxPaths, style: Style) -> None:
    """Why the sandbox did not come up the last time, before anything else."""
    if not os.path.exists(paths.boot_error):  # noqa: PTH110
        return
    from microsandbox.runtime.boot_failure import BootFailure

    failure = BootFailure.load(paths.boot_error)
    if failure is None:
        return
    if style.json:
        text = paths.boot_error.read_text("utf-8", "replace")
        stamp = output.rfc3339(paths.boot_error.stat().st_mtime)
        sys.stdout.buffer.write(_json_line({"t": stamp, "s": "boot-error", "d": text}))
    else:
        report(failure.as_error(name))
