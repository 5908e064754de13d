"""Commands in a sandbox: one protocol session each, as events, as a stream, or collected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Self

from microsandbox.agent.connection import Connection, Session
from microsandbox.agent.protocol import DATA_CHUNK, Message, MessageType, binary, integer, text
from microsandbox.arguments import octets, parameter, whole
from microsandbox.errors import AgentClientError, ExecFailedError, ExecTimeoutError, MicrosandboxError
from microsandbox.sandbox.exec_options import ExecOptions, StdinMode
from microsandbox.types import ExecOutput, ExecStreamEvent
from microsandbox.units import format_duration_precise

_SIGKILL = 9
#: Seconds a killed command has to report its end.
_KILL_GRACE = 5.0
_NO_EXIT = "runtime error: exec session ended without exit event"


class ExecSink:
    """Standard input of a running command."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def write(self, data: bytes) -> None:
        """Send data, waiting while the command is slow to read; empty data closes."""
        content = memoryview(parameter("data", octets, data))
        if not content:
            await self.close()
        for start in range(0, len(content), DATA_CHUNK):
            if self._session.ended:
                return
            await self._session.send_data(MessageType.EXEC_STDIN, bytes(content[start : start + DATA_CHUNK]))

    async def close(self) -> None:
        """End of input. On a pseudo-terminal it does nothing: write Ctrl-D (0x04) there."""
        if not self._session.ended:
            await self._session.send_data(MessageType.EXEC_STDIN, b"")


class ExecHandle:
    """A running command. Iterate over it for events, or ``wait()`` or ``collect()`` it.

    The command is killed when the connection it was started on closes, not when the handle is dropped.
    """

    def __init__(self, session: Session, options: ExecOptions) -> None:
        self._session = session
        self._sink = ExecSink(session) if options.stdin is StdinMode.PIPE else None
        self._feeder: asyncio.Task[None] | None = None
        if options.stdin is not StdinMode.PIPE:
            self._feeder = asyncio.ensure_future(_feed(ExecSink(session), options.stdin_data))

    @property
    def id(self) -> str:
        """The correlation id, in decimal."""
        return str(self._session.id)

    def take_stdin(self) -> ExecSink | None:
        """The input of a command started with ``Stdin.pipe()``, once."""
        sink, self._sink = self._sink, None
        return sink

    async def recv(self) -> ExecStreamEvent | None:
        """The next event; None after ``exited`` or ``failed``."""
        while (message := await self._session.next_message()) is not None:
            event = _event(message)
            if event is not None:
                return event
        return None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ExecStreamEvent:
        event = await self.recv()
        if event is None:
            raise StopAsyncIteration
        return event

    async def wait(self) -> tuple[int, bool]:
        """Exit code (-1: killed by a signal) and whether it is 0. Output is discarded.

        Raises ExecFailedError when the command could not be started.
        """
        code = await self._run(lambda _kind, _data: None)
        return code, code == 0

    async def collect(self) -> ExecOutput:
        """Everything not consumed yet, and the exit code. Raises ExecFailedError."""
        pieces: dict[MessageType, list[bytes]] = {MessageType.EXEC_STDOUT: [], MessageType.EXEC_STDERR: []}
        code = await self._run(lambda kind, data: pieces[kind].append(data))
        stdout, stderr = (b"".join(parts) for parts in pieces.values())
        return ExecOutput(code, stdout, stderr)

    async def signal(self, sig: int) -> None:
        """Send a signal to the command; SIGKILL reaches its whole process group. No error after its end."""
        await self._control(MessageType.EXEC_SIGNAL, {"signal": parameter("sig", _signal, sig)})

    async def kill(self) -> None:
        """SIGKILL."""
        await self.signal(_SIGKILL)

    async def resize(self, rows: int, cols: int) -> None:
        """Tell a command on a pseudo-terminal the new size of its window."""
        await self._control(MessageType.EXEC_RESIZE, {"rows": whole(rows, 16), "cols": whole(cols, 16)})

    async def _control(self, kind: MessageType, payload: dict[str, int]) -> None:
        if not self._session.ended:
            await self._session.send(kind, payload)

    async def _run(self, on_output: Callable[[MessageType, bytes], None]) -> int:
        while (message := await self._session.next_message()) is not None:
            if message.kind in (MessageType.EXEC_STDOUT, MessageType.EXEC_STDERR):
                on_output(message.kind, binary(message.payload, "data"))
            elif message.kind is MessageType.EXEC_EXITED:
                code = integer(message.payload, "code")
                return -1 if code is None else code
            elif message.kind in (MessageType.EXEC_FAILED, MessageType.ERROR):
                raise exec_failure(message)
        raise MicrosandboxError(_NO_EXIT)


def _signal(value: object) -> int:
    return whole(value, 31)


async def start(connection: Connection, request: dict[str, object], options: ExecOptions) -> ExecHandle:
    """Send the request; the command's fate arrives as events."""
    session = await connection.open_session(MessageType.EXEC_REQUEST, request)
    return ExecHandle(session, options)


async def run(handle: ExecHandle, timeout: float | None) -> ExecOutput:
    """Collect a command, killing it after ``timeout`` seconds. Raises ExecTimeoutError, ExecFailedError."""
    collecting = asyncio.ensure_future(handle.collect())
    try:
        done, _ = await asyncio.wait((collecting,), timeout=timeout)
        if done:
            return collecting.result()
        await handle.kill()
        await asyncio.wait((collecting,), timeout=_KILL_GRACE)
    finally:
        await end_tasks((collecting,))
    assert timeout is not None
    raise ExecTimeoutError(f"exec timed out after {format_duration_precise(timeout)}")


async def end_tasks(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel what still runs and take what has failed, so that nothing is left behind or unseen."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()


async def _feed(sink: ExecSink, data: bytes) -> None:
    """Standard input given in advance, or none at all: the command sees its end."""
    try:
        if data:
            await sink.write(data)
        await sink.close()
    except AgentClientError:
        return  # whoever reads the session's events is told why


def _event(message: Message) -> ExecStreamEvent | None:
    payload = message.payload
    match message.kind:
        case MessageType.EXEC_STARTED:
            return ExecStreamEvent("started", pid=integer(payload, "pid"))
        case MessageType.EXEC_STDOUT:
            return ExecStreamEvent("stdout", data=binary(payload, "data"))
        case MessageType.EXEC_STDERR:
            return ExecStreamEvent("stderr", data=binary(payload, "data"))
        case MessageType.EXEC_EXITED:
            return ExecStreamEvent("exited", code=integer(payload, "code"))
        case MessageType.EXEC_STDIN_ERROR:
            said = (text(payload, "message") or "").encode()
            return ExecStreamEvent("stdin_error", data=said, code=integer(payload, "errno"))
        case MessageType.EXEC_FAILED | MessageType.ERROR:
            failure = exec_failure(message)
            return ExecStreamEvent("failed", data=failure.message.encode(), code=failure.errno)
    return None


def exec_failure(message: Message) -> ExecFailedError:
    """What a message that ends a session in failure says."""
    payload = message.payload
    return ExecFailedError(
        text(payload, "message") or "the guest gave no reason",
        kind=text(payload, "kind") or "other",
        errno=integer(payload, "errno"),
        errno_name=text(payload, "errno_name"),
    )
