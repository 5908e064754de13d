"""The relay's socket, to a client that knows nothing of ours: only what microsandbox 0.5.6 specifies.

The client is made of struct, socket and cbor2. It blocks, so it is used from threads.
"""

import asyncio
import socket
import struct

import cbor2
import pytest

from microsandbox import AgentClient, Sandbox
from microsandbox.store.home import Home
from tests.vm.test_lifecycle import run_of

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]

TERMINAL, SESSION_START, SHUTDOWN = 1, 2, 4
STEP = 33_554_431
COMMAND = {"args": [], "env": [], "tty": False, "rows": 24, "cols": 80, "rlimits": []}


class Wire:
    """A connection: its range of ids and the ready message."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.first, self.end = struct.unpack(">II", self.read(8))
        self.ready = self.receive()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def read(self, size):
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def receive(self):
        """Id, flags, generation, type and payload of the next frame that is the specification's."""
        while True:
            length, id, flags = struct.unpack(">IIB", self.read(9))
            assert 5 <= length <= 4 << 20
            message = cbor2.loads(self.read(length - 5))
            assert isinstance(message["p"], bytes)
            if message["t"] != "core.flow":
                return id, flags, message["v"], message["t"], cbor2.loads(message["p"])

    def send(self, id, flags, kind, payload, **envelope):
        body = cbor2.dumps({"v": 5, "t": kind, "p": cbor2.dumps(payload), **envelope})
        self.send_body(id, flags, body)

    def send_body(self, id, flags, body):
        self.socket.sendall(struct.pack(">IIB", 5 + len(body), id, flags) + body)

    def run(self, id, cmd, *args, **more):
        self.send(id, SESSION_START, "core.exec.request", {**COMMAND, "cmd": cmd, "args": list(args), **more})

    def session(self, id):
        """The messages of a session up to its last one."""
        messages = []
        while True:
            of, flags, generation, kind, payload = self.receive()
            assert (of, generation) == (id, 5)
            messages.append((kind, payload))
            if flags & TERMINAL:
                return messages

    def is_closed(self):
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
async def connect(busybox, name):
    """Connects to a sandbox that runs."""
    async with await Sandbox.create(name, image=busybox):
        path = Home.open().agent_socket(name)
        yield lambda: Wire(path)


def printed(messages, kind="core.exec.stdout"):
    return b"".join(payload["data"] for of, payload in messages if of == kind)


async def test_the_handshake_is_a_range_of_ids_and_the_ready_frame(connect):
    def check():
        with connect() as one, connect() as two:
            for wire in (one, two):
                slot, rest = divmod(wire.first - 1, STEP)
                assert rest == 0
                assert slot < 128
                assert wire.end == (slot + 1) * STEP
            assert one.first != two.first
            assert one.ready == two.ready
            _, flags, generation, kind, payload = one.ready
            assert (flags, generation, kind) == (0, 5, "core.ready")
            assert all(
                isinstance(payload[key], int) for key in ("boot_time_ns", "init_time_ns", "ready_time_ns")
            )
            assert isinstance(payload["agent_version"], str)

    await asyncio.to_thread(check)


async def test_commands(connect):
    def check():
        with connect() as wire:
            id = wire.first
            wire.run(id, "sh", "-c", "echo $A; pwd; echo oops >&2; exit 7", env=["A=b"], cwd="/tmp")
            messages = wire.session(id)
            assert messages[0][0] == "core.exec.started"
            assert messages[0][1]["pid"] > 1
            assert printed(messages) == b"b\n/tmp\n"
            assert printed(messages, "core.exec.stderr") == b"oops\n"
            assert messages[-1] == ("core.exec.exited", {"code": 7})

            id += 1
            wire.run(id, "cat")
            wire.send(id, 0, "core.exec.stdin", {"data": b"in "})
            wire.send(id, 0, "core.exec.stdin", {"data": b"and out"})
            wire.send(id, 0, "core.exec.stdin", {"data": b""})
            messages = wire.session(id)
            assert printed(messages) == b"in and out"
            assert messages[-1] == ("core.exec.exited", {"code": 0})

            id += 1
            wire.run(id, "sleep", "1000")
            assert wire.receive()[3] == "core.exec.started"
            wire.send(id, 0, "core.exec.signal", {"signal": 9})
            assert wire.session(id) == [("core.exec.exited", {"code": -1})], "killed by a signal"

            id += 1
            wire.run(id, "sh", "-c", "read x; stty size", tty=True, rows=30, cols=90)
            assert wire.receive()[3] == "core.exec.started"
            wire.send(id, 0, "core.exec.resize", {"rows": 40, "cols": 100})
            wire.send(id, 0, "core.exec.stdin", {"data": b"\n"})
            assert b"40 100\r\n" in printed(wire.session(id))

            id += 1
            wire.run(id, "/nowhere")
            [(kind, payload)] = wire.session(id)
            assert (kind, payload["kind"], payload["errno"], payload["errno_name"]) == (
                "core.exec.failed", "not_found", 2, "ENOENT"
            )  # fmt: skip
            assert payload["message"].startswith('spawn "/nowhere": ')

    await asyncio.to_thread(check)


