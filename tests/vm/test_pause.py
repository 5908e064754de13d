"""Pausing on real machines: what stands still, what goes on afterwards, what a paused sandbox still does."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from microsandbox import (
    MicrosandboxError,
    Sandbox,
    SandboxNotRunningError,
    SandboxStatus,
    SandboxStillRunningError,
    Stdin,
)
from microsandbox.errors import SandboxPausedError
from tests import audit

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]

MSB = [sys.executable, "-m", "microsandbox.cli"]
#: Clock ticks that the processes of a paused sandbox may use while a test looks: none, but for bookkeeping.
TICKS = 2


def msb(*arguments):
    done = subprocess.run([*MSB, *arguments], capture_output=True, text=True, timeout=60, input="")
    return done.returncode, done.stdout, done.stderr


def cpu_ticks(pids):
    """User and system time that processes have used."""
    found = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        found += int(fields[11]) + int(fields[12])
    return found


def processes(home):
    [supervisor] = audit.supervisors(home)
    return [supervisor, *audit.children_of(supervisor)]


async def status_of(name):
    return (await Sandbox.get(name)).status


async def until(name, status, within=15):
    deadline = time.monotonic() + within
    while (found := await status_of(name)) != status:
        assert time.monotonic() < deadline, f"still {found}, not {status}, after {within} s"
        await asyncio.sleep(0.05)


async def assert_right_time(sandbox):
    before = int(time.time())
    found = int((await sandbox.exec("date", ["+%s"])).stdout_text)
    assert before <= found <= time.time() + 0.1, "the guest's clock is right at once"


async def test_a_paused_sandbox_stands_still_and_goes_on_where_it_was(busybox, name, session_home):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"
        counting = await sandbox.exec_stream("sh", ["-c", count])
        first = [await counting.recv() for _ in range(3)]
        assert [event.event_type for event in first] == ["started", "stdout", "stdout"]
        busy = await sandbox.exec_stream("sh", ["-c", "while :; do :; done"])
        await sandbox.pause()
        await sandbox.pause()
        assert await status_of(name) == SandboxStatus.PAUSED

        pids = processes(session_home)
        before = cpu_ticks(pids)
        await asyncio.sleep(1.5)
        assert cpu_ticks(pids) - before <= TICKS, "a paused sandbox uses the processor"

        with pytest.raises(SandboxPausedError, match="the sandbox is paused; resume it first") as caught:
            await sandbox.exec("true")
        assert caught.value.code == "sandbox-paused"
        for request in (sandbox.fs.read("/etc/passwd"), sandbox.fs.exists("/"), sandbox.shell("true")):
            with pytest.raises(SandboxPausedError):
                await request

        await sandbox.resume()
        await sandbox.resume()
        assert await status_of(name) == SandboxStatus.RUNNING
        await assert_right_time(sandbox)
        numbers = b""
        while numbers.count(b"\n") < 5:
            event = await asyncio.wait_for(counting.recv(), 5)
            numbers += event.data
        lines = [int(line) for line in numbers.split()]
        assert lines == list(range(lines[0], lines[0] + len(lines))), "a command goes on where it was"
        await busy.kill()
        await counting.kill()


async def test_input_given_meanwhile_waits_and_arrives_whole(busybox, name):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        command = await sandbox.exec_stream("sh", ["-c", "echo up; sha256sum"], stdin=Stdin.pipe())
        while (await command.recv()).event_type != "stdout":
            pass
        await sandbox.pause()
        sink = command.take_stdin()
        data = os.urandom(8 << 20)

        async def feed():
            await sink.write(data)
            await sink.close()

        feeding = asyncio.ensure_future(feed())
        await asyncio.sleep(0.3)
        assert not feeding.done(), "nobody keeps 8 MiB for a command that stands still"
        other = await (await Sandbox.get(name)).connect()
        with pytest.raises(SandboxPausedError):
            await other.exec("true")
        await other.detach()
        await sandbox.resume()
        await asyncio.wait_for(feeding, 30)
        output = await command.collect()
        assert output.stdout_text.split()[0] == hashlib.sha256(data).hexdigest()


async def test_the_command_line_pauses_and_resumes(busybox, name):
    async with await Sandbox.create(name, image=busybox, labels={"to": "pause"}) as sandbox:
        assert msb("pause", name) == (0, "", f"   ✓ Paused       {name}\n")
        assert json.loads(msb("ls", "--format", "json")[1])[0]["status"] == "Paused"
        assert "paused" in msb("ps")[1]
        assert msb("ls", "-q", "--running")[1] == ""
        refused = msb("exec", name, "--", "true")
        assert refused == (1, "", f"error: sandbox '{name}' is in state Paused and cannot be started\n")
        code, _, error = msb("start", "-q", name)
        assert (code, error) == (
            1,
            f"error: cannot start sandbox '{name}': status is Paused (expected Stopped or Crashed)\n",
        )
        assert msb("resume", "-q", "--label", "to=pause") == (0, "", "")
        assert (await sandbox.exec("echo", ["on"])).stdout_text == "on\n"
        code, _, error = msb("pause", "-q", "nobody", name)
        assert (code, error) == (1, "error: sandbox not found: nobody\n")
        assert await status_of(name) == "paused", "each is tried"


async def test_a_paused_sandbox_can_be_ended_in_every_way(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox)
    await sandbox.fs.write("/root/kept", b"kept")
    await sandbox.pause()
    with pytest.raises(SandboxStillRunningError, match="still running"):
        await Sandbox.remove(name)
    started = time.monotonic()
    await sandbox.stop()
    assert time.monotonic() - started < 5
    assert await status_of(name) == "stopped"
    for request in ("pause", "resume"):
        with pytest.raises(SandboxNotRunningError) as caught:
            await getattr(await Sandbox.get(name), request)()
        expected = f"cannot {request} sandbox '{name}': status is Stopped (expected Running or Paused)"
        assert str(caught.value) == expected

    sandbox = await Sandbox.start(name, detached=True)
    assert await sandbox.fs.read("/root/kept") == b"kept", "stop flushed the guest"
    running = await sandbox.exec_stream("sh", ["-c", "echo up; sleep 1; echo done"])
    while (await running.recv()).event_type != "stdout":
        pass
    await sandbox.pause()
    await sandbox.request_drain()
    await until(name, "draining")
    with pytest.raises(SandboxNotRunningError, match="status is Draining"):
        await sandbox.pause()
    assert (await running.collect()).stdout_text == "done\n", "draining lets commands finish"
    await asyncio.wait_for(sandbox.wait_until_stopped(), 15)

    sandbox = await Sandbox.start(name)
    await sandbox.pause()
    await sandbox.kill()
    assert await status_of(name) == "stopped"

    sandbox = await Sandbox.start(name, detached=True)
    await sandbox.pause()
    await sandbox.detach()
    async with await Sandbox.create(name, image=busybox, replace=True) as sandbox:
        assert not await sandbox.fs.exists("/root/kept"), "a paused one can be replaced"


async def test_an_idle_sandbox_pauses_by_itself_and_goes_on_for_whoever_needs_it(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox, pause_after=1, idle_timeout=5)
    assert (await Sandbox.get(name)).config()["policy"]["pause_after_secs"] == 1
    assert (await sandbox.exec("sleep", ["1.7"])).success, "a running command is not idle"
    assert await status_of(name) == "running"
    await until(name, "paused")
    await asyncio.sleep(1.2)
    pids = processes(session_home)
    started = time.monotonic()
    await assert_right_time(sandbox)
    assert time.monotonic() - started < 2
    assert await status_of(name) == "running"

    await until(name, "paused")
    assert msb("exec", "-q", name, "--", "echo", "awake") == (0, "awake\n", "")
    await until(name, "paused")
    await sandbox.pause()
    with pytest.raises(SandboxPausedError):
        await sandbox.exec("true")
    before = cpu_ticks(pids)
    await asyncio.sleep(5.5)
    assert cpu_ticks(pids) - before <= TICKS
    assert await status_of(name) == "paused", "idle time does not count while somebody keeps it paused"
    await sandbox.resume()
    assert (await sandbox.exec("true")).success
    await until(name, "paused")
    result = await asyncio.wait_for(sandbox.wait_until_stopped(), 20)
    assert result.status == "stopped", "one that paused by itself still comes to its idle timeout"
    with pytest.raises(MicrosandboxError):
        await sandbox.resume()
    await Sandbox.remove(name)


async def test_the_maximum_duration_counts_while_paused(busybox, name):
    sandbox = await Sandbox.create(name, image=busybox, max_duration=5)
    await sandbox.pause()
    await asyncio.wait_for(sandbox.wait_until_stopped(), 20)
    assert await status_of(name) == "stopped"
    await Sandbox.remove(name)
