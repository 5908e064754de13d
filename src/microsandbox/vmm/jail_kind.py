"""How a program is shut in: see jail.py."""

from __future__ import annotations

from enum import StrEnum


class JailKind(StrEnum):
    """By namespaces, which is stronger, or by Landlock where they are forbidden."""

    NAMESPACES = "namespaces"
    LANDLOCK = "landlock"
