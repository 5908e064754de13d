"""A relay between real sockets: clients on one side, on the other what a test reads in the guest's place."""

import asyncio
import socket

import pytest

from microsandbox.agent.connection import Connection
from microsandbox.agent.protocol import FrameSplitter, MessageType, decode, encode
from microsandbox.runtime.exec_log import ExecLog
from microsandbox.runtime.guest_link import GuestLink
from microsandbox.runtime.relay import Relay


class Guest:
    """The far end of the agent's port."""

    def __init__(self, sock):
        self.sock = sock
        self.splitter = FrameSplitter()
        self.sock.setblocking(False)

    def heard(self):
        """What has come so far: kinds with their payloads."""
        found = []
        while True:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return found
            found += [decode(frame.body) for frame in self.splitter.feed(data)]

    def end(self, id):
        """Say that a command has exited."""
        self.sock.sendall(encode(id, MessageType.EXEC_EXITED, {"code": 0}).raw)


class World:
    def __init__(self, relay, link, guest, path):
        self.relay, self.link, self.guest, self.path = relay, link, guest, path
        self.connections = []

    async def client(self):
        self.connections.append(await Connection.open(self.path))
        return self.connections[-1]


@pytest.fixture
async def world(tmp_path):
    host, far = socket.socketpair()
    link = await GuestLink.open(host)
    relay = Relay(link, lambda: None, ExecLog.open(tmp_path / "logs"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "agent.sock"))
    listener.listen()
    await relay.serve(listener, encode(0, MessageType.READY, {}))
    found = World(relay, link, Guest(far), tmp_path / "agent.sock")
    yield found
    relay.close()
    for connection in found.connections:
        connection.close()
    relay._guest.close()
    far.close()


async def settle():
    """Let what is on its way in sockets arrive; nothing else happens meanwhile."""
    for _ in range(50):
        await asyncio.sleep(0.001)
