"""One command in the guest, with our own input and output: what `run` and `exec` have in common.

Output goes on as it comes and no faster than it is read, input as it comes and no faster than the command
takes it, so that memory stays bounded in both directions.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from microsandbox import terminal
from microsandbox.agent.protocol import Message, MessageType, binary, integer
from microsandbox.cli.failures import KILLED, GuestCommandError, refusing_arguments
from microsandbox.cli.interrupts import Interrupted, Signals, first_of
from microsandbox.errors import AgentClientError, ExecFailedError, ExecTimeoutError, MicrosandboxError
from microsandbox.sandbox.detach_keys import DetachKeys
from microsandbox.sandbox.exec import end_tasks, exec_failure
from microsandbox.streams import Input, Output
from microsandbox.units import format_duration_precise

if TYPE_CHECKING:
    from microsandbox.sandbox.exec import ExecHandle, ExecSink
    from microsandbox.sandbox.sandbox import Sandbox

#: Seconds a command has after Ctrl-C or SIGTERM before its sandbox is stopped under it.
INTERRUPT_GRACE = 10.0
#: Seconds a killed command has to report its end.
_KILL_GRACE = 5.0
_CTRL_D = b"\x04"
_OUTPUT = (MessageType.EXEC_STDOUT, MessageType.EXEC_STDERR)


class DetachedError(Exception):
    """The user has left the command, and wants the sandbox to stay."""


class GuestCommand(Struct, frozen=True):
    """What to run, and how. ``timeout`` is in seconds; ``options`` are keywords of ``exec_stream``.

    ``detach_keys`` end our part in it. ``mark`` is told when the first output has come, and when the command
    has ended.
    """

    argv: tuple[str, ...]
    tty: bool = False
    timeout: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    detach_keys: DetachKeys | None = None
    mark: Callable[[str], None] = lambda _: None


def resolve_command(
    config: Mapping[str, Any], typed: tuple[str, ...], *, interactive: bool
) -> tuple[str, ...] | None:
    """The argv by what was typed, the image and the terminal; None when there is nothing to run."""
    entrypoint, cmd = tuple(config.get("entrypoint") or ()), tuple(config.get("cmd") or ())
    if typed:
        return (*entrypoint, *typed)
    if entrypoint or cmd:
        return (*entrypoint, *cmd)
    return (config.get("shell") or "/bin/sh",) if interactive else None


async def run_guest_command(sandbox: Sandbox, name: str, command: GuestCommand, signals: Signals) -> int:
    """Run it to its end and return its exit code (255 when a signal killed it).

    Raises DetachedError, GuestCommandError, ExecTimeoutError, Interrupted, BrokenPipeError.
    """
    handle = await _start(sandbox, name, command)
    with ExitStack() as stack:
        if command.tty:
            stack.enter_context(terminal.raw())
        streams = [stack.enter_context(stream) for stream in (Output(1), Output(2))]
        running = _Running(handle, name, command, streams[0], streams[1])
        return await running.wait(signals, stack.enter_context(Input(0)))


async def _start(sandbox: Sandbox, name: str, command: GuestCommand) -> ExecHandle:
    from microsandbox.types import Stdin

    try:
        with refusing_arguments():
            return await sandbox.exec_stream(
                command.argv[0],
                list(command.argv[1:]),
                stdin=Stdin.pipe(),
                tty=command.tty,
                **command.options,
            )
    except ExecFailedError as failure:
        raise GuestCommandError(command.argv[0], name, failure) from failure


class _Running:
    """A started command and the tasks that serve it."""

    def __init__(
        self, handle: ExecHandle, name: str, command: GuestCommand, stdout: Output, stderr: Output
    ) -> None:
        self._handle, self._name, self._command = handle, name, command
        self._stdout, self._stderr = stdout, stderr
        self._input: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()

    async def wait(self, signals: Signals, stdin: Input) -> int:
        sink = self._handle.take_stdin()
        assert sink is not None
        self._input = asyncio.ensure_future(self._forward_input(stdin, sink))
        output = asyncio.ensure_future(self._forward_output())
        tasks: list[asyncio.Task[Any]] = [self._input, output]
        if self._command.tty:
            tasks.append(asyncio.ensure_future(self._follow_size()))
        try:
            return await self._wait(output, signals)
        except (OSError, Interrupted, ExecTimeoutError):
            await self._kill()
            raise
        finally:
            await end_tasks(tasks)

    async def _wait(self, output: asyncio.Task[int], signals: Signals) -> int:
        interrupted = asyncio.ensure_future(self._pass_on(signals))
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait(
                (output, interrupted, leaving),
                timeout=self._command.timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            await end_tasks([interrupted, leaving])
        if self._leaving.is_set() and not output.done():
            raise DetachedError
        if output.done() or signals.first is not None:
            signals.check()
            return output.result()
        await self._kill()
        await asyncio.wait((output,), timeout=_KILL_GRACE)
        assert self._command.timeout is not None
        what = "command" if self._command.tty else "exec"
        raise ExecTimeoutError(f"{what} timed out after {format_duration_precise(self._command.timeout)}")

    async def _pass_on(self, signals: Signals) -> None:
        """Give the first signal to the command; return when it has had its time, or at the second."""
        await signals.arrived.wait()
        assert signals.first is not None
        try:
            await self._handle.signal(signals.first)
        except AgentClientError:
            return
        waiting = asyncio.ensure_future(asyncio.sleep(INTERRUPT_GRACE))
        await first_of(waiting, signals.arrived_again.wait())

    async def _kill(self) -> None:
        try:
            await self._handle.kill()
        except AgentClientError:
            return  # it has ended with its connection

    async def _forward_output(self) -> int:
        # Not the handle's public events: the one for a failed start does not carry the kind of failure.
        session = self._handle._session
        silent = True
        try:
            while (message := await session.next_message()) is not None:
                if silent and message.kind in _OUTPUT:
                    silent = False
                    self._command.mark("command's first output")
                match message.kind:
                    case MessageType.EXEC_STDOUT:
                        await self._stdout.write(binary(message.payload, "data"))
                    case MessageType.EXEC_STDERR:
                        await self._stderr.write(binary(message.payload, "data"))
                    case MessageType.EXEC_STDIN_ERROR if self._input is not None:
                        self._input.cancel()
                    case MessageType.EXEC_EXITED:
                        self._command.mark("command ended")
                        return _exit_code(message)
                    case MessageType.EXEC_FAILED | MessageType.ERROR:
                        raise GuestCommandError(self._command.argv[0], self._name, exec_failure(message))
        except AgentClientError as error:
            raise MicrosandboxError(
                f"sandbox '{self._name}' ended while the command was running ({error.detail})"
            ) from error
        raise MicrosandboxError("runtime error: exec session ended without exit event")

    async def _forward_input(self, stdin: Input, sink: ExecSink) -> None:
        try:
            while data := await stdin.read():
                left = False
                if self._command.detach_keys is not None:
                    data, left = self._command.detach_keys.feed(data)
                if data:
                    await sink.write(data)
                if left:
                    self._leaving.set()
                    return
            if self._command.tty:
                await sink.write(_CTRL_D)
            else:
                await sink.close()
        except AgentClientError:
            return  # whoever forwards the output is told why

    async def _follow_size(self) -> None:
        """Keep the guest's terminal as large as ours."""
        changed, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, changed.set)
        try:
            while True:
                rows, columns = terminal.size()
                await self._handle.resize(rows, columns)
                await changed.wait()
                changed.clear()
        except AgentClientError:
            return
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)


def _exit_code(message: Message) -> int:
    code = integer(message.payload, "code")
    return KILLED if code is None or not 0 <= code <= 255 else code
