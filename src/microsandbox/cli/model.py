"""What a command line consists of: commands, options and arguments as values (pure).

The whole tree is data, so parsing, help, ``--tree`` and the tests all read the same table, and a command's
code is imported only when that command runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from msgspec import Struct, field

#: Turns the text of one value into what the command wants. Raises ValueError.
Convert = Callable[[str], Any]


class Stage(Enum):
    """Whether something is offered."""

    OFFERED = "in help and tree"
    HIDDEN = "works, but is not shown"
    LATER = "recognised only to say that this release does not support it"


class Arity(Enum):
    """How many values a positional argument takes."""

    ONE = "<{}>"
    OPTIONAL = "[{}]"
    MANY = "[{}...]"
    SOME = "<{}>..."


class Option(Struct, frozen=True):
    """``-s, --long <VALUE>``, or a flag when ``value`` is None."""

    long: str
    short: str | None = None
    value: str | None = None
    help: str = ""
    repeat: bool = False
    convert: Convert = str
    stage: Stage = Stage.OFFERED
    #: Its value may begin with a hyphen.
    hyphen: bool = False

    @property
    def dest(self) -> str:
        return self.long.replace("-", "_")

    @property
    def flags(self) -> tuple[str, ...]:
        return (f"-{self.short}", f"--{self.long}") if self.short else (f"--{self.long}",)

    @property
    def label(self) -> str:
        shown = ", ".join(self.flags)
        return f"{shown} <{self.value}>" if self.value else shown


class Argument(Struct, frozen=True):
    """A positional argument."""

    name: str
    arity: Arity
    help: str = ""

    @property
    def dest(self) -> str:
        return self.name.lower().replace("-", "_")

    @property
    def label(self) -> str:
        return self.arity.value.format(self.name)


class Command(Struct, frozen=True):
    """A command, or a group of them when it has ``subcommands``.

    ``handler`` is ``module:function`` below this package; the function takes the parsed values and returns
    the exit code. ``trailing`` means that everything after ``--`` is the guest's command. ``exclusive``
    lists sets of options of which at most one may be given.
    """

    name: str
    help: str
    handler: str = ""
    heading: str = ""
    aliases: tuple[str, ...] = ()
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    subcommands: tuple[Command, ...] = ()
    trailing: bool = False
    exclusive: tuple[tuple[str, ...], ...] = ()
    stage: Stage = Stage.OFFERED

    def find(self, word: str) -> Command | None:
        """The subcommand of that name or alias, offered or not."""
        return next(
            (command for command in self.subcommands if word in (command.name, *command.aliases)), None
        )

    @property
    def offered_commands(self) -> Iterator[Command]:
        return (command for command in self.subcommands if command.stage is Stage.OFFERED)

    @property
    def offered_options(self) -> Iterator[Option]:
        return (option for option in self.options if option.stage is Stage.OFFERED)


class Invocation(Struct, frozen=True):
    """A parsed command line. ``path`` is what was typed, ``values`` the options by name with underscores."""

    path: tuple[str, ...]
    command: Command
    values: dict[str, Any] = field(default_factory=dict)
    guest_command: tuple[str, ...] = ()
    log_level: str | None = None

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def given(self, option: Option) -> bool:
        """Whether the option was typed."""
        value = self.values[option.dest]
        return value is not None and value is not False and value != []


class UsageError(Exception):
    """The command line is wrong: exit code 2. ``command`` is where to look for help."""

    def __init__(self, message: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.path = path
