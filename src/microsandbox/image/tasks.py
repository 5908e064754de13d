"""Cancellable work of a pull: threads that can be told to stop, locks that can be waited for in a task.

A thread cannot be killed, so a cancelled task tells it to stop and waits until it has: whoever cancelled
finds no descriptor, process, lock or temporary file left over.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from microsandbox.store.files import FileLock

T = TypeVar("T")


class StoppedError(Exception):
    """Raised inside a worker thread whose task was cancelled; never seen outside."""


class StopSignal:
    """Asks one worker thread to stop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._actions: list[Callable[[], None]] = []

    def check(self) -> None:
        """Called by the worker between two steps. Raises StoppedError."""
        if self._stopped:
            raise StoppedError

    def on_stop(self, action: Callable[[], None]) -> None:
        """Call ``action`` when asked to stop: to wake a worker that waits for something else."""
        with self._lock:
            self._actions.append(action)
            stopped = self._stopped
        if stopped:
            action()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            actions = list(self._actions)
        for action in actions:
            action()


async def in_thread(work: Callable[[StopSignal], T]) -> T:
    """Run ``work`` in a thread; when cancelled, stop it and wait for its end."""
    signal = StopSignal()
    task = asyncio.ensure_future(asyncio.to_thread(work, signal))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        signal.stop()
        await _finish(task)
        raise


async def _finish(task: asyncio.Future[T]) -> None:
    """Wait for the end of a task, however often the waiting one is cancelled."""
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            continue
    if not task.cancelled():
        task.exception()  # it was told to stop: what it says about that is of no interest


async def all_or_none(works: Iterable[Awaitable[T]]) -> list[T]:
    """The results in order; the first failure cancels the others, waits for them and is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    if not tasks:
        return []
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failed = [task for task in tasks if task.done() and not task.cancelled() and task.exception()]
        return [task.result() for task in failed or tasks]
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            await _finish(task)


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Hold the lock file ``path``. Waiting for it can be cancelled; ``waiting`` is called before.

    flock(2) has no deadline and no descriptor to poll, so a thread waits in it; one whose task has been
    cancelled gives the lock back the moment it gets it, and being a daemon it holds up no exit.
    """
    lock = FileLock(path)
    if not lock.acquire(blocking=False):
        await _acquire(lock)
    try:
        yield
    finally:
        lock.release()


async def _acquire(lock: FileLock) -> None:
    loop = asyncio.get_running_loop()
    acquired: asyncio.Future[None] = loop.create_future()

    def hand_over(error: BaseException | None) -> None:
        if acquired.cancelled():
            lock.release()
        elif error is not None:
            acquired.set_exception(error)
        else:
            acquired.set_result(None)

    def wait() -> None:
        error: BaseException | None = None
        try:
            lock.acquire()
        except OSError as failure:
            error = failure
        try:
            loop.call_soon_threadsafe(hand_over, error)
        except RuntimeError:  # the loop was closed meanwhile
            lock.release()

    threading.Thread(target=wait, name=f"lock {lock.path.name}", daemon=True).start()
    try:
        await acquired
    except asyncio.CancelledError:
        if acquired.done() and not acquired.cancelled() and acquired.exception() is None:
            lock.release()
        raise
