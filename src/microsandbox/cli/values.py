"""The texts that options take, as values.

Every function raises ValueError with the reason alone, and the parser puts the option's name before it; a
reason that already starts with the option's name stays as it is.
"""

from __future__ import annotations

import math
import os
import re

from msgspec import Struct

from microsandbox.units import parse_duration, parse_size_mib

_TMPFS_WORDS = frozenset({"ro", "rw", "noexec", "nosuid", "nodev", "suid", "exec", "dev"})
_MOUNT_KEYS = frozenset({"stat-virt", "host-perms", "fstype", "format", "kind", "quota"})
_MAX_SCRIPT = 3 << 20
RLIMITS = frozenset(
    {"cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile"}
    | {"memlock", "as", "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"}
)


def size(text: str) -> int:
    """MiB."""
    return parse_size_mib(text)


def duration(text: str) -> float:
    """Seconds."""
    return parse_duration(text)


def whole_seconds(text: str) -> int:
    """Seconds of a limit, which is kept in whole seconds: rounded up, as none at all would mean no limit."""
    return math.ceil(parse_duration(text))


def count(text: str) -> int:
    """A whole number that fits in a byte."""
    if not text.isascii() or not text.isdigit() or int(text) > 255:
        raise ValueError(f'invalid number "{text}" (expected 0 to 255)')
    return int(text)


def seconds(text: str) -> float:
    """Seconds, as a whole number."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(f'invalid number of seconds "{text}"')
    return float(text)


def interval(text: str) -> float:
    """Seconds between two things, at least a tenth of one."""
    found = parse_duration(text)
    if found < 0.1:
        raise ValueError(f'invalid interval "{text}" (at least 0.1 seconds)')
    return found


def entries(text: str) -> int:
    """How many of something."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(f'invalid number "{text}"')
    return int(text)


def moment(text: str) -> float:
    """Milliseconds since the epoch: an RFC 3339 time, or an age."""
    import time
    from datetime import datetime

    try:
        return (time.time() - parse_duration(text)) * 1000
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ValueError(f'could not parse time "{text}" (expected RFC 3339 or `5m` etc.)')
    return round(found.timestamp() * 1000, 3)


def log_sources(text: str) -> frozenset[str]:
    from microsandbox.logs.sources import select

    return select(text.split(","))


def regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"invalid --grep regex: {error}") from None


def env(text: str) -> tuple[str, str]:
    """``K=V``, or ``K`` for the caller's variable."""
    key, separator, value = text.partition("=")
    if not key:
        raise ValueError("environment variable name must not be empty")
    if not separator:
        if key not in os.environ:
            raise ValueError(f"environment variable '{key}' not set")
        value = os.environ[key]
    return key, value


def label(text: str) -> tuple[str, str]:
    """``K=V``, or ``K`` for an empty value."""
    key, _, value = text.partition("=")
    return key, value


def detach_keys(text: str) -> str:
    """Keys as ``--detach-keys`` has them, checked."""
    from microsandbox.errors import InvalidConfigError
    from microsandbox.sandbox.detach_keys import DetachKeys

    try:
        DetachKeys(text)
    except InvalidConfigError as error:
        raise ValueError(str(error)) from error
    return text


def one_of(kind: str, *choices: str) -> _Choice:
    """A conversion that accepts these words only."""
    return _Choice(kind, choices)


class _Choice(Struct, frozen=True):
    kind: str
    choices: tuple[str, ...]

    def __call__(self, text: str) -> str:
        if text not in self.choices:
            raise ValueError(f"invalid {self.kind}: {text} (expected: {', '.join(self.choices)})")
        return text


def shell(text: str) -> str:
    """A shell that can stand in a shebang line."""
    if not text:
        raise ValueError("--shell must not be empty")
    if "\0" in text or any(character.isspace() for character in text):
        raise ValueError(
            f'--shell must not contain whitespace or NUL (got "{text}"); use --script-raw or --script-path '
            "if you need a custom shebang"
        )
    if text == "/":
        raise ValueError('--shell "/" is not a valid interpreter')
    return text


def init(text: str) -> str:
    """An absolute path in the guest, or ``auto``."""
    if text != "auto" and not text.startswith("/"):
        raise ValueError(f"--init must be an absolute path or `auto`, got: {text}")
    return text


