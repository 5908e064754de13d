"""Values that may be awaited, because in microsandbox a sandbox's properties are: ``await sandbox.name``."""

from __future__ import annotations

from collections.abc import Generator


class AwaitableText(str):
    """A text that may also be awaited, as microsandbox's ``await sandbox.name`` is."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, str]:
        return str(self)
        yield


class AwaitableFlag(int):
    """A truth value that may also be awaited."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, bool]:
        return bool(self)
        yield
