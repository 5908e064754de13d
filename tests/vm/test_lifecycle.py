"""A sandbox's life, on real machines: create, stop, start, kill, replace, detach, connect, remove."""

import asyncio
import gc
import json
import os
import sqlite3
import time

import pytest

from microsandbox import (
    InvalidConfigError,
    MicrosandboxError,
    Sandbox,
    SandboxAlreadyExistsError,
    SandboxNotFoundError,
    SandboxStatus,
    SandboxStillRunningError,
)
from microsandbox.errors import AgentClientError
from tests import audit

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]


def run_of(home, name):
    with sqlite3.connect(home / "db" / "msb.db") as connection:
        return connection.execute(
            "SELECT r.status, r.termination_reason, r.exit_code, r.exit_signal FROM run r "
            "JOIN sandbox s ON s.id = r.sandbox_id WHERE s.name = ? ORDER BY r.id DESC", (name,)
        ).fetchone()  # fmt: skip


async def test_create_run_stop_start_and_remove(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox, labels={"team": "a"})
    assert await sandbox.name == name
    assert await sandbox.owns_lifecycle
    [handle] = [one for one in await Sandbox.list() if one.name == name]
    assert handle.status == SandboxStatus.RUNNING
    assert [one.name for one in await Sandbox.list_with(labels={"team": "a"})] == [name]
    await sandbox.shell("echo kept > /root/file; echo gone > /tmp/file")
    with pytest.raises(SandboxStillRunningError, match=f"cannot remove sandbox '{name}': still running"):
        await Sandbox.remove(name)
    with pytest.raises(SandboxStillRunningError, match=f"cannot start sandbox '{name}': already running"):
        await Sandbox.start(name)
    started = time.monotonic()
    await sandbox.stop()
    assert time.monotonic() - started < 5
    assert (await Sandbox.get(name)).status == "stopped"
    assert run_of(session_home, name)[:2] == ("Terminated", "ShutdownRequested")

    again = await Sandbox.start(name)
    output = await again.shell("cat /root/file; ls /tmp")
    assert output.stdout_text == "kept\n", "the writable layer is kept, /tmp is a tmpfs"
    await again.stop()
    await Sandbox.remove(name)
    with pytest.raises(SandboxNotFoundError, match=f"sandbox not found: {name}"):
        await Sandbox.get(name)
    assert not (session_home / "sandboxes" / name).exists()


async def test_a_name_is_taken_until_it_is_removed(busybox, name):
    async with await Sandbox.create(name, image=busybox):
        with pytest.raises(SandboxAlreadyExistsError, match="or recreate with"):
            await Sandbox.create(name, image=busybox)


async def test_the_block_kills_and_removes_whatever_happens_in_it(busybox, name):
    with pytest.raises(ZeroDivisionError):
        async with await Sandbox.create(name, image=busybox) as sandbox:
            raise ZeroDivisionError
    with pytest.raises(SandboxNotFoundError):
        await Sandbox.get(name)
    with pytest.raises(RuntimeError, match="sandbox has been consumed"):
        await sandbox.exec("true")


async def test_kill_is_at_once_and_settles_the_row(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox)
    await sandbox.kill()
    assert (await Sandbox.get(name)).status == "stopped"
    assert run_of(session_home, name)[:2] == ("Terminated", "Signal")
    with pytest.raises(MicrosandboxError, match="ESRCH"):
        await sandbox.kill()
    with pytest.raises(AgentClientError):
        await sandbox.exec("true")
    await Sandbox.remove(name)


async def test_kill_pre_empts_a_waiter(busybox, name):
    sandbox = await Sandbox.create(name, image=busybox)
    waiting = asyncio.ensure_future(sandbox.wait_until_stopped())
    await sandbox.kill()
    result = await asyncio.wait_for(waiting, 5)
    assert (result.name, result.signal, result.exit_code) == (name, 9, None)
    assert result.source == "owned process handle"
    await Sandbox.remove(name)


async def test_wait_until_stopped_sees_the_guest_power_off(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox)
    handle = await Sandbox.get(name)
    by_name = asyncio.ensure_future(handle.wait_until_stopped())
    await sandbox.exec_stream("poweroff", ["-f"])
    result = await asyncio.wait_for(sandbox.wait_until_stopped(), 20)
    assert (result.status, result.exit_code) == ("stopped", 0)
    assert (await asyncio.wait_for(by_name, 5)).source == "refreshed runtime state"
    assert run_of(session_home, name)[:2] == ("Terminated", "Completed")
    await Sandbox.remove(name)


