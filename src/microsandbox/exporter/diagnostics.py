"""What the program says about itself, on standard error: a line of text or of JSON for each message."""

from __future__ import annotations

import json
import logging
import sys

from microsandbox.cli.output import printable, rfc3339

_TRACE = 5
_LEVELS = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": _TRACE,
    "off": logging.CRITICAL + 1,
}
_NAMES = {level: name.upper() for name, level in _LEVELS.items()}
_OURS = ("microsandbox", "msb")


def begin(level: str, log_format: str, rust_log: str | None) -> None:
    """Have messages of that level and above written; ``rust_log`` goes before it, where it says something."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    logging.basicConfig(level=_LEVELS[wanted_level(level, rust_log)], handlers=[handler])


def wanted_level(level: str, rust_log: str | None) -> str:
    """``RUST_LOG`` is ``LEVEL`` or ``TARGET=LEVEL``, several with commas; other targets are not ours."""
    for directive in (rust_log or "").split(","):
        target, _, given = directive.strip().rpartition("=")
        if given.lower() in _LEVELS and (not target or target.startswith(_OURS)):
            level = given.lower()
    return level


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{_time(record)} {_level(record):>5} {printable(record.getMessage())}"]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return "\n".join(lines)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {"message": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        line = {
            "timestamp": _time(record),
            "level": _level(record),
            "fields": fields,
            "target": record.name,
        }
        return json.dumps(line, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return rfc3339(record.created) or ""


def _level(record: logging.LogRecord) -> str:
    return _NAMES.get(record.levelno, record.levelname)
