"""The owner's hold on a supervisor, with real child processes: every sentence about the handle."""

import asyncio
import gc
import os
import signal

import pytest

from microsandbox.runtime.process import ProcessHandle

SLEEP = "sleep 100"


class Slot:
    """A reservation that counts its releases."""

    released = 0

    def release(self):
        self.released += 1


def start(script, **held):
    """A handle of a shell that runs a script; ``watched``, a pipe's read end, becomes its descriptor 7."""
    watched = held.pop("watched", None)
    actions = [] if watched is None else [(os.POSIX_SPAWN_DUP2, watched, 7)]
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", script], os.environ, file_actions=actions)
    return ProcessHandle(pid, "box", **{"watchdog": None, **held})


@pytest.fixture
def watchdog():
    read, write = os.pipe()
    yield read, write
    os.close(read)


async def gone(pid):
    """Wait for a child nobody holds any more; the loop that started it reaps it."""
    for _ in range(500):
        if not os.path.exists(f"/proc/{pid}"):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the child did not end, or was not reaped")


async def test_pid_and_name_stay(watchdog):
    handle = start("exit 0")
    assert handle.sandbox_name == "box"
    pid = handle.pid
    await handle.wait()
    assert handle.pid == pid


@pytest.mark.parametrize(
    ("script", "code", "number"), [("exit 0", 0, None), ("exit 7", 7, None), ("kill -9 $$", None, 9)]
)
async def test_wait_tells_how_it_ended_and_can_be_repeated(script, code, number):
    handle = start(script)
    status = await handle.wait()
    assert (status.code, status.signal, status.success) == (code, number, code == 0)
    assert await handle.wait() == status
    assert handle.try_wait() == status


async def test_wait_can_be_cancelled_and_does_not_lose_the_status():
    handle = start("sleep 0.3; exit 3")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(handle.wait(), 0.05)
    assert (await handle.wait()).code == 3


async def test_many_waiters_are_all_told():
    handle = start("sleep 0.1; exit 4")
    statuses = await asyncio.gather(*(handle.wait() for _ in range(5)))
    assert {status.code for status in statuses} == {4}


async def test_try_wait_is_at_once_and_keeps_the_reservation():
    slot = Slot()
    handle = start(SLEEP, reservation=slot)
    assert handle.try_wait() is None
    handle.kill()
    while handle.try_wait() is None:
        await asyncio.sleep(0.01)
    assert slot.released == 0
    await handle.wait()
    await handle.wait()
    assert slot.released == 1, "wait releases it, once"


async def test_kill_drain_and_terminate_send_their_signals():
    for method, number in (("kill", 9), ("drain", 10), ("terminate", 15)):
        handle = start(SLEEP)
        getattr(handle, method)()
        assert (await handle.wait()).signal == number


@pytest.mark.parametrize("method", ["kill", "drain", "terminate"])
async def test_signals_after_the_end_are_refused_even_if_the_pid_is_used_again(method):
    handle = start("exit 0")
    await handle.wait()
    with pytest.raises(ProcessLookupError):
        getattr(handle, method)()


async def test_disarm_writes_the_detach_byte_once_and_dropping_does_nothing_then(watchdog, tmp_path):
    read, write = watchdog
    staging = tmp_path / "staging"
    staging.mkdir()
    slot = Slot()
    handle = start(SLEEP, watchdog=write, reservation=slot, staging=staging)
    pid = handle.pid
    handle.disarm()
    handle.disarm()
    assert os.read(read, 10) == b"\x01"
    assert os.read(read, 10) == b"", "the pipe is closed after the byte"
    del handle
    gc.collect()
    await asyncio.sleep(0.1)
    assert os.path.exists(f"/proc/{pid}"), "it lives on"
    assert staging.exists(), "what it uses stays"
    assert slot.released == 0, "the reservation is the supervisor's business now"
    os.kill(pid, signal.SIGKILL)
    await gone(pid)


async def test_disarm_after_the_end_is_no_error(watchdog):
    _, write = watchdog
    handle = start("exit 0", watchdog=write)
    await handle.wait()
    handle.disarm()


async def test_dropping_an_attached_one_closes_the_pipe_and_sends_no_signal(watchdog, tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    read, write = watchdog
    staging = tmp_path / "staging"
    staging.mkdir()
    slot = Slot()
    os.set_inheritable(write, False)
    handle = start(
        "read x <&7; echo end > $OUT", watched=read, watchdog=write, reservation=slot, staging=staging
    )
    pid = handle.pid
    del handle
    gc.collect()
    await gone(pid)
    assert (tmp_path / "out").read_text() == "end\n", "it saw the end of the pipe, not a signal"
    assert slot.released == 1
    assert not staging.exists()


async def test_dropping_a_detached_one_terminates_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    slot = Slot()
    handle = start(
        "trap 'echo terminated > $OUT; exit' TERM; : > $OUT; while :; do sleep 0.05; done", reservation=slot
    )
    while not (tmp_path / "out").exists():
        await asyncio.sleep(0.01)
    pid = handle.pid
    handle.close()
    await gone(pid)
    assert (tmp_path / "out").read_text() == "terminated\n"
    assert slot.released == 1


async def test_dropping_one_that_has_ended_is_nothing(tmp_path):
    handle = start("exit 0")
    await handle.wait()
    handle.close()
    handle.close()


async def test_no_descriptor_is_left():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        handle = start("exit 0")
        await handle.wait()
        handle.close()
    assert len(os.listdir("/proc/self/fd")) <= before
