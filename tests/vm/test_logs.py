"""The logs of real machines: while they run, after they were stopped, and after they crashed."""

import asyncio
import os
import signal
import time

import pytest

from microsandbox import Sandbox, Stdin
from tests import audit

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]
MIB = 1 << 20


async def test_what_commands_print_is_in_the_logs_before_and_after_the_end(busybox, name):
    sandbox = await Sandbox.create(name, image=busybox, detached=True)
    await sandbox.exec("sh", ["-c", "echo out; echo err >&2"])
    await sandbox.exec("sh", ["-c", "printf 'on a tty'"], tty=True)
    other = await (await Sandbox.get(name)).connect()
    await other.exec("printf", ["of another client"])
    await other.detach()
    found = {(entry.source, entry.session_id, entry.text()) for entry in await sandbox.logs()}
    assert found == {
        ("stdout", 1, "out\n"), ("stderr", 1, "err\n"), ("output", 2, "on a tty"),
        ("stdout", 3, "of another client"),
    }  # fmt: skip
    await sandbox.stop()
    handle = await Sandbox.get(name)
    assert {(entry.source, entry.session_id, entry.text()) for entry in await handle.logs()} == found
    marks = [entry.text() for entry in await handle.logs(sources=["system"])]
    assert [mark for mark in marks if mark.startswith("---")] == [
        "--- sandbox started ---\n", "--- sandbox stopped ---\n",
    ]  # fmt: skip
    assert any("ending: ShutdownRequested" in mark for mark in marks), "the runtime's log is there, too"
    await (await handle.start(detached=True)).stop()
    again = await handle.logs(sources=["all"])
    assert [entry.text() for entry in again].count("--- sandbox started ---\n") == 2
    await handle.remove()


async def test_a_follower_sees_lines_as_they_are_printed(busybox, name):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        command = await sandbox.exec_stream("cat", stdin=Stdin.pipe())
        stream = await sandbox.log_stream(follow=True)
        typed = command.take_stdin()
        for number in range(5):
            started = time.monotonic()
            await typed.write(b"%d\n" % number)
            async with asyncio.timeout(10):
                entry = await anext(stream)
            assert (entry.text(), entry.session_id) == (f"{number}\n", 1)
            assert time.monotonic() - started < 1, "by notification, not by looking every other second"
        await stream.aclose()


async def test_a_sandbox_whose_supervisor_is_killed_leaves_whole_lines(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox, detached=True)
    await sandbox.exec_stream("yes", ["x" * 1000])
    stream = await sandbox.log_stream(follow=True)
    for _ in range(20):
        await anext(stream)
    [supervisor] = audit.supervisors(session_home)
    os.kill(supervisor, signal.SIGKILL)
    handle = await Sandbox.get(name)
    await handle.wait_until_stopped()
    await stream.aclose()
    printed = b"".join(entry.data for entry in await handle.logs())
    assert set(printed.split(b"\n")[:-1]) == {b"x" * 1000}
    await sandbox.detach()
    await handle.remove()


async def test_a_flood_fills_five_files_and_no_more_and_a_reader_that_stalls_delays_nobody(
    busybox, name, session_home
):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        stalled = await sandbox.log_stream(follow=True)
        await sandbox.exec("sh", ["-c", "dd if=/dev/zero bs=1M count=64 2>/dev/null"])
        await stalled.aclose()
        files = [
            file.stat().st_size
            for file in (session_home / "sandboxes" / name / "logs").iterdir()
            if file.name.startswith("exec.log")
        ]
        assert len(files) == 5
        assert max(files) <= 10 * MIB
        assert (await sandbox.exec("echo", ["alive"])).stdout_text == "alive\n"
        assert (await sandbox.logs(tail=1))[0].text() == "alive\n"
