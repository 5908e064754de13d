"""What ties a sandbox to its owner: the watchdog pipe, its bytes and its end; and what locks its disk."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from microsandbox import Sandbox
from microsandbox.runtime import spawn as spawning
from microsandbox.store.home import Home
from tests import audit
from tests.vm.test_lifecycle import run_of

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]


async def ended(name):
    handle = await Sandbox.get(name)
    return await asyncio.wait_for(handle.wait_until_stopped(), 15)


async def test_other_bytes_than_the_detach_byte_are_ignored(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox)
    watchdog = sandbox._process._held.watchdog
    os.write(watchdog, b"\x02")
    assert (await sandbox.exec("true")).success
    os.write(watchdog, b"\x00\x02")
    assert (await sandbox.exec("true")).success
    process, sandbox._process = sandbox._process, None
    process.close()
    assert (await ended(name)).status == "stopped", "the end of the pipe still counts"
    assert run_of(session_home, name)[1] == "Signal"
    await Sandbox.remove(name)


async def test_a_detach_byte_counts_although_the_owner_is_gone_when_it_is_read(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox)
    [supervisor] = audit.supervisors(session_home)
    os.kill(supervisor, signal.SIGSTOP)
    await sandbox.detach()
    os.kill(supervisor, signal.SIGCONT)
    other = await (await Sandbox.get(name)).connect()
    assert (await other.exec("true")).success
    await asyncio.sleep(0.5)
    assert (await Sandbox.get(name)).status == "running"
    await other.stop()
    await Sandbox.remove(name)


class WrongPipes:
    """The os module as a spawn sees it, whose second pipe has two write ends; ``read_end`` its other."""

    made = 0

    def __getattr__(self, name):
        return getattr(os, name)

    def pipe(self):
        self.made += 1
        read, write = os.pipe()
        if self.made != 2:
            return read, write
        self.read_end = read
        return os.dup(write), write


async def test_a_pipe_that_cannot_be_read_ends_the_sandbox_at_once(busybox, name, monkeypatch, session_home):
    pipes = WrongPipes()
    monkeypatch.setattr(spawning, "os", pipes)
    sandbox = await Sandbox.create(name, image=busybox)
    os.close(pipes.read_end)  # an error at every end that is left
    assert (await ended(name)).status == "stopped"
    assert run_of(session_home, name)[1] == "Signal"
    del sandbox
    await Sandbox.remove(name)


FORKING_OWNER = """
import asyncio, os, sys
from microsandbox import Sandbox

async def main(name, image):
    sandbox = await Sandbox.create(name, image=image)
    if os.fork() == 0:
        del sandbox  # nothing of the sandbox belongs to a fork
        os.close(1)
        os.read(0, 1)
        os._exit(0)
    print("forked", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_fork_of_the_owner_does_not_keep_the_sandbox(busybox, name, session_home):
    read, write = os.pipe()
    owner = subprocess.Popen(
        [sys.executable, "-c", FORKING_OWNER, name, busybox], stdin=read, stdout=subprocess.PIPE
    )
    os.close(read)
    try:
        assert owner.stdout.readline() == b"forked\n"
        assert (await Sandbox.get(name)).status == "running", "the fork's copy of the object is no owner"
        owner.kill()
        owner.communicate()
        assert (await ended(name)).status == "stopped"
    finally:
        os.close(write)
    await Sandbox.remove(name)


BYSTANDING_OWNER = """
import asyncio, subprocess, sys
from microsandbox import Sandbox

async def main(name, image):
    sandbox = await Sandbox.create(name, image=image)
    subprocess.Popen(["cat"], stdout=subprocess.DEVNULL, close_fds=False)
    print("started", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_program_that_the_owner_has_started_does_not_keep_the_sandbox(busybox, name):
    read, write = os.pipe()
    owner = subprocess.Popen(
        [sys.executable, "-c", BYSTANDING_OWNER, name, busybox], stdin=read, stdout=subprocess.PIPE
    )
    os.close(read)
    try:
        assert owner.stdout.readline() == b"started\n"
        owner.kill()
        owner.communicate()
        assert (await ended(name)).status == "stopped", "the pipe's end is not inherited"
    finally:
        os.close(write)
    await Sandbox.remove(name)


def upper_is_free(name):
    with Home.open().sandbox(name).upper.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


async def test_the_disk_is_locked_as_long_as_the_machine_lives_and_by_nobody_else(busybox, name):
    sandbox = await Sandbox.create(name, image=busybox)
    bystander = subprocess.Popen(["sleep", "1000"], close_fds=False)
    try:
        assert not upper_is_free(name)
        await sandbox.detach()
        assert not upper_is_free(name), "the owner let go, the machine did not"
        sandbox = await (await Sandbox.get(name)).connect()
        await sandbox.stop()
        assert upper_is_free(name), "other children of the owner have no copy of the lock"
        again = await Sandbox.start(name)
        await again.stop()
        third = await Sandbox.start(name)
        assert not upper_is_free(name), "the object of a stopped sandbox keeps no lock"
        await third.stop()
    finally:
        bystander.kill()
        bystander.wait()
    await Sandbox.remove(name)
