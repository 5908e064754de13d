"""Running the template builder as a process of its own."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress

from microsandbox.errors import TemplateError
from microsandbox.interpreter import DEFAULT_SIGNALS, module_command, module_environment
from microsandbox.tools import last_lines

_BUILDER = "microsandbox.runtime.template_builder"
#: Seconds a builder has to take back what it began.
_END_GRACE = 10.0


def builder_command(arguments: Sequence[str]) -> list[str]:
    return module_command(_BUILDER, *arguments)


async def build(arguments: Sequence[str]) -> str:
    """Run a builder to its end: the key of the template. When cancelled, it is ended and leaves nothing.

    Raises TemplateError with the builder's reason.
    """
    process = await asyncio.create_subprocess_exec(
        *builder_command(arguments),
        env=module_environment(),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,  # a terminal's Ctrl-C is ours to pass on
    )
    try:
        stdout, stderr = await process.communicate()
    except BaseException:
        await asyncio.shield(_end(process))
        raise
    if process.returncode != 0:
        reason = last_lines(stderr) or f"its builder ended with status {process.returncode}"
        raise TemplateError(reason)
    return stdout.decode().strip()


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_END_GRACE):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def build_in_background(arguments: Sequence[str]) -> bool:
    """Start a builder that outlives this process; whether it built. When cancelled, it goes on.

    Only for single-threaded processes.
    """
    pipe, output = os.pipe()
    try:
        _start(builder_command(["--background", *arguments]), output)
    finally:
        os.close(output)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb")
    )
    try:
        return await reader.read() != b""
    finally:
        transport.close()


def _start(argv: list[str], output: int) -> None:
    """Start it as nobody's child: whoever kills a sandbox kills all children of its supervisor."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(output, 1)
            os.closerange(3, 1 << 20)
            os.posix_spawn(
                argv[0],
                argv,
                module_environment(),
                file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 2)],
                setsid=True,
                setsigmask=(),
                setsigdef=DEFAULT_SIGNALS,
            )
        finally:
            os._exit(0)
    os.waitpid(child, 0)
