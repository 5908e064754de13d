"""The raw client against relays that do as they should, or not: results and the words of every failure."""

import asyncio
import struct

import cbor2
import pytest

from microsandbox import AgentClient
from microsandbox.agent.connection import Connection
from microsandbox.agent.protocol import MessageType
from microsandbox.cli.failures import report
from microsandbox.errors import AgentClientError, InvalidConfigError, RuntimeTooOldError


def envelope(kind, payload=None, generation=5):
    return cbor2.dumps({"v": generation, "t": kind, "p": cbor2.dumps(payload)})


def frame(id, flags, body):
    return struct.pack(">IIB", 5 + len(body), id, flags) + body


READY = frame(0, 0, envelope("core.ready", {"agent_version": "0.5.6"}))
RANGE = struct.pack(">II", 1, 10)


async def ignore(reader, writer):
    await reader.read()


@pytest.fixture
async def relay(tmp_path):
    """Serves a greeting, and then as told; the path of its socket."""
    servers = []

    async def start(greeting, then=ignore):
        async def serve(reader, writer):
            try:
                writer.write(greeting)
                await then(reader, writer)
            finally:
                writer.close()

        path = tmp_path / f"{len(servers)}.sock"
        servers.append(await asyncio.start_unix_server(serve, path))
        return path

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


async def read_frame(reader):
    length, id, flags = struct.unpack(">IIB", await reader.readexactly(9))
    return id, flags, await reader.readexactly(length - 5)


async def echo(reader, writer):
    """Answer each frame with two: its own, and an empty one that is the last."""
    while True:
        try:
            id, flags, body = await read_frame(reader)
        except asyncio.IncompleteReadError:
            return
        writer.write(frame(id, flags, body) + frame(id, 1, b"end"))


async def test_a_request_takes_the_first_frame_and_a_stream_all(relay):
    client = await AgentClient.connect(await relay(RANGE + READY, echo))
    assert await client.request(2, b"one") == {"id": 1, "flags": 2, "body": b"one"}
    async with await client.stream(2, b"two") as stream:
        assert stream.id == 2
        assert [one["body"] async for one in stream] == [b"two", b"end"]
        assert await stream.next() is None
    stream = await client.stream(0, b"three")
    await stream.close()
    await stream.close()
    assert await stream.next() is None
    await client.close()


async def test_what_the_other_side_is(relay):
    client = await AgentClient.connect(await relay(RANGE + READY))
    assert cbor2.loads(client.ready_bytes())["t"] == "core.ready"
    assert (client.negotiated_version(), client.agent_version()) == (5, "0.5.6")
    assert client.supports("core.tcp.connect")
    assert not client.is_legacy_protocol()
    await client.close()
    await client.close()
    for call in (
        client.ready_bytes,
        client.negotiated_version,
        client.agent_version,
        client.is_legacy_protocol,
    ):
        with pytest.raises(AgentClientError, match=r"^agent client error: client closed$"):
            call()
    for action in (client.request(0, b""), client.stream(0, b""), client.send(1, 0, b"")):
        with pytest.raises(AgentClientError, match=r"^agent client error: client closed$"):
            await action


@pytest.mark.parametrize(
    ("message_type", "needed"),
    [
        ("core.exec.request", None),
        ("core.flow", "flow"),
        ("core.ping", "ping"),
        ("core.pong", "ping"),
        ("core.machine.pause", "machine"),
    ],
)
async def test_our_own_messages_are_supported_by_who_announces_them(relay, message_type, needed):
    for features in (None, 1, [], [["flow"], {}], ["ping"], ["flow", "machine"]):
        ready = frame(0, 0, envelope("core.ready", {"features": features}))
        client = await AgentClient.connect(await relay(RANGE + ready))
        announced = features if isinstance(features, list) else []
        assert client.supports(message_type) == (needed is None or needed in announced), features
        for unknown in ("core.boot.config", "core.machine.explode", "core.fs.", "of.tomorrow", ""):
            assert not client.supports(unknown), unknown
        await client.close()


async def test_ids_go_round_in_their_range_and_leave_out_those_in_use(relay):
    client = await AgentClient.connect(await relay(struct.pack(">II", 0, 4) + READY))
    first = await client.stream(0, b"")
    second = await client.stream(0, b"")
    await first.close()
    ids = [(await client.stream(0, b"")).id for _ in range(2)]
    assert (first.id, second.id, ids) == (1, 2, [3, 1]), "0 is nobody's"
    with pytest.raises(AgentClientError, match="agent correlation id range exhausted"):
        await client.stream(0, b"")
    await client.close()


@pytest.mark.parametrize("offset", [0, 1 << 28])
async def test_a_relay_of_before_0_5_deals_out_an_offset(relay, offset):
    client = await AgentClient.connect(await relay(struct.pack(">I", offset) + READY, echo))
    assert client.is_legacy_protocol()
    assert (await client.request(0, b"x"))["id"] == offset + 1
    assert client._connection._end == offset + 1 + (2**32 - 1) // 16
    await client.close()


