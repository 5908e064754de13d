"""From argv to the function that does it: help and tree first, then the command's own module."""

from __future__ import annotations

import gc
import importlib
import logging
import sys
from collections.abc import Callable, Sequence

from microsandbox.cli import output
from microsandbox.cli.commands import ROOT
from microsandbox.cli.failures import USAGE
from microsandbox.cli.model import Command, Invocation, UsageError
from microsandbox.cli.parser import Located, locate, parse, scope_of_tree

_LOGGING = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}


def dispatch(words: Sequence[str], *, dedicated: bool = False) -> int:
    """Run one command line. Raises what the command raises, but not UsageError.

    ``dedicated``: this process runs nothing else, and may be forked.
    """
    try:
        return _dispatch(words, dedicated=dedicated)
    except UsageError as error:
        return _refuse(error)


def _dispatch(words: Sequence[str], *, dedicated: bool) -> int:
    ours = words[: words.index("--")] if "--" in words else words
    if "--tree" in ours:
        from microsandbox.cli.help import tree

        sys.stdout.write(tree(*scope_of_tree(ROOT, ours)))
        return 0
    located = locate(ROOT, words)
    if located.command is ROOT:
        return _without_command(located)
    if located.command.name == "sandbox":
        return _become_runtime(located.rest)
    own = located.rest[: located.rest.index("--")] if "--" in located.rest else located.rest
    if "-h" in own or "--help" in own:
        return _show(located)
    if located.command.subcommands:
        raise UsageError("a command is required", located.path)
    invocation = parse(located)
    if invocation.log_level is not None:
        logging.basicConfig(
            level=_LOGGING[invocation.log_level], format="%(levelname)s %(name)s: %(message)s"
        )
    handler = _handler(located.command)
    if dedicated and located.command.name == "run" and not invocation["detach"]:
        import microsandbox.sandbox.creation  # noqa: F401 - both need much of it
        from microsandbox.runtime import standby

        standby.fork()
    if dedicated:
        gc.freeze()  # all that was imported stays
        gc.enable()
    return handler(invocation)


def _without_command(located: Located) -> int:
    """Options only: help is what is left to do."""
    if "-V" in located.rest or "--version" in located.rest:
        from microsandbox.version import VERSION

        sys.stdout.write(f"msb {VERSION}\n")
        return 0
    shown = tuple(word for word in located.rest if word not in ("-h", "--help"))
    parse(Located(ROOT, located.path, shown))
    return _show(located)


def _show(located: Located) -> int:
    from microsandbox.cli.help import command_help

    sys.stdout.write(command_help(located.command, located.path))
    return 0


def _become_runtime(words: Sequence[str]) -> int:
    """``msb sandbox``: the process that owns one sandbox's machine. Its log level comes with its plan."""
    from microsandbox.runtime.program import run as become_supervisor

    return become_supervisor([word for word in words if word.removeprefix("--") not in _LOGGING])


def _handler(command: Command) -> Callable[[Invocation], int]:
    module, _, function = command.handler.partition(":")
    handler: Callable[[Invocation], int] = getattr(
        importlib.import_module(f"microsandbox.cli.{module}"), function
    )
    return handler


def _refuse(error: UsageError) -> int:
    output.error(str(error))
    from microsandbox.cli.help import usage

    path = error.path or (ROOT.name,)
    command = locate(ROOT, path[1:]).command
    output.say(f"\nUsage: {usage(command, path)}\n\nFor more information, try '{' '.join(path)} --help'.")
    return USAGE
