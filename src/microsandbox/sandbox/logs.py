"""What a sandbox's commands printed: named here, read back by a later release."""

from __future__ import annotations

from typing import Self

from microsandbox.errors import NotSupportedYetError
from microsandbox.types import LogEntry
from microsandbox.unavailable import Unavailable


class LogStream(Unavailable):
    """Entries of a sandbox's logs as they appear."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LogEntry:
        raise NotSupportedYetError("log_stream")