async def test_replace_ends_the_old_one(busybox, name):
    old = await Sandbox.create(name, image=busybox)
    await old.fs.write("/root/old", b"")
    async with await Sandbox.create(name, image=busybox, replace_with_timeout=1) as new:
        assert not await new.fs.exists("/root/old")
        with pytest.raises(MicrosandboxError):
            await old.exec("true")


async def test_a_detached_sandbox_lives_on_and_is_found_by_name(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox, detached=True)
    await sandbox.fs.write("/root/before", b"1")
    await sandbox.detach()
    await sandbox.detach()
    with pytest.raises(RuntimeError, match="consumed"):
        await sandbox.exec("true")
    handle = await Sandbox.get(name)
    other = await handle.connect()
    assert not await other.owns_lifecycle
    assert await other.fs.read("/root/before") == b"1"
    await other.stop()
    assert (await handle.refresh()).status == "stopped"
    with pytest.raises(MicrosandboxError, match=r"is not running \(status: Stopped\)"):
        await (await handle.refresh()).connect()
    await handle.remove()


async def test_an_attached_sandbox_can_be_let_go(busybox, name):
    sandbox = await Sandbox.create(name, image=busybox)
    await sandbox.detach()
    del sandbox
    gc.collect()
    await asyncio.sleep(0.5)  # nothing to wait for: it must not end
    handle = await Sandbox.get(name)
    assert handle.status == "running"
    await handle.kill()
    assert (await handle.refresh()).status == "stopped"
    await handle.remove()


@pytest.mark.parametrize("detached", [False, True])
async def test_dropping_the_object_ends_the_sandbox(busybox, name, session_home, detached):
    sandbox = await Sandbox.create(name, image=busybox, detached=detached)
    handle = await Sandbox.get(name)
    waiting = asyncio.ensure_future(handle.wait_until_stopped())
    await asyncio.sleep(0)
    del sandbox
    gc.collect()
    assert (await asyncio.wait_for(waiting, 15)).status == "stopped"
    assert run_of(session_home, name)[1] == "Signal"
    await handle.remove()


async def test_draining_lets_commands_finish_and_starts_no_new_ones(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox)
    running = await sandbox.exec_stream("sh", ["-c", "echo up; sleep 2; echo done"])
    async for event in running:
        if event.event_type == "stdout":
            break
    await sandbox.request_drain()
    handle = await Sandbox.get(name)
    while handle.status == "running":
        handle = await handle.refresh()
    assert handle.status == "draining"
    with pytest.raises(MicrosandboxError, match="draining"):
        await sandbox.exec("true")
    assert (await running.collect()).stdout_text == "done\n"
    await asyncio.wait_for(sandbox.wait_until_stopped(), 15)
    assert run_of(session_home, name)[1] == "DrainRequested"
    await handle.remove()


async def test_idle_timeout_and_maximum_duration(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox, idle_timeout=2)
    assert (await sandbox.exec("sleep", ["3"])).success, "a running command keeps it alive"
    result = await asyncio.wait_for(sandbox.wait_until_stopped(), 20)
    assert result.status == "stopped"
    assert run_of(session_home, name)[1] == "IdleTimeout"
    await Sandbox.remove(name)
    sandbox = await Sandbox.create(name, image=busybox, max_duration=5)
    await asyncio.wait_for(sandbox.wait_until_stopped(), 20)
    assert run_of(session_home, name)[1] == "MaxDurationExceeded"
    await Sandbox.remove(name)


async def test_the_maximum_duration_counts_the_boot(busybox, name, cold):
    began = time.monotonic()
    sandbox = await Sandbox.create(name, image=busybox, max_duration=5)
    boot = time.monotonic() - began
    await asyncio.wait_for(sandbox.wait_until_stopped(), 20)
    assert time.monotonic() - began < 5 + 0.75 * boot + 0.2
    await Sandbox.remove(name)


async def test_the_images_configuration_is_applied_and_callers_win(session_home, name, tmp_path):
    from microsandbox import Image
    from tests.images import busybox_archive

    config = {
        "Env": ["PATH=/bin", "A=image", "B=image"], "User": "demo", "WorkingDir": "/home/demo",
        "Labels": {"from": "image", "sandbox.reserved": "x"},
    }  # fmt: skip
    archive = busybox_archive(tmp_path / "i.tar", config=config, reference="test/configured")
    await Image.load(archive)
    async with await Sandbox.create(name, image="test/configured", env={"B": "mine"}) as sandbox:
        output = await sandbox.shell("echo $A $B $(id -un) $(pwd)")
        assert output.stdout_text == "image mine demo /home/demo\n"
        stored = (await Sandbox.get(name)).config()
    assert stored["env"] == [["PATH", "/bin"], ["A", "image"], ["B", "mine"]]
    assert stored["labels"] == {"from": "image"}
    assert (stored["user"], stored["workdir"]) == ("demo", "/home/demo")
    await Image.remove("test/configured")


