"""Classes of the public API whose feature a later release brings: they can be named, but not made."""

from __future__ import annotations

from typing import Any


class Unavailable:
    """Base of objects that only an operation of a later release returns."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        raise TypeError(f"No constructor defined for {type(self).__name__}")