async def test_sessions_run_beside_each_other(connect):
    def check():
        with connect() as wire:
            wire.run(wire.first, "sleep", "1000")
            wire.run(wire.first + 1, "echo", "beside")
            seen = {}
            while ("core.exec.exited", wire.first + 1) not in seen:
                id, _, _, kind, payload = wire.receive()
                seen[kind, id] = payload
            assert seen["core.exec.stdout", wire.first + 1] == {"data": b"beside\n"}
            assert ("core.exec.started", wire.first) in seen

    await asyncio.to_thread(check)


async def test_files(connect):
    def check():
        with connect() as wire:
            numbers = iter(range(wire.first, wire.end))

            def ask(op, fields, data=None):
                id = next(numbers)
                wire.send(id, SESSION_START, "core.fs.request", {"op": {op: fields}})
                for piece in data or ():
                    wire.send(id, 0, "core.fs.data", {"data": piece})
                *content, (kind, response) = wire.session(id)
                assert kind == "core.fs.response"
                return printed(content, "core.fs.data"), response

            options = {"read": True, "write": True, "append": False, "create": True, "truncate": True,
                       "create_new": False, "mode": None}  # fmt: skip
            _, response = ask("OpenFile", {"path": "/root/file", "options": options})
            handle = response["data"]["Handle"]
            assert handle >= 1
            _, response = ask("Write", {"handle": handle, "offset": 0, "len": 6}, [b"abc", b"def", b""])
            assert response["ok"] is True
            content, response = ask("Read", {"handle": handle, "offset": 2, "len": None})
            assert (content, response["ok"]) == (b"cdef", True)
            _, response = ask("CloseHandle", {"handle": handle})
            assert response["ok"] is True
            _, response = ask("Stat", {"path": "/root/file", "follow_symlink": True})
            info = response["data"]["Stat"]
            assert (info["path"], info["kind"], info["size"], info["uid"]) == ("/root/file", "file", 6, 0)
            _, response = ask("Stat", {"path": "/nowhere", "follow_symlink": True})
            assert response["ok"] is False
            assert response["error"].startswith("stat: ")
            assert response["error"].endswith("(os error 2)")
            _, response = ask("CloseHandle", {"handle": handle})
            assert response["error"].endswith(f"invalid handle: {handle}")

    await asyncio.to_thread(check)


async def test_handles_belong_to_their_client(connect):
    def check():
        options = {"read": True}
        with connect() as one, connect() as two:
            open_file = {"op": {"OpenFile": {"path": "/etc/passwd", "options": options}}}
            one.send(one.first, SESSION_START, "core.fs.request", open_file)
            handle = one.session(one.first)[-1][1]["data"]["Handle"]
            read = {"op": {"Read": {"handle": handle, "offset": 0, "len": None}}}
            two.send(two.first, SESSION_START, "core.fs.request", read)
            error = two.session(two.first)[-1][1]["error"]
            assert error.endswith(f"handle {handle} is owned by a different relay client")
            one.send(one.first + 1, SESSION_START, "core.fs.request", read)
            assert one.session(one.first + 1)[-1][1]["ok"] is True, "any id of the same client may use it"

    await asyncio.to_thread(check)


async def test_newer_clients_may_say_more(connect):
    """Unknown keys are ignored, and optional ones may be null or absent."""

    def check():
        with connect() as wire:
            wire.run(wire.first, "true", cwd=None, user=None, new={"a": [1]})
            assert wire.session(wire.first)[-1] == ("core.exec.exited", {"code": 0})
            wire.send(wire.first, SESSION_START, "core.exec.request", {"cmd": "true"}, new=1)
            assert wire.session(wire.first)[-1] == ("core.exec.exited", {"code": 0})

    await asyncio.to_thread(check)


async def test_what_is_wrong_with_a_message_is_answered_and_the_connection_goes_on(connect):
    def check():
        with connect() as wire:
            id = wire.first

            def refused(flags, kind, payload, **envelope):
                wire.send(id, flags, kind, payload, **envelope)
                [(answer, error)] = wire.session(id)
                assert answer == "core.error"
                assert error["offending_type"] == kind
                return error["kind"], error["message"]

            assert refused(0, "core.exec.request", {"cmd": "true"}) == (
                "invalid_flags", "invalid flags for core.exec.request: got 0, expected 2"
            )  # fmt: skip
            assert refused(TERMINAL, "core.exec.stdin", {"data": b""}) == (
                "invalid_flags", "invalid flags for core.exec.stdin: got 1, expected 0"
            )  # fmt: skip
            kind, message = refused(SESSION_START, "core.exec.request", {"cmd": 5})
            assert kind == "invalid_payload"
            assert message.startswith("decode payload for core.exec.request: ")
            assert refused(0, "of.tomorrow", {})[0] == "unsupported_message_type"
            wire.run(id, "true")
            assert wire.session(id)[-1] == ("core.exec.exited", {"code": 0})

    await asyncio.to_thread(check)


