"""From argv to an Invocation, by the command table.

The command is found first and only its options are given to argparse; what argparse is not good at
(one log level anywhere, ``--tree`` before everything, ``--`` and the guest's command, values that are
checked with the option's name in the error) is done around it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from msgspec import Struct

from microsandbox.cli.model import Argument, Arity, Command, Invocation, Option, Stage, UsageError
from microsandbox.cli.sandbox_options import LOG_LEVELS
from microsandbox.errors import NotSupportedYetError

_NARGS = {Arity.ONE: None, Arity.OPTIONAL: "?", Arity.MANY: "*", Arity.SOME: "+"}


class Located(Struct, frozen=True):
    """The command that argv names, how it was spelled, and the words that are its own."""

    command: Command
    path: tuple[str, ...]
    rest: tuple[str, ...]


def locate(root: Command, argv: Sequence[str]) -> Located:
    """Follow the command words; options before them go to the command. Raises UsageError."""
    command = root
    path: tuple[str, ...] = (root.name,)
    leading: list[str] = []
    for position, word in enumerate(argv):
        if not command.subcommands:
            return Located(command, path, (*leading, *argv[position:]))
        if word.startswith("-"):
            leading.append(word)
            continue
        found = command.find(word)
        if found is None:
            kind = "command" if command is root else f"{command.name} command"
            raise UsageError(f"unrecognized {kind} '{word}'", path)
        command, path = found, (*path, word)
        if command.stage is Stage.LATER:
            raise NotSupportedYetError(" ".join(path[1:]))
    return Located(command, path, tuple(leading))


def scope_of_tree(root: Command, argv: Sequence[str]) -> tuple[Command, str]:
    """The deepest offered command named in argv, and its name as typed."""
    command, label = root, root.name
    for word in argv:
        if word == "--":
            break
        if word.startswith("-"):
            continue
        found = command.find(word)
        if found is None or found.stage is not Stage.OFFERED:
            break
        command, label = found, f"{label} {word}"
    return command, label


def parse(located: Located) -> Invocation:
    """Check the words against the command's table. Raises UsageError, NotSupportedYetError."""
    command, path = located.command, located.path
    words = list(located.rest)
    guest_command: tuple[str, ...] = ()
    if command.trailing and "--" in words:
        cut = words.index("--")
        words, guest_command = words[:cut], tuple(words[cut + 1 :])
    parser = _Parser(command, path)
    namespace = parser.parse(_attach_values(command, words))
    for option in command.options:
        if option.stage is Stage.LATER and _is_given(getattr(namespace, option.dest)):
            raise NotSupportedYetError("/".join(option.flags))
    found = {
        option.dest: _convert(option, getattr(namespace, option.dest), path) for option in command.options
    }
    found |= {argument.dest: getattr(namespace, argument.dest) for argument in command.arguments}
    _check_exclusive(command, found, path)
    levels = [level for level in LOG_LEVELS if getattr(namespace, f"log_{level}")]
    if len(levels) > 1:
        raise UsageError(f"the argument '--{levels[0]}' cannot be used with '--{levels[1]}'", path)
    return Invocation(path, command, found, guest_command, levels[0] if levels else None)


def _attach_values(command: Command, words: Sequence[str]) -> list[str]:
    """``--option=value`` for options whose value may look like an option itself."""
    flags = {flag for option in command.options if option.hyphen for flag in option.flags}
    attached: list[str] = []
    remaining = iter(words)
    for word in remaining:
        value = next(remaining, None) if word in flags else None
        attached.append(word if value is None else f"{word}={value}")
    return attached


class _Parser(argparse.ArgumentParser):
    """argparse for one command, with our errors in place of its own."""

    def __init__(self, command: Command, path: tuple[str, ...]) -> None:
        super().__init__(prog=" ".join(path), add_help=False, allow_abbrev=False, usage="")
        self._path = path
        for level in LOG_LEVELS:
            self.add_argument(f"--{level}", dest=f"log_{level}", action="store_true")
        for option in command.options:
            self._add_option(option)
        for argument in command.arguments:
            self._add_positional(argument)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        return self.parse_intermixed_args(words)

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise UsageError(message, self._path)

    def _add_option(self, option: Option) -> None:
        if option.value is None:
            self.add_argument(*option.flags, dest=option.dest, action="store_true")
        else:
            action = "append" if option.repeat else _Once
            self.add_argument(*option.flags, dest=option.dest, action=action, metavar=option.value)

    def _add_positional(self, argument: Argument) -> None:
        self.add_argument(argument.dest, nargs=_NARGS[argument.arity], metavar=argument.name)


class _Once(argparse.Action):
    """An option that is given at most once: the second of two is more likely a mistake than an override."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        flag: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest, None) is not None:
            parser.error(f"the argument '{flag}' cannot be used multiple times")
        setattr(namespace, self.dest, values)


def _convert(option: Option, value: Any, path: tuple[str, ...]) -> Any:
    if option.value is None:
        return value
    try:
        if option.repeat:
            return [option.convert(text) for text in value or ()]
        return None if value is None else option.convert(value)
    except ValueError as error:
        reason = str(error)
        raise UsageError(reason if reason.startswith("--") else f"--{option.long}: {reason}", path) from error


def _check_exclusive(command: Command, found: dict[str, Any], path: tuple[str, ...]) -> None:
    for names in command.exclusive:
        given = [name for name in names if _is_given(found[name])]
        if len(given) > 1:
            first, second = (_shown(command, name) for name in given[:2])
            raise UsageError(f"the argument '{first}' cannot be used with '{second}'", path)


def _shown(command: Command, name: str) -> str:
    for argument in command.arguments:
        if argument.dest == name:
            return argument.label
    return "--" + name.replace("_", "-")


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and value != []
