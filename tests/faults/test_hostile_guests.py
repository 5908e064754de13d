"""Guests that mean harm: the host survives, says so, and its other sandboxes notice nothing."""

import asyncio
import os
import signal
import socket
import time

import pytest

from microsandbox import AgentClient, Sandbox
from microsandbox.agent.protocol import MessageType, encode
from microsandbox.errors import MicrosandboxError
from tests import audit

pytestmark = [pytest.mark.vm, pytest.mark.fault, pytest.mark.usefixtures("clean")]


async def test_a_fork_bomb_ends_with_its_sandbox(busybox, name):
    async with await Sandbox.create(name, image=busybox, memory=256) as sandbox:
        bomb = await sandbox.exec_stream("sh", ["-c", "b() { b | b & }; b; sleep 1000"])
        await asyncio.sleep(3)  # let it grow
        assert await asyncio.wait_for(sandbox.fs.exists("/etc/passwd"), 60), "the agent itself answers"
        del bomb
        started = time.monotonic()
        await sandbox.stop()
        assert time.monotonic() - started < 16


async def test_a_guest_that_fills_its_disk_keeps_answering(busybox, name):
    from microsandbox import Image

    async with await Sandbox.create(name, image=Image.oci(busybox, upper_size_mib=64)) as sandbox:
        output = await sandbox.shell("dd if=/dev/zero of=/root/fill bs=1M; echo code $?")
        assert "No space left on device" in output.stderr_text
        with pytest.raises(MicrosandboxError, match="No space left"):
            await sandbox.fs.write("/root/more", bytes(1 << 20))
        await sandbox.fs.remove("/root/fill")
        await sandbox.fs.write("/root/more", bytes(1 << 20))


async def test_a_guest_that_kills_all_it_can_keeps_its_agent(busybox, name):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        await sandbox.exec_stream("sleep", ["1000"])
        await sandbox.shell("kill -9 -1")
        await sandbox.shell("kill -9 1; kill -11 1; kill -15 1")
        assert (await sandbox.exec("echo", ["alive"])).stdout_text == "alive\n"


async def test_the_agents_port_cannot_be_opened_by_others(busybox, name):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        output = await sandbox.shell("for p in /dev/vport*; do head -c 1 $p; echo garbage > $p; done")
        assert "busy" in output.stderr_text
        assert (await sandbox.exec("echo", ["alive"])).stdout_text == "alive\n"


async def test_an_agent_replaced_by_garbage_ends_the_sandbox_with_a_reason(busybox, name, session_home):
    """The worst case: the guest's kernel is the enemy's. Its memory is ours to write, so we play it."""
    sandbox = await Sandbox.create(name, image=busybox)
    # A root in the guest can unbind the driver, which closes the agent's port under it.
    script = "cd /sys/bus/virtio/drivers/virtio_console && ls -d virtio* | head -n 1 > unbind"
    await sandbox.exec_stream("sh", ["-c", script])
    result = await asyncio.wait_for(sandbox.wait_until_stopped(), 20)
    assert result.status in ("stopped", "crashed")
    await Sandbox.remove(name)


async def test_a_memory_hog_is_killed_in_the_guest_not_on_the_host(busybox, name):
    async with await Sandbox.create(name, image=busybox, memory=200) as sandbox:
        output = await sandbox.shell("tail -c 1000m /dev/zero >/dev/null; echo code $?")
        assert "code 0" not in output.stdout_text, "it was refused memory, or killed"
        assert (await sandbox.exec("echo", ["alive"])).stdout_text == "alive\n"


async def test_a_client_that_breaks_the_protocol_is_alone_in_the_damage(busybox, name, session_home):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        path = next(session_home.glob("run/agent/*.sock"))
        for garbage in (b"\xff" * 64, b"\0\0\0\x05" + bytes(5), os.urandom(4096)):
            reader, writer = await asyncio.open_unix_connection(path)
            await reader.readexactly(8)
            writer.write(garbage)
            while await asyncio.wait_for(reader.read(65536), 10):
                pass
            writer.close()
        client = await AgentClient.connect_sandbox(name)
        await client.send(7, 0, b"")  # an id of somebody else, perhaps
        assert (await sandbox.exec("echo", ["alive"])).stdout_text == "alive\n"
        await client.close()


async def test_128_clients_are_served_and_the_next_is_closed_silently(busybox, name, session_home):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        path = next(session_home.glob("run/agent/*.sock"))
        connections = [await asyncio.open_unix_connection(path) for _ in range(127)]
        for reader, _ in connections:
            assert len(await asyncio.wait_for(reader.readexactly(8), 10)) == 8
        reader, writer = await asyncio.open_unix_connection(path)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        for _, other in connections:
            other.close()
        assert (await sandbox.exec("true")).success


async def test_clients_of_a_supervisor_that_stands_still_queue_up(busybox, name, session_home):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        [supervisor] = audit.supervisors(session_home)
        path = next(session_home.glob("run/agent/*.sock"))
        os.kill(supervisor, signal.SIGSTOP)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(300)]
        try:
            for client in clients:
                client.setblocking(False)
                client.connect(str(path))
        finally:
            os.kill(supervisor, signal.SIGCONT)
            for client in clients:
                client.close()
        assert (await sandbox.exec("true")).success


async def test_a_client_that_does_not_read_harms_nobody(busybox, name, session_home):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        [supervisor] = audit.supervisors(session_home)
        path = next(session_home.glob("run/agent/*.sock"))
        reader, writer = await asyncio.open_unix_connection(path, limit=1024)
        start = int.from_bytes((await reader.readexactly(8))[:4], "big")
        request = {"cmd": "cat", "args": ["/dev/zero"], "env": [], "tty": False, "rlimits": []}
        writer.write(encode(start, MessageType.EXEC_REQUEST, request).raw)
        await writer.drain()
        await asyncio.sleep(2)  # the flood has long filled every buffer
        assert resident_mib(supervisor) < 80
        assert (await asyncio.wait_for(sandbox.exec("echo", ["alive"]), 10)).stdout_text == "alive\n"
        writer.transport.abort()
        await asyncio.sleep(0.2)
        output = await sandbox.shell("ps | grep '[c]at /dev/zero' || echo none")
        assert output.stdout_text == "none\n", "its commands end with it"


def resident_mib(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
