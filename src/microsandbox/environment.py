"""The environment variables that steer this package, each read in one place. An empty one is an unset one."""

from __future__ import annotations

import os

from microsandbox.errors import InvalidConfigError

#: Where state is.
HOME = "MSB_HOME"
#: The ``msb`` program.
MSB_PATH = "MSB_PATH"
#: What executes guests.
ACCELERATOR = "MSB_ACCEL"
#: The guests' kernel.
KERNEL = "MSB_KERNEL"
#: Whether sandboxes go on from memory templates.
TEMPLATES = "MSB_TEMPLATES"
#: Given to commands on a pseudo-terminal; ``dumb`` means no colours, no cursor.
TERMINAL = "TERM"
#: There, with whatever value: no colours.
NO_COLOR = "NO_COLOR"

#: What each may have, where that is one of a few words; the first is the default.
_CHOICES = {ACCELERATOR: ("auto", "kvm", "tcg"), TEMPLATES: ("auto", "off")}


def value(name: str) -> str | None:
    """What a variable has, if it has something."""
    return os.environ.get(name) or None


def choice(name: str) -> str:
    """What a variable chooses. Raises InvalidConfigError with its name for what it cannot."""
    choices = _CHOICES[name]
    chosen = value(name) or choices[0]
    if chosen not in choices:
        raise InvalidConfigError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, got {chosen!r}")
    return chosen
