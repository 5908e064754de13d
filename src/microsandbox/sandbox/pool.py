"""Started sandboxes kept ready, so that getting one costs a round trip to its guest instead of a boot.

Each member has one task that owns it: the task makes it, puts it on the shelf, watches it, and kills and
removes it unless it was handed out first. Ending a task is therefore all it takes to leave nothing, and the
number of tasks is the number of places taken. Handing out is one step without a wait in between, so that a
member belongs either to its task or to the caller, whatever is cancelled, killed or closed at that moment.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, Self, Unpack

from msgspec.structs import replace

from microsandbox.arguments import parameter, text, whole
from microsandbox.errors import (
    MicrosandboxError,
    PoolClosedError,
    PoolTimeoutError,
    SandboxAlreadyExistsError,
)
from microsandbox.sandbox import creation, lifecycle
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.options import CreateKeywords, CreateOptions, parse_create
from microsandbox.sandbox.sandbox import Sandbox, check_timeout
from microsandbox.sandbox.shelf import Shelf
from microsandbox.sandbox.validation import validate

log = logging.getLogger(__name__)

#: Seconds a member's guest may take to answer before it is handed out; one that does not is replaced.
ANSWER_TIMEOUT = 10.0
#: What is the pool's to decide: its members are named by it, new, and end with it.
_NOT_FOR_POOLS = ("name", "detached", "replace", "replace_with_timeout")


class _State(Enum):
    """Of a pool: each leads to the next only."""

    NEW = "new"
    OPEN = "open"
    CLOSED = "closed"


class _Fate(Enum):
    """Of a member: from WAITING to one of the others, once."""

    WAITING = "waiting"
    HANDED_OUT = "handed out"
    LOST = "lost"


class SandboxPool:
    """Keeps ``size`` started, idle sandboxes ready; ``acquire()`` hands one out and another is started.

    Keywords are those of ``Sandbox.create``, without ``detached`` and ``replace``. Members are named
    ``NAME_PREFIX-`` and eight hexadecimal digits; the prefix is ``pool`` by default.

        async with SandboxPool(4, image="python:3.12") as pool:
            async with await pool.acquire() as sandbox:
                await sandbox.exec("python3", ["-c", "print(6 * 7)"])

    Raises TypeError, ValueError, OverflowError, InvalidConfigError for arguments that no sandbox can have.
    """

    def __init__(
        self, size: int, *, name_prefix: str | None = None, **options: Unpack[CreateKeywords]
    ) -> None:
        self._size = parameter("size", whole, size)
        if self._size == 0:
            raise ValueError("size must be at least 1")
        self._prefix = "pool" if name_prefix is None else parameter("name_prefix", text, name_prefix)
        _refuse_what_is_the_pools(options)
        self._context = Context.current()
        example = self._new_name()
        self._options = parse_create(example, options, self._context.home)
        validate(self._options.config)
        self._context.home.agent_socket(example)
        self._state = _State.NEW
        self._shelf: Shelf[_Member] = Shelf()
        self._places: set[asyncio.Task[None]] = set()
        self._starting = 0
        self._most_starting = len(os.sched_getaffinity(0))  # more would only slow each other down
        self._stalled = False  # true after a failed start, until somebody asks for a sandbox again

    @property
    def size(self) -> int:
        """How many sandboxes are kept, those being started included."""
        return self._size

    @property
    def ready(self) -> int:
        """How many can be handed out now."""
        return len(self._shelf)

    async def start(self) -> None:
        """Begin to fill the pool in the background. Idempotent. Raises PoolClosedError."""
        if self._state is _State.CLOSED:
            raise PoolClosedError
        self._state = _State.OPEN
        self._fill()

    async def acquire(self, timeout: float | None = None) -> Sandbox:
        """A ready sandbox, from now on the caller's; waits until one is ready, at most ``timeout`` seconds.

        Raises PoolTimeoutError, PoolClosedError, RuntimeError before start(), and what Sandbox.create raises
        when starting one fails meanwhile; the next call tries again.
        """
        check_timeout(timeout)
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        while True:
            self._check_open()
            self._stalled = False
            self._fill()
            member = await self._next(timeout, deadline)
            try:
                if await member.answers():
                    return member.hand_out()
            except asyncio.CancelledError:
                self._shelf.put_back(member)
                raise
            member.lose()

    async def close(self) -> None:
        """End and remove every sandbox that was not handed out, and wait for that. Idempotent."""
        if self._state is not _State.CLOSED:
            self._state = _State.CLOSED
            self._shelf.fail(PoolClosedError())
            for place in self._places:
                place.cancel()
        if self._places:
            await asyncio.wait(self._places)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._state is _State.NEW:
            raise RuntimeError("the pool has not been started: use `async with` or `await pool.start()`")
        if self._state is _State.CLOSED:
            raise PoolClosedError

    async def _next(self, timeout: float | None, deadline: float | None) -> _Member:
        try:
            async with asyncio.timeout_at(deadline) as limit:
                return await self._shelf.take()
        except TimeoutError as error:
            if not limit.expired():
                raise  # a start's own
            assert timeout is not None
            raise PoolTimeoutError(timeout, self._starting) from error

    # filling

    def _fill(self) -> None:
        """Start what is missing, as far as there are places and processors."""
        while (
            self._state is _State.OPEN
            and not self._stalled
            and len(self._places) < self._size
            and self._starting < self._most_starting
        ):
            self._starting += 1
            place = asyncio.ensure_future(self._occupy())
            self._places.add(place)
            place.add_done_callback(self._vacate)

    def _vacate(self, place: asyncio.Task[None]) -> None:
        self._places.discard(place)
        if place.cancelled():  # by close(), or by the end of the event loop
            self._state = _State.CLOSED
        self._fill()

    async def _occupy(self) -> None:
        """The life of one place: a sandbox is made, and kept until it is handed out or lost."""
        try:
            sandbox = await self._make()
        except Exception as error:  # whatever it is, it is told to those who wait
            log.info("a sandbox for the pool cannot be started: %s", error)
            self._stalled = True
            self._shelf.fail(error)
            return
        finally:
            self._starting -= 1
        member = _Member(sandbox)
        try:
            await member.warm_up()
            self._shelf.put(member)
            self._fill()
            await member.settled()
        finally:
            self._shelf.withdraw(member)
            if member.lose():
                async with sandbox:  # which kills and removes it at the end of the block
                    pass

    async def _make(self) -> Sandbox:
        while True:
            options = self._named(self._new_name())
            try:
                return await creation.create(self._context, options)
            except SandboxAlreadyExistsError:  # it stays what it is
                continue
            except BaseException:
                with suppress(MicrosandboxError, OSError):
                    await lifecycle.remove(self._context, options.config.name)
                raise

    def _named(self, name: str) -> CreateOptions:
        return replace(self._options, config=replace(self._options.config, name=name))

    def _new_name(self) -> str:
        return f"{self._prefix}-{secrets.token_hex(4)}"


class _Member:
    """A started sandbox, from when it is ready until it is handed out or lost."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._name = str(sandbox.name)
        self._fate = _Fate.WAITING
        self._settled = asyncio.Event()

    @property
    def gone(self) -> bool:
        return self._fate is not _Fate.WAITING

    async def warm_up(self) -> None:
        """Run one command, whatever becomes of it.

        What starting a process needs is then in the guest's memory, and translated where it is emulated: the
        first command takes 60 to 120 ms under TCG, the second 8. An image need not have this one.
        """
        with suppress(MicrosandboxError):
            await self._sandbox.exec("/bin/true", timeout=ANSWER_TIMEOUT)

    async def settled(self) -> None:
        """Return when it has been handed out or lost, and notice when it ends by itself."""
        watch = asyncio.ensure_future(self._watch())
        try:
            await self._settled.wait()
        finally:
            watch.cancel()

    async def answers(self) -> bool:
        """Whether it can be handed out: its guest answers now.

        Its process and connection alone do not tell: both outlive a machine that was killed by some
        milliseconds, and a guest that hangs for good.
        """
        if self.gone:
            return False
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._sandbox.fs.exists("/")
        except (MicrosandboxError, TimeoutError) as error:
            log.info("sandbox %s of the pool is replaced: %s", self._name, str(error) or "no answer")
            return False
        return not self.gone

    def hand_out(self) -> Sandbox:
        """The sandbox, which is the caller's from now on."""
        assert not self.gone
        self._settle(_Fate.HANDED_OUT)
        return self._sandbox

    def lose(self) -> bool:
        """Give it up; False when it was handed out."""
        if not self.gone:
            self._settle(_Fate.LOST)
        return self._fate is _Fate.LOST

    async def _watch(self) -> None:
        try:
            with suppress(MicrosandboxError):  # somebody may have removed it as well
                await self._sandbox.wait_until_stopped()
        finally:
            self.lose()

    def _settle(self, fate: _Fate) -> None:
        self._fate = fate
        self._settled.set()


def _refuse_what_is_the_pools(options: Mapping[str, Any]) -> None:
    for keyword in _NOT_FOR_POOLS:
        value = options.get(keyword)
        if value is not None and value is not False:
            raise ValueError(
                f"{keyword}= cannot be set for a pool: its sandboxes are new, named by name_prefix=, "
                "and end with the pool; leave it out"
            )
