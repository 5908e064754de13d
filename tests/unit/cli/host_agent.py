"""A sandbox without a machine: a relay socket behind which commands run on the host.

``python host_agent.py NAME`` puts a Running row of that name into the catalogue of MSB_HOME, speaks the agent
protocol on its socket and says ``ready``. What it runs are real processes with real pipes and terminals; it
takes the place of supervisor, QEMU and agentd where a test is about the client.
"""

import asyncio
import errno
import fcntl
import os
import pty
import signal
import struct
import sys
import termios

from microsandbox.agent.protocol import FrameSplitter, MessageType, decode, encode
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.options import SandboxConfig
from microsandbox.sandbox.rootfs import OciImage
from microsandbox.sandbox.stored_config import dump_config

KINDS = {errno.ENOENT: "not_found", errno.EACCES: "permission_denied", errno.ENOEXEC: "not_executable"}


class Session:
    """One command."""

    def __init__(self, id, writer):
        self.id, self.writer = id, writer
        self.resumed = asyncio.Event()
        self.resumed.set()
        self.input = None

    def send(self, kind, payload):
        self.writer.write(encode(self.id, kind, payload).raw)

    async def run(self, request):
        argv = [request["cmd"], *request.get("args", [])]
        env = {**os.environ, **dict(entry.split("=", 1) for entry in request.get("env", []))}
        try:
            size = (request.get("rows", 24), request.get("cols", 80)) if request.get("tty") else None
            outputs = await self.start(argv, env, request.get("cwd") or "/", size)
        except OSError as error:
            self.send(
                MessageType.EXEC_FAILED,
                {
                    "kind": KINDS.get(error.errno, "other"),
                    "errno": error.errno,
                    "errno_name": errno.errorcode[error.errno],
                    "message": f'spawn "{argv[0]}": {error.strerror} (os error {error.errno})',
                },
            )
            return
        self.send(MessageType.EXEC_STARTED, {"pid": self.process.pid})
        await asyncio.gather(*(self.forward(kind, fd) for kind, fd in outputs))
        code = await self.process.wait()
        self.send(MessageType.EXEC_EXITED, {"code": code if code >= 0 else -1})

    async def start(self, argv, env, cwd, size):
        """``size`` is that of the terminal, if there is to be one: rows and columns."""
        if size is not None:
            master, slave = pty.openpty()
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
            self.process = await asyncio.create_subprocess_exec(
                *argv, env=env, cwd=cwd, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )  # fmt: skip
            os.close(slave)
            self.input = master
            return [(MessageType.EXEC_STDOUT, master)]
        ends = [os.pipe() for _ in range(3)]
        self.process = await asyncio.create_subprocess_exec(
            *argv, env=env, cwd=cwd, stdin=ends[0][0], stdout=ends[1][1], stderr=ends[2][1],
            start_new_session=True,
        )  # fmt: skip
        for fd in (ends[0][0], ends[1][1], ends[2][1]):
            os.close(fd)
        self.input = ends[0][1]
        return [(MessageType.EXEC_STDOUT, ends[1][0]), (MessageType.EXEC_STDERR, ends[2][0])]

    async def forward(self, kind, fd):
        while True:
            await self.resumed.wait()
            try:
                data = await asyncio.to_thread(os.read, fd, 4096)
            except OSError:
                return
            if not data:
                return
            self.send(kind, {"data": data})
            await self.writer.drain()

    async def take(self, message):
        payload = message.payload
        if message.kind is MessageType.FLOW:
            (self.resumed.clear if payload["paused"] else self.resumed.set)()
        elif message.kind is MessageType.EXEC_SIGNAL and self.process.returncode is None:
            os.kill(self.process.pid, payload["signal"])
        elif message.kind is MessageType.EXEC_RESIZE and self.input is not None:
            size = struct.pack("HHHH", payload["rows"], payload["cols"], 0, 0)
            fcntl.ioctl(self.input, termios.TIOCSWINSZ, size)
        elif message.kind is MessageType.EXEC_STDIN and self.input is not None:
            if not payload["data"]:
                os.close(self.input)
                self.input = None
                return
            try:
                await asyncio.to_thread(os.write, self.input, payload["data"])
            except BrokenPipeError as error:
                self.send(
                    MessageType.EXEC_STDIN_ERROR,
                    {"errno": error.errno, "errno_name": "EPIPE", "message": error.strerror},
                )


async def serve(reader, writer):
    writer.write(struct.pack(">II", 1, 1000))
    ready = {"boot_time_ns": 1, "init_time_ns": 1, "ready_time_ns": 1, "features": ["flow"]}
    writer.write(encode(0, MessageType.READY, ready).raw)
    sessions, tasks, splitter = {}, [], FrameSplitter()
    while data := await reader.read(1 << 16):
        for frame in splitter.feed(data):
            message = decode(frame.body)
            if message.kind is MessageType.EXEC_REQUEST:
                session = sessions[frame.id] = Session(frame.id, writer)
                session.process = None
                tasks.append(asyncio.ensure_future(session.run(message.payload)))
                while session.input is None and not tasks[-1].done():
                    await asyncio.sleep(0)
            elif frame.id in sessions:
                await sessions[frame.id].take(message)
    for session in sessions.values():
        if session.process is not None and session.process.returncode is None:
            os.killpg(session.process.pid, signal.SIGKILL)
    writer.close()


async def main(name):
    context = Context.current()
    config = dump_config(
        SandboxConfig(name, OciImage("test", 64), shell="/bin/bash", labels={"made": "here"})
    )
    context.sandboxes.create(name, config, {"made": "here"}, None)
    path = context.home.sandbox(name).agent_socket
    path.parent.mkdir(parents=True, exist_ok=True)
    await asyncio.start_unix_server(serve, path)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