async def test_what_an_old_runtime_does_not_know_is_not_sent(relay, capsys):
    old = frame(0, 0, envelope("core.ready", {}, generation=1))
    path = await relay(RANGE + old)
    client = await AgentClient.connect(path)
    assert (client.negotiated_version(), client.agent_version()) == (1, None)
    assert client.supports("core.exec.request")
    assert not client.supports("core.fs.request")
    await client.close()
    connection = await Connection.open(path)
    with pytest.raises(RuntimeTooOldError) as caught:
        await connection.open_session(MessageType.FS_REQUEST, {})
    assert str(caught.value) == (
        "agent client error: the sandbox runtime is too old for 'core.fs.request' (needs protocol generation "
        "2, the sandbox speaks 1); restart the sandbox to update its runtime"
    )
    connection.close()
    assert report(caught.value) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: this sandbox's runtime is too old for the requested feature",
        "  → the sandbox was started by an older microsandbox runtime",
        "  → exec and shell still work",
        "  → restart the sandbox to update its runtime, then retry",
    ]


@pytest.mark.parametrize(
    ("greeting", "text"),
    [
        (b"", "read id range: timed out before relay sent bytes"),
        (RANGE, "read ready frame: timed out before relay sent frame"),
        (struct.pack(">II", 9 << 20, 8 << 20), "invalid relay id range: start=9437184, end=8388608"),
        (struct.pack(">II", 0, 1), "relay id range contains no usable nonzero ids: "),
        (RANGE + frame(0, 0, envelope("core.error", {})), "expected core.ready frame, got core.error"),
        (RANGE + frame(0, 0, envelope("of.tomorrow")), "expected core.ready frame, got of.tomorrow"),
        (RANGE + frame(0, 0, b"garbage"), "envelope is not valid CBOR: "),
        (RANGE + struct.pack(">I", 4), "frame length 4 is outside 5..4194304"),
    ],
)
async def test_a_handshake_that_fails_says_why(relay, greeting, text):
    with pytest.raises(AgentClientError) as caught:
        await AgentClient.connect(await relay(greeting), timeout=0.2)
    assert str(caught.value).startswith(f"agent client error: handshake: {text}")


async def test_a_relay_that_leaves_during_the_handshake(relay):
    async def leave(reader, writer):
        writer.close()

    with pytest.raises(AgentClientError, match="handshake: relay closed the connection"):
        await AgentClient.connect(await relay(b"", leave))


async def test_a_relay_that_leaves_ends_requests_with_their_ids_and_streams_quietly(relay):
    async def leave(reader, writer):
        await read_frame(reader)
        await read_frame(reader)
        writer.close()

    client = await AgentClient.connect(await relay(RANGE + READY, leave))
    stream = await client.stream(0, b"")
    with pytest.raises(
        AgentClientError, match=r"^agent client error: reader closed before response for id=2$"
    ):
        await client.request(0, b"")
    assert await stream.next() is None
    await client.close()


async def test_who_cannot_be_connected_to(tmp_path, monkeypatch):
    monkeypatch.setenv("MSB_HOME", str(tmp_path))
    with pytest.raises(
        AgentClientError, match=rf"^agent client error: connect {tmp_path}/none: No such file"
    ):
        await AgentClient.connect(tmp_path / "none")
    with pytest.raises(AgentClientError, match=r"^agent client error: sandbox 'none' not found$"):
        await AgentClient.connect_sandbox("none")
    with pytest.raises(AgentClientError, match=r"^agent client error: invalid sandbox name: x{129} \("):
        await AgentClient.connect_sandbox("x" * 129)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InvalidConfigError, match="config.json: the file must be an object"):
        await AgentClient.connect_sandbox("none")
    for timeout in (-1, float("inf"), float("nan")):
        for connecting in (
            AgentClient.connect(tmp_path, timeout=timeout), AgentClient.connect_sandbox("x", timeout=timeout)
        ):  # fmt: skip
            with pytest.raises(ValueError, match=r"^timeout must be a non-negative finite number$"):
                await connecting


@pytest.mark.parametrize(("id", "flags"), [(-1, 0), (2**32, 0), (1, 256), (1, -1)])
async def test_numbers_that_do_not_fit_are_refused(relay, id, flags):
    client = await AgentClient.connect(await relay(RANGE + READY))
    with pytest.raises(OverflowError):
        await client.send(id, flags, b"")
    await client.close()


async def test_a_frame_that_is_too_large_is_not_sent(relay):
    client = await AgentClient.connect(await relay(RANGE + READY, echo))
    with pytest.raises(AgentClientError, match="protocol: frame of 4194305 bytes is larger than 4194304"):
        await client.request(0, bytes(4194300))
    assert len((await client.request(0, bytes(4194299)))["body"]) == 4194299
    await client.close()
