"""SIGKILL for everybody in turn: whoever dies, nothing is left running, locked or lying within seconds."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from microsandbox import Sandbox, SandboxNotRunningError
from microsandbox.errors import AgentClientError, MicrosandboxError
from tests import audit

pytestmark = [pytest.mark.vm, pytest.mark.fault, pytest.mark.usefixtures("clean")]

OWNER = Path(__file__).with_name("owner.py")


def start_owner(name, image, step, *, until):
    owner = subprocess.Popen(
        [sys.executable, str(OWNER), name, image, step], stdout=subprocess.PIPE, text=True
    )
    while (line := owner.stdout.readline()) != f"{until}\n":
        assert line, f"the owner ended before it came to {until}"
    return owner


def end(owner, number=signal.SIGKILL):
    owner.send_signal(number)
    owner.wait(timeout=10)
    owner.stdout.close()


@pytest.mark.parametrize("delay", [0.0, 0.15, 0.4, 1.0, 1.8])
async def test_owner_killed_during_create(busybox, name, session_home, delay):
    owner = start_owner(name, busybox, "none", until="create")
    time.sleep(delay)
    end(owner)
    audit.wait_clean(session_home, within=5)
    rows = {one.name: one.status for one in await Sandbox.list()}
    assert rows.get(name, "gone") in ("gone", "stopped", "crashed")
    if name in rows:
        await Sandbox.remove(name)


@pytest.mark.parametrize(
    ("step", "delay"), [("create", 0.0), ("create", 0.4), ("create", 1.2), ("pool", 0.0)]
)
async def test_owner_of_a_pool_killed_while_it_is_filled_and_when_it_is_full(
    busybox, name, session_home, step, delay
):
    owner = start_owner(name, busybox, "pool", until=step)
    time.sleep(delay)
    end(owner)
    audit.wait_clean(session_home, within=5)
    left = [one for one in await Sandbox.list() if one.name.startswith(f"{name}-")]
    assert {one.status for one in left} <= {"stopped", "crashed"}, "a row is all that may be left"
    for one in left:
        await one.remove()


@pytest.mark.parametrize("step", ["exec", "stop"])
async def test_owner_killed_during(busybox, name, session_home, step):
    owner = start_owner(name, busybox, step, until=step)
    end(owner)
    audit.wait_clean(session_home, within=5)
    assert (await Sandbox.get(name)).status == "stopped"
    await Sandbox.remove(name)


async def test_owner_killed_after_detaching_changes_nothing(busybox, name):
    owner = start_owner(name, busybox, "detached", until="detached")
    end(owner)
    sandbox = await (await Sandbox.get(name)).connect()
    assert (await sandbox.exec("echo", ["alive"])).stdout_text == "alive\n"
    await sandbox.stop()
    await Sandbox.remove(name)


async def test_what_the_guest_wrote_before_its_owner_died_is_kept(busybox, name, session_home):
    owner = start_owner(name, busybox, "none", until="none")
    sandbox = await (await Sandbox.get(name)).connect()
    await sandbox.fs.write("/root/kept", b"kept")
    end(owner)
    audit.wait_clean(session_home, within=9)
    async with await Sandbox.start(name) as sandbox:
        assert await sandbox.fs.read("/root/kept") == b"kept"


async def test_supervisor_killed_takes_the_machine_along_and_its_row_is_found_stale(
    busybox, name, session_home
):
    sandbox = await Sandbox.create(name, image=busybox, detached=True)
    await sandbox.detach()
    [supervisor] = audit.supervisors(session_home)
    machine = audit.machine_of(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while machine in audit.machines():
        assert time.monotonic() < deadline, "QEMU outlived its supervisor"
    handle = await Sandbox.get(name)
    assert handle.status == "crashed"
    sandbox = await Sandbox.start(name)
    assert (await sandbox.exec("true")).success, "a crashed sandbox starts again"
    await sandbox.stop()
    await Sandbox.remove(name)


async def test_owner_killed_while_its_sandbox_is_paused(busybox, name, session_home):
    owner = start_owner(name, busybox, "pause", until="pause")
    end(owner)
    audit.wait_clean(session_home, within=9)
    assert (await Sandbox.get(name)).status == "stopped"
    async with await Sandbox.start(name) as sandbox:
        assert await sandbox.fs.read("/root/kept") == b"kept", "its guest was let go on, to flush its disks"


async def test_supervisor_killed_while_its_sandbox_is_paused(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox, detached=True)
    await sandbox.pause()
    await sandbox.detach()
    [supervisor] = audit.supervisors(session_home)
    machines = audit.children_of(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while audit.machines() & set(machines):
        assert time.monotonic() < deadline, "QEMU outlived its supervisor"
    handle = await Sandbox.get(name)
    assert handle.status == "crashed"
    with pytest.raises(SandboxNotRunningError, match="status is Crashed"):
        await handle.resume()
    async with await Sandbox.start(name) as sandbox:
        assert (await sandbox.exec("true")).success, "a crashed sandbox starts again"


async def test_the_machine_killed_ends_the_sandbox_as_crashed(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox)
    [supervisor] = audit.supervisors(session_home)
    os.kill(audit.machine_of(supervisor), signal.SIGKILL)
    await asyncio.wait_for(sandbox.wait_until_stopped(), 5)
    assert (await Sandbox.get(name)).status == "crashed"
    with pytest.raises(AgentClientError):
        await sandbox.exec("true")
    await Sandbox.remove(name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
async def test_a_supervisor_that_is_told_to_end_flushes_the_guest(busybox, name, session_home, number):
    sandbox = await Sandbox.create(name, image=busybox)
    await sandbox.fs.write("/root/kept", b"kept")
    [supervisor] = audit.supervisors(session_home)
    os.kill(supervisor, number)
    result = await asyncio.wait_for(sandbox.wait_until_stopped(), 15)
    assert (result.status, result.exit_code) == ("stopped", 0)
    async with await Sandbox.start(name) as sandbox:
        assert await sandbox.fs.read("/root/kept") == b"kept"


async def test_interrupts_of_the_terminal_do_not_reach_the_supervisor(busybox, name, session_home):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        [supervisor] = audit.supervisors(session_home)
        os.kill(supervisor, signal.SIGINT)
        os.kill(supervisor, signal.SIGHUP)
        assert (await sandbox.exec("true")).success


async def test_a_stopped_supervisor_delays_kill_by_nothing(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox)
    [supervisor] = audit.supervisors(session_home)
    os.kill(supervisor, signal.SIGSTOP)
    started = time.monotonic()
    await sandbox.stop(timeout=1)
    assert time.monotonic() - started < 5
    assert (await Sandbox.get(name)).status == "stopped"
    await Sandbox.remove(name)


async def test_ten_processes_create_at_once(busybox, session_home):
    owners = [start_owner(f"p{n}", busybox, "detached", until="create") for n in range(10)]
    try:
        for owner in owners:
            assert "detached\n" in owner.stdout, "the owner ended before its sandbox was up"
        for n in range(10):
            sandbox = await (await Sandbox.get(f"p{n}")).connect()
            assert (await sandbox.exec("hostname")).stdout_text == f"p{n}\n"
    finally:
        for owner in owners:
            end(owner)
        for handle in await Sandbox.list():
            await handle.kill()
            await handle.remove()


async def test_of_ten_processes_that_want_one_name_one_gets_it(busybox, session_home):
    script = (
        "import asyncio, sys\nfrom microsandbox import Sandbox, SandboxAlreadyExistsError\n"
        "async def main():\n"
        "    try:\n"
        f"        s = await Sandbox.create('contested', image={busybox!r}, detached=True)\n"
        "        await s.detach(); print('won')\n"
        "    except SandboxAlreadyExistsError: print('lost')\n"
        "asyncio.run(main())"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(10)
    ]
    words = [racer.communicate(timeout=120)[0].strip() for racer in racers]
    try:
        assert sorted(words) == ["lost"] * 9 + ["won"]
    finally:
        for handle in await Sandbox.list():
            await handle.kill()
            await handle.remove()


async def test_an_image_in_use_by_a_stopped_sandbox_is_not_removed(busybox, name):
    from microsandbox import Image, ImageInUseError

    sandbox = await Sandbox.create(name, image=busybox)
    await sandbox.stop()
    with pytest.raises(ImageInUseError, match=name):
        await Image.remove(busybox)
    await Sandbox.remove(name)


async def test_errors_of_a_lost_sandbox_are_ours(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox)
    handle = await sandbox.exec_stream("sleep", ["1000"])
    [supervisor] = audit.supervisors(session_home)
    os.kill(supervisor, signal.SIGKILL)
    with pytest.raises(MicrosandboxError):
        await asyncio.wait_for(handle.wait(), 5)
    with pytest.raises(MicrosandboxError):
        await asyncio.wait_for(sandbox.fs.read("/etc/passwd"), 5)
    await asyncio.wait_for(sandbox.wait_until_stopped(), 5)
    assert (await Sandbox.get(name)).status == "crashed"
    await Sandbox.remove(name)