def init_env(text: str) -> tuple[str, str]:
    """``KEY=VALUE``; nothing is inherited."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"must be KEY=VALUE, got: {text}")
    return key, value


def rlimit(text: str) -> dict[str, object]:
    """``RESOURCE=SOFT[:HARD]``."""
    name, separator, limits = text.partition("=")
    if not separator or not name:
        raise ValueError("rlimit must be in format RESOURCE=LIMIT")
    parts = limits.split(":")
    if len(parts) > 2:
        raise ValueError("too many ':' separators")
    if name.lower() not in RLIMITS:
        raise ValueError(f"unknown rlimit resource: {name}")
    soft = _unsigned("soft", parts[0])
    hard = _unsigned("hard", parts[1]) if len(parts) == 2 else soft
    if soft > hard:
        raise ValueError("soft limit cannot exceed hard limit")
    return {"resource": name.lower(), "soft": soft, "hard": hard}


def _unsigned(which: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 64:
        raise ValueError(f"invalid {which} limit: {text}")
    return int(text)


class Tmpfs(Struct, frozen=True):
    """A file system in the guest's memory; ``mount`` are the keys of the SDK's mount."""

    path: str
    mount: dict[str, object]


def tmpfs(text: str) -> Tmpfs:
    """``PATH``, ``PATH:SIZE``, ``PATH:OPTIONS`` or ``PATH:SIZE:OPTIONS``."""
    path, _, rest = text.partition(":")
    if not path:
        raise ValueError("tmpfs path must not be empty")
    mount: dict[str, object] = {"tmpfs": True}
    if not rest:
        return Tmpfs(path, mount)
    first, separator, options = rest.partition(":")
    if separator or not _looks_like_options(first):
        if not first.strip():
            raise ValueError("tmpfs size must not be empty before options")
        mount["size_mib"] = parse_size_mib(first)
    else:
        options = first
    _add_mount_options(mount, options)
    return Tmpfs(path, mount)


def _looks_like_options(text: str) -> bool:
    return "," in text or "=" in text or text.strip() in _TMPFS_WORDS


def _add_mount_options(mount: dict[str, object], options: str) -> None:
    seen: set[str] = set()
    for word in filter(None, map(str.strip, options.split(","))):
        key, separator, value = word.partition("=")
        name = "ro`/`rw" if key in ("ro", "rw") and not separator else key
        if name in seen:
            raise ValueError(f"mount option `{name}` specified more than once")
        seen.add(name)
        if not separator:
            _add_mount_word(mount, word)
        elif key == "size":
            if "size_mib" in mount:
                raise ValueError("tmpfs size specified more than once")
            mount["size_mib"] = parse_size_mib(value)
        elif key in _MOUNT_KEYS:
            raise ValueError(f"mount option `{key}` is not valid here")
        else:
            raise ValueError(f'unknown mount option "{key}"')


def _add_mount_word(mount: dict[str, object], word: str) -> None:
    if word in ("noexec", "nosuid", "nodev"):
        mount[word] = True
    elif word in ("ro", "rw"):
        mount["readonly"] = word == "ro"
    elif word in _TMPFS_WORDS:
        raise ValueError(f'unsupported mount option "{word}"')
    else:
        raise ValueError(f'mount option "{word}" must be a flag or key=value')


class Script(Struct, frozen=True):
    """A script by name; whether its body still needs a shebang and its escapes decoded."""

    name: str
    body: str
    verbatim: bool


def script(text: str) -> Script:
    name, body = _script_parts(text, "script", "=", "BODY")
    return Script(name, body, verbatim=False)


def script_raw(text: str) -> Script:
    name, body = _script_parts(text, "script-raw", "=", "BODY")
    return Script(name, body, verbatim=True)


def script_path(text: str) -> Script:
    """``NAME:PATH``; the file is read now, so that a wrong path is noticed before anything is made."""
    name, path = _script_parts(text, "script-path", ":", "PATH")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            body = file.read(_MAX_SCRIPT + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"failed to read script file '{path}': {reason}") from error
    if len(body) > _MAX_SCRIPT:
        raise ValueError(f"failed to read script file '{path}': it is larger than {_MAX_SCRIPT >> 20} MiB")
    return Script(name, body, verbatim=True)


def _script_parts(text: str, flag: str, separator: str, what: str) -> tuple[str, str]:
    name, found, rest = text.partition(separator)
    if not found:
        raise ValueError(f"{flag} must be in format NAME{separator}{what}")
    if not name:
        raise ValueError(f"script name must not be empty (NAME{separator}{what})")
    return name, rest


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}


def script_text(item: Script, interpreter: str | None) -> str:
    """What is written into the guest: with ``interpreter`` in the shebang unless the script is verbatim."""
    if item.verbatim:
        return item.body
    if interpreter is None:
        interpreter = "/bin/sh"
    shebang = f"#!{interpreter}" if "/" in interpreter else f"#!/usr/bin/env {interpreter}"
    body = _decode_escapes(item.body)
    return f"{shebang}\n{body}" + ("" if body.endswith("\n") else "\n")


def _decode_escapes(text: str) -> str:
    result, position = [], 0
    while position < len(text):
        character = text[position]
        following = text[position + 1 : position + 2]
        if character == "\\" and following in _ESCAPES and following:
            result.append(_ESCAPES[following])
            position += 2
        else:
            result.append(character)
            position += 1
    return "".join(result)
