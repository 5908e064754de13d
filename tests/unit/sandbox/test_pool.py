"""A pool's accounts: what it starts, to whom it gives it, and what it does not keep.

Members are real sandbox objects with a row, a process and a connection; only their machine is missing.
"""

import asyncio
import os
import signal
import subprocess
import tempfile

import pytest

from microsandbox import InvalidConfigError, MicrosandboxError, SandboxPool
from microsandbox.agent.protocol import MessageType
from microsandbox.errors import PoolClosedError, PoolTimeoutError
from microsandbox.runtime.process import ProcessHandle
from microsandbox.sandbox import creation
from microsandbox.sandbox import pool as pool_module
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.sandbox import Sandbox
from microsandbox.sandbox.stored_config import dump_config
from microsandbox.store.processes import ProcessIdentity

#: More turns of the event loop than handing out a member takes.
MANY = 40


class Boots:
    """What takes the place of booting: counts, waits while it is told to, and fails when it is told to."""

    def __init__(self, connect):
        self._connect = connect
        self._processes = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.error = None
        self.guests_answer = True
        self.begun = self.under_way = self.most_under_way = 0

    async def create(self, context, options):
        self.begun += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.may_go_on.wait()
            if self.error is not None:
                raise self.error
            return await self._sandbox(context, options.config)
        finally:
            self.under_way -= 1

    async def _sandbox(self, context, config):
        connection, _ = await self._connect(self._answer)
        row = context.sandboxes.create(config.name, dump_config(config), {}, None)
        process = subprocess.Popen(["sleep", "60"])
        self._processes.append(process)
        _take_over(context, row, process)
        return Sandbox(context, row, config, connection, ProcessHandle(process.pid, row.name, watchdog=None))

    def _answer(self, kind, payload):
        if kind is MessageType.EXEC_REQUEST:
            return [(MessageType.EXEC_FAILED, {"kind": "not_found", "message": "an image may be without it"})]
        return [(MessageType.FS_RESPONSE, {"ok": True})] if self.guests_answer else []

    def end(self):
        for process in self._processes:
            process.kill()
            process.wait()


def _take_over(context, row, process):
    """What a supervisor does itself: from now on the row tells of this process."""
    identity = ProcessIdentity.of(process.pid)
    with context.database.write() as connection:
        connection.execute(
            "UPDATE run SET pid = ?, pid_started = ?, supervised = 1 WHERE id = ?",
            (identity.pid, identity.started, row.run_id),
        )


@pytest.fixture
def context(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="msb-") as home:  # a short path: those of sockets are limited
        monkeypatch.setenv("MSB_HOME", home)
        yield Context.current()


@pytest.fixture
async def boots(context, guest, monkeypatch):
    boots = Boots(guest)
    monkeypatch.setattr(creation, "create", boots.create)
    yield boots
    boots.end()


def make(size=2, **options):
    return SandboxPool(size, image="alpine", **options)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def acquired(pool, number):
    return await asyncio.wait_for(asyncio.gather(*(pool.acquire() for _ in range(number))), 10)


def names(context):
    return {row.name for row in context.sandboxes.list()}


# what it can be


@pytest.mark.parametrize("option", [{"name": "x"}, {"detached": True}, {"replace": True}])
def test_what_makes_no_sense_in_a_pool_is_refused(context, option):
    [keyword] = option
    with pytest.raises(ValueError, match=f"^{keyword}= cannot be set for a pool"):
        make(**option)


def test_a_home_that_is_too_deep_for_sockets_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MSB_HOME", str(tmp_path / ("deep" * 25)))
    with pytest.raises(InvalidConfigError, match="socket path is too long"):
        make()


def test_replacing_at_once_is_refused_too(context):
    with pytest.raises(ValueError, match="^replace_with_timeout= cannot be set for a pool"):
        make(replace_with_timeout=0)


