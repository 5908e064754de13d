"""The owner's hold on a supervisor, with real child processes: every sentence about the handle."""

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from microsandbox.metrics.registry import Entry, Registry, Reservation
from microsandbox.runtime.process import ProcessHandle
from microsandbox.store.processes import ProcessIdentity

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


async def test_kill_does_not_wait_and_gives_nothing_back(watchdog):
    read, write = watchdog
    os.set_blocking(read, False)
    slot = Slot()
    handle = start(SLEEP, watchdog=write, reservation=slot)
    handle.kill()
    assert slot.released == 0
    with pytest.raises(BlockingIOError):
        os.read(read, 1)
    assert (await handle.wait()).signal == 9
    handle.close()
    assert os.read(read, 1) == b"", "the pipe was the handle's until now"


@pytest.fixture
def reservation(tmp_path):
    """Makes reservations in a registry; tells the states of its slots."""
    path = tmp_path / "registry"

    def make():
        return Reservation.make(path, 4, Entry(7, 1, ProcessIdentity.current(), "box", 512 << 20))

    def states():
        with Registry.open(path) as registry:
            return [record.state for record in registry.records()]

    return make, states


@pytest.mark.parametrize("end", ["wait", "close"])
async def test_the_slot_of_a_supervisor_that_died_before_it_had_it_is_free_again(reservation, end):
    make, states = reservation
    handle = start(SLEEP, reservation=make())
    reserved = states()
    handle.kill()
    if end == "wait":
        await handle.wait()
    else:
        handle.close()
    assert (reserved[0], states()[:1]) == (1, [])
    await handle.wait()


async def test_a_slot_that_the_supervisor_has_is_left_alone(reservation):
    make, states = reservation
    mine = make()
    handle = start(SLEEP, reservation=mine)
    with Registry.open(mine.path) as registry:
        entry = Entry(7, 1, ProcessIdentity.of(handle.pid), "box", 512 << 20, 1)
        registry.activate(mine.slot, entry)
    handle.kill()
    await handle.wait()
    handle.close()
    assert states() == [2]


async def test_a_detach_that_fails_is_a_word_in_the_log(caplog):
    caplog.set_level(logging.DEBUG, "microsandbox")
    read, write = os.pipe()
    os.close(read)
    handle = start("exit 0", watchdog=write)
    await handle.wait()
    handle.disarm()
    assert "failed to write parent-watch detach byte: [Errno 32] Broken pipe" in caplog.text


PROGRAM = """
import asyncio, os, signal
from microsandbox.runtime.process import ProcessHandle

def start(script, watchdog=None):
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", script], os.environ)
    return ProcessHandle(pid, "box", watchdog=watchdog)
"""


def run_program(script):
    """What a program of its own prints, which must end well."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM + script], stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    return ran.stdout


def test_a_program_that_dies_of_broken_pipes_does_not_die_of_this_one():
    assert (
        run_program("""
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
async def main():
    read, write = os.pipe()
    os.close(read)
    handle = start("exit 0", write)
    handle.disarm()
    await handle.wait()
asyncio.run(main())
assert signal.SIGPIPE not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
print("alive")
""")
        == "alive\n"
    )


def test_what_outlives_the_loop_that_started_it_leaves_no_zombie_and_no_descriptor():
    assert (
        run_program("""
async def let_go():
    handle = start("read x < /dev/null; exec sleep 1000")
    handle.disarm()
    return handle.pid
before = len(os.listdir("/proc/self/fd"))
pids = [asyncio.run(let_go()) for _ in range(5)]
for pid in pids:
    os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
async def another():
    await start("exit 0").wait()
asyncio.run(another())
assert len(os.listdir("/proc/self/fd")) == before
print([pid for pid in pids if os.path.exists(f"/proc/{pid}")])
""")
        == "[]\n"
    )


def test_a_program_that_ends_lets_a_detached_one_live_and_an_attached_one_notice():
    out = run_program("""
async def main():
    read, write = os.pipe()
    os.set_inheritable(read, True)
    attached = start(f"exec >&-; read x <&{read}; exit", write)
    detached = start("exec >&-; exec sleep 1000")
    print(attached.pid, detached.pid)
    global kept
    kept = attached, detached
asyncio.run(main())
""")
    attached, detached = map(int, out.split())
    try:
        for _ in range(500):
            if ProcessIdentity.of(attached) is None:
                break
            time.sleep(0.01)
        else:
            raise AssertionError("it did not see the end of the pipe")
        assert ProcessIdentity.of(detached) is not None, "no signal was sent"
    finally:
        os.kill(detached, signal.SIGKILL)