async def test_a_workdir_must_exist_in_the_guest(busybox, name):
    with pytest.raises(InvalidConfigError, match="workdir does not exist in guest: /nowhere"):
        await Sandbox.create(name, image=busybox, workdir="/nowhere")
    with pytest.raises(InvalidConfigError, match="workdir is not a directory in guest: /etc/passwd"):
        await Sandbox.create(name, image=busybox, workdir="/etc/passwd", replace=True)
    assert (await Sandbox.get(name)).status == "stopped"
    await Sandbox.remove(name)


async def test_guest_identity(busybox, name):
    async with await Sandbox.create(name, image=busybox, hostname="box", cpus=2, memory=300) as sandbox:
        assert (await sandbox.exec("hostname")).stdout_text == "box\n"
        hosts = await sandbox.fs.read_text("/etc/hosts")
        assert hosts.startswith("127.0.0.1\tlocalhost\tbox\n")
        assert (await sandbox.exec("nproc")).stdout_text == "2\n"
        total = int((await sandbox.shell("grep MemTotal /proc/meminfo")).stdout_text.split()[1])
        assert 200_000 < total < 300 * 1024
        clock = int((await sandbox.exec("date", ["+%s"])).stdout_text)
        assert abs(clock - time.time()) < 2
        links = (await sandbox.shell("ls /sys/class/net")).stdout_text.split()
        assert links == ["lo"], "no network card unless asked for"
        assert (await sandbox.shell("ping -c 1 -W 2 127.0.0.1 && mount")).success


async def test_two_guests_share_no_randomness(busybox, session_home):
    async def secrets(name):
        async with await Sandbox.create(name, image=busybox) as sandbox:
            random = "/proc/sys/kernel/random"
            script = f"cat {random}/uuid {random}/boot_id /etc/machine-id; head -c 16 /dev/urandom | od -t x1"
            return (await sandbox.shell(script)).stdout_text.splitlines()

    one, two = await secrets("random1"), await secrets("random2")
    assert not set(one) & set(two) - {"0000020"}


async def test_the_stored_configuration_names_the_image_by_digest(busybox, name):
    async with await Sandbox.create(name, image=busybox, memory=256):
        stored = json.loads((await Sandbox.get(name)).config_json)
        assert stored["manifest_digest"].startswith("sha256:")
        assert stored["image"]["Oci"]["reference"] == busybox
        assert stored["memory_mib"] == 256


async def test_progress_events_come_before_the_sandbox(busybox, name):
    session = Sandbox.create_with_progress(name, image=busybox)
    events = [event.event_type async for event in session.progress]
    sandbox = await session.result()
    assert events == ["resolving", "resolved", "complete"]
    with pytest.raises(RuntimeError, match="already consumed"):
        await session.result()
    await sandbox.kill()
    await Sandbox.remove(name)


@pytest.mark.parametrize(("templates", "seconds"), [("off", 0.7), ("auto", 0.06)])
async def test_cancelling_a_create_takes_everything_back(
    busybox, name, session_home, monkeypatch, templates, seconds
):
    monkeypatch.setenv("MSB_TEMPLATES", templates)
    creating = asyncio.ensure_future(Sandbox.create(name, image=busybox))
    await asyncio.sleep(seconds)  # somewhere in the boot, or the resumption
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    audit.wait_clean(session_home, within=10)
    assert (await Sandbox.get(name)).status == "stopped"
    await Sandbox.remove(name)


async def test_ten_at_once_from_one_process(busybox, session_home):
    names = [f"many{n}" for n in range(10)]
    descriptors = audit.open_descriptors()
    sandboxes = await asyncio.gather(*(Sandbox.create(one, image=busybox, memory=128) for one in names))
    outputs = await asyncio.gather(*(sandbox.exec("hostname") for sandbox in sandboxes))
    assert [output.stdout_text.strip() for output in outputs] == names
    await asyncio.gather(*(sandbox.stop() for sandbox in sandboxes))
    await asyncio.gather(*(Sandbox.remove(one) for one in names))
    del sandboxes
    gc.collect()
    assert audit.open_descriptors() <= descriptors + 8, os.listdir("/proc/self/fd")