def other_range(wire):
    wire.send(wire.end, SESSION_START, "core.exec.request", {"cmd": "true"})


def nobodys_id(wire):
    wire.send(0, SESSION_START, "core.exec.request", {"cmd": "true"})


def too_short(wire):
    wire.socket.sendall(struct.pack(">I", 4))


def too_long(wire):
    wire.socket.sendall(struct.pack(">I", (4 << 20) + 1))


def no_envelope(wire):
    wire.send_body(wire.first, 0, b"\xff\xff")


def a_list(wire):
    wire.send_body(wire.first, 0, cbor2.dumps([5, "core.exec.request", b""]))


def not_a_clients(wire):
    wire.send(wire.first, 0, "core.clock.sync", {"unix_time_nanos": 0})


def anothers_leaving(wire):
    ids = {"id_start": 1, "id_end_exclusive": 2**32 - 1}
    wire.send(wire.first, 0, "core.relay.client.disconnected", ids)


async def test_who_breaks_the_protocol_is_disconnected_alone(connect):
    breaches = (
        other_range,
        nobodys_id,
        too_short,
        too_long,
        no_envelope,
        a_list,
        not_a_clients,
        anothers_leaving,
    )

    def check():
        with connect() as bystander:
            bystander.run(bystander.first, "cat")
            assert bystander.receive()[3] == "core.exec.started"
            for breach in breaches:
                with connect() as wire:
                    breach(wire)
                    assert wire.is_closed(), breach.__name__
            bystander.send(bystander.first, 0, "core.exec.stdin", {"data": b"still here"})
            bystander.send(bystander.first, 0, "core.exec.stdin", {"data": b""})
            assert printed(bystander.session(bystander.first)) == b"still here"

    await asyncio.to_thread(check)


async def test_the_commands_of_a_client_that_leaves_are_killed(connect):
    def check():
        with connect() as bystander:
            with connect() as wire:
                wire.run(wire.first, "sleep", "12345")
                assert wire.receive()[3] == "core.exec.started"
            script = "while pgrep -f '^sleep 12345' >/dev/null; do sleep 0.05; done"
            bystander.run(bystander.first, "sh", "-c", script)
            assert bystander.session(bystander.first)[-1] == ("core.exec.exited", {"code": 0})

    await asyncio.to_thread(check)


async def test_128_clients_are_served_and_one_more_is_closed_without_a_byte(connect, name):
    def check():
        wires = [connect() for _ in range(127)]  # the owner is one
        try:
            assert len({wire.first for wire in wires}) == 127
            with pytest.raises((EOFError, ConnectionResetError)):
                connect()
            last = wires[-1]
            last.run(last.first, "true")
            assert last.session(last.first)[-1] == ("core.exec.exited", {"code": 0})
        finally:
            for wire in wires:
                wire.socket.close()

    await asyncio.to_thread(check)


async def test_a_shutdown_frame_ends_the_sandbox(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox)

    def check():
        with Wire(Home.open().agent_socket(name)) as wire:
            wire.send(0, SHUTDOWN, "core.shutdown", None)
            assert wire.is_closed()

    await asyncio.to_thread(check)
    result = await asyncio.wait_for(sandbox.wait_until_stopped(), 10)
    assert (result.status, result.exit_code) == ("stopped", 0)
    assert run_of(session_home, name)[:2] == ("Terminated", "ShutdownRequested")
    await Sandbox.remove(name)


async def test_our_raw_client_on_a_real_sandbox(busybox, name):
    def body(kind, payload):
        return cbor2.dumps({"v": 5, "t": kind, "p": cbor2.dumps(payload)})

    def message(frame):
        envelope = cbor2.loads(frame["body"])
        return envelope["t"], cbor2.loads(envelope["p"])

    async with await Sandbox.create(name, image=busybox):
        client = await AgentClient.connect_sandbox(name)
        ready = cbor2.loads(client.ready_bytes())
        assert (ready["t"], client.negotiated_version()) == ("core.ready", 5)
        assert client.agent_version() == cbor2.loads(ready["p"])["agent_version"]
        stat = body("core.fs.request", {"op": {"Stat": {"path": "/etc/passwd", "follow_symlink": True}}})
        kind, response = message(await client.request(SESSION_START, stat))
        assert (kind, response["data"]["Stat"]["kind"]) == ("core.fs.response", "file")
        async with await client.stream(
            SESSION_START, body("core.exec.request", {**COMMAND, "cmd": "cat"})
        ) as stream:
            await client.send(stream.id, 0, body("core.exec.stdin", {"data": b"raw"}))
            await client.send(stream.id, 0, body("core.exec.stdin", {"data": b""}))
            frames = [frame async for frame in stream]
        assert [frame["flags"] for frame in frames][-1] == TERMINAL
        kinds = dict(message(frame) for frame in frames)
        assert kinds["core.exec.stdout"] == {"data": b"raw"}
        assert kinds["core.exec.exited"] == {"code": 0}
        await client.close()
