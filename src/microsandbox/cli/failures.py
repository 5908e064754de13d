"""Exceptions as the lines the user reads and the exit code the caller's shell gets."""

from __future__ import annotations

import shlex
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from microsandbox.cli import output
from microsandbox.errors import (
    BootError,
    ExecFailedError,
    InvalidConfigError,
    MicrosandboxError,
    RuntimeTooOldError,
)

#: What a shell says for a command that is not there, or cannot be run.
NOT_FOUND, NOT_RUNNABLE, FAILURE, USAGE = 127, 126, 1, 2
#: What is passed on for a guest command that a signal killed; which one is not reported to the host.
KILLED = 255

_EXIT_CODES = {
    "not_found": NOT_FOUND,
    "permission_denied": NOT_RUNNABLE,
    "not_executable": NOT_RUNNABLE,
}
_KINDS = {
    "not_found": (
        "not found",
        "is `{command}` on PATH inside the sandbox? Try `msb exec {name} -- which {command}`",
    ),
    "permission_denied": (
        "permission denied",
        "check the binary's permissions — `chmod +x {command}` may be needed",
    ),
    "not_executable": (
        "not executable",
        "not a runnable program: wrong architecture, missing interpreter, or corrupt ELF",
    ),
    "bad_cwd": ("bad cwd", "the working directory doesn't exist or isn't accessible; create it first"),
    "bad_args": ("bad args", "argument list too long (E2BIG), too many symlinks, or null bytes"),
    "resource_limit": (
        "resource limit",
        "the limit of open files or processes was hit; raise `--rlimit` or stop other processes",
    ),
    "user_setup_failed": ("user setup", "the user must exist in the sandbox's `/etc/passwd`"),
    "out_of_memory": ("out of memory", "try a larger `--memory`"),
    "pty_setup_failed": ("pty setup", "the terminal could not be made; pipe stdin (`< /dev/null`)"),
}


class GuestCommandError(Exception):
    """A command in the guest never started: what it was, where, and why."""

    def __init__(self, command: str, name: str, failure: ExecFailedError) -> None:
        super().__init__(str(failure))
        self.command, self.name, self.failure = command, name, failure


def report(error: BaseException, *, traces: bool = False) -> int:
    """Say what went wrong on standard error, and return the exit code."""
    match error:
        case GuestCommandError():
            return _report_guest_command(error)
        case BootError():
            return _report_boot(error)
        case RuntimeTooOldError():
            output.error(
                "this sandbox's runtime is too old for the requested feature",
                [
                    "the sandbox was started by an older microsandbox runtime",
                    "exec and shell still work",
                    "restart the sandbox to update its runtime, then retry",
                ],
            )
        case MicrosandboxError():
            output.error(str(error))
        case OSError() if error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            output.error(f"{where}{error.strerror} (os error {error.errno})")
        case _:
            output.error(f"{type(error).__name__}: {error}", ["this is a bug in msb; --debug shows where"])
    if traces:
        output.say("".join(traceback.format_exception(error)).rstrip())
    return FAILURE


@contextmanager
def refusing_arguments() -> Iterator[None]:
    """What the SDK says of a wrong argument is the user's to correct here, and not a bug."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidConfigError(str(error)) from error


def _report_guest_command(error: GuestCommandError) -> int:
    failure = error.failure
    label, hint = _KINDS.get(failure.kind, ("exec", ""))
    number = f" (errno {failure.errno})" if failure.errno is not None else ""
    suffix = f" ({failure.errno_name})" if failure.errno_name else number
    details = [f"{label}: {failure.message}{suffix}"]
    if hint:
        details.append(hint.format(command=error.command, name=error.name))
    output.error(f'failed to exec "{error.command}"', details)
    return _EXIT_CODES.get(failure.kind, FAILURE)


def _report_boot(error: BootError) -> int:
    first, *more = error.message.splitlines() or [""]
    details = [f"{error.stage}: {first}", *more]
    if error.hint is not None:
        details.append(error.hint)
    if _has_logs(error.name):
        details.append(f"run `msb logs --source system {shlex.quote(error.name)}` for full diagnostics")
    output.error(f'failed to start "{error.name}"', details)
    return FAILURE


def _has_logs(name: str) -> bool:
    """Whether there still are any: an unnamed sandbox is gone with everything."""
    from microsandbox.store.home import Home

    try:
        return Home.open().sandbox(name).logs.is_dir()
    except MicrosandboxError:
        return False
