"""Attached commands on a real pseudo-terminal: size, keys, exit codes, and a terminal that is as it was."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from microsandbox import Sandbox
from tests import audit

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]

PROGRAM = """
import asyncio, sys
from microsandbox import Sandbox

async def main(name, *words):
    sandbox = await (await Sandbox.get(name)).connect()
    try:
        print("code", await {call}, flush=True)
        {after}
    except Exception as error:
        print(type(error).__name__, error)
    await sandbox.detach()

asyncio.run(main(*sys.argv[1:]))
"""
ATTACH = "sandbox.attach(words[0], list(words[1:]))"


def program(call=ATTACH, after="pass"):
    return [sys.executable, "-c", PROGRAM.replace("{call}", call).replace("{after}", after)]


class Terminal:
    """A program on a pseudo-terminal of its own."""

    def __init__(self, *argv):
        self.master, self.slave = pty.openpty()
        self.resize(30, 90)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *argv], stdin=self.slave, stdout=self.slave, stderr=self.slave
        )
        self.seen = b""

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys):
        os.write(self.master, keys)

    def wait_for(self, text, within=30):
        deadline = time.monotonic() + within
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.master, 4096)

    @property
    def is_raw(self):
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def end(self, within=30):
        code = self.process.wait(within)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal is not as it was"
        os.close(self.slave)
        os.close(self.master)
        return code


@pytest.fixture
async def sandbox(busybox, name):
    async with await Sandbox.create(name, image=busybox) as made:
        yield made


async def test_a_command_has_the_terminal_its_size_and_every_change_of_it(sandbox, name):
    terminal = Terminal(*program(), name, "sh")
    terminal.type(b"stty size; tty\n")
    terminal.wait_for(b"30 90")
    terminal.wait_for(b"/dev/pts/")
    assert terminal.is_raw
    terminal.resize(40, 120)
    terminal.type(b"until stty size | grep 40.120; do sleep 0.05; done\n")
    terminal.wait_for(b"40 120")
    terminal.type(b"\x03echo sti''ll\n")
    terminal.wait_for(b"still")
    terminal.type(b"exit 7\n")
    terminal.wait_for(b"code 7")
    assert terminal.end() == 0


@pytest.mark.parametrize(
    ("keys", "call"),
    [(b"\x1d", ATTACH), (b"\x10\x11", "sandbox.attach(words[0], detach_keys='ctrl-p,ctrl-q')")],
    ids=["usual", "two keys"],
)
async def test_the_user_may_leave_and_the_command_goes_on_with_the_connection(sandbox, name, keys, call):
    wait = "await sandbox.shell('until test -f /tmp/go; do sleep 0.1; done')"
    terminal = Terminal(*program(call, wait), name, "sh")
    terminal.type(b"echo rea''dy; while sleep 0.1; do echo x; touch /tmp/alive; done\n")
    terminal.wait_for(b"ready")
    terminal.type(keys)
    terminal.wait_for(b"code -1")
    await sandbox.shell("rm -f /tmp/alive; until test -f /tmp/alive; do sleep 0.1; done; touch /tmp/go")
    assert terminal.end() == 0


async def test_the_sandboxs_shell(sandbox, name):
    terminal = Terminal(*program("sandbox.attach_shell()"), name)
    terminal.type(b"exit 3\n")
    terminal.wait_for(b"code 3")
    assert terminal.end() == 0


async def test_a_command_that_cannot_be_started(sandbox, name):
    terminal = Terminal(*program(), name, "/no/such")
    terminal.wait_for(b"ExecFailedError")
    terminal.wait_for(b"No such file or directory")
    assert terminal.end() == 0


async def test_a_terminal_is_needed(sandbox, name):
    words = [*program(), name, "sh"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.stdout.startswith("MicrosandboxError terminal error: resolve tty path: "), done.stderr
    with pytest.raises(TypeError, match="args must be a list of strings"):
        await sandbox.attach("sh", {"args": []})


@pytest.mark.parametrize("victim", ["supervisor", "machine"])
async def test_the_terminal_is_restored_when_the_sandbox_is_killed(busybox, name, session_home, victim):
    sandbox = await Sandbox.create(name, image=busybox, detached=True)
    terminal = Terminal(*program(), name, "sh")
    terminal.type(b"echo rea''dy\n")
    terminal.wait_for(b"ready")
    [supervisor] = audit.supervisors(session_home)
    os.kill(supervisor if victim == "supervisor" else audit.machine_of(supervisor), signal.SIGKILL)
    terminal.wait_for(b"MicrosandboxError")
    assert terminal.end() == 0
    await sandbox.wait_until_stopped()
    await sandbox.detach()
    await Sandbox.remove(name)


async def test_msb_leaves_a_sandbox_as_it_is(busybox, name):
    msb = [sys.executable, "-m", "microsandbox.cli"]
    terminal = Terminal(*msb, "run", "-q", "-n", name, "-t", busybox, "--", "sh")
    terminal.type(b"echo rea''dy\n")
    terminal.wait_for(b"ready")
    terminal.type(b"\x1d")
    terminal.wait_for(f"detached; sandbox '{name}' is running".encode())
    assert terminal.end() == 0
    assert (await Sandbox.get(name)).status == "running"
    other = Terminal(*msb, "exec", "--detach-keys", "ctrl-p,x", "-t", name, "--", "sh")
    other.type(b"echo he''re\n")
    other.wait_for(b"here")
    other.type(b"\x10x")
    other.wait_for(b"detached")
    assert other.end() == 0
    handle = await Sandbox.get(name)
    await handle.stop()
    await handle.remove()
