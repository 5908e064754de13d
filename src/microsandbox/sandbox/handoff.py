"""The program that takes over PID 1 of the guest: ``init=`` as a value, and whether it can be one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from microsandbox.arguments import check_keys, optional, required, text_list, text_map
from microsandbox.errors import InvalidConfigError

#: The agent's bounds, and the kernel's for all words of an execve(2) where a stack is 8 MiB.
MAX_INIT_ARGS, MAX_INIT_ENV, MAX_INIT_BYTES = 4095, 4096, 2 << 20
#: What 0.5.6 puts between words; stored configurations are to be good for it.
_SEPARATOR = "\x1f"


class Init(Struct, frozen=True):
    """An absolute path in the guest or ``auto``, its arguments, and what is added to its environment."""

    cmd: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


def parse_init(value: Any) -> Init:
    """A path, a dict with ``cmd``, or an InitConfig. Raises TypeError, ValueError."""
    if isinstance(value, str):
        return Init(required({"cmd": value}, "cmd"))
    convert = getattr(value, "_to_dict", None)
    values = convert() if callable(convert) else value
    if not isinstance(values, dict):
        if callable(convert):
            raise TypeError("init._to_dict() must return a dict")
        raise TypeError("init must be str, dict with 'cmd', or InitConfig")
    check_keys(values, ("cmd", "args", "env"), "init key")
    return Init(
        required(values, "cmd", "init dict requires 'cmd'"),
        optional(text_list, values.get("args")) or (),
        tuple((optional(text_map, values.get("env")) or {}).items()),
    )


def validate_init(init: Init | None) -> None:
    """Raises InvalidConfigError for the first thing that is wrong."""
    if init is None:
        return
    if "\0" in init.cmd:
        raise InvalidConfigError(f"init cmd path must not contain a NUL byte: {_quoted(init.cmd)}")
    if init.cmd != "auto" and not init.cmd.startswith("/"):
        raise InvalidConfigError(f"init cmd must be an absolute path or `auto`, got: {_quoted(init.cmd)}")
    for number, argument in enumerate(init.args):
        if _SEPARATOR in argument:
            raise InvalidConfigError(f"init arg #{number} contains the reserved separator byte (0x1F)")
        if "\0" in argument:
            raise InvalidConfigError(f"init arg #{number} must not contain a NUL byte")
    for key, value in init.env:
        _validate_variable(key, value)
    _validate_size(init)


def _validate_variable(key: str, value: str) -> None:
    if not key:
        raise InvalidConfigError("init env key must not be empty")
    if "=" in key:
        raise InvalidConfigError(f"init env key {_quoted(key)} must not contain '='")
    if _SEPARATOR in key or "\0" in key:
        raise InvalidConfigError(f"init env key {_quoted(key)} must not contain 0x1F or NUL")
    if _SEPARATOR in value or "\0" in value:
        raise InvalidConfigError(f"init env value for {_quoted(key)} must not contain 0x1F or NUL")


def _validate_size(init: Init) -> None:
    if len(init.args) > MAX_INIT_ARGS or len(init.env) > MAX_INIT_ENV:
        raise InvalidConfigError(
            f"init has too many words: {len(init.args)} arguments (max {MAX_INIT_ARGS}) and "
            f"{len(init.env)} environment variables (max {MAX_INIT_ENV})"
        )
    words = (init.cmd, *init.args, *(word for pair in init.env for word in pair))
    size = sum(len(word.encode()) for word in words)
    if size > MAX_INIT_BYTES:
        raise InvalidConfigError(f"init's words are larger than {MAX_INIT_BYTES >> 20} MiB together")


def boot_init(init: Init | None, env: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
    """What the agent is told: the sandbox's environment is the init's, its own goes over it."""
    if init is None:
        return None
    variables = {**dict(env), **dict(init.env)}
    return {
        "cmd": init.cmd,
        "args": list(init.args),
        "env": [f"{key}={value}" for key, value in variables.items()],
    }


def _quoted(text: str) -> str:
    """As 0.5.6 shows text: in double quotes."""
    import json

    return json.dumps(text, ensure_ascii=False).replace("\\u0000", "\\0")
