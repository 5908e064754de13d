"""A sandbox in the making, with the events of its image's pull."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from microsandbox.errors import MicrosandboxError
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.options import CreateOptions

if TYPE_CHECKING:
    from microsandbox.image.progress import PullEvent
    from microsandbox.sandbox.sandbox import Sandbox

_BUFFER = 1024


class PullProgress:
    """The events of one pull; several iterators share them."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[PullEvent | None] = asyncio.Queue(_BUFFER)
        self._ended = False

    def put(self, event: PullEvent) -> None:
        """Add an event; a full buffer drops it rather than hold up the pull."""
        with suppress(asyncio.QueueFull):
            self._events.put_nowait(event)

    def end(self) -> None:
        self._ended = True
        with suppress(asyncio.QueueFull):
            self._events.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[PullEvent]:
        return self

    async def __anext__(self) -> PullEvent:
        if self._ended and self._events.empty():
            raise StopAsyncIteration
        event = await self._events.get()
        if event is None:
            self.end()  # the next iterator that waits is told, too
            raise StopAsyncIteration
        return event


class PullSession:
    """Returned by ``Sandbox.create_with_progress``. Following ``progress`` is optional."""

    def __init__(self, context: Context, options: CreateOptions) -> None:
        self._context = context
        self._options = options
        self._progress = PullProgress()
        self._task: asyncio.Task[Sandbox] | None = None
        self._taken = False
        with suppress(RuntimeError):  # without a running loop it starts when it is first awaited
            self._begin()

    @property
    def progress(self) -> PullProgress:
        """An async iterator over the pull's events; it ends before the machine boots."""
        return self._progress

    async def result(self) -> Sandbox:
        """The sandbox, or the error that prevented it; once."""
        if self._taken:
            raise RuntimeError("result() already consumed")
        self._taken = True
        return await self._begin()

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._taken:
            return
        with suppress(MicrosandboxError, OSError, ValueError):
            (await self.result()).release()

    def _begin(self) -> asyncio.Task[Sandbox]:
        if self._task is None:
            asyncio.get_running_loop()
            self._task = asyncio.ensure_future(self._create())
        return self._task

    async def _create(self) -> Sandbox:
        try:
            from microsandbox.sandbox import creation

            return await creation.create(
                self._context, self._options, self._progress.put, on_pulled=self._progress.end
            )
        finally:
            self._progress.end()
