"""The supervisor that waits for a program's next sandbox: used, missed without harm, gone with it."""

import asyncio
import os
import select
import signal
import subprocess
import sys

import pytest

from microsandbox import Sandbox
from microsandbox.runtime import standby
from tests import audit

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]

OWNER = """
import os, signal, sys
from microsandbox.runtime import standby

standby.sandbox_made()
standby.sandbox_made()
[waiting] = standby._waiting
child = os.fork() if "fork" in sys.argv else None
if child != 0:
    print(waiting.pid, child or 0, flush=True)
signal.pause()
"""


@pytest.fixture
def waiting():
    """Pids of what waits for this process; before and after, nothing does."""
    standby.dismiss()
    yield lambda: [one.pid for one in standby._waiting]
    standby.dismiss()


async def waiting_soon(waiting):
    async with asyncio.timeout(30):
        while not (found := waiting()):
            await asyncio.sleep(0.01)
    return found


async def test_the_next_sandbox_gets_the_one_that_waits(busybox, name, waiting, session_home):
    names = [f"{name}-{number}" for number in range(3)]
    sandboxes = [await Sandbox.create(one, image=busybox) for one in names[:2]]
    [spare] = await waiting_soon(waiting)
    before = set(audit.supervisors(session_home))
    sandboxes.append(await Sandbox.create(names[2], image=busybox))
    assert set(audit.supervisors(session_home)) - before == {spare}
    assert (await sandboxes[2].exec("hostname")).stdout_text == f"{names[2]}\n"
    for sandbox in sandboxes:
        await sandbox.kill()
        await Sandbox.remove(sandbox.name)
    assert not os.path.exists(f"/proc/{spare}")


async def test_one_that_was_killed_is_not_missed(busybox, name, waiting):
    standby.sandbox_made()
    standby.sandbox_made()
    [spare] = waiting()
    os.kill(spare, signal.SIGKILL)
    os.waitid(os.P_PID, spare, os.WEXITED | os.WNOWAIT)
    async with await Sandbox.create(name, image=busybox) as sandbox:
        assert (await sandbox.exec("true")).success
    assert not os.path.exists(f"/proc/{spare}"), "it was waited for"


@pytest.mark.parametrize("forked", [False, True], ids=["", "that has forked"])
def test_it_ends_with_a_killed_program(forked):
    words = [sys.executable, "-c", OWNER, *(["fork"] if forked else [])]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as owner:
        spare, child = map(int, owner.stdout.readline().split())
        pidfd = os.pidfd_open(spare)
        owner.kill()
    try:
        assert select.select([pidfd], [], [], 10)[0], "it outlived its program"
    finally:
        os.close(pidfd)
        if child:
            os.kill(child, signal.SIGKILL)
