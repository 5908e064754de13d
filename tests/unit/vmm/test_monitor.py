"""The QMP client against a QEMU that says what a test has it say: the truth, nonsense, nothing more."""

import asyncio
import json
import logging
import socket

import pytest

from microsandbox.errors import VmmError
from microsandbox.vmm.monitor import Monitor

GREETING = {"QMP": {"version": {}, "capabilities": []}}


class Peer:
    """QEMU's end of the socket. Descriptors that come are in ``fds``."""

    def __init__(self, sock):
        self.sock, self.fds, self.heard = sock, [], ""
        sock.setblocking(False)

    def say(self, *messages):
        self.sock.sendall(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))

    async def hear(self):
        """The next command."""
        while True:
            try:
                command, end = json.JSONDecoder().raw_decode(self.heard)
            except ValueError:
                await self._listen()
            else:
                self.heard = self.heard[end:]
                return command

    async def _listen(self):
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.sock, ready.set)
        try:
            async with asyncio.timeout(5):
                await ready.wait()
        finally:
            loop.remove_reader(self.sock)
        data, fds, _, _ = socket.recv_fds(self.sock, 4096, 4)
        self.fds += fds
        self.heard += data.decode()


@pytest.fixture
async def peer():
    near, far = socket.socketpair()
    with far:
        found = Peer(far)
        found.monitor = await Monitor.open(near)
        yield found
    async with asyncio.timeout(5):
        await found.monitor.wait_closed()


async def negotiated(peer):
    peer.say(GREETING)
    asked = await peer.hear()
    assert asked["execute"] == "qmp_capabilities"
    peer.say({"return": {}, "id": asked["id"]})


async def test_a_command_waits_for_the_greeting_and_gets_its_own_answer(peer):
    first = asyncio.ensure_future(peer.monitor.execute("one", {"a": 1}))
    second = asyncio.ensure_future(peer.monitor.execute("two"))
    await negotiated(peer)
    asked = [await peer.hear(), await peer.hear()]
    by_name = {request["execute"]: request for request in asked}
    assert by_name["one"]["arguments"] == {"a": 1}
    peer.say({"return": 2, "id": by_name["two"]["id"]}, {"return": 1, "id": by_name["one"]["id"]})
    assert await asyncio.gather(first, second) == [1, 2]


async def test_a_refused_command_says_why(peer):
    pausing = asyncio.ensure_future(peer.monitor.pause())
    await negotiated(peer)
    asked = await peer.hear()
    peer.say({"error": {"class": "GenericError", "desc": "not now"}, "id": asked["id"]})
    with pytest.raises(VmmError, match="QEMU's stop failed: not now"):
        await pausing


async def test_a_descriptor_goes_along_with_its_command(peer, tmp_path):
    with (tmp_path / "file").open("wb") as file:
        adding = asyncio.ensure_future(peer.monitor.execute("add-fd", fd=file.fileno()))
        await negotiated(peer)
        asked = await peer.hear()
        [received] = peer.fds
        with open(received, "wb") as copy:
            copy.write(b"seen")
        peer.say({"return": {"fdset-id": 0}, "id": asked["id"]})
        assert await adding == {"fdset-id": 0}
    assert (tmp_path / "file").read_bytes() == b"seen"


async def test_whoever_waits_learns_that_qemu_has_ended(peer):
    waiting = asyncio.ensure_future(peer.monitor.resume())
    await negotiated(peer)
    await peer.hear()
    peer.sock.close()
    with pytest.raises(VmmError, match="QEMU's cont failed: it has ended"):
        await waiting
    with pytest.raises(VmmError, match="it has ended"):
        await peer.monitor.resume()


@pytest.mark.parametrize(
    "said",
    [b"{\n", b"[]\n", b'"QMP"\n', b'{"return": 1}\n', b'{"return": 1, "id": 77}\n', b"null\n", b"\xff\n",
     b'{"event": "SHUTDOWN", "data": 3}\n', b"[" * 50_000 + b"\n", b" " * 70_000],
    ids=["half", "list", "text", "no id", "unknown id", "null", "no UTF-8", "bad event", "deep", "endless"],
)  # fmt: skip
async def test_nonsense_ends_the_conversation(peer, said, caplog):
    await negotiated(peer)
    with caplog.at_level(logging.WARNING):
        await asyncio.get_running_loop().sock_sendall(peer.sock, said)
        async with asyncio.timeout(5):
            await peer.monitor.wait_closed()
    assert "makes no sense" in caplog.text


async def test_events_are_kept_and_told_once(peer, caplog):
    await negotiated(peer)
    failed = {
        "event": "BLOCK_IO_ERROR",
        "data": {"node-name": "file1", "operation": "write", "reason": "full"},
    }
    with caplog.at_level(logging.WARNING):
        peer.say(failed, failed, {"event": "RESUME"})
        peer.say({"event": "SHUTDOWN", "data": {"reason": "guest-shutdown" + "x" * 1000}})
        asking = asyncio.ensure_future(peer.monitor.resume())
        asked = await peer.hear()
        peer.say({"return": {}, "id": asked["id"]})
        await asking
    assert caplog.messages == ["disk file1: a write failed on the host: full"]
    assert peer.monitor.shutdown_cause.startswith("guest-shutdown")
    assert len(peer.monitor.shutdown_cause) == 500
