"""Who decides whether a machine runs: requests, demand, the end; with a real catalogue, relay and QMP client.

What takes the place of QEMU speaks its protocol and does as it is told.
"""

import asyncio
import json
import socket
import time
from types import SimpleNamespace

import pytest

from microsandbox.agent.protocol import MessageType
from microsandbox.runtime.pausing import Pausing
from microsandbox.store.database import Database
from microsandbox.store.sandboxes import Reason, SandboxCatalog, Status
from microsandbox.vmm.monitor import Monitor
from tests.unit.runtime.conftest import settle

M = MessageType


class Qemu:
    """Answers QMP commands, and remembers them. ``refuses`` names those that fail."""

    def __init__(self):
        self.commands, self.refuses = [], set()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def serve(self, sock):
        reader, self.writer = await asyncio.open_connection(sock=sock)
        self.say({"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""},
                          "capabilities": []}})  # fmt: skip
        while data := await reader.read(1 << 16):
            command = json.loads(data)  # one at a time: the client waits for each answer
            name = command["execute"]
            if name != "qmp_capabilities":
                self.commands.append(name)
                await self.may_answer.wait()
            failed = {"error": {"class": "GenericError", "desc": "no"}}
            answer = failed if name in self.refuses else {"return": {}}
            self.say(answer | {"id": command["id"]} if "id" in command else answer)
        self.writer.close()

    def say(self, message):
        self.writer.write(json.dumps(message).encode() + b"\r\n")


@pytest.fixture
async def qemu():
    return Qemu()


@pytest.fixture
def catalog(tmp_path):
    return SandboxCatalog(Database(tmp_path / "msb.db"))


@pytest.fixture
def row(catalog):
    return catalog.create("box", "{}", {}, None)


@pytest.fixture
async def pausing(world, qemu, catalog, row):
    near, far = socket.socketpair()
    serving = asyncio.ensure_future(qemu.serve(far))
    monitor = await Monitor.open(near)
    plan = SimpleNamespace(name="box", sandbox_id=row.id)
    found = Pausing(plan, monitor, catalog, world.relay._guest, world.relay)
    yield found
    qemu.may_answer.set()
    found.close()
    near.close()
    await serving


async def ask(world, kind):
    """The answer to a client's request about the machine."""
    client = await world.client()
    session = await client.open_session(kind, {})
    return await asyncio.wait_for(session.next_message(), 5)


def status(catalog):
    return catalog.get("box").status


async def test_pausing_and_resuming_are_asked_for_over_the_relay_and_idempotent(
    world, pausing, qemu, catalog
):
    for _ in range(2):
        assert (await ask(world, M.MACHINE_PAUSE)).payload == {"paused": True}
        assert status(catalog) is Status.PAUSED
    world.guest.heard()
    for _ in range(2):
        assert (await ask(world, M.MACHINE_RESUME)).payload == {"paused": False}
        assert status(catalog) is Status.RUNNING
    assert qemu.commands == ["stop", "cont"]
    [sync] = world.guest.heard()
    assert sync.kind is M.CLOCK_SYNC
    assert abs(sync.payload["unix_time_nanos"] - time.time_ns()) < 1e9


async def test_a_machine_that_qemu_does_not_stop_goes_on(world, pausing, qemu, catalog):
    qemu.refuses.add("stop")
    answer = await ask(world, M.MACHINE_PAUSE)
    assert answer.kind is M.ERROR
    assert "QEMU's stop failed" in answer.payload["message"]
    assert status(catalog) is Status.RUNNING
    client = await world.client()
    await client.open_session(M.FS_REQUEST, {"op": {}})
    await settle()
    assert [message.kind for message in world.guest.heard()] == [M.FS_REQUEST]


async def test_a_sandbox_that_was_given_up_meanwhile_is_not_left_paused(world, pausing, qemu, catalog, row):
    catalog.end_run(row.id, row.run_id, Status.STOPPED, Reason.SIGNAL)
    answer = await ask(world, M.MACHINE_PAUSE)
    expected = {"kind": "sandbox_not_running", "message": "cannot pause sandbox 'box': it has ended"}
    assert answer.payload == expected
    assert qemu.commands == ["stop", "cont"]
    assert status(catalog) is Status.STOPPED


async def test_what_drains_or_ends_goes_on_and_is_not_paused_again(world, pausing, qemu, catalog):
    await pausing.pause()
    await pausing.leave("it is draining")
    assert qemu.commands == ["stop", "cont"]
    for verb, kind in (("pause", M.MACHINE_PAUSE), ("resume", M.MACHINE_RESUME)):
        answer = await ask(world, kind)
        assert answer.payload["message"] == f"cannot {verb} sandbox 'box': it is draining"


async def test_an_idle_machine_is_paused_and_goes_on_for_a_request_which_then_passes(
    world, pausing, qemu, catalog
):
    policy = asyncio.ensure_future(pausing.pause_when_idle(0.2))
    client = await world.client()
    command = await client.open_session(M.EXEC_REQUEST, {"cmd": "sleep"})
    await asyncio.sleep(0.5)
    assert qemu.commands == [], "a command runs"
    world.guest.end(command.id)
    while status(catalog) is Status.RUNNING:
        await asyncio.sleep(0.01)
    world.guest.heard()
    await client.open_session(M.FS_REQUEST, {"op": {}})
    await settle()
    assert [message.kind for message in world.guest.heard()] == [M.CLOCK_SYNC, M.FS_REQUEST]
    assert (qemu.commands, status(catalog)) == (["stop", "cont"], Status.RUNNING)
    policy.cancel()


@pytest.mark.parametrize("first", ["request", "pause"])
async def test_a_pause_does_not_swallow_a_request_that_waits_for_the_machine(
    world, pausing, qemu, catalog, first
):
    policy = asyncio.ensure_future(pausing.pause_when_idle(0.05))
    qemu.may_answer.clear()
    while qemu.commands != ["stop"]:
        await asyncio.sleep(0.01)
    client = await world.client()
    if first == "request":
        await client.open_session(M.FS_REQUEST, {"op": {}})
        await settle()
    asking = asyncio.ensure_future(ask(world, M.MACHINE_PAUSE))
    await settle()
    if first == "pause":  # not yet done: QEMU has not answered
        await client.open_session(M.FS_REQUEST, {"op": {}})
        await settle()
    assert world.guest.heard() == []
    qemu.may_answer.set()
    assert (await asking).payload == {"paused": True}
    assert [message.kind for message in world.guest.heard()] == [M.CLOCK_SYNC, M.FS_REQUEST]
    assert qemu.commands == ["stop", "cont", "stop"]
    await settle()
    assert status(catalog) is Status.PAUSED, "and it stays as was asked"
    policy.cancel()


async def test_who_pauses_an_idle_machine_keeps_it_paused(world, pausing, qemu, catalog):
    policy = asyncio.ensure_future(pausing.pause_when_idle(0.05))
    while status(catalog) is Status.RUNNING:
        await asyncio.sleep(0.01)
    assert (await ask(world, M.MACHINE_PAUSE)).payload == {"paused": True}
    client = await world.client()
    await client.open_session(M.FS_REQUEST, {"op": {}})
    await settle()
    assert (qemu.commands, status(catalog)) == (["stop"], Status.PAUSED)
    policy.cancel()