def test_what_asks_for_nothing_is_fine(context):
    make(detached=False, replace=None, replace_with_timeout=None, name_prefix=None)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"size": 0}, ValueError, "size must be at least 1"),
        ({"size": "2"}, TypeError, "argument 'size'"),
        ({"name_prefix": "a/b"}, InvalidConfigError, "without '/' or NUL"),
        ({"name_prefix": 7}, TypeError, "argument 'name_prefix'"),
        ({"memory": 0}, InvalidConfigError, "memory must be greater than 0"),
        ({"memori": 5}, TypeError, r"unexpected keyword argument 'memori' \(did you mean \"memory\"\?\)"),
    ],
)
def test_mistakes_are_told_at_once(context, arguments, error, text):
    with pytest.raises(error, match=text):
        make(**arguments)


async def test_it_is_used_between_start_and_close(boots):
    pool = make()
    with pytest.raises(RuntimeError, match="has not been started"):
        await pool.acquire()
    await pool.start()
    await pool.start()
    with pytest.raises(ValueError, match="timeout must be non-negative"):
        await pool.acquire(timeout=-1)
    await pool.close()
    await pool.close()
    with pytest.raises(PoolClosedError, match="the pool is closed"):
        await pool.acquire()
    with pytest.raises(PoolClosedError):
        await pool.start()


# filling


async def test_it_is_filled_up_to_its_size_and_no_more_at_once_than_there_are_processors(
    boots, context, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    async with make(5, name_prefix="web") as pool:
        await until(lambda: pool.ready == 5)
        assert (pool.size, boots.begun, boots.most_under_way) == (5, 5, 3)
        assert len(names(context)) == 5
        assert all(name.startswith("web-") and len(name) == 12 for name in names(context))
    assert names(context) == set()


async def test_a_place_is_filled_again_when_its_member_was_handed_out(boots, context):
    async with make(2) as pool:
        sandboxes = await acquired(pool, 6)
        assert len({sandbox.name for sandbox in sandboxes}) == 6
        await until(lambda: pool.ready == 2)
        assert boots.begun == 8
    assert names(context) == {sandbox.name for sandbox in sandboxes}, "those are the caller's"


async def test_a_name_that_is_taken_is_another_name(boots, context, monkeypatch):
    drawn = iter(["checked", "taken", "taken", "free", "more"])
    monkeypatch.setattr(pool_module.secrets, "token_hex", lambda size: next(drawn))
    context.sandboxes.create("pool-taken", "{}", {}, None)
    async with make(1) as pool:
        assert (await pool.acquire()).name == "pool-free"
        await until(lambda: pool.ready == 1)
    assert names(context) == {"pool-taken", "pool-free"}


async def test_a_failed_start_is_told_to_those_who_wait_and_tried_again_for_the_next(boots):
    boots.error = MicrosandboxError("no memory left")
    boots.may_go_on.clear()
    async with make(1) as pool:
        waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(3)]
        await until(lambda: boots.under_way == 1)
        boots.may_go_on.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert found == [boots.error] * 3
        await asyncio.sleep(0.05)
        assert boots.begun == 1, "nobody asks: nothing is tried"
        with pytest.raises(MicrosandboxError, match="no memory left"):
            await pool.acquire()
        assert boots.begun == 2
        boots.error = None
        await pool.acquire()
        await until(lambda: pool.ready == 1)


async def test_a_failure_before_anybody_waits_does_not_fail_the_next(boots):
    boots.error = OSError("disk full")
    async with make(1) as pool:
        await until(lambda: boots.begun == 1 and boots.under_way == 0)
        boots.error = None
        await pool.acquire()


# waiting


async def test_the_time_to_wait_is_kept(boots):
    boots.may_go_on.clear()
    async with make(1) as pool:
        with pytest.raises(PoolTimeoutError, match=r"no sandbox of the pool was ready within 0\.05 s"):
            await pool.acquire(timeout=0.05)
        with pytest.raises(PoolTimeoutError):
            await pool.acquire(timeout=0)
        boots.may_go_on.set()
        await until(lambda: pool.ready == 1)
        await pool.acquire(timeout=0)


