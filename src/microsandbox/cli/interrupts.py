"""Ctrl-C, SIGTERM and SIGHUP: the first ends what runs in good order, the second does not wait for it.

A command's coroutine is given the Signals. Work that can simply be cancelled runs in ``guard()``; a guest's
command has the first signal passed on to it instead, and what is cleaned up afterwards watches for the
second.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
T = TypeVar("T")


class Interrupted(Exception):
    """A signal ended the work. ``number`` is which."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM, as shells spell it."""
        return 128 + self.number


class Signals:
    """The signals this process has got. ``first`` is the number of the first one."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.arrived = asyncio.Event()
        self.arrived_again = asyncio.Event()

    def take(self, number: int) -> None:
        if self.first is None:
            self.first = number
            self.arrived.set()
        else:
            self.arrived_again.set()

    def check(self) -> None:
        """Raises Interrupted if a signal has arrived."""
        if self.first is not None:
            raise Interrupted(self.first)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it, and cancel it when a signal arrives. Raises Interrupted once it has cleaned up."""
        task = asyncio.ensure_future(work)
        if not await first_of(task, self.arrived.wait()):
            await asyncio.wait((task,))
        if task.cancelled():
            self.check()
        return task.result()

    async def hurry(self, gentle: Coroutine[Any, Any, None], forced: Callable[[], Awaitable[None]]) -> None:
        """Run ``gentle``; a second signal runs ``forced`` as well, which must make the first one end."""
        task = asyncio.ensure_future(gentle)
        try:
            if not await first_of(task, self.arrived_again.wait(), cancel=False):
                await forced()
        finally:
            await asyncio.wait((task,))
        task.result()


async def first_of(
    task: asyncio.Future[Any], other: Coroutine[Any, Any, Any], *, cancel: bool = True
) -> bool:
    """Wait for either; True when the task has ended, else it is cancelled (not waited for)."""
    waiting = asyncio.ensure_future(other)
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        task.cancel()
        raise
    finally:
        waiting.cancel()
    if not task.done() and cancel:
        task.cancel()
    return task.done()


def run_interruptible(main: Callable[[Signals], Coroutine[Any, Any, int]]) -> int:
    """Run a command's coroutine to its exit code, with the signals caught."""
    return asyncio.run(_with_signals(main))


def run_cancellable(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """As run_interruptible(), for commands that a signal just cancels."""

    async def guarded(signals: Signals) -> int:
        return await signals.guard(main())

    return run_interruptible(guarded)


async def _with_signals(main: Callable[[Signals], Coroutine[Any, Any, int]]) -> int:
    signals, loop = Signals(), asyncio.get_running_loop()
    for number in _WATCHED:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1), or a shell's background job
            loop.add_signal_handler(number, signals.take, number)
    try:
        return await main(signals)
    except Interrupted as interruption:
        return interruption.exit_code
    finally:
        if signals.first is not None:
            await _finish_threads(signals, signals.first)
        for number in _WATCHED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.remove_signal_handler(number)


async def _finish_threads(signals: Signals, first: int) -> None:
    """Cancelled work may have a thread in the middle of a file: give it time until the second signal."""
    ending = asyncio.ensure_future(asyncio.get_running_loop().shutdown_default_executor())
    if await first_of(ending, signals.arrived_again.wait()):
        return
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(128 + first)
