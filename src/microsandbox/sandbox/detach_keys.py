"""The keys that leave an interactive session."""

from __future__ import annotations

from microsandbox.errors import InvalidConfigError

DEFAULT = "ctrl-]"
_CONTROL = "ctrl-"


class DetachKeys:
    """Looks for one sequence of keys in what is typed. ``spec`` is like ``ctrl-]`` or ``ctrl-p,q``.

    Each part is a character, or ``ctrl-`` and a letter or one of ``@[\\]^_``. Raises InvalidConfigError.
    """

    def __init__(self, spec: str) -> None:
        self._sequence = bytes(_key(part) for part in spec.split(","))
        self._tail = b""

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What goes on to the command, and whether the sequence is complete; nothing follows it then.

        The first keys of a longer sequence have gone on already: they could have been meant for the command.
        """
        seen = self._tail + typed
        start = seen.find(self._sequence)
        if start >= 0:
            return typed[: max(start - len(self._tail), 0)], True
        kept = len(self._sequence) - 1
        self._tail = seen[-kept:] if kept else b""
        return typed, False


def _key(part: str) -> int:
    if part.isascii() and len(part) == 1:
        return ord(part)
    name = part[len(_CONTROL) :].upper()
    if part.startswith(_CONTROL) and len(name) == 1 and "@" <= name <= "_":
        return ord(name) & 0x1F
    raise InvalidConfigError(f"invalid detach key: {part}")
