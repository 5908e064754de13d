"""How a command is to be run: the arguments of ``exec`` and ``shell``, and the request they become."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from microsandbox import environment
from microsandbox.arguments import (
    dict_like,
    flag,
    nearest,
    octets,
    parameter,
    seconds,
    text,
    text_map,
    whole,
)
from microsandbox.errors import ExecFailedError, InvalidConfigError
from microsandbox.sandbox.options import SandboxConfig
from microsandbox.types import Rlimit, RlimitResource, Stdin

if TYPE_CHECKING:
    from typing import TypedDict as Keywords
else:
    from microsandbox.arguments import Keywords

DEFAULT_SHELL = "/bin/sh"
#: Size of a pseudo-terminal that nobody looks at.
_ROWS, _COLS = 24, 80
#: Bytes of command, arguments and environment: a request travels in one message of at most 4 MiB.
MAX_ARGUMENT_BYTES = 3 << 20


class StdinMode(StrEnum):
    """Null: at its end from the start. Bytes: given in advance. Pipe: written while the command runs."""

    NULL = "null"
    BYTES = "bytes"
    PIPE = "pipe"


class ExecOptions(Struct, frozen=True):
    """One command. ``timeout`` is in seconds; None of cwd and user means the sandbox's."""

    cmd: str
    args: tuple[str, ...] = ()
    cwd: str | None = None
    user: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    timeout: float | None = None
    stdin: StdinMode = StdinMode.NULL
    stdin_data: bytes = b""
    tty: bool = False
    rlimits: tuple[Rlimit, ...] = ()


class ExecKeywords(Keywords, total=False):
    """The keywords of ``shell`` and ``shell_stream``, the same as those of ``exec``."""

    cwd: str | None
    user: str | None
    env: Mapping[str, str] | None
    timeout: float | None
    stdin: Stdin | bytes | str | None
    tty: bool
    rlimits: Iterable[Rlimit | Mapping[str, Any]] | None


def parse_exec(cmd: str, args: Any = None, **keywords: Any) -> ExecOptions:
    """The arguments of ``exec``. ``args`` may be a mapping of options, which override the keywords.

    Raises TypeError, ValueError.
    """
    command = parameter("cmd", text, cmd)
    for keyword in keywords:
        if keyword not in ExecKeywords.__annotations__:
            hint = nearest(keyword, ExecKeywords.__annotations__)
            raise TypeError(f"exec() got an unexpected keyword argument '{keyword}'{hint}")
    options = ExecOptions(command, **_convert(keywords, parameter))
    if args is None:
        return options
    if isinstance(args, list):
        return replace(options, args=_args(args))
    return _overridden(options, args)


def parse_shell(script: str, shell: str | None, keywords: Mapping[str, Any]) -> ExecOptions:
    """A script for the sandbox's shell; keywords as for ``exec``. Raises TypeError, ValueError."""
    script = parameter("script", text, script)
    return replace(parse_exec(shell or DEFAULT_SHELL, **keywords), args=("-c", script))


def exec_request(options: ExecOptions, config: SandboxConfig) -> dict[str, Any]:
    """The payload of ``core.exec.request``.

    Raises InvalidConfigError for a limit that cannot be, ExecFailedError for what no command can be given.
    """
    for limit in options.rlimits:
        if limit.soft > limit.hard:
            raise InvalidConfigError(
                f"rlimit {limit.resource}: soft ({limit.soft}) must not exceed hard ({limit.hard})"
            )
    own = dict(options.env)
    env = {**{key: value for key, value in config.env if key not in own}, **own}
    if options.tty and "TERM" not in env:
        env["TERM"] = _terminal()
    request: dict[str, Any] = {
        "cmd": options.cmd,
        "args": list(options.args),
        "env": [f"{key}={value}" for key, value in env.items()],
        "cwd": options.cwd or config.workdir or "/",
        "tty": options.tty,
        "rows": _ROWS,
        "cols": _COLS,
        "rlimits": [limit._to_dict() for limit in options.rlimits],
    }
    user = options.user if options.user is not None else config.user
    if user is not None:
        request["user"] = user
    _check_texts(request)
    return request


def _terminal() -> str:
    name = (environment.value(environment.TERMINAL) or "").strip()
    return "xterm" if name in ("", "dumb") else name