async def test_a_start_that_times_out_is_not_taken_for_an_impatient_caller(boots):
    boots.error = TimeoutError("the registry does not answer")
    async with make(1) as pool:
        with pytest.raises(TimeoutError, match="the registry does not answer"):
            await pool.acquire(timeout=5)


async def test_a_cancelled_acquire_loses_no_member_whenever_that_comes(boots):
    came_too_late = 0
    async with make(1) as pool:
        for turns in range(MANY):
            await until(lambda: pool.ready == 1)
            begun = boots.begun
            task = asyncio.ensure_future(pool.acquire())
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert (pool.ready, boots.begun) == (1, begun)
            else:
                came_too_late += 1
                async with task.result():
                    pass
    assert 0 < came_too_late < MANY, "the cancellations covered the whole of it"


async def test_closing_ends_the_waiting_and_the_starting(boots, context):
    boots.may_go_on.clear()
    pool = make(2)
    await pool.start()
    waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(3)]
    await until(lambda: boots.under_way > 0)
    await pool.close()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in found] == [PoolClosedError] * 3
    assert boots.under_way == 0
    assert names(context) == set()


async def test_closing_while_one_is_being_handed_out_leaves_it_to_one_of_the_two(boots, context):
    handed_out = 0
    for turns in range(MANY):
        pool = make(1)
        await pool.start()
        await until(lambda pool=pool: pool.ready == 1)
        task = asyncio.ensure_future(pool.acquire())
        for _ in range(turns):
            await asyncio.sleep(0)
        await pool.close()
        [found] = await asyncio.gather(task, return_exceptions=True)
        if isinstance(found, PoolClosedError):
            assert names(context) == set()
        else:
            handed_out += 1
            assert names(context) == {found.name}
            async with found:
                pass
    assert 0 < handed_out < MANY, "it was closed at every moment of it"


def test_the_end_of_the_event_loop_is_the_end_of_the_pool(context, monkeypatch):
    async def forever(context, options):
        await asyncio.Event().wait()

    monkeypatch.setattr(creation, "create", forever)

    async def forgetful():
        await make(2).start()
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(forgetful(), 5))
    assert names(context) == set()


# members that die


async def test_a_member_whose_process_ends_is_replaced_without_anybody_asking(boots, context):
    async with make(1) as pool:
        await until(lambda: pool.ready == 1)
        [row] = context.sandboxes.list()
        boots._processes[0].send_signal(signal.SIGKILL)
        await until(lambda: boots.begun == 2 and pool.ready == 1)
        assert row.name not in names(context), "what is left of it is removed"
        assert (await pool.acquire()).name != row.name


async def test_a_member_that_dies_unnoticed_is_not_handed_out(boots, context):
    async with make(1) as pool:
        await until(lambda: pool.ready == 1)
        [dead] = context.sandboxes.list()
        process = boots._processes[0].pid
        os.kill(process, signal.SIGKILL)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)  # it is dead, and the event loop had no turn
        assert (await pool.acquire()).name != dead.name


async def test_a_member_whose_guest_does_not_answer_is_replaced(boots, context, monkeypatch):
    monkeypatch.setattr(pool_module, "ANSWER_TIMEOUT", 0.05)
    async with make(1) as pool:
        await until(lambda: pool.ready == 1)
        [hung] = context.sandboxes.list()
        boots.guests_answer = False
        task = asyncio.ensure_future(pool.acquire())
        await until(lambda: boots.begun == 2)
        boots.guests_answer = True
        assert (await task).name != hung.name


async def test_a_replacement_that_fails_while_a_dead_member_is_asked_is_tried_again(boots, monkeypatch):
    """The pool has stalled behind the caller's back, who would otherwise wait for ever."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    async with make(2) as pool:
        await until(lambda: pool.ready == 2)
        first = await pool.acquire()
        boots.error = MicrosandboxError("once")
        await until(lambda: boots.begun == 3 and boots.under_way == 0)
        boots.error = None
        boots._processes[1].send_signal(signal.SIGKILL)
        assert (await asyncio.wait_for(pool.acquire(), 10)).name != first.name
