"""Ready things on one side, those who wait for one on the other; one of the two sides is always empty."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, Protocol, TypeVar


class Perishable(Protocol):
    """Something that may become unfit to be taken while it lies on a shelf or is on its way to a taker."""

    @property
    def gone(self) -> bool: ...


T = TypeVar("T", bound=Perishable)


class Shelf(Generic[T]):
    """First in, first out, for things and for takers. Nothing is given twice, or lost by a cancelled one."""

    def __init__(self) -> None:
        self._things: deque[T] = deque()
        self._takers: deque[asyncio.Future[T]] = deque()

    def __len__(self) -> int:
        return len(self._things)

    def put(self, thing: T) -> None:
        """Give it to whoever has waited longest, else keep it for the next one."""
        if not self._give(thing):
            self._things.append(thing)

    def put_back(self, thing: T) -> None:
        """As put(), for what a taker leaves after all: it comes first, or nowhere when it is gone by now."""
        if not thing.gone and not self._give(thing):
            self._things.appendleft(thing)

    def withdraw(self, thing: T) -> None:
        """Take this very thing away, if it is there."""
        if thing in self._things:
            self._things.remove(thing)

    async def take(self) -> T:
        """The first thing; waits for one. Raises what fail() was called with meanwhile."""
        if self._things:
            return self._things.popleft()
        given: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._takers.append(given)
        try:
            return await given
        except asyncio.CancelledError:
            if given in self._takers:
                self._takers.remove(given)
            elif not given.cancelled() and given.exception() is None:
                self.put_back(given.result())
            raise

    def fail(self, error: Exception) -> None:
        """Raise ``error`` for everybody who waits now."""
        while self._takers:
            if not (taker := self._takers.popleft()).done():
                taker.set_exception(error)

    def _give(self, thing: T) -> bool:
        while self._takers:
            if not (taker := self._takers.popleft()).done():
                taker.set_result(thing)
                return True
        return False