def _check_texts(request: Mapping[str, Any]) -> None:
    """A NUL would end a text in the guest, and another command than the caller's would run."""
    command = request["cmd"].replace("\0", "\\0")
    texts = [request["cmd"], *request["args"], *request["env"], request["cwd"], request.get("user", "")]
    if any("\0" in item for item in texts):
        raise ExecFailedError(f'spawn "{command}": nul byte found in provided data', kind="bad_args")
    if sum(len(item.encode()) for item in texts) > MAX_ARGUMENT_BYTES:
        raise ExecFailedError(
            f'spawn "{command}": Argument list too long (os error {errno.E2BIG})',
            kind="bad_args",
            errno=errno.E2BIG,
            errno_name="E2BIG",
        )


# arguments


def _convert(values: Mapping[str, Any], apply: Callable[..., Any]) -> dict[str, Any]:
    """Fields of ExecOptions from what the caller gave; ``apply`` converts one value by its name."""
    fields: dict[str, Any] = {}
    for name, convert in _CONVERTERS.items():
        if (value := values.get(name)) is not None:
            fields[name] = apply(name, convert, value)
    if (stdin := values.get("stdin")) is not None:
        fields["stdin"], fields["stdin_data"] = _stdin(stdin, None)
    if (rlimits := values.get("rlimits")) is not None:
        fields["rlimits"] = _rlimits(rlimits)
    return fields


def _overridden(options: ExecOptions, args: Any) -> ExecOptions:
    """The options with those of a mapping in their place."""
    if isinstance(args, (str, bytes)):
        raise TypeError("args must be a list of strings, not a string")
    if not isinstance(args, Mapping):
        convert = getattr(args, "_to_dict", None)
        args = convert() if callable(convert) else None
        if not isinstance(args, Mapping):
            raise TypeError("args must be a list of strings")
    known = {"args", "stdin_data", *ExecKeywords.__annotations__}
    for key in args:
        if not isinstance(key, str):
            raise TypeError("exec option keys must be strings")
        if key not in known:
            raise TypeError(f"unknown exec option: {key}")
    fields = _convert({**args, "stdin": None}, lambda _name, convert, value: convert(value))
    if args.get("args") is not None:
        fields["args"] = _args(args["args"])
    if "rlimits" in args and args["rlimits"] is None:
        fields["rlimits"] = ()
    stdin, data = args.get("stdin"), args.get("stdin_data")
    if stdin is not None or data is not None:
        fields["stdin"], fields["stdin_data"] = _stdin("bytes" if stdin is None else stdin, data)
    return replace(options, **fields)


def _args(args: Any) -> tuple[str, ...]:
    if isinstance(args, (str, bytes)):
        raise TypeError("args must be a list of strings, not a string")
    if not isinstance(args, list) or not all(isinstance(item, str) for item in args):
        raise TypeError("args must be a list of strings")
    return tuple(text(item) for item in args)


def _stdin(value: Any, data: Any) -> tuple[StdinMode, bytes]:
    """The mode, and the data in mode ``bytes``. A text is a mode, never data."""
    if isinstance(value, bytes):
        return StdinMode.BYTES, value
    if isinstance(value, Stdin):
        value, data = value._mode, value._data
    if not isinstance(value, str):
        raise TypeError("stdin must be Stdin, bytes, or a stdin mode string")
    try:
        mode = StdinMode(value)
    except ValueError:
        raise ValueError(f"unknown stdin mode: {value}. Expected: null, pipe, bytes") from None
    return mode, octets(data) if mode is StdinMode.BYTES and data is not None else b""


def _rlimits(value: Any) -> tuple[Rlimit, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError("rlimits must be a sequence")
    return tuple(_rlimit(item) for item in value)


def _rlimit(item: Any) -> Rlimit:
    if isinstance(item, Rlimit) or not (isinstance(item, Mapping) or hasattr(item, "_to_dict")):
        names = ("resource", "soft", "hard")
        values: Mapping[Any, Any] = {name: getattr(item, name) for name in names if hasattr(item, name)}
    else:
        values = dict_like(item)
    for name in ("resource", "soft", "hard"):
        if values.get(name) is None:
            raise ValueError(f"{name} is required")
    name = text(values["resource"])
    try:
        resource = RlimitResource(name.lower())
    except ValueError:
        raise ValueError(f"unknown rlimit resource: {name}") from None
    return Rlimit(resource, whole(values["soft"], 64), whole(values["hard"], 64))


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "cwd": text,
    "user": text,
    "env": lambda value: tuple(text_map(value).items()),
    "timeout": lambda value: seconds(value, "timeout"),
    "tty": flag,
}
