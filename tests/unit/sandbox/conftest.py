import asyncio
import struct

import pytest

from microsandbox.agent.connection import Connection
from microsandbox.agent.protocol import FrameSplitter, MessageType, decode, encode
from microsandbox.sandbox.options import SandboxConfig, parse_create
from microsandbox.sandbox.rootfs import OciImage
from microsandbox.store.config import Config, SandboxDefaults
from microsandbox.store.home import Home


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path, Config(log_level="info", sandbox_defaults=SandboxDefaults(2, 256, 64)))


@pytest.fixture
def parse(home):
    """create's keywords for an ordinary image, as values."""

    def parse(name="box", **options):
        return parse_create(name, {"image": "alpine", **options}, home)

    return parse


@pytest.fixture
def config():
    return SandboxConfig("box", OciImage("alpine", 64))


class Guest:
    """A relay's socket that answers each request by a function: (kind, payload) -> [(kind, payload), ...]."""

    def __init__(self, answer):
        self.answer = answer
        self.heard = []

    async def serve(self, reader, writer):
        writer.write(struct.pack(">II", 1, 1000) + encode(0, MessageType.READY, {}).raw)
        splitter = FrameSplitter()
        while data := await reader.read(1 << 16):
            for frame in splitter.feed(data):
                message = decode(frame.body)
                self.heard.append((message.kind, message.payload))
                for kind, payload in self.answer(message.kind, message.payload):
                    writer.write(encode(frame.id, kind, payload).raw)
        writer.close()


@pytest.fixture
async def guest(tmp_path):
    """Connects to a guest with the given answers."""
    servers, connections = [], []

    async def start(answer):
        guest = Guest(answer)
        path = tmp_path / f"agent{len(servers)}.sock"
        servers.append(await asyncio.start_unix_server(guest.serve, path))
        connections.append(await Connection.open(path))
        return connections[-1], guest

    yield start
    for connection in connections:
        connection.close()
    for server in servers:
        server.close()
        await server.wait_closed()
