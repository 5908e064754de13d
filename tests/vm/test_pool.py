"""A pool of real machines: each given to one caller, dead ones to nobody, and nothing left at the end."""

import asyncio
import os
import signal
import time

import pytest

from microsandbox import InvalidConfigError, Sandbox, SandboxPool
from microsandbox.errors import ImageError, PoolClosedError
from tests import audit

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]


def make(image, size=2, **options):
    return SandboxPool(size, image=image, memory=128, **options)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def filled(pool):
    await until(lambda: pool.ready == pool.size)


async def names():
    return {handle.name for handle in await Sandbox.list()}


async def test_each_caller_gets_a_sandbox_of_its_own_also_when_more_come_than_are_kept(busybox, session_home):
    descriptors = audit.open_descriptors()
    async with make(busybox) as pool:
        await filled(pool)
        started = time.monotonic()
        first = await pool.acquire()
        assert time.monotonic() - started < 0.5, "it was ready"
        rest = await asyncio.gather(*(pool.acquire() for _ in range(3)))
        sandboxes = [first, *rest]
        outputs = await asyncio.gather(*(sandbox.exec("hostname") for sandbox in sandboxes))
        assert [output.stdout_text.strip() for output in outputs] == [one.name for one in sandboxes]
        assert len({sandbox.name for sandbox in sandboxes}) == 4
        await filled(pool)
    assert await names() == {sandbox.name for sandbox in sandboxes}, "those are their callers'"
    for sandbox in sandboxes:
        async with sandbox:
            assert (await sandbox.exec("true")).success, "it outlives its pool"
    assert await names() == set()
    assert list(session_home.glob("sandboxes/*")) == []
    del sandbox, sandboxes, first, rest
    assert audit.open_descriptors() <= descriptors + 4


@pytest.mark.parametrize("victim", ["supervisor", "machine"])
async def test_a_member_that_was_killed_is_replaced_and_never_handed_out(busybox, session_home, victim):
    async with make(busybox, 1) as pool:
        await filled(pool)
        [dead] = await names()
        [supervisor] = audit.supervisors(session_home)
        [machine] = audit.machines() & set(audit.children_of(supervisor))
        os.kill(supervisor if victim == "supervisor" else machine, signal.SIGKILL)
        async with await pool.acquire() as sandbox:  # at once: nobody can have noticed yet
            assert sandbox.name != dead
            assert (await sandbox.exec("true")).success
        await filled(pool)
        assert dead not in await names()


async def test_a_killed_member_is_replaced_without_anybody_asking(busybox, session_home):
    async with make(busybox, 1) as pool:
        await filled(pool)
        [dead] = await names()
        [supervisor] = audit.supervisors(session_home)
        os.kill(supervisor, signal.SIGKILL)
        await until(lambda: pool.ready == 0)
        await filled(pool)
        assert dead not in await names()


async def test_a_cancelled_acquire_loses_nothing(busybox):
    async with make(busybox, 1) as pool:
        waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        async with await waiting[1] as sandbox:
            assert (await sandbox.exec("true")).success
        await filled(pool)
        [kept] = await names()
        task = asyncio.ensure_future(pool.acquire())
        await asyncio.sleep(0)  # it has asked the member's guest by now
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with await pool.acquire() as sandbox:
            assert sandbox.name == kept


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.8, 1.6])
async def test_closing_while_it_is_filled_leaves_nothing(busybox, session_home, delay):
    pool = make(busybox)
    await pool.start()
    waiting = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(delay)  # somewhere in the boots
    await pool.close()
    if isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], Sandbox):
        async with waiting.result():
            pass
    else:
        assert isinstance(waiting.exception(), PoolClosedError)
    assert audit.leftovers(session_home) == []
    assert await names() == set()
    assert list(session_home.glob("sandboxes/*")) == []


async def test_an_image_that_is_not_there_is_told_to_who_asks(busybox):
    async with make("never/pulled", pull_policy="never") as pool:
        for _ in range(2):
            with pytest.raises(ImageError, match="image not cached: never/pulled"):
                await pool.acquire()
        assert await names() == set()


async def test_a_boot_that_fails_is_told_to_who_asks_and_leaves_nothing(busybox, session_home):
    async with make(busybox, workdir="/nowhere") as pool:
        with pytest.raises(InvalidConfigError, match="workdir does not exist in guest: /nowhere"):
            await pool.acquire()
    assert await names() == set()
    assert list(session_home.glob("sandboxes/*")) == []
