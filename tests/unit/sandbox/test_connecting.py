"""Connecting to a sandbox's relay: a cancellation is obeyed, in whichever step it comes."""

import asyncio
import subprocess

import pytest

from microsandbox.agent.connection import Connection
from microsandbox.runtime.process import ProcessHandle
from microsandbox.sandbox.boot import _connect
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.stored_config import dump_config

#: More turns of the event loop than connecting takes.
MANY = 40


@pytest.fixture
async def connecting(tmp_path, monkeypatch, guest, config):
    """Starts to connect to a relay that answers, as an owner does whose supervisor has just been started."""
    monkeypatch.setenv("MSB_HOME", str(tmp_path / "home"))
    context = Context.current()
    row = context.sandboxes.create("box", dump_config(config), {}, None)
    await guest(lambda kind, payload: [])
    socket = context.home.agent_socket("box")
    socket.parent.mkdir(parents=True)
    socket.symlink_to(tmp_path / "agent0.sock")
    process = subprocess.Popen(["sleep", "60"])
    handle = ProcessHandle(process.pid, "box", watchdog=None)
    yield lambda: _connect(context, row, handle)
    handle.kill()
    await handle.wait()
    process.returncode = 0  # it was reaped by the handle


async def cancel_in_every_turn(connect):
    came_too_late = 0
    for turns in range(MANY):
        task = asyncio.ensure_future(connect())
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                (await task).close()
        else:
            came_too_late += 1
            task.result().close()
    assert 0 < came_too_late < MANY, "the cancellations covered the whole of it"


async def test_an_owner_that_is_cancelled_while_it_connects(connecting):
    await cancel_in_every_turn(connecting)


async def test_a_client_that_is_cancelled_while_it_connects(guest, tmp_path):
    await guest(lambda kind, payload: [])
    await cancel_in_every_turn(lambda: Connection.open(tmp_path / "agent0.sock"))
