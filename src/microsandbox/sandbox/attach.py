"""A command in the guest on the terminal of this program."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

from microsandbox import terminal
from microsandbox.agent.connection import Connection
from microsandbox.agent.protocol import Message, MessageType, binary, integer
from microsandbox.errors import AgentClientError, MicrosandboxError
from microsandbox.sandbox.detach_keys import DetachKeys
from microsandbox.sandbox.exec import ExecHandle, ExecSink, end_tasks, exec_failure, start
from microsandbox.sandbox.exec_options import ExecOptions
from microsandbox.streams import Input, Output

#: What attaching returns when the user has left the command.
DETACHED = -1
_OUTPUT = (MessageType.EXEC_STDOUT, MessageType.EXEC_STDERR)
_left_behind: set[asyncio.Future[Any]] = set()


async def attach(
    connection: Connection, request: Mapping[str, Any], options: ExecOptions, keys: DetachKeys
) -> int:
    """Run it to its end and return its exit code, or DETACHED once the keys were typed or the terminal ended.

    Raises MicrosandboxError when standard input is no terminal, or the connection is lost; ExecFailedError.
    """
    _require_terminal()
    rows, columns = terminal.size()
    handle = await start(connection, {**request, "rows": rows, "cols": columns}, options)
    with terminal.raw(), Input(0) as typed, Output(1) as shown:
        return await _Attached(handle, keys, typed, shown).run()


def _require_terminal() -> None:
    try:
        os.ttyname(0)
    except OSError as error:
        raise MicrosandboxError(
            f"terminal error: resolve tty path: {error.strerror} (os error {error.errno})"
        ) from error


class _Attached:
    def __init__(self, handle: ExecHandle, keys: DetachKeys, typed: Input, shown: Output) -> None:
        self._handle, self._keys, self._typed, self._shown = handle, keys, typed, shown

    async def run(self) -> int:
        sink = self._handle.take_stdin()
        assert sink is not None
        output = asyncio.ensure_future(self._forward_output())
        typing = asyncio.ensure_future(self._forward_input(sink))
        sizes = asyncio.ensure_future(self._follow_size())
        try:
            await asyncio.wait((output, typing), return_when=asyncio.FIRST_COMPLETED)
            if not output.done() and typing.result():
                _leave(self._handle)
                return DETACHED
            return await output
        finally:
            await end_tasks((output, typing, sizes))

    async def _forward_output(self) -> int:
        # Not the handle's public events: the one for a failed start does not carry the kind of failure.
        try:
            while (message := await self._handle._session.next_message()) is not None:
                if message.kind in _OUTPUT:
                    await self._shown.write(binary(message.payload, "data"))
                elif message.kind is MessageType.EXEC_EXITED:
                    return _exit_code(message)
                elif message.kind in (MessageType.EXEC_FAILED, MessageType.ERROR):
                    raise exec_failure(message)
        except AgentClientError as error:
            raise MicrosandboxError(f"the sandbox ended while the command was running ({error})") from error
        raise MicrosandboxError("runtime error: exec session ended without exit event")

    async def _forward_input(self, sink: ExecSink) -> bool:
        """Until the user leaves: True. False when the command has gone."""
        left = False
        try:
            while not left and (data := await self._typed.read()):
                data, left = self._keys.feed(data)
                if data:
                    await sink.write(data)
        except AgentClientError:
            return False
        return True

    async def _follow_size(self) -> None:
        """Keep the guest's terminal as large as ours. Signals reach the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            return
        changed, loop = asyncio.Event(), asyncio.get_running_loop()
        before = signal.getsignal(signal.SIGWINCH)
        loop.add_signal_handler(signal.SIGWINCH, changed.set)
        try:
            while True:
                await changed.wait()
                changed.clear()
                await self._handle.resize(*terminal.size())
        except AgentClientError:
            return
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)
            signal.signal(signal.SIGWINCH, before)


def _leave(handle: ExecHandle) -> None:
    """The command goes on as long as its connection; what it says would hold it up if nobody took it."""
    draining = asyncio.ensure_future(handle.wait())
    _left_behind.add(draining)
    draining.add_done_callback(_forget)


def _forget(draining: asyncio.Future[Any]) -> None:
    _left_behind.discard(draining)
    if not draining.cancelled():
        draining.exception()


def _exit_code(message: Message) -> int:
    code = integer(message.payload, "code")
    return -1 if code is None else code
