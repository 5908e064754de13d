"""An agent that hangs is found out, one that is slow is not; the clock follows; timers count right."""

import asyncio
import os
import signal
import time

import pytest

from microsandbox import Sandbox
from microsandbox.errors import AgentUnresponsiveError, BootError
from tests import audit
from tests.vm.test_lifecycle import run_of

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]

# PID 1 takes no SIGSTOP from its own guest; the freezer asks nobody.
FREEZE = "cd /sys/fs/cgroup && mkdir ice && echo 1 > ice/cgroup.procs && echo 1 > ice/cgroup.freeze"


async def test_an_agent_that_hangs_is_an_error_for_all_who_wait(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox)
    waiting = asyncio.ensure_future(sandbox.exec("sleep", ["1000"]))
    started = time.monotonic()
    with pytest.raises(AgentUnresponsiveError, match="the guest's agent does not answer"):
        await sandbox.shell(FREEZE)
    assert 9 < time.monotonic() - started < 16
    with pytest.raises(AgentUnresponsiveError):
        await waiting
    assert (await asyncio.wait_for(sandbox.wait_until_stopped(), 5)).status == "stopped"
    assert run_of(session_home, name)[1] == "AgentUnresponsive"
    await Sandbox.remove(name)


async def test_a_silent_command_keeps_its_agent_in_good_health(busybox, name):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        assert (await sandbox.exec("sleep", ["12"])).success


async def test_a_guest_that_is_busy_on_all_processors_is_not_dead(busybox, name):
    async with await Sandbox.create(name, image=busybox, cpus=2) as sandbox:
        spin = "for i in 1 2 3 4 5 6; do (while :; do :; done) & done; sleep 13; kill $(jobs -p)"
        assert (await sandbox.shell(spin)).success


async def test_a_paused_sandbox_and_one_whose_processes_are_stopped_are_not_dead(busybox, name, session_home):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        running = asyncio.ensure_future(sandbox.exec("sleep", ["20"]))
        await asyncio.sleep(0.5)
        await sandbox.pause()
        await asyncio.sleep(12)
        await sandbox.resume()
        assert (await sandbox.exec("true")).success
        [supervisor] = audit.supervisors(session_home)
        for pid in (supervisor, audit.machine_of(supervisor)):
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(12)
            os.kill(pid, signal.SIGCONT)
            assert (await sandbox.exec("true")).success
        assert (await running).success


def set_to_itself():
    """Set the host's clock to what it shows: a change to the kernel, and to nobody else."""
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, time.clock_gettime_ns(time.CLOCK_REALTIME))
    except PermissionError:
        pytest.skip("the host's clock may not be set here")


async def guest_is_off_by(sandbox):
    return abs(float((await sandbox.exec("date", ["+%s"])).stdout_text) - time.time())


async def test_the_guests_clock_follows_when_the_hosts_is_set(busybox, name):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        await sandbox.exec("date", ["-s", "@1000000000"])
        assert await guest_is_off_by(sandbox) > 1e6
        set_to_itself()
        deadline = time.monotonic() + 3
        while await guest_is_off_by(sandbox) > 2:
            assert time.monotonic() < deadline, "the guest is told at once, not with the next minute"


async def test_the_maximum_duration_counts_from_before_the_boot(busybox, name, session_home, cold):
    started = time.monotonic()
    with pytest.raises(BootError, match="it was ended before its guest was ready: MaxDurationExceeded"):
        await Sandbox.create(name, image=busybox, max_duration=1)
    assert time.monotonic() - started < 5
    assert run_of(session_home, name)[1] == "MaxDurationExceeded"
    await Sandbox.remove(name)


async def test_files_that_are_used_keep_a_sandbox_from_being_idle(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox, idle_timeout=2)
    for _ in range(4):
        await asyncio.sleep(1)
        await sandbox.fs.exists("/tmp")
    assert (await Sandbox.get(name)).status == "running"
    began = time.monotonic()
    await asyncio.wait_for(sandbox.wait_until_stopped(), 12)
    assert 1 < time.monotonic() - began < 6
    assert run_of(session_home, name)[1] == "IdleTimeout"
    await Sandbox.remove(name)
