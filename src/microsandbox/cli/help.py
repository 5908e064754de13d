"""Help and the command tree, drawn from the command table."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from microsandbox.cli.commands import ROOT
from microsandbox.cli.model import Command, Invocation, Option, Stage, UsageError
from microsandbox.cli.parser import locate

_GLOBAL_OPTIONS = (
    ("    --error, --warn, --info, --debug, --trace", "Log level on standard error (default: silent)"),
    ("    --tree", "Print the command tree"),
    ("-h, --help", "Print help"),
)
_VERSION = ("-V, --version", "Print version")


def root_help() -> str:
    """The grouped help of ``msb`` itself."""
    lines = [ROOT.help, "", "Usage: msb [OPTIONS] <COMMAND>"]
    commands = list(ROOT.offered_commands)
    width = max(len(command.name) for command in commands)
    for heading in dict.fromkeys(command.heading for command in commands):
        lines += ["", f"{heading}:"]
        for command in commands:
            if command.heading == heading:
                lines.append(_command_line(command, width))
    return "\n".join([*lines, "", "Options:", *_columns([*_GLOBAL_OPTIONS, _VERSION])]) + "\n"


def command_help(command: Command, path: tuple[str, ...]) -> str:
    """The help of one command or group, named as it was typed."""
    if command is ROOT:
        return root_help()
    lines = [command.help, "", f"Usage: {usage(command, path)}"]
    if command.subcommands:
        commands = list(command.offered_commands)
        width = max(len(found.name) for found in commands)
        lines += ["", "Commands:", *(_command_line(found, width) for found in commands)]
    if command.arguments:
        lines += ["", "Arguments:", *_columns([(found.label, found.help) for found in command.arguments])]
    options = [(_option_label(option), option.help) for option in command.offered_options]
    return "\n".join([*lines, "", "Options:", *_columns([*options, *_GLOBAL_OPTIONS])]) + "\n"


def usage(command: Command, path: tuple[str, ...]) -> str:
    """The usage line, without its heading."""
    parts = [*path, "[OPTIONS]", *(argument.label for argument in command.arguments)]
    if command.subcommands:
        parts.append("<COMMAND>")
    if command.trailing:
        parts.append("[-- COMMAND...]")
    return " ".join(parts)


def tree(command: Command, label: str) -> str:
    """The tree below a command: arguments first, then subcommands, help texts in a column."""
    rows = [(label, command.help), *_branches(command, "")]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left:<{width}}  {text}".rstrip() for left, text in rows) + "\n"


def show_help(invocation: Invocation) -> int:
    """``msb help [COMMAND...]``."""
    located = locate(ROOT, invocation["command"])
    if located.rest:
        raise UsageError(f"unrecognized command '{located.rest[0]}'", located.path)
    sys.stdout.write(command_help(located.command, located.path))
    return 0


def _branches(command: Command, indent: str) -> Iterator[tuple[str, str]]:
    leaves = [(argument.label, argument.help) for argument in command.arguments]
    leaves += [(option.label, option.help) for option in command.offered_options]
    if command.trailing:
        leaves.append(("[-- COMMAND...]", "Command to run in the guest"))
    children: list[tuple[str, str, Command | None]] = [(label, text, None) for label, text in leaves]
    children += [
        (found.name, found.help, found) for found in command.subcommands if found.stage is Stage.OFFERED
    ]
    for position, (label, text, child) in enumerate(children, 1):
        last = position == len(children)
        yield f"{indent}{'└── ' if last else '├── '}{label}", text
        if child is not None:
            yield from _branches(child, indent + ("    " if last else "│   "))


def _command_line(command: Command, width: int) -> str:
    aliases = f" [aliases: {', '.join(command.aliases)}]" if command.aliases else ""
    return f"  {command.name:<{width}}  {command.help}{aliases}"


def _option_label(option: Option) -> str:
    return option.label if option.short else f"    {option.label}"


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(left) for left, _ in rows)
    return [f"  {left:<{width}}  {text}".rstrip() for left, text in rows]
