"""The ``msb`` command: a thin face of the SDK.

Imports happen where they are needed: ``msb --version`` and ``msb ls`` answer about as fast as the
interpreter starts.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

TYPE_CHECKING = False  # importing typing would take longer than `msb --version`
if TYPE_CHECKING:
    from typing import NoReturn

#: As a shell spells a program that SIGINT or SIGPIPE ended.
_INTERRUPTED, _BROKEN_PIPE = 130, 141


def program() -> NoReturn:
    """The console script: a process that runs one command line and nothing else.

    Until it has imported what it needs there is no garbage to collect, and looking for some takes a fifth of
    the time. It leaves as soon as its work is done: the interpreter's own end takes 20 ms.
    """
    gc.disable()
    code = main(sys.argv[1:], dedicated=True)
    os._exit(code)


def main(argv: Sequence[str] | None = None, *, dedicated: bool = False) -> int:
    """Run the command line and return its exit code; no exception of ours leaves here.

    ``dedicated``: nothing else runs in this process, which may be forked.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _open_standard_descriptors()
        _name_ourselves()
        code = _run(words, dedicated=dedicated)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:
        return _report(error, words)
    return code


def _report(error: Exception, words: Sequence[str]) -> int:
    from microsandbox.cli.failures import report

    ours = words[: words.index("--")] if "--" in words else words
    try:
        code = report(error, traces="--debug" in ours or "--trace" in ours)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return _BROKEN_PIPE
    return code


def _run(words: Sequence[str], *, dedicated: bool) -> int:
    if words and words[0] in ("-V", "--version"):
        from microsandbox.version import VERSION

        sys.stdout.write(f"msb {VERSION}\n")
        return 0
    from microsandbox.cli.dispatch import dispatch

    return dispatch(words, dedicated=dedicated)


def _open_standard_descriptors() -> None:
    """A caller may have closed 0, 1 or 2: a file opened later must not take such a number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _name_ourselves() -> None:
    """Text is UTF-8 and never fails to be printed; programs started from here find this ``msb``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if not os.environ.get("MSB_PATH") and os.path.basename(sys.argv[0]) in ("msb", "microsandbox"):  # noqa: PTH119
        os.environ["MSB_PATH"] = os.path.abspath(sys.argv[0])  # noqa: PTH100


def _drop_output() -> None:
    """Nobody reads standard output any more: what is buffered must not fail again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
